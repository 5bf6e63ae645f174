"""
COPY from and to: what a worker thread and the reactor hand each other while it runs.

psycopg2 keeps the thread in one call for the whole of a COPY and asks a file-like object for
its end of it. Here that object waits until the other side has room.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import psycopg2
from psycopg2.extensions import QueryCanceledError
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.catalog import Column, Type
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.json import check_text
from service.db.position import point_out
from service.db.statements import execute
from service.errors import InvalidArgument, UnknownName
from service.request.assignments import BY_DEFAULT, new_value
from service.sql.copy_in import DEFAULT, CopyIn
from service.sql.statement import Statement

NULL = r"\N"


@dataclass(frozen=True, slots=True)
class Text:
    """A value that is PostgreSQL's own text already."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that is taken as it is, whatever it looks like."""

    value: Any


class RowText:
    """
    Writes rows, each value as the codec writes it for any statement.

    Args:
        codec: Writes the values.
        columns: Of the rows, in order.
        types: By their oids.
        complete: Whether each row must have a value for every column.
    """

    def __init__(
        self, codec: Codec, columns: Sequence[Column], types: Callable[[int], Type], complete: bool
    ) -> None:
        self.line = 0
        self._codec = codec
        self._columns = [(each.name, types(each.type), each.has_default) for each in columns]
        self._names = frozenset(each.name for each in columns)
        self._complete = complete

    def encode(self, rows: Sequence[Any], defaults: bool) -> Iterator[bytes]:
        """
        Return a line for each row.

        Args:
            rows: Dicts, or lists with an item for each column.
            defaults: Whether there is a word for the default of a column that a dict lacks.

        Raises:
            InvalidArgument: A row does not fit; `path` and `line` tell which.
        """
        for at, row in enumerate(rows):
            self.line += 1
            try:
                yield self._row(row, defaults).encode()
            except InvalidArgument as refusal:
                tail = refusal.details.get("path")
                refusal.details["path"] = f"rows.{at}.{tail}" if tail else f"rows.{at}"
                refusal.details["line"] = self.line
                raise

    def _row(self, row: Any, defaults: bool) -> str:
        if isinstance(row, Mapping):
            if not row.keys() <= self._names:
                self._refuse_names(row)
            values = [row.get(name, BY_DEFAULT) for name, _, _ in self._columns]
        elif isinstance(row, list | tuple) and len(row) == len(self._columns):
            values = list(row)
        else:
            raise InvalidArgument(
                f"a row is a dict, or a list of as many values as there are columns"
                f" ({len(self._columns)})"
            )
        found, name = [], ""
        try:
            for (name, type, has_default), value in zip(self._columns, values, strict=True):
                if isinstance(value, dict):
                    value = new_value(value, name)
                if value is BY_DEFAULT:
                    if self._complete or (has_default and not defaults):
                        raise _lacking(name)
                    found.append(DEFAULT if has_default else NULL)
                elif isinstance(value, Text):
                    found.append(_escaped(check_text(value.text)))
                else:
                    plain = value.value if isinstance(value, Literal) else value
                    text = self._codec.encode(type, plain, name)
                    found.append(NULL if text is None else _escaped(text))
        except InvalidArgument as refusal:
            refusal.details["column"] = name
            raise
        return "\t".join(found) + "\n"

    def _refuse_names(self, row: Mapping[Any, Any]) -> NoReturn:
        name = next(name for name in row if name not in self._names)
        names = sorted(self._names)
        raise UnknownName("column", str(name), names, "the import's first rows", str(name))


class CsvText:
    """Passes CSV on as it is."""

    def encode(self, text: str, defaults: bool) -> Iterator[bytes]:
        """
        Return the text's bytes.

        Raises:
            InvalidArgument: PostgreSQL cannot hold it.
        """
        try:
            yield check_text(text).encode()
        except InvalidArgument as refusal:
            refusal.details["path"] = "csv"
            raise


def _lacking(name: str) -> InvalidArgument:
    return InvalidArgument(
        "each row of this import has a value for every column",
        path=name,
        hint="defaults are filled in by PostgreSQL 16 and later, in a table, without on_conflict",
    )


def _escaped(text: str) -> str:
    # Backslashes first, or those of the other escapes would be doubled.
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text:
        text = text.replace("\n", "\\n")
    if "\t" in text:
        text = text.replace("\t", "\\t")
    return text.replace("\r", "\\r") if "\r" in text else text


