"""
Functions of the pool threads that run a statement and return its rows in their final form.

Each takes a connection first, touches nothing but the database, and may run again. A result of any
size is read in chunks, through a server-side cursor (`Reader`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psycopg2

from service.datatypes import FormName
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.error_paths import annotate_position
from service.db.json import bare_row, read_json
from service.db.literals import write_array
from service.db.pack import row_packer
from service.db.planned import run_settled
from service.errors import (
    DatabaseRefused,
    TooLarge,
    TooLargePart,
    TooManyGroups,
    TooManyRows,
    TooManyWatched,
)
from service.payload import LEVELS, Encoded, TooDeep, wire_json
from service.plan.plans import PlannedEmbed, truncated
from service.request.requests import Form
from service.sql.statement import Statement

Row = tuple[Any, ...]

FEW, COMPILED = 8, 64
"""Minimum rows and maximum columns for which the function that makes dicts of rows is compiled."""


@dataclass(frozen=True, slots=True)
class Shape:
    """
    The form in which rows are returned.

    Args:
        form: Dicts; lists, with the names of the columns beside them; or JSON texts.
        max_bytes: Approximate maximum size of the rows on the wire, in bytes.
        encodes: Whether rows without embeds may be returned as CBOR (`Encoded`).
    """

    form: Form
    max_bytes: int
    encodes: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """
    The rows of one page, in their final form.

    Args:
        rows: A list of dicts, lists or JSON texts; or all rows as CBOR.
        more: Whether there are rows after the page; before it, if it was read backwards.
        first, last: Sort keys of the first and last row as text, if pages are bounded by them.
    """

    rows: Any
    more: bool = False
    first: tuple[str | None, ...] = ()
    last: tuple[str | None, ...] = ()


def page_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int | None,
    shape: Shape,
) -> Page:
    """
    Read one page of rows.

    Args:
        connection: The connection to read through.
        codec: Encodes the parameters, and decodes the rows.
        statement: Returns at most one row more than `limit`, by which `more` is known.
        values: The values of the call.
        limit: Maximum number of rows of the page; None for all rows of the result.
        shape: The form of the rows, and their maximum size.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    cursor = execute(connection, codec, statement, values)
    return _page(cursor, cursor.fetchall(), codec, statement, limit, shape)


def pages_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    shape: Shape,
    asked: Sequence[tuple[Sequence[Any], int | None]],
) -> list[Page]:
    """
    Read the pages of several calls of one statement, with `statement.many`.

    Args:
        connection: The connection to use.
        codec: Encodes the values and decodes the rows.
        statement: The statement of each call.
        shape: How the rows of each call are returned.
        asked: For each call, the arguments `values` and `limit` of `page_txn`.

    Raises:
        TooLarge: The rows of one of the calls are too large; the error does not say of which.
    """
    assert statement.many is not None
    given = [codec.parameters(statement.bounds, values) for values, _ in asked]
    lists = [write_array(column) for column in zip(*given, strict=True)]
    cursor = execute(connection, codec, statement.many, lists)
    parts: list[list[Row]] = [[] for _ in asked]
    for *row, number in cursor.fetchall():
        parts[number - 1].append(tuple(row))
    return [
        _page(cursor, rows, codec, statement, limit, shape)
        for rows, (_, limit) in zip(parts, asked, strict=True)
    ]


def _page(
    cursor: Any,
    rows: list[Row],
    codec: Codec,
    statement: Statement,
    limit: int | None,
    shape: Shape,
) -> Page:
    more = limit is not None and len(rows) > limit
    if more:
        del rows[limit:]
    if statement.backwards:
        rows.reverse()
    ends = (rows[0], rows[-1]) if rows and statement.keys else ()
    first, last = [_keys(row, statement) for row in ends] or ((), ())
    found: Any = None
    if shape.encodes and statement.plain and len(rows) >= FEW:
        found = _encoded(rows, statement.columns, codec.forms(cursor), shape)
    if found is None:
        found = shaped(rows, statement, codec, shape)
    return Page(found, more, first, last)


def _keys(row: Row, statement: Statement) -> tuple[str | None, ...]:
    """Return the sort keys of a row as text."""
    return tuple(None if row[at] is None else str(row[at]) for at in statement.keys)


def rows_and_keys_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int | None,
    shape: Shape,
) -> tuple[list[Any], list[Row]]:
    """
    Read rows; return them, and for each the values behind its columns: its key, or nothing.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
        TooManyWatched: There are more than `limit` rows.
    """
    rows = execute(connection, codec, statement, values).fetchall()
    if limit is not None and len(rows) > limit:
        raise TooManyWatched(limit)
    width = len(statement.columns)
    return shaped(rows, statement, codec, shape), [row[width:] for row in rows]


