"""
Relationships of models: twistar's BELONGSTO, HASONE, HASMANY and HABTM.

They are resolved once, when the class is created. Keys are parameters of the columns' types, and a `set` is
one transaction. `preload` loads a relationship of many objects with one statement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from BermiInflector.Inflector import Inflector
from twistar.exceptions import InvalidRelationshipError, ReferenceNotSavedError
from twistar.registry import Registry
from twisted.internet.defer import Deferred, ensureDeferred, succeed

from service.db.connection import PgConnection
from service.db.statements import several_rows
from service.errors import InvalidArgument
from service.models.meta import (
    Meta,
    Where,
    affected_txn,
    conjunction,
    identifiers,
    keys_of,
    rows_txn,
    table,
)
from service.sql.statement import quoted


@dataclass(frozen=True)
class Association:
    """
    How two models are related; a descriptor that gives each object its relationship.

    Args:
        relationship: The class of the relationship.
        name: The name of the attribute.
        other: The registered name of the other model, or a function that returns the class; None if the
            relationship is polymorphic, so that each row names the class.
        own_key: The columns that hold this model's key: twistar's `foreign_key`.
        other_key: The columns that hold the other model's key: its `association_foreign_key`.
        key: The referenced columns; None for the primary key.
        kind: The column that names the class beside the key, if the relationship is polymorphic.
        options: The options that the class declares.
    """

    relationship: type[Relationship]
    name: str
    other: str | Callable[[], Any] | None
    own_key: tuple[str, ...]
    other_key: tuple[str, ...]
    key: tuple[str, ...] | None = None
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def declared(cls, owner: Any, rtype: str, relation: str | Mapping[str, Any]) -> Self:
        """
        Build an association from a declaration in `rtype`, as in HASMANY.

        Raises:
            twistar.exceptions.InvalidRelationshipError: It has no name, or a HABTM has no join table;
                twistar would guess its name.
        """
        options = dict(relation) if isinstance(relation, Mapping) else {"name": relation}
        name = options.pop("name", None)
        if name is None:
            raise InvalidRelationshipError(f"a relationship of {owner.__name__} has no name")
        if rtype == "HABTM" and "join_table" not in options:
            raise InvalidRelationshipError(f"{owner.__name__}.{name} has no join_table")
        # Once, not at each access as in twistar: the Inflector takes 45 to 70 µs.
        words = Inflector()
        given = options.get("class_name", name)
        # A capitalized name is a class's own: the Inflector would turn Status into Statu.
        other = given if given[:1].isupper() else words.classify(given)
        own = options.get("foreign_key") or words.foreignKey(owner.__name__)
        others = options.get("association_foreign_key") or words.foreignKey(words.singularize(name))
        column = None
        if options.get("polymorphic"):
            other, others, column = None, f"{name}_id", f"{name}_type"
        elif rtype == "HASMANY" and "as" in options:
            own, column = f"{options['as']}_id", f"{options['as']}_type"
        own, others = ((key,) if isinstance(key, str) else tuple(key) for key in (own, others))
        return cls(TYPES[rtype], name, other, own, others, kind=column, options=options)

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        if not instance.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        return self.relationship(instance, self)


class Relationship:
    """
    A relationship of one object to other objects.

    Attributes:
        one: Whether it has one other object at most.
    """

    one: ClassVar[bool] = True

    def __init__(self, inst: Any, association: Association) -> None:
        self.inst = inst
        self.association = association

    @property
    def otherklass(self) -> Any:
        """The other model."""
        other = self.association.other
        return other() if callable(other) else Registry.getClass(other)

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns of this row that determine the other rows."""
        return self.association.key or self.inst.row_meta.key

    @property
    def theirs(self) -> tuple[str, ...]:
        """The columns of the other rows that have the values of `mine`."""
        return self.association.own_key

    def values(self) -> tuple[Any, ...]:
        """Return the current values of `mine`."""
        values: tuple[Any, ...] = self.inst._values_of(self.mine)
        return values

    def keys(self) -> tuple[Meta, tuple[str, ...]]:
        """Return the relation and the columns whose types the values have as parameters."""
        return self.otherklass.meta(), self.theirs

    def encode(self, values: Sequence[Any]) -> tuple[str | None, ...]:
        """
        Encode values of `mine` as parameters.

        Raises:
            InvalidArgument: A value cannot be a key of the other rows.
        """
        # twistar writes the ids of a join table into the text of its SQL, where a stored key can be SQL.
        meta, names = self.keys()
        if len(names) != len(values):
            raise InvalidArgument(
                f"{self.association.name} needs {len(values)} columns for the key, has {len(names)}",
                path=self.association.name,
            )
        return tuple(meta.encode(name, value) for name, value in zip(names, values, strict=True))

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition of the other rows; `join_where` is a condition of the join table."""
        if join_where is not None:
            raise TypeError(f"{self.association.name} has no join table")
        return [self.otherklass.meta().equal(self.theirs), *self.encode(self.values())]

    def join(self, other: Meta) -> Where:
        """Return the join of the other rows to a source of keys called `asked`."""
        return [f"JOIN {other.table} ON {other.same(self.theirs)}"]

    def get(self, **options: Any) -> Deferred[Any]:
        """
        Return the object or None, or the list of objects; without a statement if they were preloaded.

        With arguments of `find`, return those that it finds, always by a statement; `join_where` is a
        condition of the join table.
        """
        if not options and self.association.name in self.inst._preloaded:
            state, found = self.inst._preloaded[self.association.name]
            if state == self.state():
                return succeed(list(found) if not self.one else found[0] if found else None)
        if self.otherklass is None or (self.one and None in self.values()):
            return succeed(None)
        where = conjunction(self.where(options.pop("join_where", None)), options.pop("where", None))
        if self.one:
            options["limit"] = 1
        return self.otherklass.find(where=where, **options)

    def state(self) -> tuple[Any, tuple[Any, ...]]:
        """Return what determines the other objects: their class, and the values of `mine`."""
        return self.otherklass, self.values()

    def keep(self, state: tuple[Any, tuple[Any, ...]], found: Sequence[Any]) -> None:
        """Keep preloaded objects; `get` returns them as long as the state is the same."""
        self.inst.__dict__.setdefault("_preloaded", {})[self.association.name] = state, found

    def _forget(self) -> None:
        self.inst.__dict__.get("_preloaded", {}).pop(self.association.name, None)

    def _run(self, sql: str, *params: Any) -> Deferred[int]:
        return self.inst.database().run(affected_txn, self.inst.meta().codec, sql, list(params))


def key_of(subject: Any) -> tuple[Any, ...]:
    """
    Return the key of an object that is to be related to another one.

    Raises:
        ReferenceNotSavedError: The object is not saved yet.
    """
    if not subject.persisted:
        raise ReferenceNotSavedError("save an object before it is related to others")
    key: tuple[Any, ...] = subject.key
    return key


class ToMany(Relationship, ABC):
    """A relationship with any number of other objects."""

    one = False

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects that match `where`, and `join_where` in the join table."""
        where = conjunction(self.where(options.get("join_where")), options.get("where"))
        return self.otherklass.count(where=where)

    def set(self, others: Sequence[Any]) -> Deferred[None]:
        """
        Relate exactly these objects, in one transaction.

        Raises:
            ReferenceNotSavedError: One of them is not saved yet.
        """
        self._forget()
        return ensureDeferred(self._set(others))

    def clear(self) -> Deferred[None]:
        """Remove all objects from the relationship."""
        return self.set([])

    @abstractmethod
    async def _set(self, others: Sequence[Any]) -> None: ...


