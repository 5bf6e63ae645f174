"""
Which rows of a live query the changes of a cycle can have touched.

A changed row of the root relation names its key, in its old and its new image. A changed row of a related
relation has the values of the columns that join it, in both images; the rows that have these values are
looked up, one link at a time, in the snapshot in which the changes were read. That is complete: if a row in
between has changed too, its own images lead to the rows that it was related to before. (With rows read from a
later snapshot, or with the new images alone, it is not; the tests run both variants, and they must fail.)

Groups by columns of related rows are found in two steps: first the values of the columns that join the rows of
the root relation to these, then the groups, by the joins in the other direction (`groups_txn`). There, too,
both images of a changed row count, so that the group that a row was in before is found.

If a query reads a relation in any other way (in a policy, in a function, a second time), a change of that
relation touches all of its rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import Any, NamedTuple

from service.catalog import Catalog
from service.changes.dependencies import Dependencies, Scan
from service.changes.images import ReadImage, UnconvertibleValue, key_reader
from service.changes.log import LogRow, Op, TrackedTable
from service.changes.net import parse_image
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.literals import write_array
from service.db.transaction import Actor, apart_txn
from service.plan.watch_plan import (
    ROOT,
    GroupColumn,
    KeyedRead,
    OutwardJoin,
    WatchPlan,
    joins_columns,
    keyed_read,
)
from service.sql.select import outer_rows
from service.sql.statement import Statement

Image = Mapping[str, Any]
Key = tuple[Any, ...]
"""The values of a key in their wire form; of related rows, as their JSON images have them."""

MOST_KEYS = 10_000
"""Maximum number of keys of one query in one cycle; with more, all of its rows are read again."""


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row of the log with its images parsed; numbers with a decimal point are `Decimal`."""

    relation: int
    op: Op
    old: Image | None
    new: Image | None

    @property
    def images(self) -> Sequence[Image]:
        """The images that there are: old, new or both."""
        return [image for image in (self.old, self.new) if image is not None]


def row_change(row: LogRow) -> RowChange:
    """Parse the images of a log row."""
    old, new = (None if text is None else parse_image(text) for text in (row.old, row.new))
    return RowChange(row.relation, row.op, old, new)


class JoinLookup(NamedTuple):
    """
    A join from outer rows to the rows related to them.

    Args:
        relation: Number of the related relation in the log; None if it is not logged in full.
        columns: Columns of the related relation: those of the join, then those that are looked up.
        width: Number of columns of the join.
        hides: Whether policies may hide related rows.
        statement: Statement that reads `columns` of the related rows.
    """

    relation: int | None
    columns: tuple[str, ...]
    width: int
    hides: bool
    statement: Statement


class GroupLookup(NamedTuple):
    """
    How the values of a group column are found.

    Args:
        places: Places of the columns in `KeyedRead.key` from which it is found.
        joins: The joins from these columns to the related row that has it; none if it is such a column.
    """

    places: tuple[int, ...]
    joins: tuple[JoinLookup, ...]


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """
    How the changes of a cycle lead to keys of a query's rows.

    Args:
        rows: The query's root relation and its links to other relations.
        root: Number of the root relation in the log; None if it is not logged in full.
        keyed: For each logged relation that is read by links, by number, its aliases in the query.
        all_rows: Numbers of relations of which a change touches all rows.
        lookups: Each join with the statement that looks up its outer rows; None in place of the statement
            if the changed row itself has the values that are needed of them.
        readers: Functions that convert key values from JSON to their wire form; empty if none needs to.
        groups: For each column of the groups, how it is found from the values of `rows.key`; empty if
            these are the columns of the groups.
    """

    rows: KeyedRead
    root: int | None
    keyed: Mapping[int, Sequence[str]]
    all_rows: frozenset[int]
    lookups: Sequence[tuple[OutwardJoin, Statement | None]]
    readers: Sequence[ReadImage | None] = ()
    groups: Sequence[GroupLookup] = ()

    @property
    def related(self) -> frozenset[int]:
        """Numbers of the relations whose changed rows lead to rows of the root relation."""
        return frozenset(each for each, sources in self.keyed.items() if {*sources} - {ROOT})


@dataclass(frozen=True, slots=True)
class Touched:
    """
    Keys of a query's rows that may have changed.

    Args:
        rows: Keys of rows that may have entered, left or changed.
        related: Keys of rows that may have changed, but can neither have entered nor left.
    """

    rows: frozenset[Key]
    related: frozenset[Key]


