"""
Many live queries while the services or the router fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twisted.internet import reactor

from tests.amounts import amount
from tests.conftest import execute
from tests.deferreds import pause
from tests.faults.deployment import ITEMS, PATIENCE, Deployment
from tests.faults.listeners import Watcher

SESSIONS, EACH, SPAN = 20, amount(10, 50), 5
"""Number of clients, of live queries per client, and of rows per live query."""

MISSED = f"""
UPDATE items SET n = n + 1 WHERE id % 7 = 0;
DELETE FROM items WHERE id % 11 = 0;
INSERT INTO items SELECT i, 0 FROM generate_series(1, {ITEMS}) i ON CONFLICT DO NOTHING;
UPDATE items SET n = n + 2 WHERE id % 13 = 0;
DELETE FROM items WHERE id % 17 = 0;
"""


@dataclass(frozen=True)
class CrowdReport:
    """
    The result of `crowd`.

    Args:
        first: Seconds until each live query had its first rows.
        back: Seconds from when all processes were ready again until each live query was up to date.
        resets: Number of resets, in which a live query receives all rows again.
        mismatches: Number of messages whose checksum did not match the client's rows.
        errors: Errors of the live queries that have ended.
    """

    first: float
    back: float
    resets: int
    mismatches: int
    errors: list[str]


async def crowd(deployment: Deployment, strike: Callable[[], Awaitable[None]]) -> CrowdReport:
    """Watch many queries, run `strike`, write rows, and wait until each query is up to date."""
    execute(deployment.dsn, "UPDATE items SET n = 0")
    began = reactor.seconds()
    watchers = [Watcher(deployment, _queries(session)) for session in range(SESSIONS)]
    try:
        for watcher in watchers:
            for live in watcher.live:
                await live.ready()
        first = reactor.seconds() - began
        await strike()
        execute(deployment.dsn, MISSED)
        await deployment.wait_until_ready()
        began = reactor.seconds()
        rows = {key: n for key, n in execute(deployment.dsn, "SELECT id, n FROM items")}
        while not all(_is_current(watcher, rows) for watcher in watchers):
            assert reactor.seconds() < began + PATIENCE, (
                f"some stay behind\n{deployment.log_tails()}"
            )
            await pause(0.1)
        back = reactor.seconds() - began
    finally:
        for watcher in watchers:
            await watcher.client.close()
    every = [live for watcher in watchers for live in watcher.live]
    return CrowdReport(
        first,
        back,
        sum(count for watcher in watchers for count in watcher.resets.values()),
        sum(live.mismatches for live in every),
        [str(live.error) for live in every if live.error is not None],
    )


def _queries(session: int) -> list[tuple[str, dict[str, object]]]:
    """Return the live queries of a session; no two sessions share a query."""
    starts = range(1 + session * EACH, 1 + (session + 1) * EACH)
    return [("items", {"where": {"id": {"between": [n, n + SPAN - 1]}}}) for n in starts]


def _is_current(watcher: Watcher, rows: dict[object, object]) -> bool:
    """Return whether the rows of each live query of a client are those of the table."""
    for live in watcher.live:
        least, most = live.query["where"]["id"]["between"]
        held = {row["id"]: row["n"] for row in live.rows}
        if held != {n: rows[n] for n in range(least, most + 1) if n in rows}:
            return False
    return True
