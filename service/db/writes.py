"""
Functions of the pool threads that write, or call database functions that may write.

Each takes a connection first, touches nothing but the database, and may run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import psycopg2

from service.db.blame import GivenRow, note_rows
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.statements import (
    Page,
    Row,
    Shape,
    answered_columns,
    execute,
    page_txn,
    several_rows,
    shaped,
)
from service.errors import Conflict, TooManyRows, TooManyToSend
from service.payload import fit
from service.sql.statement import LARGE, MISSED, TRANSACTION, UNSEEN, Statement

SETTLE = "SET CONSTRAINTS ALL IMMEDIATE; "
"""Runs deferred triggers now rather than at COMMIT, so that their effects can be read."""


class NoRowWritten(Exception):
    """A row that had to be written was not; the transaction must not commit."""


class LargeRow(Exception):
    """A guarded statement would have returned a large row; it has failed, and written nothing."""


class RowUnseen(Conflict):
    """An upsert met a row inserted after it began, or one that a view does not show."""

    pgcode = "40001"


@dataclass(frozen=True, slots=True)
class Written:
    """
    The result of a write.

    Args:
        rows: The rows that it returned, in the form of the answer.
        affected: Number of rows written.
        columns: Names of the columns of `rows`.
        tx: Id of the transaction, if the statement returns it and something was written.
    """

    rows: list[Any]
    affected: int
    columns: tuple[str, ...]
    tx: str | None = None


def write_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    max_affected: int | None,
    shape: Shape | None,
    exactly: int = 0,
    last: bool = False,
) -> Written:
    """
    Write rows.

    Args:
        connection: The connection to write through.
        codec: Encodes the parameters, and decodes the rows.
        make: Returns the statement; called in the pool thread, as building one for thousands of rows
            takes time.
        values: The values of the call.
        max_affected: Maximum number of rows that may be written.
        shape: The form of the rows, and their maximum size; None to return no rows.
        exactly: Number of rows that have to be written; 0 if it is not known.
        last: Whether the transaction ends with this statement.

    Raises:
        NoRowWritten: Too few rows were written; the transaction must not commit.
        TooManyRows: More than `max_affected`, or than `exactly`; the transaction must not commit.
        TooLarge: The rows exceed `shape.max_bytes`; a transaction must not commit.
        RowUnseen: An upsert has met a row for which its condition cannot be evaluated.
        LargeRow: The statement is guarded, and a row that it would return is large.
    """
    statement = make()
    if last and statement.head:
        statement = statement.prefixed(SETTLE)
    try:
        cursor = execute(connection, codec, statement, values)
    except psycopg2.Error as error:
        # Recognized by the text that failed to be cast: it is quoted in every language of the message.
        if statement.must_write and error.pgcode == "22P02" and MISSED in str(error):
            raise NoRowWritten from error
        if error.pgcode == "22P02" and LARGE in str(error):
            raise LargeRow from error
        if statement.unseen and error.pgcode == "22P02" and UNSEEN in str(error):
            late = statement.unseen == "late"
            said = "a row with this key has come meanwhile"
            said += "" if late else ", or is none of those that are shown"
            # A retry helps only for a row inserted meanwhile, which a new statement does see.
            raise RowUnseen(said, path="where", retry=(late and not last) or None) from error
        raise
    # Of several statements in one message, psycopg2 returns the result of the last.
    affected = max(cursor.rowcount, 0)  # -1 for CALL
    _check(affected, exactly, max_affected)
    if shape is None and not statement.receipt:
        return Written([], affected, ())
    # A RETURNING without columns is left out, but the answer still has a row for each.
    read = statement.columns or statement.flagged or statement.receipt
    rows: list[Row] = cursor.fetchall() if read else [()] * affected
    tx = rows[0][len(statement.columns)] if statement.receipt and rows else None
    if shape is None:
        return Written([], affected, (), tx)
    if statement.numbered:
        rows.sort(key=itemgetter(-1))
    if statement.flagged:
        rows = [row for row in rows if row[-1]]
    found, columns = shaped(rows, statement, codec, shape), answered_columns(statement)
    fit([found, columns], shape.max_bytes)
    return Written(found, affected, columns, tx)


def or_missing_txn(
    connection: PgConnection,
    missing: Callable[[PgConnection], Exception],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """Run a function; if it writes no row, raise the reason, which is looked up before other jobs run."""
    try:
        return function(connection, *args)
    except NoRowWritten:
        raise missing(connection) from None


def write_rows_txn(
    connection: PgConnection,
    given: Callable[[Sequence[Any]], Iterable[GivenRow]],
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    *more: Any,
) -> Written:
    """
    Write rows as `write_txn` does, and note on an error the rows that `given` returns for the values.

    Raises:
        psycopg2.Error: With a note of the rows that may have caused it.
    """
    try:
        return write_txn(connection, codec, make, values, *more)
    except psycopg2.Error as error:
        note_rows(error, given(values))
        raise


def _check(affected: int, exactly: int, max_affected: int | None) -> None:
    if affected < exactly:
        raise NoRowWritten
    if exactly and affected > exactly:
        raise several_rows(affected, exactly)
    if max_affected is not None and affected > max_affected:
        raise too_many_rows(affected, max_affected)


def transaction_txn(connection: PgConnection) -> str | None:
    """Return the id of the open transaction; None if it has written nothing yet."""
    found: str | None = connection.ask(f"SELECT {TRANSACTION.string}")[0]
    return found


def receipted_txn(
    connection: PgConnection, function: Callable[..., Any], *args: Any
) -> tuple[Any, str | None]:
    """Run a function in the open transaction; return the transaction's id beside its result."""
    return function(connection, *args), transaction_txn(connection)


