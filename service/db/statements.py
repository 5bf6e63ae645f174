"""
What runs in a pool thread: a statement with its values, and its rows in their final form.

Each function takes a connection first, touches the database and nothing else, and may
run again.

A result of any size is read in chunks, through a cursor of the server's.
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
from service.db.json import bare_row, read_json
from service.db.pack import row_packer
from service.db.planned import run_settled
from service.db.position import point_out
from service.errors import DatabaseRefused, TooLarge, TooManyGroups, TooManyRows, TooManyWatched
from service.payload import Encoded, wire_json
from service.plan.plans import PlannedEmbed, truncated
from service.request.requests import Form
from service.sql.statement import Statement

Row = tuple[Any, ...]

FEW, COMPILED = 8, 64
"""Rows from which on, and columns up to which, what makes dicts of them is compiled."""


@dataclass(frozen=True, slots=True)
class Shape:
    """
    How rows are to be answered.

    Args:
        form: As dicts, as lists beside the names of the columns, or as texts of JSON.
        max_bytes: What the rows may weigh on the wire, roughly.
        encodes: Whether rows of single values may be `Encoded`.
    """

    form: Form
    max_bytes: int
    encodes: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """
    Rows of one page, in their final form.

    Args:
        rows: Dicts, or lists; or all of them as CBOR.
        more: Whether there are rows after them; of rows that are read backwards, before them.
        first, last: The sort keys of these rows as text, where the statement gives them.
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
    Read rows.

    Args:
        connection: To read them through.
        codec: For the values, both ways.
        statement: Reads at most one row more than `limit`.
        values: Of the call.
        limit: How many rows a page holds; None for all that come.
        shape: Of the answer.

    Raises:
        TooLarge: The rows weigh more than an answer may.
    """
    cursor = execute(connection, codec, statement, values)
    rows = cursor.fetchall()
    more = limit is not None and len(rows) > limit
    if more:
        del rows[limit:]
    if statement.backwards:
        rows.reverse()
    width = len(statement.columns)
    first, last = (rows[0][width:], rows[-1][width:]) if rows else ((), ())
    found: Any = None
    if shape.encodes and statement.plain and len(rows) >= FEW:
        found = _encoded(rows, statement.columns, codec.forms(cursor), shape)
    if found is None:
        found = shaped(rows, statement, codec, shape)
    return Page(found, more, first, last)


def keyed_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int | None,
    shape: Shape,
) -> tuple[list[Any], list[Row]]:
    """
    Read rows, and for each the values that stand after its columns: its key, or nothing.

    Raises:
        TooLarge: They weigh more than an answer may.
        TooManyWatched: There are more than `limit`.
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
    Read rows by their keys, in the order of those.

    Args:
        connection: To read them through.
        codec: For the values, both ways.
        statement: Gives the number of its key, from 1, behind the columns of each row.
        values: Of the call.
        keys: How many there are.
        shape: Of the answer.
        once: Whether a key of several rows, which a comment can claim, is refused.

    Returns:
        A row for each key, or None where there is none.

    Raises:
        TooLarge: The rows weigh more than an answer may.
        TooManyRows: `once`, and a key is that of several.
    """
    rows = execute(connection, codec, statement, values).fetchall()
    if once and len({row[len(statement.columns)] for row in rows}) < len(rows):
        raise several_rows(len(rows), keys)
    found: list[Any] = [None] * keys
    for row, shown in zip(rows, shaped(rows, statement, codec, shape), strict=True):
        found[row[len(statement.columns)] - 1] = shown
    return found


def several_rows(rows: int, keys: int = 1) -> TooManyRows:
    """Return the error of a write by keys of which each is to be of one row."""
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
    Read groups, all of them.

    Raises:
        TooLarge: They weigh more than an answer may.
        TooManyGroups: There are more than `limit`.
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


def explain_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    analyze: bool,
) -> Any:
    """Return how PostgreSQL would run a statement, as of EXPLAIN; with `analyze`, having run it."""
    options = "FORMAT JSON, ANALYZE, BUFFERS" if analyze else "FORMAT JSON"
    explaining = statement.prefixed(f"EXPLAIN ({options}) ")
    (document,) = value_txn(connection, codec, explaining, values)
    return document


def compute_txn(_: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Run in a pool thread what needs no database but would hold up the reactor."""
    return function(*args)


def shaped(rows: Sequence[Row], statement: Statement, codec: Codec, shape: Shape) -> list[Any]:
    """
    Return rows in the form of the answer.

    Raises:
        TooLarge: They weigh more than an answer may.
    """
    columns = statement.columns
    if shape.form == "json":
        return _as_json(rows, statement, shape.max_bytes)
    # Weighed before there are dicts, which would be made of refused rows for nothing.
    names_weigh = 0 if shape.form == "lists" else len(rows) * sum(map(len, columns))
    if names_weigh + weight(rows, len(columns)) > shape.max_bytes:
        raise TooLarge(shape.max_bytes)
    if shape.form == "lists" and not statement.embeds:
        width = len(columns)
        return [list(row[:width]) for row in rows]
    if len(rows) >= FEW and len(columns) <= COMPILED:
        found = _dicts_of(columns)(rows)
    else:
        # Not strict: sort keys for the next page, or a flag, stand behind the columns.
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
    """Return rows as CBOR, if they are not JSON and of values that it is made of here."""
    if shape.form == "json" or len(columns) > COMPILED:
        return None
    width = len(columns)
    packer = row_packer(columns, forms[:width], shape.form == "lists", len(forms) - width)
    if packer is None:
        return None
    return Encoded(packer(rows, shape.max_bytes))


