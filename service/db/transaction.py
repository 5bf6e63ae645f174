"""
An open transaction, its savepoints, and what a worker thread does to begin and end them.

A transaction keeps one worker, from its first statement to its end, and feeds it through a
queue of its own. Statements of one level run in the order in which they came; while a savepoint
is open, its parent's statements and other savepoints wait for its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS, cursor
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, fail
from twisted.python.failure import Failure

from service.db.connection import PgConnection
from service.db.scheduler import Scheduler
from service.db.session import OWN_IDENTITY, Identity
from service.db.worker import Job
from service.errors import InvalidArgument, OutcomeUnknown, Unavailable

ISOLATION_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
"""From the weakest on; in PostgreSQL the first is the second by another name."""


class TransactionClosed(Exception):
    """A task spoke to a transaction that had already ended."""


class TransactionAborted(Exception):
    """COMMIT was answered by ROLLBACK: a statement had failed, and its error was swallowed."""


def begin_statement(isolation: str | None = None, read_only: bool = False) -> str:
    """
    Return the BEGIN.

    Raises:
        ValueError: There is no such isolation level.
    """
    words = "BEGIN"
    if isolation is not None:
        # It becomes a part of the SQL, so it is one of these words and no other.
        if isolation not in ISOLATION_LEVELS:
            raise ValueError(f"not an isolation level: {isolation}")
        words += f" ISOLATION LEVEL {isolation.upper()}"
    return f"{words} READ ONLY" if read_only else words


def single_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function whose statements stand alone; behind a pooler, in a transaction."""
    if not connection.pooled:
        connection.assume(identity.words)
        return function(connection, *args)
    return atomic_txn(connection, "BEGIN", identity.words, function, *args)


def autocommit_write_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function whose one statement may write, and commits by itself."""
    # Behind a pooler it is COMMIT that may be lost on its way, and `commit_txn` says so.
    first = () if connection.pooled else (autocommit_txn,)
    return single_txn(connection, identity, *first, function, *args)


def procedure_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run a function whose one statement may end its transaction, in a session of an identity.

    No other caller gets that session as it is: the worker cleans it afterwards. Behind a pooler it
    is not ours to change, and the statement runs in a transaction there like the rest.
    """
    if connection.pooled:
        return atomic_txn(connection, "BEGIN", identity.words, function, *args)
    connection.touch()
    # A message of its own: in one with other statements, CALL may not end a transaction (2D000).
    if identity.session:
        connection.command(identity.session)
    return _committing_txn(connection, function, *args)


def _committing_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run a function whose one statement may commit on its way.

    Raises:
        OutcomeUnknown: It was stopped, or could be run again: what it had committed is kept.
    """
    try:
        return autocommit_txn(connection, function, *args)
    except psycopg2.OperationalError as error:
        if error.pgcode is None:  # stopped before it was sent
            raise
        raise OutcomeUnknown("the procedure was stopped; what it had committed is kept") from error


def autocommit_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run a function whose one statement writes, and commits by itself.

    Raises:
        OutcomeUnknown: The session died while it was on its way.
    """
    try:
        return function(connection, *args)
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if connection.closed:
            raise OutcomeUnknown from error
        raise


