"""
What all roles together may use, for what there is one of: the models, and procedures over them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from service.catalog import Catalog, Column, Relation, Type
from service.functions import Function

Place = tuple[str, str]


def whole_of(catalogs: Sequence[Catalog]) -> Catalog:
    """Join the catalogs of several roles: what any of them may use, in whatever order they come."""
    first, *rest = catalogs
    if not rest:
        return first
    types: dict[int, Type] = {}
    relations: dict[Place, list[Relation]] = defaultdict(list)
    functions: dict[Place, dict[tuple[int, ...], Function]] = defaultdict(dict)
    for catalog in catalogs:
        types |= catalog.types
        for place, relation in catalog.relations.items():
            relations[place].append(relation)
        for place, overloads in catalog.functions.items():
            for each in overloads:
                functions[place].setdefault(tuple(it.type for it in each.inputs), each)
    return replace(
        first,
        relations={place: _relation(alike) for place, alike in relations.items()},
        types=types,
        functions={place: tuple(alike.values()) for place, alike in functions.items()},
    )


def _relation(alike: Sequence[Relation]) -> Relation:
    """Join what roles know of one relation: a key is known to whom all of its columns are."""
    columns: dict[str, list[Column]] = defaultdict(list)
    for relation in alike:
        for name, column in relation.columns.items():
            columns[name].append(column)
    primary = next((each.primary_key for each in alike if each.primary_key), ())
    indexes = {index.name: index for each in alike for index in each.unique_indexes}.values()
    keys = {key.name: key for each in alike for key in each.unique_keys}.values()
    return replace(
        alike[0],
        columns={name: _column(found) for name, found in columns.items()},
        primary_key=primary,
        unique_keys=tuple(sorted(keys, key=lambda key: key.columns != primary)),
        unique_indexes=tuple(indexes),
        constraints={name: of for each in alike for name, of in each.constraints.items()},
        foreign_keys=tuple(dict.fromkeys(key for each in alike for key in each.foreign_keys)),
        links=tuple(dict.fromkeys(key for each in alike for key in each.links)),
        shown_keys=tuple(dict.fromkeys(key for each in alike for key in each.shown_keys)),
        selectable=any(each.selectable for each in alike),
        insertable=any(each.insertable for each in alike),
        updatable=any(each.updatable for each in alike),
        deletable=any(each.deletable for each in alike),
        readable=any(each.readable for each in alike),
    )


def _column(alike: Sequence[Column]) -> Column:
    return replace(
        alike[0],
        selectable=any(each.selectable for each in alike),
        insertable=any(each.insertable for each in alike),
        updatable=any(each.updatable for each in alike),
    )
