"""
Relationships to many other rows: twistar's HASMANY and HABTM.

They speak in parameters with the columns' own types, and a `set` is one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twistar import relationships
from twisted.internet.defer import Deferred, ensureDeferred

from service.models.relationship import Relationship, key_of
from service.models.text import Where, both, identifiers, table
from service.models.way import Way
from service.sql.statement import quoted


class HasMany(Relationship, relationships.HasMany):
    """Other rows have this one's key."""

    one = False

    @property
    def _here(self) -> tuple[str, ...]:
        name = self.ends.options.get("as")
        return self.ends.here if name is None else (f"{name}_id",)

    @property
    def _kind_column(self) -> str:
        name = self.ends.options.get("as")
        return f"{name}_type" if name else ""

    @property
    def _kind(self) -> Where:
        """Say of which class's rows the key is, where that is not one class's alone."""
        column = self._kind_column
        return (
            [f"{quoted(column)} OPERATOR(pg_catalog.=) ?", type(self.inst).__name__]
            if column
            else []
        )

    def way(self) -> Way:
        """Lead to the rows that have these keys in them."""
        return Way.to(self.otherklass, self._here, self._kind)

    def _where(self) -> Where:
        meta = self.otherklass.meta()
        return both([meta.equal(self._here), *self._own(meta)], self._kind)

    def _own(self, meta: Any) -> list[str | None]:
        pairs = zip(self._here, self.values(), strict=True)
        return [meta.encode(name, value) for name, value in pairs]

    def alone(self) -> Deferred[Any]:
        """Find the objects of this row."""
        return self.otherklass.find(where=self._where())

    def get(self, **options: Any) -> Deferred[Any]:
        """Give the objects; with arguments of `find`, those that it finds among them."""
        if not options:
            return super().get()
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
        meta, here = self.otherklass.meta(), self._here
        every = meta.encode_rows(meta.key, [key_of(other) for other in others])
        own, kind = self._own(meta), self._kind
        chosen = meta.among(meta.key)
        freed = ", ".join(f"{quoted(name)} = NULL" for name in here)
        where, *params = both([f"{meta.equal(here)} AND NOT {chosen}", *own, *every], kind)
        async with self.inst.database().transaction():
            await self._run(f"UPDATE {meta.table} SET {freed} WHERE {where}", *params)
            if others:
                sets_kind = [f"{quoted(self._kind_column)} = ?"] if kind else []
                sets = [*(f"{quoted(name)} = {meta.cast(name)}" for name in here), *sets_kind]
                await self._run(
                    f"UPDATE {meta.table} SET {', '.join(sets)} WHERE {chosen}",
                    *(*own, *kind[1:], *every),
                )
        for other in others:
            await other.refresh()


class HABTM(Relationship, relationships.HABTM):
    """Rows of a join table have both keys."""

    one = False

    def tablename(self) -> str:
        """Give the join table's name."""
        return self.ends.options["join_table"]

    def way(self) -> Way:
        """Lead through the join table."""
        meta = self.inst.made_with
        joined = table(self.tablename())
        return Way.through(self.otherklass, meta, joined, self.ends.here, self.ends.there)

    def _where(self, join_where: Where | None, where: Where | None) -> Where:
        inner, *params = both([self._own, *self.values()], join_where)
        meta = self.otherklass.meta()
        chosen = f"SELECT {identifiers(self.ends.there)} FROM {table(self.tablename())}"
        keys = ", ".join(f"key_{at}" for at in range(len(meta.key)))
        same = meta.same(meta.key, "chosen")
        found = f"EXISTS (SELECT FROM ({chosen} WHERE {inner}) AS chosen ({keys}) WHERE {same})"
        return both([found, *params], where)

    @property
    def _own(self) -> str:
        """Say that a row of the join table has this row's key."""
        meta = self.inst.made_with
        ends = zip(self.ends.here, self.mine, strict=True)
        return " AND ".join(f"{quoted(name)}{meta.equal_sign(key)}?" for name, key in ends)

    def alone(self) -> Deferred[Any]:
        """Find the objects of this row."""
        return self.otherklass.find(where=self._where(None, None))

    def get(self, **options: Any) -> Deferred[Any]:
        """
        Give the objects; with arguments of `find`, those that it finds among them.

        `join_where` speaks of the join table.
        """
        if not options:
            return super().get()
        where = self._where(options.pop("join_where", None), options.pop("where", None))
        return self.otherklass.find(where=where, **options)

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects, of those that `where` and `join_where` speak of."""
        return self.otherklass.count(
            where=self._where(options.get("join_where"), options.get("where"))
        )

    def set(self, others: Sequence[Any]) -> Deferred[Any]:
        """Have these objects and no others, in one transaction."""
        return ensureDeferred(self._set([key_of(other) for other in others]))

    def clear(self) -> Deferred[Any]:
        """Have none."""
        return self.set([])

    async def _set(self, keys: list[Any]) -> None:
        joined, meta, mine = table(self.tablename()), self.otherklass.meta(), self.values()
        async with self.inst.database().transaction():
            await self._run(f"DELETE FROM {joined} WHERE {self._own}", *mine)
            if keys:
                rows = meta.rows_of(meta.key)
                await self._run(
                    f"INSERT INTO {joined} ({identifiers([*self.ends.here, *self.ends.there])})"
                    f" SELECT {', '.join('?' for _ in mine)}, keys.* FROM {rows} AS keys",
                    *(*mine, *meta.encode_rows(meta.key, keys)),
                )
