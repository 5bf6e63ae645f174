"""
COPY … FROM: rows on their way from the reactor to the COPY in a worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import psycopg2
from psycopg2.extensions import QueryCanceledError
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.db.connection import PgConnection
from service.db.copying import GLANCE
from service.sql.copy import CopyIn

FED = 16 * 1024
"""Bytes handed to COPY at a time: some 70 rows of 200 bytes, a quarter of a millisecond's work."""

REST = 1.0
"""How much of the time that writing them took the worker then leaves to other threads."""

LAST = 10.0
"""How often the time that the rows took may be taken again by what is done with all of them."""

Encode = Callable[[Any, bool], Iterator[bytes]]
"""Makes COPY's text of what one call brought, told whether there is a word for defaults."""


class Feed:
    """
    What a COPY reads: the rows of one call after the other, each written as text when its turn
    comes.

    Args:
        reactor: To come back from the worker.
        encode: Makes the text, in the worker.
        rest: Waits, in the worker, for so many seconds.
    """

    def __init__(
        self, reactor: Any, encode: Encode, rest: Callable[[float], None] = time.sleep
    ) -> None:
        self.error: BaseException | None = None
        self._reactor = reactor
        self._encode = encode
        self._rest = rest
        self._queue: SimpleQueue[tuple[Any, Deferred[None]] | BaseException | None] = SimpleQueue()
        self._waiting: list[Deferred[None]] = []
        self._failure: Failure | None = None
        self._connection: PgConnection | None = None
        self._defaults = False
        self._began = 0.0
        self._pieces: Iterator[bytes] = iter(())
        self._taken: Deferred[None] | None = None
        self._buffer = bytearray()
        self._ended = False

    # In the reactor

    def put(self, rows: Any) -> Deferred[None]:
        """Bring rows; fires when COPY has taken them, fails when it has failed."""
        taken: Deferred[None] = Deferred()
        if self._failure is not None:
            taken.errback(self._failure)
            return taken
        self._waiting.append(taken)
        self._queue.put((rows, taken))
        return taken

    def end(self) -> None:
        """Bring no more."""
        self._queue.put(None)

    def fail(self, reason: BaseException) -> None:
        """Have the COPY fail."""
        self._queue.put(reason)

    def over(self, outcome: Any) -> Any:
        """Take note of how the import ended; what was not taken fails with it."""
        if isinstance(outcome, Failure):
            self._failure = outcome
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.errback(outcome)
        return outcome

    def _took(self, taken: Deferred[None]) -> None:
        if taken in self._waiting:
            self._waiting.remove(taken)
            taken.callback(None)

    # In the worker

    def attach(self, connection: PgConnection, defaults: bool) -> None:
        """Begin to be read, by a COPY that has a word for defaults or none."""
        self._connection = connection
        self._defaults = defaults
        self._began = time.monotonic()

    def read(self, size: int) -> bytes:
        """
        Give the next bytes; none are the end. An error of ours is kept, psycopg2 hides it.

        A thread that writes text keeps the interpreter until another one has asked for it for 5
        ms, and the reactor asks for it several times in each call; so there are rests.
        """
        assert self._connection is not None
        with self._connection.paused():
            self._fill(size)
        if not self._buffer:  # all constraints are checked, or all rows moved, in one step
            self._connection.credit = LAST * (time.monotonic() - self._began)
        block = bytes(self._buffer[:size])
        del self._buffer[:size]
        return block

    def _fill(self, size: int) -> None:
        began = time.thread_time()
        try:
            while len(self._buffer) < size and not self._ended:
                self._more()
        except BaseException as error:
            self.error = error
            raise
        self._rest(REST * (time.thread_time() - began))

    def _more(self) -> None:
        for piece in self._pieces:
            self._buffer += piece
            if len(self._buffer) >= FED:
                return
        if self._taken is not None:
            self._reactor.callFromThread(self._took, self._taken)
            self._taken = None
        self._next()

    def _next(self) -> None:
        assert self._connection is not None
        while True:
            if self._connection.stopped:
                raise QueryCanceledError("stopped while it waited for rows")
            try:
                given = self._queue.get(timeout=GLANCE)
            except Empty:
                continue
            break
        if given is None:
            self._ended = True
        elif isinstance(given, BaseException):
            raise given
        else:
            rows, self._taken = given
            self._pieces = self._encode(rows, self._defaults)


def import_txn(connection: PgConnection, spelled: CopyIn, feed: Feed) -> int:
    """
    Write what a feed brings; gives the number of rows written.

    How long it takes is up to whoever brings the rows, so it is each step that has a time limit.

    Raises:
        ServiceError: What the feed found wrong with its rows.
        psycopg2.Error: What PostgreSQL did.
    """
    copy = spelled.copy
    defaults = spelled.copy_with_defaults is not None and connection.server_version >= 160000
    if defaults and spelled.copy_with_defaults is not None:
        copy = spelled.copy_with_defaults
    feed.attach(connection, defaults)
    with connection.cursor() as cursor:
        before = f"; {spelled.before}" if spelled.before else ""
        cursor.execute(f"SET LOCAL statement_timeout = 0{before}")
        try:
            cursor.copy_expert(copy, feed, FED)
        except psycopg2.Error:
            if feed.error is not None:
                raise feed.error from None
            raise
        if spelled.after is not None:
            cursor.execute(spelled.after)
        return int(cursor.rowcount)
