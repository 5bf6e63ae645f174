"""
SQL as this room writes it, twistar's way: a `?` for each parameter, a percent sign for itself.

`placeholders` turns a statement into what psycopg2 takes, last of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from service.db.connection import Installable, PgConnection
from service.sql.statement import quoted

Where = Sequence[Any]
"""A condition with a `?` for each parameter, followed by the parameters."""

_TOKENS = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | \$([A-Za-z_]*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/
    | \?\?[|&]? | \? | %""",
    re.S | re.X,
)
_ORDER = re.compile(
    r'\s*("(?:[^"]|"")+"|\w[\w$]*)(?:\s+(ASC|DESC))?(?:\s+NULLS\s+(FIRST|LAST))?\s*', re.I
)


# psycopg2 formats whenever it is given parameters, be they none: LIKE '5%' would fail.
@lru_cache(4096)
def placeholders(condition: str) -> str:
    """
    Replace each `?` by `%s`, outside of literals and comments.

    `??` is PostgreSQL's operator `?`, and `??|`, `??&` the others of its family. A percent
    sign means itself.
    """

    def convert(found: re.Match[str]) -> str:
        token = found.group(0)
        if token == "?":
            return "%s"
        if token.startswith("??"):
            return token[1:]
        # In literals and comments, too: psycopg2 formats the text without reading it as SQL.
        return token.replace("%", "%%")

    return _TOKENS.sub(convert, condition)


def identifiers(names: Iterable[str]) -> str:
    """Quote names, with commas between them."""
    return ", ".join(quoted(name) for name in names)


def table(name: str) -> str:
    """Quote a table name, each part of a dotted one by itself; a quoted one stands as it is."""
    if '"' in name:
        return name
    return ".".join(quoted(part) for part in name.split("."))


def order_clause(orderby: str | Iterable[str], columns: Iterable[str] | None = None) -> str:
    """
    Read "name DESC, other" and write it anew: twistar takes any text, a second statement too.

    Args:
        orderby: Columns, each with ASC, DESC, NULLS FIRST or NULLS LAST after it.
        columns: What may be named; None if that is not known.

    Raises:
        ValueError: It is anything else.
    """
    known = None if columns is None else frozenset(columns)
    terms = []
    for part in orderby.split(",") if isinstance(orderby, str) else orderby:
        found = _ORDER.fullmatch(part)
        name = found and found.group(1).strip('"').replace('""', '"')
        if found is None or name is None or (known is not None and name not in known):
            raise ValueError(f"cannot order by {part!r}")
        direction, nulls = found.group(2), found.group(3)
        terms.append(
            quoted(name)
            + (f" {direction.upper()}" if direction else "")
            + (f" NULLS {nulls.upper()}" if nulls else "")
        )
    return " ORDER BY " + ", ".join(terms)


def limit_of(limit: int | tuple[int, int] | None) -> tuple[str, list[int]]:
    """Return LIMIT, or LIMIT and OFFSET for a pair, with parameters."""
    if limit is None:
        return "", []
    if isinstance(limit, tuple):
        return " LIMIT ? OFFSET ?", [int(limit[0]), int(limit[1])]
    return " LIMIT ?", [int(limit)]


def where_of(where: Where | None) -> tuple[str, list[Any]]:
    """Return WHERE with its parameters."""
    if not where:
        return "", []
    return f" WHERE {enclosed(where)}", list(where[1:])


def enclosed(where: Where) -> str:
    """Return a condition in parentheses, which a comment at its end does not swallow."""
    return f"({where[0]}\n)"


def conjunction(first: Where, second: Where | None) -> Where:
    """Join two conditions; the second may be missing."""
    if not second:
        return first
    return [f"{enclosed(first)} AND {enclosed(second)}", *first[1:], *second[1:]]


def rows_txn(
    connection: PgConnection, codec: Installable, sql: str, params: list[Any]
) -> list[tuple[Any, ...]]:
    """Run a statement and return rows of wire values."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.fetchall()


def affected_txn(connection: PgConnection, codec: Installable, sql: str, params: list[Any]) -> int:
    """Run a statement and return the number of rows it has touched."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.rowcount
