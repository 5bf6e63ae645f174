"""
Record: an object with its row; its attributes, its changes, and the finders.

The row is kept as it was read, and a column becomes an attribute when it is first accessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self

from twistar.dbobject import DBObject
from twistar.exceptions import ImaginaryTableError
from twistar.registry import Registry
from twistar.validation import Errors
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed

from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.database import Database
from service.errors import NotAuthorized
from service.models.meta import (
    Meta,
    Where,
    limit_of,
    order_clause,
    parenthesized,
    rows_txn,
    where_of,
)
from service.models.relationships import preload
from service.sql.statement import quoted

NO_KEY: Final = object()
"""Default of a key argument; None is a key that no row has."""


UNREAD: Final = object()
"""Stands in a `PartialRow` for a value that was not read."""


class PartialRow(tuple[Any, ...]):
    """
    A stored row of which some values were not read; to access one of those raises.

    Attributes:
        asked: What was accessed of those, because a rule may catch the exception: their positions, and
            the names of columns that the row has no place for.
    """

    asked: tuple[int | str, ...] = ()

    def __getitem__(self, at: Any) -> Any:
        """
        Return a value.

        Raises:
            NotAuthorized: It was not read.
        """
        value = super().__getitem__(at)
        if value is UNREAD:
            self.asked += (at,)
            raise not_readable()
        return value


def not_readable() -> NotAuthorized:
    """Build the refusal of a rule that reads a column which the caller's role may not read."""
    return NotAuthorized("the database role may not read a column that the model's rules read")


class RecordErrors(Errors):
    """Reasons against the values of an object, by attribute."""

    def __init__(self) -> None:
        """Start empty, without the Inflector that twistar makes for each object."""

    def add(self, prop: str, error: object) -> None:
        """Add a reason, worded to follow the column's name."""
        reasons = self.setdefault(prop, [])
        reason = str(error).rstrip(".")
        if reason not in reasons:
            reasons.append(reason)


