"""
Related objects of many objects at once, instead of a query for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twistar.registry import Registry
from twisted.internet.defer import Deferred, ensureDeferred

from service.models.related import Related
from service.models.relations import BelongsTo, HasMany, HasOne


def preload(objects: Iterable[Related], name: str) -> Deferred[list[Any]]:
    """
    Load a relationship of objects of one model, in one query.

    Args:
        objects: All of the same class.
        name: Of a HASMANY, HASONE or BELONGSTO that is not polymorphic.

    Returns:
        For each object what its relationship's `get` would give.

    Raises:
        ValueError: It is another sort of relationship.
    """
    return ensureDeferred(_preloaded(list(objects), name))


async def _preloaded(objects: Sequence[Any], name: str) -> list[Any]:
    if not objects:
        return []
    prop = getattr(type(objects[0]), name)
    kind, ends = prop.kind, prop.ends
    if kind not in (HasMany, HasOne, BelongsTo) or ends.other is None or "as" in ends.options:
        raise ValueError(f"{name} cannot be loaded for many at once")
    other = Registry.getClass(ends.other)
    meta = other.meta()
    if kind is BelongsTo:
        mine = [getattr(each, ends.there) for each in objects]
        column = meta.key[0]
    else:
        mine = [each.key[0] for each in objects]
        column = ends.here
    attribute = meta.attributes[column]
    wanted = meta.encode_all(column, {key for key in mine if key is not None})
    orderby = [meta.key[0]] if meta.key else None
    found = await other.find(where=[meta.any_of(column), wanted], orderby=orderby)
    groups: dict[Any, list[Any]] = {}
    for each in found:
        groups.setdefault(getattr(each, attribute), []).append(each)
    if kind is HasMany:
        return [groups.get(key, []) for key in mine]
    return [groups[key][0] if key in groups else None for key in mine]
