"""
Look-ups in a catalog that take longer than a call may: what one finds is kept by the catalog.
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
    """Return a look-up that computes each answer once for a catalog."""

    @wraps(find)
    def found(catalog: Catalog, *key: *Key) -> Found:
        # In the catalog, and so gone with its last call. An answer that referred to it would keep it
        # for ever: what is there once the service has started is left out of garbage collections.
        if (find, key) not in catalog.answers:
            catalog.answers[find, key] = find(catalog, *key)
        answer: Found = catalog.answers[find, key]
        return answer

    return found
