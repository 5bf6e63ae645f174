"""
Plan filters, sort keys and measures, on columns of a relation and of related rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from service.catalog import Catalog, Type
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument
from service.plan.conditions import (
    PG_CATALOG,
    BoolExpr,
    Condition,
    Distance,
    Exists,
    Expression,
    IsTest,
    Not,
    PlannedMeasure,
    SortKey,
    TextRank,
)
from service.plan.hidden import without_hidden_fields
from service.plan.operators import as_jsonb, as_text, plan_comparison
from service.plan.scope import MeasuredScope, Scope
from service.request.filters import unknown_operator
from service.request.measures import SORTED
from service.request.requests import (
    Comparison,
    Connective,
    Embed,
    Filter,
    Key,
    Measure,
    Negation,
    Reference,
    Related,
)
from service.request.synonyms import container_hint

FUNCTIONS = {("percentile", False): "percentile_cont", ("percentile", True): "percentile_disc"}
"""PostgreSQL's names of functions that differ from ours, by our name and `discrete`."""
WHOLE = frozenset(["count", "array_agg"])
"""Functions whose result does not depend on hidden fields of a value, or has them hidden, too."""


def plan_filter(scope: Scope, where: Filter) -> Condition | None:
    """Plan a filter; None for an empty one."""
    if isinstance(where, Connective) and not where.any and not where.terms:
        return None
    return _condition(scope, where)


def plan_related(scope: Scope, embed: Embed) -> Condition | None:
    """
    Plan the condition of an embed's rows; None for all related rows.

    Args:
        scope: Scope of the related rows.
        embed: The embed.
    """
    return both(plan_filter(scope, embed.where), inner_condition(scope, embed.embeds))


def inner_condition(scope: Scope, embeds: Iterable[Embed]) -> Condition | None:
    """Plan the condition that rows have related rows in each inner embed."""
    return both(*inner_conditions(scope, embeds))


def inner_conditions(scope: Scope, embeds: Iterable[Embed]) -> tuple[Exists, ...]:
    """Plan the condition of each inner embed."""
    linked = ((embed, *scope.link(embed)) for embed in embeds if embed.inner)
    return tuple(Exists(link, plan_related(inner, embed)) for embed, link, inner, _ in linked)


def _condition(scope: Scope, where: Filter) -> Condition:
    if isinstance(where, Connective):
        return BoolExpr(where.any, tuple(_condition(scope, term) for term in where.terms))
    if isinstance(where, Comparison):
        return _comparison(scope, where)
    if isinstance(where, Related):
        if where.unknown_key is not None and not scope.has_relationship(where.name):
            raise _no_rows(scope, where, *where.unknown_key)
        embed = scope.embed(where.name, where.path)
        if {each.name for each in embed.measures} & {*_names(where.term)}:
            measured = _measured(scope, embed)
            if measured is not None:
                return _condition(measured, where.term)
        link, inner, _ = scope.link(embed)
        # One EXISTS for the entire term: in separate ones, different rows could match each condition.
        return Exists(link, both(plan_related(inner, embed), _condition(inner, where.term)))
    return Not(_condition(scope, where.term))


def _no_rows(scope: Scope, where: Related, key: str, path: str) -> InvalidArgument:
    """Build the refusal of a column's dict that has a key which is not an operator."""
    type = scope.value(Reference(where.name, where.path)).type
    if not key:
        return InvalidArgument("a condition names an operator", path=path)
    refusal = unknown_operator(key, path)
    document = type.form in DOCUMENTS
    hint = None
    if document or type.kind in {"array", "range", "multirange"}:
        hint = container_hint(where.name, key)
    if hint is None and (document or type.kind == "composite"):
        hint = f'a value inside of it is "{where.name}->{key[:80]}"'
    if hint is not None:
        refusal.details["hint"] = hint
    return refusal


def _comparison(scope: Scope, where: Comparison) -> Condition:
    reference = where.reference
    of_rows = _is_of_rows(scope, reference)
    if of_rows and where.word in {"null", "not null"}:  # no related row, or at least one
        embed = scope.embed(reference.name, reference.path)
        link, inner, _ = scope.link(embed)
        found = Exists(link, plan_related(inner, embed))
        return Not(found) if where.word == "null" else found
    if where.operator == "is":
        return _test(scope, scope.value(where.reference), where)
    if of_rows:
        raise _no_column(scope, reference)
    left = scope.expression(where.reference)
    return plan_comparison(scope, left, where)


