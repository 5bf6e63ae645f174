"""
Functions of the worker threads that begin and end transactions and set identities; and retries.

Transactions that fail with 40001 or 40P01 are retried a few times. Pauses alone are not enough under
contention: of eight serializable writers of the same rows, one in ten was still refused after six
attempts, because a new writer comes for each that succeeds. So retries of one kind take turns, first
come first served, and new transactions of the kind wait until those turns are over. Transactions of one
kind that would not have been in conflict are delayed by the length of a transaction.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS, cursor
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater

from service.db.connection import PgConnection
from service.db.session_settings import OWN_IDENTITY, Identity
from service.errors import (
    InvalidArgument,
    OutcomeUnknown,
    ServiceError,
    TooLarge,
    Unavailable,
    causes,
    committed_despite,
)

RETRIES = 5
"""Maximum number of retries of a transaction."""
PAUSE = 0.01
"""Seconds; the pause after n attempts is up to 2ⁿ times as long, or as long as the last attempt."""
TURN = 2.0
"""Maximum seconds to wait for a turn: the transaction that has it may be waiting for this one."""


class Retries:
    """
    Retries of transactions after serialization failures and deadlocks.

    Args:
        reactor: Runs the timers of pauses and turns.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._turns: dict[Hashable, DeferredLock] = {}

    async def run(
        self,
        attempt: Callable[[], Awaitable[Any]],
        retries: int = RETRIES,
        kind: Hashable = None,
    ) -> Any:
        """
        Run an attempt, and retry it after 40001 and 40P01: first in its turn, then after pauses.

        The error of the last attempt has the number of attempts as `attempts`.

        Args:
            attempt: Runs one transaction, or one statement.
            retries: Maximum number of retries.
            kind: Equal for transactions that may contend for the same rows; None takes no turns.
        """
        tried = 0
        turn = self._turns.get(kind)
        # Released at once: earlier retries are over by then, and a first attempt blocks no other.
        if turn is not None and await self._wait_for_turn(turn):
            self._end_turn(kind, turn)
        turn = None
        try:
            while True:
                began = self._reactor.seconds()
                try:
                    return await attempt()
                except Exception as error:
                    tried += 1
                    if not retryable(error):
                        raise
                    if tried > retries:
                        _note_attempts(error, tried)
                        raise
                if kind is not None and turn is None:  # transactions of its kind are in its way
                    wanted = self._turns.setdefault(kind, DeferredLock())
                    turn = wanted if await self._wait_for_turn(wanted) else None
                else:  # as long as an attempt, so that those that began with this one can end
                    most = max(PAUSE * 2**tried, self._reactor.seconds() - began)
                    await deferLater(self._reactor, random.uniform(0.5, 1) * most)
        finally:
            if turn is not None:
                self._end_turn(kind, turn)

    async def _wait_for_turn(self, turn: DeferredLock) -> bool:
        try:
            await turn.acquire().addTimeout(TURN, self._reactor)
        except Late:
            return False
        return True

    def _end_turn(self, kind: Hashable, turn: DeferredLock) -> None:
        turn.release()
        # Deleted unless others wait for it: otherwise a lock would stay for each kind ever seen.
        if not turn.locked and self._turns.get(kind) is turn:
            del self._turns[kind]


def retryable(error: BaseException) -> bool:
    """
    Return whether a transaction may be retried: its error is, or was caused by, 40001 or 40P01.

    Causes of `OutcomeUnknown` do not count, because something may have been committed: a CALL, say,
    may fail with a serialization failure after the procedure has committed.
    """
    return any(
        getattr(each, "pgcode", None) in ("40001", "40P01")
        for each in takewhile(lambda each: not isinstance(each, OutcomeUnknown), causes(error))
    )


def _note_attempts(error: Exception, attempts: int) -> None:
    if isinstance(error, ServiceError):
        error.details["attempts"] = attempts
    else:  # `refusal` copies it into the details of the error that callers get
        error.attempts = attempts  # type: ignore[attr-defined]


ISOLATION_LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
"""From the weakest to the strongest; PostgreSQL treats the first as the second."""


class TransactionClosed(Exception):
    """A task has used a transaction that had already ended."""


