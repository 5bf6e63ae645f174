"""
Invalidation: which watched queries, and which of their rows, the changes of a cycle may have changed.

For a caller that resumes a watch from a position, these are the changes in the log since. The log names the
keys that were touched, so any service can resume a watch without a state of its own. Windows, and queries
whose caller may not see all rows, start over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from service.changes.delta import FoundRows, State
from service.changes.log import PgSnapshot, read_txn
from service.changes.match import Index
from service.changes.positions import Position, SnapshotPosition, resumed_txn
from service.changes.refresh import (
    Run,
    TouchedRows,
    WatchShape,
    batch_txn,
    is_few,
    limit_time,
    names_of,
    wire_keys,
)
from service.changes.touched import (
    Key,
    KeyPlan,
    RowChange,
    Touched,
    groups_txn,
    may_read_all_txn,
    own_keys,
    related_txn,
    row_change,
)
from service.db.connection import PgConnection
from service.db.session_settings import Identity
from service.db.transaction import Actor

Found = TypeVar("Found")

SERVICE_ACTOR = Actor()
"""Looks up what the service's own role may see for all callers."""

MOST_PAIRS = 100_000
"""Maximum number of pairs of a change and a query that are examined in a cycle: about 0.1 s."""

MOST_TOGETHER = 100
"""Maximum number of queries whose rows are read by one statement."""


@dataclass
class Affected:
    """
    The queries that the changes of a cycle affect.

    Attributes:
        all_rows: Queries of which any row may have changed.
        own: For each query, the keys of changed rows of its root relation that may concern it.
        related: Groups of queries that read related rows, some of which have changed.
    """

    all_rows: set[Run] = field(default_factory=set)
    own: dict[Run, set[Key]] = field(default_factory=dict)
    related: set[RunGroup] = field(default_factory=set)

    def add(self, run: Run, change: RowChange) -> None:
        """Add the keys of a changed row of a query's root relation; all rows if they are not known."""
        assert run.keyed is not None
        keys = own_keys(run.keyed, change)
        if keys is None:
            self.all_rows.add(run)
        else:
            self.own.setdefault(run, set()).update(keys)


class RunGroup:
    """
    Queries that share the lookup of related rows: of one shape, and of one caller unless all see all rows.

    Attributes:
        name: What the queries have in common.
        keyed: How changes lead to keys of rows; None if they do not.
        runs: The queries.
        reads: Numbers of the tracked relations that they read.
        all_rows: Those relations of which a change may change any row of the queries.
        related: Those relations whose rows lead to keys of the queries' rows.
    """

    def __init__(self, name: Hashable, reads: frozenset[int], keyed: KeyPlan | None) -> None:
        self.name = name
        self.keyed = keyed
        self.runs: set[Run] = set()
        self.reads = reads
        self.all_rows = reads
        self.related = frozenset[int]()
        if keyed is not None:
            self.all_rows = (reads - keyed.keyed.keys()) | (keyed.all_rows & keyed.keyed.keys())
            self.related = keyed.related


