"""
Reading objects: `find` and its kin, with twistar's arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

from twistar.dbobject import DBObject
from twistar.registry import Registry
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred, succeed

from service.db.connection import PgConnection
from service.db.database import Database
from service.models.meta import Meta, Values
from service.models.row import Row
from service.models.text import (
    Where,
    enclosed,
    limit_of,
    order_by,
    placeholders,
    where_of,
)
from service.sql.statement import quoted

ANYTHING: Final = object()
"""In place of a key that is not given; None is a key that no row has."""


class Finding(Row):
    """What a model can be asked for."""

    @classmethod
    def database(cls) -> Database:
        """Give the database that models are bound to."""
        return Registry.getConfig().database

    @classmethod
    def find(
        cls,
        id: Any = ANYTHING,
        where: Where | None = None,
        group: None = None,
        limit: int | tuple[int, int] | None = None,
        orderby: str | Iterable[str] | None = None,
        for_update: bool = False,
    ) -> Deferred[Any]:
        """
        Find objects.

        Args:
            id: A primary key: its value, or a tuple or dict for a composite one. The result
                is then an object or None.
            where: A condition with a `?` for each parameter, then the parameters.
            group: Nothing: whole rows cannot be grouped.
            limit: How many at most; 1 gives an object or None. A pair adds an offset.
            orderby: Like "name DESC, id".
            for_update: Whether to lock the rows until the transaction ends.
        """
        if group is not None:
            raise ValueError("objects are whole rows, which cannot be grouped")
        meta = cls.meta()
        conditions: list[str] = []
        params: list[Any] = []
        if id is not ANYTHING:
            if id is None:
                return succeed(None)
            conditions.append(meta.by_key)
            params += meta.key_values(id)
        if where:
            conditions.append(enclosed(where))
            params += where[1:]
        text, numbers = limit_of(limit)
        sql = meta.select
        if conditions:
            sql += " WHERE " + " AND ".join(conditions)
        if orderby is not None:
            sql += order_by(orderby, meta.columns)
        sql += text + (" FOR UPDATE" if for_update else "")
        found = cls._objects(meta, sql, params + numbers, retry=not for_update)
        if id is not ANYTHING or (not isinstance(limit, tuple) and limit == 1):
            found.addCallback(lambda objects: objects[0] if objects else None)
        return found

    @classmethod
    def findBy(cls, **values: Any) -> Deferred[list[Self]]:
        """
        Find the objects that have these values; None means NULL, a list any of its values.

        Raises:
            ValueError: There is no such column.
        """
        return cls.find(where=cls._having(values))

    @classmethod
    def all(cls) -> Deferred[list[Self]]:
        """Find every object."""
        return cls.find()

    @classmethod
    def count(cls, where: Where | None = None) -> Deferred[int]:
        """Count rows."""
        text, params = where_of(where)
        return cls._value(f"SELECT pg_catalog.count(*) FROM {cls.meta().table}{text}", params)

    @classmethod
    def exists(cls, where: Where | None = None) -> Deferred[bool]:
        """Tell whether there is such a row, without reading one."""
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
            elif isinstance(value, (list, tuple, set)) and meta.types[name].kind != "array":
                terms.append(meta.any_of(name))
                params.append(meta.encode_all(name, value))
            else:
                terms.append(meta.equals(name))
                params.append(meta.encode(name, value))
        return [" AND ".join(terms), *params] if terms else None

    @classmethod
    def _objects(
        cls, meta: Meta, sql: str, params: list[Any], retry: bool = False
    ) -> Deferred[list[Self]]:
        found = cls.database().run(objects_txn, cls, meta, sql, params, retry=retry)
        if cls.afterInit is DBObject.afterInit:
            return found
        return found.addCallback(lambda objects: ensureDeferred(cls._initialized(objects)))

    @classmethod
    async def _initialized(cls, objects: list[Self]) -> list[Self]:
        if cls.afterInit is not DBObject.afterInit:
            for each in objects:
                await maybeDeferred(each.afterInit)
        return objects

    @classmethod
    def _value(cls, sql: str, params: list[Any]) -> Deferred[Any]:
        found = cls.database().run(rows_txn, cls.meta().codec, sql, params, retry=True)
        return found.addCallback(lambda rows: rows[0][0])


def rows_txn(
    connection: PgConnection, codec: Values, sql: str, params: list[Any]
) -> list[tuple[Any, ...]]:
    """Run a statement; gives rows of wire values."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.fetchall()


def objects_txn(
    connection: PgConnection, model: type[Row], meta: Meta, sql: str, params: list[Any]
) -> list[Row]:
    """Run a statement; gives an object for each row."""
    return model.hydrate(rows_txn(connection, meta.codec, sql, params), meta)


def affected_txn(connection: PgConnection, codec: Values, sql: str, params: list[Any]) -> int:
    """Run a statement; gives the number of rows it has touched."""
    cursor = connection.wire(codec)
    cursor.execute(placeholders(sql), params)
    return cursor.rowcount
