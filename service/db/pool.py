"""
The pool: workers with a connection each, and a scheduler, which hands jobs to them, and results to callers.

All bookkeeping is done in the reactor thread. A worker only appends each finished job to a deque,
and wakes the reactor unless a wake-up is already on its way.

`PgPool` is an adbapi `ConnectionPool`, so that twistar and code that knows `runInteraction` can use it. The
rest of the service uses `Database`, which adds transactions as scopes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from queue import SimpleQueue
from typing import Any

import psycopg2
from psycopg2.extensions import QueryCanceledError
from twisted.enterprise import adbapi
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from service.db.connection import GUARD, PgConnection
from service.db.session_settings import OWN_IDENTITY, Dsn, Outage, Sessions, SessionSettings
from service.db.transaction import atomic_txn, cursor_txn, single_txn, statement_txn
from service.db.worker import (
    UNREACHABLE,
    Canceler,
    GroupLimit,
    Job,
    JobGroup,
    JobOwner,
    PoolLimits,
    PoolStats,
    SharedRead,
    Worker,
)
from service.errors import StatementTimeout, Unavailable
from service.waiting import CooperativeDeferred, cancel_timer, in_thread

READY = 2
"""Jobs in the workers' queue beyond one for each worker; the others wait for their owner's turn."""
AHEAD = 16
"""
Further jobs in the workers' queue: a worker that finds its next job there need not be woken for it.

They do not raise the number of jobs that one owner may have, so no owner waits longer than until its
turn. Only owners whose results are small get them, because these results are in memory together.
With 64 sessions a `get` takes 0.87 of the service's CPU time that way.
"""
KINDS = 4096
"""Maximum number of kinds of reads whose size limit is kept."""
COLLECT = 0.002
"""
Seconds for which a finished job may wait for those that its worker runs next.

If the worker wakes the reactor for each job, the two threads contend for the interpreter lock: five statements
of a transaction, sent ahead, took 2.05 times as long as one, in place of 1.45 times.
"""
SWEEP = 0.25
"""Seconds between two checks for jobs that have waited too long for a connection."""
INTERRUPTED = (psycopg2.OperationalError, psycopg2.InterfaceError, Unavailable)
"""Errors of a stopped job that has committed nothing; `OutcomeUnknown` says that it may have."""


class FairQueue:
    """
    Waiting jobs, in a queue for each owner; owners are served in turn.

    So a caller with thousands of calls delays another caller by one of them, not by all.

    Attributes:
        queues: By owner, in the order in which owners are served; an owner without jobs has none.
    """

    def __init__(self) -> None:
        self.queues: dict[JobOwner | None, deque[Job]] = {}

    def add(self, job: Job) -> None:
        """Add a job at the end of its owner's queue."""
        self.queues.setdefault(job.owner, deque()).append(job)

    def next(
        self, blocked_too: bool = False, most: float = math.inf, light: bool = False
    ) -> Job | None:
        """
        Remove and return the job whose turn it is; None if no job may begin.

        Args:
            blocked_too: Whether jobs of a blocked owner may begin too.
            most: Maximum number of jobs that workers have of one owner.
            light: Whether the next owner must be one whose results are small. If it is not, the
                owners behind it wait too; passed over, it might wait for ever.
        """
        for owner, queue in self.queues.items():
            if blocked_too or owner is None or (owner.given < most and not owner.blocked):
                if light and not (owner is not None and owner.light):
                    return None
                job = queue.popleft()
                # The dict is changed during iteration, which is safe only because the loop ends here.
                del self.queues[owner]
                if queue:  # goes to the end of the line
                    self.queues[owner] = queue
                return job
        return None


