"""
The database's own catalog → `Catalog`.

A handful of statements, whatever the number of relations, in one snapshot. Hidden relations and
columns are left out here, so that nothing after this can reach them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection
from psycopg2.extras import NamedTupleCursor
from psycopg2.sql import SQL, Identifier

from schema.database import reason
from service.catalog import (
    Argument,
    Catalog,
    CatalogSQL,
    Column,
    ForeignKey,
    Function,
    Mode,
    Relation,
    RelationKind,
    Type,
    TypeKind,
    UniqueIndex,
    UniqueKey,
    Volatility,
    WriteKind,
)
from service.datatypes import data_type
from service.db import introspect_sql
from service.db.codec import fields_hash
from service.db.introspect_pure import IMPURE
from service.db.introspect_views import RULES, base_origins, derived_keys, shown_keys

RELATION_KINDS: Mapping[str, RelationKind] = {
    "r": "table",
    "p": "table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}

WRITES: Mapping[int, WriteKind] = {8: "insert", 4: "update", 16: "delete"}
"""Bits of `pg_relation_is_updatable`."""

AFTER: Mapping[int, WriteKind] = {4: "insert", 16: "update"}
"""Bits of `tgtype`; a deleted row is answered as it was."""

Rows = Sequence[Any]
"""Named tuples, with the columns of the statement as attributes."""

Names = Mapping[int, Mapping[int, str]]
"""Relation oid to column number to name, of served columns alone."""

TYPE_KINDS: Mapping[str, TypeKind] = {
    "b": "base",
    "c": "composite",
    "d": "domain",
    "e": "enum",
    "m": "multirange",
    "p": "pseudo",
    "r": "range",
}

MODES: Mapping[str, Mode] = {"i": "in", "o": "out", "b": "inout", "v": "variadic", "t": "table"}
VOLATILITIES: Mapping[str, Volatility] = {"i": "immutable", "s": "stable", "v": "volatile"}


def read_catalog(dsn: str, schemas: tuple[str, ...], role: str | None = None) -> Catalog:
    """
    Read what a database holds.

    Args:
        dsn: Of the database.
        schemas: Those that are served.
        role: Whose rights count, if not those of the one who logs in.

    Raises:
        ConnectionError: It cannot be reached, or not as that role; in one sentence.
    """
    try:
        connection = psycopg2.connect(dsn)
    except psycopg2.OperationalError as error:
        raise ConnectionError(reason(error)) from error
    try:
        connection.autocommit = True
        if role is not None:
            _become(connection, role)
        return catalog_txn(connection, schemas, 1)
    finally:
        connection.close()


def _become(connection: connection, role: str) -> None:
    with connection.cursor() as cursor:
        try:
            cursor.execute(SQL("SET ROLE {}").format(Identifier(role)))
        except psycopg2.Error as error:
            raise ConnectionError(error.diag.message_primary or f'no role "{role}"') from error


def catalog_txn(connection: connection, schemas: tuple[str, ...], version: int) -> Catalog:
    """
    Read what the schemas hold and what the connection's role may do with it.

    Works in a transaction that is open, else in one of its own.

    Args:
        connection: To PostgreSQL 13 or later.
        schemas: To be served, the first one without a prefix in URIs.
        version: What the catalog shall be known by.
    """
    with _snapshot(connection) as cursor:
        relations = _rows(cursor, introspect_sql.RELATIONS, schemas=list(schemas))
        (impure,) = _rows(cursor, IMPURE)
        types = TypeRows(_rows(cursor, introspect_sql.TYPES), frozenset(impure.types))
        routines = _rows(cursor, introspect_sql.FUNCTIONS, schemas=list(schemas))
        operators = _rows(cursor, introspect_sql.OPERATORS)
        aggregates = _rows(cursor, introspect_sql.AGGREGATES)
        (policies,) = _rows(cursor, introspect_sql.POLICIES)[0]
        views = [row.oid for row in relations if row.kind in "vm"]
        origins = base_origins(views, lambda oids: _rows(cursor, RULES, relations=list(oids)))
        under = {table for shown in origins.values() for table, _ in shown.values()}
        wanted = [*{row.oid for row in relations} | under]
        columns, keys, indexes, foreign_keys, cascades, constraints = (
            _rows(cursor, statement, relations=wanted)
            for statement in (
                introspect_sql.COLUMNS,
                introspect_sql.KEYS,
                introspect_sql.INDEXES,
                introspect_sql.FOREIGN_KEYS,
                introspect_sql.CASCADES,
                introspect_sql.CONSTRAINTS,
            )
        )
    names: dict[int, dict[int, str]] = defaultdict(dict)
    served_oids = {row.oid for row in relations}
    columns = [row for row in columns if row.relation in served_oids]
    for row in columns:
        names[row.relation][row.number] = row.name
    homes = {row.oid: (row.schema, row.name) for row in relations}
    of_columns, of_keys, of_indexes, of_foreign_keys, of_cascades, of_constraints = map(
        _by_relation, (columns, keys, indexes, foreign_keys, cascades, constraints)
    )
    derived = derived_keys(foreign_keys, keys, origins, names, homes)
    of_views = shown_keys(keys, origins, names, homes)
    impure_reads, impure_writes = frozenset(impure.reads), frozenset(impure.writes)
    served = {
        homes[row.oid]: _relation(
            row,
            _columns(of_columns[row.oid], types),
            _unique_keys(of_keys[row.oid], names[row.oid]),
            unique_indexes=_unique_indexes(of_indexes[row.oid], names[row.oid]),
            foreign_keys=_foreign_keys(of_foreign_keys[row.oid], names, homes),
            view_foreign_keys=derived.get(homes[row.oid], ()),
            view_keys=of_views.get(homes[row.oid], ()),
            constraints=_constraints(of_constraints[row.oid], names[row.oid]),
            cascading_columns=frozenset(
                names[row.oid][each.number]
                for each in of_cascades[row.oid]
                if each.number in names[row.oid]
            ),
            pure_reads=row.oid not in impure_reads,
            pure_writes=row.oid not in impure_writes,
        )
        for row in relations
    }
    used = [*(row.type for row in columns), *types_of(routines)]
    known = types.served(schemas, used)
    return Catalog(
        version,
        tuple(schemas),
        served,
        known,
        functions(routines, known),
        types.hidden_fields(),
        {(row.name, row.left, row.right): row.schema for row in operators},
        {(row.name, row.type): row.schema for row in aggregates},
        policies,
    )


@contextmanager
def _snapshot(connection: connection) -> Iterator[NamedTupleCursor]:
    """
    Open a cursor for which every name is foreign, so that all come out qualified.

    `search_path` is set for the time of the reading only: by a transaction that is rolled
    back, or by a savepoint if the caller has a transaction open.
    """
    idle = connection.info.transaction_status == TRANSACTION_STATUS_IDLE
    # a connection of the pool may have its BEGIN still to send
    own = connection.autocommit and idle and not getattr(connection, "opening", None)
    begin, end = (
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "ROLLBACK")
        if own
        else ("SAVEPOINT introspect", "ROLLBACK TO introspect; RELEASE introspect")
    )
    with connection.cursor() as plain:  # of the connection's own kind, which sends the BEGIN
        plain.execute(f"{begin}; SET LOCAL search_path TO pg_catalog, pg_temp")
        try:
            with connection.cursor(cursor_factory=NamedTupleCursor) as cursor:
                yield cursor
        finally:
            if not connection.closed:
                plain.execute(end)


def _rows(cursor: NamedTupleCursor, statement: str, **parameters: Any) -> Rows:
    cursor.execute(statement, parameters)
    return cursor.fetchall()


def _by_relation(rows: Rows) -> Mapping[int, Rows]:
    found: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.relation].append(row)
    return found


def _relation(
    row: Any,
    columns: Mapping[str, Column],
    unique_keys: Sequence[tuple[bool, UniqueKey]],
    **tied: Any,
) -> Relation:
    return Relation(
        schema=row.schema,
        name=row.name,
        kind=RELATION_KINDS[row.kind],
        columns=columns,
        primary_key=next((key.columns for primary, key in unique_keys if primary), ()),
        unique_keys=tuple(key for _, key in unique_keys),
        comment=shown(row.comment),
        row_security=row.row_security,
        estimable=row.estimable,
        has_insert_triggers=row.filled,
        changed_by_triggers=frozenset(kind for bit, kind in AFTER.items() if row.after & bit),
        side_effects=row.stirs,
        auto_updatable=row.direct,
        has_rules=row.ruled,
        accepted_writes=frozenset(kind for bit, kind in WRITES.items() if row.events & bit),
        selectable=bool(row.selectable),
        insertable=bool(row.insertable),
        updatable=bool(row.updatable),
        deletable=bool(row.deletable),
        readable=bool(row.readable),
        **tied,
    )


def _columns(rows: Rows, types: TypeRows) -> dict[str, Column]:
    return {
        row.name: Column(
            name=row.name,
            type=row.type,
            declared=row.declared,
            nullable=not (row.required or types.required(row.type)),
            default=row.expression or (None if row.generated else types.default(row.type)),
            identity=row.identity,
            generated=row.generated,
            comment=shown(row.comment),
            max_length=types.max_length(row.type, row.modifier),
            selectable=bool(row.selectable),
            insertable=bool(row.insertable),
            updatable=bool(row.updatable),
        )
        for row in rows
    }


def _named(numbers: Sequence[int], names: Mapping[int, str]) -> tuple[str, ...] | None:
    """Return the names of columns, by number; None if one of them is not served."""
    found = tuple(names[number] for number in numbers if number in names)
    return found if len(found) == len(numbers) else None


def _unique_keys(rows: Rows, names: Mapping[int, str]) -> list[tuple[bool, UniqueKey]]:
    named = [(row, _named(row.columns, names)) for row in rows]
    return [
        (row.primary, UniqueKey(row.name, columns, row.arbiter, row.nulls))
        for row, columns in named
        if columns
    ]


def _unique_indexes(rows: Rows, names: Mapping[int, str]) -> tuple[UniqueIndex, ...]:
    """Return the indexes that use served columns alone, in their condition, too."""
    found = []
    for row in rows:
        plain = [number for number in row.columns if number]
        columns = _named(plain, names)
        used = _named(list(dict.fromkeys([*plain, *row.inner_columns])), names)
        if columns is None or used is None or _named(row.part_columns, names) is None:
            continue
        found.append(
            UniqueIndex(
                row.name,
                columns,
                used,
                CatalogSQL(row.target),
                partial=row.partial,
                nulls=row.nulls,
                only_ignores=row.skips,
                fault=row.fault,
            )
        )
    return tuple(found)


def _foreign_keys(
    rows: Rows, names: Names, homes: Mapping[int, tuple[str, str]]
) -> tuple[ForeignKey, ...]:
    found = []
    for row in rows:
        columns = _named(row.columns, names[row.relation])
        targets = _named(row.target_columns, names.get(row.target, {}))
        if row.target in homes and columns and targets:
            found.append(ForeignKey(row.name, columns, homes[row.target], targets))
    return tuple(found)


def _constraints(rows: Rows, names: Mapping[int, str]) -> dict[str, tuple[str, ...]]:
    """Return the constraints of served columns alone: a name is often made of the columns'."""
    named = [(row.name, _named(row.columns, names)) for row in rows]
    return {name: columns for name, columns in named if columns is not None}


