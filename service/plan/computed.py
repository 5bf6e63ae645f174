"""
What functions of a row add to it: computed columns, and computed relationships.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from service.catalog import Catalog, Column, Relation
from service.functions import Function
from service.plan.remembered import remembered

UNANSWERED = frozenset([2249, 2278])
"""The oids of `record` and `void`, which are no types of columns."""


@dataclass(frozen=True, slots=True)
class Computed:
    """A column whose value a function of the row gives."""

    function: Function
    column: Column


def computed_columns(catalog: Catalog, relation: Relation) -> Mapping[str, Computed]:
    """Find the functions of a relation's rows that give one value, by name."""
    if (relation.schema, relation.name) not in _row_functions(catalog):
        return {}  # of groups, say, which are another relation in each call
    return _computed_columns(catalog, relation)


@remembered
def _computed_columns(catalog: Catalog, relation: Relation) -> Mapping[str, Computed]:
    return {
        function.name: Computed(function, _column(catalog, function))
        for function in _of_row(catalog, relation)
        if not function.many
        and function.result not in UNANSWERED
        and rows_of(catalog, function) is None
        and function.name not in relation.columns
    }


def computed_relationships(
    catalog: Catalog, relation: Relation
) -> Iterator[tuple[Function, Relation]]:
    """Find the functions of a relation's rows that give rows of a served one."""
    for function in _of_row(catalog, relation):
        target = rows_of(catalog, function)
        if target is not None:
            yield function, keyless(catalog, target)


def rows_of(catalog: Catalog, function: Function) -> Relation | None:
    """Give the served relation whose rows a function returns, perhaps as a domain, if any."""
    if function.procedure or function.outputs:
        return None
    result = catalog.plain(catalog.type(function.result))
    if result.kind != "composite":
        return None
    return catalog.relations.get((result.schema, result.name))


@remembered
def keyless(_: Catalog, relation: Relation) -> Relation:
    """
    Give a relation as the source of its rows that a function is.

    It may give a row twice, so no key tells them apart; and its order is its own.
    """
    return replace(relation, primary_key=(), unique_keys=())


def _of_row(catalog: Catalog, relation: Relation) -> list[Function]:
    """
    Give the functions of a relation's rows; of two alike, that of the relation's schema last.

    They read the whole row, so PostgreSQL lets nobody use them who may not.
    """
    if not relation.readable:
        return []
    found = _row_functions(catalog).get((relation.schema, relation.name), [])
    return sorted(found, key=lambda function: function.schema == relation.schema)


@remembered
def _row_functions(catalog: Catalog) -> Mapping[tuple[str, str], list[Function]]:
    found: dict[tuple[str, str], list[Function]] = {}
    for function in (each for overloads in catalog.functions.values() for each in overloads):
        if function.procedure or function.outputs or len(function.inputs) != 1:
            continue
        (argument,) = function.inputs
        row = catalog.type(argument.type)
        if row.kind == "composite" and (row.schema, row.name) in catalog.relations:
            found.setdefault((row.schema, row.name), []).append(function)
    return found


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
