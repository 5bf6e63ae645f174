"""Prepared transactions, which another session commits or rolls back later."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest
from psycopg2.extensions import connection

from schema.changes import install
from schema.triggers import ASLEEP
from tests.conftest import execute
from tests.db.captured import SnapshotReader, connect
from tests.db.servers import servers

SCHEMA = f"""
CREATE TABLE loud (id int PRIMARY KEY);
CREATE TABLE quiet (id int PRIMARY KEY);
{install()}
SELECT rowcast.track('loud'), rowcast.track('quiet', 'full', false);
"""
MADE = [("I", None, {"id": 1})]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Run a server with max_prepared_transactions; return its DSN."""
    with servers(1) as (found,):
        execute(found.dsn, "ALTER SYSTEM SET max_prepared_transactions = 4")
        found.crash()
        found.start()
        execute(found.dsn, SCHEMA)
        yield found.dsn


@pytest.fixture
def log(server: str) -> Iterator[SnapshotReader]:
    """Empty the tables; return a function that reads later log rows."""
    execute(server, "TRUNCATE loud, quiet")
    reader = SnapshotReader(server)
    yield reader
    reader.connection.close()


@pytest.fixture
def asleep(server: str) -> Iterator[connection]:
    """Hold the lock that shows writers that the reader sleeps."""
    holder = connect(server)
    holder.autocommit = True
    with holder.cursor() as rows:
        rows.execute("SELECT pg_advisory_lock(%s)", [ASLEEP])
    yield holder
    holder.close()


def prepare(server: str, table: str) -> None:
    """Write a row in a transaction, and prepare it; its session ends."""
    writer = connect(server)
    try:
        with writer.cursor() as rows:
            rows.execute(f"INSERT INTO {table} VALUES (1)")
            rows.execute("PREPARE TRANSACTION 'one'")
    finally:
        writer.close()


def end(server: str, how: str) -> None:
    """End the prepared transaction, from another session."""
    ending = connect(server)
    ending.autocommit = True
    with ending.cursor() as rows:
        rows.execute(f"{how} PREPARED 'one'")
    ending.close()


def test_prepared_transaction_is_logged_once_when_it_is_committed(
    server: str, log: SnapshotReader, asleep: connection
) -> None:
    """It is read after later transactions that were committed before it."""
    prepare(server, "quiet")
    assert log.read() == []
    execute(server, "INSERT INTO quiet VALUES (2)")
    assert log.changes() == [("I", None, {"id": 2})]
    end(server, "COMMIT")
    assert log.changes() == MADE
    assert log.read() == []


def test_prepared_transaction_that_is_rolled_back_is_not_logged(
    server: str, log: SnapshotReader, asleep: connection
) -> None:
    prepare(server, "quiet")
    end(server, "ROLLBACK")
    assert log.read() == []


def test_transaction_that_would_wake_a_reader_cannot_be_prepared(
    server: str, log: SnapshotReader, asleep: connection
) -> None:
    """PostgreSQL refuses PREPARE TRANSACTION after NOTIFY, which is sent only while the reader sleeps."""
    with pytest.raises(psycopg2.errors.FeatureNotSupported, match="NOTIFY"):
        prepare(server, "loud")
    assert log.read() == []
    asleep.close()
    prepare(server, "loud")
    end(server, "COMMIT")
    assert log.changes() == MADE


def test_table_tracked_again_without_waking_can_be_prepared(
    server: str, log: SnapshotReader, asleep: connection
) -> None:
    """By `rowcast track --no-wake` on a table that was tracked with notifications."""
    execute(server, "SELECT rowcast.track('loud', 'full', false)")
    log.read()
    prepare(server, "loud")
    end(server, "COMMIT")
    assert log.changes() == MADE
    execute(server, "SELECT rowcast.track('loud', 'full', true)")
