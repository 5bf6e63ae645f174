"""
What writes rows in a pool thread, and counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2

from service.db.connection import PgConnection
from service.db.interactions import Row, Shape, answered_columns, execute, shaped
from service.db.values import Codec
from service.errors import TooManyRows
from service.payload import fit
from service.sql.statement import MISSED, Statement

SETTLE = "SET CONSTRAINTS ALL IMMEDIATE; "
"""Has deferred triggers do now what they would do at COMMIT, so that it can be read."""


class Missed(Exception):
    """A write of one row has written none; its transaction must not commit."""


@dataclass(frozen=True, slots=True)
class Written:
    """
    What a write gave.

    Args:
        rows: What it read back, in the form of the answer.
        affected: How many rows were written.
        columns: The names of what was read back.
    """

    rows: list[Any]
    affected: int
    columns: tuple[str, ...]


def write_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    max_affected: int | None,
    shape: Shape | None,
    one: bool = False,
    last: bool = False,
) -> Written:
    """
    Write rows.

    Args:
        connection: To write them through.
        codec: For the values, both ways.
        make: Gives the statement: to spell one for thousands of rows takes its time.
        values: Of the call.
        max_affected: How many rows may be written.
        shape: Of the answer; None to read nothing back.
        one: Whether it is for one row, which has to be written.
        last: Whether the transaction ends with it.

    Raises:
        Missed: The one row was not written; the caller's transaction must not commit.
        TooManyRows: More than `max_affected`; the caller's transaction must not commit.
        TooLarge: What is read back weighs too much; likewise.
    """
    statement = make()
    if last and statement.head:
        statement = statement.led(SETTLE)
    try:
        cursor = execute(connection, codec, statement, values)
    except psycopg2.Error as error:
        if statement.certain and error.pgcode == "22P02" and MISSED in str(error):
            raise Missed from error
        raise
    affected: int = cursor.rowcount
    if one and not affected:
        raise Missed
    if max_affected is not None and affected > max_affected:
        raise over(affected, max_affected)
    if shape is None:
        return Written([], affected, ())
    # rows of which nothing is wanted are rows all the same
    rows: list[Row] = cursor.fetchall() if statement.columns or statement.picks else [()] * affected
    if statement.picks:
        rows = [row for row in rows if row[-1]]
    found, columns = shaped(rows, statement, codec, shape), answered_columns(statement)
    fit([found, columns], shape.max_bytes)
    return Written(found, affected, columns)


def fitting_txn(
    connection: PgConnection, max_bytes: int, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run what may write, in a transaction that does not survive an error.

    Raises:
        TooLarge: The rows that it gives cannot be sent.
    """
    result = function(connection, *args)
    page = result[0] if isinstance(result, tuple) else result
    fit(getattr(page, "rows", page), max_bytes)
    return result


def over(rows: int, most: int) -> TooManyRows:
    """Word that a write would be more rows than it may."""
    return TooManyRows(
        f"this would write {rows} rows, and max_affected is {most}", hint="nothing was written"
    )
