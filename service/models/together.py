"""
Rows that were found together, and what is related to them.

The first row that is asked for a relationship has it brought for all of them, in one
statement: a loop over rows asks PostgreSQL once, not once for each row. What was brought
answers the others as long as it is what they would find themselves, as far as anybody here
can know: in the same transaction or savepoint, or outside of any; for the same caller; as
long as that caller has sent nothing that may change anything; and for `FRESH` seconds, since
others change things, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import ref

from twistar.exceptions import ClassNotRegisteredError
from twisted.internet.defer import Deferred, ensureDeferred

from service.db.connection import PgConnection
from service.errors import InvalidArgument
from service.models.brought import SIZE, Brought, Load, Place
from service.models.finding import rows_txn
from service.models.way import Key, Way

MOST = 5000
"""Related rows that one statement brings at most."""

FRESH = 1.0
"""Seconds for which what was brought is good."""


class Together:
    """
    Rows of one model. They know each other as long as somebody else knows them.

    Args:
        rows: As they were found.
    """

    def __init__(self, rows: Sequence[Any]) -> None:
        self._members = [ref(each) for each in rows]
        self._most = 2 * SIZE
        self._brought: dict[str, Brought] = {}
        self._apart: set[str] = set()

    def add(self, row: Any) -> None:
        """Take a row in that is another object of one that was found."""
        if len(self._members) >= self._most:
            self._members = [each for each in self._members if each() is not None]
            self._most = max(2 * SIZE, 2 * len(self._members))
        self._members.append(ref(row))

    def get(self, asked: Any) -> Deferred[Any]:
        """Give what a relationship of one of the rows gives, and have it brought for others."""
        way = asked.way()
        if way is None or asked.ends.name in self._apart or not way.takes(asked.types):
            return asked.alone()
        return ensureDeferred(self._get(asked, way))

    async def _get(self, asked: Any, way: Way) -> Any:
        place = way.model, tuple(way.written(asked.values()))
        brought = self._current(asked)
        brought.asked += 1
        load = brought.loads.get(place)
        if load is None:
            places = [place, *self._others(asked, way, place, brought)]
            load = Load(brought.loads, places)
            keys = [key for _, key in places]
            load.begin(asked.inst.database().run(related_txn, way, keys, MOST, retry=True))
        await load.done()
        found = load.found.get(place)
        if found is None:  # too many for one statement: each row asks for its own from now on
            self._apart.add(asked.ends.name)
            return await asked.alone()
        objects = [each._twin() for each in (found[:1] if asked.one else found)]
        await way.model._initialized(objects)
        if asked.one:
            return objects[0] if objects else None
        return objects

    def _current(self, asked: Any) -> Brought:
        """Give what is there and on its way of a relationship, if it is still good."""
        database, name = asked.inst.database(), asked.ends.name
        moment = database, *database.moment
        brought = self._brought.get(name)
        if brought is None or brought.moment != moment:
            brought = self._brought[name] = Brought(moment, brought)
            database.reactor.callLater(FRESH, _expire, ref(self), name, ref(brought))
        return brought

    def _others(self, asked: Any, way: Way, place: Place, brought: Brought) -> Iterator[Place]:
        """Give what the other rows need as well, those that come next first."""
        seen, size, loads = {place}, brought.size, brought.loads
        for row in self._following(asked.inst):
            if len(seen) >= size:
                return
            theirs = _place(type(asked)(row, asked.ends), way)
            if theirs is not None and theirs not in seen and theirs not in loads:
                seen.add(theirs)
                yield theirs

    def _following(self, row: Any) -> list[Any]:
        rows = [each for member in self._members if (each := member()) is not None]
        at = next((at for at, each in enumerate(rows) if each is row), 0)
        return rows[at + 1 :] + rows[:at]


def related_txn(
    connection: PgConnection, way: Way, keys: Sequence[Key], most: int
) -> dict[int, list[Any]]:
    """
    Find what is related to keys.

    Returns:
        The objects by the key's place among the keys. If there are more than `most`, the keys
        that come last are left out.
    """
    lists = [list(each) for each in zip(*keys, strict=True)]
    params = [*lists, *way.params, most + 1]
    rows = rows_txn(connection, way.other.codec, way.statement(), params)
    objects = way.model.hydrate([row[1:] for row in rows], way.other)
    acquaint(objects)  # a single one, too: it may be related to many, and is each one's own then
    whole = rows[-1][0] - 1 if len(rows) > most else len(keys)
    found: dict[int, list[Any]] = {at: [] for at in range(whole)}
    for row, each in zip(rows, objects, strict=True):
        if row[0] <= whole:
            found[row[0] - 1].append(each)
    return found


def acquaint(rows: Sequence[Any]) -> None:
    """Have objects of one model know each other."""
    for start in range(0, len(rows), SIZE):
        some = rows[start : start + SIZE]
        group = Together(some)
        for each in some:
            each._together = group


def _place(other: Any, way: Way) -> Place | None:
    """Give what another row needs, if it is sure that its need does no harm."""
    try:
        if not other.as_read or other.otherklass is not way.model:
            return None
        values = other.values()
        return None if None in values else (way.model, tuple(way.written(values)))
    except (InvalidArgument, ClassNotRegisteredError):  # which is for that row to say
        return None


def _expire(group: ref[Together], name: str, brought: ref[Brought]) -> None:
    """Let go of what is no longer good, if anybody still has it."""
    here, known = group(), brought()
    if here is not None and known is not None and here._brought.get(name) is known:
        del here._brought[name]