class HasMany(ToMany):
    """Other rows have this row's key; if polymorphic, together with the name of this class."""

    def _kind(self, meta: Meta) -> Where:
        if self.association.kind is None:
            return []
        column = f"{meta.table}.{quoted(self.association.kind)}"
        return [f"{column} OPERATOR(pg_catalog.=) ?", type(self.inst).__name__]

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition of the rows with this row's key."""
        return conjunction(super().where(join_where), self._kind(self.otherklass.meta()))

    def join(self, other: Meta) -> Where:
        """Return what joins the rows to the keys."""
        joined, kind = super().join(other), self._kind(other)
        return [f"{joined[0]} AND {kind[0]}", *kind[1:]] if kind else joined

    async def _set(self, others: Sequence[Any]) -> None:
        meta, own = self.otherklass.meta(), self.encode(self.values())
        keys = meta.encode_rows(meta.key, [key_of(other) for other in others])
        where, *params = self.where()
        chosen, kind = meta.among(meta.key), self._kind(meta)
        freed = ", ".join(f"{quoted(name)} = NULL" for name in self.theirs)
        related = [f"{quoted(name)} = {meta.cast(name)}" for name in self.theirs]
        if self.association.kind is not None:
            related.append(f"{quoted(self.association.kind)} = ?")
        async with self.inst.database().transaction():
            # Rows that stay related are left out, since their column may be NOT NULL.
            await self._run(
                f"UPDATE {meta.table} SET {freed} WHERE {where} AND NOT {chosen}", *params, *keys
            )
            # A key that only a comment declares may be of several rows, so each update is counted.
            alone = [[other] for other in others]
            for some in [others] if meta.relation.is_unique(meta.key) and others else alone:
                keys = meta.encode_rows(meta.key, [key_of(other) for other in some])
                written = await self._run(
                    f"UPDATE {meta.table} SET {', '.join(related)} WHERE {chosen}",
                    *(*own, *kind[1:], *keys),
                )
                if written > len(some):
                    raise several_rows(written, len(some))
        for other in others:
            # The object still has its old row, and the next `save` would compare its values to that.
            await other.refresh()


