"""
Tracking tables by command and by migration, and the effects of DDL on tracked tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from psycopg2.extensions import make_dsn

from schema.changes import (
    CATALOG,
    LOCK_TIMEOUT,
    TRACK_AGAIN,
    TrackingRefused,
    install,
    remove,
    track,
    track_table,
    untrack,
    untrack_table,
)
from schema.database_url import engine
from schema.own import make
from service.db.introspect import read_catalog
from service.settings import InvalidSettings, load
from tests.conftest import ROOT, execute
from tests.db.captured import SnapshotReader, connect
from tests.wamp.programs import program

SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app."Odd ""'name" (id int PRIMARY KEY);
CREATE TABLE things (id int PRIMARY KEY, n int, note text);
CREATE TABLE keyless (n int);
CREATE VIEW seen AS SELECT * FROM keyless;
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child () INHERITS (parent);
"""
TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgname ~ 'rowcast' AND tgparentid = 0"


@pytest.fixture
def tracked(dsn: str) -> Iterator[str]:
    """Create `things` again, and track it alone."""
    execute(dsn, "DROP TABLE IF EXISTS things CASCADE")
    execute(dsn, "CREATE TABLE things (id int PRIMARY KEY, n int, note text)")
    execute(dsn, "INSERT INTO things VALUES (1, 1, 'a')")
    track_table(dsn, "things", "full", True)
    yield dsn
    execute(dsn, remove())


def refused(dsn: str, table: str, level: str = "full") -> str:
    """Return the message with which tracking a table is refused."""
    with pytest.raises(TrackingRefused) as caught:
        track_table(dsn, table, level, True)
    return str(caught.value)


def test_command_tracks_and_untracks_tables_of_a_foreign_database(dsn: str) -> None:
    environ = {"DATABASE_URL": dsn, "HOME": str(ROOT), "PATH": os.environ["PATH"]}

    def run(*words: str, status: int = 0) -> str:
        with program(environ, sys.executable, "-m", "service", *words) as command:
            assert command.ends() == status, command.output
            return command.output.strip()

    assert run("track", "parts") == "public.parts is tracked (full)"
    assert run("track", "parts") == "public.parts is tracked already (full)"
    assert run("track", "PARTS", "--level", "keys") == "public.parts is tracked (keys)"
    execute(dsn, "INSERT INTO parts VALUES (1)")
    assert execute(dsn, "SELECT op, new FROM rowcast.log WHERE op <> 'R'") == [("I", {"id": 1})]
    assert run("track", "nowhere", status=1) == 'relation "nowhere" does not exist'
    assert run("untrack", "parts") == "public.parts is no longer tracked"
    assert run("untrack", "parts") == "public.parts is not tracked"
    assert execute(dsn, TRIGGERS) == [(0,)]
    execute(dsn, "TRUNCATE parts")
    execute(dsn, remove())
    assert execute(dsn, "SELECT to_regnamespace('rowcast')") == [(None,)]


@pytest.mark.parametrize(
    ("table", "level", "why"),
    [
        ("seen", "full", "public.seen is no table, and has no changes of its own"
                         " → track the tables under it"),
        ("fleeting", "full", "public.fleeting is unlogged: it loses its rows without a change"),
        ("part", "full", "public.part is a partition → track public.parts"),
        ("parent", "full", "public.parent has children by inheritance, whose rows fire no trigger"
                           " of it → track the children"),
        ("keyless", "keys", "public.keyless has no primary key → level full or touch"),
        ("keyless", "all", 'there is no level "all" → full, keys or touch'),
        ("pg_class", "full", "tables of the schema pg_catalog cannot be tracked"),
        ("rowcast.log", "full", "tables of the schema rowcast cannot be tracked"),
    ],
)  # fmt: skip
def test_table_that_cannot_be_tracked_is_refused(
    tracked: str, table: str, level: str, why: str
) -> None:
    assert refused(tracked, table, level) == why


