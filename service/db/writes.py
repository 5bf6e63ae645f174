"""
What runs in a pool thread and may write: writes, and calls of functions that may.

Each function takes a connection first, touches the database and nothing else, and may run again.
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
"""Has deferred triggers do now what they would do at COMMIT, so that it can be read."""


class NoRowWritten(Exception):
    """A row that had to be written was not; the transaction must not commit."""


class LargeRow(Exception):
    """A row is large that a guarded statement was to return; it has failed, and wrote nothing."""


class RowUnseen(Conflict):
    """An upsert met a row that came after it began; or one that a view never shows."""

    pgcode = "40001"


@dataclass(frozen=True, slots=True)
class Written:
    """
    What a write gave.

    Args:
        rows: What it read back, in the form of the answer.
        affected: How many rows were written.
        columns: The names of what was read back.
        tx: The transaction's id, if the statement gives it and has written anything.
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
        connection: To write them through.
        codec: For the values, both ways.
        make: Returns the statement: to write one for thousands of rows takes its time.
        values: Of the call.
        max_affected: How many rows may be written.
        shape: Of the answer; None to read nothing back.
        exactly: How many rows have to be written, if that is known.
        last: Whether the transaction ends with it.

    Raises:
        NoRowWritten: One that has to be was not written; the caller's transaction must not commit.
        TooManyRows: More than `max_affected`; the caller's transaction must not commit.
        TooLarge: What is read back weighs too much; likewise.
        RowUnseen: What a condition asks of a row that is there cannot be asked.
        LargeRow: The statement is guarded, and what it was to read back is large.
    """
    statement = make()
    if last and statement.head:
        statement = statement.prefixed(SETTLE)
    try:
        cursor = execute(connection, codec, statement, values)
    except psycopg2.Error as error:
        # The words are in the server's language; the text that it could not read is quoted in all.
        if statement.must_write and error.pgcode == "22P02" and MISSED in str(error):
            raise NoRowWritten from error
        if error.pgcode == "22P02" and LARGE in str(error):
            raise LargeRow from error
        if statement.unseen and error.pgcode == "22P02" and UNSEEN in str(error):
            late = statement.unseen == "late"
            said = "a row with this key has come meanwhile"
            said += "" if late else ", or is none of those that are shown"
            # Alone it is tried again here: what no new statement sees is not to be waited for.
            raise RowUnseen(said, path="where", retry=(late and not last) or None) from error
        raise
    # Of several statements in one message, psycopg2 has the result of the last.
    affected = max(cursor.rowcount, 0)  # a CALL counts none: -1
    _check(affected, exactly, max_affected)
    if shape is None and not statement.receipt:
        return Written([], affected, ())
    # rows of which nothing is wanted are rows all the same
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


def write_rows_txn(
    connection: PgConnection,
    given: Callable[[Sequence[Any]], Iterable[GivenRow]],
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    *more: Any,
) -> Written:
    """
    Write the rows of a call, which `given` returns by its values, as `write_txn` does.

    Raises:
        psycopg2.Error: With a note of the rows that it may speak of.
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
    """Return the id of the open transaction; None while it has written nothing."""
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
    Run what may write, in a transaction that does not survive an error.

    Raises:
        TooLarge: The rows that it returns cannot be sent.
    """
    result = function(connection, *args)
    page = result[0] if isinstance(result, tuple) else result
    fit(getattr(page, "rows", page), max_bytes)
    return result


def too_many_rows(rows: int, most: int) -> TooManyRows:
    """Return the error of a write of more rows than it may."""
    return TooManyRows(
        f"this would write {rows} rows, and max_affected is {most}", hint="nothing was written"
    )


COUNTED = "rowcast_counted"
DECLARE = f"DECLARE {COUNTED} NO SCROLL CURSOR FOR "
MOST = 2**31 - 1
"""How far one MOVE goes."""


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
    Call a function and return its rows in the form of the answer.

    Args:
        connection: To call it through, in a transaction that does not survive an error.
        codec: For the values, both ways.
        statement: Of the call.
        values: Of the call.
        limit: How many rows an answer holds.
        max_affected: How many rows the caller expects at most.
        shape: Of the answer.
        verbs: Whether there are verbs for what the function returns.

    Raises:
        TooManyRows: More than `max_affected`.
        TooManyToSend: More than `limit`.
        TooLarge: They weigh more than an answer may.
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
    Read a page of what may not be read twice; return the number of all rows, too.

    The rows pass by in the server, and the page alone is fetched.

    Args:
        connection: To read it through, in a transaction that does not survive an error.
        codec: For the values, both ways.
        statement: Reads all rows, from the first to the last.
        values: Of the call.
        offset: How many rows stand before the page.
        limit: How many rows a page holds.
        shape: Of the answer.

    Raises:
        TooLarge: The rows weigh more than an answer may.
    """
    cursor = execute(connection, codec, statement.prefixed(DECLARE), values)
    before = _pass(cursor, f"FORWARD {min(offset, MOST):d}") if offset else 0
    rows: list[Any] = []
    if before == offset and limit:  # to fetch no row is to fetch the last one again
        cursor.execute(f"FETCH FORWARD {limit:d} FROM {COUNTED}")
        rows = cursor.fetchall()
    page = Page(shaped(rows, statement, codec, shape))
    behind = _pass(cursor, "FORWARD ALL")
    cursor.execute(f"CLOSE {COUNTED}")
    return replace(page, more=behind > 0), before + len(rows) + behind


def _pass(cursor: Any, rows: str) -> int:
    """Move over rows, and return how many there were."""
    cursor.execute(f"MOVE {rows} FROM {COUNTED}")
    passed: int = cursor.rowcount
    return passed
