"""
Slow lookups in a catalog, cached in the catalog.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar, TypeVarTuple, Unpack

from service.catalog import Catalog

Key = TypeVarTuple("Key")
Found = TypeVar("Found")


def cached_per_catalog(
    find: Callable[[Catalog, Unpack[Key]], Found],
) -> Callable[[Catalog, Unpack[Key]], Found]:
    """Return a lookup that computes each answer once for each catalog."""

    @wraps(find)
    def found(catalog: Catalog, *key: *Key) -> Found:
        # Cached in the catalog, so that it is freed with it. An answer must not refer to the catalog: the
        # cycle would never be freed, because objects from the start are frozen out of garbage collection.
        if (find, key) not in catalog.answers:
            catalog.answers[find, key] = find(catalog, *key)
        answer: Found = catalog.answers[find, key]
        return answer

    return found