def test_migration_tracks_by_name_and_schema(dsn: str) -> None:
    """It writes the same as the `track` command."""
    with engine(dsn).connect() as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context), context.begin_transaction():
            Operations(context).execute(install())
            track("things")
            track("Odd \"'name", "keys", schema="app", wake=False)
        found = execute(dsn, "SELECT name, level, wake FROM rowcast.tracked ORDER BY id")
        assert found == [
            ("public.things", "full", True),
            ('app."Odd ""\'name"', "keys", False),
        ]
        with Operations.context(context), context.begin_transaction():
            untrack("Odd \"'name", schema="app")
            untrack("things")
            Operations(context).execute(remove())
    assert execute(dsn, "SELECT to_regnamespace('rowcast')") == [(None,)]


OLD = """
CREATE FUNCTION rowcast.log_inserts_id() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO rowcast.log (relation, op, new)
    SELECT TG_ARGV[0]::int4, 'I', pg_catalog.json_build_object('id', n.id) FROM new_rows n;
    RETURN NULL; END $$;
DROP TRIGGER "!rowcast_insert" ON things;
CREATE TRIGGER "!rowcast_insert" AFTER INSERT ON things REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION rowcast.log_inserts_id('{id}');
UPDATE rowcast.tracked SET (shape, noticed) = (SELECT s, s FROM rowcast.shape(relation) s);
"""


def test_triggers_of_an_older_version_are_replaced_and_nothing_is_lost(tracked: str) -> None:
    """Rows of the log before and after have the same form, so no reader has to read the table again."""
    track_table(tracked, "things", "keys", True)
    ((id, since),) = execute(tracked, "SELECT id, since::text FROM rowcast.tracked")
    execute(tracked, OLD.format(id=id))
    reader = SnapshotReader(tracked)
    execute(tracked, "INSERT INTO things VALUES (2)")
    assert track_table(tracked, "things", "keys", True) == "public.things is tracked (keys)"
    execute(tracked, "INSERT INTO things VALUES (3)")
    assert [entry.change for entry in reader.read()] == [
        ("I", None, {"id": 2}),
        ("I", None, {"id": 3}),
    ]
    reader.connection.close()
    assert execute(tracked, "SELECT id, since::text FROM rowcast.tracked") == [(id, since)]
    assert execute(tracked, "SELECT to_regproc('rowcast.log_inserts_id')") == [(None,)]
    assert track_table(tracked, "things", "keys", True) == "public.things is tracked already (keys)"
    assert execute(tracked, "SELECT rowcast.notice()") == []


def test_table_that_cannot_be_tracked_today_keeps_its_triggers_and_stops_no_migration(
    tracked: str,
) -> None:
    track_table(tracked, "things", "keys", True)
    ((id,),) = execute(tracked, "SELECT id FROM rowcast.tracked")
    execute(tracked, OLD.format(id=id) + "ALTER TABLE things DROP CONSTRAINT things_pkey")
    execute(tracked, TRACK_AGAIN + "INSERT INTO things VALUES (2)")
    assert execute(tracked, "SELECT new FROM rowcast.log WHERE op = 'I'") == [({"id": 2},)]
    execute(tracked, "ALTER TABLE things ADD PRIMARY KEY (id)")
    execute(tracked, TRACK_AGAIN)
    assert execute(tracked, "SELECT to_regproc('rowcast.log_inserts_id')") == [(None,)]


def test_changed_key_is_logged_in_its_new_form_once_noticed(tracked: str) -> None:
    """The trigger function fixes session settings by the key's types, so it has to be generated again."""
    track_table(tracked, "things", "keys", True)
    execute(tracked, "ALTER TABLE things ALTER id TYPE float8; ALTER TABLE things RENAME id TO no")
    execute(tracked, "INSERT INTO things VALUES (2)")
    execute(tracked, "SELECT rowcast.notice()")
    execute(tracked, "SET extra_float_digits = -10; INSERT INTO things VALUES (0.1 + 0.2::float8)")
    found = execute(tracked, "SELECT new FROM rowcast.log WHERE op = 'I' ORDER BY seq")
    assert found == [({"id": None},), ({"no": 0.30000000000000004},)]


def test_services_are_notified_when_a_table_is_tracked_and_untracked(tracked: str) -> None:
    listening = connect(tracked)
    listening.autocommit = True
    with listening.cursor() as rows:
        rows.execute(f"LISTEN {CATALOG}; CREATE TABLE heard (id int)")
        for word in ("track", "untrack"):
            execute(tracked, f"SELECT rowcast.{word}('heard')")
            rows.execute("DROP TABLE IF EXISTS none")
            assert [each.channel for each in listening.notifies] == [CATALOG], word
            listening.notifies.clear()
    listening.close()


