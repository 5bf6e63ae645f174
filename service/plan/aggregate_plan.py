"""
Plan measures and groups.

The groups are planned as a relation of their own, with the names of groups and measures as columns, so
that `having` and `order` are planned like the filter and sort keys of any relation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.catalog import Catalog, Relation
from service.plan.conditions import Bound, Condition, SortKey
from service.plan.hidden import as_json
from service.plan.outputs import outputs_of, refuse_repeated
from service.plan.plans import FunctionCall, Groups, Output
from service.plan.predicates import (
    both,
    comparable,
    inner_condition,
    plan_filter,
    plan_measure,
    referenced,
    sort_keys,
)
from service.plan.scope import Scope, groups_of
from service.request.requests import AggregateRequest, FindRequest, Item, Key, Measure, Reference


@dataclass(frozen=True, slots=True)
class AggregatePlan:
    """
    Aggregate functions over groups of rows.

    Args:
        name: Name for logs and statistics, as in "actions.aggregate".
        relation: The relation.
        where: Condition of the rows; None for all.
        grouped: The groups.
        having: Condition of the groups; None for all.
        limit, offset: Of the groups.
        call: The function that returns the rows, where that is not the relation itself.
        afterwards, json: As of a `ReadPlan`.
    """

    name: str
    relation: Relation
    where: Condition | None
    grouped: Groups
    having: Condition | None
    limit: Bound | None
    offset: Bound | None
    call: FunctionCall | None = None
    afterwards: bool = False
    json: bool = False


def plan_aggregate(
    catalog: Catalog, relation: Relation, request: AggregateRequest
) -> AggregatePlan:
    """Plan `aggregate`."""
    scope = Scope(catalog, relation)
    grouped, result = plan_grouped(
        scope, request.group, request.measures, request.order, "measures"
    )
    return AggregatePlan(
        name=f"{relation.name}.aggregate",
        relation=relation,
        where=plan_filter(scope, request.where),
        grouped=grouped,
        having=plan_filter(result, request.having),
        limit=scope.number(request.limit),
        offset=scope.number(request.offset),
        json=as_json(catalog, request.form, grouped.outputs),
    )


def plan_totals(catalog: Catalog, relation: Relation, request: FindRequest) -> AggregatePlan:
    """Plan the measures of `find`, over all matching rows rather than a page."""
    scope = Scope(catalog, relation, request.embeds)
    grouped, _ = plan_grouped(scope, (), request.measures, (), "measures")
    return AggregatePlan(
        name=f"{relation.name}.find",
        relation=relation,
        where=both(plan_filter(scope, request.where), inner_condition(scope, request.embeds)),
        grouped=grouped,
        having=None,
        limit=None,
        offset=None,
        json=as_json(catalog, request.form, grouped.outputs),
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
    Plan groups of rows; return their scope as well.

    Args:
        scope: Scope of the rows.
        group: GROUP BY.
        measures: Aggregates over the rows of each group.
        order: Sort keys of the groups.
        path: Path of the measures in the call.
        source: Alias of the groups.
    """
    groups = comparable_outputs(scope, outputs_of(scope, group))
    planned = tuple(plan_measure(scope, measure) for measure in measures)
    names = [output.name for output in groups] + [measure.name for measure in planned]
    refuse_repeated(
        names, path, 'rename one: "other_name:column" in group, or another name in measures'
    )
    types = {output.name: output.expression.type for output in groups}
    types |= {measure.name: measure.type for measure in planned}
    # A subquery, because in PostgreSQL names of the select list are visible in ORDER BY but not in HAVING.
    result = Scope(scope.catalog, groups_of(scope.relation, types), source=source)
    outputs = tuple(
        Output(result.of_column(column), name) for name, column in result.relation.columns.items()
    )
    return Groups(groups, planned, outputs, _order(scope, result, groups, order), source), result


def comparable_outputs(scope: Scope, outputs: Iterable[Output]) -> tuple[Output, ...]:
    """Return outputs whose expressions are cast to comparable types."""
    return tuple(
        replace(output, expression=comparable(scope, output.expression)) for output in outputs
    )


def _order(
    scope: Scope, result: Scope, groups: tuple[Output, ...], order: Iterable[Key]
) -> tuple[SortKey, ...]:
    """Plan sort keys, with the groups appended so that the order is total."""
    named = [Key(_named(scope, result, groups, key), key.descending, key.nulls) for key in order]
    keys = sort_keys(result, named)
    bare = [key.expression for key in keys if not (key.expression.steps or key.expression.applied)]
    taken = {expression.column.name for expression in bare}
    rest = [Key(Reference(output.name, "group")) for output in groups if output.name not in taken]
    return keys + sort_keys(result, rest)


def _named(scope: Scope, result: Scope, groups: tuple[Output, ...], key: Key) -> Reference:
    """Return the name of the group that a sort key means by its expression, as in "driver.name"."""
    reference = key.reference
    if not reference.owners and (
        reference.name in result.relation.columns or reference.name not in scope.relation.columns
    ):
        return reference
    value = comparable(scope, referenced(scope, reference))
    for output in groups:
        if output.expression.same(value):
            return Reference(output.name, reference.path)
    return reference
