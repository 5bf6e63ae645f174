"""Capture: the contents of the log after each kind of change, by any client."""

from __future__ import annotations

import io
from collections.abc import Iterator

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.schema import ForeignKey

from schema.changes import install
from schema.database_url import engine
from schema.triggers import ASLEEP, CHANNEL
from tests.conftest import execute
from tests.db.captured import SnapshotReader, connect, net

SCHEMA = f"""
CREATE TABLE owners (id int PRIMARY KEY, name text);
CREATE TABLE pets (
    id int PRIMARY KEY, owner int REFERENCES owners ON DELETE CASCADE ON UPDATE CASCADE, name text);
CREATE TABLE sums (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE loose (a int, b text);
CREATE TABLE coded (b int, a text, note text, PRIMARY KEY (a, b));
CREATE TABLE counters (id int PRIMARY KEY, n int);
CREATE TABLE logs (id int, day int, note text, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
CREATE TABLE logs_1 PARTITION OF logs FOR VALUES IN (1);
CREATE TABLE logs_2 PARTITION OF logs FOR VALUES IN (2);
CREATE TABLE named (
    id int PRIMARY KEY, o int, n int, c int, r int, at int, image int, tg_argv int, old int, new int,
    relation int, old_rows int, new_rows int, row_to_json int);
CREATE TABLE named_too (LIKE named INCLUDING ALL);
CREATE TABLE quiet (id int PRIMARY KEY);
CREATE TABLE odd ("%1$s" text, "o ""n" float8, found int, PRIMARY KEY ("o ""n", "%1$s"));
CREATE TYPE mood AS ENUM ('glad');
CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT to_json(current_setting('search_path')) $$;
CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
CREATE TABLE moods (mood mood PRIMARY KEY);
CREATE TABLE kinds (
    id int PRIMARY KEY, f float8, r float4, b bytea, i interval, t timestamptz, d date,
    m numeric(30, 10), j jsonb, a text[], big bigint);
{install()}
SELECT rowcast.track(name::regclass) FROM unnest(
    '{{owners, pets, sums, loose, logs, kinds}}'::text[]) name;
SELECT rowcast.track('named'), rowcast.track('named_too', 'keys');
SELECT rowcast.track('odd', 'keys'), rowcast.track('moods', 'keys'), rowcast.track('coded', 'keys'), rowcast.track('counters', 'touch'),
       rowcast.track('quiet', 'full', false);
"""
EMPTY = "TRUNCATE odd, moods, owners, pets, sums, loose, coded, counters, logs, quiet, kinds, named, named_too"


@pytest.fixture
def log(dsn: str) -> Iterator[SnapshotReader]:
    """Empty the tables; return a function that reads later log rows."""
    execute(dsn, EMPTY)
    reader = SnapshotReader(dsn)
    yield reader
    reader.connection.close()


def test_insert_update_delete_have_the_images_before_and_after(
    dsn: str, log: SnapshotReader
) -> None:
    execute(dsn, "INSERT INTO owners VALUES (1, 'Ada')")
    execute(dsn, "UPDATE owners SET name = 'Bob'")
    execute(dsn, "DELETE FROM owners")
    entries = log.read()
    ada, bob = {"id": 1, "name": "Ada"}, {"id": 1, "name": "Bob"}
    assert [entry.change for entry in entries] == [
        ("I", None, ada),
        ("U", ada, bob),
        ("D", bob, None),
    ]
    assert {entry.relation for entry in entries} == {"public.owners"}
    assert len({entry.xid for entry in entries}) == 3
    assert log.read() == []


def test_copy_is_logged_row_by_row_in_one_transaction(dsn: str, log: SnapshotReader) -> None:
    with connect(dsn) as connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY owners FROM STDIN", io.StringIO("1\tAda\n2\tBob\n3\t\\N\n"))
    connection.close()
    entries = log.read()
    assert [entry.new for entry in entries] == [
        {"id": 1, "name": "Ada"},
        {"id": 2, "name": "Bob"},
        {"id": 3, "name": None},
    ]
    assert len({entry.xid for entry in entries}) == 1


