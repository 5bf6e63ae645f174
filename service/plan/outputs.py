"""
Plan select lists and sort keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from service.catalog import Catalog, Column, Relation
from service.errors import InvalidArgument, NotAuthorized, clip
from service.plan.conditions import Expression, SortKey
from service.plan.hidden import has_hidden_field
from service.plan.plans import Output, truncated
from service.plan.predicates import value_of
from service.plan.scope import Scope
from service.request.requests import Item

MAX_SORT_KEYS = 64
"""Columns to sort rows by that have no key."""


def outputs_of(scope: Scope, select: tuple[Item, ...] | None) -> tuple[Output, ...]:
    """
    Plan a select list; None means all columns that the role may read.

    Repeated items are dropped; different items of one name are refused.
    """
    if select is None:
        return _all(scope)
    left_out = {_left_out(scope, item, select) for item in select if item.left_out}
    found: dict[str, Output] = {}
    for item in select:
        for output in _item(scope, item, left_out):
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
        + tuple(SortKey(each, False, "last") for each in expressions if not _has(order, each)),
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
    rest = [key for key in order if not _has(first, key.expression)]
    return (*first, *rest)


def distinct_keys(outputs: tuple[Output, ...], order: tuple[SortKey, ...]) -> tuple[SortKey, ...]:
    """Return the sort keys of DISTINCT rows: the given ones, then the remaining outputs."""
    keys = [_positioned(outputs, key) for key in order]
    taken = {key.position for key in keys}
    for position, output in enumerate(outputs, 1):
        if position not in taken and output.expression.type.comparable:
            keys.append(SortKey(output.expression, False, "last", position))
    return tuple(keys)


def _all(scope: Scope) -> tuple[Output, ...]:
    return tuple(
        Output(scope.of_column(column), column.name)
        for column in scope.relation.columns.values()
        if column.selectable
    )


def _left_out(scope: Scope, item: Item, select: tuple[Item, ...]) -> str:
    """Return the name of a column excluded from "*"; raise InvalidArgument if there is no "*"."""
    name = scope.value(item.reference).column.name
    if not any(each.reference.every for each in select):
        raise InvalidArgument(
            '"-" leaves a column out of "*"',
            path=item.reference.path,
            hint=f'as in ["*", "-{clip(name)}"]',
        )
    return name


def _item(scope: Scope, item: Item, left_out: Collection[str]) -> tuple[Output, ...]:
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
        return tuple(output for output in _all(scope) if output.name not in left_out)
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


def _has(keys: Sequence[SortKey], expression: Expression) -> bool:
    return any(key.expression.same(expression) for key in keys)