def by_keys_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    keys: int,
    shape: Shape,
    once: bool = False,
) -> list[Any]:
    """
    Read rows by their keys, in the order of the keys.

    Args:
        connection: The connection to read through.
        codec: Encodes the parameters, and decodes the rows.
        statement: Returns the number of its key, counted from 1, behind the columns of each row.
        values: The values of the call.
        keys: Number of keys.
        shape: The form of the rows, and their maximum size.
        once: Whether to refuse several rows with one key: a view's key is declared by a comment,
            and PostgreSQL does not enforce it.

    Returns:
        A row for each key, or None if no row has it.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
        TooManyRows: `once` is set, and several rows have one key.
    """
    rows = execute(connection, codec, statement, values).fetchall()
    if once and len({row[len(statement.columns)] for row in rows}) < len(rows):
        raise several_rows(len(rows), keys)
    found: list[Any] = [None] * keys
    for row, shown in zip(rows, shaped(rows, statement, codec, shape), strict=True):
        found[row[len(statement.columns)] - 1] = shown
    return found


def several_rows(rows: int, keys: int = 1) -> TooManyRows:
    """Return the error of a write by key that has met several rows with one key."""
    which = "the key is that" if keys == 1 else f"{keys} keys are those"
    return TooManyRows(
        f"{which} of {rows} rows", hint="nothing was written; PostgreSQL does not keep it unique"
    )


def groups_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int,
    shape: Shape,
) -> list[Any]:
    """
    Read all groups of an aggregate.

    Raises:
        TooLarge: The groups exceed `shape.max_bytes`.
        TooManyGroups: There are more than `limit` groups.
    """
    page = page_txn(connection, codec, statement, values, limit, shape)
    if page.more:
        raise TooManyGroups(limit)
    return page.rows


def value_txn(
    connection: PgConnection, codec: Codec, statement: Statement, values: Sequence[Any]
) -> Any:
    """Read the one value that a statement returns."""
    return execute(connection, codec, statement, values).fetchone()[0]


def equal_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> list[Any]:
    """
    Run a read once for several calls with equal values; return its result for each of them.

    Args:
        connection: The connection to read through.
        function: Reads; its result must be one that no call changes.
        args: Further arguments of the function, and then a list with an item for each call.
    """
    *given, calls = args
    return [function(connection, *given)] * len(calls)


def explain_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    analyze: bool,
) -> Any:
    """Return the plan of a statement, as EXPLAIN gives it; with `analyze`, the statement is run."""
    options = "FORMAT JSON, ANALYZE, BUFFERS" if analyze else "FORMAT JSON"
    explaining = statement.prefixed(f"EXPLAIN ({options}) ")
    (document,) = value_txn(connection, codec, explaining, values)
    return document


def compute_txn(_: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a pool thread that needs no database but would block the reactor."""
    return function(*args)


def shaped(rows: Sequence[Row], statement: Statement, codec: Codec, shape: Shape) -> list[Any]:
    """
    Return rows in the form that `shape` asks for.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    columns = statement.columns
    if shape.form == "json":
        return _as_json(rows, statement, shape.max_bytes)
    # Measured before the dicts are made: for rows that are refused that would be wasted.
    names_weigh = 0 if shape.form == "lists" else len(rows) * sum(map(len, columns))
    if names_weigh + weight(rows, len(columns)) > shape.max_bytes:
        raise TooLarge(shape.max_bytes)
    if shape.form == "lists" and not statement.embeds:
        width = len(columns)
        return [list(row[:width]) for row in rows]
    if len(rows) >= FEW and len(columns) <= COMPILED:
        found = _dicts_of(columns)(rows)
    else:
        # Not strict: behind the columns there may be sort keys for the next page, or a flag.
        found = [dict(zip(columns, row, strict=False)) for row in rows]
    if statement.embeds:
        read_texts(found, statement.embeds)
        finish(found, statement.embeds, codec)
    if shape.form == "lists":
        names = answered_columns(statement)
        return [[row[name] for name in names] for row in found]
    return found


def _encoded(
    rows: Sequence[Row], columns: tuple[str, ...], forms: tuple[FormName, ...], shape: Shape
) -> Encoded | None:
    """Return rows as CBOR; None if they are to be JSON, or of types that are not encoded here."""
    if shape.form == "json" or len(columns) > COMPILED:
        return None
    width = len(columns)
    packer = row_packer(columns, forms[:width], shape.form == "lists", len(forms) - width)
    if packer is None:
        return None
    return Encoded(packer(rows, shape.max_bytes))


@lru_cache(256)
def _dicts_of(columns: tuple[str, ...]) -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
    """Compile the function that makes dicts of rows; it takes a quarter of the time of `dict(zip())`."""
    # The repr of a string is a safe literal whatever it contains: callers choose aliases.
    items = ", ".join(f"{name!r}: row[{at}]" for at, name in enumerate(map(str, columns)))
    made: Callable[[Sequence[Row]], list[dict[str, Any]]]
    made = eval(f"lambda rows: [{{{items}}} for row in rows]", {})
    return made


def _as_json(rows: Sequence[Row], statement: Statement, max_bytes: int) -> list[Any]:
    """Return each row as one JSON text, built from the JSON texts of its values."""
    width = len(statement.columns)
    # Percent signs are doubled: the text is a template below, and a name may contain any character.
    keys = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in statement.columns)
    text = "%s" if statement.scalar else "{" + ",".join(f"{key}:%s" for key in keys) + "}"
    found = [text % row[:width] for row in rows]
    if sum(map(len, found)) + len(found) > max_bytes:
        raise TooLarge(max_bytes)
    return found


