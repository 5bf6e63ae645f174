"""
One query that is watched: how all of its rows are read, and how those that changes have touched.

Only the rows of some keys are read where the changes tell the keys, where these are not so many that
all rows were cheaper, and where it does not take longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.catalog import Catalog
from service.changes.delta import FoundRows, State, Window, name_of, rows_of
from service.changes.dependencies import Dependencies
from service.changes.log import Tracked
from service.changes.terms import Term, terms_of
from service.changes.touched import Key, KeyPlan, key_arrays, key_plan
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.literals import write_array
from service.db.statements import Shape, keyed_txn, read_only_txn
from service.db.transaction import Actor, apart_txn
from service.errors import TooManyWatched
from service.plan.aggregate_plan import AggregatePlan
from service.plan.watch_plan import KeyForm, WatchPlan, keyed_rows, order_of_keys, with_keys
from service.sql.select import aggregate, select
from service.sql.statement import Statement, batched

LEAST_SPARE, MOST_SPARE = 10, 100
"""Rows that are kept behind those that are shown: as many, within these bounds."""

FEW_KEYS = 50
"""Keys that are looked up whatever the number of rows; of more, at most half as many as rows."""

MOST_ORDERED = 1_000
"""Rows whose order is asked for by their keys; with more of them, all are read again."""

SLOW = 0.02
"""Seconds that rows by key may take, even if all rows took less."""

HEAVY, REST = 0.1, 10
"""Seconds from which on a read of all rows takes long, and how many times as long nobody waits for it."""

PAUSE = 8
"""How often all rows are read after rows by key took longer than those had."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class WatchShape:
    """
    What queries have in common that differ in their values alone.

    Args:
        call: One of those that ask so; of the others it has everything but who asks, and the values.
        plan: What they read, and how their rows are told apart.
        statement: Reads them.
        codec: For the values, both ways.
        catalog: By which they were planned.
        most: Rows that one may have.
        max_bytes: What they may weigh.
        guarded: Whether they call a function that promises only to read.
        reads: What of the log may change their rows: numbers of tracked relations.
        keyed: How changes lead to keys; None where they name none.
        shared: Whether the service may look for the keys as itself, for all who ask.
        statements: That read rows by key, once they are built.
    """

    call: Any
    plan: WatchPlan
    statement: Statement
    codec: Codec
    catalog: Catalog
    most: int
    max_bytes: int
    guarded: bool
    reads: frozenset[int]
    keyed: KeyPlan | None = None
    shared: bool = False
    statements: dict[Hashable, Statement] = field(default_factory=dict)

    @property
    def form(self) -> KeyForm:
        """How rows are told apart."""
        return self.plan.form

    def built(self, name: Hashable, build: Callable[[], Statement]) -> Statement:
        """Return a statement, built once."""
        found = self.statements.get(name)
        if found is None:
            found = self.statements[name] = build()
        return found

    def same_rows(self, other: WatchShape) -> bool:
        """Return whether rows of both are alike in form, so that they can be compared."""
        mine, theirs = self.statement, other.statement
        return (mine.text, mine.columns, self.form) == (theirs.text, theirs.columns, other.form)


