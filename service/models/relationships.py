"""
Relationships of models: twistar's BELONGSTO, HASONE, HASMANY and HABTM.

They are worked out once, when the class is made. Keys are parameters of the columns' own types,
and a `set` is one transaction. `preload` loads a relationship of many objects in one statement.
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
    How two models are related: the attribute of a model that is a relationship of each object.

    Args:
        relationship: What sort of one it is.
        name: Of the attribute.
        other: The other model's registered name, or a function that returns the class;
            None if it is polymorphic, so that each row names it.
        here: The columns that hold this model's key.
        there: The columns that hold the other model's key.
        key: The columns that are referred to, where they are not the primary key.
        kind: The column that names a class beside a key, if it is polymorphic.
        options: As the class declared them.
    """

    relationship: type[Relationship]
    name: str
    other: str | Callable[[], Any] | None
    here: tuple[str, ...]
    there: tuple[str, ...]
    key: tuple[str, ...] | None = None
    kind: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def declared(cls, owner: Any, rtype: str, relation: str | Mapping[str, Any]) -> Self:
        """
        Build an association from what a class declares in `rtype`, HASMANY and such.

        Raises:
            twistar.exceptions.InvalidRelationshipError: It has no name; or no join table,
                whose name twistar could only guess.
        """
        options = dict(relation) if isinstance(relation, Mapping) else {"name": relation}
        name = options.pop("name", None)
        if name is None:
            raise InvalidRelationshipError(f"a relationship of {owner.__name__} has no name")
        if rtype == "HABTM" and "join_table" not in options:
            raise InvalidRelationshipError(f"{owner.__name__}.{name} has no join_table")
        # Not at each access, as twistar does: the Inflector takes 45 to 70 µs.
        words = Inflector()
        given = options.get("class_name", name)
        # The Inflector would make Statu of Status: a class's own name stays as it is.
        other = given if given[:1].isupper() else words.classify(given)
        here = options.get("foreign_key") or words.foreignKey(owner.__name__)
        there = options.get("association_foreign_key") or words.foreignKey(words.singularize(name))
        column = None
        if options.get("polymorphic"):
            other, there, column = None, f"{name}_id", f"{name}_type"
        elif rtype == "HASMANY" and "as" in options:
            here, column = f"{options['as']}_id", f"{options['as']}_type"
        here, there = ((key,) if isinstance(key, str) else tuple(key) for key in (here, there))
        return cls(TYPES[rtype], name, other, here, there, kind=column, options=options)

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        if not instance.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        return self.relationship(instance, self)