def json_list(rows: Iterable[str]) -> str:
    """Return a JSON array of rows that are JSON texts."""
    return f"[{','.join(rows)}]"


def json_page(rows: Iterable[str], totals: str | None = None, **others: Any) -> str:
    """Return a JSON object of rows that are JSON texts, their totals, and other values."""
    beside = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in others.items())
    if totals is not None:
        beside += f',"totals":{totals}'
    return f'{{"rows":{json_list(rows)}{beside}}}'


def answered_columns(statement: Statement) -> tuple[str, ...]:
    """Return the columns of the result; a spread embed is replaced by its own columns."""
    if not statement.embeds:
        return statement.columns
    names = statement.columns[: len(statement.columns) - len(statement.embeds)]
    for embed in statement.embeds:
        names += embed.columns if embed.spread else (embed.name,)
    return names


def execute(
    connection: PgConnection, codec: Codec, statement: Statement, values: Sequence[Any]
) -> Any:
    """
    Run a statement and return its cursor.

    Raises:
        psycopg2.Error: With a note of the parameter that it points at.
    """
    cursor = connection.wire(codec)
    # An outdated catalog proves nothing: a function may have been replaced since it was read.
    pure = statement.pure and codec.current
    parameters = codec.parameters(statement.bounds, values)
    try:
        if not (pure and statement.settled and run_settled(cursor, codec, statement, parameters)):
            cursor.execute(statement.text, parameters, clean=pure)
    except psycopg2.Error as error:
        annotate_position(error, statement)
        raise
    finally:
        # After an error too, since sequences are not rolled back: `lastval` may be of this row.
        connection.counted |= pure and statement.writes
    return cursor


def weight(rows: Sequence[Row], width: int) -> int:
    """Return the approximate size of rows in bytes, measured by column; a number counts as 4."""
    weight = len(rows) * width * 4
    for column in list(zip(*rows, strict=False))[:width]:
        # A column has one type, so one value is enough of a sample, except of json.
        sample = next(filter(None, column), None)
        if isinstance(sample, str | bytes):
            try:
                weight += sum(map(len, filter(None, column)))
            except TypeError:  # json: strings beside numbers, lists or dicts
                weight += _json_size(column)
        elif isinstance(sample, list | dict):
            weight += _json_size(column)
    return weight


def _json_size(column: Sequence[Any]) -> int:
    return sum(len(json.dumps(value, default=str)) for value in column)


def read_texts(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed]) -> None:
    """Decode the embeds of rows, which are JSON texts, in place; raise `TooDeep` if one cannot be sent."""
    for embed in embeds:
        for row in rows:
            text = row[embed.key]
            if text is not None:
                row[embed.key] = read_json(text, LEVELS)
                if isinstance(row[embed.key], str):
                    raise TooDeep(LEVELS)


def finish(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed], codec: Codec) -> None:
    """
    Finish the embeds of rows in place: decode values that travel as text, and spread embeds.

    Args:
        rows: Each has a value for every embed: a row, a list of rows, or None.
        embeds: The embeds of these rows.
        codec: Decodes values that travel as text in JSON.
    """
    for embed in embeds:
        found = [row[embed.key] for row in rows]
        inner = [row for each in found for row in each] if embed.many else found
        for row in inner:
            if row is not None and (bare := bare_row(row)) is not row:
                row.clear()
                row.update(bare)
        _finish_rows([row for row in inner if row is not None], embed, codec)
    for embed in embeds:
        if embed.spread:
            for row in rows:
                row.update(_spread(row.pop(embed.key), embed))
    _rename({embed.key: embed.name for embed in embeds if not embed.spread}, rows)


