"""
Settings from the environment, and the messages for invalid ones.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

import psycopg2
import pytest

from schema.database_url import InvalidUrl, Place, parse, reason
from service.settings import OTHER_NAMES, InvalidSettings, Settings, load
from service.wamp.client import RouterAddress

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all settings from the environment."""
    for name in list(os.environ):
        if name.startswith("ROWCAST_") or name in ("DATABASE_URL", "PORT"):
            monkeypatch.delenv(name)


def problems(monkeypatch: pytest.MonkeyPatch, **environ: str) -> list[str]:
    """Set variables, and return the messages with which they are refused."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings) as refused:
        load()
    return refused.value.problems


def test_empty_settings_mean_embedded() -> None:
    """Without settings, the database and the router are the embedded ones."""
    settings = load()
    assert settings.place.embedded
    assert settings.embedded_router
    assert (settings.port, settings.realm, settings.prefix) == (8080, "realm1", "rowcast")


def test_urls_with_passwords_are_hidden_by_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the settings nor the `Place` made from them show a password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hidden1@h/db")
    monkeypatch.setenv("ROWCAST_DIRECT_URL", "postgresql://u:hidden2@h/db")
    settings = load()
    assert "hidden1" in settings.place.dsn()
    assert "hidden2" in settings.place.direct_dsn()
    assert "hidden" not in f"{settings!r} {settings.place!r} {list(settings.lines())}"


def test_settings_from_the_environment_are_split_and_stripped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lists are split at commas, whitespace is stripped, an empty value counts as unset."""
    monkeypatch.setenv("ROWCAST_SCHEMAS", " public , app ")
    monkeypatch.setenv("ROWCAST_ROUTER_URL", "wss://a/ws, rs://b:9000,unix:/run/router.sock")
    monkeypatch.setenv("ROWCAST_SHARED", "1")
    monkeypatch.setenv("ROWCAST_REALM", "")
    monkeypatch.setenv("PORT", "9090")
    settings = load()
    assert settings.schemas == ("public", "app")
    assert settings.router_url == ("wss://a/ws", "rs://b:9000", "unix:/run/router.sock")
    assert settings.shared
    assert settings.realm == "realm1"
    assert settings.port == 9090
    assert not settings.embedded_router


def test_settings_with_problems_are_all_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All problems are reported at once, with the names of the environment variables."""
    messages = problems(
        monkeypatch,
        PORT="eighty",
        DATABASE_URL="postgres://u:s3cret@h/d?pgbouncer=true",
        ROWCAST_POOL_MAX="0",
        ROWCAST_PREFIX="Row cast",
        ROWCAST_ROUTER_URL="http://b",
        ROWCAST_TICKET="s3cret",
        ROWCAST_KEY_FILE="/nowhere",
        ROWCAST_LOG_LEVEL="loud",
    )
    names = ["DATABASE_URL", "PORT", "ROWCAST_ROUTER_URL", "ROWCAST_TICKET", "ROWCAST_KEY_FILE"]
    names += ["ROWCAST_PREFIX", "ROWCAST_POOL_MAX", "ROWCAST_LOG_LEVEL"]
    assert [sentence.split()[0] for sentence in messages] == names
    assert "s3cret" not in " ".join(messages)


@pytest.mark.parametrize("url", ["ws://h:99999/ws", "rs://h:0", "ws://h,http://h", "unix:", "h:1"])
def test_url_of_no_router_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Exactly the URLs that the WAMP client cannot parse are refused."""
    (messages,) = problems(monkeypatch, ROWCAST_ROUTER_URL=url)
    assert messages.startswith("ROWCAST_ROUTER_URL should ")
    with pytest.raises(ValueError, match="should "):
        [RouterAddress.from_url(each) for each in url.split(",")]