def fitting_txn(
    connection: PgConnection, max_bytes: int, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run a function that may write, in a transaction that is rolled back after an error.

    Raises:
        TooLarge: The rows that it returns exceed `max_bytes`.
    """
    result = function(connection, *args)
    page = result[0] if isinstance(result, tuple) else result
    fit(getattr(page, "rows", page), max_bytes)
    return result


def too_many_rows(rows: int, most: int) -> TooManyRows:
    """Return the error of a write of more rows than `max_affected`."""
    return TooManyRows(
        f"this would write {rows} rows, and max_affected is {most}", hint="nothing was written"
    )


COUNTED = "rowcast_counted"
DECLARE = f"DECLARE {COUNTED} NO SCROLL CURSOR FOR "
MOST = 2**31 - 1
"""Maximum number of rows of one MOVE."""


def call_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int,
    max_affected: int | None,
    shape: Shape,
    verbs: bool,
) -> list[Any]:
    """
    Call a database function and return its rows in the form of the answer.

    Args:
        connection: The connection, in a transaction that is rolled back after an error.
        codec: Encodes the parameters, and decodes the rows.
        statement: The call's statement.
        values: The values of the call.
        limit: Maximum number of rows of an answer.
        max_affected: Maximum number of rows that the caller expects.
        shape: The form of the rows, and their maximum size.
        verbs: Whether the function's rows can be read with `find` and other verbs, for the hint.

    Raises:
        TooManyRows: There are more rows than `max_affected`.
        TooManyToSend: There are more rows than `limit`.
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    page = page_txn(connection, codec, statement, values, limit, shape)
    if max_affected is not None and len(page.rows) > max_affected:
        raise too_many_rows(len(page.rows) + page.more, max_affected)
    if page.more:
        raise TooManyToSend(statement.name.removeprefix("fn."), limit, verbs)
    if statement.untyped:
        return [{name: codec.record(text) for name, text in row.items()} for row in page.rows]
    return page.rows


def counted_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    offset: int,
    limit: int,
    shape: Shape,
) -> tuple[Page, int]:
    """
    Read a page of a query that must run only once; return it with the number of all rows.

    A cursor moves over the other rows on the server, and only the page is fetched.

    Args:
        connection: The connection, in a transaction that is rolled back after an error.
        codec: Encodes the parameters, and decodes the rows.
        statement: Returns all rows, without a limit.
        values: The values of the call.
        offset: Number of rows before the page.
        limit: Maximum number of rows of the page.
        shape: The form of the rows, and their maximum size.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    cursor = execute(connection, codec, statement.prefixed(DECLARE), values)
    before = _move(cursor, f"FORWARD {min(offset, MOST):d}") if offset else 0
    rows: list[Any] = []
    if before == offset and limit:  # FETCH FORWARD 0 would fetch the current row again
        cursor.execute(f"FETCH FORWARD {limit:d} FROM {COUNTED}")
        rows = cursor.fetchall()
    page = Page(shaped(rows, statement, codec, shape))
    behind = _move(cursor, "FORWARD ALL")
    cursor.execute(f"CLOSE {COUNTED}")
    return replace(page, more=behind > 0), before + len(rows) + behind


def _move(cursor: Any, rows: str) -> int:
    """Move the cursor over rows, and return how many there were."""
    cursor.execute(f"MOVE {rows} FROM {COUNTED}")
    passed: int = cursor.rowcount
    return passed
