"""
Select lists and sort keys: values of a row, and of the one row that an embed has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.errors import InvalidArgument
from service.plan.conditions import Expression
from service.plan.expressions import Scope
from service.plan.filters import plan_related
from service.plan.types import Output, SortKey
from service.plan.veiled import unveiled
from service.request.types import Item, Key, Reference


def outputs_of(scope: Scope, select: tuple[Item, ...] | None) -> tuple[Output, ...]:
    """
    Resolve a select list; None stands for all columns that may be read.

    What stands twice counts once.

    Raises:
        InvalidArgument: A name is unknown, or two values would have the same one.
    """
    if select is None:
        return _all(scope)
    found: dict[str, Output] = {}
    for item in select:
        for output in _item(scope, item):
            earlier = found.setdefault(output.name, output)
            if not earlier.expression.same(output.expression):
                raise InvalidArgument(
                    f'"{output.name}" stands twice in the select list',
                    path=item.reference.path,
                    hint='write "other_name:column" to tell them apart',
                )
    return tuple(found.values())


def sort_keys(scope: Scope, order: Iterable[Key]) -> tuple[SortKey, ...]:
    """
    Resolve sort keys; a column that stands twice counts once.

    Raises:
        InvalidArgument: A name is unknown, or its type has no order.
    """
    keys: list[SortKey] = []
    for key in order:
        expression = referred(scope, key.reference)
        if not expression.type.comparable:
            raise InvalidArgument(
                f"values of type {expression.type.sql} have no order",
                path=key.reference.path,
                column=expression.column.name,
            )
        if any(expression.same(earlier.expression) for earlier in keys):
            continue
        nulls = key.nulls or ("first" if key.descending else "last")
        keys.append(SortKey(expression, key.descending, nulls))
    return tuple(keys)


def _all(scope: Scope) -> tuple[Output, ...]:
    return tuple(
        Output(scope.of_column(column), column.name)
        for column in scope.relation.columns.values()
        if column.selectable
    )


def _item(scope: Scope, item: Item) -> tuple[Output, ...]:
    reference = item.reference
    if reference.name == "*" and "*" not in scope.relation.columns:
        if reference.steps or item.alias or item.cast:
            raise InvalidArgument('"*" stands alone', path=reference.path)
        return _all(scope)
    expression = _value(scope, reference)
    if item.cast:
        unveiled(scope.catalog, expression)
        cast = scope.catalog.type_named(item.cast, reference.path)
        expression = replace(expression, type=cast, cast=cast)
    last = reference.steps[-1].key if reference.steps else reference.name
    return (Output(expression, item.alias or last),)


def referred(scope: Scope, reference: Reference) -> Expression:
    """
    Resolve a reference, perhaps to the one related row, for any use.

    Raises:
        InvalidArgument: A name is unknown, there may be many related rows, or the value has
            hidden fields.
    """
    return unveiled(scope.catalog, _value(scope, reference))


def _value(scope: Scope, reference: Reference) -> Expression:
    if not reference.owners:
        return scope.value(reference)
    link, inner, embed, many = scope.linked(reference.owners[0], reference.path)
    if many:
        raise InvalidArgument(
            f'"{embed.name}" is a list of rows, so it has no single "{reference.name}"',
            path=reference.path,
        )
    found = _value(inner, replace(reference, owners=reference.owners[1:]))
    where = plan_related(inner, embed)
    link = replace(link, where=where, embed=embed.name if where else "")
    return replace(found, source=scope.source, links=(link, *found.links), nullable=True)