@dataclass(slots=True, eq=False)
class Run:
    """
    How a query is run, and how long that takes.

    There may be thousands of one shape, so what they have in common stands there.

    Args:
        shape: Of it.
        values: Of the call; of a window with more rows than are shown.
        actor: As whom it runs.
        timeout: Seconds that it may take.
        reads: What of the log may change its rows: numbers of tracked relations.
        mark: A digest: equal to that of another one if both have the same rows at one position.
        name: Another one: equal if, whatever the catalog, both have the same rows.
        keyed: How changes lead to keys; None where all rows are read.
        shown: How many of the first rows are watched; None for all.
        spare: How many more are kept.
        last: Seconds that the last read of all rows took.
        whole: Seconds that the shorter of the last two took: what takes long once may have stood
            still, with its server or with this process.
        until: When all rows may be read again, by the monotonic clock.
        resting: How many more times all rows are read before rows by key are tried again.
    """

    shape: WatchShape
    values: Sequence[Any]
    actor: Actor
    timeout: float
    reads: frozenset[int]
    mark: str
    name: bytes = b""
    keyed: KeyPlan | None = None
    shown: int | None = None
    spare: int = 0
    last: float = 0.0
    whole: float = 0.0
    until: float = 0.0
    resting: int = 0

    @property
    def orders(self) -> bool:
        """Return whether it matters where a row stands among the others."""
        return self.shape.form.ordered or self.shown is not None

    @property
    def heavy(self) -> bool:
        """Return whether a read of all rows takes long."""
        return self.whole > HEAVY

    @property
    def terms(self) -> Sequence[Term]:
        """What holds of each row of the relation itself that concerns the query."""
        shape = self.shape
        return terms_of(shape.catalog, shape.codec, shape.plan.read.where, self.values)

    def timed(self, began: float, ended: float) -> None:
        """Record a read of all rows; one that takes long is followed by a rest, for others' sake."""
        before, self.last = self.last, ended - began
        self.whole = min(self.last, before or self.last)
        if before:  # of a first one it is not known
            self.rest(ended)

    def rest(self, now: float) -> None:
        """Read all rows no more for a while, by how long the last read of them took."""
        self.until = now + REST * self.whole if self.heavy else 0.0


def key_plan_of(
    catalog: Catalog, plan: WatchPlan, reads: Dependencies, tracked: Iterable[Tracked]
) -> KeyPlan | None:
    """
    Return how changes lead to the rows of queries of one shape; None where they name none.

    Args:
        catalog: By which they were planned.
        plan: Of them.
        reads: What they read.
        tracked: What is in the log.
    """
    rows = keyed_rows(catalog, plan.read)
    if rows is None or plan.form.kind == "row":
        return None
    return key_plan(catalog, rows, reads, tracked)


def run_of(
    shape: WatchShape,
    values: Sequence[Any],
    actor: Actor,
    timeout: float,
    reads: frozenset[int],
    mark: str,
    name: bytes = b"",
) -> Run:
    """Return how a query is run, by key where its values allow; its arguments are those of `Run`."""
    read, keyed = shape.plan.read, shape.keyed
    plain = Run(shape, tuple(values), actor, timeout, reads, mark, name)
    if keyed is None:
        return plain
    assert read.limit is not None
    limit = values[read.limit.slot]
    shown = limit if limit <= shape.most else None
    # The order of groups is asked of their measures: of all groups, that is to read all.
    if shown is None and isinstance(read, AggregatePlan) and shape.form.ordered:
        return plain
    if shown is None:
        return replace(plain, keyed=keyed)
    spare = min(max(shown, LEAST_SPARE), MOST_SPARE, shape.most - shown)
    if shown + spare > MOST_ORDERED:
        return plain
    more = list(values)
    more[read.limit.slot] = shown + spare
    return replace(plain, values=tuple(more), keyed=keyed, shown=shown, spare=spare)


def whole_txn(connection: PgConnection, run: Run) -> FoundRows:
    """
    Return all rows of a query, in the open transaction.

    Raises:
        TooManyWatched, TooLarge: There are more than are watched, or they weigh too much.
        KeyRepeated: Two of them have one key.
    """
    began = time.monotonic()
    shape = run.shape
    rows, keys = _read_txn(connection, run, shape.statement, run.values, shape.most)
    run.timed(began, time.monotonic())
    if run.keyed is None or not run.orders:
        return rows_of(shape.form, rows, keys)
    keys = _group_keys(shape, rows) or keys
    most = shape.most + 1 if run.shown is None else run.shown + run.spare
    window = Window.of(keys, most) if len(keys) <= MOST_ORDERED else None
    if run.shown is not None:
        del rows[run.shown :], keys[run.shown :]
    state, found = rows_of(shape.form, rows, keys)
    return FoundRows(State(state.entries, state.ordered, window), found)


