"""
Jobs, the workers that run them, and the canceler that stops their queries.

A worker is a thread with a connection, which it keeps in order between jobs.

A job is one function for a worker to run. Its token decides races: the job belongs to whichever takes
the token first, the worker that is about to run the function or the reactor that gives the job up.
`list.pop` is atomic, so only one of them gets it.

psycopg2's `connection.cancel` holds the interpreter lock while libpq connects and waits (psycopg2 2.9,
connection_type.c), so a slow network would block the reactor, whichever thread called it. Here libpq is
called through ctypes, which releases the lock.
"""

from __future__ import annotations

import ctypes
import random
import re
import threading
import time
from collections.abc import Callable, Hashable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import psycopg2
from psycopg2 import _psycopg
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, QueryCanceledError
from psycopg2.sql import Composable
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.db.connection import GUARD, PgConnection
from service.db.session_settings import CONNECT_ERRORS, RECHECK
from service.errors import OutcomeUnknown, Unavailable, in_line

if TYPE_CHECKING:
    from service.db.pool import Scheduler


@dataclass(frozen=True)
class PoolLimits:
    """
    Limits of the pool.

    Args:
        least: Workers started with the pool.
        most: Maximum number of workers, each with one connection. Transactions that stay open
            get one less, so that they can never have all.
        acquire_timeout: Seconds that a call waits for a free connection.
        connect_wait: Seconds for which a worker keeps trying to connect.
        max_age: Seconds after which a session is replaced.
        recheck: Seconds between two checks whether the DSN, with its credentials, has changed.
    """

    least: int = 1
    most: int = 5
    acquire_timeout: float = 10.0
    connect_wait: float = 5.0
    max_age: float = 1800.0
    recheck: float = RECHECK


@dataclass(frozen=True)
class PoolStats:
    """
    Gauges and counters of a pool.

    Args:
        size: Number of workers; each opens its connection for its first job.
        busy: Workers that run a job, or serve a transaction.
        waiting: Jobs that wait for a worker.
        timeouts: Jobs so far that got no connection in time.
        connects: Sessions opened so far.
        slow: Statements so far that took longer than `ROWCAST_SLOW_STATEMENT`.
    """

    size: int
    busy: int
    waiting: int
    timeouts: int
    connects: int
    slow: int = 0


class JobOwner(Protocol):
    """
    The WAMP session on whose behalf jobs run.

    Attributes:
        given: Number of its jobs that workers have, transactions not included.
        light: Whether its results are expected to be small, judging by its last ones.
    """

    given: int
    light: bool

    @property
    def blocked(self) -> str:
        """Why none of its jobs may begin now; an empty string if they may."""


GROUP_MOST = 32
"""Maximum number of jobs in a group."""
GROUP_SECONDS = 0.004
"""Seconds that the run of a group should take at most; slower reads run in parallel in several workers."""
AGING = 1.1
"""Factor by which the minimum time per job grows with each run, so that a read that became slow is noticed."""


@dataclass(frozen=True, slots=True)
class Origin:
    """
    The call that work belongs to, for the log.

    Args:
        call: Id of the call; "" outside of calls.
        procedure: Name of the called procedure, without the prefix.
        role: Database role of the caller; "" for the service's own.
        transaction: Name of the innermost transaction that has one.
    """

    call: str = ""
    procedure: str = ""
    role: str = ""
    transaction: str = ""


ORIGIN: ContextVar[Origin | None] = ContextVar("rowcast_origin", default=None)
"""Origin of the work in this context; None for work of the service itself."""

JOB_OWNER: ContextVar[JobOwner | None] = ContextVar("rowcast_job_owner", default=None)
"""The owner of the jobs that are made in this context; None for the service itself."""


