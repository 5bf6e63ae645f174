"""
Live queries that continue after DDL, changed rights, lost connections and slow callers.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import closing

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import parse_dsn
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, eventAsText

from schema import changes
from service.api.roles import Roles
from service.changes import cycle, watchers
from service.changes import watch as watch_module
from service.changes.cycle import snapshot_txn
from service.changes.queries import WatchLimits
from service.db.session_settings import SessionSettings, open_session
from service.db.transaction import begin_statement, rollback_txn
from service.errors import InvalidArgument, NoSuchProcedure, NotAuthorized, StatementTimeout
from service.request.arguments import Caller
from tests.conftest import execute, wait_for_lock
from tests.db.relay import Relay
from tests.db.watched import Live, living
from tests.deferreds import pause, until

SCHEMA = f"{changes.install()} CREATE ROLE lasting_reader;"

BEFORE_EACH = """
DROP TABLE IF EXISTS items, others CASCADE;
CREATE TABLE items (id int PRIMARY KEY, name text, note text);
CREATE TABLE others (id int PRIMARY KEY, n int);
INSERT INTO items SELECT n, 'i' || n, 'note' FROM generate_series(1, 5) n;
INSERT INTO others SELECT n, n FROM generate_series(1, 5) n;
SELECT rowcast.track('items'), rowcast.track('others');
"""

PARTITIONED = """
DROP TABLE IF EXISTS events;
CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE events_rest PARTITION OF events DEFAULT;
SELECT rowcast.track('events');
"""


@pytest_twisted.async_yield_fixture
async def live(dsn: str) -> AsyncIterator[Live]:
    """Serve the module's database, with frequent checks for catalog changes."""
    execute(dsn, BEFORE_EACH)
    async with living(dsn, WatchLimits(max_bytes=60_000), every=0.05) as found:
        yield found


@pytest_twisted.ensureDeferred
async def test_added_or_dropped_column_resets_all_rows(dsn: str, live: Live) -> None:
    """A query that selects its columns by name is not affected."""
    every, named = live.watch("items"), live.watch("items", select=["id", "name"])
    await every.first()
    await named.first()
    for ddl in (
        "ALTER TABLE items ADD extra int DEFAULT 3",
        "ALTER TABLE items DROP note",
        "ALTER TABLE items RENAME extra TO more",
        "ALTER TABLE items ALTER name TYPE varchar(50)",
    ):
        execute(dsn, ddl)
        await live.served.catch_up()
        await every.same()
        execute(dsn, "UPDATE items SET name = name || '.'")
        await every.same()
        await named.same()
    assert every.copy.resets >= 3
    assert every.error is None
    assert named.copy.resets <= 1


@pytest_twisted.ensureDeferred
async def test_rows_of_children_with_the_key_of_another_row_are_kept_apart(
    dsn: str, live: Live
) -> None:
    """A primary key is not unique across the tables that inherit from its table."""
    execute(dsn, "CREATE TABLE kinds_of (more int, PRIMARY KEY (id)) INHERITS (items)")
    execute(dsn, "SELECT rowcast.track('kinds_of'); INSERT INTO kinds_of VALUES (1, 'child')")
    await live.served.catch_up()
    every = live.watch("items", order=["name"])
    await every.first()
    execute(dsn, "UPDATE kinds_of SET name = 'a child'")
    await every.same()
    execute(dsn, "DELETE FROM ONLY items WHERE id = 1")
    await every.same()


@pytest_twisted.ensureDeferred
async def test_watch_of_a_dropped_table_or_column_ends_with_the_reason(
    dsn: str, live: Live
) -> None:
    """A dropped column that the query names, and a dropped table."""
    column, table = live.watch("items", where={"note": "note"}), live.watch("others")
    await column.first()
    await table.first()
    execute(dsn, "ALTER TABLE items RENAME note TO remark")
    await until(lambda: column.error is not None)
    assert isinstance(column.error, InvalidArgument)
    assert "note" in str(column.error)
    execute(dsn, "DROP TABLE others")
    await until(lambda: table.error is not None)
    assert isinstance(table.error, NoSuchProcedure)
    assert not live.watches.open