@dataclass(frozen=True, slots=True)
class TouchedRows:
    """
    Rows of a query that changes have touched.

    Args:
        keys: Of all rows that may have come, gone or changed.
        rows: Those of them that there are, where they were read together with those of others.
    """

    keys: frozenset[Key]
    rows: FoundRows | None = None


def is_few(run: Run, state: State, keys: Collection[Key]) -> bool:
    """Return whether to read the rows of some keys is less than to read all."""
    return run.keyed is not None and len(keys) <= max(FEW_KEYS, len(state.entries) // 2)


def by_keys_txn(
    connection: PgConnection, run: Run, state: State, touched: TouchedRows
) -> FoundRows | None:
    """
    Return the rows of a query after some of them may have come, gone or changed.

    Args:
        connection: In the open transaction.
        run: The query.
        state: What it was found in last.
        touched: The rows.

    Returns:
        The state, and of its rows at least those that are different; None where all rows have to be
        read.

    Raises:
        TooManyWatched, TooLarge: As `whole_txn`.
    """
    if run.keyed is None or not is_few(run, state, touched.keys):
        return None
    if run.resting:
        run.resting -= 1
        return None
    began = time.monotonic()
    if run.orders:
        found = _ordered_txn(connection, run, state, touched.keys)
    else:
        rows = touched.rows
        found = _of_keys_txn(connection, run, touched.keys) if rows is None else rows
        gone = names_of(run, touched.keys)
        entries = {name: each for name, each in state.entries.items() if name not in gone}
        entries.update(found.state.entries)
        found = FoundRows(State(entries, state.ordered), found.rows)
    if found is not None and len(found.state.entries) > run.shape.most:
        raise TooManyWatched(run.shape.most)
    if time.monotonic() - began > max(SLOW, run.whole):
        run.resting = PAUSE
    return found


def limit_time(connection: PgConnection, seconds: float) -> None:
    """Set how long each statement may take from the next one on."""
    limit = f"SET LOCAL statement_timeout={round(seconds * 1000)};"
    connection.opening = f"{connection.opening or ''}{limit}"


def names_of(run: Run, keys: Iterable[Key]) -> dict[Hashable, Key]:
    """Return keys by what tells the rows of a query apart."""
    keys = list(keys)
    return dict(zip(map(name_of, wire_keys(run, keys)), keys, strict=True))


def wire_keys(run: Run, keys: Iterable[Key]) -> list[Any]:
    """Return keys as they go over the wire."""
    form = run.shape.form
    columns = form.columns or ()
    # of groups a key is a dict, which the row has
    return [form.key(dict(zip(columns, key, strict=False)), key) for key in keys]


def _ordered_txn(
    connection: PgConnection, run: Run, state: State, keys: frozenset[Key]
) -> FoundRows | None:
    """Return ordered rows, of which some may be others or elsewhere: their keys come first."""
    window, shape, keyed = state.window, run.shape, run.keyed
    if window is None or len(window.keys) + len(keys) > MOST_ORDERED:
        return None
    plan = shape.plan.read
    assert keyed is not None
    rows = keyed.rows
    asked = keys.union(window.keys)
    arrays, nulls = key_arrays(asked, rows.key)
    if isinstance(plan, AggregatePlan):  # whose order asks for all that is in a row
        ordered = _by_keys(shape, keyed, nulls)
    else:
        ordered = shape.built("order", lambda: select(order_of_keys(shape.catalog, plan, rows)))
    read, order = _read_txn(connection, run, ordered, [*run.values, *arrays], None)
    order = _group_keys(shape, read) or order
    shown = shape.most if run.shown is None else run.shown
    moved = window.moved(keys, [key for key in order if key in asked], shown, shown + run.spare)
    if moved is None:
        return None
    if isinstance(plan, AggregatePlan):
        groups, first = dict(zip(order, read, strict=True)), moved.keys[:shown]
        found = rows_of(shape.form, [groups[key] for key in first], first)
        return FoundRows(State(found.state.entries, state.ordered, moved), found.rows)
    names = names_of(run, moved.keys[:shown])
    fresh = [key for name, key in names.items() if key in keys or name not in state.entries]
    found = _of_keys_txn(connection, run, fresh)
    entries = {
        name: found.state.entries[name] if name in found.rows else state.entries[name]
        for name in names
    }
    return FoundRows(State(entries, state.ordered, moved), found.rows)


def _group_keys(shape: WatchShape, rows: Sequence[Mapping[str, Any]]) -> list[Key]:
    """Return the keys of groups, which are in their rows; nothing for other rows."""
    names = shape.form.columns if shape.form.kind == "group" else None
    return [] if names is None else [tuple([row[name] for name in names]) for row in rows]


def _of_keys_txn(connection: PgConnection, run: Run, keys: Collection[Key]) -> FoundRows:
    """Return the rows of some keys, and perhaps others."""
    form = run.shape.form
    if not keys:
        return rows_of(form, [], [])
    assert run.keyed is not None
    arrays, nulls = key_arrays(keys, run.keyed.rows.key)
    statement = _by_keys(run.shape, run.keyed, nulls)
    return rows_of(form, *_read_txn(connection, run, statement, [*run.values, *arrays], None))


def _by_keys(shape: WatchShape, keyed: KeyPlan, nulls: frozenset[str]) -> Statement:
    """Return the statement that reads the rows of some keys, of which some columns are null."""

    def build() -> Statement:
        plan, rows = shape.plan.read, keyed.rows
        if isinstance(plan, AggregatePlan):
            return aggregate(with_keys(shape.catalog, plan, rows, nulls))
        return select(with_keys(shape.catalog, plan, rows, nulls))

    return shape.built(nulls, build)


def batch_txn(
    connection: PgConnection, asked: Sequence[tuple[Run, Collection[Key]]]
) -> dict[Run, FoundRows]:
    """
    Return the rows of some keys, of queries that differ in their values alone.

    Args:
        connection: In the open transaction.
        asked: The queries, all of one caller, each with its keys, at least one.
    """
    (run, _), *_ = asked
    shape, keyed = run.shape, run.keyed
    assert keyed is not None
    columns = keyed.rows.key
    keyed_by = [key_arrays(keys, columns) for _, keys in asked]
    nulls = frozenset[str]().union(*(null for _, null in keyed_by))
    statement = _by_keys(shape, keyed, nulls)
    texts = shape.catalog.types_by_name["_text"]
    given = [
        shape.codec.parameters(statement.bounds, [*each.values, *arrays])
        for (each, _), (arrays, _) in zip(asked, keyed_by, strict=True)
    ]
    lists = [write_array(column) for column in zip(*given, strict=True)]
    batch = shape.built((nulls, "batch"), lambda: batched(statement, texts))
    rows, keys = _read_txn(connection, run, batch, lists, None)
    parts: list[tuple[list[Any], list[Key]]] = [([], []) for _ in asked]
    for row, (*key, number) in zip(rows, keys, strict=True):
        into = parts[number - 1]
        into[0].append(row)
        into[1].append(tuple(key))
    return {each: rows_of(shape.form, *part) for (each, _), part in zip(asked, parts, strict=True)}


def _read_txn(
    connection: PgConnection,
    run: Run,
    statement: Statement,
    values: Sequence[Any],
    most: int | None,
) -> tuple[list[Any], list[Key]]:
    limit_time(connection, run.timeout)
    shape = run.shape
    ahead = (read_only_txn,) if shape.guarded else ()
    found: tuple[list[Any], list[Key]] = apart_txn(
        connection,
        run.actor,
        *ahead,
        keyed_txn,
        shape.codec,
        statement,
        values,
        most,
        Shape("dicts", shape.max_bytes),
    )
    return found
