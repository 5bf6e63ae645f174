"""
Queries that are watched, reads whose rows can be told apart: which of them a changed row can have
touched, as far as the plan tells, and the plan of those alone.

Rows of an answer have a key: the primary key of the relation, or what groups have in common. Each
related row leads to them, one link at a time, by the columns that link them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from service.catalog import Catalog, Column, Function, Relation, Type
from service.errors import InvalidArgument
from service.plan.aggregate_plan import AggregatePlan, plan_aggregate
from service.plan.call_plan import plan_called
from service.plan.conditions import BoolExpr, Bound, Compare, Condition, Equals, IsTest, Link
from service.plan.plans import Output, ReadPlan
from service.plan.predicates import both
from service.plan.read_plan import plan_find
from service.plan.scope import Scope
from service.request.call_request import CalledRequest
from service.request.requests import AggregateRequest, FindRequest

ROOT = "t"
"""The alias of the relation that a plan is about."""

EXACT_TYPES = frozenset(["bool", "int2", "int4", "int8", "uuid", "bytea"]).union(
    ["date", "time", "timetz", "timestamp", "timestamptz"]
)
"""Types whose values are equal if and only if they look alike."""

KEY_TYPES = EXACT_TYPES | {"text", "varchar", "bpchar", "numeric", "interval"}
"""
Types of which PostgreSQL reads from its own text the value that it wrote.

Those that are not exact may be equal without looking alike: by a collation, in blanks at the end, as 1.0
and 1.00, as a month and 30 days. A row whose key comes to look otherwise is in the log with both.
"""

Plan = TypeVar("Plan", ReadPlan, AggregatePlan)


@dataclass(frozen=True, slots=True)
class Way:
    """
    How rows that a plan reads lead to others, nearer to the rows of the answer.

    Args:
        relation: Whose rows they are.
        source: Their alias.
        outer: The relation that they lead to, and `outer_source` its alias.
        pairs: Columns there and here that are equal.
        decides: Whether they have a say in which rows there are, and in what order; otherwise they
            only are in them.
    """

    relation: Relation
    source: str
    outer: Relation
    outer_source: str
    pairs: Equals
    decides: bool


@dataclass(frozen=True, slots=True)
class KeyedRows:
    """
    Rows that are found again by their key.

    Args:
        relation: That has them, or whose rows are grouped.
        key: The columns of the key; of one group of all rows there are none.
        ways: To them, from the farthest on.
    """

    relation: Relation
    key: tuple[str, ...]
    ways: tuple[Way, ...]


def keyed_rows(catalog: Catalog, plan: ReadPlan | AggregatePlan) -> KeyedRows | None:
    """
    Return how the rows of a plan are found by key; None if they cannot be.

    Rows that are the rest of others (DISTINCT, OFFSET) have none, nor do those of views, functions and
    tables that others inherit from.
    """
    relation = plan.relation
    if plan.call is not None or plan.offset is not None or relation.kind != "table":
        return None
    if relation.has_children:
        return None
    if isinstance(plan, AggregatePlan):
        if not all(map(_is_plain, plan.grouped.groups)):
            return None
        columns = [each.expression.column for each in plan.grouped.groups]
        # rows of one group would name it in several ways
        if not all(_looks_alike(catalog, column) for column in columns):
            return None
        key = tuple(column.name for column in columns)
        deciding: Any = plan
    else:
        if plan.distinct or plan.after is not None or plan.lock or not relation.primary_key:
            return None
        key = relation.primary_key
        deciding = (plan.where, plan.order)
    if not all(_is_key_type(catalog, relation.columns.get(name)) for name in key):
        return None
    ways = tuple(_ways(relation, plan, deciding))
    if not all(way.relation.columns[here].logged for way in ways for _, here, _ in way.pairs):
        return None
    return KeyedRows(relation, key, ways)


def with_keys(catalog: Catalog, plan: Plan, rows: KeyedRows, nulls: frozenset[str]) -> Plan:
    """
    Plan the rows of some keys alone, in any order.

    The values that they are bound to stand behind all others: for each column of the key an array as
    PostgreSQL's text. Of a key of several columns each combination is read, so there may be others.

    Args:
        catalog: For types.
        plan: Of all rows.
        rows: How they are found.
        nulls: Columns of the key that are null in one of the keys.
    """
    where = both(plan.where, *_is_one_of(catalog, rows, nulls))
    if isinstance(plan, AggregatePlan):
        return replace(plan, where=where, limit=None)
    return replace(plan, where=where, order=(), limit=None, keyset=False)


def order_of_keys(catalog: Catalog, plan: ReadPlan, rows: KeyedRows) -> ReadPlan:
    """Plan the keys of rows, of some keys alone as `with_keys` has it, in the order of the rows."""
    scope = Scope(catalog, rows.relation)
    columns = (scope.of_column(rows.relation.columns[name]) for name in rows.key)
    outputs = tuple(Output(column, column.column.name) for column in columns)
    found = with_keys(catalog, plan, rows, frozenset())
    return replace(found, outputs=outputs, embeds=(), order=plan.order, json=False)


def _is_one_of(catalog: Catalog, rows: KeyedRows, nulls: frozenset[str]) -> Iterator[Condition]:
    scope = Scope(catalog, rows.relation)
    for at, name in enumerate(rows.key):
        column = scope.of_column(rows.relation.columns[name])
        equal = scope.operator("=", column.type, column.type)
        keys = array_bound(catalog, column.type, at - len(rows.key))
        assert keys is not None, "types of keys have arrays"
        test = Compare(column, equal, keys, quantifier="any")
        yield BoolExpr(True, (test, IsTest(column, "NULL"))) if name in nulls else test


def is_known_by(catalog: Catalog, way: Way, columns: Iterable[str]) -> bool:
    """Return whether some columns of the rows that a way leads to have the values of its own columns."""
    own = {there: here for there, here, _ in way.pairs}

    def is_same(name: str) -> bool:
        there = catalog.plain(catalog.type(way.outer.columns[name].type))
        here = catalog.plain(catalog.type(way.relation.columns[own[name]].type))
        return there is here and way.outer.columns[name].logged and _is_exact(there)

    return all(name in own and is_same(name) for name in columns)


def array_bound(catalog: Catalog, type: Type, slot: int) -> Bound | None:
    """Return the parameter of an array of a type, as PostgreSQL's text; None if it has none."""
    array = catalog.array_of(type)
    return None if array is None else Bound(slot, array, "", raw=True)


