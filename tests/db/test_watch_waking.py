"""Live queries without polling: the feed wakes them after each commit."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from schema.changes import install
from service.db.connection import PgCursor
from tests.conftest import execute
from tests.db.feeds import RecordingFeed, clear_log, feeding
from tests.db.watched import Watcher, living
from tests.deferreds import pause, until

SCHEMA = f"""
CREATE TABLE items (id serial PRIMARY KEY, n int);
CREATE TABLE untracked (id int);
{install()}
SELECT rowcast.track('items');
"""
NEVER = 600.0
INSERT = "INSERT INTO items (n) VALUES (1)"


@pytest.fixture(autouse=True)
def emptied(dsn: str) -> None:
    """Empty the table before each test."""
    execute(dsn, "TRUNCATE items RESTART IDENTITY")
    clear_log(dsn)


@asynccontextmanager
async def watching(dsn: str, feed: RecordingFeed) -> AsyncIterator[Watcher]:
    """Watch the items; only a feed wakes the cycles."""
    async with living(dsn, poll=NEVER) as live:
        forgetting = feed.feed.subscribe(live.watches.wake)
        watcher = live.watch("items")
        await watcher.first()
        yield watcher
        forgetting()


@pytest_twisted.ensureDeferred
async def test_change_takes_three_messages_to_the_database(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the log rows with a snapshot, for the rows that they concern, and for COMMIT."""
    sent: list[Any] = []
    send = PgCursor.execute

    def counted(self: PgCursor, query: Any, *args: Any, **kwargs: Any) -> None:
        if self.connection is live.watches._cycle._connection:
            sent.append(query)
        send(self, query, *args, **kwargs)

    async with living(dsn, poll=NEVER) as live:
        monkeypatch.setattr(PgCursor, "execute", counted)
        watcher = live.watch("items")
        await watcher.first()
        await until(lambda: not live.watches._to_read)
        for many in (1, 2):  # the session prepares its statements in the first cycle
            sent.clear()
            before = live.watches.cycles
            execute(dsn, INSERT)
            live.watches.wake()
            await has_rows(watcher, many)
        assert live.watches.cycles == before + 1
        assert len(sent) == 3, sent


async def has_rows(watcher: Watcher, many: int) -> None:
    """Wait until the watcher has a number of rows."""
    await until(lambda: len(watcher.copy.rows) >= many)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("part", ["leading", "following"])
async def test_live_query_receives_each_commit_while_the_feed_falls_asleep(
    dsn: str, part: str
) -> None:
    """Each commit is delivered, whether the feed is awake, asleep, or about to sleep."""
    dice = random.Random(part)
    async with (
        feeding(dsn, fallback=NEVER) as leader,
        feeding(dsn, leads=False, fallback=NEVER) as follower,
    ):
        await until(lambda: follower.feed.well and follower.listener.listening)
        feed = leader if part == "leading" else follower
        async with watching(dsn, feed) as watcher:
            for many in range(1, 81):
                await deferToThread(execute, dsn, INSERT)
                await has_rows(watcher, many)
                await pause(dice.choice((0, 0, 0.002, 0.01, 0.02, 0.025, 0.03, 0.1)))
            assert watcher.copy.resets == 0


@pytest_twisted.ensureDeferred
async def test_transaction_that_writes_elsewhere_delays_no_live_query(
    dsn: str, postgres: str
) -> None:
    """It stays open, in this database or in another one, during the whole test."""

    async def latencies() -> list[float]:
        kept = []
        async with feeding(dsn) as feed, watching(dsn, feed) as watcher:
            for many in range(len(watcher.copy.rows) + 1, len(watcher.copy.rows) + 16):
                began = time.monotonic()
                await deferToThread(execute, dsn, INSERT)
                await has_rows(watcher, many)
                kept.append(time.monotonic() - began)
        return sorted(kept)

    alone = await latencies()
    other, foreign = psycopg2.connect(dsn), psycopg2.connect(postgres)
    try:
        with other.cursor() as rows, foreign.cursor() as elsewhere:
            rows.execute("INSERT INTO untracked VALUES (1)")
            elsewhere.execute("SELECT pg_current_xact_id()")
            beside = await latencies()
    finally:
        other.close()
        foreign.close()
    assert beside[7] < 5 * alone[7] + 0.05
    assert beside[-1] < 5