@lru_cache(256)
def _dicts_of(columns: tuple[str, ...]) -> Callable[[Sequence[Row]], list[dict[str, Any]]]:
    """Compile the function that makes dicts of rows: a quarter of the time of a `zip` for each."""
    # The repr of a string is a literal whatever is in it: names are as callers alias them.
    items = ", ".join(f"{name!r}: row[{at}]" for at, name in enumerate(map(str, columns)))
    made: Callable[[Sequence[Row]], list[dict[str, Any]]]
    made = eval(f"lambda rows: [{{{items}}} for row in rows]", {})
    return made


def _as_json(rows: Sequence[Row], statement: Statement, max_bytes: int) -> list[Any]:
    """Return each row as one JSON text, made of the texts of its values."""
    width = len(statement.columns)
    # Doubled, since the text is a template below, and a column may have any name.
    keys = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in statement.columns)
    text = "%s" if statement.scalar else "{" + ",".join(f"{key}:%s" for key in keys) + "}"
    found = [text % row[:width] for row in rows]
    if sum(map(len, found)) + len(found) > max_bytes:
        raise TooLarge(max_bytes)
    return found


def json_list(rows: Iterable[str]) -> str:
    """Return the JSON of a list of rows that are JSON texts."""
    return f"[{','.join(rows)}]"


def json_page(rows: Iterable[str], totals: str | None = None, **others: Any) -> str:
    """Return the JSON of an object of such rows, and of what stands beside them."""
    beside = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in others.items())
    if totals is not None:
        beside += f',"totals":{totals}'
    return f'{{"rows":{json_list(rows)}{beside}}}'


def answered_columns(statement: Statement) -> tuple[str, ...]:
    """Return the columns of the answer: those of a spread embed stand for the embed."""
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
    # By a catalog that is out of date nothing is certain: a function may be another one by now.
    pure = statement.pure and codec.current
    parameters = codec.parameters(statement.bounds, values)
    try:
        if not (pure and statement.settled and run_settled(cursor, codec, statement, parameters)):
            cursor.execute(statement.text, parameters, clean=pure)
    except psycopg2.Error as error:
        point_out(error, statement)
        raise
    finally:
        # When it is refused, too: no sequence is set back.
        connection.counted |= pure and statement.writes  # numbered by a sequence, perhaps
    return cursor


def weight(rows: Sequence[Row], width: int) -> int:
    """Return the bytes of rows, roughly, column by column; a number counts as 4."""
    weight = len(rows) * width * 4
    for column in list(zip(*rows, strict=False))[:width]:
        # A column has one type, so one value tells of all; json alone may have others behind it.
        sample = next(filter(None, column), None)
        if isinstance(sample, str | bytes):
            try:
                weight += sum(map(len, filter(None, column)))
            except TypeError:  # json, of many kinds
                weight += _as_json_weighs(column)
        elif isinstance(sample, list | dict):
            weight += _as_json_weighs(column)
    return weight


def _as_json_weighs(column: Sequence[Any]) -> int:
    return sum(len(json.dumps(value, default=str)) for value in column)


def read_texts(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed]) -> None:
    """Read the embeds of rows, which came as texts, in place."""
    for embed in embeds:
        for row in rows:
            text = row[embed.key]
            if text is not None:
                row[embed.key] = read_json(text)


def finish(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed], codec: Codec) -> None:
    """
    Finish the embeds of rows in place: read what travelled as text, spread what is spread.

    Args:
        rows: Each with a value for every embed: a row, a list of rows, or None.
        embeds: Of these rows.
        codec: Reads the texts.
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
    _call({embed.key: embed.name for embed in embeds if not embed.spread}, rows)


def _finish_rows(rows: list[dict[str, Any]], embed: PlannedEmbed, codec: Codec) -> None:
    _call({truncated(output.name): output.name for output in embed.outputs}, rows)
    for output in embed.outputs:
        if output.text:
            name, type = output.name, output.expression.type
            for row in rows:
                row[name] = codec.read(type, row[name])
    finish(rows, embed.embeds, codec)


def _call(names: Mapping[str, str], rows: Iterable[dict[str, Any]]) -> None:
    """Call by their names what PostgreSQL cut short, in the same order."""
    if all(key == name for key, name in names.items()):
        return
    for row in rows:
        # In place, since whoever embeds these rows holds them already; in the order of the answer.
        named = {names.get(key, key): value for key, value in row.items()}
        row.clear()
        row.update(named)


def _spread(value: Any, embed: PlannedEmbed) -> dict[str, Any]:
    """Return the columns of related rows: single values, or lists of them."""
    if embed.many:
        return {name: [row[name] for row in value] for name in embed.columns}
    return {name: None if value is None else value[name] for name in embed.columns}


READ_ONLY = "25006"
"""What PostgreSQL says of a write in a transaction that may only read."""


def read_only_txn(connection: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
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
        return "".join(wire_json(row) + "\n" for row in self.chunk_txn(connection))

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
