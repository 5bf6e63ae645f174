"""
Values that PostgreSQL computes out of those of the row that is there, for an update.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.catalog import Catalog, Column, Type
from service.errors import InvalidArgument, NotAuthorized
from service.plan.conditions import Bound, Operator
from service.plan.hidden import has_hidden_field
from service.plan.plans import Computed, Part, PathStep
from service.plan.scope import Scope
from service.request.assignments import COMPUTING
from service.request.requests import Assignment, Operand

Planned = tuple[tuple[Bound, ...], Operator | None]
_ARITHMETIC = {"add": "+", "multiply": "*"}


def computing(catalog: Catalog, type: Type) -> tuple[str, ...]:
    """Return the operators that compute values of a type, as callers write them."""
    type = catalog.plain(type)
    if type.form == "json":
        return tuple(COMPUTING)
    if type.kind == "array":
        compared = _compared(catalog, type)
        return ("$append", "$prepend", *(["$remove"] if compared else []))
    known = type.data_type
    return (*(["$add"] if known.added else []), *(["$multiply"] if known.factor else []))


def plan_computed(scope: Scope, column: Column, given: Sequence[Assignment]) -> Computed:
    """
    Plan a value that is computed.

    Args:
        scope: Of the relation.
        column: Which column.
        given: What the call says of it: one, or several paths.

    Raises:
        NotAuthorized: The caller's role may not read the column.
        InvalidArgument: Values of its type are not computed so.
    """
    if not column.selectable:
        raise NotAuthorized(
            f'"{column.name}" may not be read, and its new value would be computed out of it',
            path=given[0].path,
            column=column.name,
            hint="it takes the right to select the column, beside the one to update it",
        )
    type = scope.catalog.plain(scope.catalog.type(column.type))
    document, known = type.form == "json", computing(scope.catalog, type)
    plan = _plan_document if document else _plan_array if type.kind == "array" else _plan_plain
    parts = []
    for each in given:
        if each.operand is None:
            raise TypeError("a default is not computed")
        if each.steps and not document:
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}: paths are set in json and jsonb',
                path=each.path,
                column=column.name,
            )
        word = f"${each.computing}"
        if each.computing and word not in known:
            raise InvalidArgument(
                f'"{column.name}" is {type.sql}, which has no "{word}"',
                path=f"{each.path}.{word}",
                column=column.name,
                hint=f"there is {', '.join(known)}" if known else "it takes a value",
            )
        steps = tuple(
            PathStep(scope.bound(step.operand, scope.named("text")), step.index)
            for step in each.steps
        )
        operands, operator = plan(scope, type, each, each.operand)
        parts.append(Part(each.computing, operands, operator, steps, each.path))
    return Computed(column, type, document, tuple(parts))


def _plan_document(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Planned:
    if given.computing in _ARITHMETIC:
        number = scope.bound(operand, scope.named("numeric"))
        return (number,), Operator(_ARITHMETIC[given.computing])
    other = scope.named("_text" if given.computing == "remove" else "jsonb")
    return (scope.bound(operand, other),), None


def _plan_array(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Planned:
    if given.computing == "remove":
        element = scope.catalog.type(type.element)
        return tuple(scope.bound(each, element) for each in given.items), None
    return (scope.bound(operand, type),), None


def _plan_plain(scope: Scope, type: Type, given: Assignment, operand: Operand) -> Planned:
    known = type.data_type
    other = scope.named(known.added if given.computing == "add" else known.factor)
    return (scope.bound(operand, other),), Operator(_ARITHMETIC[given.computing])


def _compared(catalog: Catalog, array: Type) -> bool:
    """Return whether elements of an array are compared, as those are that are removed."""
    element = catalog.plain(catalog.type(array.element))
    return element.comparable and not has_hidden_field(catalog, element.oid)