@dataclass(frozen=True, slots=True)
class SharedRead:
    """
    What a read shares with other reads of the same statement, so that one run can serve all of them.

    Args:
        key: Equal for reads that may share a run: their statement and identity.
        args: Arguments for the job's function in a shared run; a list of the `values` of all reads follows.
        values: The values of this read.
        equal: Whether reads of the same key have equal values, so that a run takes no longer for many of them.
    """

    key: Hashable
    args: tuple[Any, ...]
    values: Any = None
    equal: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """
    A function that runs once in a worker thread, with that worker's connection.

    Args:
        function: Called with the connection and `args`.
        args: Further arguments of the function.
        retry: Whether it may run a second time if its connection is lost.
        queue: Of a job that keeps its worker for a transaction: the queue of that transaction's jobs.
        commits: Whether it may commit something. If such a job is stopped after it has begun, its
            Deferred still waits for its end, and fires with its real outcome.

    Attributes:
        begun: Whether a worker has begun to run it.
        ended: Whether the worker has finished it; the reactor may not have been notified yet.
        owner: The session on whose behalf it runs; None for the service itself.
        reason: The error with which it was stopped; None if it was not.
        shared_read: Set if it may share a run with other reads.
        group: The group that it has joined.
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
    # The caller's context variables, its transaction among them, which a callback would not have.
    context: Context = field(default_factory=copy_context, init=False)
    owner: JobOwner | None = field(default_factory=JOB_OWNER.get, init=False)
    deferred: Deferred[Any] | None = field(default=None, init=False)
    timer: IDelayedCall | None = field(default=None, init=False)
    worker: Worker | None = field(default=None, init=False)
    result: Any = field(default=None, init=False)
    error: Failure | None = field(default=None, init=False)
    shared_read: SharedRead | None = field(default=None, init=False)
    group: JobGroup | None = field(default=None, init=False)

    @property
    def origin(self) -> Origin | None:
        """The call that it serves, for the log."""
        # Only read: the reactor may have entered this context, for a caller that gave up.
        return self.context.get(ORIGIN)

    def take(self) -> bool:
        """Remove the token, to run the job or to drop it; return whether it was present."""
        try:
            self.token.pop()
        except IndexError:
            return False
        return True

    def run(self, connection: PgConnection) -> Any:
        """Run the function; in a worker thread."""
        return self.function(connection, *self.args)

    def fire(self, result: Any) -> None:
        """Fire the Deferred with the result, or a Failure, unless it has fired already."""
        # Deferred and job refer to each other: a cycle, which would keep the job's arguments and its
        # context in memory until the garbage collector runs.
        deferred, self.deferred = self.deferred, None
        if deferred is not None and not deferred.called:
            self.context.run(deferred.callback, result)

    def stop_timer(self) -> None:
        """Cancel the timer of the job's timeout."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def fail(self, reason: Failure | BaseException) -> None:
        """Fire the Deferred with an error, unless it has fired already."""
        self.stop_timer()
        self.fire(reason if isinstance(reason, Failure) else Failure(reason))

    def abandon(self, reason: Failure | BaseException) -> None:
        """Fail a job that no worker will finish; if it has begun and commits, as `OutcomeUnknown`."""
        self.fail(OutcomeUnknown() if self.commits and not self.take() else reason)


class GroupLimit:
    """
    The size limit of groups of one kind, from the time that recent runs took.

    Args:
        equal: Whether its reads are equal. Their groups have the maximum size.

    Attributes:
        equal: The same.
        most: Maximum number of jobs in a group.
        group: The last group of the kind, which other jobs may join while it waits in the queue; None once
            it is finished.
    """

    __slots__ = ("_seconds", "equal", "group", "most")

    # No read is kept: it would keep a caller's values and an old catalog in memory.
    def __init__(self, equal: bool = False) -> None:
        self.equal = equal
        self.most = GROUP_MOST if equal else 1
        self.group: JobGroup | None = None
        self._seconds = GROUP_SECONDS

    def ran(self, jobs: int, seconds: float) -> None:
        """Adapt the limit after a run of `jobs` jobs."""
        if self.equal:
            return
        # The minimum of recent runs: a thread often waits longer for the GIL and the CPU than for the server.
        self._seconds = min(seconds / jobs, self._seconds * AGING)
        self.most = max(1, min(GROUP_MOST, int(GROUP_SECONDS / max(self._seconds, 1e-6))))