def referenced(scope: Scope, reference: Reference) -> Expression:
    """Return a value of the row or of a to-one related row, for any use."""
    return without_hidden_fields(scope.catalog, value_of(scope, reference))


def value_of(scope: Scope, reference: Reference) -> Expression:
    """Return a value of the row or of a to-one related row, to be returned as it is."""
    if not reference.owners:
        return scope.value(reference)
    embed = scope.embed(reference.owners[0], reference.path)
    if len(reference.owners) == 1 and any(each.name == reference.name for each in embed.measures):
        measured = _measured(scope, embed)
        if measured is not None:
            return measured.value(replace(reference, owners=()))
    link, inner, many = scope.link(embed)
    if many:
        raise InvalidArgument(
            f'"{embed.name}" is a list of rows, so it has no single "{reference.name}"',
            path=reference.path,
        )
    found = value_of(inner, replace(reference, owners=reference.owners[1:]))
    where = plan_related(inner, embed)
    link = replace(link, where=where, embed=embed.name if where else "")
    return replace(found, source=scope.source, links=(link, *found.links), nullable=True)


def sort_keys(scope: Scope, order: Iterable[Key]) -> tuple[SortKey, ...]:
    """Plan sort keys; repeated ones are dropped."""
    keys: list[SortKey] = []
    for key in order:
        expression = _sorted_by(scope, key)
        if not expression.type.comparable:
            raise InvalidArgument(
                f"values of type {expression.type.sql} have no order",
                path=key.reference.path,
                column=expression.column.name,
            )
        if any(expression.same(earlier.expression) for earlier in keys):
            continue
        # PostgreSQL's default: null is larger than every value.
        nulls = key.nulls or ("first" if key.descending else "last")
        keys.append(SortKey(expression, key.descending, nulls))
    return tuple(keys)


def _sorted_by(scope: Scope, key: Key) -> Expression:
    """Plan the expression of a sort key: a value, its rank, or its distance from another value."""
    value = referenced(scope, key.reference)
    if key.near is not None:
        distance = Distance(
            scope.operator("<->", value.type, value.type), scope.bound(key.near, value.type)
        )
        # As double precision, whose text round-trips exactly, so that a token's sort key is exact.
        found = value.apply(distance, scope.named("float8")).cast(scope.named("float8"))
        return replace(found, nullable=True)
    if key.rank is not None:
        vector = value.type.name != "tsvector"
        if vector:
            value = as_text(scope, value)
        config = scope.bound(key.config, scope.named("regconfig")) if key.config else None
        ranked = TextRank(scope.bound(key.rank, scope.named("text")), config, vector)
        return replace(value.apply(ranked, scope.named("float4")), nullable=True)
    return value


def comparable(scope: Scope, value: Expression) -> Expression:
    """
    Return a value, cast if necessary to a type that has an equality operator.

    Raises:
        InvalidArgument: There is no such type.
    """
    without_hidden_fields(scope.catalog, value)
    value = as_jsonb(scope, value)
    if not value.type.comparable:
        raise InvalidArgument(
            f"type {value.type.sql} has no equality operator",
            path=value.path or "distinct",  # a column that the call does not name has no path
            column=value.column.name,
        )
    return value


def plan_measure(scope: Scope, measure: Measure) -> PlannedMeasure:
    """Plan an aggregate over the rows of a scope."""
    operand, of = None, scope.named("text")
    if measure.item is not None:
        operand = value_of(scope, measure.item.reference)
        if measure.distinct or measure.function in SORTED:
            operand = comparable(scope, operand)
        if measure.cast is not None or measure.function not in WHOLE:
            without_hidden_fields(scope.catalog, operand)
        of = scope.catalog.plain(operand.type)
    cast = None
    if measure.cast is not None:
        place = f"{measure.path}.cast"
        cast = scope.catalog.type_named(measure.cast, place), place
    separator = None
    if measure.separator is not None:
        separator = scope.bound(measure.separator, scope.named("text"))
    return PlannedMeasure(
        function=FUNCTIONS.get((measure.function, measure.discrete), measure.function),
        operand=operand,
        type=cast[0] if cast else _measure_result(scope.catalog, measure, of),
        name=measure.name,
        path=f"{measure.path}.{measure.function}",
        distinct=measure.distinct,
        separator=separator,
        fraction=scope.bound(measure.fraction, scope.named("float8")) if measure.fraction else None,
        within=measure.function in SORTED,
        order=_order_within(scope, measure, operand),
        where=plan_filter(scope, measure.where),
        cast=cast,
        # Schema-qualified; otherwise a function of the same name in the search_path could fit better.
        schema=scope.catalog.aggregates.get((measure.function, of.oid), PG_CATALOG),
    )


