"""
LISTEN: one session, watched by the reactor, for any number of channels.

PostgreSQL does not deliver notifications that are sent while the session is down. So a subscriber's
`missed` is called whenever listening to its channel begins, the first time or again, and the subscriber
then has to check for changes itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from service.db.connection import GUARD, PgConnection
from service.db.session_settings import Dsn, Outage, Sessions, SessionSettings
from service.sql.statement import quoted
from service.waiting import in_thread

PAUSES = (0.05, 1.0)
"""Seconds between two attempts to connect: first, and maximum. They delay the feed as well."""
# TCP keepalives are not enough: the kernel answers them even if the server process is stopped.
PULSE = 2.0
"""Seconds between two checks: of the DSN, and of the server by a query."""
PULSE_TIMEOUT = 2.0
"""Seconds that the server has to answer this query."""


@implementer(IReadDescriptor)
class WatchedConnection:
    """
    A connection as a reader of the reactor.

    The reactor watches a duplicate of the socket's descriptor, which is closed here. libpq closes its own
    when the server is gone, and the reactor would watch an invalid number, or soon another file.

    Args:
        connection: The connection, in autocommit.
        received: Called with the channel and the payload of each notification.
        lost: Called with the reason when the connection is lost.
    """

    def __init__(
        self,
        connection: PgConnection,
        received: Callable[[str, str], None],
        lost: Callable[[object], None],
    ) -> None:
        self.connection = connection
        self._received = received
        self._lost = lost
        self._descriptor = os.dup(connection.fileno())

    def fileno(self) -> int:
        """Return the descriptor for the reactor to watch."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the name for the log."""
        return "listener"

    def doRead(self) -> None:
        """Read and deliver notifications."""
        try:
            self.connection.poll()
        except psycopg2.Error as error:
            self._lost(error)
            return
        notifies, self.connection.notifies = self.connection.notifies, []
        for each in notifies:
            self._received(each.channel, each.payload)
        if self.connection.closed:
            self._lost("closed by the server")

    def connectionLost(self, reason: Failure) -> None:
        """Handle an error of the descriptor."""
        self._lost(reason)

    def close(self) -> None:
        """Close the connection, and the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        with suppress(psycopg2.Error):
            self.connection.close()


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """
    A subscription of one channel.

    Args:
        listener: The listener that it belongs to.
        channel: Name of the channel.
        received: Called with the payload of each notification.
        missed: Called whenever listening begins: notifications before that may have been missed.
    """

    listener: Listener
    channel: str
    received: Callable[[str], None]
    missed: Callable[[], None]

    def cancel(self) -> None:
        """End the subscription; its callbacks are not called any more."""
        self.listener.unsubscribe(self)


class Listener(Service):
    """
    Service that listens to all channels that have subscriptions.

    Args:
        reactor: Watches the connection, runs timers, and receives calls from threads.
        dsn: The DSN, not that of a pooler, or a function that is called at every connect.
        session: Settings of the session.

    Attributes:
        pooled: Whether the last connection went through a pooler, where LISTEN is
            accepted and never delivers.
    """

    log = Logger()
    name = "listener"

    def __init__(
        self, reactor: Any, dsn: str | Dsn, session: SessionSettings | None = None
    ) -> None:
        self._reactor = reactor
        self._sessions = Sessions(dsn, session or SessionSettings())
        self._subscriptions: list[Subscription] = []
        self._watched: WatchedConnection | None = None
        self._live: set[str] = set()
        self._asking = False
        self._again: IDelayedCall | None = None
        self._pulse: IDelayedCall | None = None
        self._attempts = 0
        self._outage = Outage()
        self.pooled = False

    @property
    def listening(self) -> bool:
        """Whether the session listens to every channel that has a subscription."""
        return self._watched is not None and self._wanted <= self._live

    @property
    def _wanted(self) -> set[str]:
        return {each.channel for each in self._subscriptions}

    def startService(self) -> None:
        """Start to listen, as soon as the database can be reached."""
        super().startService()
        self._connect()

    def stopService(self) -> None:
        """Stop listening."""
        super().stopService()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._drop()

    def subscribe(
        self,
        channel: str,
        received: Callable[[str], None],
        missed: Callable[[], None] = lambda: None,
    ) -> Subscription:
        """Return a new subscription; an error of a callback is only logged."""
        subscription = Subscription(self, channel, received, missed)
        self._subscriptions.append(subscription)
        if channel in self._live:
            # Later, because the subscriber does not have its subscription before this returns.
            self._reactor.callLater(0, self._begin, {channel}, subscription)
        self._sync()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; do nothing if it has ended already."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._sync()

    def _connect(self) -> None:
        self._again = None
        in_thread(self._reactor, "pg-listen", self._open).addCallbacks(
            self._connected, self._disconnected
        )

    def _open(self) -> PgConnection:
        """Open a session in a thread, because resolving the host's name blocks as well."""
        connection = self._sessions.open()
        connection.time_limit = PULSE_TIMEOUT
        return connection

    def _connected(self, connection: PgConnection) -> None:
        self.pooled = connection.pooled
        if not self.running or self.pooled:
            connection.close()
            if self.running:
                self._disconnected("a transaction pooler does not deliver notifications")
            return
        try:
            self._watched = WatchedConnection(connection, self._notified, self._disconnected)
        except OSError as error:  # no descriptor is free, perhaps; there may be one later
            connection.close()
            self._disconnected(error)
            return
        self._sync()

    def _sync(self) -> None:
        """Send LISTEN and UNLISTEN for channels that have changed, then watch the connection."""
        if self._watched is None or self._asking:
            return
        wanted = self._wanted
        begun, ended = wanted - self._live, self._live - wanted
        statements = [f"LISTEN {quoted(each)}" for each in sorted(begun)]
        statements += [f"UNLISTEN {quoted(each)}" for each in sorted(ended)]
        if not statements:
            self._watch(self._watched)
            return

        def done() -> None:
            # Reset by an answer, not by connecting, so that pauses grow if a server accepts and hangs up.
            self._attempts = 0
            if self._outage.end():
                self.log.info("listening to {channels} again", channels=", ".join(sorted(wanted)))
            self._live = wanted
            self._sync()
            self._begin(begun)

        # From here on: a subscription made while UNLISTEN runs gets nothing before the next LISTEN.
        self._live -= ended
        self._ask(self._watched, ";".join(statements), done)

    def _watch(self, watched: WatchedConnection) -> None:
        self._reactor.addReader(watched)
        if self._pulse is None:
            self._pulse = self._reactor.callLater(PULSE, self._check, watched)
        # Notifications that arrived with the answer to a statement do not make the socket readable.
        watched.doRead()

    def _check(self, watched: WatchedConnection) -> None:
        """Connect again if the DSN has changed; if not, check by a query that the server answers."""
        self._pulse = None

        def compared(outdated: bool) -> None:
            if (
                watched is not self._watched or self._asking
            ):  # after an answer there is another pulse
                return
            if outdated:
                self._drop()
                self._connect()
            else:
                self._ask(watched, "SELECT 1", self._sync)

        # Notifications are read meanwhile, because it may take seconds to try a new DSN.
        outdated = self._sessions.outdated
        in_thread(self._reactor, "pg-listen", outdated, watched.connection).addCallback(compared)

    def _ask(self, watched: WatchedConnection, sql: str, done: Callable[[], None]) -> None:
        """Run statements in a thread; meanwhile the reactor does not read the connection."""
        self._asking = True
        self._reactor.removeReader(watched)
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None

        def answered(outcome: Any) -> None:
            # If not, the connection was given up, and another one may be in use by now.
            if watched is self._watched:
                self._asking = False
                self._disconnected(outcome) if isinstance(outcome, Failure) else done()

        command = watched.connection.command
        in_thread(self._reactor, "pg-listen", command, sql).addBoth(answered)

    def _begin(self, channels: set[str], only: Subscription | None = None) -> None:
        """Call `missed` of the subscriptions of channels to which listening has begun."""
        # A copy, and checked again for each, because a callback may subscribe and cancel.
        for each in [only] if only else list(self._subscriptions):
            if each.channel in channels & self._live and each in self._subscriptions:
                self._call(each.missed)

    def _notified(self, channel: str, payload: str) -> None:
        for each in list(self._subscriptions):
            if each.channel == channel and each in self._subscriptions:
                self._call(each.received, payload)

    def _call(self, function: Callable[..., None], *args: str) -> None:
        try:
            function(*args)
        except Exception:
            self.log.failure("a notification could not be dealt with")

    def _disconnected(self, reason: object) -> None:
        self._drop()
        if not self.running or self._again is not None:
            return
        cause = str(reason.value if isinstance(reason, Failure) else reason).strip()
        if self._outage.is_news(cause, self._reactor.seconds()):
            channels = ", ".join(sorted(self._wanted))
            self.log.warn("not listening to {channels}: {cause}", channels=channels, cause=cause)
        first, most = PAUSES
        pause = min(most, first * 2**self._attempts) * random.uniform(0.5, 1.0)
        self._attempts = min(self._attempts + 1, 10)
        self._again = self._reactor.callLater(pause, self._connect)

    def _drop(self) -> None:
        watched, self._watched = self._watched, None
        if watched is None:
            return
        asking, self._asking, self._live = self._asking, False, set()
        if asking:  # a thread waits for an answer, and a silent server would keep it waiting
            GUARD.give_up(watched.connection)
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None
        self._reactor.removeReader(watched)
        # After removeReader, which needs the descriptor's number.
        watched.close()
