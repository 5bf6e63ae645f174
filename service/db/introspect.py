"""
PostgreSQL's system catalogs: read into a `Catalog`, and compared with their state at the last read.

They are read by a fixed number of statements in one snapshot. Hidden relations and columns are left out
here, so that no later step can reach them.

Whether they have changed since is found out at a fraction of the cost of reading them. Each change leaves a
row with a new `xmin`, or one row less, so the number of rows and the sum of the hashes of every `xmin` show
it. The highest `xmin` would not: transactions do not end in the order in which they began. While the snapshot
is equal to the last one, nothing has changed at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection
from psycopg2.extras import NamedTupleCursor
from psycopg2.sql import SQL, Identifier

from schema.database_url import reason
from service.catalog import (
    Argument,
    Catalog,
    CatalogSQL,
    Column,
    ForeignKey,
    Function,
    Mode,
    QualifiedName,
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
from service.db.connection import PgConnection
from service.db.introspect_views import (
    RULES,
    base_origins,
    claimed_key,
    derived_keys,
    shown_keys,
    shown_row_keys,
    views_by_table,
)

RELATION_KINDS: Mapping[str, RelationKind] = {
    "r": "table",
    "p": "table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}

WRITES: Mapping[int, WriteKind] = {8: "insert", 4: "update", 16: "delete"}
"""Bits of `pg_relation_is_updatable`."""

TRIGGERS: Mapping[int, WriteKind] = {4: "insert", 16: "update"}
"""Bits of `tgtype`; DELETE is not needed, because a deleted row is returned as it was."""

Rows = Sequence[Any]
"""Named tuples, with the columns of the statement as attributes."""

Names = Mapping[int, Mapping[int, str]]
"""Names of served columns, by relation oid and column number."""

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
    Read the catalog of a database.

    Args:
        dsn: DSN of the database.
        schemas: Served schemas.
        role: Role whose privileges count, if not that of the login.

    Raises:
        ConnectionError: The database cannot be reached, or the role not be set; in one sentence.
    """
    try:
        connection = psycopg2.connect(dsn)
    except psycopg2.OperationalError as error:
        raise ConnectionError(reason(error)) from error
    try:
        # Otherwise psycopg2 would begin the transaction, at READ COMMITTED, before `_snapshot` does.
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
    Read the contents of schemas, and the privileges of the connection's role on them.

    This runs in the open transaction, else in one of its own.

    Args:
        connection: A connection to PostgreSQL 13 or later.
        schemas: Served schemas; the first one has no prefix in URIs.
        version: Version number of the catalog.
    """
    with _snapshot(connection) as cursor:
        relations = _rows(cursor, introspect_sql.RELATIONS, schemas=list(schemas))
        (impure,) = _rows(cursor, introspect_sql.IMPURE)
        types = TypeRows(_rows(cursor, introspect_sql.TYPES), frozenset(impure.types))
        routines = _rows(cursor, introspect_sql.FUNCTIONS, schemas=list(schemas))
        operators = _rows(cursor, introspect_sql.OPERATORS)
        aggregates = _rows(cursor, introspect_sql.AGGREGATES)
        (policies,) = _rows(cursor, introspect_sql.POLICIES)[0]
        # Tables under views are read too, even if they are not served: views show their keys.
        views = [row.oid for row in relations if row.kind in "vm"]
        origins = base_origins(views, lambda oids: _rows(cursor, RULES, relations=list(oids)))
        under = {table for shown in origins.values() for table, _ in shown.values()}
        wanted = [*{row.oid for row in relations} | under]
        columns, keys, indexes, foreign_keys, cascades, constraints, partitions, copies = (
            _rows(cursor, statement, relations=wanted)
            for statement in (
                introspect_sql.COLUMNS,
                introspect_sql.KEYS,
                introspect_sql.INDEXES,
                introspect_sql.FOREIGN_KEYS,
                introspect_sql.CASCADES,
                introspect_sql.CONSTRAINTS,
                introspect_sql.PARTITIONS,
                introspect_sql.COPIES,
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
    single = [row for row in keys if not row.repeated]
    showing = views_by_table(origins, names, homes)
    derived = derived_keys(foreign_keys, single, showing, names, homes)
    of_views = shown_keys(single, showing)
    of_view_rows = shown_row_keys(single, showing, origins, homes)
    impure_reads, impure_writes = frozenset(impure.reads), frozenset(impure.writes)
    served = {
        homes[row.oid]: _relation(
            row,
            [
                *_view_keys(row, names[row.oid], of_view_rows, of_views),
                *_unique_keys(of_keys[row.oid], names[row.oid]),
            ],
            columns=_columns(of_columns[row.oid], types),
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
    # Only types that may be used: there are thousands, most of them row types of tables.
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
        {
            (row.schema, row.name): homes[row.relation]
            for row in partitions
            if row.relation in homes
        },
        {(row.schema, row.table, row.name): row.declared for row in copies},
        policies,
        connection.server_version >= 170000,
    )


@contextmanager
def _snapshot(connection: connection) -> Iterator[NamedTupleCursor]:
    """
    Open a cursor with a `search_path` under which PostgreSQL returns qualified names.

    The `search_path` is reset afterwards, by the rollback of a transaction, or of a savepoint if the caller
    has a transaction open.
    """
    idle = connection.info.transaction_status == TRANSACTION_STATUS_IDLE
    # A connection of the pool may have a BEGIN that has not been sent yet.
    own = connection.autocommit and idle and not getattr(connection, "opening", None)
    begin, end = (
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "ROLLBACK")
        if own
        else ("SAVEPOINT introspect", "ROLLBACK TO introspect; RELEASE introspect")
    )
    # A cursor of the connection's own class, which sends a noted BEGIN.
    with connection.cursor() as plain:
        plain.execute(f"{begin}; {introspect_sql.READS_CATALOG}")
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


def _relation(row: Any, unique_keys: Sequence[tuple[bool, UniqueKey]], **others: Any) -> Relation:
    return Relation(
        kind=RELATION_KINDS[row.kind],
        primary_key=next((key.columns for primary, key in unique_keys if primary), ()),
        unique_keys=tuple(key for _, key in unique_keys),
        comment=visible_comment(row.comment),
        claimed_key=claimed_key(row.comment) if row.kind in "vmf" else (),
        before_triggers=frozenset(kind for bit, kind in TRIGGERS.items() if row.before & bit),
        changed_by_triggers=frozenset(kind for bit, kind in TRIGGERS.items() if row.after & bit),
        accepted_writes=frozenset(kind for bit, kind in WRITES.items() if row.events & bit),
        auto_updatable=row.direct,
        **_values(row, "schema name row_security estimable side_effects has_rules has_children"),
        **_values(row, "selectable insertable updatable deletable readable"),
        **others,
    )


def _values(row: Any, names: str) -> dict[str, Any]:
    """Return the columns of a row whose fields in the catalog have the same names."""
    return {name: getattr(row, name) for name in names.split()}


def _columns(rows: Rows, types: TypeRows) -> dict[str, Column]:
    return {
        row.name: Column(
            nullable=not (row.required or types.required(row.type)),
            default=row.expression or (None if row.generated else types.default(row.type)),
            comment=visible_comment(row.comment),
            max_length=types.max_length(row.type, row.modifier),
            **_values(row, "name type declared identity generated"),
            **_values(row, "selectable insertable updatable loose"),
        )
        for row in rows
    }


def _named(numbers: Sequence[int], names: Mapping[int, str]) -> tuple[str, ...] | None:
    """Return the names of columns, given by number; None if one of them is not served."""
    found = tuple(names[number] for number in numbers if number in names)
    return found if len(found) == len(numbers) else None


def _unique_keys(rows: Rows, names: Mapping[int, str]) -> list[tuple[bool, UniqueKey]]:
    named = [(row, _named(row.columns, names)) for row in rows]
    return [
        (row.primary, UniqueKey(row.name, columns, row.arbiter, row.nulls))
        for row, columns in named
        if columns
    ]


def _view_keys(
    row: Any,
    names: Mapping[int, str],
    own: Mapping[QualifiedName, Sequence[tuple[bool, UniqueKey]]],
    shown: Mapping[QualifiedName, Sequence[tuple[str, ...]]],
) -> list[tuple[bool, UniqueKey]]:
    """
    Return the keys of a view: the primary key that its comment declares, if any, and those of its table.

    Only an automatically updatable view has keys of its table, each of whose rows it shows at most once
    (rewriteHandler.c, view_query_is_auto_updatable).
    """
    if row.kind not in "vmf":
        return []
    home = (row.schema, row.name)
    simple, claimed = row.kind == "v" and row.direct, claimed_key(row.comment)
    found = own.get(home, ()) if simple else ()
    if claimed:
        if not {*claimed} <= {*names.values()}:
            return []
        # PostgreSQL enforces a declared key only if it is a key of the table as well.
        keys = (frozenset(key) for key in shown.get(home, ()))
        known = simple and frozenset(claimed) in keys
        others = [each for _, each in found if {*each.columns} != {*claimed}]
        required = any(each.required for _, each in found if {*each.columns} == {*claimed})
        key = UniqueKey(f"{row.name}_key", claimed, known, required=required)
        return [(True, key), *((False, each) for each in others)]
    return list(found)


def _unique_indexes(rows: Rows, names: Mapping[int, str]) -> tuple[UniqueIndex, ...]:
    """Return the indexes all of whose columns are served, those in expressions and predicates too."""
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
    """Return the constraints all of whose columns are served: a name often contains theirs."""
    named = [(row.name, _named(row.columns, names)) for row in rows]
    return {name: columns for name, columns in named if columns is not None}


class TypeRows:
    """
    All types of a database.

    Args:
        rows: Rows of `introspect_sql.TYPES`.
        impure: Oids of types whose functions may leave state in a session.
    """

    def __init__(self, rows: Iterable[Any], impure: frozenset[int]) -> None:
        self._rows = {row.oid: row for row in rows}
        self._impure = impure

    def served(self, schemas: Iterable[str], used: Iterable[int]) -> dict[int, Type]:
        """
        Return the types that may be used: those of pg_catalog and of served schemas, and `used` ones.

        The types of their elements, bases and fields are included, and the arrays of all of these.
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
                pending.extend([row.element, row.base, row.pattern, *(row.types or ())])
        found.update(row.oid for row in self._rows.values() if row.element in found)
        return {oid: self._type(oid) for oid in sorted(found)}

    def hidden_fields(self) -> dict[int, tuple[bool, ...]]:
        """Return which fields are served of types with hidden fields, by `codec.fields_hash`."""
        return {
            fields_hash(row.names): tuple(not hidden for hidden in row.hiding)
            for row in self._rows.values()
            if any(row.hiding or ())
        }

    def max_length(self, oid: int, modifier: int) -> int | None:
        """Return the maximum length, in characters, of a type with a modifier, or of a domain over one."""
        for row in self._under(oid):
            if row.kind == "d":
                modifier = row.modifier
            elif modifier > 4 and data_type(row.schema, row.name).max_length:
                # The modifier counts the 4 bytes of a length (VARHDRSZ) with the characters.
                return modifier - 4
        return None

    def required(self, oid: int) -> bool:
        """Return whether a type is a NOT NULL domain, or based on one."""
        return any(row.kind == "d" and row.required for row in self._under(oid))

    def default(self, oid: int) -> str | None:
        """Return the default of a domain, which columns without a default of their own have."""
        domains = (row for row in self._under(oid) if row.kind == "d")
        return next((row.expression for row in domains if row.expression), None)

    def _under(self, oid: int) -> Iterator[Any]:
        row = self._rows.get(oid)  # row types of the system catalogs are not in it
        while row is not None:
            yield row
            row = self._rows.get(row.base) if row.kind == "d" else None

    @staticmethod
    def _at_home(row: Any, homes: set[str]) -> bool:
        return row.schema in homes and not row.element and not row.hidden

    def _type(self, oid: int) -> Type:
        row = self._rows[oid]
        names = row.names or ()
        return Type(
            kind="array" if row.element else TYPE_KINDS[row.kind],
            base=row.base or 0,
            labels=tuple(row.labels),
            fields=tuple(
                ("" if hidden else name, of)
                for name, hidden, of in zip(names, row.hiding or (), row.types or (), strict=True)
            ),
            unreadable_fields=frozenset(
                name for name, allowed in zip(names, row.allowed or (), strict=True) if not allowed
            ),
            comparable=self._comparable(oid, frozenset()),
            pure=oid not in self._impure,
            **_values(row, "oid schema name sql category element delimiter pattern row"),
        )

    def _comparable(self, oid: int, above: frozenset[int]) -> bool:
        row = self._rows.get(oid)
        if row is None or oid in above:
            return row is not None
        above |= {oid}
        if row.element or row.kind == "d":
            return self._comparable(row.element or row.base, above)
        if row.kind == "c":
            return all(self._comparable(each, above) for each in row.types or ())
        return row.kind in "erm" or row.ordered