class Relationship:
    """
    A relationship of one object.

    Attributes:
        one: Whether there is one other at most.
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
        """The columns of this row by which others are related to it."""
        return self.association.key or self.inst.row_meta.key

    @property
    def theirs(self) -> tuple[str, ...]:
        """The columns of the others that have the values of `mine`."""
        return self.association.here

    def values(self) -> tuple[Any, ...]:
        """Return the values of `mine`, as they are set now."""
        values: tuple[Any, ...] = self.inst._values_of(self.mine)
        return values

    def keys(self) -> tuple[Meta, tuple[str, ...]]:
        """Return the columns whose types the values have in statements, and their relation."""
        return self.otherklass.meta(), self.theirs

    def encode(self, values: Sequence[Any]) -> tuple[str | None, ...]:
        """
        Encode values of `mine` as parameters.

        Raises:
            InvalidArgument: One cannot be a key of the others.
        """
        # twistar writes ids of the join table into its SQL as text, where a key that somebody has
        # stored can be SQL.
        meta, names = self.keys()
        if len(names) != len(values):
            raise InvalidArgument(
                f"{self.association.name} needs {len(values)} columns for the key, has {len(names)}",
                path=self.association.name,
            )
        return tuple(meta.encode(name, value) for name, value in zip(names, values, strict=True))

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition of the others; `join_where` is of the join table, if there is one."""
        if join_where is not None:
            raise TypeError(f"{self.association.name} has no join table")
        return [self.otherklass.meta().equal(self.theirs), *self.encode(self.values())]

    def join(self, other: Meta) -> Where:
        """Return what joins the others to their keys, a source called `asked`."""
        return [f"JOIN {other.table} ON {other.same(self.theirs)}"]

    def get(self, **options: Any) -> Deferred[Any]:
        """
        Return the object or None, or the list of objects; what was preloaded, if it was.

        With arguments of `find`, return what it finds among them; `join_where` is a condition
        of the join table. They are never answered by what was preloaded.
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
        """Return what decides which others there are: their class, and the values of `mine`."""
        return self.otherklass, self.values()

    def keep(self, state: tuple[Any, tuple[Any, ...]], found: Sequence[Any]) -> None:
        """Keep what was preloaded, which holds for a state."""
        self.inst.__dict__.setdefault("_preloaded", {})[self.association.name] = state, found

    def _forget(self) -> None:
        self.inst.__dict__.get("_preloaded", {}).pop(self.association.name, None)

    def _run(self, sql: str, *params: Any) -> Deferred[int]:
        return self.inst.database().run(affected_txn, self.inst.meta().codec, sql, list(params))


def key_of(subject: Any) -> tuple[Any, ...]:
    """
    Return the key of an object that is to be related to another.

    Raises:
        ReferenceNotSavedError: It has none yet.
    """
    if not subject.persisted:
        raise ReferenceNotSavedError("save an object before it is related to others")
    key: tuple[Any, ...] = subject.key
    return key


class ToMany(Relationship, ABC):
    """A relationship with any number of others."""

    one = False

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects that fulfil `where` and, of the join table, `join_where`."""
        where = conjunction(self.where(options.get("join_where")), options.get("where"))
        return self.otherklass.count(where=where)

    def set(self, others: Sequence[Any]) -> Deferred[None]:
        """
        Relate these objects, and no others, in one transaction.

        Raises:
            ReferenceNotSavedError: One has no row.
        """
        self._forget()
        return ensureDeferred(self._set(others))

    def clear(self) -> Deferred[None]:
        """Relate no objects any more."""
        return self.set([])

    @abstractmethod
    async def _set(self, others: Sequence[Any]) -> None: ...


class HasMany(ToMany):
    """Other rows have this one's key; if it is polymorphic, beside the name of this class."""

    def _kind(self, meta: Meta) -> Where:
        if self.association.kind is None:
            return []
        column = f"{meta.table}.{quoted(self.association.kind)}"
        return [f"{column} OPERATOR(pg_catalog.=) ?", type(self.inst).__name__]

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition of the rows with this one's key."""
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
            # Those that stay are not freed first: their column may be NOT NULL.
            await self._run(
                f"UPDATE {meta.table} SET {freed} WHERE {where} AND NOT {chosen}", *params, *keys
            )
            # a key that a comment claims may be that of several rows: each is counted
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
            # It holds its row as it was before, to which the next `save` would compare it.
            await other.refresh()


class HABTM(ToMany):
    """Rows of a join table have both keys."""

    def keys(self) -> tuple[Meta, tuple[str, ...]]:
        """Return this row's key: of the join table, no types are known."""
        return self.inst.row_meta, self.mine

    @property
    def _junction(self) -> str:
        return table(self.association.options["join_table"])

    # twistar writes ids into the text: the key `t1) or (1=1` was read as SQL.
    def _here(self, keys: Iterable[str]) -> str:
        """Return the condition that a row of the join table has keys of this one's."""
        columns = (f"{self._junction}.{quoted(name)}" for name in self.association.here)
        return self.inst.row_meta.compare(self.mine, columns, keys)

    def _there(self, other: Meta) -> str:
        """Return the condition that a row of the join table has the key of one of the others."""
        columns = (f"{self._junction}.{quoted(name)}" for name in self.association.there)
        return other.compare(
            other.key, (f"{other.table}.{quoted(key)}" for key in other.key), columns
        )

    def where(self, join_where: Where | None = None) -> Where:
        """Return the condition that the join table has the others' keys beside this one's."""
        mine, there = self._here("?" for _ in self.mine), self._there(self.otherklass.meta())
        inner, *params = conjunction(
            [f"{mine} AND {there}", *self.encode(self.values())], join_where
        )
        return [f"EXISTS (SELECT FROM {self._junction} WHERE {inner})", *params]

    def join(self, other: Meta) -> Where:
        """Return what joins the others to the keys, through the join table."""
        here = self._here(f"asked.key_{at}" for at in range(len(self.mine)))
        there = f"JOIN {other.table} ON {self._there(other)}"
        return [f"JOIN {self._junction} ON {here} {there}"]

    async def _set(self, others: Sequence[Any]) -> None:
        meta, own = self.otherklass.meta(), self.encode(self.values())
        keys = meta.encode_rows(meta.key, [key_of(other) for other in others])
        names = identifiers([*self.association.here, *self.association.there])
        marks = ["?" for _ in own]
        async with self.inst.database().transaction():
            await self._run(f"DELETE FROM {self._junction} WHERE {self._here(marks)}", *own)
            if others:
                rows = f"SELECT {', '.join(marks)}, keys.* FROM {meta.rows_of(meta.key)} AS keys"
                await self._run(f"INSERT INTO {self._junction} ({names}) {rows}", *own, *keys)


