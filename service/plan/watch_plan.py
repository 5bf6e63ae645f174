"""
Plan live queries: how their rows are identified, which of them a changed row may affect, and how to read
these alone.

Result rows have a key: the primary key of the relation, or the values of GROUP BY. A changed related row
leads to them through the columns of the joins between, one join at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from service.catalog import Catalog, Column, Relation, Type
from service.errors import InvalidArgument
from service.plan.call_plan import plan_called
from service.plan.clauses import both
from service.plan.plans import (
    AggregatePlan,
    BoolExpr,
    Bound,
    CatalogObject,
    Compare,
    Condition,
    Equals,
    Exists,
    Expression,
    IsTest,
    Link,
    Not,
    Output,
    ReadPlan,
    parts_of,
)
from service.plan.read_plan import plan_aggregate, plan_find
from service.plan.scope import Scope
from service.request.call_request import FunctionRowsRequest
from service.request.requests import AggregateRequest, FindRequest

ROOT = "t"
"""Alias of the plan's own relation."""

EXACT_TYPES = frozenset(["bool", "int2", "int4", "int8", "uuid", "bytea"]).union(
    ["date", "time", "timetz", "timestamp", "timestamptz"]
)
"""Types whose values are equal if and only if their texts are equal."""

KEY_TYPES = EXACT_TYPES | {"text", "varchar", "bpchar", "numeric", "interval"}
"""
Types whose text PostgreSQL parses back to the same value.

Values of those that are not exact may be equal with different texts: by collation, trailing blanks, as 1.0
and 1.00, as a month and 30 days. If the text of a row's key changes, the change log has both texts.
"""

INTEGERS = frozenset(["int2", "int4", "int8"])
MATCHED = frozenset(["bool", "uuid", "text", "varchar", "date"])
"""Types whose values are equal if and only if they have the same JSON in any session."""

Plan = TypeVar("Plan", ReadPlan, AggregatePlan)


@dataclass(frozen=True, slots=True)
class OutwardJoin:
    """
    A join of a plan, followed from its related rows outwards, to the rows that they are joined to.

    Args:
        relation: Relation of the related rows.
        source: Their alias.
        outer: Relation of the rows that they are joined to.
        outer_source: Alias of these rows.
        pairs: Pairs of columns of the outer and of the related relation.
        decides: Whether the related rows affect which result rows there are or their order, rather
            than only their contents.
    """

    relation: Relation
    source: str
    outer: Relation
    outer_source: str
    pairs: Equals
    decides: bool