def atomic_txn(
    connection: PgConnection, words: str, identity: str, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function in a transaction of its own; the worker rolls back when it raises."""
    connection.begin(words, identity)
    return committed_txn(connection, function, *args)


def committed_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in the open transaction and commit; the worker rolls back when it raises."""
    result = function(connection, *args)
    commit_txn(connection)
    return result


def acting_txn(
    connection: PgConnection, actor: Actor, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function in the open transaction, with the role, claims and `search_path` of an actor."""
    connection.act(actor)
    return function(connection, *args)


def nested_txn(
    connection: PgConnection,
    isolation: str | None,
    read_only: bool,
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """Run a function inside a savepoint of the open transaction, as `savepoint_txn` sets it."""
    savepoint_txn(connection, "atomic", isolation, read_only)
    try:
        result = function(connection, *args)
    except BaseException:
        if not connection.closed:
            # The cursor would refuse ROLLBACK TO of a job that was stopped, as any statement.
            connection.stopped = 0.0
            undo_txn(connection, "atomic")
        raise
    connection.command("RELEASE SAVEPOINT atomic")
    return result


def cursor_txn(connection: PgConnection, function: Callable[..., Any], args: Any, kw: Any) -> Any:
    """Run a function that expects a cursor, as that of `ConnectionPool.runInteraction`."""
    with connection.cursor() as opened:
        return function(opened, *args, **kw)


def statement_txn(
    connection: PgConnection,
    sql: str,
    params: Any = None,
    fetch: bool = True,
    post: Callable[[list[tuple[Any, ...]], cursor], Any] | None = None,
) -> Any:
    """Run one statement and return its rows, passed through `post`, else how many it touched."""
    with connection.cursor() as opened:
        opened.execute(sql, params)
        if not fetch or opened.description is None:
            return opened.rowcount
        rows = opened.fetchall()
        return post(rows, opened) if post is not None else rows


def commit_txn(connection: PgConnection) -> None:
    """
    Commit what has begun; costs nothing if nothing was sent.

    What was left behind in the session goes in the same message, before COMMIT: whatever fails
    there, nothing is kept. Deferred triggers run before that.

    Raises:
        Unavailable: The session died before COMMIT; the server has rolled back.
        OutcomeUnknown: It died while COMMIT was on its way.
        TransactionAborted: The server answered ROLLBACK.
    """
    noted, connection.opening = connection.opening, None
    idle = connection.closed or connection.get_transaction_status() == TRANSACTION_STATUS_IDLE
    if noted is not None and idle:
        return
    # Before COMMIT is sent, a lost session is sure to be rolled back; afterwards nobody knows.
    if not connection.alive():
        raise Unavailable("the database connection was lost before COMMIT")
    cleaning = ""
    # A transaction that has failed refuses all of this, and would hide how COMMIT was answered.
    if connection.touched and connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS:
        cleaning = f"SET CONSTRAINTS ALL IMMEDIATE;{connection.cleaning}"
    try:
        answer = connection.command(f"{connection.ending}{cleaning}COMMIT")
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if connection.closed:
            raise OutcomeUnknown from error
        raise
    # COMMIT of a transaction that has failed is no error to PostgreSQL: it answers ROLLBACK.
    if answer != "COMMIT":
        raise TransactionAborted(f"COMMIT was answered by {answer}")
    # Cleaned in the same message; what no statement cleans is left for the worker to close.
    connection.touched = connection.touched and connection.single_use


def rollback_txn(connection: PgConnection) -> None:
    """Roll back the transaction, if it has begun."""
    connection.opening = None
    if not connection.closed:
        connection.clean()


def savepoint_txn(
    connection: PgConnection, savepoint: str, isolation: str | None = None, read_only: bool = False
) -> None:
    """
    Set a savepoint, behind which the server refuses writes if it is to; its end permits them again.

    Raises:
        InvalidArgument: The transaction is isolated less than `isolation` demands, and PostgreSQL
            cannot change that once a statement has run.
    """
    if isolation is not None:
        (found,) = statement_txn(connection, "SELECT current_setting('transaction_isolation')")[0]
        if ISOLATION_LEVELS.index(isolation) > ISOLATION_LEVELS.index(found):
            raise InvalidArgument(
                f"this is to run {isolation}, and is called in a transaction that is {found}",
                hint=f'begin that transaction with isolation "{isolation}"',
            )
    only = "; SET TRANSACTION READ ONLY" if read_only else ""
    connection.command(f"SAVEPOINT {savepoint}{only}")


def undo_txn(connection: PgConnection, savepoint: str) -> None:
    """
    Roll back to a savepoint.

    Where that fails, the session is closed, and the server undoes the whole transaction: what
    its scope has given up must not be committed by another one.
    """
    try:
        connection.command(f"ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")
    except BaseException:
        connection.close()
        raise
    connection.actor = None  # as whom statements run was undone, too, if it was set since


def apart_txn(
    connection: PgConnection, actor: Actor, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run one of several reads of a transaction, as an actor; its error leaves the others alone.

    Its savepoint travels with its first statement.
    """
    connection.opening = f"{connection.opening or ''}SAVEPOINT apart;"
    connection.act(actor)
    try:
        result = function(connection, *args)
    except BaseException:
        if not connection.closed:
            undo_txn(connection, "apart")
        raise
    # Before the next statement, whatever that is.
    connection.opening = f"RELEASE SAVEPOINT apart;{connection.opening or ''}"
    return result


def rollback_to_txn(connection: PgConnection, savepoint: str) -> None:
    """Roll back to a savepoint, which stays; as whom statements run may have been undone with it."""
    connection.command(f"ROLLBACK TO SAVEPOINT {savepoint}")
    connection.actor = None


@dataclass(slots=True, eq=False)
class Actor:
    """
    Who sends statements: one call of a procedure, say, and all that it starts.

    Args:
        identity: As whom the statements run.
        committed: Whether something that may have been a change was.
    """

    identity: Identity = OWN_IDENTITY
    committed: bool = False

    def commits(self, work: Deferred[Any]) -> Deferred[Any]:
        """Record that work which commits what it does was done."""
        return work.addCallback(self._committed)

    def _committed(self, result: Any) -> Any:
        self.committed = True
        return result


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
        if self._server is None:
            self._server = Job(self._serve_txn, queue=self._queue)
            self._scheduler.submit(self._server).addBoth(self._ended)
        # Asked after the submit, which fails at once when the pool is closing.
        if self._failure is not None:
            return fail(self._failure)
        self._open.add(job)
        return self._scheduler.submit_to(self._queue, job, timeout).addBoth(self._done, job)

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
        while (job := self._next(connection)) is not None:
            server.worker.execute(job, partial(server.worker.perform, connection=connection))

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
        if self.child is not None or self.closed or self._server is None:
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
