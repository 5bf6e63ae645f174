"""
The feed: committed changes are published once and in order, by one of the running feeds.
"""

from __future__ import annotations

import random
import time

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from schema.changes import TICKS, install
from schema.triggers import ASLEEP
from service.changes import feed as feed_module
from service.changes.leader import follow_txn
from service.changes.log import FOLLOWERS, last_txn, next_txn
from service.changes.positions import begin_txn
from service.changes.topics import SubscribedRelations
from service.db.session_settings import SessionSettings, open_session
from tests.conftest import execute
from tests.db.feeds import clear_log, feeding
from tests.db.relay import Relay
from tests.deferreds import pause, until

SCHEMA = f"""
CREATE TABLE items (id int PRIMARY KEY, n int);
CREATE TABLE notes (id int PRIMARY KEY, note text);
CREATE TABLE plain (id int);
CREATE ROLE feeding_reader;
GRANT SELECT (id) ON items TO feeding_reader;
{install()}
SELECT rowcast.track('items'), rowcast.track('notes');
"""

FOLLOWING = f"""
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
   AND classid = {FOLLOWERS >> 32} AND objid = {FOLLOWERS & 0xFFFFFFFF}
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""Returns a row for each feed that follows."""


@pytest.fixture(autouse=True)
def emptied(dsn: str) -> None:
    """Empty the tables and the log before each test."""
    execute(dsn, "TRUNCATE items, notes, plain")
    clear_log(dsn)