def _order_within(
    scope: Scope, measure: Measure, operand: Expression | None
) -> tuple[SortKey, ...]:
    """Plan ORDER BY of an aggregate."""
    keys = sort_keys(scope, measure.order)
    if measure.distinct and operand is not None:
        for key in keys:
            if not key.expression.same(operand):
                raise InvalidArgument(
                    "distinct values are sorted by themselves alone", path=key.expression.path
                )
        # The same text in both places: PostgreSQL compares the expressions, parameters included.
        keys = tuple(replace(key, expression=operand) for key in keys)
    return keys


def _measure_result(catalog: Catalog, measure: Measure, of: Type) -> Type:
    """Return the result type of a measure over values of type `of`."""
    function, named = measure.function, catalog.types_by_name
    if function in {"stddev", "variance"}:
        return named["float8" if of.form == "float" else "numeric"]
    if function == "percentile" and not measure.discrete:
        return of if of.name == "interval" else named["float8"]
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


def _measured(scope: Scope, embed: Embed) -> MeasuredScope | None:
    """Return the scope of an embed's measures; None if it has none, or has them in groups."""
    if not embed.measures or embed.group:
        return None
    link, inner, _ = scope.link(embed)
    # With the embed's name, because two embeds of a call may aggregate the same rows differently.
    link = replace(link, where=plan_related(inner, embed), embed=embed.name)
    measures = {each.name: plan_measure(inner, each) for each in embed.measures}
    return MeasuredScope(scope, link, measures)


def _names(where: Filter) -> Iterator[str]:
    """Yield the names of columns and relationships in a filter."""
    if isinstance(where, Connective):
        for term in where.terms:
            yield from _names(term)
    elif isinstance(where, Negation):
        yield from _names(where.term)
    else:
        yield where.reference.name if isinstance(where, Comparison) else where.name


def both(*conditions: Condition | None) -> Condition | None:
    """Return AND of conditions, where None is always true; None if all are None."""
    found = tuple(each for each in conditions if each is not None)
    return found[0] if len(found) == 1 else BoolExpr(False, found) if found else None


def _is_of_rows(scope: Scope, reference: Reference) -> bool:
    """Return whether a name is a relationship's."""
    if scope.has_column(reference.name) or reference.is_value:
        return False
    return scope.has_relationship(reference.name)


def _no_column(scope: Scope, reference: Reference) -> InvalidArgument:
    """Build the refusal of a comparison with related rows, which only columns allow."""
    name = reference.name
    _, inner, _ = scope.link(scope.embed(name, reference.path))
    column = next(iter(inner.relation.primary_key or inner.relation.columns), "column")
    return InvalidArgument(
        f'"{name}" is related rows, and no column',
        path=reference.path,
        hint=f'null asks for none, {{"is": "not null"}} for at least one, and a filter for one'
        f' that matches, as in {{"{name}": {{"{column}": …}}}}',
    )


def _test(scope: Scope, left: Expression, where: Comparison) -> IsTest | Not:
    if where.word not in {"null", "not null"} and left.type.form != "boolean":
        raise InvalidArgument(
            f'"{left.column.name}" is {left.type.sql}, and only a boolean is {where.word}',
            path=left.path,
            column=left.column.name,
        )
    if where.word == "not null" and scope.catalog.plain(left.type).kind == "composite":
        # For a composite, IS NOT NULL requires all fields to be not null: it is not the negation of IS NULL.
        return Not(IsTest(left, "NULL"))
    return IsTest(left, where.word.upper())
