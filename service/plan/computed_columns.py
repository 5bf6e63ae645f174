"""
Computed columns: functions of a row that return one value, and the choice among overloads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.catalog import Catalog, Column, Function, Relation
from service.errors import InvalidArgument, UnknownName
from service.plan.cached_lookups import cached_per_catalog
from service.plan.joins import has_row_functions, returned_relation, row_functions
from service.request.call_request import signature
from service.request.requests import Reference

UNANSWERED = frozenset([2249, 2278])
"""The oids of `record` and `void`, which cannot be the type of a column."""


@dataclass(frozen=True, slots=True)
class ComputedColumn:
    """A column whose value a function computes from the row and optional further arguments."""

    function: Function
    column: Column

    @property
    def required(self) -> frozenset[str]:
        """Names of the required arguments, the row excluded."""
        return frozenset(each.name for each in self.function.inputs[1:] if not each.has_default)

    @property
    def names(self) -> frozenset[str]:
        """Names of all arguments, the row excluded."""
        return frozenset(each.name for each in self.function.inputs[1:] if each.name)


def computed_columns(
    catalog: Catalog, relation: Relation
) -> Mapping[str, tuple[ComputedColumn, ...]]:
    """Return the computed columns of a relation, overloads by name."""
    if not has_row_functions(catalog, relation):
        return {}  # not cached: groups, for example, are another relation in each call
    return _computed_columns(catalog, relation)


def resolve_computed(
    catalog: Catalog, overloads: tuple[ComputedColumn, ...], reference: Reference
) -> ComputedColumn:
    """
    Return the computed column that a name with its arguments means.

    As in a call of a function, it is the overload that takes these names and uses the fewest defaults.

    Raises:
        InvalidArgument: No overload takes these arguments, or several do; `candidates` names them.
    """
    given = {name for name, _ in reference.args}
    fitting = [each for each in overloads if each.required <= given <= each.names]
    if not fitting:
        raise _misfit(catalog, overloads, reference)
    fewest = min(len(each.names) for each in fitting)
    found = [each for each in fitting if len(each.names) == fewest]
    # Among equal ones, that of the relation's schema wins; row_functions returns it last.
    closest = [each for each in found if each.function.schema == found[-1].function.schema]
    if len(closest) > 1:
        raise InvalidArgument(
            f'several functions "{reference.name}" take these arguments',
            path=reference.path,
            candidates=[signature(each.function, catalog) for each in closest],
        )
    return closest[0]


def _misfit(
    catalog: Catalog, overloads: tuple[ComputedColumn, ...], reference: Reference
) -> InvalidArgument:
    signatures = [signature(each.function, catalog) for each in overloads[:5]]
    hint = f"it is {' or '.join(signatures)}"
    known = frozenset().union(*(each.names for each in overloads))
    for name, operand in reference.args:
        if name not in known:
            of = f'computed column "{reference.name}"'
            found = UnknownName("argument", name, sorted(known), of, operand.path)
            found.details.setdefault("hint", hint)
            return found
    if len(overloads) > 1:
        return InvalidArgument(
            f'no function "{reference.name}" takes these arguments',
            path=reference.path,
            candidates=signatures,
        )
    missing = min(overloads[0].required - {name for name, _ in reference.args})
    return InvalidArgument(
        f'the argument "{missing}" of "{reference.name}" is missing',
        path=reference.path,
        hint=f'{hint}, as in {{"column": "{reference.name}", "args": {{"{missing}": …}}}}',
    )


@cached_per_catalog
def _computed_columns(
    catalog: Catalog, relation: Relation
) -> Mapping[str, tuple[ComputedColumn, ...]]:
    found: dict[str, tuple[ComputedColumn, ...]] = {}
    for function in row_functions(catalog, relation):
        if (
            not function.many
            and function.result not in UNANSWERED
            and returned_relation(catalog, function) is None
            and function.name not in relation.columns
            and _can_be_given(catalog, function)
        ):
            computed = ComputedColumn(function, _column(catalog, function))
            found[function.name] = (*found.get(function.name, ()), computed)
    return found


def _can_be_given(catalog: Catalog, function: Function) -> bool:
    """Return whether a call can give all arguments beside the row: each is typed, and named or optional."""
    return all(
        (each.name or each.has_default)
        and each.mode != "variadic"
        and catalog.type(each.type).kind != "pseudo"
        for each in function.inputs[1:]
    )


def _column(catalog: Catalog, function: Function) -> Column:
    type = catalog.type(function.result)
    return Column(
        function.name,
        function.result,
        type.sql,
        comment=function.comment,
        insertable=False,
        updatable=False,
    )