def key_plan(
    catalog: Catalog, plan: WatchPlan, dependencies: Dependencies, tracked: Iterable[TrackedTable]
) -> KeyPlan | None:
    """
    Return how changes lead to keys of a query's rows; None if they do not.

    Args:
        catalog: Catalog that the query was planned with.
        plan: Plan of the query.
        dependencies: What the query reads. If not all of it is known, changes lead to no keys.
        tracked: Tables whose changes are logged.
    """
    rows = keyed_read(catalog, plan.read)
    if rows is None or plan.form.kind == "row" or dependencies.opaque:
        return None
    tracked = list(tracked)
    logged = {(each.schema, each.name): each for each in tracked if each.level == "full"}
    read = {ROOT: rows.relation, **{join.source: join.relation for join in rows.joins}}
    aliases: dict[str, TrackedTable] = {}
    keyed: dict[int, list[str]] = {}
    for source, relation in read.items():
        found = logged.get((relation.schema, relation.name))
        if found is not None:
            aliases[source] = found
            keyed.setdefault(found.id, []).append(source)
    others = [scan for scan in dependencies.scans if not _is_by_link(scan, aliases)]
    all_rows = Dependencies(frozenset(others)).tracked(tracked)
    lookups = _lookups(catalog, rows)
    if lookups is None:
        return None
    root = aliases[ROOT].id if ROOT in aliases else None
    columns = [each.column for each in rows.groups]
    columns = columns or [rows.relation.columns[name] for name in rows.key]
    # Images write some types differently than the wire does, such as numeric as a JSON number.
    readers = [key_reader(catalog, catalog.type(column.type)) for column in columns]
    groups = [_group_lookup(catalog, rows, each, logged) for each in rows.groups]
    known = readers if any(readers) else ()
    return KeyPlan(rows, root, keyed, all_rows, lookups, known, groups)


def own_keys(plan: KeyPlan, change: RowChange) -> set[Key] | None:
    """Return the keys of a changed row of the root relation, from both images; None for all rows."""
    values = _values(change, plan.rows.key)
    return None if values is None else _root_keys(plan, values)


def related_txn(
    connection: PgConnection,
    actor: Actor,
    codec: Codec,
    plan: KeyPlan,
    changes: Iterable[RowChange],
    most: int = MOST_KEYS,
) -> Touched | None:
    """
    Return the rows to which changed rows are or were related; None for all rows.

    Args:
        connection: In the snapshot in which the changes were read.
        actor: Identity of the lookup: the caller's, or one that sees all rows that the caller sees.
        codec: Codec of parameters.
        plan: Key plan of the query.
        changes: All changes of the cycle.
        most: Maximum number of keys.
    """
    joined = _joined_values(plan, changes)
    if joined is None:
        return None
    found: dict[bool, set[Key]] = {True: set(), False: set()}
    # The most distant join is first, so `joined` is complete for each join when its turn comes.
    for join, lookup in plan.lookups:
        # A null value joins no row.
        values = {each for each in joined.pop(join.source, ()) if None not in each}
        if not values:
            continue
        columns = _columns(plan.rows, join.outer_source)
        if len(values) > most:
            return None
        if lookup is None:
            outer_keys = _outer_keys(join, columns, values)
        else:
            outer_keys = apart_txn(connection, actor, _outer_rows_txn, codec, lookup, values, most)
        if len(outer_keys) > most:
            return None
        if join.outer_source == ROOT:
            keys = _root_keys(plan, outer_keys)
            if keys is None:
                return None
            found[join.decides] |= keys
        else:
            joined.setdefault(join.outer_source, set()).update(outer_keys)
    return Touched(frozenset(found[True]), frozenset(found[False] - found[True]))


def groups_txn(
    connection: PgConnection,
    actor: Actor,
    codec: Codec,
    plan: KeyPlan,
    changes: Sequence[RowChange],
    starts: Collection[Key],
    most: int = MOST_KEYS,
) -> dict[Key, set[Key]] | None:
    """
    Return the keys of the groups that rows are or were in, by the rows' values of `plan.rows.key`.

    The values of related rows come from the snapshot, and from both images of related rows that have changed.
    So among the groups of rows of which a related row has changed are those before the change.

    Args:
        connection: In the snapshot in which the changes were read.
        actor: Identity of the lookup, as of `related_txn`.
        codec: Codec of parameters.
        plan: Key plan of a query with `groups`.
        changes: All changes of the cycle.
        starts: The values.
        most: Maximum number of values.

    Returns:
        The keys; None for all groups.
    """
    columns: list[dict[Key, set[Any]]] = []
    for places, joins in plan.groups:
        found = {start: {tuple([start[place] for place in places])} for start in starts}
        for join in joins:
            wanted = set().union(*found.values())
            if len(wanted) > most:
                return None
            rows = _joined_rows_txn(connection, actor, codec, join, changes, wanted, most)
            if rows is None:
                return None
            found = {
                start: set().union(*(rows[value] for value in values))
                for start, values in found.items()
            }
        columns.append({start: {value for (value,) in values} for start, values in found.items()})
    groups: dict[Key, set[Key]] = {}
    for start in starts:
        keys = _keys(plan, list(product(*(values[start] for values in columns))))
        if keys is None:
            return None
        groups[start] = keys
    return groups