@pytest.mark.parametrize(
    "url", ["wss://app:s3cret@h/ws", "rs://s3cret@h:9000", "ws://app:s3cret/x@h/ws"]
)
def test_router_url_with_password_is_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """The password would be logged, and the router ignores it."""
    (messages,) = problems(monkeypatch, ROWCAST_ROUTER_URL=url)
    assert messages.startswith("ROWCAST_ROUTER_URL should ")
    assert "s3cret" not in messages


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "eighty", "PORT should be a valid integer (it is 'eighty')"),
        ("ROWCAST_POOL_MAX", "9" * 99, "should be less than 2147483648 (it is '9999"),
        ("ROWCAST_SHARED", "\u202eyes\n", r"should be a valid boolean (it is '\u202eyes\n')"),
        ("ROWCAST_SCHEMAS", " , ", "ROWCAST_SCHEMAS should name at least one schema (it is ' , ')"),
        ("ROWCAST_PREFIX", "wamp", "is reserved by WAMP or Crossbar (it is 'wamp')"),
        ("ROWCAST_ROLES", "a", "and more of them after commas (it is 'a')"),
        (
            "ROWCAST_TICKET",
            "s3cret",
            "ROWCAST_TICKET needs ROWCAST_AUTHID, the name that goes with it",
        ),
        ("ROWCAST_AUTHID", "app", "ROWCAST_AUTHID needs ROWCAST_TICKET or ROWCAST_KEY_FILE"),
    ],
)
def test_invalid_setting_is_reported_with_its_value_unless_it_may_be_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """Values are shortened, and without control characters."""
    (problem,) = problems(monkeypatch, **{name: value})
    assert said in problem
    assert len(problem) < 160
    assert "s3cret" not in problem


@pytest.mark.parametrize(
    "name", [name for name, value, _ in Settings().lines() if re.fullmatch(r"[\d.]+", value)]
)
def test_number_beyond_what_the_service_can_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PostgreSQL would refuse a longer timeout in each session, and take one that rounds to 0 ms for none."""
    for value in ("inf", "nan", "1e400", "99999999999999999999", "-1", "0", "0.0001"):
        (problem,) = problems(monkeypatch, **{name: value})
        assert problem.startswith(f"{name} should be ")


@pytest.mark.parametrize("name", ["ROWCAST_MAX_TRANSACTIONS", "ROWCAST_CHANGES_POLL"])
def test_number_without_a_default_is_bounded_as_others(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (problem,) = problems(monkeypatch, **{name: "99999999999999999999"})
    assert problem.startswith(f"{name} should be less than ")


def test_unknown_settings_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled setting is not ignored."""
    assert problems(monkeypatch, ROWCAST_POOLMAX="3") == [
        "ROWCAST_POOLMAX is not a setting: did you mean ROWCAST_POOL_MAX?"
    ]


def test_database_given_in_two_places_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two settings for the database are an error, so that neither wins silently."""
    file = tmp_path / "url"
    file.write_text("postgres://h/d")
    messages = problems(
        monkeypatch, DATABASE_URL="postgres://h/d", ROWCAST_DATABASE_URL_FILE=str(file)
    )
    assert messages == [
        "ROWCAST_DATABASE_URL_FILE and DATABASE_URL are two answers to one question: unset one"
    ]


def test_secrets_in_settings_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the list of settings nor their repr shows a secret."""
    monkeypatch.setenv("DATABASE_URL", "postgres://u:s3cret@h/d")
    monkeypatch.setenv("ROWCAST_AUTHID", "rowcast")
    monkeypatch.setenv("ROWCAST_TICKET", "s3cret")
    settings = load()
    lines = {name: (value, source) for name, value, source in settings.lines()}
    assert "s3cret" not in repr(settings) + str(lines)
    assert lines["ROWCAST_AUTHID"] == ("rowcast", "environment")
    assert lines["PORT"] == ("8080", "default")


def test_settings_once_read_do_not_change() -> None:
    """Settings are frozen."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_page_of_settings_has_each_with_its_default() -> None:
    """docs/settings.md lists each setting with its default."""
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    for name, value, _ in Settings().lines():
        shown = value.replace(str(ROOT) + "/", "")
        default = "" if shown == "-" else f"`{shown}`"
        assert f"| `{name}` | {default} |" in page, (
            f"docs/settings.md lacks {name}, or its default differs"
        )


def test_settings_of_any_name_are_read_by_the_service() -> None:
    """Each is read by a module of the service, or by a property of the settings that is read."""
    modules = [*(ROOT / "service").rglob("*.py"), ROOT / "twistd.tac"]
    code = "".join(module.read_text("utf-8") for module in modules)
    read = set(re.findall(r"\b(?:settings|self)\.(\w+)", code))
    unread = Settings.model_fields.keys() - read
    assert not unread, "no module of service/ reads settings.<field>"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h/d", {"host": "h", "password": "p"}),
        ("postgresql+psycopg2://u:p%40%25x@h/d", {"password": "p@%x"}),
        (
            "postgresql://h1:5432,h2:5433/d?target_session_attrs=read-write",
            {"host": "h1,h2", "port": "5432,5433", "target_session_attrs": "read-write"},
        ),
        ("postgresql://u@/d?host=/run/postgresql", {"host": "/run/postgresql"}),
        ("host=/run/postgresql dbname=d sslmode=require", {"sslmode": "require"}),
    ],
)
def test_url_that_libpq_takes_is_taken(url: str, expected: dict[str, str]) -> None:
    """Each form of a PostgreSQL URL is accepted, and SQLAlchemy's too."""
    assert expected.items() <= parse(url).items()


