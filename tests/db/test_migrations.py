"""
Migrations up, down and up again, and the comparison of a database's revision with the code's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from schema.database_url import Place
from schema.own import NotMade, make
from schema.revision import inspect
from schema.seed import sow
from tests.conftest import HEAD, ROOT, execute

LEFT = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace
ORDER BY 1
"""


@pytest.fixture
def base(migrated: str) -> Iterator[str]:
    """Yield a database at the code's revision, without rows; restore it after the test."""
    execute(migrated, "TRUNCATE actions, drivers, vehicles")
    yield migrated
    command.upgrade(alembic(migrated), "head")


def alembic(dsn: str, output: io.StringIO | None = None) -> Config:
    """Configure Alembic for a database."""
    attributes = {"place": Place(url=dsn), "configure_logging": False}
    return Config(ROOT / "alembic.ini", attributes=attributes, stdout=output or io.StringIO())


@contextmanager
def database(postgres: str, setup: str) -> Iterator[str]:
    """Create a database for the length of the body; yield its DSN."""
    execute(postgres, "CREATE DATABASE stranger")
    at = psycopg2.extensions.make_dsn(postgres, dbname="stranger")
    try:
        execute(at, setup)
        yield at
    finally:
        execute(postgres, "DROP DATABASE stranger WITH (FORCE)")


def names(dsn: str) -> list[object]:
    """Return the names of all relations in the schema."""
    return [row[0] for row in execute(dsn, LEFT)]


def test_migrations_at_head_agree_with_the_declarations(base: str) -> None:
    """The migrations create what the classes declare, including checks and comments."""
    command.check(alembic(base))


def test_downgrade_to_base_keeps_only_the_table_of_alembic(base: str) -> None:
    """After the downgrade only Alembic's table is left, and an upgrade is possible again."""
    command.downgrade(alembic(base), "base")
    assert {str(name).lstrip("_") for name in names(base)} == {
        "alembic_version",
        "alembic_version_pkc",
    }
    command.upgrade(alembic(base), "head")
    command.check(alembic(base))


GRANTS = """
SELECT count(*) FROM pg_class c, aclexplode(c.relacl) acl
WHERE c.oid = 'rowcast.idempotency_keys'::regclass AND acl.grantee <> c.relowner
"""


def test_idempotency_keys_are_private_whatever_the_default_privileges(postgres: str) -> None:
    """Running the setup again does not revoke a privilege that was granted later."""
    generous = (
        "CREATE ROLE curious; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO curious, PUBLIC"
    )
    with database(postgres, generous) as at:
        make(at)
        assert execute(at, GRANTS) == [(0,)]
        execute(at, "GRANT SELECT ON rowcast.idempotency_keys TO curious")
        make(at)
        assert execute(at, GRANTS) == [(1,)]
        command.upgrade(alembic(at), "head")
        assert execute(at, GRANTS) == [(1,)]
        execute(at, "DROP OWNED BY curious; DROP ROLE curious")


def test_schema_of_another_role_is_refused(postgres: str) -> None:
    """The schema's owner could replace the service's tables."""
    with database(postgres, "CREATE ROLE sly; CREATE SCHEMA rowcast AUTHORIZATION sly") as at:
        with pytest.raises(NotMade, match=r"^rowcast is another role's schema → "):
            make(at)
        with pytest.raises(CommandError, match="rowcast is another role's schema"):
            command.upgrade(alembic(at), "head")
        execute(at, "DROP OWNED BY sly CASCADE; DROP ROLE sly")


def test_dropped_check_is_found_by_autogenerate(base: str) -> None:
    execute(base, "ALTER TABLE actions DROP CONSTRAINT ck_actions_path_absolute")
    with pytest.raises(CommandError, match="path_absolute"):
        command.check(alembic(base))
    command.downgrade(alembic(base), "base")


def test_updated_at_of_a_changed_row_is_kept_by_the_database(base: str) -> None:
    """A trigger sets updated_at, so that a client cannot forge it; an update without changes leaves it."""
    execute(base, "INSERT INTO actions (action, path, updated_at) VALUES ('a', '/', 'epoch')")
    execute(base, "UPDATE actions SET action = action")
    assert execute(base, "SELECT updated_at = 'epoch' FROM actions") == [(True,)]
    execute(base, "UPDATE actions SET status = true, updated_at = 'epoch'")
    assert execute(base, "SELECT updated_at > now() - interval '1 min' FROM actions") == [(True,)]


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("INSERT INTO actions (action, path) VALUES (' ', '/')", "ck_actions_action_not_blank"),
        ("INSERT INTO actions (action, path) VALUES ('a', 'b')", "ck_actions_path_absolute"),
        ("INSERT INTO drivers (name) VALUES ('')", "ck_drivers_name_not_blank"),
        ("INSERT INTO vehicles (plate, model) VALUES ('b', 'm')", "ck_vehicles_plate_upper_case"),
        (
            "INSERT INTO vehicles (plate, model, seats) VALUES ('B', 'm', 0)",
            "ck_vehicles_seats_in_range",
        ),
        (
            "INSERT INTO vehicles (plate, model) VALUES ('B', 'm'), ('B', 'n')",
            "uq_vehicles_plate",
        ),
        (
            "INSERT INTO vehicles (plate, model, driver_id) VALUES ('B', 'm', 0)",
            "fk_vehicles_driver_id_drivers",
        ),
    ],
)
def test_row_against_a_constraint_is_refused_by_its_name(
    base: str, statement: str, constraint: str
) -> None:
    """Invalid rows are refused by a constraint named for the rule."""
    with pytest.raises(psycopg2.IntegrityError) as refused:
        execute(base, statement)
    assert refused.value.diag.constraint_name == constraint


