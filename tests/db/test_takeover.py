"""
Several readers: one publishes, and another continues where it ends, however it ends.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from schema.changes import LEADER, install
from tests.conftest import execute, wait_until
from tests.db.captured import connect
from tests.db.feeds import clear_log, feeding
from tests.db.readers import delivered, readers
from tests.deferreds import pause, until

SCHEMA = f"""
CREATE TABLE items (id serial PRIMARY KEY, n int);
CREATE TABLE untracked (id int);
{install()}
SELECT rowcast.track('items');
"""
LEASE = 3.0
HOLDER = f"""
SELECT a.pid, a.backend_xmin, a.backend_xid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.objid = {LEADER & 0xFFFFFFFF} AND l.granted
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Writers:
    """Threads that insert rows, one each few milliseconds, until they are stopped."""

    def __init__(self, dsn: str, many: int = 3) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write) for _ in range(many)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        connection = connect(self._dsn)
        connection.autocommit = True
        with connection.cursor() as rows:
            while not self._stop.is_set():
                rows.execute("INSERT INTO items (n) VALUES (1)")
                self._stop.wait(0.01)
        connection.close()

    def stop(self) -> None:
        """Stop them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def writers(dsn: str) -> Iterator[Writers]:
    clear_log(dsn)
    made = Writers(dsn)
    yield made
    made.stop()


def test_readers_that_end_in_any_way_lose_and_repeat_nothing(
    dsn: str, writers: Writers, tmp_path: Path
) -> None:
    """The leader is killed, suspended with open connections, or its sessions are terminated."""
    dice, took = random.Random(7), dict[str, list[float]]()
    with readers(dsn, tmp_path / "lines", "a", "b", "c", lease=LEASE) as found:
        wait_until(lambda: bool(found.lines()), 60)
        for turn in range(9):
            how = ("killed", "stopped", "ended")[turn % 3]
            leader, began = found.last.name, time.time()
            if how == "killed":
                found.kill(leader)
            elif how == "stopped":
                found.suspend(leader)
            else:
                execute(dsn, f"SELECT pg_terminate_backend(pid) FROM ({HOLDER}) AS holder")
            found.wait_for_other(began, "" if how == "ended" else leader)
            took.setdefault(how, []).append(found.last.at - began)
            time.sleep(dice.uniform(0.2, 0.8))
            if how == "killed":
                found.start(leader)
            elif how == "stopped":
                found.resume(leader)
        writers.stop()
        ((written,),) = execute(dsn, "SELECT count(*) FROM items")
        wait_until(lambda: len(delivered(found.lines())) >= int(str(written)), 30)
        lines = found.lines()
    kept = delivered(lines)
    assert sorted(line.key[0] for line in kept) == sorted(
        key for (key,) in execute(dsn, "SELECT id FROM items")
    )
    assert max(took["stopped"]) < LEASE + 5


@pytest_twisted.ensureDeferred
async def test_follower_reads_changes_and_publishes_none(dsn: str) -> None:
    clear_log(dsn)
    async with feeding(dsn) as leader, feeding(dsn, leads=False) as follower:
        await until(lambda: follower.feed.well and follower.listener.listening)
        before = follower.calls
        execute(dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: leader.batches and follower.calls > before)
        await until(lambda: leader.asleep)
        assert not follower.feed.leading
        assert follower.feed.stats()["part"] == "following"
        await pause(0.5)
        assert follower.batches == []
        await leader.stop()
        await until(lambda: follower.feed.leading)
        execute(dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: follower.batches)
        assert follower.changes[0].position > leader.changes[-1].position


@pytest_twisted.ensureDeferred
async def test_leader_that_cannot_publish_is_replaced_by_one_that_can(dsn: str) -> None:
    clear_log(dsn)
    async with feeding(dsn, lease=0.5) as leader, feeding(dsn, leads=False) as follower:
        await until(lambda: follower.feed.well)
        leader.can_publish, leader.waits = False, Deferred()
        execute(dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: not leader.feed.well)
        assert str(leader.feed.problem).startswith("CannotPublish: there is no router")
        await until(lambda: follower.batches)
        assert leader.batches == []
        assert not leader.feed.leading
        await pause(0.5)
        assert leader.feed.stats()["part"] == "following"
        execute(dsn, "INSERT INTO items (n) VALUES (2)")
        await until(lambda: len(follower.changes) == 2)
        await follower.stop()
        leader.can_publish, leader.waits = True, None
        execute(dsn, "INSERT INTO items (n) VALUES (3)")
        await until(lambda: leader.batches)
        assert [each.position.tick for each in follower.changes + leader.changes] == [2, 3, 5]


@pytest_twisted.ensureDeferred
async def test_session_that_ends_while_it_publishes_is_replaced(dsn: str) -> None:
    clear_log(dsn)
    async with feeding(dsn) as leader:
        leader.waits = Deferred()
        execute(dsn, "INSERT INTO items (n) VALUES (1)")
        await until(lambda: leader.feed.counters.ticks == 1)
        execute(dsn, f"SELECT pg_terminate_backend(pid) FROM ({HOLDER}) AS holder")
        await until(lambda: not leader.feed.well)
        leader.waits = None
        await until(lambda: leader.batches)
        assert len(leader.changes) == 1
        assert leader.feed.counters.takeovers == 2


@pytest_twisted.ensureDeferred
async def test_idle_readers_do_not_delay_vacuum(dsn: str) -> None:
    clear_log(dsn)
    async with feeding(dsn) as leader, feeding(dsn, leads=False) as follower:
        await until(lambda: follower.feed.well and leader.asleep)
        held = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)"
        )
        found = []
        for _ in range(10):
            # one of its statements may happen to run now
            found.append(int(str((await deferToThread(execute, dsn, held))[0][0])))
            await pause(0.05)
        assert 0 in found[:5]
        assert 0 in found[5:]


@pytest_twisted.ensureDeferred
async def test_transaction_that_writes_elsewhere_delays_nothing(dsn: str, postgres: str) -> None:
    """Neither in this database nor in another one; both delay readers that go by the lowest running xid."""
    clear_log(dsn)

    async def latencies(kept: list[float]) -> None:
        async with feeding(dsn) as reader:
            for _ in range(15):
                many = len(reader.changes)
                began = time.monotonic()
                await deferToThread(execute, dsn, "INSERT INTO items (n) VALUES (1)")
                await until(lambda many=many: len(reader.changes) > many)  # type: ignore[misc]
                kept.append(time.monotonic() - began)

    alone: list[float] = []
    beside: list[float] = []
    await latencies(alone)
    other = connect(dsn)
    with other.cursor() as rows:
        rows.execute("INSERT INTO untracked VALUES (1)")
        foreign = connect(postgres)
        with foreign.cursor() as elsewhere:
            elsewhere.execute("SELECT pg_current_xact_id()")
            await latencies(beside)
        foreign.close()
    other.close()
    assert sorted(beside)[7] < 5 * sorted(alone)[7] + 0.05
    assert max(beside) < 5