def test_plain_owner_tracks_its_own_tables(dsn: str) -> None:
    """No superuser is needed, only the privileges that the refusals name."""
    execute(dsn, "CREATE ROLE plain LOGIN; GRANT CREATE ON SCHEMA public TO plain")
    at = make_dsn(dsn, user="plain")
    ((name,),) = execute(dsn, "SELECT current_database()")
    execute(at, "CREATE TABLE mine (id int PRIMARY KEY)")
    cure = f'GRANT CREATE ON DATABASE {name} TO "plain"'
    assert refused(at, "mine") == f"permission denied for database {name} → {cure}"
    execute(dsn, cure)
    assert track_table(at, "mine", "full", True) == "public.mine is tracked (full)"
    execute(at, "INSERT INTO mine VALUES (1)")
    assert execute(at, "SELECT new FROM rowcast.log") == [({"id": 1},)]
    cure = 'GRANT TRIGGER ON things TO "plain", or track it as its owner'
    assert refused(at, "things") == f"permission denied for table things → {cure}"
    execute(dsn, 'GRANT TRIGGER ON things TO "plain"')
    assert track_table(at, "things", "full", True) == "public.things is tracked (full)"
    execute(dsn, "ALTER TABLE things DISABLE TRIGGER USER")
    assert refused(at, "things") == (
        "must be owner of relation things → "
        "track it as who owns it and the schema rowcast, or as a superuser"
    )
    execute(dsn, "CREATE ROLE other LOGIN; GRANT CREATE ON SCHEMA public TO other")
    other = make_dsn(dsn, user="other")
    execute(other, "CREATE TABLE theirs (id int)")
    assert refused(other, "theirs") == (
        "permission denied for schema rowcast → track it as the owner of the schema rowcast"
    )
    execute(dsn, remove() + "DROP OWNED BY other, plain")


def test_tracking_a_locked_table_is_refused_after_the_lock_timeout(tracked: str) -> None:
    """While the command waits for its lock, writers queue behind it."""
    busy = connect(tracked)
    with busy.cursor() as cursor:
        cursor.execute("INSERT INTO keyless VALUES (1)")
        assert refused(tracked, "keyless") == (
            f"the table is busy: {LOCK_TIMEOUT} were not enough → try again"
        )
    busy.rollback()
    busy.close()
    assert track_table(tracked, "keyless", "full", True) == "public.keyless is tracked (full)"


NOTICED = {
    "renamed column": "ALTER TABLE things RENAME note TO remark",
    "new column": "ALTER TABLE things ADD extra int DEFAULT 3",
    "dropped column": "ALTER TABLE things DROP note",
    "rewritten values": "ALTER TABLE things ALTER n TYPE int USING n + 1",
    "another type": "ALTER TABLE things ALTER n TYPE bigint",
    "renamed table": "ALTER TABLE things RENAME TO things_2; ALTER TABLE things_2 RENAME TO t",
    "key gone": "ALTER TABLE things DROP CONSTRAINT things_pkey",
    "triggers off for a while": "ALTER TABLE things DISABLE TRIGGER USER; UPDATE things SET n = 9;"
    " ALTER TABLE things ENABLE TRIGGER USER",
    "dropped": "DROP TABLE things",
    "made anew": "DROP TABLE things; CREATE TABLE things (id int PRIMARY KEY)",
}


@pytest.mark.parametrize("ddl", NOTICED.values(), ids=NOTICED)
def test_ddl_that_changes_rows_without_a_trigger_is_noticed(tracked: str, ddl: str) -> None:
    """It is noticed once, and readers that resume from before find a reset in the log."""
    ((id,),) = execute(tracked, "SELECT id FROM rowcast.tracked")
    notice = "SELECT rowcast.notice()"
    assert execute(tracked, notice) == []
    reader = SnapshotReader(tracked)
    execute(tracked, ddl)
    assert execute(tracked, notice) == [(id,)]
    assert execute(tracked, notice) == []
    assert [entry.op for entry in reader.read()] == ["R"]
    reader.connection.close()
    execute(tracked, "DROP TABLE IF EXISTS t, things CASCADE")


