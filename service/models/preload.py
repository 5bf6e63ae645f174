"""
Related objects of many objects at once, wherever those come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred

from service.models.related import Related
from service.models.together import acquaint


def preload(objects: Iterable[Related], name: str) -> Deferred[list[Any]]:
    """
    Load a relationship of objects of one model, a statement for some hundreds of them.

    Objects that were found together need no such thing: they do it by themselves. From now on
    these do, too.

    Args:
        objects: All of the same class.
        name: Of the relationship.

    Returns:
        For each object what its relationship's `get` gives.
    """
    return ensureDeferred(_preloaded(list(objects), name))


async def _preloaded(objects: Sequence[Any], name: str) -> list[Any]:
    acquaint(objects)
    found = []
    for at, each in enumerate(objects):
        found.append(await getattr(each, name).get())
        await each.database().breathe(at)
    return found
