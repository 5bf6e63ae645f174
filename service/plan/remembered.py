"""
What is found out about a catalog, kept for as long as the catalog is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary

from service.catalog import Catalog

Key = TypeVarTuple("Key")
Found = TypeVar("Found")


def remembered(
    find: Callable[[Catalog, Unpack[Key]], Found],
) -> Callable[[Catalog, Unpack[Key]], Found]:
    """Find the same thing out once; what is found must not refer to the catalog."""
    known: WeakKeyDictionary[Catalog, dict[Hashable, Any]] = WeakKeyDictionary()

    @wraps(find)
    def found(catalog: Catalog, *key: *Key) -> Found:
        answers = known.setdefault(catalog, {})
        if key not in answers:
            answers[key] = find(catalog, *key)
        answer: Found = answers[key]
        return answer

    return found