class TypeRows:
    """
    All types of a database, as rows of `introspect_sql.TYPES`.

    Args:
        rows: With the names of that statement's columns as attributes.
        impure: The oids of types whose values may leave something behind in a session.
    """

    def __init__(self, rows: Iterable[Any], impure: frozenset[int]) -> None:
        self._rows = {row.oid: row for row in rows}
        self._impure = impure

    def served(self, schemas: Iterable[str], used: Iterable[int]) -> dict[int, Type]:
        """
        Return the types that may be met: PostgreSQL's, of served schemas, and used ones.

        Types that these are made of come with them, and the arrays of them all.
        """
        homes = {"pg_catalog", *schemas}
        found: set[int] = set()
        pending = [row.oid for row in self._rows.values() if self._at_home(row, homes)]
        pending.extend(used)
        while pending:
            oid = pending.pop()
            if oid not in found and oid in self._rows:
                found.add(oid)
                row = self._rows[oid]
                pending.extend([row.element, row.base, row.pattern, *row.field_types])
        found.update(row.oid for row in self._rows.values() if row.element in found)
        return {oid: self._type(oid) for oid in sorted(found)}

    def hidden_fields(self) -> dict[int, tuple[bool, ...]]:
        """Return the composite types with hidden fields; see `codec.HiddenFields`."""
        return {
            fields_hash(row.field_names): tuple(not hidden for hidden in row.field_hidden)
            for row in self._rows.values()
            if any(row.field_hidden)
        }

    def max_length(self, oid: int, modifier: int) -> int | None:
        """Return the limit in characters of a type with a modifier; domains may set it, too."""
        row = self._rows.get(oid)
        if row is not None and row.kind == "d":
            return self.max_length(row.base, row.modifier)
        limited = row is not None and data_type(row.schema, row.name).max_length
        return modifier - 4 if limited and modifier > 4 else None

    def required(self, oid: int) -> bool:
        """Return whether a type refuses NULL, as a domain can."""
        row = self._rows.get(oid)
        return row is not None and row.kind == "d" and (row.required or self.required(row.base))

    def default(self, oid: int) -> str | None:
        """Return the default of a domain, which a column has if it sets none."""
        row = self._rows.get(oid)
        if row is None or row.kind != "d":
            return None
        return row.expression or self.default(row.base)

    @staticmethod
    def _at_home(row: Any, homes: set[str]) -> bool:
        return row.schema in homes and not row.element and not row.hidden

    def _type(self, oid: int) -> Type:
        row = self._rows[oid]
        return Type(
            oid=oid,
            schema=row.schema,
            name=row.name,
            sql=row.sql,
            kind="array" if row.element else TYPE_KINDS[row.kind],
            category=row.category,
            element=row.element,
            base=row.base or 0,
            labels=tuple(row.labels),
            fields=tuple(
                ("" if hidden else name, of)
                for name, hidden, of in zip(
                    row.field_names, row.field_hidden, row.field_types, strict=True
                )
            ),
            unreadable_fields=frozenset(
                name
                for name, allowed in zip(row.field_names, row.field_allowed, strict=True)
                if not allowed
            ),
            delimiter=row.delimiter,
            comparable=self._comparable(oid, frozenset()),
            pattern=row.pattern,
            row=row.row,
            pure=oid not in self._impure,
        )

    def _comparable(self, oid: int, above: frozenset[int]) -> bool:
        row = self._rows.get(oid)
        if row is None or oid in above:
            return row is not None
        above |= {oid}
        if row.element or row.kind == "d":
            return self._comparable(row.element or row.base, above)
        if row.kind == "c":
            return all(self._comparable(each, above) for each in row.field_types)
        return row.kind in "erm" or row.ordered


