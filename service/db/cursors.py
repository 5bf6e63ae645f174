"""
A result of any size, read in chunks through a cursor of the server's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.statements import Row, Shape, execute, shaped, weight
from service.sql.statement import Statement

FIRST = 16
"""Rows of the first FETCH: what a row weighs is not known yet."""

CHUNK_BYTES = 64 * 1024
"""
What a chunk may weigh, roughly.

Whoever handles it, we, the router, the caller, does so in one piece, and everybody else waits.
Larger ones are no faster (`bench/stream.py`).
"""

DECLARE = (
    "SET LOCAL idle_in_transaction_session_timeout = 0;DECLARE rowcast_reader NO SCROLL CURSOR FOR "
)
"""The transaction is idle while a chunk is on its way, which is up to whoever takes it."""


def _base64(value: Any) -> str:
    """Return the form of bytea in JSON; every other wire value has one of its own."""
    return base64.b64encode(value).decode()


_LINE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_base64)


class Reader:
    """
    The rows of one statement, chunk by chunk, inside a transaction.

    Args:
        codec: For the values, both ways.
        statement: The read.
        values: Of the call.
        shape: Of the rows; its `max_bytes` is what a single row may weigh.
        rows: Of a chunk, at most.

    Attributes:
        count: How many rows were read.
    """

    def __init__(
        self, codec: Codec, statement: Statement, values: Sequence[Any], shape: Shape, rows: int
    ) -> None:
        self._codec = codec
        self._statement = statement
        self._values = values
        self._shape = shape
        self._rows = rows
        self._bytes = min(CHUNK_BYTES, shape.max_bytes)
        self.count = 0
        self._step = min(FIRST, rows)
        self._spare: list[Row] = []
        self._open = False
        self._ended = False

    def chunk_txn(self, connection: PgConnection) -> list[Any]:
        """
        Read the next chunk, in its final form; an empty one is the end.

        To be run in one transaction, one chunk after the other.

        Raises:
            TooLarge: A single row weighs more than may be sent.
        """
        if not self._open:
            execute(connection, self._codec, self._statement.prefixed(DECLARE), self._values)
            # Ours as well as the server's, or the worker would end what waits for its caller.
            connection.idle = 0.0
            self._open = True
        rows, self._spare = self._spare, []
        weighed = self._weight(rows)
        while not self._ended and len(rows) < self._rows and weighed < self._bytes:
            rows += self._fetch(connection, min(self._step, self._rows - len(rows)))
            weighed = self._weight(rows)
            fitting = self._bytes * len(rows) // max(1, weighed)
            # No more than doubled: the rows to come may be heavier than those that were weighed.
            self._step = max(1, min(2 * self._step, fitting, self._rows))
        fits = self._fitting(rows)
        rows, self._spare = rows[:fits], rows[fits:]
        self.count += len(rows)
        return shaped(rows, self._statement, self._codec, self._shape)

    def lines_txn(self, connection: PgConnection) -> str:
        """Read the next chunk as JSON, a row in a line; an empty text is the end."""
        return "".join(_LINE.encode(row) + "\n" for row in self.chunk_txn(connection))

    def _fetch(self, connection: PgConnection, rows: int) -> list[Row]:
        cursor = connection.wire(self._codec)
        pure = self._statement.pure and self._codec.current
        cursor.execute(f"FETCH FORWARD {rows:d} FROM rowcast_reader", clean=pure)
        found = cursor.fetchall()
        self._ended = len(found) < rows
        return found

    def _fitting(self, rows: list[Row]) -> int:
        """Count the rows that fit into a chunk, at least one."""
        fits = len(rows)
        while fits > 1 and (weighed := self._weight(rows[:fits])) > self._bytes:
            fits = max(1, min(fits - 1, fits * self._bytes // weighed))
        return fits

    def _weight(self, rows: Sequence[Row]) -> int:
        return weight(rows, len(self._statement.columns))
