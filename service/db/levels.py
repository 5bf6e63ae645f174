"""
An open transaction and its savepoints, as tasks see them.

A transaction keeps one worker, from its first statement to its end, and feeds it through a
queue of its own. Statements of one level run in the order in which they came; while a savepoint
is open, its parent's statements and other savepoints wait for its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.python.failure import Failure

from service.db.connection import PgConnection
from service.db.scheduler import Scheduler
from service.db.transaction import (
    Actor,
    TransactionClosed,
    acting_txn,
    commit_txn,
    committed_txn,
    rollback_txn,
    savepoint_txn,
    undo_txn,
)
from service.db.worker import Job
from service.errors import Unavailable

IDLE = "the transaction lay idle for too long and was rolled back"


class Level(ABC):
    """
    A transaction or a savepoint: what its statements run in.

    Attributes:
        read_only: Whether the server refuses writes in it.
        all_or_nothing: Whether who began it keeps nothing of it once anything in it was refused,
            so that what can be refused needs no savepoint.
    """

    all_or_nothing = False

    def __init__(self, depth: int, actor: Actor, read_only: bool = False) -> None:
        self.depth = depth
        self.actor = actor
        self.read_only = read_only
        self.closed = False
        self.lock = DeferredLock()
        self.child: Level | None = None

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        actor: Actor,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """
        Run a function in the transaction's worker, once no savepoint is open in this level.

        Args:
            function: As that of `Database.run`.
            args: For the function.
            actor: As whom its statements run.
            timeout: Seconds after which it is stopped.

        Raises:
            TransactionClosed: The level has ended.
        """
        work = acting_txn, actor, function, *args
        if self.child is None:
            return self._run(*work, timeout=timeout)
        # The lock calls back in the context of whoever releases it, not in that of this caller.
        context = copy_context()

        def free(_: DeferredLock) -> Deferred[Any]:
            # Not waited for before the release: the worker's queue keeps the order from here on.
            done = context.run(self._run, *work, timeout=timeout)
            self.lock.release()
            return done

        return self.lock.acquire().addCallback(free)

    def finish(
        self,
        function: Callable[..., Any],
        *args: Any,
        actor: Actor,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """Run a last function, as `run` does; a transaction ends with it, a savepoint does not."""
        return self.run(function, *args, actor=actor, timeout=timeout)

    def _run(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Deferred[Any]:
        if self.closed:
            # Nor by itself: what a task that outlives its transaction does would be kept.
            return fail(TransactionClosed("the transaction has already ended"))
        return self.send(function, *args, timeout=timeout)

    @abstractmethod
    def send(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Deferred[Any]:
        """Submit a function to the transaction's worker, past those that wait their turn."""

    @abstractmethod
    async def enter(self) -> None:
        """Begin the level."""

    @abstractmethod
    async def commit(self) -> None:
        """End the level and keep what was done."""

    @abstractmethod
    async def rollback(self) -> None:
        """End the level and undo what was done since `enter`."""

    @abstractmethod
    def abandon(self) -> None:
        """End the level and undo what was done, without waiting for it."""


