"""
What runs in a pool thread when a database function is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.db.connection import PgConnection
from service.db.interactions import Shape, over, page_txn
from service.db.values import Codec
from service.errors import TooManyToSend
from service.sql.statement import Statement


def call_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int,
    max_affected: int | None,
    shape: Shape,
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

    Raises:
        TooManyRows: More than `max_affected`.
        TooManyToSend: More than `limit`.
        TooLarge: They weigh more than an answer may.
    """
    page = page_txn(connection, codec, statement, values, limit, shape)
    if max_affected is not None and len(page.rows) > max_affected:
        raise over(len(page.rows) + page.more, max_affected)
    if page.more:
        raise TooManyToSend(statement.name.removeprefix("fn."), limit)
    return page.rows
