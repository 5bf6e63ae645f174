"""
COPY FROM and COPY TO, with back-pressure between the worker thread and the reactor.

For the duration of a COPY, psycopg2 keeps the thread in one call, and reads from or writes to a
file-like object. Here that object blocks until the reactor has more data, or wants more.
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
from service.db.error_paths import annotate_position
from service.db.json import check_text, within
from service.db.statements import execute
from service.errors import InvalidArgument, UnknownName
from service.request.row_values import BY_DEFAULT, new_value
from service.sql.modify import DEFAULT, CopyIn
from service.sql.statement import Statement

NULL = r"\N"

Lines = Callable[[int], int]
"""Returns the line of the caller's CSV for the number of a row, both counted from 1."""


@dataclass(frozen=True, slots=True)
class Text:
    """A value that is PostgreSQL's text already, and is not encoded."""

    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A value that is encoded as it is, even if it looks like an operator such as `$default`."""

    value: Any


class RowText:
    """
    Encoder of rows as COPY's text format.

    Args:
        codec: Encodes the values, as for any statement.
        columns: Columns of the rows, in order.
        types: Returns the type of an oid.
        complete: Whether each row must have a value for every column.
        lines: Returns the line of a row, by its number, if the rows were CSV.
    """

    def __init__(
        self,
        codec: Codec,
        columns: Sequence[Column],
        types: Callable[[int], Type],
        complete: bool,
        lines: Lines | None = None,
    ) -> None:
        self.line = 0
        self._codec = codec
        self._columns = [(each.name, types(each.type), each.has_default) for each in columns]
        self._names = frozenset(each.name for each in columns)
        self._complete = complete
        self._lines = lines

    def encode(self, rows: Sequence[Any], defaults: bool) -> Iterator[bytes]:
        """
        Yield a line for each row.

        Args:
            rows: Dicts, or lists with an item for each column.
            defaults: Whether the COPY has a marker for the default of a column that a dict lacks.

        Raises:
            InvalidArgument: A row is invalid; `path` and `line` say which.
        """
        for at, row in enumerate(rows):
            self.line += 1
            try:
                yield self._row(row, defaults).encode()
            except InvalidArgument as refusal:
                within(refusal, "csv" if self._lines else f"rows.{at}")
                refusal.details["line"] = self._lines(self.line) if self._lines else self.line
                raise

    def _row(self, row: Any, defaults: bool) -> str:
        if isinstance(row, Mapping):
            if not row.keys() <= self._names:
                self._refuse_names(row)
            values = [row.get(name, BY_DEFAULT) for name, _, _ in self._columns]
        elif isinstance(row, list | tuple) and len(row) == len(self._columns):
            values = list(row)
        else:
            raise not_a_row(row, len(self._columns))
        found, name = [], ""
        try:
            for (name, type, has_default), value in zip(self._columns, values, strict=True):
                if isinstance(value, dict):
                    value = new_value(value, name)
                if value is BY_DEFAULT:
                    if self._complete or (has_default and not defaults):
                        raise _missing_value(name)
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


def encode_csv(text: str, defaults: bool) -> Iterator[bytes]:
    """
    Yield the bytes of a CSV text, unchanged.

    Raises:
        InvalidArgument: PostgreSQL cannot store a character of it.
    """
    try:
        yield check_text(text).encode()
    except InvalidArgument as refusal:
        refusal.details["path"] = "csv"
        raise


def not_a_row(row: Any, columns: int | None, path: str | None = None) -> InvalidArgument:
    """Return the refusal of a row that is no dict, and no list of as many values as there are columns."""
    if columns is not None and isinstance(row, list | tuple):
        values = "1 value" if len(row) == 1 else f"{len(row)} values"
        return InvalidArgument(f"{values} for {columns} column{'s' * (columns != 1)}", path=path)
    hint = '"columns" names the items of rows that are lists'
    return InvalidArgument("a row is a dict of columns and values", path=path, hint=hint)


def _missing_value(name: str) -> InvalidArgument:
    return InvalidArgument(
        "each row of this import has a value for every column",
        path=name,
        hint="defaults are filled in by PostgreSQL 16 and later, in a table, without on_conflict",
    )


def _escaped(text: str) -> str:
    # Backslashes first, or those of the other escapes would be doubled too.
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\n" in text:
        text = text.replace("\n", "\\n")
    if "\t" in text:
        text = text.replace("\t", "\\t")
    return text.replace("\r", "\\r") if "\r" in text else text


POLL_INTERVAL = 0.2
"""Seconds between two checks of a waiting worker whether it was stopped."""

BLOCK = 64 * 1024
"""Bytes collected in a block before it is handed over: COPY writes a row at a time."""


class CopyBlocks:
    """
    The text of a COPY TO, passed from a worker to the reactor in blocks as these are requested.

    Args:
        reactor: Receives calls from the worker's thread.

    Attributes:
        bytes: Number of bytes taken so far.
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
        """Set the connection whose COPY is about to write here."""
        self._connection = connection

    def write(self, data: bytes) -> int:
        """Add a row; once a block is full, wait until it is requested."""
        self._held.append(data)
        self._weight += len(data)
        if self._weight >= BLOCK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send the collected rows to the reactor, long rows in several blocks."""
        # Decoded as complete rows, and split as text, so that no character is cut.
        text = b"".join(self._held).decode()
        self._held.clear()
        self._weight = 0
        for start in range(0, len(text), 2 * BLOCK):
            with self._connection.paused() if self._connection else nullcontext():
                asked = self._requested()
            if not asked:  # the COPY is being canceled; what it still sends until then is dropped
                return
            self._ready.append(text[start : start + 2 * BLOCK])
            self._reactor.callFromThread(self._pump)

    def _requested(self) -> bool:
        """Wait until a block is requested; return whether one is still wanted."""
        while not (self._stopped or (self._connection and self._connection.stopped)):
            if self._credit.acquire(timeout=POLL_INTERVAL):
                return not self._stopped
        return False

    # In the reactor

    def next(self) -> Deferred[str]:
        """Request a block; the Deferred fires with an empty string at the end."""
        # A cancelled Deferred is removed from the queue, so that no block is delivered to it.
        block: Deferred[str] = Deferred(self._waiting.remove)
        self._waiting.append(block)
        self._credit.release()
        self._pump()
        return block

    def ended(self, outcome: Any) -> Any:
        """Record the end of the COPY, or its failure."""
        self._outcome = outcome
        self._pump()
        return outcome

    def stop(self) -> None:
        """Stop reading, and wake the worker, which must not wait for further requests."""
        # Set before the credit wakes the worker, which reads it then.
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
    blocks: CopyBlocks,
) -> int:
    """
    Copy the rows of a query out as CSV with a header, and return their number.

    The duration depends on the caller who reads the blocks, so the time limit is one for each block.
    """
    blocks.attach(connection)
    *ahead, statement = statement.parts()
    for each in ahead:  # COPY needs a message of its own
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
            annotate_position(error, statement)
            raise
        blocks.flush()
        return int(cursor.rowcount)


CHUNK = 16 * 1024
"""Bytes given to COPY at a time: some 70 rows of 200 bytes, which take 0.25 ms to encode."""

REST = 1.0
"""Seconds that the worker rests for each second of CPU time it has taken to encode rows."""

LAST = 10.0
"""Maximum time of the last step, such as checking constraints, as a multiple of that of all rows."""

Encode = Callable[[Any, bool], Iterator[bytes]]
"""Yields COPY's text of the rows of one call; the flag says whether there is a marker for defaults."""


