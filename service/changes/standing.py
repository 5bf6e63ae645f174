"""
The queries that are watched, by what concerns them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.changes.delta import Rows, State
from service.changes.match import Index
from service.changes.refresh import Asked, Run, batch_txn, is_few, limit_time, names_of
from service.changes.touched import Key, RowChange, Touched, own_keys, related_txn
from service.db.connection import PgConnection
from service.db.session_settings import OWN_IDENTITY
from service.db.transaction import Actor

MOST_PAIRS = 100_000
"""Changes, each with a query that it may concern, that are looked at one by one: some 0.1 s."""

MOST_TOGETHER = 100
"""Queries whose rows are read by one statement."""


@dataclass
class Concern:
    """
    What the changes of a cycle mean for queries.

    Attributes:
        whole: Those of which any row may be another.
        own: Keys of changed rows of the relation itself, of the queries that they may concern.
        related: Of queries that ask the same of other values, those to whose rows others are related
            that have changed.
    """

    whole: set[Run] = field(default_factory=set)
    own: dict[Run, set[Key]] = field(default_factory=dict)
    related: dict[Hashable, set[Run]] = field(default_factory=dict)


class Standing:
    """
    The queries that are watched.

    It belongs to the thread of the cycles.

    Attributes:
        states: What each was found in last.
        doubted: Those whose rows may be others than these.
    """

    def __init__(self) -> None:
        self.states: dict[Run, State] = {}
        self.doubted: set[Run] = set()
        self._index: Index[Run] = Index()
        self._reading: dict[int, set[Run]] = {}
        self._whole: dict[int, set[Run]] = {}
        self._related: dict[int, dict[Hashable, set[Run]]] = {}
        self._alike: dict[Hashable, set[Run]] = {}

    def keep(self, run: Run, state: State) -> None:
        """Add a query with the state that it was found in, or replace that."""
        if run not in self.states:
            self._change(run, add=True)
        self.states[run] = state

    def drop(self, run: Run) -> None:
        """Forget a query, if it is here."""
        if run in self.states:
            self._change(run, add=False)
            del self.states[run]
        self.doubted.discard(run)

    def concern(self, changes: Sequence[RowChange]) -> Concern:
        """Return which queries changes concern, and in what."""
        found = Concern()
        pairs = 0
        for change in changes:
            relation = change.relation
            if change.op not in ("I", "U", "D") or pairs > MOST_PAIRS:
                found.whole |= self._reading.get(relation, set())
                continue
            found.whole |= self._whole.get(relation, set())
            matching = self._index.matching(relation, change.old, change.new)
            pairs += len(matching)
            for run in matching - found.whole:
                assert run.keyed is not None
                keys = own_keys(run.keyed.plan, [change])
                if keys is None:
                    found.whole.add(run)
                else:
                    found.own.setdefault(run, set()).update(keys)
            found.related.update(self._related.get(relation, {}))
        return found

    def _change(self, run: Run, add: bool) -> None:
        for relation in run.reads:
            _put(self._reading, relation, run, add)
        keyed = run.keyed
        for relation in run.reads - (keyed.plan.keyed.keys() if keyed else set()):
            _put(self._whole, relation, run, add)
        if keyed is None:
            return
        alike = next(iter(self._alike.get(shape_of(run), ())), None)
        if add and alike is not None and alike.keyed is not None:
            keyed.plan, keyed.statements = alike.keyed.plan, alike.keyed.statements
        _put(self._alike, shape_of(run), run, add)
        for relation in keyed.plan.whole & keyed.plan.keyed.keys():
            _put(self._whole, relation, run, add)
        if keyed.plan.root is not None:
            if add:
                self._index.add(run, keyed.plan.root, keyed.terms)
            else:
                self._index.remove(run)
        for relation in keyed.plan.related:
            shapes = self._related.setdefault(relation, {})
            _put(shapes, shape_of(run), run, add)
            if not shapes:
                del self._related[relation]


def touched_txn(
    connection: PgConnection,
    standing: Standing,
    changes: Sequence[RowChange],
) -> dict[Run, Asked | None]:
    """
    Return the rows that changes have touched, of each query that they concern; None for all.

    Args:
        connection: In the snapshot in which the changes were read.
        standing: The queries.
        changes: All of the cycle.
    """
    concern, states = standing.concern(changes), standing.states
    found: dict[Run, set[Key] | None] = dict(concern.own)
    for runs in concern.related.values():
        rest = [run for run in runs if run not in concern.whole and run in states]
        if rest:
            touched = _related_txn(connection, rest[0], changes)
            for run, keys in _each(rest, touched, states):
                before = found.get(run, set())
                found[run] = None if keys is None or before is None else before | keys
    found.update(dict.fromkeys(concern.whole))
    together = _together_txn(connection, found, states)
    return {
        run: None if keys is None else Asked(frozenset(keys), together.get(run))
        for run, keys in found.items()
    }


def _together_txn(
    connection: PgConnection, found: Mapping[Run, set[Key] | None], states: Mapping[Run, State]
) -> dict[Run, Rows]:
    """Return rows of queries that differ in their values alone, where there are several to read."""
    alike: dict[Hashable, list[tuple[Run, set[Key]]]] = {}
    for run, keys in found.items():
        keyed, state = run.keyed, states.get(run)
        if not keys or keyed is None or state is None or run.times.resting:
            continue
        if is_few(run, state, keys) and not keyed.orders(run.plan.form):
            alike.setdefault((shape_of(run), run.actor.identity), []).append((run, keys))
    rows: dict[Run, Rows] = {}
    for asked in alike.values():
        for start in range(0, len(asked) if len(asked) > 1 else 0, MOST_TOGETHER):
            try:
                rows |= batch_txn(connection, asked[start : start + MOST_TOGETHER])
            except Exception:  # of one of them, which is found when each is read by itself
                if connection.closed:
                    raise
                break
    return rows


def _related_txn(
    connection: PgConnection, run: Run, changes: Sequence[RowChange]
) -> Touched | None:
    keyed = run.keyed
    assert keyed is not None
    actor = Actor(OWN_IDENTITY) if keyed.shared else run.actor
    limit_time(connection, run.timeout)
    try:
        return related_txn(connection, actor, run.codec, keyed.plan, changes)
    except Exception:  # too slow, say; what is refused to the caller, a read of all rows tells
        if connection.closed:
            raise
        return None


def _each(
    runs: Sequence[Run], touched: Touched | None, states: Mapping[Run, State]
) -> Iterator[tuple[Run, set[Key] | None]]:
    if touched is None:
        yield from ((run, None) for run in runs)
        return
    related = names_of(runs[0], touched.related)
    for run in runs:
        held = related.keys() & states[run].entries.keys()
        keys = touched.rows | {related[name] for name in held}
        if keys:
            yield run, set(keys)


def shape_of(run: Run) -> Hashable:
    """Return what queries have in common that differ in their values alone."""
    keyed = run.keyed
    assert keyed is not None
    plan, whose = keyed.plan, None if keyed.shared else run.actor.identity
    logged = plan.root, plan.whole, frozenset(plan.keyed)
    return run.statement.text, run.plan.form, keyed.catalog.version, logged, whose


def _put(places: dict[Any, set[Run]], name: Hashable, run: Run, add: bool) -> None:
    if add:
        places.setdefault(name, set()).add(run)
        return
    places[name].discard(run)
    if not places[name]:
        del places[name]