class TransactionAborted(Exception):
    """PostgreSQL answered COMMIT with ROLLBACK: a statement had failed, and its error was swallowed."""


def begin_statement(isolation: str | None = None, read_only: bool = False) -> str:
    """
    Return the BEGIN statement of a transaction.

    Raises:
        ValueError: There is no such isolation level.
    """
    begin = "BEGIN"
    if isolation is not None:
        # It becomes part of the SQL text, so only these strings may pass.
        if isolation not in ISOLATION_LEVELS:
            raise ValueError(f"not an isolation level: {isolation}")
        begin += f" ISOLATION LEVEL {isolation.upper()}"
    return f"{begin} READ ONLY" if read_only else begin


def single_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function in autocommit; behind a transaction pooler, in a transaction."""
    if not connection.pooled:
        connection.assume(identity.local)
        return function(connection, *args)
    return atomic_txn(connection, "BEGIN", identity.local, function, *args)


def autocommit_write_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function of one statement that may write, in autocommit."""
    # Behind a pooler the COMMIT of `commit_txn` may be lost, and that raises `OutcomeUnknown` itself.
    first = () if connection.pooled else (autocommit_txn,)
    return single_txn(connection, identity, *first, function, *args)


def procedure_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run a function of one statement that may end its transaction, with a session's identity set.

    The worker cleans the session before another caller uses it. Behind a transaction pooler session
    settings cannot be used, so the statement runs in a transaction there, like all others.

    Raises:
        OutcomeUnknown: The statement was stopped or failed to serialize, after it may have committed.
    """
    if connection.pooled:
        return atomic_txn(connection, "BEGIN", identity.local, function, *args)
    connection.touch()
    # In a message of its own: beside other statements, CALL may not end a transaction (2D000).
    if identity.session:
        connection.command(identity.session)
    try:
        return autocommit_txn(connection, function, *args)
    except psycopg2.OperationalError as error:
        if error.pgcode is None:  # stopped before the statement was sent
            raise
        raise OutcomeUnknown("the procedure was stopped; what it had committed is kept") from error


def autocommit_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run a function of one statement that writes in autocommit.

    Raises:
        OutcomeUnknown: The connection was lost while the statement was under way; or the statement has
            committed, and its result is too large to be sent.
    """
    try:
        return function(connection, *args)
    except TooLarge as error:
        raise committed_despite(error) from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if connection.closed:
            raise OutcomeUnknown from error
        raise