def _joined_rows_txn(
    connection: PgConnection,
    actor: Actor,
    codec: Codec,
    join: JoinLookup,
    changes: Iterable[RowChange],
    wanted: Collection[Key],
    most: int,
) -> dict[Key, set[Key]] | None:
    """Return what a join finds for values: columns of related rows, or nulls where there is no such row."""
    width = join.width
    none = (None,) * (len(join.columns) - width)
    rows: dict[Key, set[Key]] = {each: set() for each in wanted}
    values = {each for each in wanted if None not in each}  # a null value joins no row
    if values:
        lookup = apart_txn(connection, actor, _outer_rows_txn, codec, join.statement, values, most)
        if len(lookup) > most:
            return None
        for row in lookup:
            if row[:width] in rows:
                rows[row[:width]].add(row[width:])
    known = _images(join, changes)
    if known is None:
        return None
    images, gone = known
    for row in images:
        if row[:width] in values:
            rows[row[:width]].add(row[width:])
    for value, found in rows.items():
        # A row that the caller may not see puts the outer row into the group of nulls, as no row does.
        if not found or join.hides or value in gone:
            found.add(none)
    return rows


def _images(join: JoinLookup, changes: Iterable[RowChange]) -> tuple[list[Key], set[Key]] | None:
    """
    Return the columns of a join's related rows in the images of changes; None if they are not known.

    The second result has the values of the join that no row had before a change, or after it.
    """
    found: list[Key] = []
    gone: set[Key] = set()
    for change in changes:
        if change.relation == join.relation and change.op in ("I", "U", "D"):
            images = _values(change, join.columns)
            if images is None:
                return None
            found += images
            ends = {row[: join.width] for row in images}
            if len(images) < 2 or len(ends) > 1:
                gone |= ends
    return found, gone


def sees_all_txn(connection: PgConnection, plan: KeyPlan, tracked: Iterable[TrackedTable]) -> bool:
    """Return whether the session's role may read all rows on the links, and so look them up for anybody."""
    oids = {(each.schema, each.name): each.oid for each in tracked}
    looked_up = {
        (join.outer.schema, join.outer.name) for join, lookup in plan.lookups if lookup is not None
    }
    looked_up |= {
        (join.outer.schema, join.outer.name) for group in plan.rows.groups for join in group.joins
    } & oids.keys()
    return may_read_all_txn(connection, [oids[name] for name in looked_up])


def may_read_all_txn(connection: PgConnection, oids: Collection[int]) -> bool:
    """Return whether the session's role may read all rows of some tables."""
    with connection.cursor() as cursor:
        cursor.execute(
            # has_table_privilege returns null for a table that was dropped meanwhile.
            "SELECT coalesce(pg_catalog.bool_and(coalesce("
            "pg_catalog.has_table_privilege(oid, 'SELECT'), false)"
            " AND NOT pg_catalog.row_security_active(oid)), true)"
            " FROM pg_catalog.unnest(%s::oid[]) AS oid",
            [list(oids)],
            clean=True,
        )
        ((found,),) = cursor.fetchall()
    return bool(found)


def key_arrays(keys: Collection[Key]) -> tuple[list[str], frozenset[int]]:
    """
    Return the array parameters of a statement `with_keys`, and the places of columns with a null in any key.

    Args:
        keys: The keys, at least one.
    """
    arrays, nulls = [], set[int]()
    for at, column in enumerate(zip(*keys, strict=True)):
        values = set(column)
        if None in values:
            nulls.add(at)
        arrays.append(_array(value for value in values if value is not None))
    return arrays, frozenset(nulls)