class CopySource:
    """
    The file that a COPY FROM reads: the rows of one call after another, encoded as they are read.

    Args:
        reactor: Receives calls from the worker's thread.
        encode: Encodes rows, in the worker.
        rest: Sleeps for a number of seconds, in the worker.

    Attributes:
        error: The error that has ended the rows.
        lines: Set if COPY's number of a row is not the line of it in the call.
    """

    def __init__(
        self, reactor: Any, encode: Encode, rest: Callable[[float], None] = time.sleep
    ) -> None:
        self.error: BaseException | None = None
        self.lines: Lines | None = None
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
        """Send rows; the Deferred fires when COPY has read them, and fails if COPY fails."""
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
        """Record the outcome of the import; if it has failed, rows that were not read fail with it."""
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
        """Set the connection whose COPY is about to read, and whether it has a marker for defaults."""
        self._connection = connection
        self._defaults = defaults
        self._began = time.monotonic()

    def read(self, size: int) -> bytes:
        """
        Return the next bytes, b"" at the end. An error is kept in `error`, because psycopg2 hides it.

        A busy thread keeps the interpreter lock for 5 ms after another has asked for it, and the reactor
        asks for it several times in each call. So the worker rests between chunks.
        """
        assert self._connection is not None
        with self._connection.paused():
            self._fill(size)
        if not self._buffer:  # the server's last step checks all constraints, or inserts all rows
            self._connection.extra_time = LAST * (time.monotonic() - self._began)
        block = bytes(self._buffer[:size])
        del self._buffer[:size]
        return block

    def _fill(self, size: int) -> None:
        # CPU time of the thread: waiting for rows or for the interpreter lock is no reason to rest.
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
    Copy the rows of a feed in, and return the number of rows written.

    If `alone` in its transaction, the duration depends on the caller who sends the rows, so each step
    has a time limit of its own.

    Raises:
        ServiceError: The feed has found an invalid row.
        psycopg2.Error: PostgreSQL has refused a row.
    """
    with_defaults = statements.copy_with_defaults if connection.server_version >= 160000 else None
    feed.attach(connection, with_defaults is not None)
    with connection.cursor() as cursor:
        unlimited = "SET LOCAL statement_timeout = 0" if alone else ""
        if before := "; ".join(filter(None, [unlimited, statements.before])):
            cursor.execute(before)
        try:
            cursor.copy_expert(with_defaults or statements.copy, feed, CHUNK)
        except psycopg2.Error as error:
            error.lines = feed.lines  # type: ignore[attr-defined]
            # The error of PostgreSQL and psycopg2 says no more than "error in .read() call".
            if feed.error is not None:
                raise feed.error from None
            raise
        if statements.after is not None:
            cursor.execute(statements.after)
        rows = int(cursor.rowcount)
        if statements.after is not None and not alone:
            cursor.execute(statements.dropped)
        return rows