def visible_comment(comment: str | None) -> str | None:
    """Return a comment without its directives, the lines that begin with @."""
    lines = (comment or "").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("@")).strip() or None


def types_of(rows: Iterable[Any]) -> set[int]:
    """Return the oids of the types of functions' arguments and results."""
    return {oid for row in rows for oid in (row.result, *row.types)}


def functions(
    rows: Iterable[Any], types: Mapping[int, Type]
) -> dict[tuple[str, str], tuple[Function, ...]]:
    """
    Build functions from rows of `introspect_sql.FUNCTIONS`, by schema and name.

    Functions that take or return rows of a hidden relation are left out.
    """
    found: dict[tuple[str, str], tuple[Function, ...]] = {}
    for row in rows:
        if any(_is_hidden(types, oid) for oid in (row.result, *row.types)):
            continue
        home = (row.schema, row.name)
        found[home] = (*found.get(home, ()), _function(row))
    return found


def _is_hidden(types: Mapping[int, Type], oid: int) -> bool:
    """Return whether a type is, or is based on, the row type of a relation without served columns."""
    type = types.get(oid)
    while type is not None and (type.element or type.base):
        type = types.get(type.element or type.base)
    if type is None or type.kind != "composite" or not type.fields:
        return False
    return not any(name for name, _ in type.fields)


