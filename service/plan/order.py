"""
What the sort keys of a page must be, so that the next page begins where it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.catalog import Catalog, Column, Relation
from service.errors import InvalidArgument
from service.plan.conditions import Expression
from service.plan.expressions import Scope
from service.plan.types import Output, SortKey
from service.plan.veiled import is_veiled

MOST = 64
"""Columns by which rows without a key are told apart."""


def row_key(catalog: Catalog, relation: Relation) -> tuple[str, ...]:
    """Give the columns that tell rows apart: the primary key, or a unique key without nulls."""
    for key in relation.unique_keys:
        columns = [relation.columns[name] for name in key.columns]
        if all(_is_sortable(catalog, column) and not column.nullable for column in columns):
            return key.columns
    return ()


def by_key(scope: Scope, order: tuple[SortKey, ...]) -> tuple[tuple[SortKey, ...], bool]:
    """
    Add the row's key behind the sort keys; and say whether there is one.

    Where there is none, rows that are sorted anyway are sorted by all they have: PostgreSQL
    may give equals in another order on each page, and equal in everything they are alike.
    """
    columns = row_key(scope.catalog, scope.relation)
    last = columns or (_sortable(scope) if order else ())
    expressions = [scope.of_column(scope.relation.columns[name]) for name in last]
    return (
        order
        + tuple(SortKey(each, False, "last") for each in expressions if not _has(order, each)),
        bool(columns),
    )


def leading(distinct: Sequence[Expression], order: tuple[SortKey, ...]) -> tuple[SortKey, ...]:
    """Put what rows are distinct on before the other sort keys, as DISTINCT ON demands."""
    first = []
    for expression in distinct:
        given = [key for key in order if key.expression.same(expression)]
        # spelled alike in both places, since PostgreSQL compares no more than the spelling
        first.append(
            replace((given or [SortKey(expression, False, "last")])[0], expression=expression)
        )
    rest = [key for key in order if not _has(first, key.expression)]
    return (*first, *rest)


def of_distinct(outputs: tuple[Output, ...], order: tuple[SortKey, ...]) -> tuple[SortKey, ...]:
    """
    Sort distinct rows by their outputs, the given keys first.

    Raises:
        InvalidArgument: A sort key is not selected, so that it has no single value.
    """
    keys = [_positioned(outputs, key) for key in order]
    taken = {key.position for key in keys}
    for position, output in enumerate(outputs, 1):
        if position not in taken and output.expression.type.comparable:
            keys.append(SortKey(output.expression, False, "last", position))
    return tuple(keys)


def _sortable(scope: Scope) -> tuple[str, ...]:
    columns = scope.relation.columns.values()
    return tuple(each.name for each in columns if _is_sortable(scope.catalog, each))[:MOST]


def _is_sortable(catalog: Catalog, column: Column) -> bool:
    comparable = catalog.type(column.type).comparable
    return column.selectable and comparable and not is_veiled(catalog, column.type)


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