def shown(comment: str | None) -> str | None:
    """Return a comment less the lines that speak to the service."""
    lines = (comment or "").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("@")).strip() or None


def types_of(rows: Iterable[Any]) -> set[int]:
    """Return the oids of all types that functions use."""
    return {oid for row in rows for oid in (row.result, *row.types)}


def functions(
    rows: Iterable[Any], types: Mapping[int, Type]
) -> dict[tuple[str, str], tuple[Function, ...]]:
    """Build functions from rows of `introspect_sql.FUNCTIONS`, by schema and name, less those of hidden rows."""
    found: dict[tuple[str, str], tuple[Function, ...]] = {}
    for row in rows:
        if any(_is_hidden(types, oid) for oid in (row.result, *row.types)):
            continue
        home = (row.schema, row.name)
        found[home] = (*found.get(home, ()), _function(row))
    return found


def _is_hidden(types: Mapping[int, Type], oid: int) -> bool:
    """Return whether a type is made of the row of a relation of which nothing is served."""
    type = types.get(oid)
    while type is not None and (type.element or type.base):
        type = types.get(type.element or type.base)
    if type is None or type.kind != "composite" or not type.fields:
        return False
    return not any(name for name, _ in type.fields)


def _function(row: Any) -> Function:
    return Function(
        schema=row.schema,
        name=row.name,
        arguments=_arguments(row),
        result=row.result,
        many=row.many,
        single=row.single,
        volatility=VOLATILITIES[row.volatility],
        procedure=row.procedure,
        definer=row.definer,
        comment=shown(row.comment),
    )


def _arguments(row: Any) -> tuple[Argument, ...]:
    modes = row.modes or ["i"] * len(row.types)
    names = row.names or [""] * len(row.types)
    found: list[Argument] = []
    given = 0
    for name, oid, mode in zip(names, row.types, modes, strict=True):
        given += mode in "ibv"
        default = mode in "ibv" and given > row.inputs - row.defaults
        found.append(Argument(name, oid, MODES[mode], default))
    return tuple(found)
