"""
Slow live queries, whose rows are read in the background: one group after another, after rests, and despite
errors.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import connection as Connection

from schema import changes
from service.changes import cycle, watchers
from service.changes import watch as watch_module
from service.changes.positions import SnapshotPosition, parse_position
from service.changes.queries import WatchLimits
from service.changes.refresh import Run
from service.changes.watch import Watches
from tests.conftest import execute
from tests.db.dispatchers import ANYONE
from tests.db.watched import Live, Watcher, living, watch_of
from tests.deferreds import pause, until

SCHEMA = f"""
{changes.install()}
CREATE TABLE notes (body text);
CREATE TABLE quick (n int);
CREATE TABLE loud (id int PRIMARY KEY, name text);
SELECT rowcast.track(t) FROM unnest('{{notes,quick,loud}}'::regclass[]) t;
CREATE FUNCTION slow(n int) RETURNS SETOF loud STABLE LANGUAGE sql
    AS 'SELECT l.* FROM loud l, pg_advisory_xact_lock_shared(n)';
CREATE FUNCTION slow_too(n int) RETURNS SETOF quick STABLE LANGUAGE sql
    AS 'SELECT q.* FROM quick q, pg_advisory_xact_lock_shared(n)';
"""

BEFORE_EACH = """
TRUNCATE notes, quick, loud;
INSERT INTO loud VALUES (1, 'at first');
INSERT INTO notes VALUES ('at first');
"""

READING = """
SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
 WHERE locktype = 'advisory' AND objid = {} AND NOT granted AND datname = current_database()
"""

OPEN = """
SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()
"""

MINE, OTHERS, THIRD = (replace(ANYONE, session=number) for number in (1, 2, 3))


@pytest_twisted.async_yield_fixture
async def live(dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """Serve the module's database with its initial rows; reads wait for the locks that hold them."""
    monkeypatch.setattr(cycle, "LOCK_TIMEOUT", math.inf)
    execute(dsn, BEFORE_EACH)
    async with living(dsn, WatchLimits(timeout=20, background_reads=2)) as found:
        yield found


@pytest.fixture
def lock(dsn: str) -> Iterator[Connection]:
    """Return a connection that can block the read of a query."""
    connection = psycopg2.connect(dsn)
    yield connection
    connection.close()


def hold(lock: Connection, number: int) -> None:
    """Block the read of `slow(number)` until the lock's transaction is rolled back."""
    lock.cursor().execute("SELECT pg_advisory_xact_lock(%s)", (number,))


def slow(live: Live, number: int, caller: Any) -> Watcher:
    return live.watch("fn.slow", caller=caller, args={"n": number}, tables=["loud"])


async def begun(live: Live, *watchers: Watcher) -> list[Run]:
    """Wait for the first rows, and mark the queries as slow and rested."""
    for each in watchers:
        await each.first()
    await until(lambda: not live.watches._to_read)  # all queries have joined the cycles
    runs = [watch_of(each).query.run for each in watchers]
    for run in runs:
        run.duration, run.until = 1.0, 0.0
    for each in watchers:
        each.messages.clear()
    return runs


async def cycles(live: Live, many: int = 3) -> None:
    """Wait for some more cycles."""
    last = live.watches.cycles + many
    await until(lambda: live.watches.cycles >= last)


@pytest_twisted.ensureDeferred
async def test_queries_shared_by_a_chain_of_sessions_are_read_together(
    dsn: str, live: Live
) -> None:
    """Otherwise the shared query might never be read: of two groups, one would always be resting."""
    one, shared, also, three = (
        slow(live, number, caller)
        for number, caller in ((1, MINE), (2, MINE), (2, OTHERS), (3, OTHERS))
    )
    runs = await begun(live, one, shared, also, three)
    runs[3].until = math.inf
    execute(dsn, "UPDATE loud SET name = 'later'")
    await cycles(live, 10)
    assert runs[0].duration == 1.0  # unchanged, so it has not been read
    runs[3].until = 0.0
    await until(lambda: all(each.messages for each in (one, shared, also, three)))
    places = {each.messages[0]["position"].split("~")[0] for each in (one, shared, also, three)}
    assert len(places) == 1
    assert all(run.duration < 1.0 for run in runs)


@pytest_twisted.ensureDeferred
async def test_query_with_one_slow_read_does_not_rest(
    dsn: str, live: Live, lock: Connection
) -> None:
    """A read is slow once if the server or the service was stopped meanwhile; two slow reads count."""
    watcher = slow(live, 1, MINE)
    await watcher.first()
    await until(lambda: not live.watches._to_read)
    run = watch_of(watcher).query.run
    for turn, heavy in enumerate((False, True)):
        hold(lock, 1)
        execute(dsn, f"UPDATE loud SET name = 'held {turn}'")
        await until(lambda: execute(dsn, READING.format(1)))
        await pause(0.5)
        lock.rollback()
        await until(lambda: len(watcher.messages) == turn + 2)  # noqa: B023
        assert run.heavy == heavy
    assert run.until > time.monotonic() + 2