def test_cascade_is_logged_with_its_cause(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO owners VALUES (1, 'Ada'); INSERT INTO pets VALUES (7, 1, 'Rex')")
    log.read()
    execute(dsn, "UPDATE owners SET id = 2")
    execute(dsn, "DELETE FROM owners")
    entries = log.read()
    assert sorted((entry.relation, entry.op) for entry in entries) == [
        ("public.owners", "D"),
        ("public.owners", "U"),
        ("public.pets", "D"),
        ("public.pets", "U"),
    ]
    assert len({entry.xid for entry in entries}) == 2
    assert [entry.old for entry in entries if entry.change[0] == "D"][-1] == (
        {"id": 7, "owner": 2, "name": "Rex"}
    )


def test_orm_flush_is_logged_as_one_transaction(dsn: str, log: SnapshotReader) -> None:
    """As Flask-SQLAlchemy writes: objects in a session."""

    class Declared(DeclarativeBase):
        pass

    class Owner(Declared):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        pets: Mapped[list[Pet]] = relationship(cascade="all, delete-orphan")

    class Pet(Declared):
        __tablename__ = "pets"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        name: Mapped[str]

    globals()["Pet"] = Pet  # where SQLAlchemy resolves annotations
    with Session(engine(dsn)) as session:
        ada = Owner(id=1, name="Ada", pets=[Pet(id=7, name="Rex"), Pet(id=8, name="Tom")])
        session.add(ada)
        session.commit()
        made = log.read()
        ada.name = "Eve"
        ada.pets.pop()
        session.commit()
        assert session.scalar(text("SELECT count(*) FROM pets")) == 1
    assert [(entry.relation, entry.op) for entry in made] == [
        ("public.owners", "I"),
        ("public.pets", "I"),
        ("public.pets", "I"),
    ]
    changed = log.read()
    assert sorted((entry.relation, entry.op) for entry in changed) == [
        ("public.owners", "U"),
        ("public.pets", "D"),
    ]
    assert len({entry.xid for entry in changed}) == 1


def test_change_that_is_rolled_back_is_not_in_the_log(dsn: str, log: SnapshotReader) -> None:
    connection = connect(dsn)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO owners VALUES (1, 'kept'); SAVEPOINT s")
        cursor.execute("INSERT INTO owners VALUES (2, 'gone'); UPDATE owners SET name = 'gone'")
        cursor.execute("ROLLBACK TO s; SAVEPOINT s; INSERT INTO owners VALUES (3, 'kept')")
        cursor.execute("RELEASE s")
        connection.commit()
        cursor.execute("DELETE FROM owners")
        connection.rollback()
    connection.close()
    entries = log.read()
    assert [entry.new for entry in entries] == [
        {"id": 1, "name": "kept"},
        {"id": 3, "name": "kept"},
    ]
    assert len({entry.xid for entry in entries}) == 1, "savepoints have numbers of their own"


def test_transaction_that_commits_late_is_read_once(dsn: str, log: SnapshotReader) -> None:
    """It has a lower xid and sequence number; a reader of "greater than the last" would miss it."""
    slow = connect(dsn)
    with slow.cursor() as cursor:
        cursor.execute("INSERT INTO owners VALUES (1, 'slow')")
        execute(dsn, "INSERT INTO owners VALUES (2, 'quick')")
        (quick,) = log.read()
        assert quick.new == {"id": 2, "name": "quick"}
        assert log.read() == []
        slow.commit()
    slow.close()
    (late,) = log.read()
    assert late.new == {"id": 1, "name": "slow"}
    assert (late.seq, late.xid) < (quick.seq, quick.xid)
    assert log.read() == []


def test_update_of_a_key_is_logged_with_both_keys(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO owners VALUES (1, 'Ada')")
    log.read()
    execute(dsn, "UPDATE owners SET id = 5")
    entries = log.read()
    ada, moved = {"id": 1, "name": "Ada"}, {"id": 5, "name": "Ada"}
    assert [entry.change for entry in entries] == [("U", ada, moved)]
    assert net(entries, "id") == {1: (ada, None), 5: (None, moved)}


def test_generated_columns_are_logged_with_their_stored_values(
    dsn: str, log: SnapshotReader
) -> None:
    execute(dsn, "INSERT INTO sums (id, a) VALUES (1, 4); UPDATE sums SET a = 5")
    assert log.changes() == [
        ("I", None, {"id": 1, "a": 4, "twice": 8}),
        ("U", {"id": 1, "a": 4, "twice": 8}, {"id": 1, "a": 5, "twice": 10}),
    ]


def test_relation_without_a_key_is_logged_with_each_equal_row(
    dsn: str, log: SnapshotReader
) -> None:
    execute(dsn, "INSERT INTO loose VALUES (1, 'x'), (1, 'x'); DELETE FROM loose")
    row = {"a": 1, "b": "x"}
    assert log.changes() == [("I", None, row)] * 2 + [("D", row, None)] * 2


def test_level_keys_logs_the_primary_key_alone(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO coded VALUES (1, 'x', 'secret')")
    execute(dsn, "UPDATE coded SET note = 'other'; UPDATE coded SET b = 2; DELETE FROM coded")
    one, two = {"a": "x", "b": 1}, {"a": "x", "b": 2}
    assert log.changes() == [("I", None, one), ("U", one, one), ("U", one, two), ("D", two, None)]


def test_level_keys_pairs_the_ids_of_each_row(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO named_too (id, o) VALUES (1, 9), (2, 9)")
    execute(dsn, "UPDATE named_too SET id = id + 10; UPDATE named_too SET o = 1 WHERE id = 12")
    execute(dsn, "UPDATE named_too SET o = 1 WHERE id = 5; DELETE FROM named_too")
    one, two, eleven, twelve = ({"id": id} for id in (1, 2, 11, 12))
    assert log.changes() == [
        ("I", None, one),
        ("I", None, two),
        ("U", one, eleven),
        ("U", two, twelve),
        ("U", twelve, twelve),
        ("D", eleven, None),
        ("D", twelve, None),
    ]


def test_level_touch_logs_a_row_per_statement(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO counters SELECT i, 0 FROM generate_series(1, 1000) i")
    execute(dsn, "UPDATE counters SET n = 1; TRUNCATE counters")
    assert log.changes() == [("C", None, None), ("C", None, None), ("T", None, None)]


def test_truncate_and_the_changes_around_it_are_logged_in_order(
    dsn: str, log: SnapshotReader
) -> None:
    execute(dsn, "INSERT INTO owners VALUES (1, 'Ada')")
    execute(dsn, "TRUNCATE owners CASCADE; INSERT INTO owners VALUES (2, 'Bob')")
    assert [(entry.relation, entry.op) for entry in log.read()] == [
        ("public.owners", "I"),
        ("public.owners", "T"),
        ("public.pets", "T"),
        ("public.owners", "I"),
    ]


def test_partitioned_table_is_logged_as_its_root(dsn: str, log: SnapshotReader) -> None:
    """Written through the root or a partition; a row that moves is a delete and an insert."""
    execute(dsn, "INSERT INTO logs VALUES (1, 1, 'a'); INSERT INTO logs_2 VALUES (2, 2, 'b')")
    execute(dsn, "UPDATE logs SET day = 2 WHERE id = 1")
    entries = log.read()
    one, two = {"id": 1, "day": 1, "note": "a"}, {"id": 2, "day": 2, "note": "b"}
    assert [entry.change for entry in entries] == [
        ("I", None, one),
        ("I", None, two),
        ("D", one, None),
        ("I", None, one | {"day": 2}),
    ]
    assert {entry.relation for entry in entries} == {"public.logs"}
    execute(dsn, "CREATE TABLE logs_3 PARTITION OF logs FOR VALUES IN (3)")
    execute(dsn, "INSERT INTO logs_3 VALUES (3, 3, 'c')")
    assert log.changes() == [("I", None, {"id": 3, "day": 3, "note": "c"})]
    execute(dsn, "DROP TABLE logs_3")


def test_truncate_of_a_partition_is_logged_as_reset(dsn: str, log: SnapshotReader) -> None:
    """The log does not have the rows that were removed."""
    execute(dsn, "TRUNCATE logs_1")
    assert [(entry.relation, entry.op) for entry in log.read()] == [("public.logs", "R")]
    execute(dsn, "TRUNCATE logs")
    assert ("T", None, None) in log.changes()


def test_update_of_many_rows_pairs_them(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, "INSERT INTO owners SELECT i, 'o' || i FROM generate_series(1, 30000) i")
    log.read()
    few = "UPDATE owners SET name = name WHERE id < 3; "
    execute(dsn, f"SET statement_timeout = '60s'; {few * 8} UPDATE owners SET name = name || '!'")
    entries = log.read()[16:]
    assert len(entries) == 30000
    for _, old, new in (entry.change for entry in entries):
        assert old is not None
        assert new == old | {"name": f"{old['name']}!"}


def test_columns_may_have_the_names_that_capture_uses(dsn: str, log: SnapshotReader) -> None:
    for name in ("named", "named_too"):
        execute(dsn, f"INSERT INTO {name} (id, o, n) VALUES (1, 2, 3)")
        execute(dsn, f"UPDATE {name} SET tg_argv = 4; INSERT INTO {name} (id) VALUES (2)")
        execute(dsn, f"UPDATE {name} SET c = 5; DELETE FROM {name}")
        entries = log.read()
        assert [entry.op for entry in entries] == [*"IUIUUDD"]
        assert [entry.new["id"] for entry in entries if entry.new] == [1, 1, 2, 1, 2]
        assert [entry.old["id"] for entry in entries if entry.old] == [1, 1, 2, 1, 2]


def test_upsert_and_data_modifying_with_are_logged(dsn: str, log: SnapshotReader) -> None:
    upsert = (
        "INSERT INTO owners VALUES (1, 'a'), (2, 'b') ON CONFLICT (id) DO UPDATE SET name = 'c'"
    )
    execute(dsn, upsert)
    execute(dsn, upsert)
    execute(dsn, "WITH d AS (DELETE FROM owners WHERE id = 1 RETURNING *)"
                 " INSERT INTO owners SELECT id + 8, name FROM d")  # fmt: skip
    entries = log.read()
    assert [entry.op for entry in entries[:4]] == ["I", "I", "U", "U"]
    assert sorted(entry.op for entry in entries[4:]) == ["D", "I"]
    moved = net(entries[4:], "id")
    assert moved == {1: ({"id": 1, "name": "c"}, None), 9: (None, {"id": 9, "name": "c"})}


def test_merge_is_logged_as_its_effect_on_each_row(dsn: str, log: SnapshotReader) -> None:
    """One statement inserts, updates and deletes, and leaves one row unchanged."""
    execute(dsn, "INSERT INTO owners VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    execute(dsn, "INSERT INTO pets VALUES (7, 2, 'Rex')")
    log.read()
    merge = """
    MERGE INTO owners o USING (VALUES (1, 'A'), (2, NULL), (3, 'c'), (4, 'd')) s(id, name) ON o.id = s.id
      WHEN MATCHED AND s.name IS NULL THEN DELETE
      WHEN MATCHED AND s.name = o.name THEN DO NOTHING
      WHEN MATCHED THEN UPDATE SET name = s.name
      WHEN NOT MATCHED AND s.name IS NOT NULL THEN INSERT VALUES (s.id, s.name)"""
    execute(dsn, merge)
    entries = log.read()
    assert len({entry.xid for entry in entries}) == 1
    assert sorted((entry.relation, *entry.change) for entry in entries) == [
        ("public.owners", "D", {"id": 2, "name": "b"}, None),
        ("public.owners", "I", None, {"id": 4, "name": "d"}),
        ("public.owners", "U", {"id": 1, "name": "a"}, {"id": 1, "name": "A"}),
        ("public.pets", "D", {"id": 7, "owner": 2, "name": "Rex"}, None),
    ]
    execute(dsn, merge)
    assert log.read() == [], "nothing is different any more"


def test_merge_is_logged_at_every_level_and_of_partitions(dsn: str, log: SnapshotReader) -> None:
    merge = """
    MERGE INTO {0} t USING (VALUES (1), (2)) s(id) ON t.id = s.id
      WHEN MATCHED THEN UPDATE SET {1} WHEN NOT MATCHED THEN INSERT ({2}) VALUES ({3})"""
    counters = merge.format("counters", "n = n + 1", "id, n", "s.id, 0")
    execute(dsn, f"INSERT INTO counters VALUES (1, 0); {counters}")
    # Statement triggers fire for each kind of action in a MERGE, performed or not.
    assert {change for change, _, _ in log.changes()} == {"C"}
    logs = merge.format("logs", "day = 2", "id, day", "s.id, 1")
    execute(dsn, "INSERT INTO logs VALUES (1, 1, 'a')")
    log.read()
    execute(dsn, logs)
    one, two = {"id": 1, "day": 1, "note": "a"}, {"id": 2, "day": 1, "note": None}
    entries = log.read()
    assert {entry.relation for entry in entries} == {"public.logs"}
    found = sorted((entry.change for entry in entries), key=repr)
    assert found == [("D", one, None), ("I", None, one | {"day": 2}), ("I", None, two)]


HOSTILE = """
SET extra_float_digits = -10; SET bytea_output = 'escape'; SET intervalstyle = 'postgres_verbose';
SET datestyle = 'German'; SET timezone = 'Asia/Tokyo'; SET search_path = pg_temp;
"""
VALUES = """
INSERT INTO public.kinds VALUES (1, 0.1::float8 + 0.2::float8, 0.1::float4, '\\x00ff', '1 mon 2 days 03:04:05',
    '2026-01-02 03:04:05.678901+00', '2026-01-02', 12345678901234567890.0123456789, '{"a": [1]}',
    '{a,NULL}', 9007199254740993)
"""


def test_images_do_not_depend_on_the_settings_of_the_writer(dsn: str, log: SnapshotReader) -> None:
    execute(dsn, VALUES)
    ((_, _, plain),) = log.changes()
    execute(dsn, "DELETE FROM kinds")
    log.read()
    execute(dsn, HOSTILE + VALUES)
    ((_, _, hostile),) = log.changes()
    assert plain == hostile
    assert plain["f"] == 0.30000000000000004
    assert (plain["b"], plain["i"]) == ("\\x00ff", "P1M2DT3H4M5S")
    assert plain["t"] == "2026-01-02T03:04:05.678901+00:00"
    assert plain["big"] == 9007199254740993
    written = "SELECT new ->> 'm' FROM rowcast.log WHERE new ->> 'm' IS NOT NULL"
    assert set(execute(dsn, written)) == {("12345678901234567890.0123456789",)}


def test_keys_of_any_name_and_number_are_logged_exactly(dsn: str, log: SnapshotReader) -> None:
    """By statements of one row or several, under any session settings."""
    execute(
        dsn,
        f"""
        {HOSTILE} INSERT INTO public.odd VALUES ('a', 0.1::float8 + 0.2::float8), ('b', 1);
        UPDATE public.odd SET found = 1; UPDATE public.odd SET "%1$s" = 'c' WHERE "%1$s" = 'b';
        DELETE FROM public.odd WHERE "%1$s" = 'c'
        """,
    )
    a, b, c = (
        {'o "n': number, "%1$s": text}
        for number, text in ((0.30000000000000004, "a"), (1, "b"), (1, "c"))
    )
    assert log.changes() == [
        ("I", None, a), ("I", None, b), ("U", a, a), ("U", b, b), ("U", b, c), ("D", c, None)
    ]  # fmt: skip


def test_operators_of_the_writer_are_not_used(dsn: str, log: SnapshotReader) -> None:
    """The trigger functions are SECURITY DEFINER, so they must not run code of the writer."""
    execute(
        dsn,
        """
        CREATE FUNCTION pg_temp.row_to_json(anyelement) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';
        CREATE FUNCTION pg_temp.int4(text) RETURNS int LANGUAGE sql AS 'SELECT 0';
        CREATE FUNCTION pg_temp.json_build_object(text, int, text, text) RETURNS json LANGUAGE sql
            AS 'SELECT NULL::json';
        CREATE FUNCTION pg_temp.same(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR pg_temp.= (FUNCTION = pg_temp.same, LEFTARG = text, RIGHTARG = text);
        SET search_path = pg_temp, pg_catalog; INSERT INTO public.owners VALUES (1, 'Ada');
        INSERT INTO public.coded VALUES (1, 'a')
        """,
    )
    assert log.changes() == [("I", None, {"id": 1, "name": "Ada"}), ("I", None, {"a": "a", "b": 1})]


def test_cast_of_a_key_to_json_ignores_the_search_path_of_the_writer(
    dsn: str, log: SnapshotReader
) -> None:
    """The cast runs as the log's owner, with a fixed search_path."""
    execute(dsn, HOSTILE + "INSERT INTO public.moods VALUES ('glad')")
    assert log.changes() == [("I", None, {"mood": "pg_catalog, pg_temp"})]


def test_net_changes_beside_a_trigger_of_the_application_are_right(
    dsn: str, log: SnapshotReader
) -> None:
    """A trigger that writes to the same table changes the order in the log."""
    execute(
        dsn,
        """
        CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE owners SET name = name || '!' WHERE id = new.id + 1 AND name !~ '!'; RETURN NULL; END $$;
        CREATE TRIGGER "  first" AFTER INSERT ON owners FOR EACH ROW EXECUTE FUNCTION again();
        INSERT INTO owners VALUES (1, 'a'), (2, 'b');
        DROP TRIGGER "  first" ON owners;
        """,
    )
    entries = log.read()
    assert [entry.op for entry in entries] == ["U", "I", "I"], "no longer turned around"
    assert net(entries, "id") == {
        1: (None, {"id": 1, "name": "a"}),
        2: (None, {"id": 2, "name": "b!"}),
    }


def test_writers_notify_only_a_reader_that_sleeps(dsn: str, log: SnapshotReader) -> None:
    """With tracking without notifications, they never do, so they can prepare transactions."""
    reader = connect(dsn)
    reader.autocommit = True

    def notified(statement: str) -> int:
        execute(dsn, statement)
        with reader.cursor() as cursor:
            cursor.execute("SELECT 1")
        found = len(reader.notifies)
        reader.notifies.clear()
        return found

    with reader.cursor() as cursor:
        cursor.execute(f"LISTEN {CHANNEL}")
        assert notified("INSERT INTO owners VALUES (1)") == 0
        cursor.execute("SELECT pg_advisory_lock(%s)", [ASLEEP])
        assert notified("INSERT INTO owners VALUES (2), (3)") == 1
        assert notified("INSERT INTO logs_1 VALUES (3, 1)") == 1
        assert notified("TRUNCATE owners CASCADE") == 1
        assert notified("BEGIN; INSERT INTO owners VALUES (4); ROLLBACK") == 0
        assert notified("INSERT INTO quiet VALUES (1)") == 0
        cursor.execute("SELECT pg_advisory_unlock(%s)", [ASLEEP])
        assert notified("INSERT INTO owners VALUES (5)") == 0
    reader.close()
    assert len(log.read()) == 8


def test_log_cannot_be_read_or_written_by_writers(dsn: str, log: SnapshotReader) -> None:
    """It contains hidden columns, too; writers need no privileges on it."""
    execute(dsn, "COMMENT ON COLUMN owners.name IS '@hidden'")
    execute(dsn, "CREATE ROLE writer; GRANT SELECT, INSERT, UPDATE ON owners TO writer")
    execute(dsn, "CREATE SCHEMA AUTHORIZATION writer")
    as_writer = "SET ROLE writer; "
    execute(dsn, as_writer + "INSERT INTO owners VALUES (1, 'Ada')")
    assert log.changes() == [("I", None, {"id": 1, "name": "Ada"})]
    forging = "CREATE TABLE writer.t (); CREATE TRIGGER t AFTER INSERT ON writer.t EXECUTE FUNCTION"
    for statement in (
        "SELECT * FROM rowcast.log",
        "INSERT INTO rowcast.log (relation, op) VALUES (1, 'R')",
        "SELECT rowcast.reset(1)",
        f"{forging} rowcast.log_statement('1', 'T')",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            execute(dsn, as_writer + statement)
    execute(dsn, "GRANT USAGE ON SCHEMA rowcast TO writer")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(dsn, as_writer + f"{forging} rowcast.log_statement('1', 'T')")
    execute(dsn, "REVOKE ALL ON owners FROM writer; DROP OWNED BY writer")
