"""
The pool: adbapi's, with connections that are kept alive and queries that can be stopped.

Its face is adbapi's, so that twistar and anyone who knows `runInteraction` can use it; the
rest of the service speaks to `Database`, which knows of transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred

from service.db.connection import PgConnection
from service.db.scheduler import Scheduler
from service.db.session_settings import OWN_IDENTITY, Dsn, Sessions, SessionSettings
from service.db.thread import in_thread
from service.db.transaction import atomic_txn, cursor_txn, single_txn, statement_txn
from service.db.worker import Job, PoolLimits, PoolStats


class PgPool(adbapi.ConnectionPool):
    """
    Threads with a connection each, and one queue of jobs.

    Args:
        dsn: Where the database is; a function is asked at every connect and every
            `recheck` seconds, in a worker: what it gives may change.
        reactor: For timers, and to come back from threads.
        session: What is set in every session.
        limits: How much the pool may take.
    """

    def __init__(
        self,
        dsn: str | Dsn,
        reactor: Any,
        session: SessionSettings | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        limits = limits or PoolLimits()
        # With the reactor running, adbapi calls `_start` right here, before there is a scheduler.
        super().__init__("psycopg2", cp_reactor=reactor, cp_min=limits.least, cp_max=limits.most)
        sessions = Sessions(dsn, session or SessionSettings())
        self.scheduler = Scheduler(reactor, limits, sessions)
        self._closed: Deferred[None] | None = None

    def _start(self) -> None:
        """Do not start with the reactor, as adbapi does: whoever owns the pool starts it."""
        self.startID = None

    def start(self) -> None:
        """Start the first workers; they connect when they are needed."""
        if not self.running and self._closed is None:
            self.running = True
            self.scheduler.start()

    def close(self, grace: float = 0.25) -> Deferred[None]:
        """
        Refuse new work, give running work a moment, stop it, and end the threads.

        Args:
            grace: Seconds to wait before queries are stopped on the server.
        """
        if self._closed is None:
            self._closed = Deferred.fromCoroutine(self._drain(grace))
        return self._closed

    def finalClose(self) -> None:
        """Close without waiting; adbapi's way joins threads in the reactor thread, for seconds."""
        self.close(0)

    async def _drain(self, grace: float) -> None:
        scheduler = self.scheduler
        scheduler.accepting = False
        await scheduler.settled(grace)
        scheduler.stop_all()
        await scheduler.settled(1.0)
        scheduler.dismiss()
        # Joined by another thread: adbapi's close() stopped the reactor for 2.8 s, and more.
        await in_thread(self._reactor, "pg-close", scheduler.join, 0.5)
        self.running = False

    def clean(self) -> None:
        """Clean every session before its next use: what was known of the database has changed."""
        self.scheduler.epoch += 1

    def stats(self) -> PoolStats:
        """Count what there is to count."""
        return self.scheduler.stats()

    # adbapi's face

    def connect(self) -> PgConnection:
        """Refuse: a connection of this pool never leaves its worker."""
        raise TypeError("connections belong to workers: use runWithConnection")

    def runWithConnection(self, func: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]:
        """Run a function with a connection in autocommit."""
        # What a function does is not known here: it counts as a write, and is never run twice.
        call = partial(func, **kw) if kw else func
        return self.scheduler.submit(Job(single_txn, (OWN_IDENTITY, call, *args), commits=True))

    def runInteraction(
        self, interaction: Callable[..., Any], *args: Any, **kw: Any
    ) -> Deferred[Any]:
        """Run a function with a cursor in one transaction."""
        return self.scheduler.submit(
            Job(atomic_txn, ("BEGIN", "", cursor_txn, interaction, args, kw), commits=True)
        )

    def runQuery(self, sql: Any, params: Any = None) -> Deferred[Any]:
        """Run one statement, in one round trip, and return its rows."""
        return self._statement(sql, params)

    def runOperation(self, sql: Any, params: Any = None) -> Deferred[Any]:
        """Run one statement, in one round trip, and return None."""
        return self._statement(sql, params, False).addCallback(lambda _: None)

    def _statement(self, *args: Any) -> Deferred[Any]:
        job = Job(single_txn, (OWN_IDENTITY, statement_txn, *args), commits=True)
        return self.scheduler.submit(job)
