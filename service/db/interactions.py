"""
What runs in a pool thread: a statement with its values, and its rows in their final form.

Each function takes a connection first, touches the database and nothing else, and may
run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2

from service.db.connection import PgConnection
from service.db.embedded import finish, read_texts
from service.db.position import point_out
from service.db.values import Codec
from service.errors import TooLarge, TooManyGroups
from service.request.types import Form
from service.sql.statement import Statement

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """
    How rows are to be answered.

    Args:
        form: As dicts, as lists beside the names of the columns, or as texts of JSON.
        max_bytes: What the rows may weigh on the wire, roughly.
    """

    form: Form
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """
    Rows of one page, in their final form.

    Args:
        rows: Dicts, or lists.
        more: Whether there are rows after them.
        end: The sort keys of the last row as text, where the statement gives them.
    """

    rows: list[Any]
    more: bool = False
    end: tuple[str | None, ...] = ()


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
    rows = execute(connection, codec, statement, values).fetchall()
    more = limit is not None and len(rows) > limit
    if more:
        del rows[limit:]
    width = len(statement.columns)
    end = rows[-1][width:] if more and rows else ()
    return Page(shaped(rows, statement, codec, shape), more, end)


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
    """Read the one value that a statement gives."""
    return execute(connection, codec, statement, values).fetchone()[0]


def apart_txn(_: PgConnection, function: Callable[..., Any], *args: Any) -> Any:
    """Do in a pool thread what needs no database but would hold up the reactor."""
    return function(*args)


def shaped(rows: Sequence[Row], statement: Statement, codec: Codec, shape: Shape) -> list[Any]:
    """
    Give rows the form they are answered in.

    Raises:
        TooLarge: They weigh more than an answer may.
    """
    columns = statement.columns
    if shape.form == "json":
        return _as_json(rows, statement, shape.max_bytes)
    names_weigh = 0 if shape.form == "lists" else len(rows) * sum(map(len, columns))
    if names_weigh + weight(rows, len(columns)) > shape.max_bytes:
        raise TooLarge(shape.max_bytes)
    if shape.form == "lists" and not statement.embeds:
        width = len(columns)
        return [list(row[:width]) for row in rows]
    found = [dict(zip(columns, row, strict=False)) for row in rows]
    if statement.embeds:
        read_texts(found, statement.embeds)
        finish(found, statement.embeds, codec)
    if shape.form == "lists":
        names = answered_columns(statement)
        return [[row[name] for name in names] for row in found]
    return found


def _as_json(rows: Sequence[Row], statement: Statement, max_bytes: int) -> list[Any]:
    """Put the texts of values together to a text for each row."""
    width = len(statement.columns)
    keys = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in statement.columns)
    text = "%s" if statement.bare else "{" + ",".join(f"{key}:%s" for key in keys) + "}"
    found = [text % row[:width] for row in rows]
    if sum(map(len, found)) + len(found) > max_bytes:
        raise TooLarge(max_bytes)
    return found


def answered_columns(statement: Statement) -> tuple[str, ...]:
    """Name the columns of the answer: those of a spread embed stand for the embed."""
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
    Send a statement; gives its cursor.

    Raises:
        psycopg2.Error: With a note of the parameter that it points at.
    """
    cursor = connection.wire(codec)
    pure = statement.pure and codec.current
    try:
        cursor.execute(statement.text, codec.parameters(statement.bounds, values), clean=pure)
    except psycopg2.Error as error:
        point_out(error, statement)
        raise
    finally:
        connection.counted |= pure and statement.writes  # numbered by a sequence, perhaps
    return cursor


def weight(rows: Sequence[Row], width: int) -> int:
    """Weigh rows by their texts and bytes, column by column; a number counts as a word."""
    weight = len(rows) * width * 4
    for column in list(zip(*rows, strict=False))[:width]:
        sample = next(filter(None, column), None)
        if isinstance(sample, str | bytes):
            weight += _length(column)
        elif isinstance(sample, list | dict):
            weight += sum(len(json.dumps(value, default=str)) for value in column)
    return weight


def _length(column: Sequence[Any]) -> int:
    try:
        return sum(map(len, filter(None, column)))
    except TypeError:  # json, of many kinds
        return sum(len(json.dumps(value, default=str)) for value in column)
