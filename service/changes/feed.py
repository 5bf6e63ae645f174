"""
The feed: each committed change, once, in order, to whoever publishes it.

Every process has one. One of them leads: it reads the log tick by tick, and has each published
before it makes the next, so a successor has one tick to publish again. The others know when there
is something new.

While changes come, the leader looks every few milliseconds and writers need not tell; when none
come, it sleeps until one does (schema/changes.py: ASLEEP). A look every second is for what no
notification could tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from schema.changes import TICKS
from schema.triggers import CHANNEL
from service.changes.delivery import Delivery, FeedCounters, Publish
from service.changes.epochs import Epoch, OnStandby, begin_txn
from service.changes.leader import (
    LEASE,
    Duty,
    duty_txn,
    fall_asleep_txn,
    prepare_txn,
    writers_txn,
)
from service.changes.log import tracked_txn
from service.changes.ticks import Made, Tick, finish_txn, last_txn, make_txn
from service.changes.topics import NOBODY, AllRights, Heard
from service.changes.upkeep import Upkeep
from service.db.connection import PgConnection
from service.db.guard import GUARD
from service.db.listener import Listener
from service.db.session_settings import Dsn, SessionSettings, open_session
from service.db.thread import in_thread

Result = TypeVar("Result")

BUSY, AWAKE = 0.002, 0.005
"""Seconds from a look that found something to the next one, and after one that did not."""
LOOKS = 4
"""Looks that find nothing before the leader falls asleep."""
DROWSY = 0.01
"""Seconds between two looks while writers are waited for that have not seen it fall asleep."""
TRY = 0.2
"""Seconds between two tries of a follower at the lead."""
FALLBACK = 1.0
"""Seconds between two looks of a leader that sleeps; within the lease."""
POLL = 0.02
"""Seconds between two looks where writers cannot tell."""
REST = 10.0
"""Seconds between two looks for a table that is tracked."""
PAUSES = (0.1, 5.0)
"""Seconds until a failed session is replaced: at first, and at most."""
GOODBYE = 3.0
"""Seconds that what is being published gets when the service stops."""
TAKEN = "23505"
"""SQLSTATE of a tick that another one has made, where no lock of a session keeps it from that."""
STATEMENT_TIMEOUT = 60.0
"""Seconds that a statement of the feed may take: the first after hours reads much of the log."""


@dataclass(frozen=True)
class FeedSettings:
    """
    What can be set.

    Args:
        most: Rows of the log above which a transaction is published as a reset.
        poll: Seconds between two looks, if writers are never to notify; None lets them.
        fallback: Seconds between two looks of a leader that sleeps.
        lease: Seconds without a statement after which another one's lead is ended.
        keep: Seconds for which the log is kept.
        keep_bytes: Bytes of its rows that are kept, roughly.
    """

    most: int = 10_000
    poll: float | None = None
    fallback: float = FALLBACK
    lease: float = LEASE
    keep: float = 86_400.0
    keep_bytes: int = 2 << 30


class Feed(Service):
    """
    Reads the log for as long as it runs.

    Args:
        reactor: For pauses, and to come back from threads.
        dsn: Of the database, past any pooler; asked at every connect.
        listener: Hears writers, and the leader.
        publish: Publishes changes, of whole transactions, but none before they are durable; they count
            as published when it is done. If it fails, another one may lead.
        settings: Those of the feed.
        able: Whether it could be published now: else another one leads, if there is one.
        heard: Of what, and by whom, changes are likely to be heard.

    Attributes:
        epoch: Of the lead; None in others.
        problem: Why changes are not read, if they should be.
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
        able: Callable[[], bool] = lambda: True,
        heard: Callable[[], Heard] = lambda: NOBODY,
    ) -> None:
        self._reactor = reactor
        self._dsn: Dsn = dsn if callable(dsn) else lambda: dsn
        self._listener = listener
        self._settings = settings
        self._able = able
        self._heard_by = heard
        self._callbacks: list[Callable[[], None]] = []
        self._running: Deferred[None] | None = None
        self._resting: Deferred[None] | None = None
        self._roused = False
        self._failures = 0
        # The newest tick that is known, the newest made here, and that of which all is published.
        self._known = self._made = self._published = 0
        self.counters = FeedCounters()
        self._delivery = Delivery(
            reactor, publish, able, settings.lease, settings.most, self.counters
        )
        self._sleep = Sleep()
        self._upkeep = Upkeep(settings.keep, settings.keep_bytes)
        self._duty: Duty | None = None
        self.epoch: Epoch | None = None
        self.problem: str | None = "not started"
        listener.subscribe(CHANNEL, lambda _: self._rouse(), self._rouse)
        listener.subscribe(TICKS, self._heard, self._rouse)

    @property
    def leading(self) -> bool:
        """Whether this process publishes."""
        return self.epoch is not None

    @property
    def asleep(self) -> bool:
        """Whether it leads, and writers notify it of what it does not look for."""
        return self.leading and self._sleep.deep and not self._sleep.awaited

    @property
    def well(self) -> bool:
        """Whether changes are read, by this process or another; also where none are tracked."""
        return self.problem is None

    @property
    def polling(self) -> bool:
        """Whether looks are all there is: writers do not tell, or cannot be heard."""
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
        Call a function whenever there may be something new in the log.

        Returns:
            What ends that.
        """
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def look(self) -> None:
        """Look now, for DDL as well: the catalog has changed."""
        self._upkeep.looking = True
        self._rouse()

    def startService(self) -> None:
        """Begin to read, as soon as the database is there."""
        super().startService()
        self._running = Context().run(Deferred.fromCoroutine, self._run())

    def stopService(self) -> Deferred[None] | None:
        """Stop, once what is being published is; that gets some seconds."""
        super().stopService()
        running, self._running = self._running, None
        if running is None:
            return None
        self._rouse()
        late = self._reactor.callLater(GOODBYE, running.cancel)

        def stopped(_: object) -> None:
            if late.active():
                late.cancel()

        return running.addBoth(stopped)

    async def _run(self) -> None:
        while self.running:
            connection = None
            try:
                connection = await self._open()
                await self._serve(connection)
                self._failures = 0
            except CancelledError as error:
                if not self.running:
                    return
                self._failed(error)
            except Exception as error:
                if getattr(error, "pgcode", None) != TAKEN:
                    self._failed(error)
            finally:
                self.epoch, self._duty = None, None
                if connection is not None:
                    self._close(connection)
            if self.running:
                first, most = PAUSES
                await self._rest(min(most, first * 2 ** min(self._failures, 10)))

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

    async def _open(self) -> PgConnection:
        return await self._in_thread(self._connect)

    def _connect(self) -> PgConnection:
        """Open a session, in a thread: names are resolved there too."""
        connection = open_session(self._dsn(), SessionSettings(STATEMENT_TIMEOUT))
        try:
            prepare_txn(connection)
            if not self.running:
                raise CancelledError
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self, connection: PgConnection) -> None:
        if connection.waiting is not None:  # a thread is at it, and would wait on
            GUARD.give_up(connection)
        in_thread(self._reactor, "pg-feed", connection.close).addErrback(lambda _: None)

    async def _serve(self, connection: PgConnection) -> None:
        """Do what there is to do, with one session."""
        seen = 0
        while self.running:
            lease = self._settings.lease if self._able() else None
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
                last = await self._in_thread(last_txn, connection)
                if last is not None and last.number != seen:
                    self._known = max(self._known, last.number)
                    seen = last.number
                    self._call()
            await self._rest(TRY if duty is Duty.FOLLOW else REST)

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
        # Whoever made it may not have come to its end.
        if last.rows and self._published < last.number:
            await self._delivery.deliver(connection, last, None, succeed(None), {})
        self._published = last.number
        sleep = self._sleep = Sleep()
        while self.running:
            looked = self._reactor.seconds()
            if self._upkeep.due(self._reactor.seconds()):
                await self._in_thread(self._upkeep.run_txn, connection, self._reactor.seconds())
            found, rights, durable = await self._make(connection, last, epoch.number, sleep.deep)
            if found is not None:
                last, rows = found
                self._upkeep.changed()
                self._call()
                sleep = self._sleep = Sleep()
                await self._delivery.deliver(
                    connection, last, rows, durable.addCallback(self._is_made, last), rights
                )
                self._published = last.number
                pause = max(0.0, looked + BUSY - self._reactor.seconds())
            else:
                if connection.pooled and last.rows:
                    last = await self._in_thread(finish_txn, connection, last, epoch.number)
                    self._known = self._made = last.number
                pause = await self._doze(connection, sleep)
            self._failures = 0
            await self._rest(pause)
        if last.rows:  # all of it was published: nobody has to again
            await self._in_thread(finish_txn, connection, last, epoch.number)

    async def _make(
        self, connection: PgConnection, last: Tick, epoch: int, awaken: bool
    ) -> tuple[Made | None, AllRights, Deferred[None]]:
        """
        Return the next tick as soon as it is read, and what fires once it is durable.

        Between them are the rights on what is likely to be heard of it. They are looked up by the
        same thread and session: another one would have to be woken for that.
        """
        there: Deferred[tuple[Made | None, AllRights]] = Deferred()

        def failed(why: Failure) -> Failure | None:
            if there.called:
                return why
            there.errback(why)
            return None

        # The thread goes on to the disk without waiting for this one, which has other things to do.
        def tell(*found: Any) -> None:
            self._reactor.callFromThread(there.callback, found)

        most, look_up = self._settings.most, self._heard_by().rights_txn
        made = last, epoch, most, TICKS, awaken, look_up, tell
        durable = self._in_thread(make_txn, connection, *made)
        durable.addErrback(failed)
        try:
            return *await there, durable
        except CancelledError:
            durable.addErrback(lambda _: None)
            raise

    def _is_made(self, _: None, tick: Tick) -> None:
        self._known = self._made = tick.number
        self.counters.ticks += 1

    async def _doze(self, connection: PgConnection, sleep: Sleep) -> float:
        """Return how long to rest after a look that found nothing."""
        sleep.looks += 1
        if sleep.awaited:
            sleep.awaited &= await self._in_thread(writers_txn, connection)
            return DROWSY
        if self.polling:
            return POLL if self._settings.poll is None else self._settings.poll
        if sleep.deep:
            return self._settings.fallback
        if sleep.looks < LOOKS:
            return AWAKE
        awaited = await self._in_thread(fall_asleep_txn, connection)
        if awaited is None:
            return AWAKE
        sleep.deep, sleep.awaited = True, awaited
        return 0.0

    def _heard(self, _: str) -> None:
        if not self.leading:  # who knows its own ticks
            self._call()

    def _call(self) -> None:
        for callback in list(self._callbacks):
            try:
                callback()
            except Exception:
                self.log.failure("a subscriber of the feed failed")

    async def _rest(self, seconds: float) -> None:
        """Wait for so long, or until there is something to look for."""
        if not self._roused and seconds > 0:
            resting = self._resting = Deferred()
            timer = self._reactor.callLater(seconds, _fire, resting)
            try:
                await resting
            finally:
                self._resting = None
                if timer.active():
                    timer.cancel()
        self._roused = False

    def _rouse(self) -> None:
        self._roused = True
        if self._resting is not None:
            _fire(self._resting)

    def _in_thread(self, function: Callable[..., Result], *args: Any) -> Deferred[Result]:
        return in_thread(self._reactor, "pg-feed", function, *args)


class Sleep:
    """
    How far the leader has fallen asleep.

    Attributes:
        looks: That have found nothing.
        deep: Whether writers notify.
        awaited: Transactions that may have looked before they had to.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.deep = False
        self.awaited: set[str] = set()


def _fire(deferred: Deferred[None]) -> None:
    if not deferred.called:
        deferred.callback(None)
