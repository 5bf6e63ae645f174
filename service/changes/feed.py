"""
The feed: reads the change log and passes each committed change, once and in order, to the publisher.

Every service process has a feed, and one of them is the leader. The leader reads the log tick by tick. It
makes the next tick only after all changes of the one before were published, so a new leader has to publish
at most one tick again. The feeds of the other processes only notice that there are new changes.

While changes arrive, the leader polls the log every few milliseconds and writers send no NOTIFY, which would
serialize their commits (figures at ASLEEP in schema/triggers.py). When no changes arrive, the leader falls
asleep, and the next writer wakes it by NOTIFY. A sleeping leader still polls once a second, because a
notification can be lost.

Publishing may take longer than the lease. Meanwhile the leader's session runs a statement every `PULSE` seconds:
otherwise a follower would take the leader for a process that hangs, and end its session.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from schema.changes import TICKS
from schema.triggers import CHANNEL
from service.changes.leader import (
    LEASE,
    Duty,
    Upkeep,
    duty_txn,
    fall_asleep_txn,
    follow_txn,
    prepare_txn,
    writers_txn,
)
from service.changes.log import (
    LogRow,
    NewTick,
    Tick,
    TickPage,
    TrackedTable,
    finish_txn,
    last_txn,
    make_txn,
    page_txn,
    pages_txn,
    tracked_txn,
)
from service.changes.net import Change, net_changes
from service.changes.positions import Epoch, OnStandby, begin_txn
from service.changes.topics import NO_SUBSCRIBERS, AllRights, SubscribedRelations
from service.db.connection import GUARD, PgConnection
from service.db.database import deferred
from service.db.listener import Listener
from service.db.session_settings import Dsn, Sessions, SessionSettings
from service.waiting import Pause, cancel_timer, in_thread

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
BUSY, AWAKE = 0.002, 0.005
"""Seconds from the start of a poll that found changes to the next poll, and after one that found none."""
POLLS = 4
"""Number of polls without changes after which the leader falls asleep."""
FALLING_ASLEEP = 0.01
"""Seconds between two polls while transactions are open that began before the leader fell asleep."""
LEAD_RETRY = 0.2
"""Seconds between two attempts of a follower to take the lead."""
FOLLOW_RETRY = 0.02
"""Seconds between two attempts of a follower to be notified of ticks, which fail while a tick is committed."""
FALLBACK = 1.0
"""Seconds between two polls of a sleeping leader; must be shorter than the lease."""
POLL = 0.02
"""Seconds between two polls if writers do not notify, or cannot be heard."""
UNTRACKED_POLL = 10.0
"""Seconds between two checks whether any table is tracked."""
PAUSES = (0.1, 5.0)
"""Seconds until a failed session is replaced: the first time, and at most."""
STOP_TIMEOUT = 3.0
"""Seconds that publishing may still take after the service was asked to stop."""
TICK_EXISTS = "23505"
"""SQLSTATE unique_violation: behind a pooler, without the leader's lock, another feed has made the tick."""
STATEMENT_TIMEOUT = 60.0
"""Timeout in seconds of the feed's statements: the first one after hours may read much of the log."""


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


@dataclass(frozen=True)
class FeedSettings:
    """
    Settings of the feed.

    Args:
        most: Number of log rows above which a transaction is published as a reset.
        poll: Seconds between two polls, if writers must never notify; None lets them notify.
        fallback: Seconds between two polls of a sleeping leader.
        lease: Seconds without a statement after which a leader's session is terminated.
        keep: Seconds for which log rows are kept.
        keep_bytes: Approximate maximum size of the log's rows in bytes.
    """

    most: int = 10_000
    poll: float | None = None
    fallback: float = FALLBACK
    lease: float = LEASE
    keep: float = 86_400.0
    keep_bytes: int = 2 << 30


