"""
The log as the feed and live queries read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

import psycopg2
import pytest

from schema.changes import install
from service.changes.log import (
    installed_txn,
    read_txn,
    refuse_barred_txn,
    tracked_txn,
)
from service.db.connection import PgConnection
from service.db.session_settings import SessionSettings, open_session
from service.errors import DatabaseRefused
from tests.conftest import execute
from tests.db.ticks import snapshot_txn

SCHEMA = f"""
CREATE TABLE items (id int PRIMARY KEY, n int);
{install()}
SELECT rowcast.track('items');
"""


@pytest.fixture
def reader(dsn: str) -> Iterator[PgConnection]:
    connection = open_session(dsn, SessionSettings())
    yield connection
    connection.close()


def test_time_of_a_commit_is_utc_in_any_session(dsn: str, reader: PgConnection) -> None:
    before = snapshot_txn(reader)
    execute(dsn, "INSERT INTO items VALUES (50, 1)")
    for at in ("2026-11-29 12:30:00.25+00", "2026-11-29 21:30:10+09", "2026-11-29 12:30:00+00"):
        execute(dsn, f"UPDATE rowcast.log SET at = '{at}'")
        with reader.cursor() as cursor:
            cursor.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")
        (row,) = read_txn(reader, before) or ()
        assert datetime.fromisoformat(row.at) == datetime.fromisoformat(at)
        assert row.at.endswith("Z")
    assert row.at == "2026-11-29T12:30:00Z"
    execute(dsn, "DELETE FROM items; DELETE FROM rowcast.log")


def test_log_between_snapshots_has_each_commit_once(dsn: str, reader: PgConnection) -> None:
    before = snapshot_txn(reader)
    slow = psycopg2.connect(dsn)
    with slow.cursor() as rows:
        rows.execute("INSERT INTO items VALUES (1, 1)")
        execute(dsn, "INSERT INTO items VALUES (2, 2)")
        between = snapshot_txn(reader)
        first = read_txn(reader, before)
        slow.commit()
    slow.close()
    second = read_txn(reader, between)
    assert [json.loads(row.new or "") for row in first] == [{"id": 2, "n": 2}]
    assert [json.loads(row.new or "") for row in second] == [{"id": 1, "n": 1}]
    # the later one took its number first: the highest number would have skipped it
    assert second[0].seq < first[0].seq
    assert [row.seq for row in read_txn(reader, before)] == [second[0].seq, first[0].seq]
    assert len(read_txn(reader, before, 2) or ()) == 2
    assert read_txn(reader, before, 1) is None
    weight = int(execute(dsn, "SELECT sum(pg_column_size(new)) FROM rowcast.log")[0][0])
    assert len(read_txn(reader, before, 2, weight) or ()) == 2
    assert read_txn(reader, before, 2, weight - 1) is None
    assert read_txn(reader, snapshot_txn(reader)) == []


def test_tracked_table_is_found_by_its_id(reader: PgConnection) -> None:
    assert installed_txn(reader)
    (table,) = tracked_txn(reader).values()
    assert (table.schema, table.name, table.level, table.problem) == (
        "public",
        "items",
        "full",
        None,
    )
    assert read_txn(reader, snapshot_txn(reader)) == []
    assert table.oid == reader.ask("SELECT 'items'::regclass::oid::bigint")[0]


def test_tracked_table_has_the_key_in_its_order(dsn: str, reader: PgConnection) -> None:
    execute(dsn, 'CREATE TABLE "Pairs.x" (b int, a int, x int, PRIMARY KEY (a, b))')
    execute(dsn, "SELECT rowcast.track('\"Pairs.x\"')")
    found = {each.name: each for each in tracked_txn(reader).values()}
    assert found["Pairs.x"].key == ("a", "b")
    assert found["items"].key == ("id",)
    execute(dsn, 'DROP TABLE "Pairs.x"; SELECT rowcast.notice()')
    (gone,) = (each for each in tracked_txn(reader).values() if each.name != "items")
    assert (gone.schema, gone.name, gone.key) == ("public", "Pairs.x", ())
    assert gone.problem == "it is gone"
    execute(dsn, f"DELETE FROM rowcast.tracked WHERE id = {gone.id}")


def test_missing_log_schema_is_reported_as_not_installed(dsn: str, reader: PgConnection) -> None:
    execute(dsn, "ALTER SCHEMA rowcast RENAME TO elsewhere")
    try:
        assert not installed_txn(reader)
        refuse_barred_txn(reader)
    finally:
        execute(dsn, "ALTER SCHEMA elsewhere RENAME TO rowcast")


def test_log_of_another_role_is_reported_as_not_installed(dsn: str, reader: PgConnection) -> None:
    execute(dsn, "CREATE ROLE stranger_to_the_log")
    reader.command("SET ROLE stranger_to_the_log")
    assert not installed_txn(reader)
    with pytest.raises(DatabaseRefused, match="not the service's to read"):
        refuse_barred_txn(reader)