class WatchedRuns:
    """
    The watched queries, indexed by the changes that concern them; used by the thread of the cycles only.

    Attributes:
        states: Last known state of each query.
        stale: Queries whose state may be wrong, so that all rows have to be read.
    """

    def __init__(self) -> None:
        self.states: dict[Run, State] = {}
        self.stale: set[Run] = set()
        self._index: Index[Run] = Index()
        self._groups: dict[Hashable, RunGroup] = {}
        self._reading: dict[int, set[RunGroup]] = {}
        self._all_rows: dict[int, set[RunGroup]] = {}
        self._related: dict[int, set[RunGroup]] = {}

    def keep(self, run: Run, state: State) -> None:
        """Add a query with its state, or replace its state."""
        if run not in self.states:
            self._add(run)
        self.states[run] = state

    def drop(self, run: Run) -> None:
        """Remove a query, if it is here."""
        if run in self.states:
            self._remove(run)
            del self.states[run]
        self.stale.discard(run)

    def affected(self, changes: Sequence[RowChange]) -> Affected:
        """Return the queries that changes may affect."""
        found = Affected()
        pairs = 0
        for change in changes:
            relation = change.relation
            # Other operations, such as a truncation, name no rows.
            if change.op not in ("I", "U", "D") or pairs > MOST_PAIRS:
                _put_runs(found.all_rows, self._reading.get(relation))
                continue
            _put_runs(found.all_rows, self._all_rows.get(relation))
            matching = self._index.matching(relation, change.old, change.new)
            pairs += len(matching)
            for run in matching - found.all_rows:
                found.add(run, change)
            found.related |= self._related.get(relation, set())
        return found

    def _add(self, run: Run) -> None:
        name = _group_name(run)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = RunGroup(name, run.reads, run.keyed)
            for places, relations in self._places(group):
                for relation in relations:
                    places.setdefault(relation, set()).add(group)
        group.runs.add(run)
        if run.keyed is not None and run.keyed.root is not None:
            self._index.add(run, run.keyed.root, run.terms)

    def _remove(self, run: Run) -> None:
        group = self._groups[_group_name(run)]
        group.runs.discard(run)
        if run.keyed is not None and run.keyed.root is not None:
            self._index.remove(run, run.keyed.root, run.terms)
        if group.runs:
            return
        del self._groups[group.name]
        for places, relations in self._places(group):
            for relation in relations:
                places[relation].discard(group)
                if not places[relation]:
                    del places[relation]

    def _places(self, group: RunGroup) -> Iterator[tuple[dict[int, set[RunGroup]], frozenset[int]]]:
        """Yield the indexes that have a group, each with the relations under which they have it."""
        yield self._reading, group.reads
        yield self._all_rows, group.all_rows
        yield self._related, group.related


def _group_name(run: Run) -> tuple[WatchShape, bool, frozenset[int], Identity | None]:
    """Return what queries have in common that share the lookup of related rows."""
    keyed = run.keyed
    alone = keyed is not None and keyed.related and not run.shape.shared
    return run.shape, keyed is not None, run.reads, run.actor.identity if alone else None


def _put_runs(into: set[Run], groups: set[RunGroup] | None) -> None:
    for group in groups or ():
        into |= group.runs


def touched_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    changes: Sequence[RowChange],
) -> dict[Run, TouchedRows | None]:
    """
    Return the touched rows of each query that changes may affect; None for all rows of a query.

    Args:
        connection: In the snapshot in which the changes were read.
        watched: The watched queries.
        changes: All changes of the cycle.
    """
    affected, states = watched.affected(changes), watched.states
    found: dict[Run, set[Key] | None] = dict(affected.own)
    for group in affected.related:
        rest = [run for run in group.runs if run not in affected.all_rows]
        if rest:
            touched = _looked_up_txn(connection, rest[0], related_txn, changes)
            for run, keys in _touched_keys(rest, touched, states):
                before = found.get(run, set())
                found[run] = None if keys is None or before is None else before | keys
    found.update(dict.fromkeys(affected.all_rows))
    _find_groups_txn(connection, found, changes)
    together = _together_txn(connection, found, states)
    return {
        run: None if keys is None else TouchedRows(frozenset(keys), together.get(run))
        for run, keys in found.items()
    }


def _find_groups_txn(
    connection: PgConnection, found: dict[Run, set[Key] | None], changes: Sequence[RowChange]
) -> None:
    """Replace what leads to the keys of groups by these keys; queries of one shape share the lookup."""
    alike: dict[Hashable, list[Run]] = {}
    for run, keys in found.items():
        if keys and run.keyed is not None and run.keyed.groups:
            alike.setdefault(_group_name(run), []).append(run)
    for runs in alike.values():
        starts = set().union(*(found[run] or () for run in runs))
        groups = _looked_up_txn(connection, runs[0], groups_txn, changes, starts)
        for run in runs:
            of = found[run] or ()
            found[run] = None if groups is None else set().union(*(groups[each] for each in of))


