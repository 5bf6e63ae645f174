"""
Relationships of models: twistar's BELONGSTO, HASONE, HASMANY and HABTM.

They are worked out once, when the class is made. Queries have parameters with the columns' own
types, and a `set` is one transaction. Asked without conditions, a row that was found with others
asks for all of them (`prefetch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from BermiInflector.Inflector import Inflector
from twistar import relationships
from twistar.exceptions import InvalidRelationshipError, ReferenceNotSavedError
from twistar.registry import Registry
from twisted.internet.defer import Deferred, ensureDeferred, succeed

from service.catalog import Type
from service.models.meta import Meta
from service.models.prefetch import RelatedQuery, group_objects
from service.models.record import Queries, affected_txn
from service.models.sql import Where, both, identifiers, table
from service.sql.statement import quoted


@dataclass(frozen=True)
class Ends:
    """
    How two models are related, worked out once when the class is made.

    Args:
        name: The attribute.
        other: The other model's registered name, or a function that returns the class;
            None if each row says it.
        here: The columns that hold this model's key.
        there: The columns that hold the other model's key.
        key: The columns that are referred to, where they are not the primary key.
        options: As the class declared them.
    """

    name: str
    other: str | Callable[[], Any] | None
    here: tuple[str, ...]
    there: tuple[str, ...]
    key: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class Relationship(ABC):
    """
    What all four share.

    Attributes:
        one: Whether there is one other at most.
    """

    one: ClassVar[bool] = True

    def __init__(self, inst: Any, ends: Ends) -> None:
        self.inst = inst
        self.ends = ends

    @property
    def otherklass(self) -> Any:
        """The other model."""
        other = self.ends.other
        return other() if callable(other) else Registry.getClass(other)

    @property
    def mine(self) -> tuple[str, ...]:
        """The columns of this row that say what is related to it."""
        return self.ends.key or self.inst.made_with.key

    @property
    def types(self) -> list[Type]:
        """The types of these columns."""
        return [self.inst.made_with.types[name] for name in self.mine]

    @property
    def as_read(self) -> bool:
        """Whether this row is there, with these columns as they were read."""
        return self.inst.persisted and not set(self.mine) & set(self.inst.dirty())

    @abstractmethod
    def query(self) -> RelatedQuery | None:
        """Return the query for what is related to rows; None if nothing can be."""

    @abstractmethod
    def alone(self) -> Deferred[Any]:
        """Find what is related to this row, and to no other."""

    def get(self) -> Deferred[Any]:
        """Return the one object, or None."""
        group = self.inst._group
        return self.alone() if group is None else group.get(self)

    def values(self, subject: Any = None) -> list[Any]:
        """Return the values of this row, or another one, in the columns that are related by."""
        subject = self.inst if subject is None else subject
        if not subject.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        attributes = subject.made_with.attributes
        return [getattr(subject, attributes[name]) for name in self.mine]

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
        """The condition on the class of the rows with the key, of a polymorphic relationship."""
        column = self._kind_column
        return (
            [f"{quoted(column)} OPERATOR(pg_catalog.=) ?", type(self.inst).__name__]
            if column
            else []
        )

    def query(self) -> RelatedQuery:
        """Return the query for the rows that have these keys in them."""
        return RelatedQuery.to(self.otherklass, self._here, self._kind)

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
        """Return the objects; with arguments of `find`, those that it finds among them."""
        if not options:
            return super().get()
        where = both(self._where(), options.pop("where", None))
        return self.otherklass.find(where=where, **options)

    def count(self, **options: Any) -> Deferred[int]:
        """Count the objects, of those that `where` speaks of."""
        return self.otherklass.count(where=both(self._where(), options.get("where")))

    def set(self, others: Sequence[Any]) -> Deferred[Any]:
        """Replace what is related by these objects, in one transaction."""
        return ensureDeferred(self._set([*others]))

    def clear(self) -> Deferred[Any]:
        """Remove all relations to others."""
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
        """Return the join table's name."""
        return self.ends.options["join_table"]

    def query(self) -> RelatedQuery:
        """Return the query through the join table."""
        meta = self.inst.made_with
        joined = table(self.tablename())
        return RelatedQuery.through(self.otherklass, meta, joined, self.ends.here, self.ends.there)

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
        """The condition that a row of the join table has this row's key."""
        meta = self.inst.made_with
        ends = zip(self.ends.here, self.mine, strict=True)
        return " AND ".join(f"{quoted(name)}{meta.equal_sign(key)}?" for name, key in ends)

    def alone(self) -> Deferred[Any]:
        """Find the objects of this row."""
        return self.otherklass.find(where=self._where(None, None))

    def get(self, **options: Any) -> Deferred[Any]:
        """
        Return the objects; with arguments of `find`, those that it finds among them.

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
        """Replace what is related by these objects, in one transaction."""
        return ensureDeferred(self._set([key_of(other) for other in others]))

    def clear(self) -> Deferred[Any]:
        """Remove all relations to others."""
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

    def query(self) -> RelatedQuery | None:
        """Return the query for the rows that have these keys."""
        other = self.otherklass
        if other is None or None in self.values():
            return None
        return RelatedQuery.to(other, self.ends.key or other.meta().key)

    def alone(self) -> Deferred[Any]:
        """Find the object that this one belongs to, or None."""
        query = self.query()
        if query is None:
            return succeed(None)
        where = [query.meta.equal(query.names), *query.encode_key(self.values())]
        return query.model.find(where=where, limit=1)

    def set(self, other: Any) -> Deferred[Any]:
        """Set the object that this one belongs to, and save."""
        key = key_of(other)
        if self.ends.key is not None:
            key = tuple(getattr(other, other.made_with.attributes[n]) for n in self.ends.key)
        if self.ends.other is None:
            setattr(self.inst, f"{self.ends.name}_type", type(other).__name__)
        return self._belong(key)

    def clear(self) -> Deferred[Any]:
        """Clear the object that this one belongs to, and save."""
        return self._belong([None] * len(self.mine))

    def _belong(self, key: Sequence[Any]) -> Deferred[Any]:
        attributes = self.inst.made_with.attributes
        for name, value in zip(self.mine, key, strict=True):
            setattr(self.inst, attributes[name], value)
        return self.inst.save()


class HasOne(Relationship, relationships.HasOne):
    """One other row has this one's key."""

    def query(self) -> RelatedQuery:
        """Return the query for the rows that have these keys in them."""
        return RelatedQuery.to(self.otherklass, self.ends.here)

    def alone(self) -> Deferred[Any]:
        """Find the object, or None."""
        query = self.query()
        where = [query.meta.equal(query.names), *query.encode_key(self.values())]
        return query.model.find(where=where, limit=1)

    def set(self, other: Any) -> Deferred[Any]:
        """Set this one as what the other belongs to, and save the other."""
        key_of(other)
        attributes = other.made_with.attributes
        for name, value in zip(self.ends.here, self.values(), strict=True):
            setattr(other, attributes[name], value)
        return other.save()