@pytest_twisted.ensureDeferred
async def test_feed_stops_though_the_server_is_silent_while_it_publishes(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that keeps the leader's session alive may wait a minute for the server's answer."""
    monkeypatch.setattr(feed_module, "PULSE", 0.1)
    monkeypatch.setattr(feed_module, "STOP_TIMEOUT", 0.1)
    with Relay(dsn) as relay:
        async with feeding(relay.dsn) as kept:
            kept.waits = Deferred()
            execute(dsn, "INSERT INTO items VALUES (1, 1)")
            await until(lambda: b"SELECT 1" in relay.messages)
            relay.flows.clear()
            relay.messages.clear()
            await until(lambda: b"SELECT 1" in relay.messages)
            stopping = Deferred.fromCoroutine(kept.stop())
            await until(lambda: stopping.called, 20)


@pytest_twisted.ensureDeferred
async def test_commit_is_published_once(dsn: str) -> None:
    async with feeding(dsn) as kept:
        execute(dsn, "INSERT INTO items VALUES (1, 1)")
        await until(lambda: kept.batches)
        execute(dsn, "UPDATE items SET n = 2")
        execute(dsn, "BEGIN; INSERT INTO items VALUES (9, 9); ROLLBACK")
        execute(dsn, "DELETE FROM items")
        await until(lambda: len(kept.changes) >= 3)
        assert kept.contents == [
            ("insert", (1,), None, {"id": 1, "n": 1}),
            ("update", (1,), {"id": 1, "n": 1}, {"id": 1, "n": 2}),
            ("delete", (1,), {"id": 1, "n": 2}, None),
        ]
        assert kept.feed.stats()["changes"] == 3
        assert kept.feed.well
        assert kept.calls >= 1
    places = [each.position for each in kept.changes]
    assert places == sorted(set(places))


@pytest_twisted.ensureDeferred
async def test_tick_is_notified_only_while_another_feed_follows(dsn: str) -> None:
    listening = psycopg2.connect(dsn)
    listening.autocommit = True
    with listening.cursor() as cursor:
        cursor.execute(f"LISTEN {TICKS}")

    def notified() -> int:
        listening.poll()
        count = len(listening.notifies)
        listening.notifies.clear()
        return count

    async with feeding(dsn) as leader:
        execute(dsn, "INSERT INTO items VALUES (1, 1)")
        await until(lambda: len(leader.changes) == 1)
        assert not notified()
        async with feeding(dsn, leads=False) as follower:
            await until(lambda: follower.feed.stats()["part"] == "following")
            await until(lambda: execute(dsn, FOLLOWING))
            execute(dsn, "INSERT INTO items VALUES (2, 2)")
            await until(notified)
            await until(lambda: follower.feed.stats()["tick"] == leader.feed.stats()["tick"])
        await until(lambda: not execute(dsn, FOLLOWING))
        notified()
        execute(dsn, "INSERT INTO items VALUES (3, 3)")
        await until(lambda: len(leader.changes) == 3)
        assert not notified()
    listening.close()


@pytest_twisted.ensureDeferred
async def test_follower_is_notified_of_the_first_tick_after_it_has_read_the_newest(
    dsn: str,
) -> None:
    """While a tick is not committed, no feed can begin to follow: it would read an older one as the newest."""
    leader, follower = (open_session(dsn, SessionSettings()) for _ in range(2))
    epoch, last = begin_txn(leader, 0)
    execute(dsn, "INSERT INTO items VALUES (1, 1)")
    assert next_txn(leader, last, epoch.number, 10, TICKS, held=True)
    assert not follow_txn(follower)
    leader.command("COMMIT")
    assert follow_txn(follower)
    found = last_txn(follower)
    assert found is not None
    assert found.number == last.number + 1
    for session in (leader, follower):
        session.close()


@pytest_twisted.ensureDeferred
async def test_rights_on_subscribed_relations_come_with_the_changes(dsn: str) -> None:
    ids = dict(execute(dsn, "SELECT relation::text, id FROM rowcast.tracked"))
    async with feeding(dsn) as kept:
        kept.heard = SubscribedRelations([ids["items"]], ["feeding_reader"])
        execute(
            dsn, "BEGIN; INSERT INTO items VALUES (1, 1); INSERT INTO notes VALUES (1, 'a'); COMMIT"
        )
        await until(lambda: kept.batches)
        execute(dsn, "DELETE FROM notes")
        await until(lambda: len(kept.batches) == 2)
    some, none = kept.rights
    assert list(some) == [ids["items"]]
    assert {role: list(them) for role, them in some[ids["items"]].columns.items()} == {
        "feeding_reader": ["id"]
    }
    assert none == {}


@pytest_twisted.ensureDeferred
async def test_changes_while_no_feed_runs_are_published_by_the_next(dsn: str) -> None:
    execute(dsn, "INSERT INTO items VALUES (1, 1)")
    async with feeding(dsn) as kept:
        await until(lambda: kept.batches)
    execute(dsn, "INSERT INTO items VALUES (2, 2)")
    async with feeding(dsn) as later:
        await until(lambda: later.batches)
        await until(lambda: later.asleep)
        assert [each.key for each in kept.changes + later.changes] == [(1,), (2,)]


@pytest_twisted.ensureDeferred
async def test_change_that_was_not_published_is_published_again_at_its_position(dsn: str) -> None:
    async with feeding(dsn) as kept:
        kept.refuses = RuntimeError("the router is away")
        execute(dsn, "INSERT INTO items VALUES (1, 1)")
        await until(lambda: kept.feed.problem)
        assert not kept.feed.well
        assert kept.feed.stats()["part"] == "away"
        kept.refuses = None
        await until(lambda: kept.batches)
        execute(dsn, "INSERT INTO items VALUES (2, 2)")
        await until(lambda: len(kept.changes) == 2)
        assert kept.feed.well
        assert [each.key for each in kept.changes] == [(1,), (2,)]
        one, two = (each.position for each in kept.changes)
        assert (two.tick, two.index) == (one.tick + 1, one.index)


@pytest_twisted.ensureDeferred
async def test_change_is_not_published_while_the_standby_does_not_have_its_tick(dsn: str) -> None:
    """A missing synchronous standby delays the commit like a slow disk."""
    async with feeding(dsn) as kept:
        await until(lambda: kept.asleep)
        try:
            execute(dsn, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            execute(dsn, "SELECT pg_reload_conf()")
            writer = psycopg2.connect(dsn, options="-c synchronous_commit=local")
            with writer, writer.cursor() as rows:
                rows.execute("INSERT INTO items VALUES (1, 1)")
            writer.close()
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await until(lambda: execute(dsn, waits) == [(1,)])
            assert kept.changes == []
        finally:
            execute(dsn, "ALTER SYSTEM RESET synchronous_standby_names")
            execute(dsn, "SELECT pg_reload_conf()")
        await until(lambda: kept.batches)
        assert [each.key for each in kept.changes] == [(1,)]


@pytest_twisted.ensureDeferred
async def test_feed_on_a_log_of_another_role_is_unhealthy_and_logs_why(dsn: str) -> None:
    execute(dsn, "CREATE ROLE feeding_stranger LOGIN PASSWORD 'x'")
    async with feeding(f"{dsn} user=feeding_stranger password=x", leads=False) as kept:
        await until(lambda: kept.feed.problem != "not started")
        assert not kept.feed.well
        assert kept.feed.stats()["part"] == "the log of changes is another role's"
        assert kept.feed.problem == kept.feed.stats()["part"]


@pytest_twisted.ensureDeferred
async def test_changes_published_before_a_stop_are_not_published_again(dsn: str) -> None:
    async with feeding(dsn) as kept:
        execute(dsn, "INSERT INTO items VALUES (1, 1)")
        await until(lambda: kept.batches)
    async with feeding(dsn) as later:
        await until(lambda: later.asleep)
        assert later.batches == []
        execute(dsn, "INSERT INTO items VALUES (2, 2)")
        await until(lambda: later.batches)
        assert later.changes[0].position > kept.changes[-1].position


@pytest_twisted.ensureDeferred
async def test_large_tick_is_published_in_pages_in_order(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.changes.log.PAGE_ROWS", 50)
    monkeypatch.setattr("service.changes.log.TRANSACTIONS", 7)
    slow = psycopg2.connect(dsn)
    with slow.cursor() as rows:
        rows.execute("INSERT INTO items SELECT i, 0 FROM generate_series(1001, 1010) i")
        for start in range(0, 400, 20):
            execute(
                dsn, f"INSERT INTO items SELECT i, 0 FROM generate_series({start}, {start + 19}) i"
            )
        slow.commit()
    slow.close()
    async with feeding(dsn) as kept:
        await until(lambda: len(kept.changes) == 410)
        assert len(kept.batches) >= 8
        assert max(map(len, kept.batches)) <= 50
        assert {each.position.tick for each in kept.changes} == {2}
        places = [each.position.index for each in kept.changes]
        assert places == sorted(set(places))
        # in the order of their numbers, though the first to write was the last to commit
        keys = [key for each in kept.changes for key in (each.key or ())]
        assert keys == [*range(1001, 1011), *range(400)]
        assert sum(each.last for each in kept.changes) == 21
        # each batch has only complete transactions
        assert all(batch[-1].last for batch in kept.batches)


@pytest_twisted.ensureDeferred
async def test_transaction_with_too_many_rows_is_a_reset_of_each_relation(dsn: str) -> None:
    async with feeding(dsn, most=10) as kept:
        execute(
            dsn,
            "BEGIN; INSERT INTO items SELECT i, 0 FROM generate_series(1, 9) i;"
            "INSERT INTO notes VALUES (1, 'x'), (2, 'y'); COMMIT",
        )
        execute(dsn, "INSERT INTO items VALUES (10, 0)")
        await until(lambda: len(kept.changes) == 3)
        assert [each.op for each in kept.changes] == ["reset", "reset", "insert"]
        assert len({each.relation for each in kept.changes[:2]}) == 2


@pytest_twisted.ensureDeferred
async def test_transaction_with_too_many_rows_of_a_large_tick_is_a_reset(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.changes.log.PAGE_ROWS", 8)
    execute(dsn, "INSERT INTO items SELECT i, 0 FROM generate_series(1, 30) i")
    execute(dsn, "INSERT INTO items VALUES (31, 0)")
    async with feeding(dsn, most=10) as kept:
        await until(lambda: len(kept.changes) == 2)
        assert [(each.op, each.key) for each in kept.changes] == [
            ("reset", None),
            ("insert", (31,)),
        ]


@pytest_twisted.ensureDeferred
async def test_transaction_with_too_many_bytes_is_a_reset(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.changes.log.PAGE_BYTES", 100_000)
    dense = "SELECT i, string_agg(md5(i::text || j), '') FROM generate_series(1, 5) i, generate_series(1, 2000) j GROUP BY i"
    async with feeding(dsn) as kept:
        execute(dsn, f"INSERT INTO notes {dense}")
        execute(dsn, "INSERT INTO items VALUES (1, 0)")
        await until(lambda: len(kept.changes) == 2)
        assert [each.op for each in kept.changes] == ["reset", "insert"]


@pytest_twisted.ensureDeferred
async def test_feed_that_has_nothing_to_do_sleeps_until_a_writer_notifies(dsn: str) -> None:
    """Polling is switched off, so each commit must have notified the feed."""
    async with feeding(dsn, fallback=600.0) as kept:
        for number in range(20):
            await until(lambda: kept.asleep)
            assert asleep(dsn)
            execute(dsn, f"INSERT INTO items VALUES ({number}, 0)")
            await until(lambda many=number + 1: len(kept.changes) == many)  # type: ignore[misc]


@pytest_twisted.ensureDeferred
async def test_writer_that_saw_the_feed_awake_is_waited_for(dsn: str) -> None:
    async with feeding(dsn, fallback=600.0) as kept:
        slow = psycopg2.connect(dsn)
        with slow.cursor() as rows:
            execute(dsn, "INSERT INTO items VALUES (1, 0)")
            await until(lambda: kept.batches)
            rows.execute("INSERT INTO items VALUES (2, 0)")
            await until(lambda: asleep(dsn))
            await pause(0.3)
            slow.commit()
            await until(lambda: len(kept.changes) == 2)
        slow.close()


@pytest_twisted.ensureDeferred
async def test_commit_while_not_listening_is_found_after_reconnect(dsn: str) -> None:
    """The notification is lost, and the listener's resync after the reconnect replaces it."""
    listener = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    )
    async with feeding(dsn, fallback=600.0) as kept:
        for number in range(5):
            await until(lambda: kept.asleep and kept.listener.listening)
            execute(dsn, f"{listener}; INSERT INTO items VALUES ({number}, 0)")
            await until(lambda many=number + 1: len(kept.changes) == many)  # type: ignore[misc]