class JobGroup(Job):
    """
    Reads of the same statement that a worker runs as one; a group of one runs its job unchanged.

    The group waits in the queue in place of its first job, and other jobs join it until a worker begins. Each
    job keeps its own timer and can be stopped by itself. The query is cancelled when all its jobs are stopped.

    Args:
        first: The first job.
        limit: The size limit of its kind.

    Attributes:
        members: All jobs that have joined.
        running: The members that had not been stopped when the group began.
    """

    __slots__ = ("_lock", "limit", "members", "running")

    def __init__(self, first: Job, limit: GroupLimit) -> None:
        super().__init__(first.function, retry=True)
        self.context = first.context
        self.limit = limit
        self.members = [first]
        self.running: list[Job] = []
        # Guards `token`, `members` and `running`: the worker must not miss a job that joins, and the reactor
        # must not see `running` before it is complete.
        self._lock = threading.Lock()
        first.group = self

    @property
    def origin(self) -> Origin | None:
        """The origin of the first job, with the ids of all calls."""
        found = [each.origin or Origin() for each in self.running or self.members]
        return replace(found[0], call=" ".join(each.call for each in found))

    @property
    def given_up(self) -> bool:
        """Whether all running jobs have been stopped."""
        with self._lock:
            return all(job.reason is not None for job in self.running)

    def join(self, job: Job) -> bool:
        """Add a job and return True, unless the group has begun or is full."""
        with self._lock:
            if not self.token or len(self.members) >= self.limit.most:
                return False
            self.members.append(job)
        job.group = self
        return True

    def take(self) -> bool:
        """Remove the tokens of the jobs that have not been stopped; return whether there were any."""
        with self._lock:
            if not self.token:
                return False
            self.token.clear()
            self.running = [job for job in self.members if job.take()]
        return bool(self.running)

    def run(self, connection: PgConnection) -> list[Any]:
        """Run all jobs and return a result for each."""
        running = self.running
        first = running[0]
        began = time.monotonic()
        if len(running) == 1:
            found = [first.function(connection, *first.args)]
        else:
            reads = [each.shared_read for each in running if each.shared_read is not None]
            found = first.function(connection, *reads[0].args, [each.values for each in reads])
        self.limit.ran(len(running), time.monotonic() - began)
        return found


UNREACHABLE = "the database cannot be reached"
FIT_SECONDS = 0.25
"""Seconds for which reads use a session without checking it again: a read can be repeated."""


