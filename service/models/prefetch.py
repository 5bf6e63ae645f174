"""
Rows that were found together, and what is related to them.

The first row that is asked for a relationship loads it for all of them, in one
statement: a loop over rows asks PostgreSQL once, not once for each row. What was loaded
answers the others as long as it is what they would find themselves, as far as anybody here
can know: in the same transaction or savepoint, or outside of any; for the same caller; as
long as that caller has sent nothing that may change anything; and for `MAX_AGE` seconds, since
others change things, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self
from weakref import ref

from twistar.exceptions import ClassNotRegisteredError
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from service.catalog import Type
from service.db.connection import PgConnection
from service.errors import InvalidArgument
from service.models.meta import Meta
from service.models.record import rows_txn
from service.models.sql import Where
from service.sql.statement import quoted

Key = tuple[str | None, ...]
"""What a row is related by, as PostgreSQL's text."""

CHECKED = frozenset(["int2", "int4", "int8", "text", "varchar"])
"""Types of which PostgreSQL takes whatever we could write."""


@dataclass(frozen=True)
class RelatedQuery:
    """
    How related rows are reached from keys.

    Args:
        model: Of the related rows.
        other: What is known of their relation.
        meta: Of the relation whose columns the keys are compared with, or are the key of.
        names: Those columns.
        join: Joins the related rows, as `other`, to the keys, as `asked`.
        params: Of the join.
        repeats: Whether a row may come more than once for a key.
    """

    model: Any
    other: Meta
    meta: Meta
    names: tuple[str, ...]
    join: str
    params: tuple[Any, ...] = ()
    repeats: bool = False

    @classmethod
    def to(cls, model: Any, names: Sequence[str], condition: Where = ()) -> Self:
        """
        Build the query for the rows that have the keys in these columns.

        Raises:
            InvalidArgument: There are none: the relation has no primary key.
        """
        meta: Meta = model.meta()
        if not names:
            raise InvalidArgument(f"the key of {meta.relation.name} is missing", path="key")
        terms = [*_equal("other", names, meta, names), *condition[:1]]
        join = f"JOIN {meta.table} AS other ON {' AND '.join(terms)}"
        return cls(model, meta, meta, tuple(names), join, tuple(condition[1:]))

    @classmethod
    def through(
        cls, model: Any, meta: Meta, joined: str, here: Sequence[str], there: Sequence[str]
    ) -> Self:
        """Build the query through a join table, from rows of `meta` to the other ones, by their keys."""
        other: Meta = model.meta()
        ends = " AND ".join(
            f"other.{quoted(key)}{other.equal_sign(key)}joined.{quoted(name)}"
            for key, name in zip(other.key, there, strict=True)
        )
        first = f"JOIN {joined} AS joined ON {' AND '.join(_equal('joined', here, meta, meta.key))}"
        join = f"{first} JOIN {other.table} AS other ON {ends}"
        return cls(model, other, meta, meta.key, join, repeats=True)

    def encode_key(self, values: Sequence[Any]) -> list[str | None]:
        """
        Write a key.

        Raises:
            InvalidArgument: It cannot be one.
        """
        return [
            self.meta.encode(name, value) for name, value in zip(self.names, values, strict=True)
        ]

    def accepts(self, types: Sequence[Type]) -> bool:
        """Return whether no key made of stored values of these types can fail."""
        return all(
            type.oid == self.meta.types[name].oid or self.meta.types[name].name in CHECKED
            for type, name in zip(types, self.names, strict=True)
        )

    def statement(self) -> str:
        """
        Return the statement: a row for each key and related row, the key's number first.

        Its parameters are a list for each column of the keys, those of the join, and how many
        rows to give at most.
        """
        keys = ", ".join(_key(at) for at in range(len(self.names)))
        columns = ", ".join(f"other.{quoted(name)}" for name in self.other.columns)
        order = ", ".join(["asked.at", *(f"other.{quoted(name)}" for name in self.other.key)])
        once = f"DISTINCT ON ({order}) " if self.repeats else ""
        return (
            f"SELECT {once}asked.at, {columns}"
            f" FROM {self.meta.rows_of(self.names)} WITH ORDINALITY AS asked ({keys}, at)"
            f" {self.join} ORDER BY {order} LIMIT ?"
        )