def _finish_rows(rows: list[dict[str, Any]], embed: PlannedEmbed, codec: Codec) -> None:
    _rename({truncated(output.name): output.name for output in embed.outputs}, rows)
    for output in embed.outputs:
        if output.text:
            name, type = output.name, output.expression.type
            for row in rows:
                row[name] = codec.read(type, row[name])
    finish(rows, embed.embeds, codec)


def _rename(names: Mapping[str, str], rows: Iterable[dict[str, Any]]) -> None:
    """Rename the keys of rows that PostgreSQL truncated to 63 bytes to their full names, in place."""
    if all(key == name for key, name in names.items()):
        return
    for row in rows:
        # In place, because the row that embeds these rows refers to the same dicts.
        named = {names.get(key, key): value for key, value in row.items()}
        row.clear()
        row.update(named)


def _spread(value: Any, embed: PlannedEmbed) -> dict[str, Any]:
    """Return the columns of related rows: single values, or, of a to-many embed, lists of values."""
    if embed.many:
        return {name: [row[name] for row in value] for name in embed.columns}
    return {name: None if value is None else value[name] for name in embed.columns}


READ_ONLY = "25006"
"""SQLSTATE of a write in a read-only transaction."""


def read_only_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """
    Run what calls a database function declared STABLE or IMMUTABLE, in a read-only transaction.

    Raises:
        DatabaseRefused: The database function writes.
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


FIRST = 16
"""Rows of the first FETCH, when the size of a row is not known yet."""

CHUNK_BYTES = 64 * 1024
"""
Approximate maximum size of a chunk.

The service, the router and the caller each handle a chunk in one piece, and their other work waits
meanwhile. Larger chunks are no faster (`bench/stream.py`).
"""

DECLARE = (
    "SET LOCAL idle_in_transaction_session_timeout = 0;DECLARE rowcast_reader NO SCROLL CURSOR FOR "
)
"""The transaction is idle while a chunk is delivered, for as long as the caller takes to read it."""


class Reader:
    """
    The rows of one statement in chunks, read through a cursor inside a transaction.

    Args:
        codec: Encodes the parameters, and decodes the rows.
        statement: The query.
        values: The values of the call.
        shape: The form of the rows; its `max_bytes` is the maximum size of a single row.
        rows: Maximum number of rows in a chunk.

    Attributes:
        count: Number of rows read so far.
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
        Read the next chunk, in its final form; an empty chunk is the end.

        All chunks must be read in one transaction, one after another.

        Raises:
            TooLargePart: A single row is larger than may be sent.
        """
        if not self._open:
            execute(connection, self._codec, self._statement.prefixed(DECLARE), self._values)
            # The worker's own idle limit too, or it would end the transaction while the caller reads.
            connection.idle = 0.0
            self._open = True
        rows, self._spare = self._spare, []
        weighed = self._weight(rows)
        while not self._ended and len(rows) < self._rows and weighed < self._bytes:
            rows += self._fetch(connection, min(self._step, self._rows - len(rows)))
            weighed = self._weight(rows)
            fitting = self._bytes * len(rows) // max(1, weighed)
            # At most doubled: the next rows may be larger than those that were measured.
            self._step = max(1, min(2 * self._step, fitting, self._rows))
        fits = self._fitting(rows)
        rows, self._spare = rows[:fits], rows[fits:]
        self.count += len(rows)
        try:
            return shaped(rows, self._statement, self._codec, self._shape)
        except TooLarge:
            raise TooLargePart(self._shape.max_bytes) from None

    def lines_txn(self, connection: PgConnection) -> str:
        """Read the next chunk as JSON lines, one for each row; an empty string is the end."""
        return "".join(wire_json(row) + "\n" for row in self.chunk_txn(connection))

    def _fetch(self, connection: PgConnection, rows: int) -> list[Row]:
        cursor = connection.wire(self._codec)
        pure = self._statement.pure and self._codec.current
        cursor.execute(f"FETCH FORWARD {rows:d} FROM rowcast_reader", clean=pure)
        found = cursor.fetchall()
        self._ended = len(found) < rows
        return found

    def _fitting(self, rows: list[Row]) -> int:
        """Return how many rows fit into a chunk, at least one."""
        fits = len(rows)
        while fits > 1 and (weighed := self._weight(rows[:fits])) > self._bytes:
            fits = max(1, min(fits - 1, fits * self._bytes // weighed))
        return fits

    def _weight(self, rows: Sequence[Row]) -> int:
        return weight(rows, len(self._statement.columns))
