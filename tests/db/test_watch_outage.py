"""
Live queries while the server crashes: they continue without a reset, and never send lost rows.
"""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent

from schema import changes
from service.changes import cycle
from service.changes.queries import WatchLimits
from service.waiting import in_thread
from tests.conftest import execute
from tests.db.test_outage import Server
from tests.db.test_outage import server as outage_server
from tests.db.watched import living
from tests.deferreds import until

server = outage_server


@pytest.fixture
def tracked(server: Server) -> Server:
    """Track a table on the server."""
    execute(
        server.dsn,
        f"{changes.install()} DROP TABLE IF EXISTS items; CREATE TABLE items (id int PRIMARY KEY, n int);"
        " INSERT INTO items SELECT n, n FROM generate_series(1, 50) n; SELECT rowcast.track('items')",
    )
    return server


@pytest_twisted.ensureDeferred
async def test_watch_continues_after_a_crash(tracked: Server) -> None:
    """Commits before and after the crash are delivered, and no row is sent again."""
    async with living(tracked.dsn, WatchLimits()) as live:
        watchers = [live.watch("items", where={"n": {"lt": 40}}), live.watch("items", order=["-n"])]
        for each in watchers:
            await each.first()
        for n in range(2):
            execute(tracked.dsn, f"UPDATE items SET n = n + 1 WHERE id = {n + 1}")
            tracked.kill()
            await in_thread(reactor, "restart", tracked.start)
            execute(tracked.dsn, f"UPDATE items SET n = 100 + {n} WHERE id = {n + 10}")
            for each in watchers:
                await each.same()
        assert [each.copy.resets for each in watchers] == [0, 0]
        assert live.watches.drift == 0


@pytest_twisted.ensureDeferred
async def test_outage_is_logged_once_of_each_cause(tracked: Server) -> None:
    """However many cycles fail meanwhile."""
    asked: list[str] = []

    def address() -> str:
        asked.append(tracked.dsn)
        return tracked.dsn

    async with living(tracked.dsn, WatchLimits()) as live:
        watcher = live.watch("items")
        await watcher.first()
        live.watches._cycle._sessions._dsn = address
        with capturedLogs() as logged:
            tracked.kill()
            await until(lambda: len(asked) > 4)
            await in_thread(reactor, "restart", tracked.start)
            await watcher.same()
    lines = [formatEvent(each) for each in logged if each["log_level"].name == "warn"]
    assert sorted(set(lines)) == sorted(lines)
    assert [each for each in lines if each.startswith("live queries: a cycle failed: ")]


@pytest_twisted.ensureDeferred
async def test_row_that_a_crash_may_lose_is_not_sent(tracked: Server) -> None:
    """Writers use synchronous_commit = off: each row that was sent must survive the crash."""
    execute(tracked.dsn, "ALTER SYSTEM SET synchronous_commit = off")
    execute(tracked.dsn, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    execute(tracked.dsn, "SELECT pg_reload_conf()")
    async with living(tracked.dsn, WatchLimits()) as live:
        watcher = live.watch("items", where={"id": {"gt": 100}})
        await watcher.first()
        for n in range(3):
            told = len(watcher.messages)
            execute(tracked.dsn, f"INSERT INTO items VALUES ({101 + n}, {n})")
            await until(lambda told=told: len(watcher.messages) > told)
            tracked.kill()
            await in_thread(reactor, "restart", tracked.start)
            kept = execute(tracked.dsn, f"SELECT id FROM items WHERE id = {101 + n}")
            assert kept == [(101 + n,)]
        await watcher.same()


@pytest_twisted.ensureDeferred
async def test_row_is_sent_after_another_commit_has_flushed_it(
    tracked: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cycle does not write, because a commit would wait for the disk once more than the tick."""
    execute(tracked.dsn, "ALTER SYSTEM SET synchronous_commit = off")
    execute(tracked.dsn, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    execute(tracked.dsn, "SELECT pg_reload_conf()")
    waits = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'test', '')"
    async with living(tracked.dsn, WatchLimits()) as live:
        watcher = live.watch("items", where={"id": {"gt": 100}})
        await watcher.first()
        monkeypatch.setattr(cycle, "FLUSH_POLLS", (0.01,) * 3000)
        monkeypatch.setattr(cycle, "FLUSH", "a write of its own")
        for n in range(3):
            told = len(watcher.messages)
            execute(tracked.dsn, f"INSERT INTO items VALUES ({101 + n}, {n})")
            live.watches.wake()
            execute(tracked.dsn, waits)
            await until(lambda told=told: len(watcher.messages) > told)
        assert {each["type"] for each in watcher.messages[1:]} <= {"delta", "alive"}


@pytest_twisted.ensureDeferred
async def test_change_with_transaction_id_reused_after_crash_is_delivered(
    tracked: Server,
) -> None:
    """This holds whether the lost transaction with the same id concerned the query or not."""
    execute(tracked.dsn, "ALTER SYSTEM SET synchronous_commit = off")
    execute(tracked.dsn, "ALTER SYSTEM SET wal_writer_delay = '10s'")
    execute(tracked.dsn, "SELECT pg_reload_conf()")
    insert = "INSERT INTO items VALUES ({0}, 0) RETURNING pg_current_xact_id()::text"
    async with living(tracked.dsn, WatchLimits(), poll=60) as live:
        watcher = live.watch("items", where={"id": {"gt": 100}})
        await watcher.first()
        ((xid,),) = execute(tracked.dsn, insert.format(51))
        live.watches.wake()
        await until(lambda: live.watches._position.snapshot.sees(int(xid)))
        tracked.kill()
        await in_thread(reactor, "restart", tracked.start)
        execute(tracked.dsn, insert.format(101))
        live.watches.wake()
        await watcher.same()