@pytest_twisted.ensureDeferred
async def test_query_with_a_slow_first_read_does_not_rest(
    dsn: str, live: Live, lock: Connection
) -> None:
    """It is read in the background, because it may be slow, but without a rest."""
    hold(lock, 1)
    watcher = slow(live, 1, MINE)
    await until(lambda: execute(dsn, READING.format(1)))
    await pause(0.5)
    lock.rollback()
    await watcher.first()
    run = watch_of(watcher).query.run
    assert run.heavy
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: len(watcher.messages) == 2, 3.0)
    assert not run.heavy


@pytest_twisted.ensureDeferred
async def test_slow_query_whose_columns_change_is_read_without_a_rest(dsn: str, live: Live) -> None:
    """It has no rows then that could wait for a rest."""
    watcher = slow(live, 1, MINE)
    for change in ("ADD extra int", "DROP extra"):
        await begun(live, watcher)
        execute(dsn, f"ALTER TABLE loud {change}")
        await live.served.catch_up()
        await until(lambda: watcher.messages)
        assert watcher.messages[0]["reset"]
        await watcher.same()


@pytest_twisted.ensureDeferred
async def test_slow_first_read_is_repeated_after_a_table_was_truncated(
    dsn: str, live: Live, lock: Connection
) -> None:
    """The first attempt has shown that the query is slow, but it has found no rows to be kept."""
    hold(lock, 1)
    watcher = slow(live, 1, MINE)
    await until(lambda: execute(dsn, READING.format(1)))
    execute(dsn, "TRUNCATE notes")
    await pause(0.2)
    lock.rollback()
    assert (await watcher.first()).values == [{"id": 1, "name": "at first"}]


@pytest_twisted.ensureDeferred
async def test_error_while_a_query_begins_does_not_stop_other_queries(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []

    def fail(*args: Any) -> Any:
        if not faults:
            faults.append("once")
            raise RuntimeError("a fault of ours")
        return works(*args)

    works = watch_module.wanted_of
    monkeypatch.setattr(watch_module, "wanted_of", fail)
    for number in (1, 2):
        await slow(live, number, MINE).first()
    assert faults


@pytest_twisted.ensureDeferred
async def test_sessions_without_common_queries_take_turns(
    dsn: str, live: Live, lock: Connection
) -> None:
    """Two are read at a time; a session whose rows were read receives changes while others are read."""
    one, two, three, four = (
        slow(live, number, replace(ANYONE, session=number)) for number in range(1, 5)
    )
    runs = await begun(live, one, two, three, four)
    for run, until_then in zip(runs, (0.0, 1.0, 2.0, 3.0), strict=True):
        run.until = until_then
    for number in (2, 3, 4):
        hold(lock, number)
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: one.messages)
    await until(lambda: execute(dsn, READING.format(2)) and execute(dsn, READING.format(3)))
    await cycles(live)
    assert execute(dsn, READING.format(4)) == []
    assert [each.messages for each in (two, three, four)] == [[], [], []]
    lock.rollback()
    for each in (two, three, four):
        await each.same()


@pytest_twisted.ensureDeferred
async def test_queries_of_one_session_are_not_read_in_two_snapshots_at_the_same_time(
    dsn: str, live: Live, lock: Connection
) -> None:
    """The session moves to one position after another; a query of another session is read meanwhile."""
    one, other = slow(live, 1, MINE), slow(live, 3, OTHERS)
    two = live.watch("fn.slow_too", caller=MINE, args={"n": 2}, tables=["quick"])
    await begun(live, one, two, other)
    hold(lock, 1)
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: execute(dsn, READING.format(1)))
    await other.same()
    execute(dsn, "INSERT INTO quick VALUES (1)")
    await until(lambda: watch_of(two).query.late)
    await cycles(live)
    assert watch_of(two).query.run.duration == 1.0  # unchanged, so it has not been read
    lock.rollback()
    await until(lambda: watch_of(two).query.run.duration < 1.0)
    await one.same()
    await two.same()