@pytest_twisted.ensureDeferred
async def test_leader_prunes_old_rows(dsn: str) -> None:
    async with feeding(dsn, keep=0.5) as kept:
        for number in range(3):
            execute(dsn, f"INSERT INTO items VALUES ({number}, 0)")
            await until(lambda many=number + 1: len(kept.changes) == many)  # type: ignore[misc]
        # the newest tick is kept, whatever its age
        await until(lambda: kept.feed.stats()["pruned"] == 2)
        assert execute(dsn, "SELECT count(*) FROM rowcast.log") == [(1,)]
        execute(dsn, "INSERT INTO items VALUES (3, 0)")
        await until(lambda: len(kept.changes) == 4)


@pytest_twisted.ensureDeferred
async def test_commit_while_the_feed_falls_asleep_is_published(dsn: str) -> None:
    """Writers commit while the feed falls asleep, and polling is switched off."""

    def write(number: int) -> None:
        dice, connection = random.Random(number), psycopg2.connect(dsn)
        with connection.cursor() as rows:
            for turn in range(60):
                rows.execute("INSERT INTO items VALUES (%s, 0)", [number * 1000 + turn])
                time.sleep(dice.choice((0, 0, 0.001, 0.005, 0.02, 0.03, 0.1)))
                connection.commit()
                time.sleep(dice.choice((0, 0.01, 0.03, 0.05, 0.2)))
        connection.close()

    sleeps = 0
    async with feeding(dsn, fallback=600.0) as kept:
        writing = gatherResults([deferToThread(write, number) for number in range(3)])
        while not writing.called:
            sleeps += kept.asleep
            await pause(0.01)
        await writing
        await until(lambda: len(kept.changes) == 180)
    assert sleeps > 20


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("how", ["setting", "table"])
async def test_feed_polls_where_writers_do_not_notify(dsn: str, how: str) -> None:
    if how == "table":
        execute(dsn, "SELECT rowcast.track('items', 'full', false)")
    try:
        poll = 0.02 if how == "setting" else None
        async with feeding(dsn, fallback=600.0, poll=poll) as kept:
            execute(dsn, "INSERT INTO items VALUES (1, 0)")
            await until(lambda: len(kept.changes) >= 1)
            assert kept.feed.stats()["polling"]
            await pause(0.1)
            assert not asleep(dsn)
            execute(dsn, "INSERT INTO items VALUES (2, 0)")
            await until(lambda: kept.changes[-1].key == (2,))
    finally:
        execute(dsn, "SELECT rowcast.track('items')")


