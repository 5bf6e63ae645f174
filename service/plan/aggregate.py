"""
Measures and groups against a relation's columns.

The groups become a source of their own, whose columns are the groups' and the measures'
names: `having` and `order` speak of it as a filter and sort keys speak of any relation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.catalog import NOWHERE, Catalog, Column, Relation, Type
from service.errors import InvalidArgument
from service.plan.conditions import PG_CATALOG, Bound, Condition, Expression
from service.plan.filters import as_jsonb, plan_filter
from service.plan.hidden import as_json, without_hidden_fields
from service.plan.outputs import outputs_of, referenced, refuse_repeated, sort_keys
from service.plan.scope import Scope
from service.plan.types import FunctionCall, Groups, Output, PlannedMeasure, SortKey
from service.request.types import AggregateRequest, Item, Key, Measure, Reference

WHOLE = frozenset(["count", "array_agg"])
"""Functions that do not look into a value."""


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


def plan_grouped(
    scope: Scope,
    group: tuple[Item, ...],
    measures: Iterable[Measure],
    order: Iterable[Key],
    path: str,
    source: str = "t",
) -> tuple[Groups, Scope]:
    """
    Plan groups of rows; returns the scope of their names as well.

    Args:
        scope: Of the rows.
        group: What the rows of a group have in common.
        measures: Over them.
        order: Of the groups.
        path: Where measures stand in the call.
        source: The alias of the groups.
    """
    groups = comparable_outputs(scope, outputs_of(scope, group))
    planned = tuple(_measure(scope, measure) for measure in measures)
    names = [output.name for output in groups] + [measure.name for measure in planned]
    refuse_repeated(
        names, path, 'rename one: "other_name:column" in group, or another name in measures'
    )
    result = Scope(scope.catalog, _result(scope.relation, groups, planned), source=source)
    outputs = tuple(
        Output(result.of_column(column), name) for name, column in result.relation.columns.items()
    )
    return Groups(groups, planned, outputs, _order(scope, result, groups, order), source), result


def comparable_outputs(scope: Scope, outputs: Iterable[Output]) -> tuple[Output, ...]:
    """Return outputs with `comparable` expressions."""
    return tuple(
        replace(output, expression=comparable(scope, output.expression)) for output in outputs
    )


def comparable(scope: Scope, value: Expression) -> Expression:
    """
    Return a value, cast, where need be, to a type whose values can be compared.

    Raises:
        InvalidArgument: It has none.
    """
    without_hidden_fields(scope.catalog, value)
    value = as_jsonb(scope, value)
    if not value.type.comparable:
        raise InvalidArgument(
            f"type {value.type.sql} has no equality operator",
            path=value.path or "distinct",  # of rows that no select names
            column=value.column.name,
        )
    return value


def _measure(scope: Scope, measure: Measure) -> PlannedMeasure:
    operand, of = None, scope.named("text")
    if measure.item is not None:
        (output,) = outputs_of(scope, (measure.item,))
        operand = output.expression
        if measure.distinct:
            operand = comparable(scope, operand)
        if measure.cast is not None or measure.function not in WHOLE:
            without_hidden_fields(scope.catalog, operand)
        of = scope.catalog.plain(operand.type)
    cast = None
    if measure.cast is not None:
        cast = scope.catalog.type_named(measure.cast, f"{measure.path}.cast")
    separator = None
    if measure.separator is not None:
        separator = scope.bound(measure.separator, scope.named("text"))
    return PlannedMeasure(
        function=measure.function,
        operand=operand,
        type=cast or _measure_result(scope.catalog, measure.function, of),
        name=measure.name,
        path=measure.path,
        distinct=measure.distinct,
        separator=separator,
        where=plan_filter(scope, measure.where),
        cast=cast,
        # By schema: unqualified, PostgreSQL takes the one that fits best, whoever has made it.
        schema=scope.catalog.aggregates.get((measure.function, of.oid), PG_CATALOG),
    )


def _measure_result(catalog: Catalog, function: str, of: Type) -> Type:
    """Return the type of a function's result for values of a type."""
    named = catalog.types_by_name
    if function == "count":
        return named["int8"]
    if function in {"bool_and", "bool_or"}:
        return named["bool"]
    if function == "string_agg":
        return of if of.form == "binary" else named["text"]
    if function == "array_agg":
        return of if of.kind == "array" else catalog.array_of(of) or named["text"]
    other = {"sum": of.data_type.sum, "avg": of.data_type.average}.get(function)
    return named[other] if other else of


def _result(
    relation: Relation, groups: tuple[Output, ...], measures: tuple[PlannedMeasure, ...]
) -> Relation:
    """Return the groups as a relation."""
    types = {output.name: output.expression.type for output in groups}
    types.update({measure.name: measure.type for measure in measures})
    columns = {name: Column(name, type.oid, type.sql) for name, type in types.items()}
    # Of no schema, so that the catalog keeps nothing of what is another relation in each call.
    return Relation(NOWHERE, f"aggregate of {relation.name}", "view", columns)


def _order(
    scope: Scope, result: Scope, groups: tuple[Output, ...], order: Iterable[Key]
) -> tuple[SortKey, ...]:
    """Plan sort keys; the groups follow them, so that the order is one."""
    named = [Key(_named(scope, result, groups, key), key.descending, key.nulls) for key in order]
    keys = sort_keys(result, named)
    bare = [key.expression for key in keys if not (key.expression.steps or key.expression.applied)]
    taken = {expression.column.name for expression in bare}
    rest = [Key(Reference(output.name, "group")) for output in groups if output.name not in taken]
    return keys + sort_keys(result, rest)


def _named(scope: Scope, result: Scope, groups: tuple[Output, ...], key: Key) -> Reference:
    """Return the name of the group that a sort key spells out, as in "driver.name"."""
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