def _equal(alias: str, names: Sequence[str], meta: Meta, keys: Sequence[str]) -> list[str]:
    """Return the conditions that columns equal keys, which have the types of other columns."""
    return [
        f"{alias}.{quoted(name)}{meta.equal_sign(key)}asked.{_key(at)}"
        for at, (name, key) in enumerate(zip(names, keys, strict=True))
    ]


def _key(at: int) -> str:
    return f"key_{at}"


GROUP_SIZE = 500
"""Rows of a group, at most: for so many one statement loads what is related."""

USED_SHARE = 8
"""One row in so many has to ask, or fewer are thought of the next time."""

Place = tuple[Any, Key]
"""A model, and what rows are related to objects of it by."""


class Load:
    """
    A statement that runs, and those who wait for it: it is stopped when none is left.

    Args:
        loads: The loads by place; it removes places that its statement did not reach.
        places: What it loads.
    """

    def __init__(self, loads: dict[Place, Load], places: Sequence[Place]) -> None:
        self.found: dict[Place, list[Any]] = {}
        self._loads = loads
        self._places = places
        self._waiting: list[Deferred[None]] | None = []
        self._failure: Failure | None = None
        loads.update(dict.fromkeys(places, self))

    def begin(self, work: Deferred[dict[int, list[Any]]]) -> None:
        """Note the result of `related_txn` for the places."""
        self._work = work.addCallback(self._loaded).addBoth(self._over)

    def done(self) -> Deferred[None]:
        """Wait until it is there; fails as the statement has failed."""
        waiting: Deferred[None] = Deferred(self._left)
        if self._waiting is None:
            waiting.callback(self._failure)
        else:
            self._waiting.append(waiting)
        return waiting

    def _loaded(self, found: dict[int, list[Any]]) -> None:
        self.found = {self._places[at]: objects for at, objects in found.items()}

    def _over(self, outcome: Failure | None) -> None:
        self._forget()
        self._loads = {}  # which would hold us, and we it
        self._failure = outcome
        waiting, self._waiting = self._waiting or [], None
        for each in waiting:
            if not each.called:  # the one before may have cancelled another
                each.callback(self._failure)

    def _forget(self) -> None:
        for place in self._places:
            if place not in self.found and self._loads.get(place) is self:
                del self._loads[place]

    def _left(self, waiting: Deferred[None]) -> None:
        if self._waiting is None:  # it is over, and they are called back
            return
        self._waiting.remove(waiting)
        if not self._waiting:
            self._forget()
            self._work.cancel()


class Prefetched:
    """
    What was loaded of a relationship at one moment, and what is being loaded.

    Args:
        moment: Of the database, for the one who asks.
        before: What was loaded at another moment.

    Attributes:
        asked: How often it was asked for.
    """

    def __init__(self, moment: tuple[Any, ...], before: Prefetched | None) -> None:
        self.moment = moment
        self.loads: dict[Place, Load] = {}
        self.asked = 0
        self._least = GROUP_SIZE if before is None else before.least

    @property
    def least(self) -> int:
        """
        For how many rows the next statement loads it at least.

        Where each row's answer is followed by a write, what others need is loaded in vain.
        """
        return self._least if USED_SHARE * self.asked >= self._least else self._least // USED_SHARE

    @property
    def size(self) -> int:
        """For how many rows a statement loads it: more and more while nothing is written."""
        return min(GROUP_SIZE, max(self._least, 2 * self.asked))


MAX_RELATED = 5000
"""Related rows that one statement loads at most."""

MAX_AGE = 1.0
"""Seconds for which what was loaded is used."""