class Worker:
    """
    A thread with one connection, which runs jobs one after another.

    Attributes:
        lock: Held by a canceler while it sends a request: `job` and `connection` stay as they are.
        job: The job that runs on the connection now.
        busy: Whether the thread has a job, if only that of an idle transaction.
        fit_until: Until when, by `time.monotonic`, reads use the session without checking it.
    """

    log = Logger()

    def __init__(self, pool: Scheduler, name: str) -> None:
        self.pool = pool
        self.lock = threading.Lock()
        self.job: Job | None = None
        self.busy = False
        self.fit_until = 0.0
        self.connection: PgConnection | None = None
        # A daemon: a thread that waits for a silent server must not keep the process from exiting.
        self.thread = threading.Thread(target=self._loop, name=name, daemon=True)

    @property
    def jobs(self) -> int:
        """The number of jobs that a busy worker has."""
        job = self.job
        return max(1, len(job.running)) if isinstance(job, JobGroup) else 1

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            self.busy = True
            self.execute(job, self._run)
            self.busy = False
            del job  # or its result would stay in memory until the next job
        self._discard()

    def _next(self) -> Job | None:
        """Wait for the next job; meanwhile close the session if the DSN has changed."""
        while True:
            # An idle worker would keep its session to the old server open until its next job.
            try:
                return self.pool.queue.get(timeout=RECHECK)
            except Empty:
                if self.connection is not None and self.pool.outdated(self.connection):
                    self._discard()

    def execute(
        self, job: Job, how: Callable[[Job], Any], behind: SimpleQueue[Job | None] | None = None
    ) -> None:
        """Run one job unless it was given up, and post it; `behind` has the jobs that run next."""
        # A job that was given up in the queue is posted too: the scheduler counts what comes back.
        if job.token:
            job.worker = self
            self.job = job
            try:
                job.result = how(job)
            except BaseException:
                # Raised further, it would end the thread, and the caller would wait for ever.
                job.error = Failure()
            with self.lock:  # waits for a canceler, whose request might hit the next job otherwise
                self.job = None
                if self.connection is not None:
                    # A cancel that came after the job's last statement is not for the next job.
                    self.connection.stopped = 0.0
            if self.connection is not None and self.connection.slow:
                self._log_slow(self.connection, job)
        job.ended = True
        # The caller of a failed job learns of it at once: the jobs behind it are in vain.
        self.pool.post(job, more=behind is not None and job.error is None and not behind.empty())

    def _log_slow(self, connection: PgConnection, job: Job) -> None:
        """Log the slow statements of a job: their shape and the call that they belong to, never a value."""
        slow, connection.slow = connection.slow, []
        self.pool.slow += len(slow)
        origin = job.origin or Origin()
        for query, seconds in slow:
            text = query.as_string(connection) if isinstance(query, Composable) else query
            text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
            self.log.warn(
                "slow statement: {seconds:.3f} s in {procedure} as {role}: {statement}",
                seconds=seconds,
                procedure=in_line(origin.procedure) or "the service",
                role=origin.role or "the service",
                statement=shape_of(text),
                origin=origin,
            )

    def _run(self, job: Job, again: bool = True) -> Any:
        """
        Run a job on a session, and clean that afterwards.

        A read whose connection was lost runs a second time, on a new one.
        """
        connection, unchecked = self.connection, True
        if (
            connection is None
            or connection.closed
            or not job.retry
            or connection.epoch != self.pool.epoch
            or time.monotonic() >= self.fit_until
        ):
            connection, unchecked = self.connect(), False
        try:
            return self.perform(job, connection)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            # `closed` is read here because cleaning the session may close it. It tells a lost
            # connection from a canceled query or a lock timeout, which are OperationalErrors too.
            # A connection that the guard has shut down was not lost: its server is there, and silent.
            lost = connection.closed and not connection.given_up
            if not (again and job.retry and lost) or job.reason is not None:
                raise
        finally:
            # Before the caller gets its result: its next call must not find what this job has left.
            self._clean_session(connection)
        # If the lost connection was used without a check, this was not the one retry: after a restart
        # of the server the next connection may be dead too.
        return self._run(job, again=unchecked)

    def perform(self, job: Job, connection: PgConnection) -> Any:
        """
        Run the function of a job.

        Raises:
            QueryCanceledError: The job was stopped before its function was called.
        """
        # A job that runs again may have been stopped while its connection was replaced, when the
        # canceler found none. From here on the canceler finds this one.
        job.begun = job.begun or job.take()
        if not job.begun or job.reason is not None:
            raise QueryCanceledError("stopped before it began")
        return job.run(connection)

    def _clean_session(self, connection: PgConnection) -> None:
        """Clean the session of what the job has left; close it if that fails."""
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
        Return a session that is fit for use: the worker's own, or a new one.

        Raises:
            Unavailable: No session could be opened for `connect_wait` seconds.
        """
        connection = self.connection
        if connection is not None:
            if self._usable(connection):
                self.fit_until = time.monotonic() + min(FIT_SECONDS, self.pool.limits.recheck)
                return connection
            self._discard()
        end = time.monotonic() + self.pool.limits.connect_wait
        pause = 0.05
        while True:
            try:
                self.connection = self.pool.open()
            except CONNECT_ERRORS as error:
                now, cause = time.monotonic(), str(error).strip()
                # An event in place of sleep(): a pool that closes ends this wait at once.
                if now > end or self.pool.stopping.wait(pause):
                    if self.pool.outage.is_news(cause, now):
                        self.log.warn("cannot connect to PostgreSQL: {error}", error=cause)
                    raise Unavailable(UNREACHABLE) from error
                # Jittered, or all workers would connect at once when the server is back.
                pause = min(0.5, pause * 2) * random.uniform(0.5, 1.0)
            else:
                if self.pool.outage.end():
                    self.log.info("connected to PostgreSQL again")
                return self.connection

    def _usable(self, connection: PgConnection) -> bool:
        """Return whether a session may be used; clean it first if its epoch has passed."""
        if time.monotonic() - connection.opened_at > self.pool.limits.max_age:
            return False
        # A poll of the idle socket takes some 1 µs, where SELECT 1 would take a round trip.
        if not connection.alive() or self.pool.outdated(connection):
            return False
        if connection.epoch == self.pool.epoch:
            return True
        try:
            connection.renew(self.pool.epoch)
        except psycopg2.Error:
            return False
        return not connection.closed

    def _discard(self) -> None:
        with self.lock:
            # A canceler that holds the lock uses the connection until the server has its request.
            connection, self.connection = self.connection, None
        if connection is not None:
            if connection.slow and self.job is not None:
                self._log_slow(connection, self.job)
            connection.close()


class Canceler:
    """
    Threads that send cancel requests.

    Args:
        threads: Maximum number of requests at a time.
    """

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Job | None] = SimpleQueue()

    def cancel(self, job: Job) -> None:
        """Cancel the query of a running job; a job that has ended meanwhile is left alone."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, name="pg-cancel", daemon=True)
                for _ in range(self._size)
            ]
            for thread in self._threads:
                thread.start()
        self._queue.put(job)

    def close(self) -> None:
        """End the threads once they have sent the requests so far."""
        for _ in self._threads:
            self._queue.put(None)
        self._threads = []

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            worker = job.worker
            if worker is None:
                continue
            # Held until the server has the request: the worker cannot begin another job on this
            # connection meanwhile, so no other job can be canceled.
            with worker.lock:
                connection = worker.connection
                if worker.job is job and connection is not None and not connection.closed:
                    connection.stopped = time.monotonic()
                    if not request_cancel(connection):
                        # The request may still arrive, and would cancel another job's query.
                        GUARD.give_up(connection)


