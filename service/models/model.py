"""
Model: twistar's DBObject, writing what changed, in one round trip, and nothing behind
anyone's back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from twistar.exceptions import DBObjectSaveError, ImaginaryTableError
from twisted.internet.defer import (
    Deferred,
    ensureDeferred,
    fail,
    gatherResults,
    maybeDeferred,
    succeed,
)

from service.errors import Conflict
from service.models.record import affected_txn, rows_txn
from service.models.relationships import Related
from service.models.sql import Where, where_of
from service.models.validation import Admission


class StaleObject(Conflict):
    """The row of an object is gone."""


class Model(Related, Admission):
    """
    A relation's rows as objects; subclasses name their TABLENAME and add rules.

    Everything that speaks to the database returns a Deferred, runs in the caller's transaction
    if there is one, and shows errors as they are.
    """

    def save(self) -> Deferred[Self]:
        """
        Insert the object, or write its changed columns; the row comes back as it now is.

        twistar writes all columns, and so undoes what others have changed since it was read.

        Raises:
            InvalidRow: A validation or hook is against it. Without STRICT it is given back
                unsaved instead.
            StaleObject: Its row is gone.
        """
        if self._deleted:
            raise DBObjectSaveError("cannot save an object that was deleted")
        if self.META is None:
            return fail(ImaginaryTableError(f"the table of {type(self).__name__} is not served"))
        return ensureDeferred(self._judged()) if type(self).ruled else self._write()

    async def _judged(self) -> Self:
        refusal = await self.refusal(creating=not self.persisted)
        if refusal is None:
            return await self._write()
        if self.STRICT:
            raise refusal
        return self

    def _write(self) -> Deferred[Self]:
        return self._update() if self.persisted else self._create()

    def _create(self) -> Deferred[Self]:
        return self._insert("")

    def _insert(self, conflict: str) -> Deferred[Any]:
        meta, own = self.meta(), self.__dict__
        names = tuple(name for name, attribute in meta.attributes.items() if attribute in own)
        params = [meta.encode(name, own[meta.attributes[name]]) for name in names]
        return self._stored(meta.insert(names, conflict), params)

    def _update(self) -> Deferred[Self]:
        meta = self.meta()
        names = self.dirty()
        if not names:
            return succeed(self)
        params = [meta.encode(name, getattr(self, meta.attributes[name])) for name in names]
        params += meta.key_values(self._stored_key())
        return self._stored(meta.update(names), params).addCallback(self._still_there)

    def refresh(self) -> Deferred[Self]:
        """
        Read the row again, and forget what was set.

        Raises:
            StaleObject: It is gone.
        """
        meta = self.meta()
        sql = f"{meta.select} WHERE {meta.by_key}"
        return self._stored(sql, meta.key_values(self._stored_key())).addCallback(self._still_there)

    def delete(self) -> Deferred[int]:
        """
        Delete the row, and its rows in join tables; return how many were deleted: 1 or 0.

        The object counts as deleted only once that is done.
        """
        return ensureDeferred(self._deleted_row())

    async def _deleted_row(self) -> int:
        if await maybeDeferred(self.beforeDelete) is False:
            return 0
        meta = self.meta()
        sql = f"DELETE FROM {meta.table} WHERE {meta.by_key}"
        params = meta.key_values(self._stored_key())
        joined = self.joined()
        if not joined:
            count = await self.database().run(affected_txn, meta.codec, sql, params)
        else:
            async with self.database().transaction():
                for relationship in joined:
                    await relationship.clear()
                count = await self.database().run(affected_txn, meta.codec, sql, params)
        self._deleted = True
        return count

    @classmethod
    def deleteAll(cls, where: Where | None = None) -> Deferred[int]:
        """Delete rows without making objects of them; return how many."""
        meta = cls.meta()
        text, params = where_of(where)
        return cls.database().run(
            affected_txn, meta.codec, f"DELETE FROM {meta.table}{text}", params
        )

    @classmethod
    def findOrCreate(cls, **values: Any) -> Deferred[Self]:
        """
        Find the object that has these values, or create it.

        With a unique index over them, only one of many callers at once creates it.

        Raises:
            InvalidRow: It is not there, and may not be created.
            StaleObject: It came and went three times.
        """
        return ensureDeferred(cls._found_or_created(values))

    @classmethod
    async def _found_or_created(cls, values: Mapping[str, Any]) -> Self:
        for _ in range(3):
            found = await cls.findBy(**values)
            if found:
                return found[0]
            made = cls(**values)
            refusal = await made.refusal(creating=True) if cls.ruled else None
            if refusal is not None:
                raise refusal
            if await made._insert(" ON CONFLICT DO NOTHING") is not None:
                return made
        raise StaleObject("the row comes and goes", relation=cls.meta().relation.name)

    def loadRelations(self, *names: str) -> Deferred[dict[str, Any]]:
        """Load relationships, all of them by default; return them by name."""
        wanted = list(names or self.RELATIONSHIP_CACHE)
        loaded = gatherResults([getattr(self, name).get() for name in wanted], consumeErrors=True)

        def failed(reason: Any) -> Any:
            return reason.value.subFailure

        return loaded.addCallbacks(lambda found: dict(zip(wanted, found, strict=True)), failed)

    def _stored(self, sql: str, params: list[Any]) -> Deferred[Any]:
        """Run a statement that returns the row, and load it; return None if none came."""
        meta = self.meta()
        found = self.database().run(rows_txn, meta.codec, sql, params)
        return found.addCallback(lambda rows: self.load(rows[0], meta) if rows else None)

    def _still_there(self, loaded: Self | None) -> Self:
        if loaded is None:
            name = self.meta().relation.name
            raise StaleObject(f'the row of "{name}" is gone', relation=name)
        return loaded

    def _stored_key(self) -> list[Any]:
        """Return the key under which the row is stored, whatever was set since."""
        meta, row = self.made_with, self._row
        if row is None:
            return [getattr(self, meta.attributes[name]) for name in meta.key]
        return [row[meta.position[meta.attributes[name]]] for name in meta.key]