class Group:
    """
    Rows of one model that were found together; held weakly.

    Args:
        rows: As they were found.
    """

    def __init__(self, rows: Sequence[Any]) -> None:
        self._members = [ref(each) for each in rows]
        self._most = 2 * GROUP_SIZE
        self._prefetched: dict[str, Prefetched] = {}
        self._apart: set[str] = set()

    def add(self, row: Any) -> None:
        """Add a row that is another object of one that was found."""
        if len(self._members) >= self._most:
            self._members = [each for each in self._members if each() is not None]
            self._most = max(2 * GROUP_SIZE, 2 * len(self._members))
        self._members.append(ref(row))

    def get(self, asked: Any) -> Deferred[Any]:
        """Return what is related to one of the rows, and prefetch it for others."""
        query = asked.query()
        if query is None or asked.ends.name in self._apart or not query.accepts(asked.types):
            return asked.alone()
        return ensureDeferred(self._get(asked, query))

    async def _get(self, asked: Any, query: RelatedQuery) -> Any:
        place = query.model, tuple(query.encode_key(asked.values()))
        prefetched = self._current(asked)
        prefetched.asked += 1
        load = prefetched.loads.get(place)
        if load is None:
            places = [place, *self._others(asked, query, place, prefetched)]
            load = Load(prefetched.loads, places)
            keys = [key for _, key in places]
            load.begin(asked.inst.database().run(related_txn, query, keys, MAX_RELATED, retry=True))
        await load.done()
        found = load.found.get(place)
        if found is None:  # too many for one statement: each row asks for its own from now on
            self._apart.add(asked.ends.name)
            return await asked.alone()
        objects = [each._copy() for each in (found[:1] if asked.one else found)]
        await query.model._initialized(objects)
        if asked.one:
            return objects[0] if objects else None
        return objects

    def _current(self, asked: Any) -> Prefetched:
        """Return what is loaded, or being loaded, of a relationship, if it is still current."""
        database, name = asked.inst.database(), asked.ends.name
        moment = database, *database.moment
        prefetched = self._prefetched.get(name)
        if prefetched is None or prefetched.moment != moment:
            prefetched = self._prefetched[name] = Prefetched(moment, prefetched)
            database.reactor.callLater(MAX_AGE, _expire, ref(self), name, ref(prefetched))
        return prefetched

    def _others(
        self, asked: Any, query: RelatedQuery, place: Place, prefetched: Prefetched
    ) -> Iterator[Place]:
        """Return what the other rows need as well, those that come next first."""
        seen, size, loads = {place}, prefetched.size, prefetched.loads
        for row in self._following(asked.inst):
            if len(seen) >= size:
                return
            theirs = _place(type(asked)(row, asked.ends), query)
            if theirs is not None and theirs not in seen and theirs not in loads:
                seen.add(theirs)
                yield theirs

    def _following(self, row: Any) -> list[Any]:
        rows = [each for member in self._members if (each := member()) is not None]
        at = next((at for at, each in enumerate(rows) if each is row), 0)
        return rows[at + 1 :] + rows[:at]


def related_txn(
    connection: PgConnection, query: RelatedQuery, keys: Sequence[Key], most: int
) -> dict[int, list[Any]]:
    """
    Find what is related to keys.

    Returns:
        The objects by the key's place among the keys. If there are more than `most`, the keys
        that come last are left out.
    """
    lists = [list(each) for each in zip(*keys, strict=True)]
    params = [*lists, *query.params, most + 1]
    rows = rows_txn(connection, query.other.codec, query.statement(), params)
    objects = query.model.hydrate([row[1:] for row in rows], query.other)
    # a single one, too: it may be related to many, and is each one's own then
    group_objects(objects)
    complete = rows[-1][0] - 1 if len(rows) > most else len(keys)
    found: dict[int, list[Any]] = {at: [] for at in range(complete)}
    for row, each in zip(rows, objects, strict=True):
        if row[0] <= complete:
            found[row[0] - 1].append(each)
    return found


def group_objects(rows: Sequence[Any]) -> None:
    """Group objects of one model, so that one prefetches for all."""
    for start in range(0, len(rows), GROUP_SIZE):
        some = rows[start : start + GROUP_SIZE]
        group = Group(some)
        for each in some:
            each._group = group


def _place(other: Any, query: RelatedQuery) -> Place | None:
    """Return what another row needs, if asking for it cannot fail."""
    try:
        if not other.as_read or other.otherklass is not query.model:
            return None
        values = other.values()
        return None if None in values else (query.model, tuple(query.encode_key(values)))
    except (InvalidArgument, ClassNotRegisteredError):  # which is for that row to say
        return None


def _expire(group: ref[Group], name: str, prefetched: ref[Prefetched]) -> None:
    """Drop what is too old, if it is still there."""
    here, known = group(), prefetched()
    if here is not None and known is not None and here._prefetched.get(name) is known:
        del here._prefetched[name]
