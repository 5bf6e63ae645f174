"""
What callers have missed who come back to a query with a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.changes.log import MOST_ROWS, LogRow, read_txn
from service.changes.positions import PgSnapshot, Position, SnapshotPosition
from service.changes.refresh import Run, wire_keys
from service.changes.touched import own_keys, related_txn, row_change
from service.db.connection import PgConnection
from service.db.transaction import Actor

PRUNED = """
SELECT coalesce((SELECT pruned_below FROM rowcast.epochs WHERE epoch = {epoch:d})::text, '0')
"""
TRACKED = """
SELECT ARRAY(SELECT relation::oid::text FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}')),
       ARRAY(SELECT since::text FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}'))
"""
# Not only of the relation itself: a change of rows that a policy hides would say that there are some.
MAY_READ_ALL = """
SELECT bool_and(pg_catalog.has_table_privilege(oid, 'SELECT') AND NOT pg_catalog.row_security_active(oid))
  FROM pg_catalog.unnest('{{{oids}}}'::oid[]) AS oid
"""
TICK = """
SELECT (SELECT snapshot::text FROM rowcast.ticks WHERE epoch = {epoch:d} AND tick = {tick:d} - 1)
"""

OURSELVES = Actor()

Since = tuple[PgSnapshot, list[LogRow]] | None
"""A snapshot, and what the log has since; None if it is not all there, or too much."""


class Missed:
    """
    What the log has since positions, in one transaction.

    Many come back at once, from one state: that of the service that they were at.

    Args:
        now: What the transaction sees.
    """

    def __init__(self, now: SnapshotPosition) -> None:
        self._now = now
        self._read: dict[Position, Since] = {}

    def keys_txn(self, connection: PgConnection, run: Run, since: Position) -> Sequence[Any] | None:
        """Return the keys of all rows that may be others than at a position; None if that is unknown."""
        place = replace(since, query="") if isinstance(since, SnapshotPosition) else since
        connection.act(OURSELVES)
        if place not in self._read:
            self._read[place] = self._since_txn(connection, place)
        known = self._read[place]
        if known is None:
            return None
        snapshot, logged = known
        oids, tracked = connection.ask(TRACKED.format(ids=",".join(map(str, run.reads))))
        # What came before a table was tracked is in no log.
        if not all(snapshot.sees(int(xid)) for xid in tracked):
            return None
        rows = [row for row in logged if row.relation in run.reads]
        return _keys_txn(connection, run, rows, oids) if rows else []

    def _since_txn(self, connection: PgConnection, since: Position) -> Since:
        now, snapshot = self._now, _snapshot_txn(connection, since)
        if snapshot is None or since.epoch != now.epoch or snapshot.xmax > now.snapshot.xmax:
            return None
        (pruned,) = connection.ask(PRUNED.format(epoch=now.epoch))
        if snapshot.xmin < int(pruned):
            return None
        rows = read_txn(connection, snapshot, MOST_ROWS + 1)
        return (snapshot, rows) if len(rows) <= MOST_ROWS else None


def _keys_txn(
    connection: PgConnection, run: Run, rows: Sequence[LogRow], oids: Sequence[str]
) -> Sequence[Any] | None:
    keyed = run.keyed
    if keyed is None or keyed.shown is not None:
        return None
    connection.act(run.actor)
    (may,) = connection.ask(MAY_READ_ALL.format(oids=",".join(oids)))
    if not may:
        return None
    changes = list(map(row_change, rows))
    own = own_keys(keyed.plan, changes)
    actor = OURSELVES if keyed.shared else run.actor
    related = related_txn(connection, actor, run.codec, keyed.plan, changes)
    if own is None or related is None:
        return None
    return wire_keys(run, own | related.rows | related.related)


def _snapshot_txn(connection: PgConnection, position: Position) -> PgSnapshot | None:
    """Return a snapshot in which all that comes after a position is not visible; None if it is lost."""
    if isinstance(position, SnapshotPosition):
        return position.snapshot
    (text,) = connection.ask(TICK.format(epoch=position.epoch, tick=position.tick))
    return None if text is None else PgSnapshot.parse(text)
