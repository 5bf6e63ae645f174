"""
The service fixes the settings that values depend on, whatever environment, URL, role and database set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import make_dsn

from service.db.session_settings import SESSION_QUERY, SessionSettings, open_session
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.test_streaming import Taker
from tests.deferreds import failure_of

SCHEMA = """
CREATE TYPE pair AS (word text, day date);
CREATE TABLE things (id int PRIMARY KEY, word text, day date, at timestamptz, span interval,
  bytes bytea, real float8, small float4, list int[], words text[], pair pair, part numeric,
  json jsonb);
CREATE TABLE empty (LIKE things INCLUDING ALL);
CREATE VIEW nobody AS SELECT id FROM things WHERE word = NULL;
CREATE FUNCTION row_echo(things) RETURNS SETOF empty STABLE LANGUAGE sql
  AS 'SELECT ($1).*';
CREATE FUNCTION echo(day date, word text) RETURNS text STABLE LANGUAGE sql
  AS 'SELECT concat(day, word)';
"""

ROW = {
    "id": 1, "word": "é\\'€", "day": "03/04/2024", "at": "2024-03-04 05:06:07.125",
    "span": "1 year 2 days 03:04:05", "bytes": b"\x00\xff", "real": 0.1234567890123456,
    "small": 0.1, "list": [1, None, 3], "words": ["NULL", None, "ü"],
    "pair": {"word": "é", "day": "2024-03-04"}, "part": "12.50", "json": {"é": [1, None]},
}  # fmt: skip

HOSTILE = {
    "client_encoding": "LATIN1",
    "timezone": "Asia/Tokyo",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "xmlbinary": "hex",
    "xmloption": "document",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "exit_on_error": "on",
}

OWNERS = (
    "^(transaction_|default_trans|default_table|temp_tablesp|default_text|lc_|role$|session_auth"
    "|restrict_non|check_function|event_triggers|plpgsql|debug_|log_|.*_preload|.*_timeout$"
    "|temp_buffers|dynamic_lib|search_path|ignore_|zero_dam|application_name|session_repl|max_stack"
    "|enable_|cpu_|jit|geqo|.*_cost$|.*collapse_limit$|.*parallel.*|cursor_tuple|hash_mem|recursive_w"
    "|default_toast|client_min|gin_fuzzy|allow_|trace|timezone_abb)"
)
"""Settings that do not affect values, and are left to the database."""


async def results(db: DirectCaller) -> list[Any]:
    """Write values of many types with each verb; return the results of writes and reads."""
    call = db.call
    taker = Taker(db)
    await call("things.delete", all=True)
    await call("empty.delete", all=True)
    return [
        await call("things.create", ROW),
        await call("things.get", 1),
        await call("things.find", where={"word": {"like": "é%"}}, select=["word", "small"]),
        await call("things.count", where={"day": "03/04/2024", "word": ROW["word"]}),
        await call("things.find", where={"at": "2024-03-04 05:06:07.125"}, select=["at::text"]),
        await call("things.find", embed={"echoed": {"relation": "row_echo"}}, select=["id"]),
        await call("nobody.find"),
        await call("fn.echo", day="03/04/2024", word="é"),
        await call("empty.import", [ROW, {**ROW, "id": 2}]),
        await call("empty.import", csv="id,word,day\n3,é€,03/04/2024\n"),
        await call("empty.find", order=["id"]),
        type(await failure_of(call("things.create", {"id": 1, "word": "é"}))),
        await taker.call("empty.export", format="csv", order=["id"]),
        taker.parts,
    ]


def hostile(dsn: str) -> dict[str, str]:
    """Return a value other than the present one for each setting that can be changed."""
    connection = psycopg2.connect(dsn)
    found: dict[str, str] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, reset_val, ARRAY['on', 'off', max_val, min_val] || enumvals"
            " FROM pg_settings WHERE context IN ('user', 'superuser') AND name !~ %s",
            [OWNERS],
        )
        for name, own, values in cursor.fetchall():
            for value in [HOSTILE.get(name.lower()), *values]:
                cursor.execute("SAVEPOINT trial")
                try:
                    cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
                    cursor.execute("SELECT current_setting(%s)", [name])
                    if value is not None and cursor.fetchone() != (own,):
                        found[name] = value
                        break
                except psycopg2.Error:
                    pass
                finally:
                    cursor.execute("ROLLBACK TO trial")
    connection.close()
    return found


def flags(settings: dict[str, str]) -> str:
    """Return settings as libpq `options`."""
    return " ".join(
        "-c " + f"{name}={value}".replace(" ", "\\ ") for name, value in settings.items()
    )


@contextmanager
def settings_from(
    route: str, dsn: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Set settings by a route; yield the DSN to use."""
    settings = hostile(dsn)
    assert {name.lower() for name in settings} >= HOSTILE.keys()
    name = psycopg2.extensions.parse_dsn(dsn)["dbname"]
    if route == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        monkeypatch.setenv("PGTZ", "Asia/Tokyo")
        monkeypatch.setenv("PGDATESTYLE", "German, DMY")
        monkeypatch.setenv("PGGEQO", "off")
        monkeypatch.setenv("PGOPTIONS", flags(settings))
        yield dsn
    elif route == "URL":
        yield make_dsn(dsn, client_encoding="LATIN1", options=flags(settings))
    elif route == "service file":
        (home / "services").write_text(
            f"[ours]\nclient_encoding=LATIN1\noptions={flags(HOSTILE)}\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(home / "services"))
        yield make_dsn(dsn, service="ours")
    else:
        execute(dsn, "CREATE ROLE ours SUPERUSER LOGIN")
        subject = f"DATABASE {name}" if route == "database" else f"ROLE ours IN DATABASE {name}"
        for setting, value in settings.items():
            execute(dsn, f"ALTER {subject} SET {setting} TO '{value}'")
        yield make_dsn(dsn, user="ours")
        execute(dsn, f"ALTER {subject} RESET ALL; DROP ROLE ours")


@pytest.mark.parametrize("route", ["environment", "URL", "service file", "role", "database"])
@pytest_twisted.ensureDeferred
async def test_values_are_the_same_under_any_settings(
    dsn: str, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result is that of a session without other settings."""
    async with serving(dsn) as db:
        wanted = await results(db)
    assert wanted[0]["day"] == "2024-03-04"
    assert wanted[1] == wanted[0]
    with settings_from(route, dsn, tmp_path, monkeypatch) as told:
        async with serving(told) as db:
            assert await results(db) == wanted
            await db.database.statement("SELECT set_config('work_mem', '7MB', false)")
            assert await results(db) == wanted  # in a session after its reset


def test_session_is_not_ended_for_waiting(dsn: str) -> None:
    """The listener's session would be, between two of its checks."""
    limited = make_dsn(dsn, options="-c idle_session_timeout=1000")
    with closing(open_session(limited, SessionSettings())) as connection:
        assert connection.ask("SHOW idle_session_timeout") == ("0",)
        connection.clean()
        assert connection.ask("SHOW idle_session_timeout") == ("0",)


def test_session_needs_no_setting_of_later_servers(dsn: str) -> None:
    """PostgreSQL 13 has no `idle_session_timeout`."""
    with closing(open_session(dsn, SessionSettings())) as connection:
        query = SESSION_QUERY.replace("idle_session_timeout", "setting_of_tomorrow")
        assert connection.ask(query)[-1] == "0"
