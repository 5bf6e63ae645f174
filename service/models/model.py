"""
Model: twistar's DBObject, whose `save` writes only the changed columns, in one round trip; and `not_blank`, a
validation in addition to twistar's own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self

from twistar.exceptions import DBObjectSaveError, ImaginaryTableError
from twisted.internet.defer import Deferred, ensureDeferred, fail, maybeDeferred, succeed

from service.db.statements import several_rows
from service.errors import Conflict, InvalidRow
from service.models.meta import Where, affected_txn, rows_txn, where_of
from service.models.record import Record
from service.models.relationships import HABTM, TYPES, Association

HOOKS = {True: ("beforeCreate", "beforeSave"), False: ("beforeUpdate", "beforeSave")}
"""The hooks that run before a row is saved, by whether it is new."""


class StaleObject(Conflict):
    """The row of an object no longer exists."""


class Model(Record):
    """
    The rows of a relation as objects; a subclass names its TABLENAME and adds rules.

    Each method that uses the database returns a Deferred, runs in the caller's transaction if there is
    one, and raises psycopg2's errors unchanged.
    """

    RELATIONSHIP_CACHE: ClassVar[dict[str, tuple[type, Mapping[str, Any]]]] = {}
    _waits: ClassVar[bool] = False

    # twistar fills the cache when the first object is made, and a subclass would inherit that of its base.
    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.initRelationshipCache()

    @classmethod
    def initRelationshipCache(cls) -> None:
        """Register the relationships that HASMANY, HASONE, BELONGSTO and HABTM declare."""
        cls.RELATIONSHIP_CACHE = {}
        for kind in TYPES:
            for declared in getattr(cls, kind):
                cls.addRelation(declared, kind)

    @classmethod
    def addRelation(cls, relation: str | Mapping[str, Any], rtype: str) -> None:
        """
        Add a relationship; see `Association.declared`.

        Raises:
            twistar.exceptions.InvalidRelationshipError: The declaration is incomplete.
        """
        cls.relate(Association.declared(cls, rtype, relation))

    @classmethod
    def relate(cls, association: Association) -> None:
        """Add the relationship of an association."""
        cls.RELATIONSHIP_CACHE[association.name] = (association.relationship, association.options)
        setattr(cls, association.name, association)

    def loadRelations(self, *names: str) -> Deferred[dict[str, Any]]:
        """Load relationships, all of them by default; return them by name."""

        async def load() -> dict[str, Any]:
            wanted = names or tuple(self.RELATIONSHIP_CACHE)
            return {name: await getattr(self, name).get() for name in wanted}

        return ensureDeferred(load())

    @classmethod
    def has_rules(cls, creating: bool) -> bool:
        """Return whether there are validations, or hooks before a new or changed row is saved."""
        return bool(cls.VALIDATIONS) or cls._overrides(*HOOKS[creating])

    @classmethod
    def has_delete_hook(cls) -> bool:
        """Return whether there is a hook before a row is deleted."""
        return cls._overrides("beforeDelete")

    @classmethod
    def validatesUniquenessOf(cls, *names: str, **options: Any) -> None:
        """Add a validation that no other row has the value; an error of the database is raised."""
        message = options.get("message", "is not unique")

        async def unique(subject: Model) -> None:
            for name in names:
                value = getattr(subject, name)
                others = await cls.findBy(**{name: value}) if value is not None else []
                if any(other != subject for other in others):
                    subject.errors.add(name, message)

        cls.addValidator(unique)

    def validate(self) -> Deferred[Any]:
        """Run all validations and return the object, with its `errors`."""
        return ensureDeferred(self._validated())

    def isValid(self) -> Deferred[bool]:
        """Run all validations and return whether the object has no errors."""
        return self.validate().addCallback(lambda _: self.errors.isEmpty())

    async def _validated(self) -> Self:
        self.errors.clear()
        # An exception in a validation is raised. twistar ignores it, and saves the object.
        for validation in type(self).VALIDATIONS:
            await maybeDeferred(validation, self)
        return self

    def is_valid_at_once(self, creating: bool) -> bool:
        """Return whether all validations pass without a Deferred, and no hook runs before the save."""
        if self._waits or self._overrides(*HOOKS[creating]):
            return False
        for validation in type(self).VALIDATIONS:
            if not _answers_at_once(validation, self):
                # Remembered for the class, since a validation that waits may have sent a query in vain.
                type(self)._waits = True
                return False
        return self.errors.isEmpty()

    def reasons_at_once(self) -> dict[str, list[str]]:
        """Return the reasons of validations, by attribute; without those of one that waits or raises."""
        for validation in type(self).VALIDATIONS:
            with suppress(Exception):
                _answers_at_once(validation, self)
        return self.errors

    async def refusal(self, creating: bool) -> InvalidRow | None:
        """
        Run validations and hooks in twistar's order, and return their refusal, if there is one.

        A hook refuses by returning False or by adding to `errors`.
        """
        await self._validated()
        for hook in HOOKS[creating] if self.errors.isEmpty() else ():
            if await maybeDeferred(getattr(self, hook)) is False:
                return self.invalid(f"refused by {hook}")
            if not self.errors.isEmpty():
                break
        return None if self.errors.isEmpty() else self.invalid()

    def invalid(self, otherwise: str = "") -> InvalidRow:
        """Return the refusal with the reasons in `errors`, or with `otherwise` if there are none."""
        meta = self.row_meta
        fields = {meta.named.get(name, name): found for name, found in self.errors.items()}
        return InvalidRow(meta.relation.name, fields or {"*": [otherwise]})

    def save(self) -> Deferred[Self]:
        """
        Insert the object, or update its changed columns, and load the row that the statement returns.

        twistar writes all columns, and so overwrites what other transactions have changed since the read.

        Raises:
            InvalidRow: A validation or hook refuses the object. Without STRICT the unsaved object is
                returned instead.
            StaleObject: The row no longer exists.
        """
        if self._is_deleted:
            raise DBObjectSaveError("cannot save an object that was deleted")
        if self.META is None:
            return fail(ImaginaryTableError(f"the table of {type(self).__name__} is not served"))
        creating = not self.persisted
        if not self.has_rules(creating):
            return self._write_row()
        return ensureDeferred(self._validated_save(creating))

    async def _validated_save(self, creating: bool) -> Self:
        refusal = await self.refusal(creating)
        if refusal is None:
            return await self._write_row()
        if self.STRICT:
            raise refusal
        return self

    def _write_row(self) -> Deferred[Any]:
        return self.update_row() if self.persisted else self.insert_row()

    # twistar calls lastval() afterwards, which returns another table's id if a trigger inserts there. It
    # reads no defaults either, and the next save overwrites them with NULL.
    def insert_row(self, conflict: str = "") -> Deferred[Any]:
        """Insert the object without its rules; return None if no row was inserted."""
        meta, own = self.meta(), self.__dict__
        names = tuple(name for name, attribute in meta.attributes.items() if attribute in own)
        params = [meta.encode(name, own[meta.attributes[name]]) for name in names]
        return self._stored(meta.insert(names, conflict), params)

    def update_row(self) -> Deferred[Self]:
        """Update the changed columns without the rules."""
        meta = self.meta()
        names = self.dirty()
        if not names:
            return succeed(self)
        params = [meta.encode(name, getattr(self, meta.attributes[name])) for name in names]
        params += meta.key_values(self._stored_key())
        return self._stored(meta.update(names), params).addCallback(self._require_row)

    def refresh(self) -> Deferred[Self]:
        """
        Read the row again, and discard the values that were set and the preloaded relationships.

        Raises:
            StaleObject: The row no longer exists.
        """
        self.__dict__.pop("_preloaded", None)
        meta = self.meta()
        sql = f"{meta.select} WHERE {meta.by_key}"
        return self._stored(sql, meta.key_values(self._stored_key())).addCallback(self._require_row)

    def delete(self) -> Deferred[int]:
        """
        Delete the row, and its rows in join tables; return the number of rows deleted, 1 or 0.

        The object is marked as deleted only after the DELETE. twistar removes its id before, although the
        server may refuse.
        """
        return ensureDeferred(self._delete())

    async def _delete(self) -> int:
        if await maybeDeferred(self.beforeDelete) is False:
            return 0
        meta = self.meta()
        sql = f"DELETE FROM {meta.table} WHERE {meta.by_key}"
        params = meta.key_values(self._stored_key())
        joined = [name for name, (kind, _) in self.RELATIONSHIP_CACHE.items() if kind is HABTM]
        if not joined:
            count = await self._of_key(affected_txn, sql, params)
        else:
            async with self.database().transaction():
                for name in joined:
                    await getattr(self, name).clear()
                count = await self._of_key(affected_txn, sql, params)
        self._is_deleted = True
        return count

    @classmethod
    def deleteAll(cls, where: Where | None = None) -> Deferred[int]:
        """Delete rows without loading objects, so without hooks; return their number."""
        meta = cls.meta()
        text, params = where_of(where)
        return cls.database().run(
            affected_txn, meta.codec, f"DELETE FROM {meta.table}{text}", params
        )

    @classmethod
    def findOrCreate(cls, **values: Any) -> Deferred[Self]:
        """
        Find the object that has these values, or create it.

        With a unique index over the values, only one of several concurrent callers creates it.

        Raises:
            InvalidRow: It does not exist, and the rules refuse to create it.
            StaleObject: Three times it was created and deleted by others between two statements.
        """
        return ensureDeferred(cls._found_or_created(values))

    @classmethod
    async def _found_or_created(cls, values: Mapping[str, Any]) -> Self:
        # Between the two statements another caller may create the row, or delete it.
        for _ in range(3):
            found = await cls.findBy(**values)
            if found:
                return found[0]
            made = cls(**values)
            refusal = await made.refusal(creating=True) if cls.has_rules(creating=True) else None
            if refusal is not None:
                raise refusal
            if await made.insert_row(" ON CONFLICT DO NOTHING") is not None:
                return made
        raise StaleObject("the row comes and goes", relation=cls.meta().relation.name)

    def _stored(self, sql: str, params: list[Any]) -> Deferred[Any]:
        """Run a statement that returns the row, and load it; return None if there is no row."""
        meta = self.meta()
        found = self._of_key(rows_txn, sql, params)
        return found.addCallback(lambda rows: self.load(rows[0], meta) if rows else None)

    def _of_key(self, function: Callable[..., Any], sql: str, params: list[Any]) -> Deferred[Any]:
        """
        Run a statement for the row of the key.

        A key that only a comment declares may be of several rows; then the statement is rolled back.
        """
        meta = self.meta()
        if meta.relation.is_unique(meta.key):
            return self.database().run(function, meta.codec, sql, params)
        return ensureDeferred(self._counted(function, sql, params))

    async def _counted(self, function: Callable[..., Any], sql: str, params: list[Any]) -> Any:
        async with self.database().transaction():
            found = await self.database().run(function, self.meta().codec, sql, params)
            rows = found if isinstance(found, int) else len(found)
            if rows > 1:
                raise several_rows(rows)
        return found

    def _require_row(self, loaded: Self | None) -> Self:
        if loaded is None:
            name = self.meta().relation.name
            raise StaleObject(f'the row of "{name}" is gone', relation=name)
        return loaded

    def _stored_key(self) -> list[Any]:
        """Return the key of the stored row, even if the object's key was changed since."""
        meta, row = self.row_meta, self._row
        if row is None:
            return list(self.key)
        return [row[meta.position[meta.attributes[name]]] for name in meta.key]


def _answers_at_once(validation: Callable[[Any], Any], subject: Model) -> bool:
    """Run a validation, and return whether it has ended; one that waits is stopped."""
    waiting = validation(subject)
    if isinstance(waiting, Coroutine):
        waiting.close()
    elif isinstance(waiting, Deferred):
        waiting.addErrback(lambda _: None).cancel()
    else:
        return True
    return False


def not_blank(*names: str) -> Callable[[Any], None]:
    """
    Build a validation that a text is present and is not white space only.

    A value that the row has already and that does not change is not checked, so the row need not be read.
    """

    def validate(subject: Model) -> None:
        for name in names:
            if subject.is_untouched(name):
                continue
            value = getattr(subject, name)
            if value is None or not str(value).strip():
                subject.errors.add(name, "cannot be blank")

    return validate
