"""
Many live queries at once, whose services or router go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet import reactor

from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.heard import Watcher
from tests.faults.house import ITEMS, PATIENCE, House

SESSIONS, EACH, SPAN = 20, 50, 5
"""Clients, the live queries of each, and the rows of each of those."""

MISSED = f"""
UPDATE items SET n = n + 1 WHERE id % 7 = 0;
DELETE FROM items WHERE id % 11 = 0;
INSERT INTO items SELECT i, 0 FROM generate_series(1, {ITEMS}) i ON CONFLICT DO NOTHING;
UPDATE items SET n = n + 2 WHERE id % 13 = 0;
DELETE FROM items WHERE id % 17 = 0;
"""


@dataclass(frozen=True)
class Returned:
    """
    What came of a crowd.

    Args:
        first: Seconds until all had their first rows.
        back: Seconds from when all parts were there again until all had what they had missed.
        resets: How many were sent all rows anew.
        mismatches: How many had a checksum of other rows.
        errors: Of those that have ended.
    """

    first: float
    back: float
    resets: int
    mismatches: int
    errors: list[str]


async def crowd(house: House, strike: Callable[[], Awaitable[None]]) -> Returned:
    """Watch a thousand queries, do something to the house, write meanwhile, and wait for all."""
    execute(house.dsn, "UPDATE items SET n = 0")
    began = reactor.seconds()
    watchers = [Watcher(house, _queries(session)) for session in range(SESSIONS)]
    try:
        for watcher in watchers:
            for live in watcher.live:
                await live.ready()
        first = reactor.seconds() - began
        await strike()
        execute(house.dsn, MISSED)
        await house.whole()
        began = reactor.seconds()
        rows = {key: n for key, n in execute(house.dsn, "SELECT id, n FROM items")}
        while not all(_has(watcher, rows) for watcher in watchers):
            assert reactor.seconds() < began + PATIENCE, f"some stay behind\n{house.said()}"
            await pause(0.1)
        back = reactor.seconds() - began
    finally:
        for watcher in watchers:
            await watcher.client.close()
    every = [live for watcher in watchers for live in watcher.live]
    return Returned(
        first,
        back,
        sum(count for watcher in watchers for count in watcher.resets.values()),
        sum(live.mismatches for live in every),
        [str(live.error) for live in every if live.error is not None],
    )


def _queries(session: int) -> list[tuple[str, dict[str, object]]]:
    """Return the live queries of a session, none of which is another one's."""
    starts = range(1 + session * EACH, 1 + (session + 1) * EACH)
    return [("items", {"where": {"id": {"between": [n, n + SPAN - 1]}}}) for n in starts]


def _has(watcher: Watcher, rows: dict[object, object]) -> bool:
    """Return whether the copies of a client are what the table has."""
    for live in watcher.live:
        least, most = live.query["where"]["id"]["between"]
        held = {row["id"]: row["n"] for row in live.rows}
        if held != {n: rows[n] for n in range(least, most + 1) if n in rows}:
            return False
    return True
