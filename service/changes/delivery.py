"""
Delivery: passes the changes of a tick to the publisher.

Publishing may take longer than the lease. Meanwhile the leader's session runs a statement every `PULSE` seconds:
otherwise a follower would take the leader for a process that hangs, and end its session.
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

from service.changes.log import LogRow, TrackedTable, tracked_txn
from service.changes.net import Change, net_changes
from service.changes.ticks import Tick, TickPage, page_txn, pages_txn
from service.changes.topics import AllRights
from service.db.connection import PgConnection
from service.db.database import deferred
from service.waiting import in_thread

Publish = Callable[[Sequence[Change], Awaitable[None], AllRights], Awaitable[None]]
"""
Called with changes, with an awaitable to be awaited before any of them is published, and with the rights
on some of their relations, by relation number, looked up after the changes were read.
"""
Result = TypeVar("Result")

FEW = 50
"""Number of rows, at 20 µs each, up to which the reactor makes the changes itself, without a thread."""
PULSE = 1.0
"""Seconds between two statements that keep the leader's session alive while it publishes."""


class CannotPublish(Exception):
    """No router answers, but another process may have one that does."""

    def __init__(self) -> None:
        super().__init__("there is no router to publish by, or it does not answer")


@dataclass
class FeedCounters:
    """
    Counters of a feed since it was started.

    Args:
        ticks: Number of ticks made.
        changes: Number of changes published, including those that the leader before may have published.
        takeovers: Number of times that this feed took the lead.
        failures: Number of sessions that ended in an error.
        lag: Seconds from the last log row of the newest tick to the end of its publishing.
    """

    ticks: int = 0
    changes: int = 0
    takeovers: int = 0
    failures: int = 0
    lag: float = 0.0


class Delivery:
    """
    The way of ticks to the publisher.

    Args:
        reactor: Runs timers, and receives results from threads.
        publish: Publishes the changes of complete transactions.
        can_publish: Returns whether events could be published now.
        lease: Seconds for which publishing may be impossible before the lead is given up.
        most: Number of log rows above which a transaction is a reset.
        counters: Counts what was published.

    Attributes:
        tracked: The tracked tables, by their numbers in the log.
    """

    def __init__(
        self,
        reactor: Any,
        publish: Publish,
        can_publish: Callable[[], bool],
        lease: float,
        most: int,
        counters: FeedCounters,
    ) -> None:
        self._reactor = reactor
        self._publish = publish
        self._can_publish = can_publish
        self._lease = lease
        self._most = most
        self._counters = counters
        self.tracked: Mapping[int, TrackedTable] = {}

    async def deliver(
        self,
        connection: PgConnection,
        tick: Tick,
        rows: list[LogRow] | None,
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """
        Publish a tick; return when all of it was published.

        Args:
            connection: The leader's session.
            tick: The newest tick.
            rows: Its rows; None to read them page by page.
            durable: Fires when the tick is durable.
            rights: Rights on relations of those rows, looked up after the rows were read.

        Raises:
            CannotPublish: No router answered for the time of the lease.
        """
        before = 0
        try:
            if rows is not None:
                await self._rows(connection, tick, rows, before, durable, rights)
                return
            await durable
        finally:
            # If publishing has failed, that error is raised, and one of the commit is dropped.
            durable.addErrback(lambda _: None)
        pages: list[TickPage] = await self.in_thread(pages_txn, connection, tick, self._most)
        while pages:
            for page in pages:
                rows = await self.in_thread(page_txn, connection, page)
                await self._rows(connection, tick, rows, before, durable, {})
                before += len(rows)
            pages = await self.in_thread(pages_txn, connection, tick, self._most, pages[-1].last)

    async def _rows(
        self,
        connection: PgConnection,
        tick: Tick,
        rows: list[LogRow],
        before: int,
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """Publish the net changes of rows of a tick; `before` is the number of its rows before these."""
        changes: list[Change]
        if len(rows) <= FEW and self._known(rows):
            changes = list(net_changes(rows, self.tracked, tick, before))
        else:
            changes = await self.in_thread(self._net_txn, connection, tick, rows, before)
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
        # Key, level or name of a tracked table may have changed: each such change logs a row "R".
        return all(row.op != "R" and row.relation in self.tracked for row in rows)

    async def _published(
        self,
        connection: PgConnection,
        changes: list[Change],
        durable: Deferred[None],
        rights: AllRights,
    ) -> None:
        """Publish changes, and keep the session alive meanwhile."""
        publishing = deferred(self._publish(changes, durable, rights))
        since, broken = self._reactor.seconds(), list[Failure]()

        async def beat() -> None:
            nonlocal since
            await self.in_thread(connection.ask, "SELECT 1")
            now = self._reactor.seconds()
            since = now if self._can_publish() else since
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
            # The service stops, and closes the session: a pulse that waits for a silent server is not awaited.
            pulse.stop()
            raise
        finally:
            # A pulse that has failed runs this code from its own errback, and cannot be awaited there.
            if pulse.running:
                pulse.stop()
                await beating  # a thread may still run its statement

    def in_thread(self, function: Callable[..., Result], *args: Any) -> Deferred[Result]:
        """Run a function on the leader's session, in a thread."""
        return in_thread(self._reactor, "pg-feed", function, *args)