POLL_INTERVAL = 0.2
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
        """Add a row; wait while there is a block that was not asked for."""
        self._held.append(data)
        self._weight += len(data)
        if self._weight >= BLOCK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send what was gathered to the reactor, long rows in pieces."""
        # Of whole rows, so that no character is cut in two.
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
        """Wait until a block is asked for, and return whether one is still wanted."""
        while not (self._stopped or (self._connection and self._connection.stopped)):
            if self._credit.acquire(timeout=POLL_INTERVAL):
                return not self._stopped
        return False

    # In the reactor

    def next(self) -> Deferred[str]:
        """Ask for a block; it fires with an empty string at the end."""
        # Cancelled, it leaves the line, so that no block goes to where nobody takes it.
        block: Deferred[str] = Deferred(self._waiting.remove)
        self._waiting.append(block)
        self._credit.release()
        self._pump()
        return block

    def ended(self, outcome: Any) -> Any:
        """Record that the COPY has ended, or how it failed."""
        self._outcome = outcome
        self._pump()
        return outcome

    def stop(self) -> None:
        """Stop reading: the thread must not wait for us."""
        # Before the credit, which wakes the worker: it has to find this set.
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
    Write the rows of a read as CSV with a header, and return their number.

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


CHUNK = 16 * 1024
"""Bytes handed to COPY at a time: some 70 rows of 200 bytes, a quarter of a millisecond's work."""

REST = 1.0
"""How much of the time that writing them took the worker then leaves to other threads."""

LAST = 10.0
"""How often the time that the rows took may be taken again by what is done with all of them."""

Encode = Callable[[Any, bool], Iterator[bytes]]
"""Makes COPY's text of the rows of one call; the flag is whether there is a word for defaults."""


class CopySource:
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
        """Send rows; fires when COPY has read them, fails when it has failed."""
        taken: Deferred[None] = Deferred()
        if self._failure is not None:
            taken.errback(self._failure)
            return taken
        self._waiting.append(taken)
        self._queue.put((rows, taken))
        return taken

    def end(self) -> None:
        """End the rows."""
        self._queue.put(None)

    def fail(self, reason: BaseException) -> None:
        """Make the COPY fail."""
        self._queue.put(reason)

    def over(self, outcome: Any) -> Any:
        """Record how the import ended; rows that were not read fail with it."""
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
        Return the next bytes, b"" at the end. An error of ours is kept: psycopg2 hides it.

        A thread that writes text keeps the interpreter until another one has asked for it for 5
        ms, and the reactor asks for it several times in each call; so there are rests.
        """
        assert self._connection is not None
        with self._connection.paused():
            self._fill(size)
        if not self._buffer:  # all constraints are checked, or all rows moved, in one step
            self._connection.extra_time = LAST * (time.monotonic() - self._began)
        block = bytes(self._buffer[:size])
        del self._buffer[:size]
        return block

    def _fill(self, size: int) -> None:
        # Its own CPU time: what was spent waiting for rows, or for the interpreter, earns no rest.
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
            if len(self._buffer) >= CHUNK:
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
                given = self._queue.get(timeout=POLL_INTERVAL)
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


def import_txn(connection: PgConnection, statements: CopyIn, feed: CopySource, alone: bool) -> int:
    """
    Write the rows of a feed, and return the number of rows written.

    Alone in its transaction, how long it takes is up to whoever sends the rows, so it is each step that
    has a time limit.

    Raises:
        ServiceError: What the feed found wrong with its rows.
        psycopg2.Error: What PostgreSQL did.
    """
    copy = statements.copy
    defaults = statements.copy_with_defaults is not None and connection.server_version >= 160000
    if defaults and statements.copy_with_defaults is not None:
        copy = statements.copy_with_defaults
    feed.attach(connection, defaults)
    with connection.cursor() as cursor:
        unlimited = "SET LOCAL statement_timeout = 0" if alone else ""
        if before := "; ".join(filter(None, [unlimited, statements.before])):
            cursor.execute(before)
        try:
            cursor.copy_expert(copy, feed, CHUNK)
        except psycopg2.Error:
            # PostgreSQL and psycopg2 know no more than an "error in .read() call".
            if feed.error is not None:
                raise feed.error from None
            raise
        if statements.after is not None:
            cursor.execute(statements.after)
        rows = int(cursor.rowcount)
        if statements.after is not None and not alone:
            cursor.execute(statements.dropped)
        return rows
