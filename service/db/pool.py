"""
The pool: an adbapi `ConnectionPool` that checks its connections and can cancel queries.

It has adbapi's interface, so that twistar and code that knows `runInteraction` can use it. The rest of
the service uses `Database`, which adds transactions as scopes.
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
    Worker threads with a connection each, and one queue of jobs.

    Args:
        dsn: The DSN, or a function that returns the current one; workers call it at every connect
            and every `recheck` seconds.
        reactor: Runs the timers, and receives calls from worker threads.
        session: Settings of every session.
        limits: Limits of workers and waits.
    """

    def __init__(
        self,
        dsn: str | Dsn,
        reactor: Any,
        session: SessionSettings | None = None,
        limits: PoolLimits | None = None,
    ) -> None:
        limits = limits or PoolLimits()
        # If the reactor runs, adbapi calls `_start` here, before there is a scheduler.
        super().__init__("psycopg2", cp_reactor=reactor, cp_min=limits.least, cp_max=limits.most)
        sessions = Sessions(dsn, session or SessionSettings())
        self.scheduler = Scheduler(reactor, limits, sessions)
        self._closed: Deferred[None] | None = None

    def _start(self) -> None:
        """Override adbapi's start with the reactor: the owner of the pool starts it."""
        self.startID = None

    def start(self) -> None:
        """Start the first workers; each connects for its first job."""
        if not self.running and self._closed is None:
            self.running = True
            self.scheduler.start()

    def close(self, grace: float = 0.25) -> Deferred[None]:
        """
        Refuse new jobs, wait for running ones, cancel those that are left, and end the threads.

        Args:
            grace: Seconds to wait before queries are canceled on the server.
        """
        if self._closed is None:
            self._closed = Deferred.fromCoroutine(self._drain(grace))
        return self._closed

    def finalClose(self) -> None:
        """Close without waiting; adbapi's `finalClose` would join threads in the reactor thread."""
        self.close(0)

    async def _drain(self, grace: float) -> None:
        scheduler = self.scheduler
        scheduler.accepting = False
        await scheduler.settled(grace)
        scheduler.stop_all()
        await scheduler.settled(1.0)
        scheduler.dismiss()
        # Joined in a thread of its own: adbapi's close() blocked the reactor for 2.8 s and more.
        await in_thread(self._reactor, "pg-close", scheduler.join, 0.5)
        self.running = False

    def clean(self) -> None:
        """Mark every session to be cleaned before its next use, because the catalog has changed."""
        self.scheduler.epoch += 1

    def stats(self) -> PoolStats:
        """Return the gauges and counters of the pool."""
        return self.scheduler.stats()

    # adbapi's interface

    def connect(self) -> PgConnection:
        """Refuse: a connection of this pool never leaves its worker."""
        raise TypeError("connections belong to workers: use runWithConnection")

    def runWithConnection(self, func: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]:
        """Run a function with a connection in autocommit."""
        # The function may do anything, so it counts as a write, and never runs twice.
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
