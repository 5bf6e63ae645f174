"""
What is served at one moment, and the plans made for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property
from math import inf
from typing import Any

from service.catalog import Catalog, Column, Relation
from service.db.codec import Codec
from service.models.registry import LoadedModels
from service.request.types import Item
from service.sql.statement import Statement

MAX_STATEMENTS = 1024
"""Kept per catalog: an application has some hundred shapes."""
MAX_TEXT = 16_384
"""Characters of a statement that is kept: callers choose its shape, and shapes add up."""
SHORT = frozenset(
    [
        "bool",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "oid",
        "date",
        "time",
        "timetz",
        "timestamp",
        "timestamptz",
        "interval",
        "uuid",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "money",
        "point",
    ]
)
"""Types whose values are short; varchar(n), char(n) and enums are told by their limits."""


class Served:
    """
    A catalog with what is made from it; replaced as a whole when the catalog changes.

    Args:
        catalog: What the database holds.
        codec: Its values.
        models: Of its relations, for the rules of their rows.
    """

    def __init__(self, catalog: Catalog, codec: Codec, models: LoadedModels) -> None:
        self.catalog = catalog
        self.codec = codec
        self.judge = models.judge
        self._statements: OrderedDict[Hashable, Statement] = OrderedDict()

    def statement(
        self,
        make: Callable[[Catalog, Any, Any], Statement],
        subject: Hashable,
        request: Hashable,
    ) -> Statement:
        """
        Plan and spell a request, once for each shape that is in use; in the reactor thread.

        Args:
            make: Plans and spells.
            subject: The relation or function that it is about.
            request: The shape.
        """
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
        if item.reference.owners or item.cast:
            return inf
        if name == "*":
            return self._all(relation)
        column = relation.columns.get(name)
        return inf if column is None else self._column(column) + 4 * len(item.alias or "")

    @cached_property
    def _all(self) -> Callable[[Relation], float]:
        return cache(lambda relation: sum(map(self._column, relation.columns.values())))

    def _column(self, column: Column) -> float:
        if column.max_length is None and self.catalog.type(column.type).name not in SHORT:
            return inf
        return 64 + 4 * (len(column.name) + (column.max_length or 0))