def _function(row: Any) -> Function:
    return Function(
        arguments=_arguments(row),
        volatility=VOLATILITIES[row.volatility],
        comment=visible_comment(row.comment),
        **_values(row, "schema name result many single procedure definer"),
    )


def _arguments(row: Any) -> tuple[Argument, ...]:
    modes = row.modes or ["i"] * len(row.types)
    names = row.names or [""] * len(row.types)
    found: list[Argument] = []
    given = 0
    for name, oid, mode in zip(names, row.types, modes, strict=True):
        given += mode in "ibv"
        # PostgreSQL stores only the number of defaults, which are those of the last arguments.
        default = mode in "ibv" and given > row.inputs - row.defaults
        found.append(Argument(name, oid, MODES[mode], default))
    return tuple(found)


_FIRST = 16384
"""The lowest oid that is not PostgreSQL's own (FirstNormalObjectId)."""

_TEMPORARY = "(SELECT oid FROM pg_catalog.pg_class WHERE relpersistence = 't')"
_OF_SESSIONS = "nspname ~ '^pg_(toast_)?temp_'"
_THEIR_SCHEMAS = f"(SELECT oid FROM pg_catalog.pg_namespace WHERE {_OF_SESSIONS})"

WATCHED: Mapping[str, str] = {
    "pg_aggregate": f"aggfnoid >= {_FIRST}",
    "pg_amproc": f"oid >= {_FIRST}",
    "pg_attrdef": f"adrelid NOT IN {_TEMPORARY}",
    "pg_attribute": f"attrelid >= {_FIRST} AND attnum > 0 AND attrelid NOT IN {_TEMPORARY}",
    "pg_auth_members": "true",
    "pg_cast": f"oid >= {_FIRST}",
    "pg_collation": f"oid >= {_FIRST}",
    "pg_constraint": f"conrelid NOT IN {_TEMPORARY}",
    "pg_db_role_setting": "true",
    "pg_depend": f"classid = 'pg_catalog.pg_proc'::regclass AND objid >= {_FIRST}"
    " AND deptype = 'e'",
    "pg_description": f"objoid >= {_FIRST}",
    "pg_enum": "true",
    "pg_extension": "true",
    "pg_index": f"indexrelid >= {_FIRST} AND indrelid NOT IN {_TEMPORARY}",
    "pg_inherits": f"inhrelid NOT IN {_TEMPORARY}",
    "pg_language": "true",
    "pg_namespace": f"NOT {_OF_SESSIONS}",
    "pg_opclass": f"oid >= {_FIRST}",
    "pg_operator": f"oid >= {_FIRST}",
    "pg_partitioned_table": "true",
    "pg_policy": "true",
    "pg_proc": f"oid >= {_FIRST} AND pronamespace NOT IN {_THEIR_SCHEMAS}",
    "pg_range": f"rngtypid >= {_FIRST}",
    "pg_rewrite": f"oid >= {_FIRST} AND ev_class NOT IN {_TEMPORARY}",
    "pg_statistic_ext": f"stxrelid NOT IN {_TEMPORARY}",
    "pg_trigger": f"tgrelid NOT IN {_TEMPORARY}",
    "pg_type": f"oid >= {_FIRST} AND typnamespace NOT IN {_THEIR_SCHEMAS}",
}
"""The catalogs that describe what is served, and which of their rows; temporary objects are left out."""

