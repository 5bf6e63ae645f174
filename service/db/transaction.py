"""
What a worker thread does to begin and end transactions, and as whom statements run in them.

Those that PostgreSQL asks to be run again (40001, 40P01) are, some times, and in an order. Pauses alone
do not bring contending transactions to an end: of eight serializable writers of the same rows, one in
ten was still refused after six attempts, since a new one comes for each that is done. So those of one
kind that are run again take turns, in their order, and new ones wait for the turns that were taken
before them. What only looks alike is held up by that for the length of a transaction.
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
from service.errors import InvalidArgument, OutcomeUnknown, ServiceError, Unavailable, causes

RETRIES = 5
"""Further attempts at a transaction that PostgreSQL asks to be run again."""
PAUSE = 0.01
"""Seconds; the pause after n attempts is up to 2ⁿ times as long, or as long as the last of them."""
TURN = 2.0
"""Seconds for which a turn is waited for: whoever has it may be waiting for this very transaction."""


class Retries:
    """
    Args:
        reactor: For the pauses between attempts.
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
        Run an attempt, and again after 40001 and 40P01: in its turn, then after pauses that grow.

        The error of the last one says how many there were, as `attempts`.

        Args:
            attempt: One transaction, or one statement.
            retries: How often again.
            kind: Equal for transactions that may meet in the same rows; None takes no turns.
        """
        tried = 0
        turn = self._turns.get(kind)
        # Waited for, and given back at once: those before are done, and this one blocks nobody.
        if turn is not None and await self._taken(turn):
            self._end(kind, turn)
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
                        _count(error, tried)
                        raise
                if kind is not None and turn is None:  # the others of its kind are in its way
                    wanted = self._turns.setdefault(kind, DeferredLock())
                    turn = wanted if await self._taken(wanted) else None
                else:  # at least until those are done which began with this one
                    most = max(PAUSE * 2**tried, self._reactor.seconds() - began)
                    await deferLater(self._reactor, random.uniform(0.5, 1) * most)
        finally:
            if turn is not None:
                self._end(kind, turn)

    async def _taken(self, turn: DeferredLock) -> bool:
        try:
            await turn.acquire().addTimeout(TURN, self._reactor)
        except Late:
            return False
        return True

    def _end(self, kind: Hashable, turn: DeferredLock) -> None:
        turn.release()
        # One that others wait for stays; kept for ever, there would be one for each kind ever met.
        if not turn.locked and self._turns.get(kind) is turn:
            del self._turns[kind]


def retryable(error: BaseException) -> bool:
    """
    Return whether PostgreSQL asks for the transaction to be run again (40001, 40P01).

    Not so if something may be kept of it, whatever that was caused by: half of a CALL, say, that
    ended in a serialization failure after it had committed.
    """
    return any(
        getattr(each, "pgcode", None) in ("40001", "40P01")
        for each in takewhile(lambda each: not isinstance(each, OutcomeUnknown), causes(error))
    )


def _count(error: Exception, attempts: int) -> None:
    if isinstance(error, ServiceError):
        error.details["attempts"] = attempts
    else:  # `refusal` makes the details of it
        error.attempts = attempts  # type: ignore[attr-defined]


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


def acting_each_txn(
    connection: PgConnection,
    steps: Sequence[tuple[Actor, Callable[..., Any], Sequence[Any]]],
    done: list[Any],
) -> None:
    """Run functions one after another, each as an actor; append what each returns, up to an error."""
    for actor, function, args in steps:
        connection.act(actor)
        done.append(function(connection, *args))


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
        cleaning = f"SET CONSTRAINTS ALL IMMEDIATE;{connection.cleaning()}"
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
    # With the next statement; if none was sent, behind all that one would have taken along.
    connection.opening = f"{connection.opening or ''}RELEASE SAVEPOINT apart;"
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
