"""
COPY: what a worker thread and the reactor hand each other while it runs.

psycopg2 keeps the thread in one call for the whole of a COPY and asks a file-like object for
its end of it. Here that object waits until the other side has room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.db.connection import PgConnection
from service.db.interactions import execute
from service.db.position import point_out
from service.db.values import Codec
from service.sql.statement import Statement

GLANCE = 0.2
"""Seconds after which a worker that waits for the other side looks whether it is to stop."""

BLOCK = 64 * 1024
"""Bytes gathered before a block is handed over: COPY gives a row at a time."""


class Blocks:
    """
    Text on its way from a COPY in a worker to the reactor, a block for each time it is asked for.

    Args:
        reactor: To come back from the worker.
    """

    def __init__(self, reactor: Any) -> None:
        self.bytes = 0
        self._reactor = reactor
        self._credit = threading.Semaphore(0)
        self._stopped = False
        self._connection: PgConnection | None = None
        self._held: list[bytes] = []
        self._weight = 0
        self._ready: deque[str] = deque()
        self._waiting: deque[Deferred[str]] = deque()
        self._outcome: Any = self

    # In the worker

    def attach(self, connection: PgConnection) -> None:
        """Begin to be written, by a COPY on this connection."""
        self._connection = connection

    def write(self, data: bytes) -> int:
        """Take a row; wait while there is a block that nobody asked for."""
        self._held.append(data)
        self._weight += len(data)
        if self._weight >= BLOCK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Hand over what was gathered, long rows in pieces."""
        text = b"".join(self._held).decode()
        self._held.clear()
        self._weight = 0
        for start in range(0, len(text), 2 * BLOCK):
            with self._connection.paused() if self._connection else nullcontext():
                asked = self._asked()
            if not asked:  # COPY is being stopped on the server; until then it talks on
                return
            self._ready.append(text[start : start + 2 * BLOCK])
            self._reactor.callFromThread(self._pump)

    def _asked(self) -> bool:
        """Wait until a block is asked for; tells whether one is still wanted."""
        while not (self._stopped or (self._connection and self._connection.stopped)):
            if self._credit.acquire(timeout=GLANCE):
                return not self._stopped
        return False

    # In the reactor

    def next(self) -> Deferred[str]:
        """Ask for a block; gives an empty text at the end."""
        block: Deferred[str] = Deferred(self._waiting.remove)
        self._waiting.append(block)
        self._credit.release()
        self._pump()
        return block

    def ended(self, outcome: Any) -> Any:
        """Take note that the COPY has ended, or how it failed."""
        self._outcome = outcome
        self._pump()
        return outcome

    def stop(self) -> None:
        """Take no more: the thread must not wait for us."""
        self._stopped = True
        self._credit.release()

    def _pump(self) -> None:
        while self._waiting and self._ready:
            block = self._ready.popleft()
            self.bytes += len(block.encode())
            self._waiting.popleft().callback(block)
        if self._outcome is self:
            return
        while self._waiting:
            waiting = self._waiting.popleft()
            if isinstance(self._outcome, Failure):
                waiting.errback(self._outcome)
            else:
                waiting.callback("")


def copy_out_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    blocks: Blocks,
) -> int:
    """
    Give the rows of a read as CSV with a header; gives their number.

    How long it takes is up to whoever takes the blocks, so it is each block that has a time limit.
    """
    blocks.attach(connection)
    *ahead, statement = statement.parts()
    for each in ahead:  # COPY shares no message
        execute(connection, codec, each, values)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        # COPY takes no parameters.
        query = cursor.mogrify(statement.text, codec.parameters(statement.bounds, values))
        try:
            cursor.copy_expert(
                b"COPY (" + query + b") TO STDOUT WITH (FORMAT csv, HEADER)",
                blocks,
            )
        except psycopg2.Error as error:
            point_out(error, statement)
            raise
        blocks.flush()
        return int(cursor.rowcount)