@pytest_twisted.ensureDeferred
async def test_ddl_that_fires_no_trigger_is_a_reset(dsn: str) -> None:
    async with feeding(dsn) as kept:
        await until(lambda: kept.asleep)
        execute(dsn, "ALTER TABLE notes ADD COLUMN more int DEFAULT 7")
        kept.feed.poll_now()
        await until(lambda: kept.batches)
        assert kept.contents == [("reset", None, None, None)]
        execute(dsn, "INSERT INTO notes VALUES (1, 'x')")
        await until(lambda: len(kept.changes) == 2)
        assert kept.changes[-1].new == {"id": 1, "note": "x", "more": 7}


@pytest_twisted.ensureDeferred
async def test_feed_does_not_wait_for_ddl(dsn: str) -> None:
    """Tracking a table in a long transaction does not block the feed."""
    holder = psycopg2.connect(dsn)
    with holder.cursor() as rows:
        rows.execute("SELECT rowcast.track('plain')")
        rows.execute("UPDATE rowcast.tracked SET noticed = noticed")
        async with feeding(dsn) as kept:
            execute(dsn, "ALTER TABLE items ADD COLUMN IF NOT EXISTS later int")
            kept.feed.poll_now()
            execute(dsn, "INSERT INTO items VALUES (1, 0)")
            await until(lambda: kept.batches)
            assert kept.contents[0][0] == "insert"
            holder.rollback()
            await until(lambda: kept.contents[-1][0] == "reset")
    holder.close()


@pytest_twisted.ensureDeferred
async def test_feed_without_a_log_waits_for_one(dsn: str) -> None:
    execute(dsn, "ALTER SCHEMA rowcast RENAME TO elsewhere")
    try:
        async with feeding(dsn, leads=False) as kept:
            await until(lambda: kept.feed.well)
            assert not kept.feed.leading
            assert kept.feed.stats()["part"] == "nothing is tracked"
            execute(dsn, "ALTER SCHEMA elsewhere RENAME TO rowcast")
            kept.feed.poll_now()
            await until(lambda: kept.feed.leading)
    finally:
        execute(
            dsn,
            "DO $$ BEGIN IF to_regnamespace('elsewhere') IS NOT NULL THEN"
            " ALTER SCHEMA elsewhere RENAME TO rowcast; END IF; END $$",
        )


def asleep(dsn: str) -> bool:
    """Return whether a feed sleeps until writers notify it."""
    held = (
        f"SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = {ASLEEP & 0xFFFFFFFF}"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND granted AND mode = 'ExclusiveLock'"
    )
    return bool(execute(dsn, held))