def _group_lookup(
    catalog: Catalog,
    rows: KeyedRead,
    column: GroupColumn,
    logged: Mapping[tuple[str, str], TrackedTable],
) -> GroupLookup:
    places = tuple(map(rows.key.index, column.starts))
    found: list[JoinLookup] = []
    for at, join in enumerate(column.joins):
        relation = join.outer
        names = tuple(name for name, _, _ in join.pairs)
        following: tuple[str, ...] = (column.column.name,)
        if at + 1 < len(column.joins):
            following = tuple(name for _, name, _ in column.joins[at + 1].pairs)
        columns = (*names, *following)
        statement = outer_rows(catalog, join, columns)
        assert statement is not None, "types that are matched have arrays"
        table = logged.get((relation.schema, relation.name))
        number = None if table is None else table.id
        found.append(JoinLookup(number, columns, len(names), relation.row_security, statement))
    return GroupLookup(places, tuple(found))


def _lookups(
    catalog: Catalog, rows: KeyedRead
) -> list[tuple[OutwardJoin, Statement | None]] | None:
    lookups: list[tuple[OutwardJoin, Statement | None]] = []
    for join in rows.joins:
        columns = _columns(rows, join.outer_source)
        lookup = None
        if not joins_columns(catalog, join, columns):
            lookup = outer_rows(catalog, join, columns)
            if lookup is None:
                return None
        lookups.append((join, lookup))
    return lookups


def _joined_values(plan: KeyPlan, changes: Iterable[RowChange]) -> dict[str, set[Key]] | None:
    """Return for each alias the values that join its changed rows; None if all rows are touched."""
    joined: dict[str, set[Key]] = {}
    join_columns = {join.source: _columns(plan.rows, join.source) for join in plan.rows.joins}
    for change in changes:
        if change.relation in plan.all_rows:
            return None
        for source in plan.keyed.get(change.relation, ()):
            if change.op not in ("I", "U", "D"):
                return None
            if source != ROOT:
                values = _values(change, join_columns[source])
                if values is None:
                    return None
                joined.setdefault(source, set()).update(values)
    return joined


def _values(change: RowChange, columns: Sequence[str]) -> list[Key] | None:
    """Return the values of some columns in the images of a change; None if they are not known."""
    try:
        found = [tuple([image[name] for name in columns]) for image in change.images]
    except KeyError:  # the image was logged before the column was added
        return None
    # A list and not a set: Decimal("1.0") and Decimal("1.00") are equal, but different keys.
    known = not any(isinstance(each, list | dict) for key in found for each in key)
    return found if found and known else None


def _root_keys(plan: KeyPlan, values: Collection[Key]) -> set[Key] | None:
    """Return values of `plan.rows.key` in their wire form, unless they only lead to the groups."""
    return set(values) if plan.groups else _keys(plan, values)


def _keys(plan: KeyPlan, values: Collection[Key]) -> set[Key] | None:
    """Return keys converted from JSON to their wire form; None if one cannot be read."""
    if not plan.readers:
        return set(values)
    try:
        return {
            tuple(
                value if value is None or read is None else read(value)
                for value, read in zip(each, plan.readers, strict=True)
            )
            for each in values
        }
    except UnconvertibleValue:
        return None


def _outer_keys(join: OutwardJoin, columns: Sequence[str], values: Iterable[Key]) -> set[Key]:
    """Return the values of `columns` of the outer rows, all of which are columns of the join."""
    known = [outer_name for outer_name, _, _ in join.pairs]
    places = [known.index(name) for name in columns]
    return {tuple([each[place] for place in places]) for each in values}


def _outer_rows_txn(
    connection: PgConnection, codec: Codec, lookup: Statement, values: Collection[Key], most: int
) -> set[Key]:
    arrays = [_array({each[at] for each in values}) for at in range(len(lookup.bounds))]
    with connection.cursor() as cursor:
        parameters = codec.parameters(lookup.bounds, arrays)
        cursor.execute(f"{lookup.text} LIMIT {most + 1:d}", parameters, clean=lookup.pure)
        return {tuple(_loads(text)) for (text,) in cursor.fetchall()}


def _columns(rows: KeyedRead, source: str) -> tuple[str, ...]:
    """Return the columns that join rows to their outer rows; of the root relation, those of its key."""
    if source == ROOT:
        return rows.key
    join = next(each for each in rows.joins if each.source == source)
    return tuple(name for _, name, _ in join.pairs)


def _is_by_link(scan: Scan, aliases: Mapping[str, TrackedTable]) -> bool:
    """Return whether a scan is one of the plan's links; aliases of partitions end in a number."""
    if scan.alias is None:
        return False
    names = (scan.alias, re.sub(r"_[0-9]+$", "", scan.alias))
    return any(name in aliases and aliases[name].oid in scan.tree for name in names)


def _array(values: Iterable[Any]) -> str:
    return write_array([_text(value) for value in values])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)
