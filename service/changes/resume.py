"""
Resuming a watch from a position: which rows may have changed since.

The log since the position names the keys that were touched, so any service can resume a watch without a
state of its own. Windows, and queries whose caller may not see all rows, start over.
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
    groups_txn,
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
SERVICE_ACTOR = Actor()

MOST_MISSED = 100_000
"""Maximum number of changes kept for all callers that resume in one cycle; the others get all rows."""


@dataclass(frozen=True, slots=True)
class Since:
    """
    The changes in the log since a snapshot.

    Args:
        snapshot: The snapshot.
        changes: All changes since.
        own: For each query, the keys of changed rows of its root relation that may concern it; None
            for all rows.
    """

    snapshot: PgSnapshot
    changes: Sequence[RowChange]
    own: Mapping[Run, set[Key] | None]


class MissedChanges:
    """
    The changes since the positions of callers that resume, within one transaction.

    After a service has stopped, its callers resume all at once, most of them from the same position. So each
    change is read once for all of them, and examined only for the queries that it may concern.

    Args:
        runs: The queries that callers resume.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._index: Index[Run] = Index()
        for run in runs:
            if run.keyed is not None and run.keyed.root is not None:
                self._index.add(run, run.keyed.root, run.terms)
        # None for a position whose changes are not all in the log, or are too many.
        self._read: dict[Position, Since | None] = {}

    def read_txn(self, connection: PgConnection, positions: Collection[Position]) -> None:
        """
        Read the changes since positions, the newest positions first.

        Those are of callers that have just lost their connection, while old ones may be made up.
        """
        if not positions:
            return
        connection.act(SERVICE_ACTOR)
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
        """Return the keys of all rows that may have changed since a position; None if they are unknown."""
        known = self._read[_place(since)]
        if known is None:
            return None
        connection.act(SERVICE_ACTOR)
        oids, tracked = connection.ask(TRACKED.format(ids=",".join(map(str, run.reads))))
        # A table that was not tracked yet at the position, or is not any more, has changes that are not
        # in the log, or that are there under another number.
        if len(tracked) < len(run.reads) or not all(map(known.snapshot.sees, map(int, tracked))):
            return None
        changes = [change for change in known.changes if change.relation in run.reads]
        if not changes:
            return []
        return _keys_txn(connection, run, known.own.get(run, set()), changes, oids)

    def _since_txn(self, connection: PgConnection, snapshot: PgSnapshot) -> Since | None:
        """Return the changes in the log since a snapshot; None if they are too many."""
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
    """Return a position without the digest of its query."""
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
    # For all relations that are read, because the key of a row that a policy hides would reveal the row.
    if not may_read_all_txn(connection, oids):
        return None
    actor = SERVICE_ACTOR if run.shape.shared else run.actor
    related = related_txn(connection, actor, run.shape.codec, keyed, changes)
    if own is None or related is None:
        return None
    keys = own | related.rows | related.related
    if keyed.groups:
        groups = groups_txn(connection, actor, run.shape.codec, keyed, changes, keys)
        if groups is None:
            return None
        keys = set().union(*groups.values())
    return wire_keys(run, keys)
