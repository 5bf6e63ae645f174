"""
The database's own catalog → `Catalog`.

A handful of statements, whatever the number of relations, in one snapshot. Hidden relations and
columns are left out here, so that nothing after this can reach them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection
from psycopg2.extras import NamedTupleCursor

from service.catalog import (
    Catalog,
    Column,
    ForeignKey,
    Relation,
    RelationKind,
    Spelled,
    UniqueIndex,
    UniqueKey,
    WriteKind,
)
from service.db import introspect_sql
from service.db.introspect_functions import FUNCTIONS, functions, types_of
from service.db.introspect_pure import IMPURE
from service.db.introspect_types import TypeRows, shown
from service.db.introspect_views import RULES, base_origins, derived_keys, shown_keys

KINDS: Mapping[str, RelationKind] = {
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
        routines = _rows(cursor, FUNCTIONS, schemas=list(schemas))
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
    links = derived_keys(foreign_keys, keys, origins, names, homes)
    of_views = shown_keys(keys, origins, names, homes)
    impure_reads, impure_writes = frozenset(impure.reads), frozenset(impure.writes)
    served = {
        homes[row.oid]: _relation(
            row,
            _columns(of_columns[row.oid], types),
            _unique_keys(of_keys[row.oid], names[row.oid]),
            unique_indexes=_unique_indexes(of_indexes[row.oid], names[row.oid]),
            foreign_keys=_foreign_keys(of_foreign_keys[row.oid], names, homes),
            links=links.get(homes[row.oid], ()),
            shown_keys=of_views.get(homes[row.oid], ()),
            constraints=_constraints(of_constraints[row.oid], names[row.oid]),
            cascading=frozenset(
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
        types.seals(),
        {(row.name, row.left, row.right): row.schema for row in operators},
        {(row.name, row.type): row.schema for row in aggregates},
        policies,
    )


def revision_txn(connection: connection) -> tuple[str, ...] | None:
    """Give the heads that Alembic has noted, in order; None if it never ran here."""
    with connection.cursor() as cursor:
        cursor.execute(introspect_sql.REVISION)
        (table,) = cursor.fetchone() or (None,)
        if table is None:
            return None
        cursor.execute(f"SELECT version_num FROM ONLY {table} ORDER BY version_num")
        return tuple(head for (head,) in cursor)


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
        kind=KINDS[row.kind],
        columns=columns,
        primary_key=next((key.columns for primary, key in unique_keys if primary), ()),
        unique_keys=tuple(key for _, key in unique_keys),
        comment=shown(row.comment),
        row_security=row.row_security,
        estimable=row.estimable,
        filled=row.filled,
        after=frozenset(kind for bit, kind in AFTER.items() if row.after & bit),
        stirs=row.stirs,
        direct=row.direct,
        ruled=row.ruled,
        takes=frozenset(kind for bit, kind in WRITES.items() if row.events & bit),
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
    """Name columns by number; None if one of them is not served."""
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
    """Keep those that speak of served columns alone, in their condition too."""
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
                Spelled(row.target),
                partial=row.partial,
                nulls=row.nulls,
                skips=row.skips,
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
    """Keep those that speak of served columns alone: a name is often made of the columns'."""
    named = [(row.name, _named(row.columns, names)) for row in rows]
    return {name: columns for name, columns in named if columns is not None}
