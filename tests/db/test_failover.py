"""
Changes across crashes and promotions of PostgreSQL: none is lost without notice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from schema.changes import install
from service.changes.positions import Position, TickPosition, resume_txn
from service.db.session_settings import SessionSettings, open_session
from tests.conftest import execute, wait_until
from tests.db.feeds import feeding
from tests.db.readers import delivered, readers
from tests.db.servers import Server, any_primary, servers
from tests.deferreds import until

TABLES = f"""
CREATE TABLE items (id serial PRIMARY KEY, n int);
{install()}
SELECT rowcast.track('items');
"""


class Writer:
    """
    A thread that inserts rows and reconnects after failures.

    Args:
        dsn: DSN that leads to the present primary.
        words: SQL that sets up its session.

    Attributes:
        kept: Rows whose COMMIT was acknowledged.
    """

    def __init__(self, dsn: str, words: str = "") -> None:
        self._dsn = dsn
        self._words = words
        self._stop = threading.Event()
        self.kept: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            connection = None
            try:
                connection = psycopg2.connect(self._dsn)
                connection.autocommit = True
                with connection.cursor() as rows:
                    rows.execute(f"{self._words};SELECT 1")
                    while not self._stop.wait(0.005):
                        rows.execute("INSERT INTO items (n) VALUES (1) RETURNING id")
                        self.kept += [key for (key,) in rows.fetchall()]
            except psycopg2.Error:
                self._stop.wait(0.1)
            finally:
                if connection is not None:
                    connection.close()

    def stop(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()


@pytest.fixture
def primary() -> Iterator[Server]:
    with servers(1) as (server,):
        execute(server.dsn, TABLES)
        yield server


@pytest.fixture
def pair() -> Iterator[list[Server]]:
    with servers(2) as found:
        execute(found[0].dsn, TABLES)
        wait_until(lambda: replayed(found), 30)
        yield found


def replayed(found: list[Server]) -> bool:
    """Return whether the standby has replayed all WAL of the primary."""
    ((lsn,),) = execute(found[0].dsn, "SELECT pg_current_wal_lsn()")
    return execute(found[1].dsn, f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'") == [(True,)]


def test_crashes_lose_no_change_and_publish_none_that_they_lose(
    primary: Server, tmp_path: Path
) -> None:
    """Writers use synchronous_commit = off, but published changes were flushed to disk before."""
    writer = Writer(primary.dsn, "SET synchronous_commit = off")
    try:
        with readers(primary.dsn, tmp_path / "lines", "a", "b") as found:
            for crash in range(1, 4):
                wait_until(lambda many=100 * crash: len(found.lines()) > many, 60)  # type: ignore[misc]
                primary.crash()
                primary.start()
            wait_until(lambda: len(found.lines()) > 500, 60)
            writer.stop()
            there = [key for (key,) in execute(primary.dsn, "SELECT id FROM items ORDER BY id")]
            wait_until(lambda: len(delivered(found.lines())) >= len(there), 60)
            kept = delivered(found.lines())
    finally:
        writer.stop()
    assert sorted(line.key[0] for line in kept) == there
    assert len({line.epoch for line in kept}) == 1


def test_synchronous_promotion_loses_no_change(pair: list[Server], tmp_path: Path) -> None:
    pair[0].set(synchronous_standby_names="*")
    dsn = any_primary(pair)
    writer = Writer(dsn)
    try:
        with readers(dsn, tmp_path / "lines", "a", "b") as found:
            wait_until(lambda: len(found.lines()) > 100, 60)
            first = found.lines()[0].epoch
            pair[0].crash()
            pair[1].promote()
            pair[1].set(synchronous_standby_names="")
            wait_until(
                lambda: found.lines()[-1].epoch == first + 1 and len(found.lines()) > 300, 60
            )
            writer.stop()
            there = [key for (key,) in execute(pair[1].dsn, "SELECT id FROM items ORDER BY id")]
            wait_until(lambda: len(delivered(found.lines())) >= len(there), 60)
            kept = delivered(found.lines())
    finally:
        writer.stop()
    assert sorted(line.key[0] for line in kept) == there
    assert set(writer.kept) <= set(there)
    # a client can resume from each position that it had
    for line in (kept[0], next(each for each in reversed(kept) if each.epoch == first)):
        assert resumes(pair[1].dsn, TickPosition(*line.place))


@pytest_twisted.ensureDeferred
async def test_asynchronous_promotion_makes_lost_positions_gone(pair: list[Server]) -> None:
    """The new primary reuses the lost transaction ids and tick numbers."""
    dsn = any_primary(pair)
    async with feeding(dsn) as kept:
        await deferToThread(execute, dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: len(kept.changes) == 1)
        assert kept.feed.epoch is not None
        first = kept.feed.epoch.number
        await deferToThread(wait_until, lambda: replayed(pair), 30)
        await deferToThread(pair[1].set, primary_conninfo="")
        for number in range(3):
            await deferToThread(execute, dsn, "INSERT INTO items (n) VALUES (2)")
            await until(lambda many=number + 2: len(kept.changes) == many)  # type: ignore[misc]
        await deferToThread(pair[0].crash)
        await deferToThread(pair[1].promote)
        await until(lambda: kept.feed.epoch is not None and kept.feed.epoch.number == first + 1, 60)
        for number in range(4):
            await deferToThread(execute, dsn, "INSERT INTO items (n) VALUES (3)")
            await until(lambda many=number + 5: len(kept.changes) == many)  # type: ignore[misc]
        before, after = kept.changes[:4], kept.changes[4:]
        assert {each.position.tick for each in before[1:]} & {each.position.tick for each in after}
        assert resumes(pair[1].dsn, before[0].position), "it is there"
        for each in before[1:]:
            assert not resumes(pair[1].dsn, each.position)
        for each in after:
            assert resumes(pair[1].dsn, each.position)


@pytest_twisted.ensureDeferred
async def test_standby_is_refused_until_it_is_promoted(pair: list[Server]) -> None:
    async with feeding(pair[1].dsn, leads=False) as kept:
        await until(lambda: "standby" in (kept.feed.problem or ""))
        assert not kept.feed.well
        await deferToThread(pair[0].crash)
        await deferToThread(pair[1].promote)
        await until(lambda: kept.feed.leading, 60)
        await deferToThread(execute, pair[1].dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: kept.batches)


def resumes(dsn: str, position: Position) -> bool:
    """Return whether a client can resume from a position."""
    connection = open_session(dsn, SessionSettings())
    try:
        return resume_txn(connection, position) is not None
    finally:
        connection.close()