UNNOTICED = [
    "INSERT INTO things SELECT i FROM generate_series(2, 2000) i; ANALYZE things",
    "VACUUM FULL things",
    "TRUNCATE things",
    "CREATE INDEX ON things (n); REINDEX TABLE things",
    "GRANT SELECT ON things TO PUBLIC",
    "CREATE TRIGGER own BEFORE UPDATE ON things FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
]


@pytest.mark.parametrize("statement", UNNOTICED)
def test_ddl_that_changes_no_rows_is_not_noticed(tracked: str, statement: str) -> None:
    connection = connect(tracked)
    connection.autocommit = True  # VACUUM cannot run in a transaction
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()
    assert execute(tracked, "SELECT rowcast.notice()") == []


def test_attached_and_detached_partitions_are_noticed(tracked: str) -> None:
    track_table(tracked, "parts", "full", True)
    notice = "SELECT count(*) FROM rowcast.notice()"
    execute(tracked, "CREATE TABLE apart (id int NOT NULL); INSERT INTO apart VALUES (2)")
    for ddl in (
        "ALTER TABLE parts ATTACH PARTITION apart FOR VALUES IN (2)",
        "TRUNCATE apart",  # it has no TRUNCATE trigger yet
        "ALTER TABLE parts DETACH PARTITION part",
        "ALTER TABLE parts ATTACH PARTITION part FOR VALUES IN (1)",
        "ALTER TABLE part DISABLE TRIGGER USER",
        "ALTER TABLE part ENABLE TRIGGER USER",
    ):
        assert execute(tracked, notice) == [(0,)]
        execute(tracked, ddl)
        assert execute(tracked, notice) == [(1,)], ddl
    track_table(tracked, "parts", "full", False)
    assert execute(tracked, notice) == [(0,)]
    execute(tracked, "DROP TABLE apart")


def test_table_attached_to_another_is_recorded_as_a_problem(tracked: str) -> None:
    """Writes through the other table are not captured until either table is tracked again."""
    problem = "SELECT problem FROM rowcast.tracked WHERE name = 'public.things'"
    execute(tracked, "CREATE TABLE above (id int, n int, note text)")
    execute(tracked, "ALTER TABLE things INHERIT above; SELECT rowcast.notice()")
    assert execute(tracked, problem) == [("it has become a part of another table",)]
    assert track_table(tracked, "things", "full", True) == "public.things is tracked (full)"
    assert execute(tracked, problem) == [(None,)]
    reader = SnapshotReader(tracked)
    execute(tracked, "UPDATE above SET n = 5")
    assert [entry.op for entry in reader.read()] == ["U"]
    execute(tracked, "ALTER TABLE things NO INHERIT above; DROP TABLE above")
    execute(tracked, "CREATE TABLE whole (LIKE things) PARTITION BY LIST (id)")
    track_table(tracked, "things", "full", True)
    execute(tracked, "ALTER TABLE whole ATTACH PARTITION things FOR VALUES IN (1)")
    execute(tracked, "SELECT rowcast.notice()")
    assert execute(tracked, problem) == [("it has become a part of another table",)]
    assert track_table(tracked, "whole", "full", True) == "public.whole is tracked (full)"
    assert execute(tracked, "SELECT name FROM rowcast.tracked") == [("public.whole",)]
    reader.read()
    execute(tracked, "UPDATE whole SET n = 6; UPDATE things SET n = 7")
    assert [(entry.relation, entry.op) for entry in reader.read()] == [("public.whole", "U")] * 2
    reader.connection.close()
    execute(tracked, "DROP TABLE whole")


def test_disabled_triggers_are_enabled_by_tracking_again(tracked: str) -> None:
    execute(tracked, "ALTER TABLE things DISABLE TRIGGER USER; SELECT rowcast.notice()")
    problem = "SELECT problem FROM rowcast.tracked"
    assert execute(tracked, problem) == [("its triggers are disabled",)]
    assert track_table(tracked, "things", "full", True) == "public.things is tracked (full)"
    execute(tracked, "UPDATE things SET n = 5")
    assert execute(tracked, "SELECT op FROM rowcast.log ORDER BY seq DESC LIMIT 1") == [("U",)]
    assert execute(tracked, problem) == [(None,)]
    execute(tracked, "DROP TABLE things; SELECT rowcast.notice()")
    assert execute(tracked, problem) == [("it is gone",)]


