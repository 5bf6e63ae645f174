"""
Relationships to one other row: twistar's BELONGSTO and HASONE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twistar import relationships
from twistar.registry import Registry
from twisted.internet.defer import Deferred, succeed

from service.models.relationship import Relationship, key_of
from service.models.way import Way


class BelongsTo(Relationship, relationships.BelongsTo):
    """This row has the other's key."""

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns that hold the other's key."""
        return self.ends.there

    @property
    def otherklass(self) -> Any:
        """The other model; of many kinds, the one that the row says, or None."""
        if self.ends.other is not None:
            return super().otherklass
        kind = getattr(self.inst, f"{self.ends.name}_type")
        return Registry.getClass(kind) if kind else None

    def way(self) -> Way | None:
        """Lead to the rows that have these keys."""
        other = self.otherklass
        if other is None or None in self.values():
            return None
        return Way.to(other, self.ends.key or other.meta().key)

    def alone(self) -> Deferred[Any]:
        """Find the object that this one belongs to, or None."""
        way = self.way()
        if way is None:
            return succeed(None)
        where = [way.meta.equal(way.names), *way.written(self.values())]
        return way.model.find(where=where, limit=1)

    def set(self, other: Any) -> Deferred[Any]:
        """Belong to another object, and save."""
        key = key_of(other)
        if self.ends.key is not None:
            key = tuple(getattr(other, other.made_with.attributes[n]) for n in self.ends.key)
        if self.ends.other is None:
            setattr(self.inst, f"{self.ends.name}_type", type(other).__name__)
        return self._belong(key)

    def clear(self) -> Deferred[Any]:
        """Belong to nobody, and save."""
        return self._belong([None] * len(self.mine))

    def _belong(self, key: Sequence[Any]) -> Deferred[Any]:
        attributes = self.inst.made_with.attributes
        for name, value in zip(self.mine, key, strict=True):
            setattr(self.inst, attributes[name], value)
        return self.inst.save()


class HasOne(Relationship, relationships.HasOne):
    """One other row has this one's key."""

    def way(self) -> Way:
        """Lead to the rows that have these keys in them."""
        return Way.to(self.otherklass, self.ends.here)

    def alone(self) -> Deferred[Any]:
        """Find the object, or None."""
        way = self.way()
        where = [way.meta.equal(way.names), *way.written(self.values())]
        return way.model.find(where=where, limit=1)

    def set(self, other: Any) -> Deferred[Any]:
        """Have this object, and save it."""
        key_of(other)
        attributes = other.made_with.attributes
        for name, value in zip(self.ends.here, self.values(), strict=True):
            setattr(other, attributes[name], value)
        return other.save()