@dataclass(frozen=True, slots=True)
class KeyedRead:
    """
    How result rows can be read again by their key.

    Args:
        relation: Relation of the rows, or of the rows that are grouped.
        key: Columns of the key; empty for one group of all rows. If `groups` is not empty, the columns from
            which the group columns are found.
        joins: Joins to the relation, the most distant one first.
        groups: The group columns, if some are columns of related rows.
    """

    relation: Relation
    key: tuple[str, ...]
    joins: tuple[OutwardJoin, ...]
    groups: tuple[GroupColumn, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupColumn:
    """
    A group column, as found from the columns of `KeyedRead.key`.

    Args:
        column: The column.
        starts: Names of the columns of the key from which it is found; the column itself without joins.
        joins: Joins from these columns to the related row that has the group column, in the reverse
            direction: `outer` is the related relation.
    """

    column: Column
    starts: tuple[str, ...]
    joins: tuple[OutwardJoin, ...] = ()


def keyed_read(catalog: Catalog, plan: ReadPlan | AggregatePlan) -> KeyedRead | None:
    """
    Return how the rows of a plan are read again by key; None if they cannot be.

    They cannot with DISTINCT and OFFSET, where a row depends on others, nor for views, functions and
    tables with inheritance children.
    """
    relation = plan.relation
    if plan.call is not None or plan.offset is not None or relation.kind != "table":
        return None
    if relation.has_children:
        return None
    groups: tuple[GroupColumn, ...] = ()
    if isinstance(plan, AggregatePlan):
        found = [_group_column(catalog, relation, each) for each in plan.grouped.groups]
        columns = tuple(column for column in found if column is not None)
        # Without `_looks_alike`, rows of one group could have different texts for its key.
        if len(columns) < len(found) or not all(
            _looks_alike(catalog, each.column) and _is_key_type(catalog, each.column)
            for each in columns
        ):
            return None
        key = tuple(name for each in columns for name in each.starts)
        # Without these, the query is read again after each change: 100,000 rows took 450 ms instead of 30.
        if any(each.joins for each in columns):
            groups, key = columns, tuple(dict.fromkeys(key))
        deciding: Any = plan
    else:
        if plan.distinct or plan.after is not None or plan.lock or not relation.primary_key:
            return None
        key = relation.primary_key
        deciding = (plan.where, plan.order)
        if not all(_is_key_type(catalog, relation.columns.get(name)) for name in key):
            return None
    joins = tuple(_joins(relation, plan, deciding))
    if not all(join.relation.columns[name].logged for join in joins for _, name, _ in join.pairs):
        return None
    return KeyedRead(relation, key, joins, groups)


def with_keys(catalog: Catalog, plan: Plan, rows: KeyedRead, nulls: frozenset[int]) -> Plan:
    """
    Plan the rows of certain keys alone, in any order.

    The keys are further parameters after all others: for each column of the key an array in PostgreSQL's
    text format. With several columns each combination of values is read, so other rows may be returned.

    Args:
        catalog: Source of types.
        plan: Plan of all rows.
        rows: How the rows are read by key.
        nulls: Places of the columns that are null in one of the keys.
    """
    scope = Scope(catalog, rows.relation)
    if isinstance(plan, AggregatePlan):
        columns = [output.expression for output in plan.grouped.groups]
        where = both(plan.where, *_is_one_of(scope, columns, nulls))
        return replace(plan, where=where, limit=None)
    columns = [scope.of_column(rows.relation.columns[name]) for name in rows.key]
    where = both(plan.where, *_is_one_of(scope, columns, nulls))
    return replace(plan, where=where, order=(), limit=None, keyset=False)


def order_of_keys(catalog: Catalog, plan: ReadPlan, rows: KeyedRead) -> ReadPlan:
    """Plan the keys of rows in the order of the rows, restricted to certain keys as in `with_keys`."""
    scope = Scope(catalog, rows.relation)
    columns = (scope.of_column(rows.relation.columns[name]) for name in rows.key)
    outputs = tuple(Output(column, column.column.name) for column in columns)
    found = with_keys(catalog, plan, rows, frozenset())
    return replace(found, outputs=outputs, embeds=(), order=plan.order, json=False)


def _is_one_of(
    scope: Scope, columns: Sequence[Expression], nulls: frozenset[int]
) -> Iterator[Condition]:
    for at, column in enumerate(columns):
        equal = scope.operator("=", column.type, column.type)
        keys = array_bound(scope.catalog, column.type, at - len(columns))
        assert keys is not None, "types of keys have arrays"
        source = column.links[-1].source if column.links else column.source
        value = replace(column, source=source, links=())
        test = _of_related(column.links, Compare(value, equal, keys, quantifier="any"))
        if at in nulls:
            null: Condition = IsTest(value, "NULL")
            if column.links:  # also if there is no related row
                null = Not(_of_related(column.links, IsTest(value, "NOT NULL")))
            test = BoolExpr(True, (test, null))
        yield test


def _of_related(links: Iterable[Link], test: Condition) -> Condition:
    """Return the condition that the related row to which links lead passes a test."""
    for link in reversed(tuple(links)):
        test = Exists(link, test)
    return test


def joins_columns(catalog: Catalog, join: OutwardJoin, columns: Iterable[str]) -> bool:
    """
    Return whether a join equates each of some columns of the outer rows with one of the related rows.

    Then the related rows have the values of these columns, and the outer rows need not be read for them.
    """
    inner = {outer_name: name for outer_name, name, _ in join.pairs}

    def is_same(outer_name: str) -> bool:
        outer = join.outer.columns[outer_name]
        outer_type = catalog.plain(catalog.type(outer.type))
        type = catalog.plain(catalog.type(join.relation.columns[inner[outer_name]].type))
        return outer_type is type and outer.logged and _is_exact(type)

    return all(name in inner and is_same(name) for name in columns)


def array_bound(catalog: Catalog, type: Type, slot: int) -> Bound | None:
    """Return an array parameter in PostgreSQL's text format; None if the type has no array type."""
    array = catalog.array_of(type)
    return None if array is None else Bound(slot, array, "", raw=True)


def _group_column(catalog: Catalog, relation: Relation, output: Output) -> GroupColumn | None:
    """Return how a group column is found from columns of the relation; None if it cannot be."""
    value = output.expression
    if value.steps or value.applied or value.function or value.measure:
        return None
    if not value.links:
        return GroupColumn(value.column, (value.column.name,))
    joins, outer = [], relation
    for link in value.links:
        target = link.relation
        if link.function or link.junction or link.where or target.kind != "table":
            return None
        pairs = tuple((inner, name, equal) for name, inner, equal in link.pairs)
        if target.has_children or not all(
            _is_matched(catalog, outer.columns[name], target.columns[inner])
            for inner, name, _ in pairs
        ):
            return None
        joins.append(OutwardJoin(outer, "", target, link.source, pairs, True))
        outer = target
    starts = tuple(name for _, name, _ in joins[0].pairs)
    return GroupColumn(value.column, starts, tuple(joins))


def _is_matched(catalog: Catalog, one: Column, other: Column) -> bool:
    """Return whether values of two columns are equal if and only if their images are, without a database."""
    # Virtual columns are null in images. A loose collation makes different texts equal.
    if not (one.logged and other.logged) or one.loose or other.loose:
        return False
    types = {catalog.plain(catalog.type(column.type)) for column in (one, other)}
    if not all(type.kind == "enum" or type.schema == "pg_catalog" for type in types):
        return False
    if {type.name for type in types} <= INTEGERS:
        return True
    return len(types) == 1 and all(type.kind == "enum" or type.name in MATCHED for type in types)


def _is_key_type(catalog: Catalog, column: Column | None) -> bool:
    if column is None or not column.logged:  # such as a hidden column
        return False
    type = catalog.plain(catalog.type(column.type))
    if catalog.array_of(type) is None:
        return False
    return type.kind == "enum" or (type.schema == "pg_catalog" and type.name in KEY_TYPES)


def _is_exact(type: Type) -> bool:
    return type.kind == "enum" or (type.schema == "pg_catalog" and type.name in EXACT_TYPES)


def _looks_alike(catalog: Catalog, column: Column) -> bool:
    """Return whether equal values of a column always have equal texts."""
    type = catalog.type(column.type)
    plain = catalog.plain(type)
    if column.loose or _is_exact(plain):
        return not column.loose
    if plain.name in ("numeric", "bpchar"):
        # numeric(8,2) and character(3) force one scale or length on all values.
        return type is plain and column.declared.endswith(")")
    return plain.category == "S"


def _joins(relation: Relation, plan: Any, deciding: Any) -> Iterator[OutwardJoin]:
    """Yield the joins of a plan, the most distant one first; rows of functions have none."""
    deciding_sources = {link.source for link in _links(deciding)}
    reached: dict[str, Relation] = {ROOT: relation}
    joins: list[OutwardJoin] = []
    waiting = [link for link in _links(plan) if link.function is None]
    while True:
        link = next((each for each in waiting if each.outer in reached), None)
        if link is None:
            return reversed(joins)
        waiting = [each for each in waiting if each.source != link.source]
        reached[link.source] = link.relation
        outer, outer_source, pairs = reached[link.outer], link.outer, link.pairs
        decides, junction = link.source in deciding_sources, link.junction
        if junction is not None:
            joins.append(
                OutwardJoin(
                    junction.relation,
                    junction.source,
                    outer,
                    outer_source,
                    junction.outer_pairs,
                    decides,
                )
            )
            outer, outer_source, pairs = junction.relation, junction.source, junction.related_pairs
        joins.append(OutwardJoin(link.relation, link.source, outer, outer_source, pairs, decides))


def _links(plan: Any) -> Iterator[Link]:
    """Yield all links in a plan, each before those inside it."""
    for part in parts_of(plan, Link | CatalogObject):
        if isinstance(part, Link):
            yield part
            yield from _links(tuple(getattr(part, each.name) for each in fields(part)))


KeyKind = Literal["column", "columns", "group", "row"]
"""
The form of a row's key: the value of one column, a list of values, a dict for groups, or the row itself.
"""

Watchable = FindRequest | AggregateRequest | FunctionRowsRequest[Any]


@dataclass(frozen=True, slots=True)
class KeyForm:
    """
    How the rows of a live query are identified.

    Args:
        kind: Form of the key.
        columns: Result columns that contain the key; None if the rows do not contain it.
        ordered: Whether the order of the rows matters.
    """

    kind: KeyKind
    columns: tuple[str, ...] | None
    ordered: bool

    def key(self, row: Mapping[str, Any], values: Sequence[Any]) -> Any:
        """Return the key of a row, given the values of its key's columns."""
        if self.kind == "column":
            return values[0]
        if self.kind == "columns":
            return list(values)
        if self.kind == "group":
            return {name: row[name] for name in self.columns or ()}
        return row


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """
    A live query.

    Args:
        read: Plan of all its rows.
        form: How its rows are identified.
    """

    read: ReadPlan | AggregatePlan
    form: KeyForm


def plan_watch(catalog: Catalog, relation: Relation | None, request: Watchable) -> WatchPlan:
    """
    Plan a live query, on a relation or, without one, on a function's rows.

    Raises:
        InvalidArgument: The function may write.
        NoSuchProcedure: It returns no rows.
    """
    if isinstance(request, FunctionRowsRequest):
        return _plan_called(catalog, request)
    assert relation is not None
    ordered = bool(request.order)
    if isinstance(request, AggregateRequest):
        return _groups(plan_aggregate(catalog, relation, request), ordered)
    read = replace(plan_find(catalog, relation, request), keyset=False)
    # A row of a child may have the key of another row: a primary key holds for one table alone.
    if not relation.primary_key or relation.has_children or read.distinct is True:
        return WatchPlan(read, KeyForm("row", None, ordered))
    scope = Scope(catalog, relation)
    keys = tuple(scope.of_column(relation.columns[name]) for name in relation.primary_key)
    shown = [
        next((output.name for output in read.outputs if output.expression.same(key)), None)
        for key in keys
    ]
    columns = tuple(name for name in shown if name is not None)
    return WatchPlan(
        replace(read, keys=keys),
        KeyForm(
            "column" if len(keys) == 1 else "columns",
            columns if len(columns) == len(keys) else None,
            ordered,
        ),
    )


def _plan_called(catalog: Catalog, request: FunctionRowsRequest[Any]) -> WatchPlan:
    function, ordered = request.call.function, bool(request.of.order)
    if not function.reads:
        raise InvalidArgument(
            f'"{function.name}" may write, and what is watched runs again and again',
            hint="a function that only reads is STABLE or IMMUTABLE",
        )
    if isinstance(request.of, AggregateRequest):
        return _groups(plan_called(catalog, request, plan_aggregate), ordered)
    # Identified as entire rows: a function may return a row of a relation twice.
    read = replace(plan_called(catalog, request, plan_find), keyset=False)
    return WatchPlan(read, KeyForm("row", None, ordered))


def _groups(plan: AggregatePlan, ordered: bool) -> WatchPlan:
    names = tuple(output.name for output in plan.grouped.groups)
    return WatchPlan(plan, KeyForm("group", names, ordered))