def test_recreated_table_keeps_its_tracking_id(tracked: str) -> None:
    ((id,),) = execute(tracked, "SELECT id FROM rowcast.tracked")
    execute(tracked, "DROP TABLE things; CREATE TABLE things (id int PRIMARY KEY)")
    execute(tracked, "INSERT INTO things VALUES (1)")
    assert track_table(tracked, "things", "full", True) == "public.things is tracked (full)"
    execute(tracked, "INSERT INTO things VALUES (2)")
    logged = "SELECT relation, op, new FROM rowcast.log ORDER BY seq"
    assert execute(tracked, logged) == [(id, "R", None), (id, "I", {"id": 2})]
    execute(tracked, "DROP TABLE things")
    assert untrack_table(tracked, "public.things") == "public.things is no longer tracked"


@pytest.mark.parametrize(
    ("given", "table"),
    [
        ("Order", 'public."Order"'),
        ('"Order"', 'public."Order"'),
        ("public.Order", 'public."Order"'),
        ("order", "public.order"),
        ("ORDER", "public.order"),
        ("a%20b%2Ec", 'public."a b.c"'),
        ('public."a b.c"', 'public."a b.c"'),
        ("Odd.Order", '"Odd"."Order"'),
        ("Odd.é", '"Odd"."é"'),
    ],
)
def test_table_is_named_as_in_uris_or_as_in_sql(tracked: str, given: str, table: str) -> None:
    """A name that no table has exactly is folded to lower case, as PostgreSQL does it."""
    execute(
        tracked,
        'CREATE TABLE public."Order" (n int); CREATE TABLE public.order (n int); CREATE SCHEMA "Odd";'
        'CREATE TABLE public."a b.c" (n int); CREATE TABLE "Odd"."Order" (n int);'
        'CREATE TABLE "Odd"."é" (n int)',
    )
    try:
        track_table(tracked, given, "full", True)
        tables = "SELECT relation = %s::regclass FROM rowcast.tracked WHERE name <> 'public.things'"
        assert execute(tracked, tables.replace("%s", "'" + table + "'")) == [(True,)]
        assert untrack_table(tracked, given).endswith(" is no longer tracked")
    finally:
        execute(
            tracked,
            'DROP SCHEMA "Odd" CASCADE; DROP TABLE public."Order", public.order, public."a b.c"',
        )


def test_tracking_again_with_another_level_is_logged_as_reset(tracked: str) -> None:
    reader = SnapshotReader(tracked)
    for level, change in (("touch", "C"), ("keys", "U"), ("full", "U")):
        track_table(tracked, "things", level, True)
        execute(tracked, "UPDATE things SET n = n + 1")
        assert [entry.op for entry in reader.read()] == ["R", change]
    reader.connection.close()


def test_renamed_key_does_not_stop_writers(tracked: str) -> None:
    """Capture never makes a write fail, whatever DDL has changed the table."""
    track_table(tracked, "things", "keys", True)
    execute(tracked, "ALTER TABLE things RENAME id TO number")
    execute(tracked, "UPDATE things SET n = 5")
    assert execute(tracked, "SELECT count(*) FROM rowcast.notice()") == [(1,)]
    track_table(tracked, "things", "keys", True)
    execute(tracked, "UPDATE things SET n = 6")
    last = "SELECT new FROM rowcast.log ORDER BY seq DESC LIMIT 1"
    assert execute(tracked, last) == [({"number": 1},)]


def test_key_replaced_by_another_column_of_its_name_is_logged(tracked: str) -> None:
    """As a migration does that replaces an integer key by a bigint one."""
    track_table(tracked, "things", "keys", True)
    execute(tracked, "ALTER TABLE things ADD wide bigint; UPDATE things SET wide = id")
    execute(tracked, "ALTER TABLE things DROP id; ALTER TABLE things RENAME wide TO id")
    execute(tracked, "UPDATE things SET n = 7")
    last = "SELECT old, new FROM rowcast.log ORDER BY seq DESC LIMIT 1"
    assert execute(tracked, last) == [({"id": 1}, {"id": 1})]


