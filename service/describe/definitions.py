"""
The shared parts of a document, its `$defs`: each is made when something first refers to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from service.catalog import Catalog

Schema = dict[str, Any]
"""A JSON Schema (2020-12)."""


class Definitions:
    """
    Args:
        catalog: For types.
        schemas: Those that are there from the beginning.
        relations: The names of those that are described.
    """

    def __init__(
        self, catalog: Catalog, schemas: Mapping[str, Schema], relations: Iterable[str] = ()
    ) -> None:
        self.catalog = catalog
        self.relations = frozenset(relations)
        self.schemas: dict[str, Schema] = dict(schemas)

    def refer(self, name: str, make: Callable[[], Schema]) -> Schema:
        """Return a reference to a part, which is made if there is none of that name."""
        if name not in self.schemas:
            self.schemas[name] = {}  # it may refer to itself
            self.schemas[name] = make()
        return reference(name)


@lru_cache(4096)
def reference(name: str) -> Schema:
    """Return a reference to a part by its name; one object for all who do, since many will."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": "#/$defs/" + quote(pointer, safe="~!$&'()*+,;=:@")}