@pytest_twisted.ensureDeferred
async def test_recreated_table_continues_to_be_watched(dsn: str, live: Live) -> None:
    """The table is dropped, created and tracked in one transaction."""
    watcher = live.watch("others", order=["n"])
    await watcher.first()
    execute(
        dsn,
        "BEGIN; DROP TABLE others; CREATE TABLE others (id int PRIMARY KEY, n int);"
        " INSERT INTO others VALUES (7, 7); SELECT rowcast.track('others'); COMMIT",
    )
    await watcher.same()
    execute(dsn, "INSERT INTO others VALUES (8, 1)")
    await watcher.same()


@pytest_twisted.ensureDeferred
async def test_changed_rights_change_the_rows(dsn: str) -> None:
    """A changed policy or grant takes effect without a change of rows; a query that is refused ends."""
    execute(dsn, BEFORE_EACH + "GRANT SELECT ON items TO lasting_reader")
    ann = Caller(1, "ann", "user", "realm1")
    roles = Roles({"user": "lasting_reader"})
    async with living(dsn, WatchLimits(), roles=roles, every=0.05) as live:
        watcher = live.watch("items", ann)
        await watcher.first()
        execute(dsn, "ALTER TABLE items ENABLE ROW LEVEL SECURITY")
        await until(lambda: not watcher.copy.rows)
        execute(dsn, "CREATE POLICY few ON items USING (id < 3)")
        await until(lambda: [key for key, _ in watcher.copy.rows] == [1, 2])
        assert watcher.copy.resets == 0
        execute(dsn, "REVOKE SELECT ON items FROM lasting_reader")
        execute(dsn, "GRANT SELECT (id) ON items TO lasting_reader")
        await until(lambda: watcher.copy.values == [{"id": 1}, {"id": 2}])
        execute(dsn, "REVOKE SELECT (id) ON items FROM lasting_reader")
        await until(lambda: watcher.error is not None)
        assert isinstance(watcher.error, NoSuchProcedure | NotAuthorized)


@pytest_twisted.ensureDeferred
async def test_watch_continues_after_a_lost_connection(dsn: str, live: Live) -> None:
    """It is not reset, whatever has changed meanwhile."""
    watcher = live.watch("items")
    await watcher.first()
    for n in range(3):
        execute(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid();"
            f"UPDATE items SET name = 'after {n}' WHERE id = {n + 1}",
        )
        await watcher.same()
    assert watcher.copy.resets == 0
    assert live.watches.drift == 0


@pytest_twisted.ensureDeferred
async def test_watch_continues_in_another_epoch(dsn: str, live: Live) -> None:
    """Transaction ids are not comparable across epochs: all rows are read again and compared."""
    watcher = live.watch("items")
    await watcher.first()
    execute(dsn, "ALTER TABLE items DISABLE TRIGGER USER; DELETE FROM items WHERE id = 1")
    execute(dsn, "ALTER TABLE items ENABLE TRIGGER USER")
    ((epoch,),) = execute(dsn, "SELECT max(epoch) + 4 FROM rowcast.epochs")
    execute(dsn, f"INSERT INTO rowcast.epochs VALUES ({epoch}, 1, 2, 1, '3')")
    await until(lambda: watcher.copy.position.startswith(f"{epoch}."))
    await watcher.same()
    assert watcher.copy.resets == 0
    execute(dsn, f"DELETE FROM rowcast.epochs WHERE epoch = {epoch}")


@pytest_twisted.ensureDeferred
async def test_ended_watch_leaves_nothing_in_the_cycle(dsn: str, live: Live) -> None:
    one, other = live.watch("items", where={"id": 1}), live.watch("others")
    await one.first()
    await other.first()
    cycle = live.watches._cycle
    assert len(cycle._watched.states) == 2
    await one.cancel()
    execute(dsn, "UPDATE others SET n = 7")
    await other.same()
    assert len(cycle._watched.states) == 1
    assert len(cycle._watched._index) == 1
    await other.cancel()
    await until(lambda: not cycle._watched.states)
    assert not live.watches.open