def test_migrations_without_a_database_are_written_as_sql() -> None:
    """Offline mode writes the migrations as SQL."""
    output = io.StringIO()
    config = Config(
        ROOT / "alembic.ini", attributes={"configure_logging": False}, output_buffer=output
    )
    command.upgrade(config, "head", sql=True)
    assert "CREATE TABLE vehicles" in output.getvalue()
    assert (
        "COMMENT ON TABLE alembic_version IS 'Revision of rowcast''s migrations"
        in output.getvalue()
    )


def test_migrations_written_as_sql_have_the_same_result(postgres: str) -> None:
    """The SQL run by psql migrates a database to head, and the downgrade's SQL leaves nothing."""
    written = io.StringIO()
    config = Config(
        ROOT / "alembic.ini", attributes={"configure_logging": False}, output_buffer=written
    )
    with database(postgres, "SELECT 1") as at:
        command.upgrade(config, "head", sql=True)
        execute(at, written.getvalue())
        command.check(alembic(at))
        execute(at, "SELECT rowcast.track('drivers')")
        execute(at, "INSERT INTO drivers (name) VALUES ('Ada')")
        assert execute(at, "SELECT op, new ->> 'name' FROM rowcast.log") == [("I", "Ada")]
        written.seek(0)
        written.truncate()
        command.downgrade(config, f"{HEAD}:base", sql=True)
        execute(at, written.getvalue())
        assert execute(at, "SELECT to_regnamespace('rowcast'), to_regclass('drivers')") == [
            (None, None)
        ]


def test_existing_demo_rows_are_not_inserted_again(base: str) -> None:
    """Demo rows are inserted into empty tables only."""
    assert sow(base) == "made 6 drivers, 8 vehicles, 40 actions"
    assert sow(base) == "nothing to do: the demo tables hold rows already"
    assert execute(base, "SELECT count(*) FROM vehicles WHERE driver_id IS NULL") == [(1,)]


def test_inspect_of_a_database_at_head_has_no_problem(base: str) -> None:
    """A database at the code's revision can be served."""
    report = inspect(Place(url=base))
    assert report.problem is None
    assert report.revision == HEAD
    assert report.title


def test_inspect_of_a_database_behind_names_the_command_to_run(base: str) -> None:
    """An older database is refused with the command to run, or upgraded if that is allowed."""
    command.downgrade(alembic(base), "base")
    assert inspect(Place(url=base)).problem == (
        f"the database is at revision none, the code at {HEAD} → alembic upgrade head"
    )
    assert inspect(Place(url=base), upgrade=True, demo=True).problem is None


def test_inspect_of_a_database_ahead_says_to_update_the_code(base: str) -> None:
    """A database newer than the code is refused, with and without upgrade."""
    execute(base, "UPDATE alembic_version SET version_num = 'f00'")
    try:
        for upgrade in (False, True):
            assert inspect(Place(url=base), upgrade).problem == (
                "the database is at revision f00, which this code does not know → update the code"
            )
    finally:
        execute(base, f"UPDATE alembic_version SET version_num = '{HEAD}'")


def test_inspect_of_a_foreign_database_does_not_change_it(postgres: str) -> None:
    """A database with its own relations and migrations is served unchanged."""
    with database(
        postgres, "CREATE TABLE t (); CREATE TABLE alembic_version (version_num text)"
    ) as at:
        execute(at, "INSERT INTO alembic_version VALUES ('theirs')")
        report = inspect(Place(url=at), upgrade=True)
        assert (report.problem, report.revision) == (None, None)
        assert "actions" not in names(at)


def test_upgrade_by_a_role_without_create_is_refused_with_the_grant(postgres: str) -> None:
    with database(postgres, "CREATE ROLE poor LOGIN CONNECTION LIMIT 3") as at:
        place = Place(url=psycopg2.extensions.make_dsn(at, user="poor"))
        try:
            problem = inspect(place, upgrade=True, demo=True).problem
            assert problem == (
                'poor may not create tables → GRANT CREATE ON SCHEMA public TO "poor";'
                ' GRANT CREATE ON DATABASE stranger TO "poor"'
            )
            problem = inspect(place, connections=6).problem
            assert problem == ("poor may open 3 connections, 6 are wanted → ROWCAST_POOL_MAX=2")
        finally:
            execute(at, "DROP ROLE poor")