class BelongsTo(Relationship):
    """This row has the other's key."""

    @property
    def otherklass(self) -> Any:
        """The other model; if it is polymorphic, the one that the row names, or None."""
        if self.association.kind is None:
            return super().otherklass
        # The class by its name, as twistar stores it beside the id.
        name = getattr(self.inst, self.association.kind)
        return Registry.getClass(name) if name else None

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns that hold the other's key."""
        return self.association.there

    @property
    def theirs(self) -> tuple[str, ...]:
        """The other's key."""
        return self.association.key or self.otherklass.meta().key

    def set(self, other: Any) -> Deferred[Any]:
        """
        Set the object that this row belongs to, and save the row.

        Raises:
            ReferenceNotSavedError: The other has no row.
        """
        key = key_of(other)
        if self.association.key is not None:
            key = other._values_of(self.association.key)
        if self.association.kind is not None:
            setattr(self.inst, self.association.kind, type(other).__name__)
        return self._belong(key)

    def clear(self) -> Deferred[Any]:
        """Make this row belong to nothing, and save it."""
        return self._belong([None] * len(self.mine))

    def _belong(self, key: Sequence[Any]) -> Deferred[Any]:
        self._forget()
        self.inst._set_values(self.mine, key)
        return self.inst.save()


class HasOne(Relationship):
    """One other row has this one's key."""

    def set(self, other: Any) -> Deferred[Any]:
        """
        Set this row's key in an object, and save that.

        Raises:
            ReferenceNotSavedError: It has no row.
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
"""What a model may declare."""


def preload(objects: Iterable[Any], *paths: str) -> Deferred[None]:
    """
    Load relationships of objects, in one statement for each relationship and level.

    Afterwards `get()` returns what was loaded, without a statement, until the object is
    refreshed, the relationship is `set` or cleared, or the object's key in it is another.
    Where the others are of several classes, it is a statement for each class.

    Args:
        objects: Of models that have the relationships, found anywhere.
        paths: Names of relationships; after a dot comes one of the related objects:
            `preload(drivers, "vehicles.garage")`.

    Raises:
        ValueError: A class has no relationship of that name.
        InvalidArgument: The key of an object cannot be one of the others.
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
        if other is None or None in values:  # NULL is equal to nothing
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
            # The object may have another key by now: it is kept for the one that it had.
            relationship.keep(state, found[place])
            await other.database().yield_to_reactor(at)
        objects = [each for place in range(len(keys)) for each in found[place]]
        related += await other.initialized(objects)
    return related


def _statement(relationship: Relationship, other: Meta) -> str:
    """
    Return the statement for what is related to keys: the key's number, then the columns.

    Its parameters are a list for each column of the keys, and those of the join.
    """
    meta, names = relationship.keys()
    columns = ", ".join(f"{other.table}.{quoted(name)}" for name in other.columns)
    order = ", ".join(["asked.at", *(f"{other.table}.{quoted(name)}" for name in other.key)])
    # A join table may have a pair of keys more than once.
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
    """Return objects by the place of the key that they are related to; [] for one of none."""
    # In the worker: building 100,000 objects stops the reactor for a second and more.
    lists = [list(each) for each in zip(*keys, strict=True)]
    meta: Meta = model.meta()
    found: dict[int, list[Any]] = defaultdict(list)
    rows = rows_txn(connection, meta.codec, sql, [*lists, *params])
    for row, each in zip(rows, model.hydrate([row[1:] for row in rows], meta), strict=True):
        found[row[0] - 1].append(each)
    return found
