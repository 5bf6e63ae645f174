"""
Hearing NOTIFY: one session that only listens, watched by the reactor.

What is notified while it is down is lost, by PostgreSQL's design; whoever listens looks for
itself after `resync`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from service.db.connection import PgConnection
from service.db.guard import GUARD
from service.db.session import Dsn, SessionSettings, open_session
from service.db.thread import in_thread
from service.sql.statement import quoted

PAUSES = (0.05, 5.0)
"""Seconds between two attempts to connect: first, and at most."""
PULSE = 10.0
"""Seconds between two looks whether a server that says nothing is still there."""
PULSE_TIMEOUT = 2.0
"""Seconds that it has for an answer to that."""


@implementer(IReadDescriptor)
class Subscription:
    """
    A connection as the reactor watches it.

    libpq closes its socket by itself when the server is gone, and the reactor would be left
    with a number that means nothing, or soon another file. It gets a duplicate, which is
    closed here.

    Args:
        connection: With LISTEN done.
        heard: Called with each payload.
        lost: Called once, when the connection is gone.
    """

    log = Logger()

    def __init__(
        self,
        connection: PgConnection,
        heard: Callable[[str], None],
        lost: Callable[[object], None],
    ) -> None:
        self.connection = connection
        self._heard = heard
        self._lost = lost
        self._descriptor = os.dup(connection.fileno())

    def fileno(self) -> int:
        """Return the descriptor for the reactor to watch."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the name for the log."""
        return "listener"

    def doRead(self) -> None:
        """Read what has come."""
        try:
            self.connection.poll()
        except psycopg2.Error as error:
            self._lost(error)
            return
        notifies, self.connection.notifies = self.connection.notifies, []
        for each in notifies:
            try:
                self._heard(each.payload)
            except Exception:
                self.log.failure("a notification could not be dealt with")
        if self.connection.closed:
            self._lost("closed by the server")

    def connectionLost(self, reason: Failure) -> None:
        """Handle the loss of what the reactor watched."""
        self._lost(reason)

    def close(self) -> None:
        """Close the connection, and the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        with suppress(psycopg2.Error):
            self.connection.close()


class Listener(Service):
    """
    Listens to a channel for as long as it runs.

    Args:
        reactor: To watch the connection, for pauses and to come back from threads.
        dsn: Where the database is, past any pooler; asked at every connect.
        channel: To listen to.
        heard: Called with each payload.
        resync: Called whenever listening has begun, again or for the first time: what
            was notified before is not known.
        session: What is set in the session.

    Attributes:
        listening: Whether notifications would be heard now.
        pooled: Whether the last connection went through a pooler, where LISTEN is
            accepted and never delivers.
    """

    log = Logger()
    name = "listener"

    def __init__(
        self,
        reactor: Any,
        dsn: str | Dsn,
        channel: str,
        heard: Callable[[str], None],
        resync: Callable[[], None] = lambda: None,
        session: SessionSettings | None = None,
    ) -> None:
        self._reactor = reactor
        self._dsn: Dsn = dsn if callable(dsn) else lambda: dsn
        self._channel = channel
        self._heard = heard
        self._resync = resync
        self._session = session or SessionSettings()
        self._subscription: Subscription | None = None
        self._again: IDelayedCall | None = None
        self._pulse: IDelayedCall | None = None
        self._attempts = 0
        self.pooled = False

    @property
    def listening(self) -> bool:
        """Whether notifications would be heard now."""
        return self._subscription is not None

    def startService(self) -> None:
        """Begin to listen, as soon as the database is there."""
        super().startService()
        self._connect()

    def stopService(self) -> None:
        """Stop listening."""
        super().stopService()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._drop()

    def _connect(self) -> None:
        self._again = None
        in_thread(self._reactor, "pg-listen", self._listen).addCallbacks(self._up, self._down)

    def _listen(self) -> PgConnection:
        """Open a session and have it listen, in a thread: names are resolved there too."""
        connection = open_session(self._dsn(), self._session)
        try:
            if not connection.pooled:
                connection.command(f"LISTEN {quoted(self._channel)}")
        except BaseException:
            connection.close()
            raise
        connection.time_limit = PULSE_TIMEOUT
        return connection

    def _up(self, connection: PgConnection) -> None:
        self.pooled = connection.pooled
        if not self.running or self.pooled:
            connection.close()
            if self.running:
                self._down("a transaction pooler does not deliver notifications")
            return
        self._attempts = 0
        self._subscription = Subscription(connection, self._heard, self._down)
        self._watch()
        if self.listening:
            self._resync()

    def _watch(self) -> None:
        assert self._subscription is not None
        self._reactor.addReader(self._subscription)
        self._pulse = self._reactor.callLater(PULSE, self._ping, self._subscription)
        # What came with the answer to a statement does not make the socket readable again.
        self._subscription.doRead()

    def _ping(self, subscription: Subscription) -> None:
        """Ask the server for a sign of life, in a thread; nobody else reads meanwhile."""
        self._pulse = None
        self._reactor.removeReader(subscription)

        def answered(outcome: Any) -> None:
            if subscription is self._subscription:
                self._down(outcome) if isinstance(outcome, Failure) else self._watch()

        in_thread(self._reactor, "pg-listen", subscription.connection.command, "SELECT 1").addBoth(
            answered
        )

    def _down(self, reason: object) -> None:
        self._drop()
        if not self.running or self._again is not None:
            return
        cause = reason.value if isinstance(reason, Failure) else reason
        self.log.warn(
            "not listening to {channel}: {cause}", channel=self._channel, cause=str(cause).strip()
        )
        first, most = PAUSES
        pause = min(most, first * 2**self._attempts) * random.uniform(0.5, 1.0)
        self._attempts = min(self._attempts + 1, 10)
        self._again = self._reactor.callLater(pause, self._connect)

    def _drop(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None
        else:  # a thread may be at it
            GUARD.give_up(subscription.connection)
        self._reactor.removeReader(subscription)
        subscription.close()
