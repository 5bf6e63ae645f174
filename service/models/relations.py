"""
Relationships: twistar's four.

Every one speaks in parameters with the columns' own types, and a `set` is one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twistar import relationships
from twistar.exceptions import ReferenceNotSavedError
from twistar.registry import Registry
from twisted.internet.defer import Deferred, ensureDeferred, succeed

from service.models.ends import Ends
from service.models.finding import affected_txn
from service.models.text import Where, both, identifier, table


class Relationship:
    """What all four share."""

    def __init__(self, inst: Any, ends: Ends) -> None:
        self.inst = inst
        self.ends = ends

    @property
    def otherklass(self) -> Any:
        """The other model."""
        return Registry.getClass(self.ends.other)

    def _key(self, subject: Any) -> Any:
        if not subject.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        (key,) = subject.key
        return key

    def _run(self, sql: str, *params: Any) -> Deferred[int]:
        return self.inst.database().run(affected_txn, self.inst.meta().codec, sql, list(params))


class BelongsTo(Relationship, relationships.BelongsTo):
    """This row has the other's key."""

    def get(self) -> Deferred[Any]:
        """Give the object that this one belongs to, or None."""
        if self.ends.other is not None:
            return self.otherklass.find(getattr(self.inst, self.ends.there))
        kind = getattr(self.inst, f"{self.ends.name}_type")
        key = getattr(self.inst, f"{self.ends.name}_id")
        return Registry.getClass(kind).find(key) if kind else succeed(None)

    def set(self, other: Any) -> Deferred[Any]:
        """Belong to another object, and save."""
        key = self._key(other)
        if self.ends.other is not None:
            setattr(self.inst, self.ends.there, key)
        else:
            setattr(self.inst, f"{self.ends.name}_type", type(other).__name__)
            setattr(self.inst, f"{self.ends.name}_id", key)
        return self.inst.save()

    def clear(self) -> Deferred[Any]:
        """Belong to nobody, and save."""
        column = self.ends.there if self.ends.other is not None else f"{self.ends.name}_id"
        setattr(self.inst, column, None)
        return self.inst.save()


class HasMany(Relationship, relationships.HasMany):
    """Other rows have this one's key."""

    def _where(self) -> Where:
        meta = self.otherklass.meta()
        name = self.ends.options.get("as")
        if name is None:
            key = meta.encode(self.ends.here, self._key(self.inst))
            return [meta.equals(self.ends.here), key]
        condition = f"{identifier(f'{name}_type')} = ? AND {meta.equals(f'{name}_id')}"
        key = meta.encode(f"{name}_id", self._key(self.inst))
        return [condition, type(self.inst).__name__, key]

    def get(self, **options: Any) -> Deferred[Any]:
        """Find the objects, with the arguments of `find`."""
        where = both(self._where(), options.pop("where", None))
        return self.otherklass.find(where=where, **options)

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects, of those that `where` speaks of."""
        return self.otherklass.count(where=both(self._where(), options.get("where")))

    def set(self, others: Sequence[Any]) -> Deferred[Any]:
        """Have these objects and no others, in one transaction."""
        return ensureDeferred(self._set([*others]))

    def clear(self) -> Deferred[Any]:
        """Have none."""
        return self.set([])

    async def _set(self, others: list[Any]) -> None:
        keys = [self._key(other) for other in others]
        meta = self.otherklass.meta()
        name = self.ends.options.get("as")
        here = self.ends.here if name is None else f"{name}_id"
        column = identifier(here)
        own = meta.encode(here, self._key(self.inst))
        every = meta.encode_all(meta.key[0], keys)
        mine, chosen = meta.equals(here), meta.any_of(meta.key[0])
        kind, kinds = "", []
        if name is not None:
            kind, kinds = f"{identifier(f'{name}_type')} = ?", [type(self.inst).__name__]
        async with self.inst.database().transaction():
            await self._run(
                f"UPDATE {meta.table} SET {column} = NULL WHERE {mine} AND NOT {chosen}"
                + (f" AND {kind}" if kind else ""),
                *(own, every, *kinds),
            )
            if keys:
                sets = f"{column} = {meta.cast(here)}" + (f", {kind}" if kind else "")
                await self._run(
                    f"UPDATE {meta.table} SET {sets} WHERE {chosen}", *(own, *kinds, every)
                )
        for other in others:
            await other.refresh()


class HasOne(Relationship, relationships.HasOne):
    """One other row has this one's key."""

    def get(self) -> Deferred[Any]:
        """Find the object, or None."""
        meta = self.otherklass.meta()
        key = meta.encode(self.ends.here, self._key(self.inst))
        where = [meta.equals(self.ends.here), key]
        return self.otherklass.find(where=where, limit=1)

    def set(self, other: Any) -> Deferred[Any]:
        """Have this object, and save it."""
        self._key(other)
        setattr(other, self.ends.here, self._key(self.inst))
        return other.save()


class HABTM(Relationship, relationships.HABTM):
    """Rows of a join table have both keys."""

    def tablename(self) -> str:
        """Give the join table's name."""
        return self.ends.options["join_table"]

    def _where(self, join_where: Where | None, where: Where | None) -> Where:
        mine = [f"{identifier(self.ends.here)} = ?", self._key(self.inst)]
        inner, *params = both(mine, join_where)
        key = identifier(self.otherklass.meta().key[0])
        chosen = f"SELECT {identifier(self.ends.there)} FROM {table(self.tablename())}"
        return both([f"{key} IN ({chosen} WHERE {inner})", *params], where)

    def get(self, **options: Any) -> Deferred[Any]:
        """Find the objects; `join_where` speaks of the join table."""
        where = self._where(options.pop("join_where", None), options.pop("where", None))
        return self.otherklass.find(where=where, **options)

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects, of those that `where` and `join_where` speak of."""
        return self.otherklass.count(
            where=self._where(options.get("join_where"), options.get("where"))
        )

    def set(self, others: Sequence[Any]) -> Deferred[Any]:
        """Have these objects and no others, in one transaction."""
        return ensureDeferred(self._set([self._key(other) for other in others]))

    def clear(self) -> Deferred[Any]:
        """Have none."""
        return self.set([])

    async def _set(self, keys: list[Any]) -> None:
        joined = table(self.tablename())
        here, there = identifier(self.ends.here), identifier(self.ends.there)
        type = self.otherklass.meta().types[self.otherklass.meta().key[0]].sql
        mine = self._key(self.inst)
        async with self.inst.database().transaction():
            await self._run(f"DELETE FROM {joined} WHERE {here} = ?", mine)
            if keys:
                await self._run(
                    f"INSERT INTO {joined} ({here}, {there})"
                    f" SELECT ?, key FROM unnest(CAST(? AS {type}[])) AS key",
                    *(mine, self.otherklass.meta().encode_all(self.otherklass.meta().key[0], keys)),
                )