def atomic_txn(
    connection: PgConnection, begin: str, identity: str, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function in a transaction of its own; if it raises, the worker rolls back."""
    connection.begin(begin, identity)
    return committed_txn(connection, function, *args)


def committed_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in the open transaction, and commit; if it raises, the worker rolls back."""
    result = function(connection, *args)
    commit_txn(connection)
    return result


def acting_txn(
    connection: PgConnection, actor: Actor, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function in the open transaction, with the role, claims and `search_path` of an actor."""
    connection.act(actor)
    return function(connection, *args)


def acting_each_txn(
    connection: PgConnection,
    steps: Sequence[tuple[Actor, Callable[..., Any], Sequence[Any]]],
    done: list[Any],
) -> None:
    """Run functions one after another, each as its actor; append each result to `done`."""
    for actor, function, args in steps:
        connection.act(actor)
        done.append(function(connection, *args))


def in_savepoint_txn(
    connection: PgConnection,
    isolation: str | None,
    read_only: bool,
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """Run a function inside a savepoint of the open transaction; if it raises, roll back to that."""
    savepoint_txn(connection, "atomic", isolation, read_only)
    try:
        result = function(connection, *args)
    except BaseException:
        if not connection.closed:
            # Of a job that was stopped, the cursor would refuse ROLLBACK TO like any statement.
            connection.stopped = 0.0
            undo_txn(connection, "atomic")
        raise
    connection.command("RELEASE SAVEPOINT atomic")
    return result


def cursor_txn(connection: PgConnection, function: Callable[..., Any], args: Any, kw: Any) -> Any:
    """Run a function that takes a cursor, as `ConnectionPool.runInteraction` does."""
    with connection.cursor() as opened:
        return function(opened, *args, **kw)


def statement_txn(
    connection: PgConnection,
    sql: str,
    params: Any = None,
    fetch: bool = True,
    post: Callable[[list[tuple[Any, ...]], cursor], Any] | None = None,
) -> Any:
    """Run one statement; return its rows, passed through `post`, or how many it has affected."""
    with connection.cursor() as opened:
        opened.execute(sql, params)
        if not fetch or opened.description is None:
            return opened.rowcount
        rows = opened.fetchall()
        return post(rows, opened) if post is not None else rows


def commit_txn(connection: PgConnection) -> None:
    """
    Commit the transaction; send nothing if its BEGIN was never sent.

    Deferred triggers run first, then the session is cleaned, then COMMIT runs, all in one message. If
    the cleaning fails, nothing is committed.

    Raises:
        Unavailable: The connection was lost before COMMIT; the server has rolled back.
        OutcomeUnknown: The connection was lost while COMMIT was under way.
        TransactionAborted: The server answered ROLLBACK.
    """
    noted, connection.opening = connection.opening, None
    idle = connection.closed or connection.get_transaction_status() == TRANSACTION_STATUS_IDLE
    if noted is not None and idle:
        return
    # If the connection is lost before COMMIT is sent, the server rolls back; after that, the outcome
    # is unknown.
    if not connection.alive():
        raise Unavailable("the database connection was lost before COMMIT")
    cleaning = ""
    # In a failed transaction these statements would raise, and hide that COMMIT is a ROLLBACK.
    if connection.touched and connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS:
        cleaning = f"SET CONSTRAINTS ALL IMMEDIATE;{connection.cleaning()}"
    try:
        answer = connection.command(f"{connection.ending}{cleaning}COMMIT")
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if connection.closed:
            raise OutcomeUnknown from error
        raise
    # COMMIT of a failed transaction is no error to PostgreSQL: its command tag is ROLLBACK.
    if answer != "COMMIT":
        raise TransactionAborted(f"COMMIT was answered by {answer}")
    # The session was cleaned in the same message, unless only closing it cleans it (`single_use`).
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
    Set a savepoint, after which the server refuses writes if `read_only`; its end permits them again.

    Raises:
        InvalidArgument: The transaction has a weaker level than `isolation`, and PostgreSQL cannot
            change the level after the first statement.
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
    Roll back to a savepoint, and release it.

    If that fails, the session is closed, and the server rolls back the entire transaction: an
    enclosing scope must not commit what this scope was to undo.
    """
    try:
        connection.command(f"ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")
    except BaseException:
        connection.close()
        raise
    connection.actor = None  # an identity that was set after the savepoint was undone with it


def apart_txn(
    connection: PgConnection, actor: Actor, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run one of several reads of a transaction as an actor, in a savepoint: if it fails, others can run.

    The savepoint travels with its first statement.
    """
    connection.opening = f"{connection.opening or ''}SAVEPOINT apart;"
    connection.act(actor)
    try:
        result = function(connection, *args)
    except BaseException:
        if not connection.closed:
            undo_txn(connection, "apart")
        raise
    # Travels with the next statement; `opening` still holds SAVEPOINT if the function sent none.
    connection.opening = f"{connection.opening or ''}RELEASE SAVEPOINT apart;"
    return result


def rollback_to_txn(connection: PgConnection, savepoint: str) -> None:
    """Roll back to a savepoint, which stays."""
    connection.command(f"ROLLBACK TO SAVEPOINT {savepoint}")
    connection.actor = None  # an identity that was set after the savepoint was undone with it


@dataclass(slots=True, eq=False)
class Actor:
    """
    The sender of statements: one call of a procedure, say, with all the work that it starts.

    Args:
        identity: Identity under which the statements run.
        committed: Whether work of this actor that may have changed something was committed.
    """

    identity: Identity = OWN_IDENTITY
    committed: bool = False

    def commits(self, work: Deferred[Any]) -> Deferred[Any]:
        """Set `committed` once the work, which commits, has succeeded."""
        return work.addCallback(self._committed)

    def _committed(self, result: Any) -> Any:
        self.committed = True
        return result
