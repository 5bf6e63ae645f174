"""
What is served at one moment, and the plans made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

from service.catalog import Catalog, Relation
from service.db.values import Codec
from service.models.registry import Models
from service.sql.statement import Statement

MAX_STATEMENTS = 4096
"""Kept per catalog: a statement is a few kilobytes, an application has some hundred shapes."""


class Served:
    """
    A catalog with what is made from it; replaced as a whole when the catalog changes.

    Args:
        catalog: What the database holds.
        codec: Its values.
        models: Of its relations, for the rules of their rows.
    """

    def __init__(self, catalog: Catalog, codec: Codec, models: Models) -> None:
        self.catalog = catalog
        self.codec = codec
        self.model = models.of
        self.statement = lru_cache(MAX_STATEMENTS)(self._statement)

    def _statement(
        self,
        make: Callable[[Catalog, Relation, Any], Statement],
        relation: Relation,
        request: Hashable,
    ) -> Statement:
        """Plan and spell a request, once for each shape."""
        return make(self.catalog, relation, request)