_READ: Mapping[str, str] = {
    # TRUNCATE, REFRESH and REINDEX also write to pg_class, but do not change these columns.
    "pg_class": "SELECT oid, relname, relnamespace, reltype, relkind, relowner, relrowsecurity,"
    " relispartition, relacl, reloptions FROM pg_catalog.pg_class"
    f" WHERE oid >= {_FIRST} AND relpersistence <> 't' AND relkind NOT IN ('t', 'S')",
    "pg_roles": "SELECT oid, rolname, rolsuper, rolinherit, rolbypassrls FROM pg_catalog.pg_roles",
}
"""The catalogs that are compared by columns, because their rows also get a new `xmin` for other reasons."""


def _sum(of: str, source: str) -> str:
    return f"(SELECT count(*) || '.' || coalesce(sum(hashtext({of})), 0) FROM {source})"


_PARTS = ", ".join(
    [
        *(
            _sum("xmin::text", f"pg_catalog.{part} WHERE {which}")
            for part, which in WATCHED.items()
        ),
        *(_sum("r::text", f"({rows}) r") for rows in _READ.values()),
    ]
)

FINGERPRINT = f"""
{introspect_sql.READS_CATALOG}
SELECT pg_current_snapshot()::text, concat_ws(' ', {_PARTS})
"""

SNAPSHOT = "SELECT pg_catalog.pg_current_snapshot(), pg_catalog.pg_is_in_recovery()"
"""A statement of its own, because PostgreSQL takes 3 ms to plan that of the fingerprint, used or not."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """
    The fingerprint of the catalog in a snapshot.

    Args:
        snapshot: The snapshot, as `pg_current_snapshot` gives it.
        value: Equal to that of another fingerprint if the catalog is the same.
    """

    snapshot: str
    value: str


def fingerprint_txn(connection: PgConnection, last: Fingerprint | None) -> Fingerprint:
    """Return the current fingerprint of the catalog: the last one if the snapshot is the same."""
    with connection.cursor() as cursor:
        if last is not None:
            cursor.execute(SNAPSHOT, clean=True)
            # A standby's snapshot does not list running transactions: an equal one proves nothing.
            if cursor.fetchall() == [(last.snapshot, False)]:
                return last
        cursor.execute(FINGERPRINT, clean=True)
        ((snapshot, value),) = cursor.fetchall()
    return Fingerprint(snapshot, value)
