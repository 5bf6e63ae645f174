"""
What runs in a pool thread when a database function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg2

from service.db.connection import PgConnection
from service.db.interactions import Page, Shape, execute, page_txn, shaped
from service.db.values import Codec
from service.db.writes import over
from service.errors import DatabaseRefused, TooManyToSend
from service.sql.statement import Statement

COUNTED = "rowcast_counted"
DECLARE = f"DECLARE {COUNTED} NO SCROLL CURSOR FOR "
MOST = 2**31 - 1
"""How far one MOVE goes."""

READ_ONLY = "25006"
"""What PostgreSQL says of a write in a transaction that may only read."""


def kept_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run what calls a function that promises only to read.

    Raises:
        DatabaseRefused: It does write; the transaction has to be read-only.
    """
    try:
        return function(connection, *args)
    except psycopg2.Error as error:
        if error.pgcode != READ_ONLY:
            raise
        raise DatabaseRefused(
            "the function would write, and is declared to read only",
            hint="a function that writes is VOLATILE",
            sqlstate=READ_ONLY,
        ) from error


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
    Call a function; gives its rows in the form of the answer.

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
        raise over(len(page.rows) + page.more, max_affected)
    if page.more:
        raise TooManyToSend(statement.name.removeprefix("fn."), limit, verbs)
    if statement.untyped:
        return [{name: codec.bare(value) for name, value in row.items()} for row in page.rows]
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
    Read a page of what may not be read twice; gives the number of all rows, too.

    The rows pass by in the server, and the page alone is fetched.

    Args:
        connection: To read it through, in a transaction that does not survive an error.
        codec: For the values, both ways.
        statement: Gives all rows, from the first to the last.
        values: Of the call.
        offset: How many rows stand before the page.
        limit: How many rows a page holds.
        shape: Of the answer.

    Raises:
        TooLarge: The rows weigh more than an answer may.
    """
    cursor = execute(connection, codec, statement.led(DECLARE), values)
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
    """Let rows pass by; gives how many there were."""
    cursor.execute(f"MOVE {rows} FROM {COUNTED}")
    passed: int = cursor.rowcount
    return passed
