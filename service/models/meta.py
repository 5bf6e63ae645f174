"""
What a model knows of its relation, with the SQL text that all objects of the model share.

SQL in `models/` follows twistar: `?` stands for a parameter, and a percent sign for itself. `placeholders`
turns a statement into psycopg2's form just before it is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import lru_cache
from typing import Any

from service.catalog import Catalog, Relation, Type
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.errors import InvalidArgument
from service.plan.plans import PG_CATALOG
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


# psycopg2 formats the text if it is given any list of parameters, even an empty one: LIKE '5%' would fail.
@lru_cache(4096)
def placeholders(condition: str) -> str:
    """
    Replace each `?` by `%s`, outside of literals and comments.

    `??` stands for PostgreSQL's operator `?`, and `??|` and `??&` for `?|` and `?&`. A percent sign
    stands for itself.
    """

    def convert(found: re.Match[str]) -> str:
        token = found.group(0)
        if token == "?":
            return "%s"
        if token.startswith("??"):
            return token[1:]
        # In literals and comments as well: psycopg2 formats the text without parsing it as SQL.
        return token.replace("%", "%%")

    return _TOKENS.sub(convert, condition)


def identifiers(names: Iterable[str]) -> str:
    """Quote names, and join them with commas."""
    return ", ".join(quoted(name) for name in names)


def table(name: str) -> str:
    """Quote each part of a dotted table name; return a name that is quoted already unchanged."""
    if '"' in name:
        return name
    return ".".join(quoted(part) for part in name.split("."))


def order_clause(orderby: str | Iterable[str], columns: Iterable[str] | None = None) -> str:
    """
    Parse "name DESC, other", and return the ORDER BY clause.

    twistar puts the text into the statement unread, and so runs a second statement in it as well.

    Args:
        orderby: Columns, each optionally followed by ASC or DESC, and NULLS FIRST or NULLS LAST.
        columns: The columns that may be named; None if they are not known.

    Raises:
        ValueError: The text is not such a list, or names another column.
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
    return f" WHERE {parenthesized(where)}", list(where[1:])


def parenthesized(where: Where) -> str:
    """Return a condition in parentheses; a comment at its end cannot hide the closing one."""
    return f"({where[0]}\n)"


def conjunction(first: Where, second: Where | None) -> Where:
    """Join two conditions; the second may be missing."""
    if not second:
        return first
    return [f"{parenthesized(first)} AND {parenthesized(second)}", *first[1:], *second[1:]]


def rows_txn(
    connection: PgConnection, codec: Codec, sql: str, params: list[Any]
) -> list[tuple[Any, ...]]:
    """Run a statement and return rows of wire values."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.fetchall()


def affected_txn(connection: PgConnection, codec: Codec, sql: str, params: list[Any]) -> int:
    """Run a statement and return the number of rows that it has affected."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.rowcount


SAME_IN_PYTHON = frozenset(["boolean", "binary", "integer", "number", "string", "text"])
"""Forms whose Python values are the same as the wire values."""


def keys_of(names: Sequence[str]) -> str:
    """Return the column aliases of a source of keys: key_0, key_1, …"""
    return ", ".join(f"key_{at}" for at in range(len(names)))