@pytest_twisted.ensureDeferred
async def test_slow_caller_gets_one_delta_of_many_commits(dsn: str, live: Live) -> None:
    """All watches of its session move to one position together; other sessions do not wait."""
    slow, fast = Caller(1, None, None, "realm1"), Caller(2, None, None, "realm1")
    held, beside = live.watch("items", slow), live.watch("others", slow)
    other = live.watch("items", fast)
    for each in (held, beside, other):
        await each.first()
    held.hold()
    execute(dsn, "UPDATE items SET name = 'first' WHERE id = 1")
    await until(lambda: len(held.messages) == 2)
    for n in range(20):
        execute(dsn, f"UPDATE items SET name = 'n{n}' WHERE id = 2; UPDATE others SET n = {n}")
        await other.same()
    execute(dsn, "DELETE FROM items WHERE id = 3; INSERT INTO items VALUES (3, 'again')")
    await other.same()
    assert len(held.messages) == 2
    assert len(beside.messages) == 1
    held.release()
    await held.same()
    await beside.same()
    assert len(held.messages) == 3
    assert len(beside.messages) == 2
    assert (
        held.messages[-1]["position"].partition("~")[0]
        == beside.messages[-1]["position"].partition("~")[0]
    )
    steps = [each.messages[-1].get("step") for each in (held, beside)]
    assert sorted(steps, key=str) == [None, True]


@pytest_twisted.ensureDeferred
async def test_slow_caller_follows_rows_that_move_one_after_another(dsn: str, live: Live) -> None:
    """The combined delta moves other rows than the single steps, and has these rows."""
    execute(dsn, "UPDATE items SET name = id")
    slow, fast = Caller(1, None, None, "realm1"), Caller(2, None, None, "realm1")
    held, other = (live.watch("items", each, order=["name"]) for each in (slow, fast))
    await held.first()
    await other.first()
    held.hold()
    execute(dsn, "UPDATE items SET note = 'first' WHERE id = 4")
    await until(lambda: len(held.messages) == 2)
    for moved, where in (
        (2, "0"),
        (3, "0.5"),
        (5, "0.1"),
    ):  # of 1, 2, 3: then 2, 1, 3, then 2, 3, 1
        execute(dsn, f"UPDATE items SET name = {where} WHERE id = {moved}")
        await other.same()
    held.release()
    await held.same()
    assert len(held.messages) == 3
    assert held.copy.resets == 0


@pytest_twisted.ensureDeferred
async def test_caller_that_is_far_behind_is_reset(dsn: str, live: Live) -> None:
    """The number of pending changes per caller is bounded."""
    held = live.watch("items")
    other = live.watch("items", Caller(2, None, None, "realm1"))
    await held.first()
    await other.first()
    held.hold()
    execute(dsn, "UPDATE items SET name = 'first' WHERE id = 1")
    await until(lambda: len(held.messages) == 2)
    for n in range(6):
        execute(dsn, f"UPDATE items SET note = repeat('{n}', 9000) WHERE id = {1 + n % 5}")
        await other.same()
    (watch,) = [each for each in held_watches(live) if each.base is None]
    assert not watch.changed
    held.release()
    await held.same()
    assert held.copy.resets == 1


def held_watches(live: Live) -> list[watch_module.Watch]:
    """Return all watches of the service."""
    return [watch for query in live.watches._queries.values() for watch in query.watches]


@pytest_twisted.ensureDeferred
async def test_watch_of_a_caller_that_takes_nothing_ends_alone(dsn: str, live: Live) -> None:
    """Back-pressure of the connection ends this watch; the other watch of the session continues."""
    one, two = live.watch("items"), live.watch("others")
    await one.first()
    await two.first()
    one.hold()
    execute(dsn, "UPDATE items SET name = 'first' WHERE id = 1")
    await until(lambda: len(one.messages) == 2)
    assert one.held is not None
    one.held.errback(StatementTimeout("the caller has read nothing for too long", clock=None))
    await until(lambda: one.error is not None)
    execute(dsn, "UPDATE others SET n = 0")
    await two.same()


