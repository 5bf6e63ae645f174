"""
What a worker thread does to begin and end a transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_INTRANS, cursor

from service.db.connection import PgConnection
from service.db.identity import Identity
from service.errors import OutcomeUnknown, Unavailable

ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")


class TransactionClosed(Exception):
    """A task spoke to a transaction that had already ended."""


class TransactionAborted(Exception):
    """COMMIT was answered by ROLLBACK: a statement had failed, and its error was swallowed."""


def begin_words(isolation: str | None = None, read_only: bool = False) -> str:
    """
    Word BEGIN.

    Raises:
        ValueError: There is no such isolation level.
    """
    words = "BEGIN"
    if isolation is not None:
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


def alone_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """Run a function whose one statement may write, and commits by itself."""
    first = () if connection.pooled else (lone_txn,)
    return single_txn(connection, identity, *first, function, *args)


def ending_txn(
    connection: PgConnection, identity: Identity, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run a function whose one statement may end its transaction, in a session that is somebody.

    Nobody else ever has that session: the worker cleans it afterwards. Behind a pooler it is not
    ours to change, and what is somebody's is in a transaction there like the rest.
    """
    if connection.pooled:
        return atomic_txn(connection, "BEGIN", identity.words, function, *args)
    connection.touch()
    if identity.session:
        connection.command(identity.session)
    return _parted_txn(connection, function, *args)


def _parted_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run a function whose one statement may commit on its way.

    Raises:
        OutcomeUnknown: It was stopped, or could be run again: what it had committed is kept.
    """
    try:
        return lone_txn(connection, function, *args)
    except psycopg2.OperationalError as error:
        if error.pgcode is None:  # stopped before it was sent
            raise
        raise OutcomeUnknown("the procedure was stopped; what it had committed is kept") from error


def lone_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
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
    result = function(connection, *args)
    commit_txn(connection)
    return result


def nested_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function inside a savepoint of the open transaction."""
    connection.command("SAVEPOINT atomic")
    try:
        result = function(connection, *args)
    except BaseException:
        if not connection.closed:
            connection.stopped = 0.0
            undo_txn(connection, "atomic")
        raise
    connection.command("RELEASE SAVEPOINT atomic")
    return result


def cursor_txn(connection: PgConnection, function: Callable[..., Any], args: Any, kw: Any) -> Any:
    """Run a function that expects a cursor, as `ConnectionPool.runInteraction` gives it."""
    with connection.cursor() as opened:
        return function(opened, *args, **kw)


def statement_txn(
    connection: PgConnection,
    sql: str,
    params: Any = None,
    fetch: bool = True,
    post: Callable[[list[tuple[Any, ...]], cursor], Any] | None = None,
) -> Any:
    """Run one statement; gives its rows, passed through `post`, or else how many it touched."""
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
    if connection.opening is not None:
        connection.opening = None
        return
    if not connection.alive():
        raise Unavailable("the database connection was lost before COMMIT")
    cleaning = ""
    if connection.touched and connection.get_transaction_status() == TRANSACTION_STATUS_INTRANS:
        cleaning = f"SET CONSTRAINTS ALL IMMEDIATE;{connection.cleaning}"
    try:
        answer = connection.command(f"{cleaning}COMMIT")
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if connection.closed:
            raise OutcomeUnknown from error
        raise
    if answer != "COMMIT":
        raise TransactionAborted(f"COMMIT was answered by {answer}")
    connection.touched = connection.touched and connection.retires


def rollback_txn(connection: PgConnection) -> None:
    """Undo what has begun."""
    if connection.opening is None and not connection.closed:
        connection.clean()
    connection.opening = None


def undo_txn(connection: PgConnection, savepoint: str) -> None:
    """
    Undo what was done since a savepoint.

    Where that fails, the session is closed, and the server undoes the whole transaction: what
    its scope has given up must not be committed by another one.
    """
    try:
        connection.command(f"ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}")
    except BaseException:
        connection.close()
        raise


def retryable(error: BaseException) -> bool:
    """Tell whether PostgreSQL asks for the whole transaction to be run again (40001, 40P01)."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "pgcode", None) in ("40001", "40P01"):
            return True
        seen = seen.__cause__
    return False
