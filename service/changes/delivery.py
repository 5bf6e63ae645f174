"""
Delivery: a tick on its way to whoever publishes it.

However long that takes, the session of the leader shows signs of life: else its lead would be taken
for one that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from service.changes.log import LogRow, Tracked, tracked_txn
from service.changes.net import Change, net_changes
from service.changes.ticks import Tick, TickPage, page_txn, pages_txn
from service.changes.topics import AllRights
from service.db.connection import PgConnection
from service.db.thread import in_thread

Publish = Callable[[Sequence[Change], Awaitable[None], AllRights], Awaitable[None]]
"""
Called with changes, with what is to be awaited before any of them is published, and with the rights
on some of their relations, by number, as they are since the changes were read.
"""
Result = TypeVar("Result")

FEW = 50
"""Rows that are not worth a thread: 20 µs each."""
PULSE = 1.0
"""Seconds of publishing after which the session shows a sign of life."""


class CannotPublish(Exception):
    """There is no router that answers, and another process may have one."""

    def __init__(self) -> None:
        super().__init__("there is no router to publish by, or it does not answer")


@dataclass
class FeedCounters:
    """
    What has happened so far.

    Args:
        ticks: Made.
        changes: Published; those again that a predecessor may have published.
        takeovers: How often it began to lead.
        failures: Sessions that ended in an error.
        lag: Seconds from the log to the end of publishing, of the newest tick.
    """

    ticks: int = 0
    changes: int = 0
    takeovers: int = 0
    failures: int = 0
    lag: float = 0.0


class Delivery:
    """
    Args:
        reactor: For pauses, and to come back from threads.
        publish: Publishes changes of whole transactions.
        able: Whether it could now.
        lease: Seconds for which it may be unable.
        most: Rows of the log above which a transaction is a reset.
        counters: Count what was published.

    Attributes:
        tracked: What is tracked, by its number in the log.
    """

    def __init__(
        self,
        reactor: Any,
        publish: Publish,
        able: Callable[[], bool],
        lease: float,
        most: int,
        counters: FeedCounters,
    ) -> None:
        self._reactor = reactor
        self._publish = publish
        self._able = able
        self._lease = lease
        self._most = most
        self._counters = counters
        self.tracked: Mapping[int, Tracked] = {}

    async def deliver(
        self,
        connection: PgConnection,
        tick: Tick,
        rows: list[LogRow] | None,
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """
        Publish a tick; done when all of it is.

        Args:
            connection: Of the leader.
            tick: The newest one.
            rows: Those that were read with it; None to read it page by page.
            durable: Fires when the tick is.
            rights: On relations of those rows, looked up since these were read.

        Raises:
            CannotPublish: For as long as the lease there was no way to.
        """
        before = 0
        try:
            if rows is not None:
                await self._rows(connection, tick, rows, before, durable, rights)
                return
            await durable
        finally:
            # What failed meanwhile is what is raised.
            durable.addErrback(lambda _: None)
        pages: list[TickPage] = await self._in_thread(pages_txn, connection, tick, self._most)
        while pages:
            for page in pages:
                rows = await self._in_thread(page_txn, connection, page)
                await self._rows(connection, tick, rows, before, durable, {})
                before += len(rows)
            pages = await self._in_thread(pages_txn, connection, tick, self._most, pages[-1].last)

    async def _rows(
        self,
        connection: PgConnection,
        tick: Tick,
        rows: list[LogRow],
        before: int,
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """Publish the net changes of rows, of a tick with so many before them."""
        changes: list[Change]
        if len(rows) <= FEW and self._known(rows):
            changes = list(net_changes(rows, self.tracked, tick, before))
        else:
            changes = await self._in_thread(self._net_txn, connection, tick, rows, before)
        if not changes:
            await durable
        else:
            await self._published(connection, changes, durable, rights)
            self._counters.changes += len(changes)
        if rows:
            at = datetime.fromisoformat(rows[-1].at).timestamp()
            self._counters.lag = round(max(0.0, time.time() - at), 4)

    def _net_txn(
        self, connection: PgConnection, tick: Tick, rows: list[LogRow], before: int
    ) -> list[Change]:
        if not self._known(rows):
            self.tracked = tracked_txn(connection)
        return list(net_changes(rows, self.tracked, tick, before))

    def _known(self, rows: list[LogRow]) -> bool:
        # What a table is tracked by may be another since; each such change says so in the log.
        return all(row.op != "R" and row.relation in self.tracked for row in rows)

    async def _published(
        self,
        connection: PgConnection,
        changes: list[Change],
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """Publish, however long it takes: the session shows signs of life meanwhile."""
        publishing = Deferred.fromCoroutine(_awaited(self._publish(changes, durable, rights)))
        since, broken = self._reactor.seconds(), list[Failure]()

        async def beat() -> None:
            nonlocal since
            await self._in_thread(connection.ask, "SELECT 1")
            now = self._reactor.seconds()
            since = now if self._able() else since
            if now > since + self._lease:
                raise CannotPublish

        def give_up(why: Failure) -> None:
            broken.append(why)
            publishing.cancel()

        pulse = LoopingCall(lambda: Deferred.fromCoroutine(beat()))
        pulse.clock = self._reactor
        beating = pulse.start(PULSE, now=False).addErrback(give_up)
        try:
            await publishing
        except CancelledError:
            if broken:
                broken[0].raiseException()
            raise
        finally:
            if pulse.running:  # else it has failed, and this runs within its end
                pulse.stop()
                await beating  # a thread may be at it

    def _in_thread(self, function: Callable[..., Result], *args: Any) -> Deferred[Result]:
        return in_thread(self._reactor, "pg-feed", function, *args)


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
