"""
Queries that are watched: reads whose rows can be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from service.catalog import Catalog, Relation
from service.errors import InvalidArgument
from service.plan.aggregate_plan import AggregatePlan, plan_aggregate
from service.plan.call_plan import plan_called
from service.plan.plans import ReadPlan
from service.plan.read_plan import plan_find
from service.plan.scope import Scope
from service.request.call_request import CalledRequest
from service.request.requests import AggregateRequest, FindRequest

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
