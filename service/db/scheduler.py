"""
Handing jobs to workers, and their results to callers.

All bookkeeping is done in the reactor thread. A worker only appends what it has finished to
a deque, and wakes the reactor if no wake-up is on its way.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import Any

import psycopg2
from psycopg2.extensions import QueryCanceledError
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from service.cancellation import CooperativeDeferred
from service.db.cancel import Canceler
from service.db.connection import PgConnection
from service.db.guard import GUARD
from service.db.session_settings import Sessions
from service.db.worker import UNREACHABLE, Job, JobOwner, PoolLimits, PoolStats, Worker
from service.errors import StatementTimeout, Unavailable

READY = 2
"""Jobs that lie ready for the next free workers; the others wait for their turn."""
AHEAD = 16
"""
Jobs that lie ready beyond those: a worker that finds its next job need not be woken for it.

No owner has more than it might have without them, so that nobody waits for longer than until its turn;
and the answers of each weigh little, so that they lie there together.
"""
SWEEP = 0.25
"""Seconds between two looks for callers that have waited too long for a connection."""
INTERRUPTED = (psycopg2.OperationalError, psycopg2.InterfaceError, Unavailable)
"""How a job ends that was stopped and keeps nothing; what may be kept is `OutcomeUnknown`."""


class FairQueue:
    """
    Jobs that wait, in a queue for each owner; owners are served in turn.

    So a caller with thousands of calls delays another by one of them, not by all.

    Attributes:
        queues: By owner, in the order in which they are served; of no owner without jobs.
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
        Remove and return the job whose turn it is; None if it may not begin.

        Args:
            blocked_too: Whether that may be of an owner that is blocked.
            most: Jobs that workers may have of each owner.
            light: Whether it has to be of one whose answers weigh little. If not, those behind it
                wait with it, or it might wait for ever.
        """
        for owner, queue in self.queues.items():
            if blocked_too or owner is None or (owner.given < most and not owner.blocked):
                if light and not (owner is not None and owner.light):
                    return None
                job = queue.popleft()
                # Changed while it is walked, which is safe only since the loop ends here.
                del self.queues[owner]
                if queue:  # at the end of the line
                    self.queues[owner] = queue
                return job
        return None


class Scheduler:
    """
    Workers, and the jobs that wait for them.

    Args:
        reactor: For timers, and to come back from threads.
        limits: How many workers there may be, and how long a job may wait.
        sessions: Where workers have theirs from.
    """

    def __init__(self, reactor: Any, limits: PoolLimits, sessions: Sessions) -> None:
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        self.epoch = 0
        self.slow = 0
        self.stopping = threading.Event()
        self.limits = limits
        self.workers: list[Worker] = []
        self.accepting = False
        self._reactor = reactor
        self._sessions = sessions
        self._canceler = Canceler(limits.most)
        self._jobs: dict[Job, float | None] = {}
        self._waiting = FairQueue()
        self._held = FairQueue()
        self._assigned = 0
        self._pinned = 0
        self._ready = limits.most + READY
        self._finished: deque[Job] = deque()
        self._waking = False
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
        """Count what there is to count."""
        busy = sum(worker.busy for worker in self.workers)
        waiting = max(0, len(self._jobs) - busy)
        return PoolStats(
            len(self.workers), busy, waiting, self._timeouts, self._connects, self.slow
        )

    # In worker threads

    def open(self) -> PgConnection:
        """Open a session for a worker."""
        # Read before connecting: a change that comes meanwhile has the session cleaned again.
        epoch = self.epoch
        connection = self._sessions.open()
        connection.epoch = epoch
        self._connects += 1
        return connection

    def moved(self, connection: PgConnection) -> bool:
        """Return whether a session would be another one if it were opened now."""
        return self._sessions.moved(connection)

    def post(self, job: Job) -> None:
        """Send a finished job to the reactor."""
        # Appended before the flag is read: a wake-up on its way then finds the job in any case.
        # Two workers may both see the flag unset; the second wake-up has nothing to do.
        self._finished.append(job)
        if not self._waking:
            self._waking = True
            self._reactor.callFromThread(self._drain)

    # In the reactor thread

    def submit(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        """
        Run a job in any worker; cancelling the Deferred stops its query on the server.

        What may be kept by then is asked to stop, and the Deferred gives what came of it.

        Args:
            job: Not used before.
            timeout: Seconds, waiting included, after which it is stopped.
        """
        if not self.accepting:
            return fail(_shutting_down())
        self._jobs[job] = self._reactor.seconds() + self.limits.acquire_timeout
        if len(self._jobs) > len(self.workers) and len(self.workers) < self.limits.most:
            self._start_worker()
        # One sweep for all: a timer for each job would be set and cancelled in every call.
        if self._sweeping is None:
            self._sweeping = self._reactor.callLater(SWEEP, self._sweep)
        waiting, owner = self._waiting, job.owner
        if job.queue is not None:
            self._held.add(job)
            self.assign()
        elif waiting.queues or self._assigned >= self._ready or (owner and owner.blocked):
            waiting.add(job)
            self.assign()
        else:  # as most are: nobody waits, so that nobody is passed over
            self._give(job)
        return self.promise(job, timeout)

    def promise(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        """Return the Deferred of a job that a worker has, or gets; as that of `submit`."""
        job.deferred = deferred = CooperativeDeferred()
        deferred.request = lambda: self.stop(job, CancelledError())
        if timeout is not None:
            job.timer = self._reactor.callLater(timeout, self._late, job)
        return deferred

    def stop(self, job: Job, reason: BaseException, wait: bool = False) -> None:
        """
        Stop a job, one that still waits at once.

        Args:
            job: Any.
            reason: What its caller gets, now or, if it commits, when nothing of it was kept.
            wait: Whether its caller waits for the server in any case.
        """
        if job.reason is not None:
            return
        job.reason = reason
        waits = job.take()
        if not waits:
            self._canceler.cancel(job)
        if waits or not (job.commits or wait):
            job.fail(reason)

    def settled(self, timeout: float) -> Deferred[None]:
        """Return a Deferred that fires once nothing runs any more, or after a time."""
        done: Deferred[None] = Deferred()
        if not self._jobs:
            done.callback(None)
            return done
        timer = self._reactor.callLater(timeout, done.callback, None)
        self._drained.append(done)

        def fired(_: None) -> None:
            self._drained.remove(done)
            if timer.active():
                timer.cancel()

        return done.addCallback(fired)

    def stop_all(self) -> None:
        """Stop every job, and end every transaction that lies open."""
        for job in list(self._jobs):
            if job.queue is None:
                self.stop(job, _shutting_down())
                continue
            if job.take():
                job.fail(_shutting_down())
            # An end mark: while it lies idle, there is nothing on the server to cancel.
            job.queue.put(None)
        for worker in self.workers:
            # What a transaction runs just now came by its own queue, and is none of `_jobs`.
            inner = worker.job
            if inner is not None:
                self.stop(inner, _shutting_down())

    def dismiss(self) -> None:
        """Stop the threads, and fail what they could not finish."""
        self.stopping.set()
        self._canceler.close()
        for _ in self.workers:
            self.queue.put(None)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for job in list(self._jobs):
            job.abandon(_shutting_down())
        for worker in self.workers:
            if worker.connection is not None and worker.busy:
                GUARD.give_up(worker.connection)

    def join(self, timeout: float) -> None:
        """Wait for the threads, so many seconds at most; not in the reactor thread."""
        end = time.monotonic() + timeout
        for worker in self.workers:
            worker.thread.join(max(0.0, end - time.monotonic()))

    def _late(self, job: Job) -> None:
        # One that has ended may wait for the others that it was sent with.
        if not job.ended:
            self.stop(job, StatementTimeout())

    def _start_worker(self) -> None:
        worker = Worker(self, f"pg-{len(self.workers)}")
        self.workers.append(worker)
        worker.thread.start()

    def assign(self) -> None:
        """
        Assign jobs to workers; transactions get all of them but the last one.

        One that waits for a query outside of it would wait for ever if transactions had them all.
        What has been done counts until its caller has it: a caller who then has enough waits.
        """
        most, all_of_them = self.limits.most, not self.accepting
        held, waiting = self._held, self._waiting
        while held.queues and self._pinned < max(1, most - 1) and (job := held.next(all_of_them)):
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
        if job.owner is not None:
            job.owner.given += 1
        self.queue.put(job)

    def _drain(self) -> None:
        self._waking = False
        # The flag is down before the last look: whoever posts after that wakes the reactor again.
        while self._finished:
            self._finish(self._finished.popleft())
        self.assign()

    def _finish(self, job: Job) -> None:
        if job.timer is not None:
            job.stop_timer()
        # What ran inside of a transaction is not counted: the job that keeps its worker is.
        if job in self._jobs:
            del self._jobs[job]
            if job.queue is not None:
                self._pinned -= 1
            else:
                self._assigned -= 1
                if job.owner is not None:
                    job.owner.given -= 1
        if job.error is None:
            # Whoever keeps the Deferred keeps the job, and would keep the result.
            result, job.result = job.result, None
            job.succeed(result)
        else:
            job.fail(_outcome(job, job.error))
        if not self._jobs:
            for done in list(self._drained):
                done.callback(None)

    def _sweep(self) -> None:
        """Fail the jobs that have waited too long for a worker, stop those that take too long."""
        for worker in self.workers:
            job, connection = worker.job, worker.connection
            if job is not None and connection is not None and connection.late(time.monotonic()):
                self.stop(job, StatementTimeout(), wait=True)
        now = self._reactor.seconds()
        for job, end in self._jobs.items():
            if end is not None and end <= now:
                # A value, no key: that may change while the dict is walked.
                self._jobs[job] = None
        # A list, since failing a job runs its caller, which may submit the next one.
        late = [job for job, end in self._jobs.items() if end is None]
        self._sweeping = self._reactor.callLater(SWEEP, self._sweep) if self._jobs else None
        for job in late:
            if job.take():
                self._timeouts += 1
                # Held by a worker, and yet not begun: that one is still trying to connect.
                blocked = job.owner.blocked if job.owner is not None else ""
                if blocked or job.worker is not None:
                    job.fail(Unavailable(blocked or UNREACHABLE))
                else:
                    why = "no database connection was free in time"
                    job.fail(Unavailable(why, clock="connection"))
        self.assign()


def _outcome(job: Job, error: Failure) -> Failure | BaseException:
    """Return what the caller of a job gets that has failed, perhaps since it was stopped."""
    if job.reason is None or not error.check(*INTERRUPTED):
        return error
    # It did not heed the cancel: the server was silent, rather than the statement long.
    if isinstance(job.reason, StatementTimeout) and not error.check(QueryCanceledError):
        return Unavailable("the database did not answer, and the connection was given up")
    return job.reason


def _shutting_down() -> Unavailable:
    return Unavailable("the service is shutting down")