class HABTM(ToMany):
    """Rows of a join table have both keys."""

    def keys(self) -> tuple[Meta, tuple[str, ...]]:
        """Return this row's key; the types of the join table's columns are not known."""
        return self.inst.row_meta, self.mine

    @property
    def _junction(self) -> str:
        return table(self.association.options["join_table"])

    # A parameter, since twistar writes ids into the text, where the key `t1) or (1=1` is SQL.
    def _has_own(self, keys: Iterable[str]) -> str:
        """Return the condition that a row of the join table has the key of this row."""
        columns = (f"{self._junction}.{quoted(name)}" for name in self.association.own_key)
        return self.inst.row_meta.compare(self.mine, columns, keys)

    def _has_other(self, other: Meta) -> str:
        """Return the condition that a row of the join table has the key of the other row."""
        columns = (f"{self._junction}.{quoted(name)}" for name in self.association.other_key)
        return other.compare(
            other.key, (f"{other.table}.{quoted(key)}" for key in other.key), columns
        )

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition that the join table has the other row's key beside this row's."""
        own, other = self._has_own("?" for _ in self.mine), self._has_other(self.otherklass.meta())
        inner, *params = conjunction(
            [f"{own} AND {other}", *self.encode(self.values())], join_where
        )
        return [f"EXISTS (SELECT FROM {self._junction} WHERE {inner})", *params]

    def join(self, other: Meta) -> Where:
        """Return the join of the other rows to the keys, through the join table."""
        own = self._has_own(f"asked.key_{at}" for at in range(len(self.mine)))
        others = f"JOIN {other.table} ON {self._has_other(other)}"
        return [f"JOIN {self._junction} ON {own} {others}"]

    async def _set(self, others: Sequence[Any]) -> None:
        meta, own = self.otherklass.meta(), self.encode(self.values())
        keys = meta.encode_rows(meta.key, [key_of(other) for other in others])
        names = identifiers([*self.association.own_key, *self.association.other_key])
        marks = ["?" for _ in own]
        async with self.inst.database().transaction():
            await self._run(f"DELETE FROM {self._junction} WHERE {self._has_own(marks)}", *own)
            if others:
                rows = f"SELECT {', '.join(marks)}, keys.* FROM {meta.rows_of(meta.key)} AS keys"
                await self._run(f"INSERT INTO {self._junction} ({names}) {rows}", *own, *keys)


class BelongsTo(Relationship):
    """This row has the key of the other row."""

    @property
    def otherklass(self) -> Any:
        """The other model; if polymorphic, the one that the row names, or None."""
        if self.association.kind is None:
            return super().otherklass
        # twistar stores the name of the class beside the id.
        name = getattr(self.inst, self.association.kind)
        return Registry.getClass(name) if name else None

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns that hold the key of the other row."""
        return self.association.other_key

    @property
    def theirs(self) -> tuple[str, ...]:
        """The key of the other row."""
        return self.association.key or self.otherklass.meta().key

    def set(self, other: Any) -> Deferred[Any]:
        """
        Set the object that this row belongs to, and save the row.

        Raises:
            ReferenceNotSavedError: The other object is not saved yet.
        """
        key = key_of(other)
        if self.association.key is not None:
            key = other._values_of(self.association.key)
        if self.association.kind is not None:
            setattr(self.inst, self.association.kind, type(other).__name__)
        return self._belong(key)

    def clear(self) -> Deferred[Any]:
        """Set the key columns to NULL, and save the row."""
        return self._belong([None] * len(self.mine))

    def _belong(self, key: Sequence[Any]) -> Deferred[Any]:
        self._forget()
        self.inst._set_values(self.mine, key)
        return self.inst.save()


