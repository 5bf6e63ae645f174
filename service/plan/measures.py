"""
Measures and groups against a relation's columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.catalog import Catalog, Type
from service.errors import InvalidArgument
from service.plan.conditions import PG_CATALOG, Expression
from service.plan.expressions import Scope
from service.plan.filters import plan_filter
from service.plan.outputs import outputs_of
from service.plan.types import Output, PlannedMeasure, kept
from service.plan.veiled import unveiled
from service.request.types import Item, Measure

SUMS = {"int2": "int8", "int4": "int8", "int8": "numeric"}
"""The type of a sum, where it is not that of its column."""
AVERAGES = {"int2": "numeric", "int4": "numeric", "int8": "numeric", "float4": "float8"}
WHOLE = frozenset(["count", "array_agg"])
"""Functions that do not look into a value."""


def plan_groups(scope: Scope, group: tuple[Item, ...]) -> tuple[Output, ...]:
    """
    Resolve what the rows of a group have in common.

    Raises:
        InvalidArgument: A name is unknown, or its values cannot be told apart.
    """
    return told_apart(scope, outputs_of(scope, group))


def plan_measures(scope: Scope, measures: Iterable[Measure]) -> tuple[PlannedMeasure, ...]:
    """
    Resolve measures.

    Raises:
        InvalidArgument: A name is unknown.
    """
    return tuple(_measure(scope, measure) for measure in measures)


def refuse_repeated(
    groups: Iterable[Output], measures: Iterable[PlannedMeasure], path: str
) -> None:
    """
    Keep the names of groups and measures apart.

    Raises:
        InvalidArgument: Two are called alike.
    """
    names = [output.name for output in groups] + [measure.name for measure in measures]
    seen: set[str] = set()
    for name in names:
        if kept(name) in seen:
            raise InvalidArgument(
                f'"{name[:80]}" stands twice in the answer',
                path=path,
                hint='rename one: "other_name:column" in group, or another name in measures',
            )
        seen.add(kept(name))


def told_apart(scope: Scope, outputs: Iterable[Output]) -> tuple[Output, ...]:
    """
    Give outputs the types in which rows of them can be told apart.

    Raises:
        InvalidArgument: One has none.
    """
    return tuple(
        replace(output, expression=distinguishable(scope, output.expression)) for output in outputs
    )


def distinguishable(scope: Scope, value: Expression) -> Expression:
    """
    Give a value a type whose values can be told apart.

    Raises:
        InvalidArgument: It has none.
    """
    unveiled(scope.catalog, value)
    if value.type.name == "json" and value.type.schema == "pg_catalog":
        jsonb = scope.named("jsonb")
        return replace(value, cast=jsonb, type=jsonb)
    if not value.type.comparable:
        raise InvalidArgument(
            f"values of type {value.type.sql} cannot be told apart",
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
            operand = distinguishable(scope, operand)
        if measure.cast is not None or measure.function not in WHOLE:
            unveiled(scope.catalog, operand)
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
        type=cast or _result(scope.catalog, measure.function, of),
        name=measure.name,
        path=measure.path,
        distinct=measure.distinct,
        separator=separator,
        where=plan_filter(scope, measure.where),
        cast=cast,
        schema=scope.catalog.aggregates.get((measure.function, of.oid), PG_CATALOG),
    )


def _result(catalog: Catalog, function: str, of: Type) -> Type:
    """Give the type that a function gives for values of a type."""
    named = catalog.types_by_name
    if function == "count":
        return named["int8"]
    if function in {"bool_and", "bool_or"}:
        return named["bool"]
    if function == "string_agg":
        return of if of.name == "bytea" else named["text"]
    if function == "array_agg":
        return of if of.kind == "array" else catalog.array_of(of) or named["text"]
    other = {"sum": SUMS, "avg": AVERAGES}.get(function, {}).get(of.name)
    return named[other] if other and of.schema == "pg_catalog" else of