class Delivery:
    """
    The way of ticks to the publisher.

    Args:
        reactor: Runs timers, and receives results from threads.
        publish: Publishes the changes of complete transactions.
        can_publish: Returns whether events could be published now.
        settings: Settings of the feed: the lead is given up if publishing is impossible for its lease.
        counters: Counts what was published.

    Attributes:
        tracked: The tracked tables, by their numbers in the log.
    """

    def __init__(
        self,
        reactor: Any,
        publish: Publish,
        can_publish: Callable[[], bool],
        settings: FeedSettings,
        counters: FeedCounters,
    ) -> None:
        self._reactor = reactor
        self._publish = publish
        self._can_publish = can_publish
        self._settings = settings
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
        pages: list[TickPage] = await self.in_thread(
            pages_txn, connection, tick, self._settings.most
        )
        while pages:
            for page in pages:
                rows = await self.in_thread(page_txn, connection, page)
                await self._rows(connection, tick, rows, before, durable, {})
                before += len(rows)
            pages = await self.in_thread(
                pages_txn, connection, tick, self._settings.most, pages[-1].last
            )

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
            if now > since + self._settings.lease:
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


class Feed(Service):
    """
    The service that leads or follows for as long as it runs.

    Args:
        reactor: Runs timers, and receives results from threads.
        dsn: Address of the database, not through a pooler; a function is called at each connect.
        listener: Receives the notifications of writers and of the leader.
        publish: Publishes the changes of complete transactions, but none before they are durable. They
            count as published when it returns. If it fails, another feed may take the lead.
        settings: Settings of the feed.
        can_publish: Returns whether events could be published now. If not, this feed leaves the lead to another.
        subscribed: Returns the relations and roles for which events are likely to have subscribers.
        process: Id of this process, by which `why` finds out whether the leader is at its router.

    Attributes:
        epoch: Epoch in which this feed leads; None in a follower.
        problem: Why changes are not read, although they should be.
    """

    log = Logger()
    name = "feed"

    def __init__(
        self,
        reactor: Any,
        dsn: str | Dsn,
        listener: Listener,
        publish: Publish,
        settings: FeedSettings = FeedSettings(),
        can_publish: Callable[[], bool] = lambda: True,
        subscribed: Callable[[], SubscribedRelations] = lambda: NO_SUBSCRIBERS,
        process: str = "",
    ) -> None:
        self._reactor = reactor
        self._sessions = Sessions(dsn, SessionSettings(STATEMENT_TIMEOUT))
        self._listener = listener
        self._settings = settings
        self._can_publish = can_publish
        self._subscribed = subscribed
        self._process = process
        self._callbacks: list[Callable[[], None]] = []
        self._running: Deferred[None] | None = None
        self._pause = Pause(reactor)
        self._woken = False
        self._failures = 0
        # Numbers of the newest known tick, the newest tick made here, and the newest published completely.
        self._known = self._made = self._published = 0
        self.counters = FeedCounters()
        self._delivery = Delivery(reactor, publish, can_publish, settings, self.counters)
        self._in_thread = self._delivery.in_thread
        self._sleep = Sleep()
        self._upkeep = Upkeep(settings.keep, settings.keep_bytes)
        self._duty: Duty | None = None
        self.epoch: Epoch | None = None
        self.problem: str | None = "not started"
        listener.subscribe(CHANNEL, lambda _: self._wake(), self._wake)
        listener.subscribe(TICKS, self._tick_made, self._wake)

    @property
    def leading(self) -> bool:
        """Whether this process is the leader, which publishes."""
        return self.epoch is not None

    @property
    def asleep(self) -> bool:
        """Whether this feed leads and sleeps, so that writers notify it."""
        return self.leading and self._sleep.deep and not self._sleep.awaited

    @property
    def well(self) -> bool:
        """Whether changes are read, by this process or another; True if no table is tracked."""
        return self.problem is None

    @property
    def polling(self) -> bool:
        """Whether the feed relies on polling: writers do not notify, or cannot be heard."""
        return (
            self._settings.poll is not None
            or not self._listener.listening
            or not all(each.wake for each in self._delivery.tracked.values())
        )

    def stats(self) -> Mapping[str, Any]:
        """Return the figures for `stats`."""
        duty = "away" if self._duty is None else self._duty.value
        return {
            "part": duty,
            "tick": self._known,
            "polling": self.polling,
            "identified": self.epoch is None or self.epoch.identified,
            "pruned": self._upkeep.pruned,
            "outdated": self._upkeep.outdated,
            **asdict(self.counters),
        }

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """
        Register a function that is called whenever the log may have new changes.

        Returns:
            A function that ends the subscription.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def poll_now(self) -> None:
        """Poll now, and check for DDL too: the catalog has changed."""
        self._upkeep.looking = True
        self._wake()

    def startService(self) -> None:
        """Start to read, as soon as the database can be reached."""
        super().startService()
        self._running = Context().run(Deferred.fromCoroutine, self._run())

    def stopService(self) -> Deferred[None] | None:
        """Stop when the current tick was published, after `STOP_TIMEOUT` seconds at most."""
        super().stopService()
        running, self._running = self._running, None
        if running is None:
            return None
        self._wake()
        late = self._reactor.callLater(STOP_TIMEOUT, running.cancel)
        return running.addBoth(lambda _: cancel_timer(late))

    async def _run(self) -> None:
        while self.running:
            connection = None
            try:
                connection = await self._in_thread(self._connect)
                await self._serve(connection)
                self._failures = 0
            except CancelledError as error:
                if not self.running:
                    return
                self._failed(error)
            except Exception as error:
                # Not a failure if another feed has made the tick: that one leads.
                if getattr(error, "pgcode", None) != TICK_EXISTS:
                    self._failed(error)
            finally:
                self.epoch, self._duty = None, None
                if connection is not None:
                    self._close(connection)
            if self.running:
                first, most = PAUSES
                await self._wait(min(most, first * 2 ** min(self._failures, 10)))

    def _failed(self, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {lines[0] if lines else ''}"
        if isinstance(error, OnStandby):
            problem = lines[0]
        self.counters.failures += 1
        self._failures += 1
        if problem != self.problem:
            self.log.warn("changes are not read: {problem}", problem=problem)
        self.problem = problem

    def _connect(self) -> PgConnection:
        """Open a session; runs in a thread, because libpq resolves host names there and blocks."""
        connection = self._sessions.open()
        try:
            prepare_txn(connection, self._process)
            if not self.running:  # stopping: a cancelled `_run` could not close the session
                raise CancelledError
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self, connection: PgConnection) -> None:
        if connection.waiting is not None:  # a thread still waits for the server's answer
            GUARD.give_up(connection)
        in_thread(self._reactor, "pg-feed", connection.close).addErrback(lambda _: None)

    async def _serve(self, connection: PgConnection) -> None:
        """Try for the lead with one session, and follow or lead until the session ends."""
        seen, notified = 0, False
        while self.running and not await self._outdated(connection):
            lease = self._settings.lease if self._can_publish() else None
            duty = await self._in_thread(duty_txn, connection, lease, self._made)
            if duty is Duty.LEAD:
                await self._lead(connection)
                return
            barred = duty is Duty.BARRED
            if duty is not self._duty:
                say = self.log.warn if barred else self.log.info
                say("changes: {duty}", duty=duty.value)
            self._duty, self.problem, self._failures = duty, duty.value if barred else None, 0
            if duty is Duty.FOLLOW:
                notified = notified or await self._in_thread(follow_txn, connection)
                last = await self._in_thread(last_txn, connection)
                if last is not None and last.number != seen:
                    self._known = max(self._known, last.number)
                    seen = last.number
                    self._notify()
            retry = LEAD_RETRY if notified else FOLLOW_RETRY
            await self._wait(retry if duty is Duty.FOLLOW else UNTRACKED_POLL)

    async def _outdated(self, connection: PgConnection) -> bool:
        """Return whether the DSN has changed, and the session has to be replaced."""
        due = self._sessions.due(connection)
        return due and await self._in_thread(self._sessions.outdated, connection)

    async def _lead(self, connection: PgConnection) -> None:
        epoch, last = await self._in_thread(begin_txn, connection, self._known)
        self._delivery.tracked = await self._in_thread(tracked_txn, connection)
        self.epoch, self._duty, self.problem = epoch, Duty.LEAD, None
        self.counters.takeovers += 1
        self.log.info("changes: leading, epoch {epoch}", epoch=epoch.number)
        if not epoch.identified:
            self.log.warn(
                "changes: the server does not say which cluster it is, so a dump that is restored"
                " may go unnoticed → GRANT EXECUTE ON FUNCTION pg_control_system() TO {role}",
                role=connection.info.user,
            )
        self._known = self._made = last.number
        # The leader that made this tick may have ended before all of it was published.
        if last.rows and self._published < last.number:
            await self._delivery.deliver(connection, last, None, succeed(None), {})
        self._published = last.number
        sleep = self._sleep = Sleep()
        while self.running and not await self._outdated(connection):
            looked = self._reactor.seconds()
            if self._upkeep.due(self._reactor.seconds()):
                await self._in_thread(self._upkeep.run_txn, connection, self._reactor.seconds())
            found, rights, durable = await self._make(connection, last, epoch.number, sleep.deep)
            if found is not None:
                last, rows = found
                self._upkeep.changed()
                self._notify()
                sleep = self._sleep = Sleep()
                await self._delivery.deliver(
                    connection, last, rows, durable.addCallback(self._durable, last), rights
                )
                self._published = last.number
                pause = max(0.0, looked + BUSY - self._reactor.seconds())
            else:
                if connection.pooled and last.rows:
                    # Else other feeds would take the tick for one that was never published (OVERDUE).
                    last = await self._in_thread(finish_txn, connection, last, epoch.number)
                    self._known = self._made = last.number
                pause = await self._fall_asleep(connection, sleep)
            self._failures = 0
            await self._wait(pause)
        if last.rows:  # all of it was published, which spares the next leader to publish it again
            await self._in_thread(finish_txn, connection, last, epoch.number)

    async def _make(
        self, connection: PgConnection, last: Tick, epoch: int, awaken: bool
    ) -> tuple[NewTick | None, AllRights, Deferred[None]]:
        """
        Return the next tick as soon as it was read, rights, and a Deferred that fires when it is durable.

        The rights are those on the relations that are likely to have subscribers. The same thread and
        session look them up, which spares waking another thread, and then the reactor once more.
        """
        handed_over: Deferred[tuple[NewTick | None, AllRights]] = Deferred()

        def failed(why: Failure) -> Failure | None:
            if handed_over.called:
                return why
            handed_over.errback(why)
            return None

        # The thread goes on to COMMIT without waiting for the reactor, which may be busy.
        def hand_over(*found: Any) -> None:
            self._reactor.callFromThread(handed_over.callback, found)

        most, look_up = self._settings.most, self._subscribed().rights_txn
        made = last, epoch, most, TICKS, awaken, look_up, hand_over
        durable = self._in_thread(make_txn, connection, *made)
        durable.addErrback(failed)
        try:
            return *await handed_over, durable
        except CancelledError:
            durable.addErrback(lambda _: None)
            raise

    def _durable(self, _: None, tick: Tick) -> None:
        self._known = self._made = tick.number
        self.counters.ticks += 1

    async def _fall_asleep(self, connection: PgConnection, sleep: Sleep) -> float:
        """Fall asleep step by step; return the seconds to wait after a poll that found no changes."""
        sleep.looks += 1
        if sleep.awaited:
            sleep.awaited &= await self._in_thread(writers_txn, connection)
            return FALLING_ASLEEP
        if self.polling:
            return POLL if self._settings.poll is None else self._settings.poll
        if sleep.deep:
            return self._settings.fallback
        if sleep.looks < POLLS:
            return AWAKE
        awaited = await self._in_thread(fall_asleep_txn, connection)
        if awaited is None:
            return AWAKE
        sleep.deep, sleep.awaited = True, awaited
        return 0.0

    def _tick_made(self, _: str) -> None:
        if not self.leading:  # the leader knows of its own ticks before they are notified
            self._notify()

    def _notify(self) -> None:
        for callback in list(self._callbacks):
            try:
                callback()
            except Exception:
                self.log.failure("a subscriber of the feed failed")

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until a notification arrives."""
        if not self._woken and seconds > 0:
            await self._pause.wait(seconds)
        self._woken = False

    def _wake(self) -> None:
        self._woken = True
        self._pause.end()


class Sleep:
    """
    How far the leader has fallen asleep.

    Attributes:
        looks: Number of polls without changes.
        deep: Whether writers that check from now on notify.
        awaited: Open transactions that may have checked before, and so will not notify.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.deep = False
        self.awaited: set[str] = set()