class Transaction(Level):
    """
    The outermost level.

    Args:
        scheduler: Where its worker comes from.
        words: The BEGIN.
        actor: As whom it runs.
        read_only: Whether the server refuses writes in it.
        idle: Seconds for which it may lie idle, if its holder ends it then. The server's own limit
            is put off, since it ends the session with the transaction.

    Attributes:
        first: Called in its worker before all else, with BEGIN noted.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        words: str,
        actor: Actor,
        read_only: bool = False,
        idle: float | None = None,
    ) -> None:
        super().__init__(0, actor, read_only)
        self._idle = idle
        self._scheduler = scheduler
        self._words = words
        self.first: Callable[[PgConnection], None] | None = None
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._server: Job | None = None
        self._failure: Failure | None = None
        self._open: set[Job] = set()

    async def enter(self) -> None:
        """Wait for nothing: the first statement takes BEGIN along."""

    def send(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Deferred[Any]:
        """Submit a function to the transaction's worker, which the first one asks for."""
        return self._put(Job(function, args), timeout)

    def _put(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        if self._failure is not None:
            return fail(self._failure)
        self._open.add(job)
        done = self._scheduler.promise(job, timeout).addBoth(self._done, job)
        # Before the worker is woken: it would want the interpreter while we hold it.
        self._queue.put(job)
        if self._server is None:
            self._server = Job(self._serve_txn, queue=self._queue)
            # It fails at once when the pool is closing, and with it all that is open.
            self._scheduler.submit(self._server).addBoth(self._ended)
        return done

    def _done(self, outcome: Any, job: Job) -> Any:
        self._open.discard(job)
        return outcome

    def _serve_txn(self, connection: PgConnection) -> None:
        """Run what comes from the queue, in the worker, until the end mark."""
        server = self._server
        assert server is not None
        assert server.worker is not None
        connection.begin(self._words)
        if self._idle is not None:
            connection.allow_idle(self._idle + connection.grace)
        if self.first is not None:
            self.first(connection)
        perform = partial(server.worker.perform, connection=connection)
        while (job := self._next(connection)) is not None:
            server.worker.execute(job, perform)
            del job  # or its result would stay until the caller sends another one

    def _next(self, connection: PgConnection) -> Job | None:
        """
        Wait for the next job; the server's own limit should have passed before ours.

        Raises:
            Unavailable: The transaction lies idle.
        """
        limit = connection.idle + connection.grace if connection.idle else None
        try:
            return self._queue.get(timeout=limit)
        except Empty:
            raise Unavailable(IDLE, 0.0, clock="idle") from None

    def _ended(self, outcome: Any) -> None:
        """Fail the jobs without an outcome: no worker came, or it ended before them."""
        reason = outcome if isinstance(outcome, Failure) else None
        self._failure = reason or Failure(TransactionClosed("the transaction was ended"))
        for job in list(self._open):
            job.abandon(self._failure)

    def finish(
        self,
        function: Callable[..., Any],
        *args: Any,
        actor: Actor,
        timeout: float | None = None,
    ) -> Deferred[Any]:
        """
        Run a last function and commit, in one job: a hop to a thread and back takes some 70 µs.

        If it fails, the worker rolls back what it finds open.
        """
        if self.child is not None or self.closed:
            return super().finish(function, *args, actor=actor, timeout=timeout)
        self.closed = True
        job = Job(committed_txn, (acting_txn, actor, function, *args), commits=True)
        return self.actor.commits(self._last(job, timeout))

    async def commit(self) -> None:
        """Commit and release the worker; without a statement there is nothing to do."""
        if self._close():
            await self.actor.commits(self._last(Job(commit_txn, commits=True)))

    async def rollback(self) -> None:
        """Roll back and release the worker; the error of a lost transaction is ignored."""
        if not self._close():
            return
        server = self._server
        if server is not None and server.take():  # still waiting for a worker
            self._ended(Failure(CancelledError()))
            return
        await _finished(self._last(Job(rollback_txn)))  # the worker lets nothing stay open

    def abandon(self) -> None:
        """Release the worker, which rolls back what it finds open."""
        if self._close():
            if self._server is not None and self._server.take():  # still waiting for a worker
                self._ended(Failure(CancelledError()))
            self._queue.put(None)

    def _close(self) -> bool:
        was_open, self.closed = not self.closed, True
        return was_open and self._server is not None

    def _last(self, job: Job, timeout: float | None = None) -> Deferred[Any]:
        done = self._put(job, timeout)
        self._queue.put(None)
        return done


class Savepoint(Level):
    """
    A level inside another; its end gives way to its parent.

    Args:
        parent: The other one.
        isolation: What the transaction has to be isolated at least.
        read_only: Whether the server refuses writes in it.
    """

    def __init__(
        self, parent: Level, isolation: str | None = None, read_only: bool = False
    ) -> None:
        super().__init__(parent.depth + 1, parent.actor, read_only or parent.read_only)
        self._parent = parent
        self._kind = isolation, read_only
        self._name = f"scope_{self.depth}"

    def send(
        self, function: Callable[..., Any], *args: Any, timeout: float | None = None
    ) -> Deferred[Any]:
        """Submit a function to the transaction's worker."""
        return self._parent.send(function, *args, timeout=timeout)

    async def enter(self) -> None:
        """Wait until the parent has no other savepoint open, then set ours."""
        # Of two savepoints side by side on one connection, the first one's end would take the
        # second along: tasks in parallel have to take turns.
        await self._parent.lock.acquire()
        self._parent.child = self
        try:
            if self._parent.closed:
                raise TransactionClosed("the transaction has already ended")
            await self.send(savepoint_txn, self._name, *self._kind)
        except BaseException:
            self._leave()
            raise

    async def commit(self) -> None:
        """Release the savepoint; if that fails, roll back to it."""
        if self.closed:
            return
        try:
            # A task that is cancelled here gives the savepoint up: the parent must not commit it.
            await self.send(PgConnection.command, f"RELEASE SAVEPOINT {self._name}")
        except BaseException:
            self._undo()
            raise
        self._leave()

    async def rollback(self) -> None:
        """
        Roll back to the savepoint; the error of a lost transaction is ignored.

        It is done in any case, though the task that waits for it is cancelled.
        """
        if not self.closed:
            await _finished(self._undo())

    def abandon(self) -> None:
        """Roll back without waiting for it; the parent may go on."""
        if not self.closed:
            self._undo()

    def _undo(self) -> Deferred[Any]:
        """Submit the rollback, before whatever the parent sends from now on."""
        done = self.send(undo_txn, self._name).addErrback(lambda _: None)
        self._leave()
        return done

    def _leave(self) -> None:
        self.closed = True
        self._parent.child = None
        self._parent.lock.release()


def _finished(done: Deferred[Any]) -> Deferred[None]:
    """Wait for work that a cancel of the waiter does not stop, whether it fails or not."""
    waiting: Deferred[None] = Deferred()
    done.addBoth(lambda _: waiting.callback(None))
    return waiting
