"""
One query that is watched: how all of its rows are read, and how those that changes have touched.

Only the rows of some keys are read where the changes tell the keys, where these are not so many that
all rows were cheaper, and where it does not take longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.catalog import Catalog
from service.changes.delta import Rows, State, name_of, rows_of
from service.changes.dependencies import Dependencies
from service.changes.log import Tracked
from service.changes.match import Term, terms_of
from service.changes.touched import Key, KeyPlan, key_arrays, key_plan
from service.changes.window import Window
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.literals import write_array
from service.db.statements import Shape, keyed_txn, read_only_txn
from service.db.transaction import Actor, apart_txn
from service.errors import TooManyWatched
from service.plan.aggregate_plan import AggregatePlan
from service.plan.keyed import keyed_rows, order_of_keys, with_keys
from service.plan.plans import ReadPlan
from service.plan.watch_plan import KeyForm, WatchPlan
from service.sql.batch import batched
from service.sql.groups import aggregate
from service.sql.select import select
from service.sql.statement import Statement

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


@dataclass(slots=True, eq=False)
class KeyedRun:
    """
    How a query's rows are read by key.

    Queries that differ in their values alone come to share the plan and the statements.

    Args:
        catalog: For types.
        plan: How changes lead to keys.
        terms: That hold of each row of the relation itself that concerns the query.
        shown: How many of the first rows are watched; None for all.
        spare: How many more are kept.
        shared: Whether the service may look for the keys as itself, for all who ask the same.
        statements: That read rows by key, once they are built.
    """

    catalog: Catalog
    plan: KeyPlan
    terms: Sequence[Term]
    shown: int | None
    spare: int
    shared: bool = False
    statements: dict[Hashable, Statement] = field(default_factory=dict)

    def orders(self, form: KeyForm) -> bool:
        """Return whether it matters where a row stands among the others."""
        return form.ordered or self.shown is not None

    def statement(self, name: Hashable, build: Callable[[], Statement]) -> Statement:
        """Return a statement, built once."""
        found = self.statements.get(name)
        if found is None:
            found = self.statements[name] = build()
        return found


@dataclass(slots=True)
class ReadTimes:
    """
    How long the reads of a query take.

    Attributes:
        whole: Seconds that the last read of all rows took.
        until: When all rows may be read again, by the monotonic clock.
        resting: How many more times all rows are read before rows by key are tried again.
    """

    whole: float = 0.0
    until: float = 0.0
    resting: int = 0

    def read(self, began: float, ended: float) -> None:
        """Record a read of all rows; one that takes long is followed by a rest, for others' sake."""
        self.whole = ended - began
        self.until = ended + REST * self.whole if self.whole > HEAVY else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """
    How a query is run.

    Args:
        plan: What it reads, and how its rows are told apart.
        statement: Reads them.
        codec: For the values, both ways.
        values: Of the call.
        most: Rows that it may have.
        max_bytes: What they may weigh.
        actor: As whom it runs.
        timeout: Seconds that it may take.
        guarded: Whether it calls a function that promises only to read.
        reads: What of the log may change its rows: numbers of tracked relations.
        mark: A digest: equal to that of another one if both have the same rows at one position.
        keyed: How its rows are read by key; None where changes name none.
        times: How long it takes.
    """

    plan: WatchPlan
    statement: Statement
    codec: Codec
    values: Sequence[Any]
    most: int
    max_bytes: int
    actor: Actor
    timeout: float
    guarded: bool
    reads: frozenset[int]
    mark: str
    keyed: KeyedRun | None = None
    times: ReadTimes = field(default_factory=ReadTimes)

    def same_rows(self, other: Run) -> bool:
        """Return whether rows of both are alike in form, so that they can be compared."""
        mine, theirs = self.statement, other.statement
        return (mine.text, mine.columns, self.plan.form) == (
            theirs.text,
            theirs.columns,
            other.plan.form,
        )


