"""
What callers have missed who come back to a query with a position.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.changes.epochs import resumed_txn
from service.changes.log import read_txn
from service.changes.match import Index
from service.changes.positions import PgSnapshot, Position, SnapshotPosition
from service.changes.refresh import Run, wire_keys
from service.changes.touched import (
    Key,
    RowChange,
    may_read_all_txn,
    own_keys,
    related_txn,
    row_change,
)
from service.db.connection import PgConnection
from service.db.transaction import Actor

TRACKED = """
SELECT ARRAY(SELECT relation::oid::bigint FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}')),
       ARRAY(SELECT since::text FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}'))
"""
OURSELVES = Actor()

MOST_MISSED = 100_000
"""Changes that are kept for all who come back at once; who has missed more gets all rows anew."""


@dataclass(frozen=True, slots=True)
class Since:
    """
    What the log has since a snapshot.

    Args:
        snapshot: That one.
        changes: All of them.
        own: Keys of changed rows of the relation itself, of the queries that they may concern; None
            for all rows.
    """

    snapshot: PgSnapshot
    changes: Sequence[RowChange]
    own: Mapping[Run, set[Key] | None]


class Missed:
    """
    What the log has since positions, in one transaction.

    Many come back at once, from one state: that of the service that they were at. So each change is
    read once for all of them, and looked at more closely only for those that it may concern.

    Args:
        runs: Of the queries to which callers come back.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._index: Index[Run] = Index()
        for run in runs:
            if run.keyed is not None and run.keyed.root is not None:
                self._index.add(run, run.keyed.root, run.terms)
        # None where it is not all there, or too much.
        self._read: dict[Position, Since | None] = {}

    def read_txn(self, connection: PgConnection, positions: Collection[Position]) -> None:
        """Read what the log has since positions, the newest first: anybody can make up old ones."""
        if not positions:
            return
        connection.act(OURSELVES)
        places = {_place(each) for each in positions}
        self._read = dict.fromkeys(places)
        before = resumed_txn(connection, places)
        known = [(each, place) for place, each in before.items() if each is not None]
        room = MOST_MISSED
        for snapshot, place in sorted(known, key=lambda each: each[0].xmax, reverse=True):
            if room > 0 and (found := self._since_txn(connection, snapshot)):
                self._read[place] = found
                room -= len(found.changes)

    def keys_txn(self, connection: PgConnection, run: Run, since: Position) -> Sequence[Any] | None:
        """Return the keys of all rows that may be others than at a position; None if that is unknown."""
        known = self._read[_place(since)]
        if known is None:
            return None
        connection.act(OURSELVES)
        oids, tracked = connection.ask(TRACKED.format(ids=",".join(map(str, run.reads))))
        # What came before a table was tracked is in no log, nor is what came after, under this number.
        if len(tracked) < len(run.reads) or not all(map(known.snapshot.sees, map(int, tracked))):
            return None
        changes = [change for change in known.changes if change.relation in run.reads]
        if not changes:
            return []
        return _keys_txn(connection, run, known.own.get(run, set()), changes, oids)

    def _since_txn(self, connection: PgConnection, snapshot: PgSnapshot) -> Since | None:
        """Return what the log has since a snapshot; None if it is too much."""
        rows = read_txn(connection, snapshot)
        if rows is None:
            return None
        changes = list(map(row_change, rows))
        return Since(snapshot, changes, self._own(changes))

    def _own(self, changes: Iterable[RowChange]) -> dict[Run, set[Key] | None]:
        found: dict[Run, set[Key] | None] = {}
        for change in changes:
            for run in self._index.matching(change.relation, change.old, change.new):
                assert run.keyed is not None
                known, keys = found.setdefault(run, set()), own_keys(run.keyed, [change])
                if known is None or keys is None:
                    found[run] = None
                else:
                    known.update(keys)
        return found


def _place(position: Position) -> Position:
    """Return where a position is, whatever it is a position of."""
    return replace(position, query="") if isinstance(position, SnapshotPosition) else position


def _keys_txn(
    connection: PgConnection,
    run: Run,
    own: set[Key] | None,
    changes: Sequence[RowChange],
    oids: Sequence[int],
) -> Sequence[Any] | None:
    keyed = run.keyed
    if keyed is None or run.shown is not None:
        return None
    connection.act(run.actor)
    # Not only of the relation itself: a change of rows that a policy hides would say that there are some.
    if not may_read_all_txn(connection, oids):
        return None
    actor = OURSELVES if run.shape.shared else run.actor
    related = related_txn(connection, actor, run.shape.codec, keyed, changes)
    if own is None or related is None:
        return None
    return wire_keys(run, own | related.rows | related.related)
