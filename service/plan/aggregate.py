"""
Aggregate requests and the catalog to plans.

The groups become a source of their own, whose columns are the groups' and the measures'
names: `having` and `order` speak of it as a filter and sort keys speak of any relation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.catalog import NOWHERE, Catalog, Column, Relation
from service.plan.calls import FunctionCall
from service.plan.conditions import Bound, Condition
from service.plan.expressions import Scope
from service.plan.filters import plan_filter
from service.plan.measures import distinguishable, plan_groups, plan_measures, refuse_repeated
from service.plan.outputs import referred, sort_keys
from service.plan.types import Groups, Output, PlannedMeasure, SortKey
from service.request.types import AggregateRequest, Item, Key, Measure, Reference


@dataclass(frozen=True, slots=True)
class AggregatePlan:
    """
    Functions over groups of rows.

    Args:
        name: What it is for, as in "actions.aggregate".
        relation: Whose rows.
        where: Which rows; None for all.
        grouped: The groups.
        having: Which groups; None for all.
        limit, offset: Of the groups.
        call: The function that returns the rows, where that is not the relation itself.
        afterwards: As of a `ReadPlan`.
    """

    name: str
    relation: Relation
    where: Condition | None
    grouped: Groups
    having: Condition | None
    limit: Bound
    offset: Bound | None
    call: FunctionCall | None = None
    afterwards: bool = False


def plan_aggregate(
    catalog: Catalog, relation: Relation, request: AggregateRequest
) -> AggregatePlan:
    """
    Plan `aggregate`.

    Raises:
        InvalidArgument: A name is unknown, or stands twice in the answer.
    """
    scope = Scope(catalog, relation)
    int8 = scope.named("int8")
    grouped, result = plan_grouped(
        scope, request.group, request.measures, request.order, "measures"
    )
    return AggregatePlan(
        name=f"{relation.name}.aggregate",
        relation=relation,
        where=plan_filter(scope, request.where),
        grouped=grouped,
        having=plan_filter(result, request.having),
        limit=scope.bound(request.limit, int8),
        offset=scope.bound(request.offset, int8) if request.offset else None,
    )


def plan_grouped(
    scope: Scope,
    group: tuple[Item, ...],
    measures: Iterable[Measure],
    order: Iterable[Key],
    path: str,
    source: str = "t",
) -> tuple[Groups, Scope]:
    """
    Plan groups of a relation's rows; gives what their names mean, too.

    Args:
        scope: Of the rows.
        group: What the rows of a group have in common.
        measures: Over them.
        order: Of the groups.
        path: Where measures stand in the call.
        source: The alias of the groups.

    Raises:
        InvalidArgument: A name is unknown, or stands twice in the answer.
    """
    groups = plan_groups(scope, group)
    planned = plan_measures(scope, measures)
    refuse_repeated(groups, planned, path)
    result = Scope(scope.catalog, _result(scope.relation, groups, planned), source=source)
    outputs = tuple(
        Output(result.of_column(column), name) for name, column in result.relation.columns.items()
    )
    return Groups(groups, planned, outputs, _order(scope, result, groups, order), source), result


def _result(
    relation: Relation, groups: tuple[Output, ...], measures: tuple[PlannedMeasure, ...]
) -> Relation:
    """Give the relation that the groups are."""
    types = {output.name: output.expression.type for output in groups}
    types.update({measure.name: measure.type for measure in measures})
    columns = {name: Column(name, type.oid, type.sql) for name, type in types.items()}
    return Relation(NOWHERE, f"aggregate of {relation.name}", "view", columns)


def _order(
    scope: Scope, result: Scope, groups: tuple[Output, ...], order: Iterable[Key]
) -> tuple[SortKey, ...]:
    """Resolve sort keys; the groups follow them, so that the order is one."""
    named = [Key(_named(scope, result, groups, key), key.descending, key.nulls) for key in order]
    keys = sort_keys(result, named)
    taken = {key.expression.column.name for key in keys if not key.expression.steps}
    rest = [Key(Reference(output.name, "group")) for output in groups if output.name not in taken]
    return keys + sort_keys(result, rest)


def _named(scope: Scope, result: Scope, groups: tuple[Output, ...], key: Key) -> Reference:
    """Give the name of the group that a sort key spells out, as in "driver.name"."""
    reference = key.reference
    if not reference.owners and (
        reference.name in result.relation.columns or reference.name not in scope.relation.columns
    ):
        return reference
    value = distinguishable(scope, referred(scope, reference))
    for output in groups:
        if output.expression.same(value):
            return Reference(output.name, reference.path)
    return reference