def keyed_of(
    catalog: Catalog,
    codec: Codec,
    plan: WatchPlan,
    values: Sequence[Any],
    reads: Dependencies,
    tracked: Iterable[Tracked],
    most: int,
) -> KeyedRun | None:
    """
    Return how the rows of a query are read by key; None where changes name none.

    Args:
        catalog: By which it was planned.
        codec: For its values.
        plan: Of the query.
        values: Of the call.
        reads: What it reads.
        tracked: What is in the log.
        most: Rows that it may have.
    """
    read = plan.read
    rows = keyed_rows(catalog, read)
    if rows is None or plan.form.kind == "row":
        return None
    assert read.limit is not None
    limit = values[read.limit.slot]
    shown = limit if limit <= most else None
    if isinstance(read, AggregatePlan) and (plan.form.ordered or shown is not None):
        return None
    spare = 0 if shown is None else min(max(shown, LEAST_SPARE), MOST_SPARE, most - shown)
    if (shown or 0) + spare > MOST_ORDERED:
        return None
    way = key_plan(catalog, rows, reads, tracked)
    if way is None:
        return None
    return KeyedRun(catalog, way, terms_of(catalog, codec, read.where, values), shown, spare)


def whole_txn(connection: PgConnection, run: Run) -> Rows:
    """
    Return all rows of a query, in the open transaction.

    Raises:
        TooManyWatched, TooLarge: There are more than are watched, or they weigh too much.
        KeyRepeated: Two of them have one key.
    """
    began = time.monotonic()
    rows, keys = _read_txn(connection, run, run.statement, run.values, run.most)
    run.times.read(began, time.monotonic())
    keyed = run.keyed
    if keyed is None or not keyed.orders(run.plan.form):
        return rows_of(run.plan.form, rows, keys)
    most = run.most + 1 if keyed.shown is None else keyed.shown + keyed.spare
    window = Window.of(keys, most) if len(keys) <= MOST_ORDERED else None
    if keyed.shown is not None:
        del rows[keyed.shown :], keys[keyed.shown :]
    state, found = rows_of(run.plan.form, rows, keys)
    return Rows(State(state.entries, state.ordered, window), found)


@dataclass(frozen=True, slots=True)
class Asked:
    """
    Which rows of a query are to be looked at.

    Args:
        keys: Of all rows that may have come, gone or changed.
        rows: Those of them that there are, where they were read together with those of others.
    """

    keys: frozenset[Key]
    rows: Rows | None = None