def test_relations_of_capture_are_not_served(tracked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions are not served either, and its triggers do not count as side effects of writes."""
    catalog = read_catalog(tracked, ("public",))
    assert {schema for schema, _ in catalog.relations} == {"public"}
    assert {each.schema for each in catalog.functions.values()} <= {"public"}
    things = catalog.relations["public", "things"]
    assert (things.side_effects, things.pure_writes) == (False, True)
    assert things.changed_by_triggers == frozenset()
    monkeypatch.setenv("ROWCAST_SCHEMAS", "public,rowcast")
    with pytest.raises(InvalidSettings, match="ROWCAST_SCHEMAS may not name rowcast"):
        load()


def test_reinstall_keeps_existing_rows(tracked: str) -> None:
    execute(tracked, "UPDATE things SET n = 7")
    execute(tracked, install())
    assert execute(tracked, "SELECT op FROM rowcast.log") == [("U",)]
    assert execute(tracked, "SELECT name FROM rowcast.tracked") == [("public.things",)]


@pytest.fixture
def owns(dsn: str) -> Iterator[str]:
    """Create a role that may create schemas, and a member of it; return the DSN of the role."""
    ((name,),) = execute(dsn, "SELECT current_database()")
    execute(dsn, f"CREATE ROLE owns LOGIN; GRANT CREATE ON DATABASE {name} TO owns")
    execute(dsn, "CREATE ROLE member LOGIN IN ROLE owns")
    yield make_dsn(dsn, user="owns")
    execute(dsn, "DROP OWNED BY owns, member; DROP ROLE owns, member")


@pytest.mark.parametrize("role", ["postgres", "member"])
def test_functions_installed_by_another_role_belong_to_the_owner(
    dsn: str, owns: str, role: str
) -> None:
    """The functions are SECURITY DEFINER, and their owner must be able to replace them."""
    execute(owns, install() + "DROP FUNCTION rowcast.log_inserts(), rowcast.sweep()")
    execute(make_dsn(dsn, user=role), install())
    owners = "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace"
    assert execute(dsn, owners) == [("owns",)]
    execute(owns, install() + remove())


@pytest.mark.parametrize("role", ["postgres", "member"])
def test_log_made_by_another_role_belongs_to_the_owner_of_the_schema(
    dsn: str, owns: str, role: str
) -> None:
    """The service, whose role has created the schema, can then read and prune it."""
    execute(dsn, "GRANT TRIGGER, INSERT ON things TO member")
    make(owns)
    other = make_dsn(dsn, user=role)
    assert track_table(other, "things", "keys", True) == "public.things is tracked (keys)"
    execute(other, "INSERT INTO things VALUES (7)")
    assert execute(owns, "SELECT new FROM rowcast.log") == [({"id": 7},)]
    owners = """
        SELECT relowner::regrole::text FROM pg_class WHERE relnamespace = 'rowcast'::regnamespace
        UNION SELECT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'rowcast'::regnamespace"""
    assert execute(dsn, owners) == [("owns",)]
    execute(owns, "DELETE FROM rowcast.log")
    execute(dsn, "DELETE FROM things WHERE id = 7")
    execute(dsn, remove())


def test_schema_with_a_table_of_others_is_kept(tracked: str) -> None:
    execute(tracked, "CREATE TABLE rowcast.theirs ()")
    execute(tracked, remove())
    assert execute(tracked, TRIGGERS) == [(0,)]
    assert execute(tracked, "SELECT to_regclass('rowcast.theirs') IS NOT NULL") == [(True,)]
    execute(tracked, install() + "DROP TABLE rowcast.theirs")


def test_log_is_upgraded_beside_a_writer(tracked: str) -> None:
    """The upgrade does not wait for an open transaction that has written to a tracked table."""
    writer = connect(tracked)
    writer.cursor().execute("INSERT INTO things VALUES (7)")
    execute(tracked, f"SET lock_timeout = '2s'; {install()}")
    execute(tracked, "SET lock_timeout = '2s'; INSERT INTO things VALUES (8)")
    writer.rollback()
    writer.close()
    owned = "SELECT pg_get_serial_sequence('rowcast.log', 'seq') IS NOT NULL"
    assert execute(tracked, owned) == [(True,)]