@pytest.mark.parametrize("comes_back", [False, True])
@pytest_twisted.ensureDeferred
async def test_caller_that_waits_for_rows_receives_alive_messages(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    """They have no checksum, and only the position with which the caller resumed."""
    monkeypatch.setattr(watchers, "ALIVE", 0.2)
    watcher, other = slow(live, 1, MINE), slow(live, 1, OTHERS)
    (run, _) = await begun(live, watcher, other)
    run.until = math.inf
    position = watcher.copy.position
    execute(dsn, "UPDATE loud SET name = 'later'")
    late = await watcher.resumed() if comes_back else slow(live, 1, THIRD)
    await until(lambda: len(late.messages) > 1)
    told = {"type": "alive"} | ({"position": position} if comes_back else {})
    assert all(message == told for message in late.messages)
    run.until = 0.0
    await late.same()
    await other.same()


@pytest.mark.parametrize("rests", [False, True])
@pytest_twisted.ensureDeferred
async def test_waiting_session_receives_alive_messages(
    dsn: str, live: Live, lock: Connection, monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    """They have its last position; its own write is covered by the step that has the written rows."""
    monkeypatch.setattr(watchers, "ALIVE", 0.2)
    watcher = slow(live, 1, MINE)
    mine = live.watch("notes", caller=MINE, tx=True)
    await mine.first()
    (run,) = await begun(live, watcher)
    hold(lock, 1)
    run.until = math.inf if rests else 0.0
    ((tx,),) = execute(
        dsn,
        "UPDATE loud SET name = 'later'; INSERT INTO notes VALUES ('mine')"
        " RETURNING pg_current_xact_id()::text",
    )
    live.watches.wrote(1, tx)
    if not rests:
        await until(lambda: execute(dsn, READING.format(1)))
    await until(lambda: watch_of(watcher).query.behind)
    for each in (watcher, mine):
        each.messages.clear()
    await until(lambda: len(watcher.messages) > 1 and len(mine.messages) > 1)
    assert {message["type"] for message in watcher.messages + mine.messages} == {"alive"}
    assert watcher.messages[-1]["checksum"] == watcher.copy.checksum()
    assert not any(message.get("covers") for message in mine.messages)
    lock.rollback()
    run.until = 0.0
    await until(lambda: any(message.get("covers") == [tx] for message in mine.messages))
    await watcher.same()
    await mine.same()


@pytest_twisted.ensureDeferred
async def test_query_whose_last_watch_leaves_while_it_is_read_is_not_read_again(
    dsn: str, live: Live, lock: Connection
) -> None:
    """This holds although it could not be read."""
    quick, watcher = live.watch("quick", caller=OTHERS), slow(live, 1, MINE)
    await quick.first()
    await begun(live, watcher)
    hold(lock, 1)
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: execute(dsn, READING.format(1)))
    await watcher.cancel()
    execute(dsn, f"SELECT pg_terminate_backend(pid) FROM ({READING.format(1)}) t")
    await until(lambda: not live.watches._background_reads)
    execute(dsn, "INSERT INTO quick VALUES (1)")
    await quick.same()
    assert live.watches._to_read == set()


@pytest_twisted.ensureDeferred
async def test_query_that_could_not_be_read_rests(dsn: str, live: Live, lock: Connection) -> None:
    """It rests like a query that was read; then it is read in another session."""
    watcher = slow(live, 1, MINE)
    (run,) = await begun(live, watcher)
    run.duration = 1000.0
    hold(lock, 1)
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: execute(dsn, READING.format(1)))
    execute(dsn, f"SELECT pg_terminate_backend(pid) FROM ({READING.format(1)}) t")
    await until(lambda: run.until > time.monotonic() + 1000)
    await cycles(live)
    assert execute(dsn, READING.format(1)) == []
    lock.rollback()
    assert watcher.messages == []
    run.until = 0.0
    await watcher.same()
    assert watcher.copy.resets == 0


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (Watches, "_apply_cycle"),
        (watchers.WatchingSession, "keep"),
        (watchers.WatchingSession, "complete"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_error_in_a_background_read_stops_no_cycle(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch, where: type, name: str
) -> None:
    """The transaction of the failed read is not left open either."""
    watcher = slow(live, 1, MINE)
    (run,) = await begun(live, watcher)
    faults: list[str] = []

    def fail(*args: Any) -> Any:
        if live.watches._to_read and not faults:
            faults.append(name)
            run.until = math.inf  # so that no other read ends what this one has begun
            raise RuntimeError("a fault of ours")
        return works(*args)

    works = getattr(where, name)
    monkeypatch.setattr(where, name, fail)
    execute(dsn, "UPDATE loud SET name = 'later'")
    await until(lambda: faults)
    await until(lambda: not execute(dsn, OPEN))
    for word in ("one", "two"):
        run.until, run.duration = 0.0, 1.0
        execute(dsn, f"UPDATE loud SET name = '{word}'")
        await watcher.same()


@pytest_twisted.ensureDeferred
async def test_table_truncated_during_a_background_read_has_its_new_rows(
    dsn: str, live: Live, lock: Connection
) -> None:
    """TRUNCATE is not MVCC-safe: to an older snapshot the table looks empty although it was not."""
    watcher, notes = slow(live, 1, MINE), live.watch("notes", caller=MINE)
    runs = await begun(live, watcher, notes)
    runs[1].duration = 2.0  # it is read last
    hold(lock, 1)
    execute(dsn, "UPDATE loud SET name = 'later'; INSERT INTO notes VALUES ('more')")
    await until(lambda: execute(dsn, READING.format(1)))
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as rows:
        rows.execute("TRUNCATE notes; SELECT pg_current_xact_id()::text::bigint")
        ((xid,),) = rows.fetchall()
    connection.close()
    lock.rollback()
    await until(lambda: not live.watches._background_reads)
    for run in runs:
        run.until = 0.0
    await until(lambda: notes.messages)
    position = parse_position(notes.messages[0]["position"])
    assert isinstance(position, SnapshotPosition)
    assert position.snapshot.sees(xid)
    await notes.same()
    await watcher.same()