def is_few(run: Run, state: State, keys: Collection[Key]) -> bool:
    """Return whether to read the rows of some keys is less than to read all."""
    return run.keyed is not None and len(keys) <= max(FEW_KEYS, len(state.entries) // 2)


def by_keys_txn(connection: PgConnection, run: Run, state: State, asked: Asked) -> Rows | None:
    """
    Return the rows of a query after some of them may have come, gone or changed.

    Args:
        connection: In the open transaction.
        run: The query.
        state: What it was found in last.
        asked: The rows.

    Returns:
        The state, and of its rows at least those that are different; None where all rows have to be
        read.

    Raises:
        TooManyWatched, TooLarge: As `whole_txn`.
    """
    keyed, times = run.keyed, run.times
    if keyed is None or not is_few(run, state, asked.keys):
        return None
    if times.resting:
        times.resting -= 1
        return None
    began = time.monotonic()
    if keyed.orders(run.plan.form):
        found = _ordered_txn(connection, run, keyed, state, asked.keys)
    else:
        rows = asked.rows
        found = _of_keys_txn(connection, run, keyed, asked.keys) if rows is None else rows
        gone = names_of(run, asked.keys)
        entries = {name: each for name, each in state.entries.items() if name not in gone}
        entries.update(found.state.entries)
        found = Rows(State(entries, state.ordered), found.rows)
    if found is not None and len(found.state.entries) > run.most:
        raise TooManyWatched(run.most)
    if time.monotonic() - began > max(SLOW, times.whole):
        times.resting = PAUSE
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
    form, columns = run.plan.form, run.plan.form.columns or ()
    # of groups a key is a dict, which the row has
    return [form.key(dict(zip(columns, key, strict=False)), key) for key in keys]


def _ordered_txn(
    connection: PgConnection, run: Run, keyed: KeyedRun, state: State, keys: frozenset[Key]
) -> Rows | None:
    """Return ordered rows, of which some may be others or elsewhere: their keys come first."""
    window = state.window
    if window is None or len(window.keys) + len(keys) > MOST_ORDERED:
        return None
    plan = run.plan.read
    assert isinstance(plan, ReadPlan)
    asked = keys.union(window.keys)
    arrays, _ = key_arrays(asked, keyed.plan.rows.key)
    ordered = keyed.statement(
        "order", lambda: select(order_of_keys(keyed.catalog, plan, keyed.plan.rows))
    )
    _, order = _read_txn(connection, run, ordered, [*run.values, *arrays], None)
    shown = run.most if keyed.shown is None else keyed.shown
    moved = window.moved(keys, [key for key in order if key in asked], shown, shown + keyed.spare)
    if moved is None:
        return None
    names = names_of(run, moved.keys[:shown])
    fresh = [key for name, key in names.items() if key in keys or name not in state.entries]
    found = _of_keys_txn(connection, run, keyed, fresh)
    entries = {
        name: found.state.entries[name] if name in found.rows else state.entries[name]
        for name in names
    }
    return Rows(State(entries, state.ordered, moved), found.rows)


def _of_keys_txn(
    connection: PgConnection, run: Run, keyed: KeyedRun, keys: Collection[Key]
) -> Rows:
    """Return the rows of some keys, and perhaps others."""
    if not keys:
        return rows_of(run.plan.form, [], [])
    arrays, nulls = key_arrays(keys, keyed.plan.rows.key)
    statement = _by_keys(run, keyed, nulls)
    found = _read_txn(connection, run, statement, [*run.values, *arrays], None)
    return rows_of(run.plan.form, *found)


def _by_keys(run: Run, keyed: KeyedRun, nulls: frozenset[str]) -> Statement:
    """Return the statement that reads the rows of some keys, of which some columns are null."""

    def build() -> Statement:
        plan, rows = run.plan.read, keyed.plan.rows
        if isinstance(plan, AggregatePlan):
            return aggregate(with_keys(keyed.catalog, plan, rows, nulls))
        return select(with_keys(keyed.catalog, plan, rows, nulls))

    return keyed.statement(nulls, build)


def batch_txn(
    connection: PgConnection, asked: Sequence[tuple[Run, Collection[Key]]]
) -> dict[Run, Rows]:
    """
    Return the rows of some keys, of queries that differ in their values alone.

    Args:
        connection: In the open transaction.
        asked: The queries, all of one caller, each with its keys, at least one.
    """
    (run, _), *_ = asked
    keyed = run.keyed
    assert keyed is not None
    columns = keyed.plan.rows.key
    keyed_by = [key_arrays(keys, columns) for _, keys in asked]
    nulls = frozenset[str]().union(*(null for _, null in keyed_by))
    statement = _by_keys(run, keyed, nulls)
    texts = keyed.catalog.types_by_name["_text"]
    given = [
        run.codec.parameters(statement.bounds, [*each.values, *arrays])
        for (each, _), (arrays, _) in zip(asked, keyed_by, strict=True)
    ]
    lists = [write_array(column) for column in zip(*given, strict=True)]
    batch = keyed.statement((nulls, "batch"), lambda: batched(statement, texts))
    rows, keys = _read_txn(connection, run, batch, lists, None)
    parts: list[tuple[list[Any], list[Key]]] = [([], []) for _ in asked]
    for row, (*key, number) in zip(rows, keys, strict=True):
        into = parts[number - 1]
        into[0].append(row)
        into[1].append(tuple(key))
    return {
        each: rows_of(each.plan.form, *part) for (each, _), part in zip(asked, parts, strict=True)
    }


def _read_txn(
    connection: PgConnection,
    run: Run,
    statement: Statement,
    values: Sequence[Any],
    most: int | None,
) -> tuple[list[Any], list[Key]]:
    limit_time(connection, run.timeout)
    ahead = (read_only_txn,) if run.guarded else ()
    found: tuple[list[Any], list[Key]] = apart_txn(
        connection,
        run.actor,
        *ahead,
        keyed_txn,
        run.codec,
        statement,
        values,
        most,
        Shape("dicts", run.max_bytes),
    )
    return found