class HasOne(Relationship):
    """One other row has this row's key."""

    def set(self, other: Any) -> Deferred[Any]:
        """
        Set this row's key in another object, and save that object.

        Raises:
            ReferenceNotSavedError: The other object is not saved yet.
        """
        key_of(other)
        self._forget()
        other._set_values(self.theirs, self.values())
        return other.save()


TYPES: dict[str, type[Relationship]] = {
    "HASMANY": HasMany,
    "HASONE": HasOne,
    "BELONGSTO": BelongsTo,
    "HABTM": HABTM,
}
"""The relationships that a model may declare."""


def preload(objects: Iterable[Any], *paths: str) -> Deferred[None]:
    """
    Load relationships of objects, with one statement for each relationship and level.

    Afterwards `get()` returns the loaded objects without a statement, until the object is refreshed, the
    relationship is `set` or cleared, or the object's key in it changes. If the other objects are of several
    classes, each class takes a statement.

    Args:
        objects: Objects of models that have the relationships.
        paths: Names of relationships; a dot leads to a relationship of the related objects, as in
            `preload(drivers, "vehicles.garage")`.

    Raises:
        ValueError: A class has no relationship of that name.
        InvalidArgument: The key of an object cannot be a key of the other rows.
    """
    return ensureDeferred(_preload(list(objects), paths))


async def _preload(objects: Sequence[Any], paths: Iterable[str]) -> None:
    further: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        further.setdefault(name, []).extend([rest] if rest else [])
    for name, onwards in further.items():
        related = await _preload_one(objects, name)
        if onwards:
            await _preload(related, onwards)


async def _preload_one(objects: Sequence[Any], name: str) -> list[Any]:
    """Load one relationship, and return the related objects."""
    asking: dict[tuple[Any, Any], dict[Any, list[tuple[Relationship, Any]]]] = {}
    for at, each in enumerate(objects):
        if name not in each.RELATIONSHIP_CACHE:
            raise ValueError(f"{type(each).__name__} has no relationship {name}")
        relationship: Relationship = getattr(each, name)
        state = other, values = relationship.state()
        if other is None or None in values:  # NULL equals no key
            relationship.keep(state, [])
        else:
            keys = asking.setdefault((type(each), other), {})
            keys.setdefault(relationship.encode(values), []).append((relationship, state))
        await each.database().yield_to_reactor(at)
    related: list[Any] = []
    for (_, other), keys in asking.items():
        first, _ = next(iter(keys.values()))[0]
        sql, params = _statement(first, other.meta()), first.join(other.meta())[1:]
        work = related_txn, other, sql, list(keys), params
        found = await other.database().run(*work, retry=True)
        waiting = ((place, each) for place, askers in enumerate(keys.values()) for each in askers)
        for at, (place, (relationship, state)) in enumerate(waiting):
            # The object's key may have changed meanwhile: the objects are kept for the key it had.
            relationship.keep(state, found[place])
            await other.database().yield_to_reactor(at)
        objects = [each for place in range(len(keys)) for each in found[place]]
        related += await other.initialized(objects)
    return related


def _statement(relationship: Relationship, other: Meta) -> str:
    """
    Return the query of the rows related to keys: the number of the key, then the columns.

    Its parameters are a list for each column of the keys, then those of the join.
    """
    meta, names = relationship.keys()
    columns = ", ".join(f"{other.table}.{quoted(name)}" for name in other.columns)
    order = ", ".join(["asked.at", *(f"{other.table}.{quoted(name)}" for name in other.key)])
    # A join table may contain a pair of keys more than once.
    once = f"DISTINCT ON ({order}) " if isinstance(relationship, HABTM) else ""
    return (
        f"SELECT {once}asked.at, {columns}"
        f" FROM {meta.rows_of(names)} WITH ORDINALITY AS asked ({keys_of(names)}, at)"
        f" {relationship.join(other)[0]} ORDER BY {order}"
    )


def related_txn(
    connection: PgConnection,
    model: Any,
    sql: str,
    keys: Sequence[Sequence[str | None]],
    params: Sequence[Any],
) -> Mapping[int, list[Any]]:
    """Return objects by the index of the key that they are related to; [] for a key without objects."""
    # In the worker thread: to build 100,000 objects blocks the reactor for more than a second.
    lists = [list(each) for each in zip(*keys, strict=True)]
    meta: Meta = model.meta()
    found: dict[int, list[Any]] = defaultdict(list)
    rows = rows_txn(connection, meta.codec, sql, [*lists, *params])
    for row, each in zip(rows, model.hydrate([row[1:] for row in rows], meta), strict=True):
        found[row[0] - 1].append(each)
    return found