@pytest.mark.parametrize("ends", ["caller leaves", "service drains"])
@pytest_twisted.ensureDeferred
async def test_last_watch_that_ends_while_its_caller_is_behind_logs_no_failure(
    dsn: str, live: Live, ends: str
) -> None:
    """The caller takes the last message after the cycles have ended, when there is no position to go to."""
    watcher = live.watch("items")
    await watcher.first()
    watcher.hold()
    execute(dsn, "UPDATE items SET name = 'first' WHERE id = 1")
    await until(lambda: len(watcher.messages) == 2)
    if ends == "service drains":
        live.watches.drain()
    else:
        live.watches.departed(watcher.caller.session)
    await until(lambda: live.watches._running is None)
    with capturedLogs() as logged:
        watcher.release()
    assert [eventAsText(each) for each in logged if "log_failure" in each] == []


@pytest_twisted.ensureDeferred
async def test_watches_stop_while_the_server_is_silent_in_a_cycle(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop waits neither for as long as a statement may take, nor for another attempt at the cycle."""
    monkeypatch.setattr(watch_module, "STOP_TIMEOUT", 0.1)
    monkeypatch.setattr(watch_module, "PAUSES", (60.0, 60.0))
    execute(dsn, BEFORE_EACH)
    with Relay(dsn) as relay:
        async with living(relay.dsn) as live:
            await live.watch("items").first()
            relay.flows.clear()
            relay.messages.clear()
            await until(lambda: any(b"BEGIN" in each for each in relay.messages))
            stopping = Deferred.fromCoroutine(live.watches.stopService())
            await until(lambda: stopping.called, 20)
            relay.flows.set()


@pytest_twisted.ensureDeferred
async def test_quiet_watch_receives_alive_messages(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position advances with other commits; the checksum is that of the watcher's rows."""
    monkeypatch.setattr(watchers, "ALIVE", 0.2)
    watcher = live.watch("items", order=["-id"])
    await watcher.first()
    execute(dsn, "UPDATE others SET n = n + 1")
    # The first of them may have been sent before the commit, if that took longer.
    await until(lambda: watcher.messages[-1]["position"] != watcher.messages[0]["position"])
    assert {message["type"] for message in watcher.messages[1:]} == {"alive"}
    assert watcher.messages[-1]["checksum"] == watcher.copy.checksum()


@pytest_twisted.ensureDeferred
async def test_change_missing_from_the_log_is_found_by_the_check(
    dsn: str, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and the watchers receive the actual rows."""
    monkeypatch.setattr(watch_module, "CHECK", 0.2)
    watcher = live.watch("items")
    await watcher.first()
    await pause(0.5)
    assert live.watches.stats()["drift"] == 0
    execute(
        dsn,
        "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM items WHERE id = 1; COMMIT",
    )
    await watcher.same()
    assert live.watches.stats()["drift"] == 1


@pytest_twisted.ensureDeferred
async def test_query_that_fails_ends_alone(dsn: str, live: Live) -> None:
    """A changed row makes the query fail; the other queries of the cycle continue."""
    failing = live.watch("others", select=["id", "x:n::smallint"])
    beside = live.watch("others")
    await failing.first()
    await beside.first()
    execute(dsn, "UPDATE others SET n = 100000 WHERE id = 1")
    await until(lambda: failing.error is not None)
    await beside.same()
    assert beside.error is None


@pytest_twisted.ensureDeferred
async def test_transaction_that_a_watched_query_blocks_is_not_ended_by_a_deadlock(dsn: str) -> None:
    """It locks the tables that the query reads in the opposite order, and looks for a deadlock first."""
    execute(dsn, BEFORE_EACH)
    execute(dsn, "CREATE VIEW both_of AS SELECT i.id, o.n FROM items i JOIN others o USING (id)")
    name = parse_dsn(dsn)["dbname"]
    execute(dsn, f"ALTER DATABASE {name} SET deadlock_timeout = '1min'")
    other = psycopg2.connect(dsn, options="-c deadlock_timeout=500ms")
    try:
        async with living(dsn, WatchLimits(timeout=60)) as live:
            watcher = live.watch("both_of")
            await watcher.first()
            with other.cursor() as cursor:
                cursor.execute("LOCK TABLE others")
                execute(dsn, "UPDATE items SET name = 'new' WHERE id = 1")
                await deferToThread(wait_for_lock, dsn)
                await deferToThread(cursor.execute, "LOCK TABLE items")
                cursor.execute("UPDATE others SET n = 100 WHERE id = 1")
            other.commit()
            await until(lambda: {"id": 1, "n": 100} in watcher.copy.values or watcher.error)
            assert watcher.error is None
    finally:
        other.close()
        execute(dsn, f"ALTER DATABASE {name} RESET deadlock_timeout")


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
@pytest_twisted.ensureDeferred
async def test_query_of_a_locked_table_waits_and_delays_no_other(dsn: str, known: bool) -> None:
    """It is tried again for longer than a run may take, and the log says so once."""
    execute(dsn, BEFORE_EACH)
    execute(dsn, "CREATE VIEW both_of AS SELECT i.id, i.name FROM items i JOIN others o USING (id)")
    other = psycopg2.connect(dsn)
    try:
        async with living(dsn, WatchLimits(timeout=0.5)) as live:
            beside = live.watch("items", Caller(2, None, None, "realm1"))
            await beside.first()
            watcher = live.watch("both_of")
            await watcher.first()
            if not known:  # planned, but to be read for the first time
                await watcher.cancel()
            other.cursor().execute("LOCK TABLE others")
            with capturedLogs() as logs:
                if not known:
                    watcher = live.watch("both_of")

                def warned() -> list[str]:
                    texts = [eventAsText(each) for each in logs]
                    return [each for each in texts if "a read failed" in each]

                at = 0
                while not (warned() or watcher.error):
                    at += 1
                    execute(dsn, f"UPDATE items SET name = 'n{at}' WHERE id = 1")
                    await beside.same()
                assert watcher.error is None
                assert len(warned()) == 1
            other.commit()
            await until(lambda: {"id": 1, "name": f"n{at}"} in watcher.copy.values or watcher.error)
            assert watcher.error is None
            await watcher.same()
    finally:
        other.close()


@pytest.mark.parametrize(
    ("begun", "meeting", "column"),
    [
        (True, "LOCK TABLE items", "n"),
        (True, "ALTER TABLE both_of RENAME n TO m", "m"),
        (False, "LOCK TABLE items", "n"),
    ],
    ids=["run", "altered", "planned"],
)
@pytest_twisted.ensureDeferred
async def test_query_that_a_deadlock_has_ended_runs_again(
    dsn: str, monkeypatch: pytest.MonkeyPatch, begun: bool, meeting: str, column: str
) -> None:
    """Another transaction locks what the query reads in the opposite order, and may alter it."""
    monkeypatch.setattr(cycle, "LOCK_TIMEOUT", math.inf)
    execute(dsn, BEFORE_EACH)
    execute(dsn, "CREATE VIEW both_of AS SELECT i.id, o.n FROM items i JOIN others o USING (id)")
    # The query finds the deadlock after this time, in which the other transaction has to meet it.
    name = parse_dsn(dsn)["dbname"]
    execute(dsn, f"ALTER DATABASE {name} SET deadlock_timeout = '4s'")
    other = psycopg2.connect(dsn, options="-c deadlock_timeout=1h")
    try:
        async with living(dsn, WatchLimits(timeout=60)) as live:
            beside = live.watch("items")
            await beside.first()
            if begun:
                watcher = live.watch("both_of")
                await watcher.first()
            with other.cursor() as cursor:
                cursor.execute("LOCK TABLE others")
                if begun:
                    execute(dsn, "UPDATE items SET name = 'new' WHERE id = 1")
                else:
                    watcher = live.watch("both_of")
                await deferToThread(wait_for_lock, dsn)
                await deferToThread(cursor.execute, meeting)
                cursor.execute("UPDATE others SET n = 100 WHERE id = 1")
            other.commit()
            await until(lambda: {"id": 1, column: 100} in watcher.copy.values or watcher.error)
            assert watcher.error is None
            await beside.same()
            assert watcher.copy.resets == (column != "n")
    finally:
        other.close()
        execute(dsn, f"ALTER DATABASE {name} RESET deadlock_timeout")


@pytest_twisted.ensureDeferred
async def test_cycle_meets_no_deadlock_with_ddl_of_partitions(dsn: str) -> None:
    """DDL locks the partitioned table, then its default partition."""
    execute(dsn, BEFORE_EACH + PARTITIONED)

    def write() -> None:
        for at in range(5):
            execute(
                dsn, f"INSERT INTO events SELECT generate_series({at * 4000}, {at * 4000 + 3999})"
            )
            part = f"events_{at}"
            execute(
                dsn,
                f"CREATE TABLE {part} PARTITION OF events FOR VALUES FROM (-{at + 1}) TO (-{at})",
            )
            execute(dsn, f"DROP TABLE {part}")

    async with living(dsn, WatchLimits(timeout=60)) as live:
        watcher = live.watch("events", order=["-id"], limit=20)
        await watcher.first()
        await deferToThread(write)
        await watcher.same()
        assert watcher.error is None


def test_snapshot_of_a_cycle_locks_no_tracked_table(dsn: str) -> None:
    """The queries then lock a partitioned table before its partitions, as DDL does."""
    execute(dsn, BEFORE_EACH + PARTITIONED)
    with closing(open_session(dsn, SessionSettings())) as connection:
        connection.begin(begin_statement("repeatable read", read_only=True))
        snapshot_txn(connection, None)
        locked = (
            "SELECT count(*) FILTER (WHERE relation = 'rowcast.tracked'::regclass),"
            " count(*) FILTER (WHERE relation IN (SELECT rowcast.tree('events'::regclass)))"
            f" FROM pg_locks WHERE pid = {connection.info.backend_pid}"
        )
        assert execute(dsn, locked) == [(1, 0)]
        rollback_txn(connection)


@pytest_twisted.ensureDeferred
async def test_slow_query_delays_only_its_own_session(dsn: str, live: Live) -> None:
    """Other sessions receive each change at once, however many slow queries there are."""
    execute(
        dsn,
        "CREATE OR REPLACE FUNCTION slow() RETURNS SETOF others STABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.3); RETURN QUERY SELECT * FROM others; END'",
    )
    await live.served.catch_up()
    slow, fast = Caller(1, None, None, "realm1"), Caller(2, None, None, "realm1")
    held = [live.watch("fn.slow", slow, where={"id": {"gt": n}}) for n in range(3)]
    beside = live.watch("items", slow)
    quick = live.watch("items", fast)
    for each in (*held, beside, quick):
        await each.first()
    delays = []
    for n in range(8):
        execute(dsn, f"UPDATE others SET n = {n}; UPDATE items SET name = '{n}' WHERE id = 1")
        began = reactor.seconds()
        await quick.same()
        delays.append(reactor.seconds() - began)
    # At most one slow query runs at a time, followed by a rest.
    assert sum(delay > 0.25 for delay in delays) <= 4, delays
    for each in (*held, beside):
        await each.same()
    assert live.watches.drift == 0
    execute(dsn, "DROP FUNCTION slow()")


@pytest_twisted.ensureDeferred
async def test_query_that_takes_too_long_ends(dsn: str) -> None:
    """This includes a shorter timeout given by the caller."""
    execute(dsn, BEFORE_EACH)
    execute(
        dsn,
        "CREATE FUNCTION slower() RETURNS SETOF others STABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(5); RETURN QUERY SELECT * FROM others; END'",
    )
    async with living(dsn, WatchLimits(timeout=0.3)) as live:
        with pytest.raises(StatementTimeout):
            await live.watch("fn.slower").first()
        assert not live.watches.open
    async with living(dsn, WatchLimits()) as live:
        with pytest.raises(StatementTimeout):
            await live.watch("fn.slower", timeout=0.3).first()
    execute(dsn, "DROP FUNCTION slower()")