def test_url_that_libpq_refuses_is_refused_without_the_password() -> None:
    """The message names the parameter, and never the password."""
    with pytest.raises(InvalidUrl, match='has the parameter "pgbouncer"'):
        parse("postgres://u:s3cret@h/d?pgbouncer=true")
    with pytest.raises(InvalidUrl, match="is not a PostgreSQL URL") as refused:
        parse("mysql://u:s3cret@h/d")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3cret/x@127.0.0.1/db",
        "postgresql://app:word@s3cret@127.0.0.1/db",
        "postgresql://app:word@s3cret/x@127.0.0.1/db",
        "postgresql://app:s3cret@127.0.0.1:5432@h/db",
        "postgresql://app:12/s3cret?s3cret=1@127.0.0.1/db",
        "postgresql://app:12/s3cret@127.0.0.1/db",
        "postgresql://app:12?s3cret/x@127.0.0.1/db",
        "postgresql://app:#s3cret/x@127.0.0.1/db",
        "postgresql://app:p@#s3cret@127.0.0.1/db",
        "postgresql://app:p%zzs3cret@127.0.0.1/db",
        "postgresql+psycopg2://app:s3cret/x@127.0.0.1/db",
        "postgresql://127.0.0.1:s3cret/db",
        "user=app password=it s3cret=1",
        "user=app password='s3cret",
    ],
)
def test_url_with_stray_password_is_refused_without_any_of_it(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Parts that libpq would parse as host, port or parameter may be of the password: they are not printed."""
    (messages,) = problems(monkeypatch, DATABASE_URL=url)
    assert messages.startswith("DATABASE_URL ")
    assert "s3cret" not in messages
    assert "word" not in messages.replace("password", "")
    for place in (Place(url=url), Place(url="host=h", direct=url)):
        with pytest.raises(InvalidUrl) as refused:
            place.direct_dsn()
        assert "s3cret" not in str(refused.value)


def test_url_with_stray_password_refusal_says_how_to_encode_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message says how to percent-encode the password."""
    (messages,) = problems(monkeypatch, DATABASE_URL="postgresql://app:hunter2@x/y@127.0.0.1/db")
    assert messages == (
        "DATABASE_URL has no host and port where they should be"
        " → percent-encode @ : / # in the password (%40 %3A %2F %23)"
    )
    encoded = parse("postgresql://app:hunter2%40x%2Fy%3A%23@127.0.0.1/db")
    assert encoded["password"] == "hunter2@x/y:#"


def test_url_with_line_break_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret read from a file often ends with a line break."""
    monkeypatch.setenv("DATABASE_URL", " postgresql://app:pw@h/db\n")
    assert "dbname=db" in load().place.dsn()


@pytest.mark.parametrize("level", ["WARN", "Warn", " warn"])
def test_log_level_in_any_case_is_taken(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """Other programs write levels in upper case."""
    monkeypatch.setenv("ROWCAST_LOG_LEVEL", level)
    assert load().log_level == "warn"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ROWCAST_DATABASE_URL", "DATABASE_URL"),
        ("ROWCAST_DB_URL", "DATABASE_URL"),
        ("ROWCAST_PORT", "PORT"),
        ("ROWCAST_POOL_SIZE", "ROWCAST_POOL_MAX"),
        ("ROWCAST_PASSWORD", "ROWCAST_TICKET"),
        ("ROWCAST_SCHEMA", "ROWCAST_SCHEMAS"),
        ("ROWCAST_LOGLEVEL", "ROWCAST_LOG_LEVEL"),
        ("ROWCAST_TIMEOUT", "ROWCAST_STATEMENT_TIMEOUT"),
        ("ROWCAST_ROUTER", "ROWCAST_ROUTER_URL"),
        ("ROWCAST_PRIVATE_KEY", "ROWCAST_KEY_FILE"),
        ("ROWCAST_STATEMENT_TIMEOT", "ROWCAST_STATEMENT_TIMEOUT"),
    ],
)
def test_unknown_setting_has_a_hint(monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    """The hint comes from the names of other programs, or from similar spelling."""
    messages = problems(monkeypatch, **{name: "1"})
    assert messages[0] == f"{name} is not a setting: did you mean {meant}?"


def test_unknown_setting_like_no_other_has_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hint is better than a wrong one."""
    assert problems(monkeypatch, ROWCAST_QUUX="1") == ["ROWCAST_QUUX is not a setting"]


def test_other_names_of_settings_map_to_existing_settings() -> None:
    """The table maps to existing fields, and no setting's own name to another setting."""
    assert OTHER_NAMES.keys() <= Settings.model_fields.keys()
    own = {field.upper().replace("_", "") for field in Settings.model_fields}
    others = [name for names in OTHER_NAMES.values() for name in names.split()]
    assert not own & set(others)
    assert len(others) == len(set(others))


@pytest.mark.parametrize("name", ["ROWCAST_KEY_FILE", "ROWCAST_DATABASE_URL_FILE"])
def test_setting_that_names_no_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Also if a key stands in its place, which is too long for a path and is not shown."""
    for value in (str(tmp_path), str(tmp_path / "absent"), "k" * 300):
        (problem,) = problems(monkeypatch, **{name: value})
        assert problem.startswith(f"{name} should be the path of a file")
        assert value not in problem


def test_url_in_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidUrl, match=r"^ROWCAST_DATABASE_URL_FILE is not a text"):
        Place(file=file).dsn()


def test_url_in_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    """A rotated password is used at the next connection."""
    file = tmp_path / "url"
    file.write_text("postgres://u:old@h/d\n")
    place = Place(file=file)
    assert "password=old" in place.dsn()
    file.write_text("postgres://u:new@h/d\n")
    assert "password=new" in place.dsn()
    assert not place.embedded


def test_url_without_keepalives_gets_them() -> None:
    """Keepalives are added to a URL without them, and unchanged in a URL with them."""
    assert "keepalives_idle=30" in Place(url="postgres://h/d").dsn()
    assert "keepalives_idle=5" in Place(url="postgres://h/d?keepalives_idle=5").dsn()


def test_direct_url_beside_a_pooler_goes_past_it() -> None:
    """LISTEN and migrations use the direct URL."""
    place = Place(url="postgres://pooler/d", direct="postgres://server/d")
    assert "host=pooler" in place.dsn()
    assert "host=server" in place.direct_dsn()


def test_server_without_ssl_is_reported_with_the_way_out() -> None:
    """If SSL is required and the server has none, the message says what to change."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=refuse_ssl, args=(server,))
        answering.start()
        port = server.getsockname()[1]
        with pytest.raises(psycopg2.OperationalError) as refused:
            psycopg2.connect(f"host=127.0.0.1 port={port} sslmode=require user=u")
        answering.join()
    assert "does not support SSL" in reason(refused.value)
    assert "→ add ?sslmode=prefer to the URL" in reason(refused.value)


def refuse_ssl(server: socket.socket) -> None:
    """Answer libpq's SSLRequest as a PostgreSQL server without SSL does."""
    connection, _ = server.accept()
    with connection:
        connection.recv(8)
        connection.sendall(b"N")


REFUSED = """connection to server at "h" (192.0.2.1), port 5432 failed: FATAL:  no pg_hba.conf entry for host "h", \
user "u", database "d", SSL encryption
connection to server at "h" (192.0.2.1), port 5432 failed: FATAL:  no pg_hba.conf entry for host "h", \
user "u", database "d", no encryption
"""


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        (REFUSED, "allow this user, database and address in the server's pg_hba.conf"),
        (
            REFUSED.splitlines()[0],
            "allow this user, database and address in the server's pg_hba.conf",
        ),
        (REFUSED.splitlines()[1], "add ?sslmode=require to the URL"),
        (
            "canceling statement due to lock timeout",
            "end the transactions that hold the lock, or raise",
        ),
        ("canceling statement due to statement timeout", "raise the role's statement_timeout"),
        ("deadlock detected", "try again"),
        ('connection to server at "h" failed: timeout expired', "check host, port and firewall"),
    ],
)
def test_failure_has_the_remedy_of_its_cause(said: str, cure: str) -> None:
    """Not that of a failure whose message has some of the same words."""
    assert f" → {cure}" in reason(psycopg2.OperationalError(said))