def request_cancel(connection: PgConnection) -> bool:
    """
    Send a cancel request for the query that runs on a connection.

    Returns:
        Whether the server has received it, within the connection's `connect_timeout`.
    """
    if _LIBPQ is None:
        # Where libpq's function returns false, psycopg2's raises, which would end the canceler's thread.
        try:
            connection.cancel()
        except psycopg2.Error:
            return False
        return True
    with connection.lock:
        if connection.closed:
            return True
        # libpq copies the server's address, so the connection may be closed from here on.
        handle = ctypes.c_void_p(_LIBPQ.PQcancelCreate(connection.pgconn_ptr))
    try:
        return bool(_LIBPQ.PQcancelBlocking(handle))
    finally:
        _LIBPQ.PQcancelFinish(handle)


def _load() -> ctypes.CDLL | None:
    """Load the libpq that psycopg2 uses; None if its symbols are hidden, or it is older than 17."""
    try:
        # Through psycopg2's own module: another libpq, such as the system's, must not get its pointers.
        libpq = ctypes.CDLL(_psycopg.__file__)
        # Without a restype ctypes takes a result for an int of 32 bits, and truncates the pointer.
        libpq.PQcancelCreate.restype = ctypes.c_void_p
        libpq.PQcancelCreate.argtypes = [ctypes.c_void_p]
        libpq.PQcancelBlocking.argtypes = [ctypes.c_void_p]
        libpq.PQcancelFinish.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libpq


_LIBPQ = _load()


MAX_LENGTH = 2000
"""Characters of a statement in the log."""

# Comments and strings are tried first: a quote inside a comment, or "--" inside a string, means nothing.
_TOKENS = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
    | [eE]'(?:\\.|''|[^'\\])*' | (?:[uU]&|[bBxXnN])?'(?:[^']|'')*'
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?P<kept> "(?:[^"]|"")*" | [^\W\d][\w$]* | \$\d+ )
    | \d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)? | \.\d+(?:[eE][+-]?\d+)?
    """,
    re.VERBOSE | re.DOTALL,
)


def shape_of(sql: str) -> str:
    """Return SQL in one line, with `?` in place of each literal, and without comments."""

    def replaced(found: re.Match[str]) -> str:
        kept: str | None = found["kept"]
        return kept if kept is not None else " " if found["comment"] else "?"

    return in_line(" ".join(_TOKENS.sub(replaced, sql).split()), MAX_LENGTH)
