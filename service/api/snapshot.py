"""
What is served at one moment: the catalogs of all roles, and the plans made for them.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import inf
from typing import Any

from service.catalog import Catalog, Column, Function, QualifiedName, Relation, Type
from service.db.codec import Codec
from service.describe.verbs import Verb
from service.models.registry import LoadedModels
from service.request.types import Item
from service.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class Route:
    """
    What a name stands for.

    Args:
        verb: Which one.
        relation: What it is about; None if that is functions.
        functions: Those of one name.
        schema: Where the statements of the call look for names first, if not where sessions do.
    """

    verb: Verb
    relation: Relation | None
    functions: Sequence[Function]
    schema: str


MAX_ROUTES = 4096
"""Names that are kept per catalog: callers can write one in many ways, with percent escapes."""
MAX_STATEMENTS = 1024
"""Kept per catalog: an application has some hundred shapes."""
MAX_TEXT = 16_384
"""Characters of a statement that is kept: callers choose its shape, and shapes add up."""


class Snapshot:
    """
    A catalog with what is made from it; replaced as a whole when the catalog changes.

    Args:
        catalog: What the database holds.
        codec: Its values.
        models: Of its relations, for the rules of their rows.

    Attributes:
        routes: Of names that were called before.
    """

    def __init__(self, catalog: Catalog, codec: Codec, models: LoadedModels) -> None:
        self.catalog = catalog
        self.codec = codec
        self.model = models.bound
        self.routes: dict[str, Route] = {}
        self._statements: OrderedDict[Hashable, Statement] = OrderedDict()

    def keep(self, name: str, route: Route) -> Route:
        """Keep the route of a name, and return it."""
        if len(self.routes) >= MAX_ROUTES:
            self.routes.clear()
        self.routes[name] = route
        return route

    def statement(
        self,
        make: Callable[[Catalog, Any, Any], Statement],
        subject: Hashable,
        request: Hashable,
    ) -> Statement:
        """
        Plan a request and build its statement, once for each shape in use; in the reactor thread.

        Args:
            make: Plans it, and builds the statement.
            subject: The relation or function that it is about.
            request: The shape.
        """
        # `make` belongs to it: count and exists have equal requests, and different statements.
        key = make, subject, request
        found = self._statements.get(key)
        if found is not None:
            self._statements.move_to_end(key)
            return found
        found = make(self.catalog, subject, request)
        if len(found.text) <= MAX_TEXT:
            self._statements[key] = found
            if len(self._statements) > MAX_STATEMENTS:
                self._statements.popitem(last=False)
        return found

    def most(self, relation: Relation, select: Sequence[Item] | None) -> float:
        """Return what a row can weigh at most, in bytes; infinite if its types do not tell."""
        if select is None:
            return self._all(relation)
        return sum(self._item(relation, each) for each in select)

    def _item(self, relation: Relation, item: Item) -> float:
        name = item.reference.name
        if item.reference.owners or item.reference.cast:
            return inf
        if name == "*":
            return self._all(relation)
        column = relation.columns.get(name)
        return inf if column is None else self._column(column) + 4 * len(item.alias or "")

    @cached_property
    def _all(self) -> Callable[[Relation], float]:
        return cache(lambda relation: sum(map(self._column, relation.columns.values())))

    def _column(self, column: Column) -> float:
        if column.max_length is None and not (self.catalog.type(column.type).data_type.short):
            return inf
        # A character is up to four bytes in UTF-8.
        return 64 + 4 * (len(column.name) + (column.max_length or 0))


def union_of(catalogs: Sequence[Catalog]) -> Catalog:
    """Join the catalogs of several roles: what any of them may use, in whatever order they come."""
    first, *rest = catalogs
    if not rest:
        return first
    types: dict[int, Type] = {}
    relations: dict[QualifiedName, list[Relation]] = defaultdict(list)
    functions: dict[QualifiedName, dict[tuple[int, ...], Function]] = defaultdict(dict)
    for catalog in catalogs:
        types |= catalog.types
        for name, relation in catalog.relations.items():
            relations[name].append(relation)
        for name, overloads in catalog.functions.items():
            for each in overloads:
                functions[name].setdefault(tuple(it.type for it in each.inputs), each)
    return replace(
        first,
        relations={name: _relation(alike) for name, alike in relations.items()},
        types=types,
        functions={name: tuple(alike.values()) for name, alike in functions.items()},
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
        view_foreign_keys=tuple(
            dict.fromkeys(key for each in alike for key in each.view_foreign_keys)
        ),
        view_keys=tuple(dict.fromkeys(key for each in alike for key in each.view_keys)),
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