def test_empty_database_is_given_the_demo_only_on_request(postgres: str) -> None:
    """Nothing is created in it until the operator agrees."""
    with database(postgres, "SELECT 1") as at:
        problem = inspect(Place(url=at), upgrade=True).problem
        assert problem is not None
        assert problem.startswith("the database is empty → ROWCAST_DEMO=true ")
        assert inspect(Place(url=at), upgrade=True, demo=False).problem is None
        assert names(at) == []
        made = inspect(Place(url=at), upgrade=True, demo=True)
        assert (made.problem, made.revision) == (None, HEAD)
        assert execute(at, "SELECT count(*) FROM actions") == [(40,)]


def test_upgrade_beside_a_table_of_the_same_name_is_refused_with_a_hint(postgres: str) -> None:
    """The message names both ways: serve the database unchanged, or stamp it."""
    with database(postgres, "CREATE TABLE actions (id int)") as at:
        with pytest.raises(CommandError) as refused:
            command.upgrade(alembic(at), "head")
        said = str(refused.value)
        assert said.startswith('relation "actions" already exists')
        assert "→ start the service without a migration" in said
        assert "alembic stamp" in said
        assert names(at) == ["_actions", "actions"]


def test_upgrade_without_create_on_the_schema_is_refused_with_the_grant(postgres: str) -> None:
    """Since PostgreSQL 15 only the owner of a database may create in "public"."""
    with database(postgres, "CREATE ROLE poor LOGIN") as at:
        try:
            poor = psycopg2.extensions.make_dsn(at, user="poor")
            with pytest.raises(CommandError) as refused:
                command.upgrade(alembic(poor), "head")
            assert str(refused.value) == (
                'permission denied for schema public → GRANT CREATE ON SCHEMA public TO "poor"'
            )
            execute(at, 'GRANT CREATE ON SCHEMA public TO "poor"')
            with pytest.raises(CommandError) as refused:
                command.upgrade(alembic(poor), "head")
            assert str(refused.value) == (
                'permission denied for database stranger → GRANT CREATE ON DATABASE stranger TO "poor"'
            )
            execute(at, 'GRANT CREATE ON DATABASE stranger TO "poor"')
            command.upgrade(alembic(poor), "head")
        finally:
            execute(at, "DROP OWNED BY poor; DROP ROLE poor")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("default_transaction_read_only=on", "read-only transaction → use the primary's host"),
        ("search_path=", 'selected to create in → ALTER ROLE "postgres" SET search_path = public'),
    ],
)
def test_upgrade_with_unfit_settings_of_the_role_is_refused_with_a_hint(
    postgres: str, setting: str, said: str
) -> None:
    """In one line, without a traceback."""
    with database(postgres, "SELECT 1") as at:
        limited = psycopg2.extensions.make_dsn(at, options=f"-c {setting}")
        with pytest.raises(CommandError) as refused:
            command.upgrade(alembic(limited), "head")
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_url_with_stray_password_is_refused_by_alembic_without_any_of_it() -> None:
    """Alembic refuses it as the service does."""
    with pytest.raises(CommandError, match=r"^DATABASE_URL has no host and port") as refused:
        command.upgrade(alembic("postgresql://app:s3cret/x@127.0.0.1/db"), "head")
    assert "s3cret" not in str(refused.value)


CURED = [
    ("host=127.0.0.1 port=1", "start the server, or check host and port"),
    ("host=no.such.host.invalid", "check the host in DATABASE_URL"),
    ("dbname=nowhere", "createdb it, or check the database in DATABASE_URL"),
    ("user=nobody_at_all", "create the role, or check the user in DATABASE_URL"),
    ("sslmode=require host=127.0.0.1 port=1", "start the server, or check host and port"),
]


@pytest.mark.parametrize(("change", "cure"), CURED)
def test_failed_connection_is_reported_with_a_remedy(dsn: str, change: str, cure: str) -> None:
    """Each message ends with an arrow and the way out."""
    place = psycopg2.extensions.parse_dsn(dsn) | psycopg2.extensions.parse_dsn(change)
    problem = inspect(Place(url=psycopg2.extensions.make_dsn(**place))).problem
    assert problem is not None
    assert problem.endswith(f" → {cure}")


def test_inspect_of_an_unreachable_database_names_it_without_the_password(tmp_path: Path) -> None:
    """The message is one line."""
    url = f"postgresql://u:s3cret@/d?host={tmp_path}"
    problem = inspect(Place(url=url)).problem
    assert problem is not None
    assert problem.startswith(f'the database on socket "{tmp_path}')
    assert "s3cret" not in problem


def test_inspect_of_two_heads_says_how_to_merge(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alembic.script.ScriptDirectory.get_heads", lambda _: ["0001", "0002"])
    problem = inspect(Place(url=base)).problem
    assert problem == "the migrations have several heads (0001, 0002) → alembic merge heads"