def _together_txn(
    connection: PgConnection, found: Mapping[Run, set[Key] | None], states: Mapping[Run, State]
) -> dict[Run, FoundRows]:
    """Read touched rows in batches, for queries of one shape and identity; return them by query."""
    alike: dict[Hashable, list[tuple[Run, set[Key]]]] = {}
    for run, keys in found.items():
        if keys and not run.resting and not run.orders and is_few(run, states[run], keys):
            alike.setdefault((run.shape, run.actor.identity), []).append((run, keys))
    rows: dict[Run, FoundRows] = {}
    for asked in alike.values():
        # A single query has nothing to share, and is read in its turn.
        for start in range(0, len(asked) if len(asked) > 1 else 0, MOST_TOGETHER):
            try:
                rows |= batch_txn(connection, asked[start : start + MOST_TOGETHER])
            except Exception:  # one query has failed: reading each by itself will show which
                if connection.closed:
                    raise
                break
    return rows


def _looked_up_txn(
    connection: PgConnection, run: Run, function: Callable[..., Found | None], *args: Any
) -> Found | None:
    """Return what a function looks up for queries of one shape; None, for all rows, if it fails."""
    assert run.keyed is not None
    actor = SERVICE_ACTOR if run.shape.shared else run.actor
    limit_time(connection, run.timeout)
    try:
        return function(connection, actor, run.shape.codec, run.keyed, *args)
    except Exception:  # such as a timeout; a read of all rows follows, and reports what is refused
        if connection.closed:
            raise
        return None


def _touched_keys(
    runs: Sequence[Run], touched: Touched | None, states: Mapping[Run, State]
) -> Iterator[tuple[Run, set[Key] | None]]:
    """Yield each query that has touched rows, and their keys; None for all rows."""
    if touched is None:
        yield from ((run, None) for run in runs)
        return
    related = names_of(runs[0], touched.related)
    for run in runs:
        held = related.keys() & states[run].entries.keys()
        keys = touched.rows | {related[name] for name in held}
        if keys:
            yield run, set(keys)


TRACKED = """
SELECT ARRAY(SELECT relation::oid::bigint FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}')),
       ARRAY(SELECT since::text FROM rowcast.tracked WHERE id = ANY ('{{{ids}}}'))
"""
MOST_MISSED = 100_000
"""Maximum number of changes kept for all callers that resume in one cycle; the others get all rows."""


@dataclass(frozen=True, slots=True)
class Since:
    """
    The changes in the log since a snapshot.

    Args:
        snapshot: The snapshot.
        changes: All changes since.
        affected: The resumed queries whose root relation they affect; no `related`.
    """

    snapshot: PgSnapshot
    changes: Sequence[RowChange]
    affected: Affected


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
        places = {_without_query(each) for each in positions}
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
        known = self._read[_without_query(since)]
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
        keyed, affected = run.keyed, known.affected
        if keyed is None or run.shown is not None or run in affected.all_rows:
            return None
        connection.act(run.actor)
        # For all relations that are read, because the key of a row that a policy hides would reveal the row.
        if not may_read_all_txn(connection, oids):
            return None
        related = _looked_up_txn(connection, run, related_txn, changes)
        if related is None:
            return None
        keys = affected.own.get(run, set()) | related.rows | related.related
        if keyed.groups:
            groups = _looked_up_txn(connection, run, groups_txn, changes, keys)
            if groups is None:
                return None
            keys = set().union(*groups.values())
        return wire_keys(run, keys)

    def _since_txn(self, connection: PgConnection, snapshot: PgSnapshot) -> Since | None:
        """Return the changes in the log since a snapshot; None if they are too many."""
        rows = read_txn(connection, snapshot)
        if rows is None:
            return None
        changes, affected = list(map(row_change, rows)), Affected()
        for change in changes:
            for run in self._index.matching(change.relation, change.old, change.new):
                affected.add(run, change)
        return Since(snapshot, changes, affected)


def _without_query(position: Position) -> Position:
    """Return a position without the digest of its query."""
    return replace(position, query="") if isinstance(position, SnapshotPosition) else position
