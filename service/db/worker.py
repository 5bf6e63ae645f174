"""
A worker: one thread with one connection, which it keeps in order between jobs.

A job is one function for a worker. Its token decides races: whoever takes it, a worker that sends
the job's first statement or the reactor that gives it up, has the job; `list.pop` does that in one
step.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, QueryCanceledError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.db.connection import PgConnection
from service.db.slow import ORIGIN, report
from service.errors import OutcomeUnknown, Unavailable


@dataclass(frozen=True)
class PoolLimits:
    """
    How much the pool may take.

    Args:
        least: Workers that are there from the start.
        most: Workers at most, each with one connection; one of them is kept from
            transactions that stay open, so that those can never take all.
        acquire_timeout: Seconds a call waits for a free connection.
        connect_wait: Seconds a worker goes on trying to connect.
        max_age: Seconds after which a session is replaced.
        recheck: Seconds between two looks whether the credentials of a session have changed.
    """

    least: int = 1
    most: int = 5
    acquire_timeout: float = 10.0
    connect_wait: float = 5.0
    max_age: float = 1800.0
    recheck: float = 2.0


@dataclass(frozen=True)
class PoolStats:
    """
    Gauges and counters of a pool.

    Args:
        size: Workers, each with a connection once it was used.
        busy: Workers that are taken.
        waiting: Calls that wait for a worker.
        timeouts: Calls that have waited in vain, so far.
        connects: Sessions opened, so far.
        slow: Statements that took longer than `ROWCAST_SLOW_STATEMENT`, so far.
    """

    size: int
    busy: int
    waiting: int
    timeouts: int
    connects: int
    slow: int = 0


class JobOwner(Protocol):
    """
    On whose behalf jobs run: a caller's session.

    Attributes:
        given: Jobs of its own that workers have, transactions left aside.
    """

    given: int

    @property
    def blocked(self) -> str:
        """Why none of them may begin now; empty if they may."""

    @property
    def light(self) -> bool:
        """Whether their answers weigh little, going by the last ones."""


JOB_OWNER: ContextVar[JobOwner | None] = ContextVar("rowcast_job_owner", default=None)
"""On whose behalf jobs are made; None for the service itself."""


@dataclass(slots=True, eq=False)
class Job:
    """
    A function that runs once in a worker thread, with that worker's connection.

    Args:
        function: Called with the connection and `args`.
        args: For the function.
        retry: Whether it may run a second time if the connection died under it.
        queue: The queue of the transaction that it serves, if it keeps its worker for one; what lies in
            it are jobs that came together.
        commits: Whether what it does may be kept once it is done. Who stops such a job, once it
            has begun, learns what came of it, and when it has.

    Attributes:
        begun: Whether a worker has it on a session.
        ended: Whether the worker is done with it; the reactor may not know yet.
        owner: On whose behalf it runs.
        reason: Why it was stopped, if it was.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    retry: bool = False
    queue: SimpleQueue[Job | None] | None = None
    commits: bool = False
    token: list[None] = field(default_factory=[None].copy, init=False)
    begun: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    reason: BaseException | None = field(default=None, init=False)
    # Plain callbacks would lose the caller's context variables, and so its transaction.
    context: Context = field(default_factory=copy_context, init=False)
    owner: JobOwner | None = field(default_factory=JOB_OWNER.get, init=False)
    deferred: Deferred[Any] | None = field(default=None, init=False)
    timer: IDelayedCall | None = field(default=None, init=False)
    worker: Worker | None = field(default=None, init=False)
    result: Any = field(default=None, init=False)
    error: Failure | None = field(default=None, init=False)

    def take(self) -> bool:
        """Return whether the job was taken by this call, to run it or to give it up."""
        try:
            self.token.pop()
        except IndexError:
            return False
        return True

    def succeed(self, result: Any) -> None:
        """Send the caller the result, unless it has an outcome already."""
        # Let go of, since it refers to the job: what refers to each other, and to all that the job was
        # given and has in its context, stays until garbage is collected.
        deferred, self.deferred = self.deferred, None
        if deferred is not None and not deferred.called:
            self.context.run(deferred.callback, result)

    def stop_timer(self) -> None:
        """Stop the clock."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def fail(self, reason: Failure | BaseException) -> None:
        """Send the caller an error, unless it has an outcome already."""
        self.stop_timer()
        deferred, self.deferred = self.deferred, None
        if deferred is not None and not deferred.called:
            self.context.run(deferred.errback, reason)

    def abandon(self, reason: Failure | BaseException) -> None:
        """Fail a job that no worker will finish; what may have been kept of it is unknown."""
        self.fail(OutcomeUnknown() if self.commits and not self.take() else reason)


CONNECT_ERRORS = (psycopg2.Error, OSError, ValueError)
"""Errors of an attempt to connect that is repeated; a ValueError while a URL is being written."""
UNREACHABLE = "the database cannot be reached"
CHECKED = 0.25
"""Seconds for which a session that was looked at is taken for fit, by reads: they can go again."""
MOVE_RETRY = 10.0
"""Seconds that a session goes on when there is a new address that does not answer."""


class WorkerPool(Protocol):
    """What a worker needs of its pool."""

    queue: SimpleQueue[Job | None]
    epoch: int
    slow: int
    stopping: threading.Event
    limits: PoolLimits

    def open(self) -> PgConnection:
        """Open a session, once; the thread waits."""

    def moved(self, connection: PgConnection) -> bool:
        """Return whether a session would be another one if it were opened now."""

    def post(self, job: Job) -> None:
        """Send a finished job to the reactor."""


class Worker:
    """
    Runs jobs, one after another.

    Attributes:
        job: What runs on the connection now; guarded by `lock` while a canceler looks.
        busy: Whether the thread is taken, if only by a transaction that lies idle.
        fit_until: When reads look at the session again before they use it.
    """

    log = Logger()

    def __init__(self, pool: WorkerPool, name: str) -> None:
        self.pool = pool
        self.lock = threading.Lock()
        self.job: Job | None = None
        self.busy = False
        self.fit_until = 0.0
        self.connection: PgConnection | None = None
        # Daemon: one that waits for a silent server must not hold up the end of the process.
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def _loop(self) -> None:
        get = self.pool.queue.get
        while (job := get()) is not None:
            self.busy = True
            self.execute(job, self._run)
            self.busy = False
            del job  # or its result would stay until there is another one
        self._discard()

    def execute(self, job: Job, how: Callable[[Job], Any]) -> None:
        """Run one job if it is still wanted, and post it."""
        # One that was given up in the queue is posted, too: the scheduler counts what comes back.
        if job.token:
            job.worker = self
            self.job = job
            try:
                job.result = how(job)
            except BaseException:
                # Raised on, it would end the thread, and the caller would wait for ever.
                job.error = Failure()
            with self.lock:  # a canceler that is at it now cannot hit the next job
                self.job = None
                if self.connection is not None:
                    # A cancel that came after the job's last statement is not for the next.
                    self.connection.stopped = 0.0
            if self.connection is not None and self.connection.slow:
                self._report(self.connection, job)
        job.ended = True
        self.pool.post(job)

    def _report(self, connection: PgConnection, job: Job) -> None:
        slow, connection.slow = connection.slow, []
        self.pool.slow += len(slow)
        for query, seconds in slow:
            # Read, not entered: the reactor may be in this context, with a caller that gave up.
            report(query, seconds, job.context.get(ORIGIN), connection)

    def _run(self, job: Job, again: bool = True) -> Any:
        """Run a job on a session, which is cleaned; a read once more if its connection was lost."""
        connection, unseen = self.connection, True
        if (
            connection is None
            or connection.closed
            or not job.retry
            or connection.epoch != self.pool.epoch
            or time.monotonic() >= self.fit_until
        ):
            connection, unseen = self.connect(), False
        try:
            return self.perform(job, connection)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            # Asked before the session is cleaned, which may close it. A query that was canceled,
            # or waited too long for a lock, is an OperationalError, too.
            # One that the guard has shut down was not lost: its server is there, and silent.
            lost = connection.closed and not connection.given_up
            if not (again and job.retry and lost) or job.reason is not None:
                raise
        finally:
            # Before the caller has its answer: its next call must not meet what this one left.
            self._tidy(connection)
        # One that was lost before anybody looked does not count: the next one may be lost, too.
        return self._run(job, again=unseen)

    def perform(self, job: Job, connection: PgConnection) -> Any:
        """
        Run the function of a job.

        Raises:
            QueryCanceledError: The job was given up while it waited for the session.
        """
        # A job that has begun may be stopped while its connection is replaced. The canceler then
        # finds none; from here on it does.
        job.begun = job.begun or job.take()
        if not job.begun or job.reason is not None:
            raise QueryCanceledError("stopped before it began")
        return job.function(connection, *job.args)

    def _tidy(self, connection: PgConnection) -> None:
        """Clean the session of what the job has done; what cannot be cleaned is closed."""
        connection.opening = None
        connection.stopped = 0.0
        if not connection.closed and (
            connection.touched or connection.get_transaction_status() != TRANSACTION_STATUS_IDLE
        ):
            try:
                connection.clean()
            except psycopg2.Error:
                self._discard()

    def connect(self) -> PgConnection:
        """
        Return a session that is fit for use, the one at hand or a new one.

        Raises:
            Unavailable: None could be opened for `connect_wait` seconds.
        """
        connection = self.connection
        if connection is not None:
            if self._usable(connection):
                now, recheck = time.monotonic(), self.pool.limits.recheck
                self.fit_until = now + min(CHECKED, recheck)
                due = now - connection.checked_at >= recheck
                return self._current(connection) if due else connection
            self._discard()
        end = time.monotonic() + self.pool.limits.connect_wait
        pause = 0.05
        while True:
            try:
                self.connection = self.pool.open()
                return self.connection
            except CONNECT_ERRORS as error:
                # Not sleep(): a pool that closes meanwhile ends this wait at once.
                if time.monotonic() > end or self.pool.stopping.wait(pause):
                    self.log.warn("cannot connect to PostgreSQL: {error}", error=str(error).strip())
                    raise Unavailable(UNREACHABLE) from error
                # Jittered, or all workers would knock at once when the server is back.
                pause = min(0.5, pause * 2) * random.uniform(0.5, 1.0)

    def _usable(self, connection: PgConnection) -> bool:
        """Return whether a session may be used; one that is not known to be clean is cleaned."""
        if time.monotonic() - connection.opened_at > self.pool.limits.max_age:
            return False
        # A look at the idle socket, some 1 µs, in place of a round trip with SELECT 1.
        if not connection.alive():
            return False
        if connection.epoch == self.pool.epoch:
            return True
        try:
            connection.renew(self.pool.epoch)
        except psycopg2.Error:
            return False
        return not connection.closed

    def _current(self, connection: PgConnection) -> PgConnection:
        """Replace a session if its credentials have changed, and the new ones are good."""
        connection.checked_at = time.monotonic()
        if not self.pool.moved(connection):
            return connection
        try:
            # The new one first: while a password is being changed, the old session still answers.
            fresh = self.pool.open()
        except CONNECT_ERRORS as error:
            self.log.warn("cannot use the new DATABASE_URL yet: {error}", error=str(error).strip())
            connection.checked_at = time.monotonic() + MOVE_RETRY
            return connection
        self._discard()
        self.connection = fresh
        return fresh

    def _discard(self) -> None:
        with self.lock:
            # A canceler that has the lock uses the connection until the server has its request.
            connection, self.connection = self.connection, None
        if connection is not None:
            if connection.slow and self.job is not None:
                self._report(connection, self.job)
            connection.close()