class Scheduler:
    """
    The workers, and the jobs that wait for them.

    Args:
        reactor: Runs the timers, and receives calls from worker threads.
        limits: Minimum and maximum number of workers, and how many seconds a job may wait.
        sessions: Opens the workers' database sessions.

    Attributes:
        queue: Jobs for the next free workers.
        epoch: Increased when every session has to be cleaned before its next use.
        slow: Number of slow statements so far.
        outage: Decides which failures to connect are logged.
    """

    def __init__(self, reactor: Any, limits: PoolLimits, sessions: Sessions) -> None:
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        self.epoch = 0
        self.slow = 0
        self.stopping = threading.Event()
        self.outage = Outage()
        self.limits = limits
        self.workers: list[Worker] = []
        self.accepting = False
        self._reactor = reactor
        self._sessions = sessions
        self._canceler = Canceler(limits.most)
        self._jobs: dict[Job, float | None] = {}
        self._limits: dict[Hashable, GroupLimit] = {}
        self._waiting = FairQueue()
        self._transactions = FairQueue()
        self._assigned = 0
        self._pinned = 0
        self._ready = limits.most + READY
        self._finished: deque[Job] = deque()
        self._waking = False
        self._more = False
        self._collecting: IDelayedCall | None = None
        self._sweeping: IDelayedCall | None = None
        self._drained: list[Deferred[None]] = []
        self._timeouts = 0
        self._connects = 0

    def start(self) -> None:
        """Start the first workers; they connect when they are needed."""
        self.accepting = True
        for _ in range(self.limits.least):
            self._start_worker()

    def stats(self) -> PoolStats:
        """Return the gauges and counters of the pool."""
        busy = [worker for worker in self.workers if worker.busy]
        have = sum(worker.jobs for worker in busy)
        waiting = max(0, len(self._jobs) - have)
        return PoolStats(
            len(self.workers), len(busy), waiting, self._timeouts, self._connects, self.slow
        )

    # In worker threads

    def open(self) -> PgConnection:
        """Open a session for a worker."""
        # Read before connecting: if it changes meanwhile, the session is cleaned before its next use.
        epoch = self.epoch
        connection = self._sessions.open()
        connection.epoch = epoch
        self._connects += 1
        return connection

    def outdated(self, connection: PgConnection) -> bool:
        """Return whether the DSN has changed since a worker's session was opened, and can be used."""
        if not self._sessions.outdated(connection):
            return False
        for (
            each
        ) in self.workers:  # so that reads do not use other sessions to the old server unchecked
            each.fit_until = 0.0
        return True

    def post(self, job: Job, more: bool) -> None:
        """
        Send a finished job to the reactor.

        Args:
            job: The job.
            more: Whether the worker runs another job at once. The reactor collects the jobs of such a
                worker together: to wake it for each has the two threads contend for the interpreter lock.
        """
        # Appended before the flags are read, so that a wake-up that is on its way finds the job.
        # Two workers may both see the flag unset; the second wake-up then finds nothing to do.
        self._finished.append(job)
        if more:
            self._more = True
            if self._collecting is not None:
                return
        if not self._waking:
            self._waking = True
            self._reactor.callFromThread(self._drain)

    # In the reactor thread

    def submit(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        """
        Run a job in any worker; cancelling the Deferred stops its query on the server.

        If the job commits and has begun, the Deferred still fires with its real outcome.

        Args:
            job: One that was never submitted before.
            timeout: Seconds, waiting included, after which the job is stopped.
        """
        if not self.accepting:
            return fail(_shutting_down())
        self._jobs[job] = self._reactor.seconds() + self.limits.acquire_timeout
        if len(self._jobs) > len(self.workers) and len(self.workers) < self.limits.most:
            self._start_worker()
        # One sweep for all jobs: a timer for each would be set and cancelled in every call.
        if self._sweeping is None:
            self._sweeping = self._reactor.callLater(SWEEP, self._sweep)
        waiting, owner = self._waiting, job.owner
        if job.queue is not None:
            self._transactions.add(job)
            self.assign()
        elif waiting.queues or self._assigned >= self._ready or (owner and owner.blocked):
            waiting.add(job)
            self.assign()
        else:  # the usual case: no job waits, so none is passed over
            self._give(job)
        return self.promise(job, timeout)

    def promise(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        """Return the Deferred of a job that a worker has or will get, as `submit` does."""
        job.deferred = deferred = CooperativeDeferred()
        deferred.request = lambda: self.stop(job, CancelledError())
        if timeout is not None:
            job.timer = self._reactor.callLater(timeout, self._time_out, job)
        return deferred

    def stop(self, job: Job, reason: BaseException, wait: bool = False) -> None:
        """
        Stop a job. One that has not begun fails at once; the query of another is canceled.

        Args:
            job: Any job; one that was already stopped is left alone.
            reason: The caller's error: at once, or, if the job commits, once it is known that
                nothing was committed.
            wait: Whether the caller waits for the server's answer even if the job does not commit.
        """
        if job.reason is not None:
            return
        job.reason = reason
        waits, group = job.take(), job.group
        if not waits and group is None:
            self._canceler.cancel(job)
        elif not waits and group is not None and group.given_up:
            self.stop(group, reason)
        if waits or not (job.commits or wait):
            job.fail(reason)

    def settled(self, timeout: float) -> Deferred[None]:
        """Return a Deferred that fires once no job is left, at the latest after `timeout` seconds."""
        done: Deferred[None] = Deferred()
        if not self._jobs:
            done.callback(None)
            return done
        timer = self._reactor.callLater(timeout, done.callback, None)
        self._drained.append(done)

        def fired(_: None) -> None:
            self._drained.remove(done)
            cancel_timer(timer)

        return done.addCallback(fired)

    def stop_all(self) -> None:
        """Stop every job, and end every open transaction."""
        for job in list(self._jobs):
            if job.queue is None:
                self.stop(job, _shutting_down())
                continue
            if job.take():
                job.fail(_shutting_down())
            # None ends the transaction. While it is idle, no query runs that could be canceled.
            job.queue.put(None)
        for worker in self.workers:
            # Statements of a transaction come through its own queue, so they are not in `_jobs`.
            inner = worker.job
            if inner is not None:
                self.stop(inner, _shutting_down())

    def dismiss(self) -> None:
        """Stop the threads, and fail the jobs that they have not finished."""
        self.stopping.set()
        self._canceler.close()
        for _ in self.workers:
            self.queue.put(None)
        for timer in (self._sweeping, self._collecting):
            if timer is not None:
                timer.cancel()
        self._sweeping = self._collecting = None
        for job in list(self._jobs):
            job.abandon(_shutting_down())
        for worker in self.workers:
            if worker.connection is not None and worker.busy:
                GUARD.give_up(worker.connection)

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, `timeout` seconds at most; blocks, so not in the reactor thread."""
        end = time.monotonic() + timeout
        for worker in self.workers:
            worker.thread.join(max(0.0, end - time.monotonic()))

    def _time_out(self, job: Job) -> None:
        # A job that has ended may still wait for the jobs that it was sent together with.
        if not (job.group or job).ended:
            self.stop(job, StatementTimeout())

    def _start_worker(self) -> None:
        worker = Worker(self, f"pg-{len(self.workers)}")
        self.workers.append(worker)
        worker.thread.start()

    def assign(self) -> None:
        """
        Assign waiting jobs to workers; transactions get all workers but one.

        If transactions had all workers, a transaction that waits for a query outside of itself
        would wait for ever. A finished job counts until its caller has the result, so a caller that
        is then blocked by the size of its results gets no next job.
        """
        # At shutdown owners are no longer blocked: every job has to end.
        most, all_of_them = self.limits.most, not self.accepting
        transactions, waiting = self._transactions, self._waiting
        while self._pinned < max(1, most - 1) and (job := transactions.next(all_of_them)):
            self._pinned += 1
            self.queue.put(job)
        self._ready = most - self._pinned + READY
        while waiting.queues and self._assigned < self._ready + AHEAD:
            job = waiting.next(all_of_them, self._ready, self._assigned >= self._ready)
            if job is None:
                break
            self._give(job)

    def _give(self, job: Job) -> None:
        self._assigned += 1
        owner, read = job.owner, job.shared_read
        if owner is not None:
            owner.given += 1
        if read is not None and (owner is None or owner.light):
            limit = self._limits.get(read.key) or self._limit(read)
            if limit.group is not None and limit.group.join(job):
                return
            limit.group = job = JobGroup(job, limit)
        self.queue.put(job)

    def _limit(self, read: SharedRead) -> GroupLimit:
        if len(self._limits) >= KINDS:
            self._limits.clear()
        found = self._limits[read.key] = GroupLimit(read.equal)
        return found

    def _drain(self) -> None:
        collecting, self._collecting = self._collecting, None
        if collecting is not None and collecting.active():  # inline: each call comes through here
            collecting.cancel()
        if self._more:
            self._more = False
            self._collecting = self._reactor.callLater(COLLECT, self._drain)
        self._waking = False
        # The flag is cleared first: a job posted after the last pass then wakes the reactor again.
        while self._finished:
            job = self._finished.popleft()
            self._finish_group(job) if isinstance(job, JobGroup) else self._finish(job)
        self.assign()

    def _finish_group(self, group: JobGroup) -> None:
        """Finish each job of a group; if a shared run of unequal reads failed, run each again alone."""
        limit = group.limit
        if limit.group is group:
            limit.group = None
            read = group.members[0].shared_read
            if limit.equal and read is not None:  # keys contain values, and few of them come again
                self._limits.pop(read.key, None)
        error, reason, running = group.error, group.reason, group.running
        # Each of equal reads would fail alone, too, and after a timeout of the server as late again.
        apart = len(running) > 1 and not limit.equal and reason is None
        apart = apart and error is not None and not _is_lost(error)
        found = dict(zip(running, group.result or (), strict=False))
        # Jobs and group refer to each other: without this, they would stay until the next collection.
        members, group.members, group.running, group.result = group.members, [], [], None
        for job in members:
            job.group = None
            if apart and job.reason is None and not job.token:
                self._run_alone(job)
                continue
            job.result, job.error, job.reason = found.get(job), error, job.reason or reason
            self._finish(job)

    def _run_alone(self, job: Job) -> None:
        """Queue a job of a failed group again; it still counts as assigned."""
        job.shared_read = None
        job.token.append(None)
        self._jobs[job] = self._reactor.seconds() + self.limits.acquire_timeout
        self.queue.put(job)

    def _finish(self, job: Job) -> None:
        if job.timer is not None:
            job.stop_timer()
        # A statement of a transaction is not counted: the job that keeps its worker is.
        if job in self._jobs:
            del self._jobs[job]
            if job.queue is not None:
                self._pinned -= 1
            else:
                self._assigned -= 1
                if job.owner is not None:
                    job.owner.given -= 1
        if job.error is None:
            # The caller's Deferred refers to the job, which would keep the result alive with it.
            result, job.result = job.result, None
            job.fire(result)
        else:
            job.fail(_outcome(job, job.error))
        if not self._jobs:
            for done in list(self._drained):
                done.callback(None)

    def _sweep(self) -> None:
        """Fail the jobs that have waited too long for a worker; stop those whose server is late."""
        for worker in self.workers:
            job, connection = worker.job, worker.connection
            if job is not None and connection is not None and connection.late(time.monotonic()):
                self.stop(job, StatementTimeout(), wait=True)
        now = self._reactor.seconds()
        for job, end in self._jobs.items():
            if end is not None and end <= now:
                # Only the value changes, which is allowed while the dict is iterated.
                self._jobs[job] = None
        # A list, because failing a job runs its caller's code, which may submit another job.
        late = [job for job, end in self._jobs.items() if end is None]
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep) if self._jobs else None
        for job in late:
            if job.take():
                self._timeouts += 1
                # A worker has it, and yet it has not begun: that worker is still trying to connect.
                blocked = job.owner.blocked if job.owner is not None else ""
                if blocked or (job.group or job).worker is not None:
                    job.fail(Unavailable(blocked or UNREACHABLE))
                else:
                    why = "no database connection was free in time"
                    job.fail(Unavailable(why, clock="connection"))
        self.assign()


def _outcome(job: Job, error: Failure) -> Failure | BaseException:
    """Return the error for the caller of a failed job: why it was stopped, if it was stopped."""
    if job.reason is None or not error.check(*INTERRUPTED):
        return error
    # The cancel had no effect: the server was silent, so it was not the statement that took long.
    if isinstance(job.reason, StatementTimeout) and not error.check(QueryCanceledError):
        return Unavailable("the database did not answer, and the connection was given up")
    return job.reason


def _is_lost(error: Failure) -> bool:
    """Return whether a job failed because of its connection, not because of its statement."""
    return bool(error.check(*INTERRUPTED)) and getattr(error.value, "pgcode", None) is None


def _shutting_down() -> Unavailable:
    return Unavailable("the service is shutting down")


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
        sessions = Sessions(dsn, session or SessionSettings(), limits.recheck)
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