class Meta:
    """
    A relation as its model sees it.

    Args:
        relation: The relation.
        catalog: Has the types of its columns.
        codec: Reads and writes their values.
        reserved: Names of the attributes of the class. A column of such a name becomes an attribute with
            an underscore appended.
    """

    def __init__(
        self,
        relation: Relation,
        catalog: Catalog,
        codec: Codec,
        reserved: Collection[str] = (),
    ) -> None:
        self.relation = relation
        self.codec = codec
        self.key = relation.primary_key
        self.columns = tuple(name for name, column in relation.columns.items() if column.selectable)
        self.types: Mapping[str, Type] = {
            name: catalog.type(column.type) for name, column in relation.columns.items()
        }
        self.attributes = {
            name: f"{name}_" if name in reserved else name for name in relation.columns
        }
        self.position = {self.attributes[name]: at for at, name in enumerate(self.columns)}
        self.named = {attribute: name for name, attribute in self.attributes.items()}
        self._makers = [self._maker(catalog, name) for name in self.columns]
        self._catalog = catalog
        self.table = f"{quoted(relation.schema)}.{quoted(relation.name)}"
        self.list = identifiers(self.columns)
        self.select = f"SELECT {self.list} FROM {self.table}"
        self.by_key = self.equal(self.key)
        # Cached by the columns written: an application writes few different sets of columns.
        self._inserts: dict[tuple[tuple[str, ...], str], str] = {}
        self._updates: dict[tuple[str, ...], str] = {}

    def _maker(self, catalog: Catalog, name: str) -> Callable[[Any], Any] | None:
        type = self.types[name]
        plain = catalog.plain(type)
        if plain.kind not in ("array", "composite") and plain.form in SAME_IN_PYTHON:
            return None
        if plain.form == "json":  # a copy, so that a change in place differs from the row
            return deepcopy
        return lambda value: self.codec.python(type, value, name)

    def python(self, at: int, value: Any) -> Any:
        """Return the Python value of a column, by its position in a row of wire values."""
        make = self._makers[at]
        return value if make is None or value is None else make(value)

    def encode(self, name: str, value: Any, path: str | None = None) -> str | None:
        """
        Encode a value for a column; `path` is its place in the call, if that is not the column's name.

        Raises:
            InvalidArgument: The value is not of the column's type.
            ValueError: A timestamp without a time zone, for a column that has one.
        """
        type = self.types[name]
        value = getattr(value, "adapted", value)  # psycopg2's Date, Json and the like
        # PostgreSQL would interpret it in the time zone of the session.
        if isinstance(value, datetime) and value.tzinfo is None and type.form == "timestamptz":
            raise ValueError(f"{name}: a timestamp needs a time zone")
        return self.codec.encode(type, value, path or name)

    def cast(self, name: str) -> str:
        """Return a parameter that is cast to a column's type."""
        return f"CAST(? AS {self.types[name].sql})"

    def compare(self, names: Sequence[str], left: Iterable[str], right: Iterable[str]) -> str:
        """
        Return the condition that pairs of expressions are equal.

        Args:
            names: Columns; the type of each one determines the operator of a pair.
            left: The left expressions, as SQL.
            right: The right expressions, as SQL.
        """
        pairs = zip(names, left, right, strict=True)
        return " AND ".join(f"{one} {self._equals(name)} {two}" for name, one, two in pairs)

    def _equals(self, name: str) -> str:
        # The operator of an extension's type is in the extension's schema, which may not be in the
        # search_path, and an unqualified = may be an operator that a database user has created.
        oid = self._catalog.plain(self.types[name]).oid
        schema = self._catalog.operators.get(("=", oid, oid), PG_CATALOG)
        return f"OPERATOR({quoted(schema)}.=)"

    def equal(self, names: Sequence[str]) -> str:
        """Return the condition that columns have values, one parameter for each."""
        return self.compare(names, map(quoted, names), map(self.cast, names))

    def any_of(self, name: str) -> str:
        """Return the condition that a column has a value of a list, encoded by `encode_all`."""
        return self.compare([name], [quoted(name)], [f"ANY({self.list_of(name)})"])

    def among(self, names: Sequence[str]) -> str:
        """Return the condition that columns have the values of one of several rows, from `encode_rows`."""
        if len(names) == 1:
            return self.any_of(names[0])
        source = f"{self.rows_of(names)} AS asked ({keys_of(names)})"
        return f"EXISTS (SELECT FROM {source} WHERE {self.same(names)})"

    def same(self, names: Sequence[str]) -> str:
        """Return the condition that columns equal key_0, key_1, … of a source called `asked`."""
        left = (f"{self.table}.{quoted(name)}" for name in names)
        return self.compare(names, left, (f"asked.key_{at}" for at in range(len(names))))

    def rows_of(self, names: Sequence[str]) -> str:
        """Return a source of rows whose values are parameters, a list for each column."""
        lists = ", ".join(f"pg_catalog.unnest({self.list_of(name)})" for name in names)
        return f"ROWS FROM ({lists})"

    def list_of(self, name: str) -> str:
        """Return a parameter that is a list of a column's values."""
        # psycopg2 writes a list of texts as ARRAY['…'], which is text[] whatever the column's type is.
        return f"CAST(? AS {self.types[name].sql}[])"

    def encode_all(self, name: str, values: Iterable[Any]) -> list[str | None]:
        """Encode values for `any_of`."""
        return [self.encode(name, value) for value in values]

    def encode_rows(
        self, names: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> list[list[str | None]]:
        """Encode rows of values for `among`: a list for each column."""
        return [self.encode_all(name, [row[at] for row in rows]) for at, name in enumerate(names)]

    def key_values(self, key: Any) -> list[str | None]:
        """
        Encode a primary key: a single value, or a sequence or mapping of all its columns.

        Raises:
            InvalidArgument: It has other parts than the primary key, or a part is not of its type.
        """
        relation = self.relation
        if not self.key:
            raise InvalidArgument(
                f'"{relation.name}" has no primary key, and so no row by key',
                path="key",
                hint="a where finds rows of it",
            )
        if isinstance(key, Mapping):
            for name in key:
                relation.column(str(name), f"key.{name}")
            parts = [(f"key.{name}", key[name]) for name in self.key if name in key]
        elif isinstance(key, (list, tuple)):
            parts = [(f"key.{at}", part) for at, part in enumerate(key)]
        else:
            parts = [("key", key)]
        if len(parts) != len(self.key):
            raise InvalidArgument(
                f'the key of "{relation.name}" is {", ".join(self.key)}:'
                f" {len(self.key)} value{'s' * (len(self.key) != 1)}, got {len(parts)}",
                path="key",
                columns=list(self.key),
            )
        return [
            self.encode(name, part, path)
            for name, (path, part) in zip(self.key, parts, strict=True)
        ]

    def insert(self, columns: tuple[str, ...], conflict: str = "") -> str:
        """Return the INSERT of these columns that returns the row."""
        found = self._inserts.get((columns, conflict))
        if found is None:
            names = identifiers(columns)
            values = ", ".join(self.cast(name) for name in columns)
            what = f"({names}) VALUES ({values})" if columns else "DEFAULT VALUES"
            found = f"INSERT INTO {self.table} {what}{conflict} RETURNING {self.list}"
            self._inserts[columns, conflict] = found
        return found

    def update(self, columns: tuple[str, ...]) -> str:
        """Return the UPDATE of these columns of one row that returns the row."""
        found = self._updates.get(columns)
        if found is None:
            values = ", ".join(f"{quoted(name)} = {self.cast(name)}" for name in columns)
            found = f"UPDATE {self.table} SET {values} WHERE {self.by_key} RETURNING {self.list}"
            self._updates[columns] = found
        return found