class Record(DBObject):
    """
    A twistar object that keeps its row, to know which columns were changed.

    Attributes:
        META: The relation in the newest catalog; None if it has none.
        NEEDS: Columns that the model's rules use. A relation without one of them is taken for a
            different relation of the same name.
        STRICT: Whether an unknown name and an invalid `save` raise; twistar ignores both.
    """

    META: ClassVar[Meta | None] = None
    NEEDS: ClassVar[tuple[str, ...]] = ()
    STRICT: ClassVar[bool] = True

    _row: tuple[Any, ...] | None = None
    _meta: Meta | None = None
    _is_deleted = False
    _preloaded: Mapping[str, Any] = MappingProxyType({})

    # twistar searches the relationships at each attribute access, in Python: 200 ns instead of 40.
    # Here they are descriptors.
    __getattribute__ = object.__getattribute__

    def __init__(self, **values: Any) -> None:
        meta = self.META
        if meta is not None and self.STRICT:
            # twistar drops unknown names silently, and so stores a row without a misspelled column.
            unknown = [name for name in values if name not in meta.named]
            if unknown:
                raise AttributeError(
                    f"{type(self).__name__} has no column {', '.join(sorted(unknown))}"
                )
        self.__dict__.update(values)

    @classmethod
    def tablename(cls) -> str:
        """
        Return the table's name, which each model has to declare.

        twistar guesses it with an Inflector that does not run on Python 3.11.
        """
        name: str | None = getattr(cls, "TABLENAME", None)
        if name is None:
            raise TypeError(f"{cls.__name__} needs a TABLENAME")
        return name

    @classmethod
    def meta(cls) -> Meta:
        """
        Return the relation as the newest catalog has it.

        Raises:
            twistar.exceptions.ImaginaryTableError: The catalog has no such relation.
        """
        if cls.META is None:
            raise ImaginaryTableError(f"the table of {cls.__name__} is not served")
        return cls.META

    @classmethod
    def hydrate(cls, rows: Sequence[tuple[Any, ...]], meta: Meta) -> list[Self]:
        """
        Build objects from rows; the attributes are made when they are accessed.

        It takes 80 ns an object, in a pool thread. twistar takes 2 µs in the reactor thread, which 100,000
        rows blocked for seconds.
        """
        made = []
        for row in rows:
            each = cls.__new__(cls)
            each._row = row
            each._meta = meta
            made.append(each)
        return made

    @property
    def row_meta(self) -> Meta:
        """The relation in the catalog by which the row was read, or else in the newest one."""
        return self._meta or self.meta()

    def __getattr__(self, name: str) -> Any:
        """
        Build the attribute of a column; called only if it does not exist yet.

        Raises:
            NotAuthorized: The row is stored, and its value was not read: a rule must not take it for NULL.
        """
        meta, row = self._meta or self.META, self._row
        if meta is None or name not in meta.named:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        if row is None:
            return None
        at = meta.position.get(name)
        if at is None:  # a column that no role may read
            if isinstance(row, PartialRow):
                row.asked += (name,)
            raise not_readable()
        value = self.__dict__[name] = meta.python(at, row[at])
        return value

    def load(self, row: tuple[Any, ...], meta: Meta) -> Self:
        """Load a row that was read, in place of all values that were set."""
        own = self.__dict__
        for attribute in meta.position:
            # An old value would stay, since `__getattr__` is called only for missing attributes.
            own.pop(attribute, None)
        self._row = row
        self._meta = meta
        return self

    @property
    def errors(self) -> RecordErrors:
        """Reasons against this object, from its last validation."""
        found: RecordErrors | None = self.__dict__.get("_errors")
        if found is None:
            found = self.__dict__["_errors"] = RecordErrors()
        return found

    @property
    def persisted(self) -> bool:
        """Whether the object has a row, which others may have deleted since."""
        return self._row is not None and not self._is_deleted

    def is_untouched(self, attribute: str) -> bool:
        """Return whether a column of a stored row was neither set nor accessed."""
        column = attribute in self.row_meta.named
        return column and self.persisted and attribute not in self.__dict__

    @property
    def key(self) -> tuple[Any, ...]:
        """The values of the primary key."""
        return self._values_of(self.row_meta.key)

    def _values_of(self, names: Iterable[str]) -> tuple[Any, ...]:
        """Return the current values of columns."""
        attributes = self.row_meta.attributes
        return tuple(getattr(self, attributes[name]) for name in names)

    def _set_values(self, names: Iterable[str], values: Iterable[Any]) -> None:
        """Set columns, each to its value."""
        attributes = self.row_meta.attributes
        for name, value in zip(names, values, strict=True):
            setattr(self, attributes[name], value)

    def dirty(self) -> tuple[str, ...]:
        """Return the columns whose values are not those of the row, changes in place included."""
        # Compared at the save, since no setter is called for `row.document["key"] = 1`.
        meta, row, own = self._meta, self._row, self.__dict__
        if meta is None or row is None:
            return ()
        return tuple(
            meta.named[attribute]
            for (attribute, at), stored in zip(meta.position.items(), row, strict=True)
            if attribute in own and (stored is UNREAD or own[attribute] != meta.python(at, stored))
        )

    def columns(self) -> dict[str, Any]:
        """Return all columns with their values."""
        meta = self.row_meta
        return {name: getattr(self, meta.attributes[name]) for name in meta.columns}

    def wire(self, codec: Codec) -> dict[str, Any]:
        """Return all columns in their wire form."""
        meta, row, own = self.row_meta, self._row, self.__dict__
        return {
            name: codec.wire(own[attribute])
            if attribute in own
            else (None if row is None else row[at])
            for name, (attribute, at) in zip(meta.columns, meta.position.items(), strict=True)
        }

    def toHash(
        self,
        cols: Sequence[str],
        includeBlank: bool = False,
        exclude: Sequence[str] | None = None,
        base: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return columns as a dict, like twistar, but not in its default argument, which all calls share."""
        return super().toHash(cols, includeBlank, exclude, dict(base or {}))

    # In twistar all unsaved objects are equal, and an object with a non-integer id cannot be hashed.
    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or not isinstance(other, Record):
            return False
        return self.persisted and other.persisted and bool(self.key) and self.key == other.key

    def __hash__(self) -> int:
        return hash((type(self), self.key)) if self.persisted else object.__hash__(self)

    def __repr__(self) -> str:
        key = self.key if self.META is not None and self.persisted else "new"
        return f"<{type(self).__name__} {key}>"

    __str__ = __repr__

    @classmethod
    def _overrides(cls, *hooks: str) -> bool:
        """Return whether the class overrides one of these hooks; twistar's own do nothing."""
        return any(getattr(cls, hook) is not getattr(DBObject, hook) for hook in hooks)

    @classmethod
    def database(cls) -> Database:
        """Return the database that models are bound to."""
        return Registry.getConfig().database

    @classmethod
    def find(
        cls,
        id: Any = NO_KEY,
        where: Where | None = None,
        group: None = None,
        limit: int | tuple[int, int] | None = None,
        orderby: str | Iterable[str] | None = None,
        for_update: bool = False,
        preload: str | Sequence[str] = (),
    ) -> Deferred[Any]:
        """
        Find objects.

        Args:
            id: A primary key: its value, or a tuple or dict for a composite one. The result is then an
                object or None.
            where: A condition with a `?` for each parameter, followed by the parameters.
            group: Must be None: grouped rows are not objects.
            limit: Maximum number; with 1 the result is an object or None. A pair is limit and offset.
            orderby: As in "name DESC, id".
            for_update: Whether to lock the rows until the transaction ends.
            preload: Relationships to load for all objects, as `preload` takes them; a name or a list.
        """
        if group is not None:
            raise ValueError("objects are whole rows, which cannot be grouped")
        meta = cls.meta()
        conditions: list[str] = []
        params: list[Any] = []
        if id is not NO_KEY:
            if id is None:  # twistar would return all rows
                return succeed(None)
            conditions.append(meta.by_key)
            params += meta.key_values(id)
        if where:
            conditions.append(parenthesized(where))
            params += where[1:]
        text, numbers = limit_of(limit)
        sql = meta.select
        if conditions:
            sql += " WHERE " + " AND ".join(conditions)
        if orderby is not None:
            sql += order_clause(orderby, meta.columns)
        sql += text + (" FOR UPDATE" if for_update else "")
        # A lock is lost with its connection, so a query that locks is not retried on another one.
        found = cls.database().run(
            objects_txn, cls, meta, sql, params + numbers, retry=not for_update
        )
        names = (preload,) if isinstance(preload, str) else preload
        if names or cls._overrides("afterInit"):
            found.addCallback(lambda objects: ensureDeferred(cls.initialized(objects, names)))
        if id is not NO_KEY or (not isinstance(limit, tuple) and limit == 1):
            found.addCallback(lambda objects: objects[0] if objects else None)
        return found

    @classmethod
    def findBy(cls, **values: Any) -> Deferred[list[Self]]:
        """
        Find the objects that have these values; None matches NULL, a list any of its items.

        Raises:
            ValueError: The relation has no such column.
        """
        return cls.find(where=cls._having(values))

    @classmethod
    def all(cls) -> Deferred[list[Self]]:
        """Find all objects."""
        return cls.find()

    @classmethod
    def count(cls, where: Where | None = None) -> Deferred[int]:
        """Count rows."""
        text, params = where_of(where)
        return cls._value(f"SELECT pg_catalog.count(*) FROM {cls.meta().table}{text}", params)

    @classmethod
    def exists(cls, where: Where | None = None) -> Deferred[bool]:
        """Return whether a row matches, without reading it."""
        text, params = where_of(where)
        return cls._value(f"SELECT EXISTS (SELECT 1 FROM {cls.meta().table}{text})", params)

    @classmethod
    def _having(cls, values: Mapping[str, Any]) -> Where | None:
        meta = cls.meta()
        terms: list[str] = []
        params: list[Any] = []
        for attribute, value in values.items():
            name = meta.named.get(attribute)
            if name is None:
                raise ValueError(f"{cls.__name__} has no column {attribute}")
            if value is None:
                terms.append(f"{quoted(name)} IS NULL")
            # For an array column a list is one value.
            elif isinstance(value, (list, tuple, set)) and meta.types[name].kind != "array":
                terms.append(meta.any_of(name))
                params.append(meta.encode_all(name, value))
            else:
                terms.append(meta.equal([name]))
                params.append(meta.encode(name, value))
        return [" AND ".join(terms), *params] if terms else None

    @classmethod
    async def initialized(cls, objects: list[Self], preloaded: Sequence[str] = ()) -> list[Self]:
        """Run `afterInit` of objects that were read, and preload relationships."""
        if cls._overrides("afterInit"):
            for each in objects:
                await maybeDeferred(each.afterInit)
        if preloaded:
            await preload(objects, *preloaded)
        return objects

    @classmethod
    def _value(cls, sql: str, params: list[Any]) -> Deferred[Any]:
        found = cls.database().run(rows_txn, cls.meta().codec, sql, params, retry=True)
        return found.addCallback(lambda rows: rows[0][0])


def objects_txn(
    connection: PgConnection, model: type[Record], meta: Meta, sql: str, params: list[Any]
) -> list[Record]:
    """Run a statement and return an object for each row."""
    return model.hydrate(rows_txn(connection, meta.codec, sql, params), meta)
