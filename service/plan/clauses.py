"""
Plan the clauses of a query, on columns of a relation and of related rows: select lists, filters, sort keys and
measures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from service.catalog import Catalog, Column, Relation, Type
from service.datatypes import DOCUMENTS
from service.errors import InvalidArgument, NotAuthorized, clip
from service.plan.operators import as_jsonb, as_text, plan_comparison
from service.plan.plans import (
    PG_CATALOG,
    BoolExpr,
    Condition,
    Distance,
    Exists,
    Expression,
    IsTest,
    Not,
    Output,
    PlannedMeasure,
    SortKey,
    TextRank,
    truncated,
)
from service.plan.scope import MeasuredScope, Scope, has_hidden_field, without_hidden_fields
from service.request.embeds import SORTED
from service.request.filters import unknown_operator
from service.request.requests import (
    Comparison,
    Connective,
    Embed,
    Filter,
    Item,
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
        if {each.name for each in embed.measures} & {*_filter_names(where.term)}:
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
        return _plan_is(scope, scope.value(where.reference), where)
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
    # With the condition of the embed, so that the value is of the row that the embed shows.
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
        found = value.apply(distance, scope.builtin("float8")).cast(scope.builtin("float8"))
        return replace(found, nullable=True)
    if key.rank is not None:
        vector = value.type.name != "tsvector"
        if vector:
            value = as_text(scope, value)
        config = scope.bound(key.config, scope.builtin("regconfig")) if key.config else None
        ranked = TextRank(scope.bound(key.rank, scope.builtin("text")), config, vector)
        return replace(value.apply(ranked, scope.builtin("float4")), nullable=True)
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
    operand, of, fraction = None, scope.builtin("text"), measure.fraction
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
        separator = scope.bound(measure.separator, scope.builtin("text"))
    return PlannedMeasure(
        function=FUNCTIONS.get((measure.function, measure.discrete), measure.function),
        operand=operand,
        type=cast[0] if cast else _measure_result(scope.catalog, measure, of),
        name=measure.name,
        path=f"{measure.path}.{measure.function}",
        distinct=measure.distinct,
        separator=separator,
        fraction=scope.bound(fraction, scope.builtin("float8")) if fraction else None,
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


def _filter_names(where: Filter) -> Iterator[str]:
    """Yield the names of columns and relationships in a filter."""
    if isinstance(where, Connective):
        for term in where.terms:
            yield from _filter_names(term)
    elif isinstance(where, Negation):
        yield from _filter_names(where.term)
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


def _plan_is(scope: Scope, left: Expression, where: Comparison) -> IsTest | Not:
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


MAX_SORT_KEYS = 64
"""Columns to sort rows by that have no key."""


def outputs_of(scope: Scope, select: tuple[Item, ...] | None) -> tuple[Output, ...]:
    """
    Plan a select list; None means all columns that the role may read.

    Repeated items are dropped; different items of one name are refused.
    """
    if select is None:
        return _all_columns(scope)
    left_out = {_excluded_column(scope, item, select) for item in select if item.left_out}
    found: dict[str, Output] = {}
    for item in select:
        for output in _item_outputs(scope, item, left_out):
            # The same value again is no contradiction: ["due", "*"] puts one column first.
            earlier = found.setdefault(output.name, output)
            if not earlier.expression.same(output.expression):
                raise InvalidArgument(
                    f'"{output.name}" stands twice in the select list',
                    path=item.reference.path,
                    hint='write "other_name:column" to tell them apart',
                )
    if left_out and not found:
        raise InvalidArgument("no column is left", path=select[0].reference.path)
    return tuple(found.values())


def check_readable(relation: Relation) -> None:
    """
    Refuse to read a relation that has columns, if the role may select none of them.

    PostgreSQL itself may not refuse: the catalog can be older than a GRANT, and a list of no columns
    is read by any right to select.

    Raises:
        NotAuthorized: The role may select no column.
    """
    columns = relation.columns.values()
    if columns and not any(each.selectable for each in columns):
        raise NotAuthorized(
            f'the database\'s role may read no column of "{relation.name}"',
            relation=relation.name,
            sqlstate="42501",
        )


def refuse_repeated(names: Iterable[str], path: str, hint: str) -> set[str]:
    """Return names as PostgreSQL truncates them; raise InvalidArgument if two are then equal."""
    seen: set[str] = set()
    for name in names:
        if truncated(name) in seen:
            raise InvalidArgument(f'"{name[:80]}" stands twice in the answer', path=path, hint=hint)
        seen.add(truncated(name))
    return seen


def row_key(catalog: Catalog, relation: Relation) -> tuple[str, ...]:
    """Return the columns that identify a row: the primary key, or a unique key without nulls."""
    # Rows of tables that inherit from it may have the same key, so that pages would lose rows.
    if relation.has_children:
        return ()
    for key in relation.unique_keys:
        columns = [relation.columns[name] for name in key.columns]
        # PostgreSQL does not record NOT NULL for columns of views.
        whole = key.columns == relation.primary_key or not any(each.nullable for each in columns)
        if whole and all(_is_sortable(catalog, column) for column in columns):
            return key.columns
    return ()


def with_row_key(scope: Scope, order: tuple[SortKey, ...]) -> tuple[tuple[SortKey, ...], bool]:
    """
    Return sort keys with the columns of the row's key appended, and whether the relation has a key.

    Sorted rows without a key are sorted by all their columns: otherwise PostgreSQL could order ties
    differently on each page. Rows that are equal in all columns are interchangeable.
    """
    columns = row_key(scope.catalog, scope.relation)
    last = columns or (_sortable(scope) if order else ())
    expressions = [scope.of_column(scope.relation.columns[name]) for name in last]
    return (
        order
        + tuple(SortKey(each, False, "last") for each in expressions if not _sorts_by(order, each)),
        bool(columns),
    )


def distinct_first(
    distinct: Sequence[Expression], order: tuple[SortKey, ...]
) -> tuple[SortKey, ...]:
    """Return sort keys with those of DISTINCT ON first, as it demands."""
    first = []
    for expression in distinct:
        given = [key for key in order if key.expression.same(expression)]
        # The same text in both places: PostgreSQL compares the expressions, parameters included.
        first.append(
            replace((given or [SortKey(expression, False, "last")])[0], expression=expression)
        )
    # Among rows that are equal in these, DISTINCT ON keeps the first by the rest of the order.
    rest = [key for key in order if not _sorts_by(first, key.expression)]
    return (*first, *rest)


def distinct_keys(outputs: tuple[Output, ...], order: tuple[SortKey, ...]) -> tuple[SortKey, ...]:
    """Return the sort keys of DISTINCT rows: the given ones, then the remaining outputs."""
    keys = [_positioned(outputs, key) for key in order]
    taken = {key.position for key in keys}
    for position, output in enumerate(outputs, 1):
        if position not in taken and output.expression.type.comparable:
            keys.append(SortKey(output.expression, False, "last", position))
    return tuple(keys)


def _all_columns(scope: Scope) -> tuple[Output, ...]:
    return tuple(
        Output(scope.of_column(column), column.name)
        for column in scope.relation.columns.values()
        if column.selectable
    )


def _excluded_column(scope: Scope, item: Item, select: tuple[Item, ...]) -> str:
    """Return the name of a column excluded from "*"; raise InvalidArgument if there is no "*"."""
    name = scope.value(item.reference).column.name
    if not any(each.reference.every for each in select):
        raise InvalidArgument(
            '"-" leaves a column out of "*"',
            path=item.reference.path,
            hint=f'as in ["*", "-{clip(name)}"]',
        )
    return name


def _item_outputs(scope: Scope, item: Item, left_out: Collection[str]) -> tuple[Output, ...]:
    reference = item.reference
    if item.left_out:
        return ()
    if reference.every:
        if reference.owners:
            raise InvalidArgument(
                '"*" is for the columns of the row itself',
                path=reference.path,
                hint=f'embed={{"{clip(reference.owners[0])}": true}} has all columns of related rows',
            )
        if reference.steps or item.alias or reference.cast:
            raise InvalidArgument('"*" stands alone', path=reference.path)
        return tuple(output for output in _all_columns(scope) if output.name not in left_out)
    last = reference.steps[-1].key if reference.steps else reference.name
    return (Output(value_of(scope, reference), item.alias or last),)


def _sortable(scope: Scope) -> tuple[str, ...]:
    columns = scope.relation.columns.values()
    return tuple(each.name for each in columns if _is_sortable(scope.catalog, each))[:MAX_SORT_KEYS]


def _is_sortable(catalog: Catalog, column: Column) -> bool:
    comparable = catalog.type(column.type).comparable
    return column.selectable and comparable and not has_hidden_field(catalog, column.type)


def _positioned(outputs: tuple[Output, ...], key: SortKey) -> SortKey:
    for position, output in enumerate(outputs, 1):
        if output.expression.same(key.expression):
            return SortKey(key.expression, key.descending, key.nulls, position)
    raise InvalidArgument(
        f'distinct rows can be sorted by what is selected, and "{key.expression.column.name}"'
        " is not",
        path=key.expression.path,
    )


def _sorts_by(keys: Sequence[SortKey], expression: Expression) -> bool:
    return any(key.expression.same(expression) for key in keys)