TYPES: dict[str, type[Relationship]] = {
    "HASMANY": HasMany,
    "HASONE": HasOne,
    "BELONGSTO": BelongsTo,
    "HABTM": HABTM,
}
"""What a model may declare."""


class Property:
    """The attribute of a relationship."""

    def __init__(self, kind: type[Relationship], ends: Ends) -> None:
        self.kind = kind
        self.ends = ends

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        if not instance.persisted:
            raise ReferenceNotSavedError("save an object before it is related to others")
        return self.kind(instance, self.ends)


class Related(Queries):
    """A model's relationships, worked out when the class is made."""

    RELATIONSHIP_CACHE: ClassVar[dict[str, tuple[type, Mapping[str, Any]]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.initRelationshipCache()

    @classmethod
    def initRelationshipCache(cls) -> None:
        """Register what HASMANY, HASONE, BELONGSTO and HABTM declare."""
        cls.RELATIONSHIP_CACHE = {}
        for kind in TYPES:
            for declared in getattr(cls, kind):
                cls.addRelation(declared, kind)

    @classmethod
    def addRelation(cls, relation: str | Mapping[str, Any], rtype: str) -> None:
        """
        Add a relationship.

        Raises:
            twistar.exceptions.InvalidRelationshipError: It has no name; or no join table,
                whose name twistar could only guess.
        """
        options = dict(relation) if isinstance(relation, Mapping) else {"name": relation}
        name = options.pop("name", None)
        if name is None:
            raise InvalidRelationshipError(f"a relationship of {cls.__name__} has no name")
        if rtype == "HABTM" and "join_table" not in options:
            raise InvalidRelationshipError(f"{cls.__name__}.{name} has no join_table")
        words = Inflector()
        given = options.get("class_name", name)
        # A class's own name is taken at its word: the Inflector would make Statu of Status.
        class_name = given if given[:1].isupper() else words.classify(given)
        here = options.get("foreign_key") or words.foreignKey(cls.__name__)
        there = options.get("association_foreign_key") or words.foreignKey(words.singularize(name))
        if options.get("polymorphic"):
            class_name, there = None, f"{name}_id"
        ends = Ends(name, class_name, _names(here), _names(there), options=options)
        cls.relate(TYPES[rtype], ends)

    @classmethod
    def relate(cls, kind: type[Relationship], ends: Ends) -> None:
        """Add a relationship that is worked out already."""
        cls.RELATIONSHIP_CACHE[ends.name] = (kind, ends.options)
        setattr(cls, ends.name, Property(kind, ends))

    @classmethod
    def hydrate(cls, rows: Sequence[tuple[Any, ...]], meta: Meta) -> list[Self]:
        """Build objects of rows, grouped if the model has relationships."""
        made = super().hydrate(rows, meta)
        if cls.RELATIONSHIP_CACHE and len(made) > 1:
            group_objects(made)
        return made

    def _copy(self) -> Self:
        """Build another object of the same row, in the same group."""
        assert self._row is not None
        (made,) = self.hydrate([self._row], self.made_with)
        made._group = self._group
        if self._group is not None:
            self._group.add(made)
        return made

    def joined(self) -> list[HABTM]:
        """Return the relationships that have rows in join tables."""
        return [
            getattr(self, name)
            for name, (kind, _) in self.RELATIONSHIP_CACHE.items()
            if kind is HABTM
        ]


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a key, given as a list, or as the name of one."""
    return (given,) if isinstance(given, str) else tuple(given)


def preload(objects: Iterable[Related], name: str) -> Deferred[list[Any]]:
    """
    Load a relationship of objects of one model, a statement for some hundreds of them.

    Objects that were found together need no such thing: they do it by themselves. From now on
    these do, too.

    Args:
        objects: All of the same class.
        name: Of the relationship.

    Returns:
        For each object the result of its relationship's `get`.
    """
    return ensureDeferred(_preloaded(list(objects), name))


async def _preloaded(objects: Sequence[Any], name: str) -> list[Any]:
    group_objects(objects)
    found = []
    for at, each in enumerate(objects):
        found.append(await getattr(each, name).get())
        await each.database().yield_to_reactor(at)
    return found