def _is_plain(output: Output) -> bool:
    value = output.expression
    return not (value.links or value.steps or value.applied or value.function)


def _is_key_type(catalog: Catalog, column: Column | None) -> bool:
    if column is None or not column.logged:  # hidden, for one
        return False
    type = catalog.plain(catalog.type(column.type))
    if catalog.array_of(type) is None:
        return False
    return type.kind == "enum" or (type.schema == "pg_catalog" and type.name in KEY_TYPES)


def _is_exact(type: Type) -> bool:
    return type.kind == "enum" or (type.schema == "pg_catalog" and type.name in EXACT_TYPES)


def _looks_alike(catalog: Catalog, column: Column) -> bool:
    """Return whether values of a column that are equal look alike."""
    type = catalog.type(column.type)
    plain = catalog.plain(type)
    if column.loose or _is_exact(plain):
        return not column.loose
    if plain.name in ("numeric", "bpchar"):
        # "numeric(8,2)" and "character(3)" bring all values to one scale, one length
        return type is plain and column.declared.endswith(")")
    return plain.category == "S"


def _ways(relation: Relation, plan: Any, deciding: Any) -> Iterator[Way]:
    """Yield the ways of a plan from the farthest on; a function leads nowhere."""
    decides = {link.source for link in _links(deciding)}
    reached: dict[str, Relation] = {ROOT: relation}
    found: list[Way] = []
    waiting = [link for link in _links(plan) if link.function is None]
    while True:
        nearest = next((link for link in waiting if link.outer in reached), None)
        if nearest is None:
            return reversed(found)
        waiting = [link for link in waiting if link.source != nearest.source]
        reached[nearest.source] = nearest.relation
        outer, outer_source, pairs = reached[nearest.outer], nearest.outer, nearest.pairs
        says, junction = nearest.source in decides, nearest.junction
        if junction is not None:
            there = junction.relation
            found.append(Way(there, junction.source, outer, outer_source, junction.here, says))
            outer, outer_source, pairs = there, junction.source, junction.there
        found.append(Way(nearest.relation, nearest.source, outer, outer_source, pairs, says))


def _links(value: Any) -> Iterator[Link]:
    """Yield the links that stand anywhere in a plan."""
    if isinstance(value, Link):
        yield value
    if isinstance(value, tuple):
        yield from _all(value)
    elif is_dataclass(value) and not isinstance(value, Relation | Function | Type | Column):
        yield from _all(getattr(value, field.name) for field in fields(value))


def _all(values: Iterable[Any]) -> Iterator[Link]:
    for each in values:
        yield from _links(each)


KeyKind = Literal["column", "columns", "group", "row"]
"""
What the key of a row is: the value of a column, a list of those of several, for groups a dict, or
the row itself.
"""

Watchable = FindRequest | AggregateRequest | CalledRequest[Any]


@dataclass(frozen=True, slots=True)
class KeyForm:
    """
    How the rows of a query are told apart.

    Args:
        kind: What a key is.
        columns: Of the answer, that show the key; None where the rows do not show it.
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
    A query that is watched.

    Args:
        read: What it reads.
        form: How its rows are told apart.
    """

    read: ReadPlan | AggregatePlan
    form: KeyForm


def plan_watch(catalog: Catalog, relation: Relation | None, request: Watchable) -> WatchPlan:
    """
    Plan a query that is watched; without a relation, one of a function's rows.

    Raises:
        InvalidArgument: The function may write.
        NoSuchProcedure: It returns no rows.
    """
    if isinstance(request, CalledRequest):
        return _plan_called(catalog, request)
    assert relation is not None
    ordered = bool(request.order)
    if isinstance(request, AggregateRequest):
        return _groups(plan_aggregate(catalog, relation, request), ordered)
    read = replace(plan_find(catalog, relation, request), keyset=False)
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


def _plan_called(catalog: Catalog, request: CalledRequest[Any]) -> WatchPlan:
    function, ordered = request.call.function, bool(request.of.order)
    if not function.reads:
        raise InvalidArgument(
            f'"{function.name}" may write, and what is watched runs again and again',
            hint="a function that only reads is STABLE or IMMUTABLE",
        )
    if isinstance(request.of, AggregateRequest):
        return _groups(plan_called(catalog, request, plan_aggregate), ordered)
    # The rows may be of a relation with a key, and yet the same one twice.
    read = replace(plan_called(catalog, request, plan_find), keyset=False)
    return WatchPlan(read, KeyForm("row", None, ordered))


def _groups(plan: AggregatePlan, ordered: bool) -> WatchPlan:
    names = tuple(output.name for output in plan.grouped.groups)
    return WatchPlan(plan, KeyForm("group", names, ordered))
