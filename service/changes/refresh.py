"""
Running one watched query: a read of all rows, and a read of only the rows that changes have touched.

Rows are read by key if the changes name their keys, if the keys are not so many that a read of all rows
would be cheaper, and as long as that takes no longer. For 1 to 1,000 changed child rows of 60,000, a read by
key took 0.8 to 68 ms, and a read of all rows 6.6 to 892 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from service.catalog import Catalog
from service.changes.delta import FoundRows, State, Window, name_of, rows_of
from service.changes.match import Term, terms_of
from service.changes.touched import Key, KeyPlan, key_arrays
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.literals import write_array
from service.db.statements import Shape, read_only_txn, rows_and_keys_txn
from service.db.transaction import Actor, apart_txn
from service.errors import TooManyWatched
from service.plan.plans import AggregatePlan
from service.plan.watch_plan import KeyForm, WatchPlan, order_of_keys, with_keys
from service.sql.select import aggregate, select
from service.sql.statement import Statement, batched

LEAST_SPARE, MOST_SPARE = 10, 100
"""
Bounds on the number of rows that a window keeps behind the limit, which else equals the limit.

Without any, half of the changes to a window of 20 needed a read of all rows; with 20, 0.3 % of them.
"""

FEW_KEYS = 50
"""Number of keys that are always read by key; more only up to half the number of rows."""

MOST_ORDERED = 1_000
"""Maximum number of keys by which a window's order is queried; above it, all rows are read."""

SLOW = 0.02
"""Seconds that a read by key may always take, even if a read of all rows took less."""

HEAVY, REST = 0.1, 10
"""
Seconds above which a read of all rows is slow, and the rest after it as a multiple of its duration.

In a cycle, a slow read would hold up the deltas of all sessions. With such rests, the reads of a query that
changes all the time take less than a tenth of a connection's time.
"""

PAUSE = 8
"""Number of times that all rows are read after a read by key took longer than that."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class WatchShape:
    """
    What queries share that differ only in their parameter values.

    Args:
        call: One of the calls, without its arguments; the others differ in caller and values.
        plan: The plan, with the form of the rows' keys.
        statement: Statement that reads all rows.
        codec: Codec of parameters and rows.
        catalog: Catalog that the queries were planned with.
        most: Maximum number of rows of one query.
        max_bytes: Maximum size of the rows in bytes.
        guarded: Whether the queries call a function, which then runs in a read-only transaction.
        reads: Numbers of the tracked relations whose changes may change the rows.
        keyed: How changes lead to keys of rows; None if they do not.
        shared: Whether the service's own role looks up related keys, once for all callers.
        statements: Cache of the statements that read rows by key.
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
        """The form of the rows' keys."""
        return self.plan.form

    def built(self, name: Hashable, build: Callable[[], Statement]) -> Statement:
        """Return a statement from the cache, or build it."""
        found = self.statements.get(name)
        if found is None:
            found = self.statements[name] = build()
        return found

    def same_rows(self, other: WatchShape) -> bool:
        """Return whether the rows of both have the same form, so that states can be compared."""
        mine, theirs = self.statement, other.statement
        return (mine.text, mine.columns, self.form) == (theirs.text, theirs.columns, other.form)


@dataclass(slots=True, eq=False)
class Run:
    """
    How one query is run, and how long its reads take.

    Thousands of queries may share a shape, so everything that they share is kept there.

    Args:
        shape: The shape of the query.
        values: Parameter values; for a window, with the limit raised by `spare`.
        actor: Identity under which the query runs.
        timeout: Statement timeout in seconds.
        reads: Numbers of the tracked relations whose changes may change the rows.
        mark: Digest that is equal for two queries if they have the same rows at the same position.
        name: Digest that is equal for two queries if they have the same rows with any catalog.
        keyed: How changes lead to keys of rows; None if all rows are read each time.
        shown: Limit of the query if a window is kept; None without.
        spare: Number of rows that the window keeps behind the limit.
        last: Seconds that the last read of all rows took.
        duration: Seconds that the shorter of the last two took: a single long one may only mean that
            PostgreSQL or this process was stopped for a while.
        until: Time on the monotonic clock from which all rows may be read again.
        resting: How many more times all rows are read before a read by key is tried again.
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
    duration: float = 0.0
    until: float = 0.0
    resting: int = 0

    @property
    def orders(self) -> bool:
        """Return whether the place of a row among the others matters."""
        return self.shape.form.ordered or self.shown is not None

    @property
    def heavy(self) -> bool:
        """Return whether a read of all rows is slow."""
        return self.duration > HEAVY

    @property
    def terms(self) -> Sequence[Term]:
        """The terms that hold for each row of the root relation that can be in the result."""
        shape = self.shape
        return terms_of(shape.catalog, shape.codec, shape.plan.read.where, self.values)

    def timed(self, began: float, ended: float) -> None:
        """Record the duration of a read of all rows; after a slow one the query rests."""
        before, self.last = self.last, ended - began
        self.duration = min(self.last, before or self.last)
        if before:  # a first read may have been slow by chance, so it is followed by no rest
            self.rest(ended)

    def rest(self, now: float, least: float = 0.0) -> None:
        """Read all rows again only after a rest, which keeps the database free for other queries."""
        self.until = now + max(least, REST * self.duration if self.heavy else 0.0)


def run_of(
    shape: WatchShape,
    values: Sequence[Any],
    actor: Actor,
    timeout: float,
    reads: frozenset[int],
    mark: str,
    name: bytes = b"",
) -> Run:
    """Return the run of a query, by key if its values allow that; the arguments are those of `Run`."""
    read, keyed = shape.plan.read, shape.keyed
    plain = Run(shape, tuple(values), actor, timeout, reads, mark, name)
    if keyed is None:
        return plain
    assert read.limit is not None
    shown = values[read.limit.slot]
    if shown > shape.most:  # no limit of the caller's, and so no window
        # The order of groups depends on their aggregates, so querying the order of all reads all rows.
        by_key = not (isinstance(read, AggregatePlan) and shape.form.ordered)
        return replace(plain, keyed=keyed) if by_key else plain
    spare = min(max(shown, LEAST_SPARE), MOST_SPARE, shape.most - shown)
    if shown + spare > MOST_ORDERED:
        return plain
    more = list(values)
    more[read.limit.slot] = shown + spare
    return replace(plain, values=tuple(more), keyed=keyed, shown=shown, spare=spare)


def all_rows_txn(connection: PgConnection, run: Run) -> FoundRows:
    """
    Return all rows of a query, in the open transaction.

    Raises:
        TooManyWatched, TooLarge: There are more rows or bytes than may be watched.
        KeyRepeated: Two rows have the same key.
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
    The rows of a query that changes have touched.

    Args:
        keys: Keys of all rows that may have entered, left or changed.
        rows: The rows with these keys, if they were already read in a batch with those of other queries.
    """

    keys: frozenset[Key]
    rows: FoundRows | None = None


def is_few(run: Run, state: State, keys: Collection[Key]) -> bool:
    """Return whether reading the rows of some keys costs less than reading all rows."""
    return run.keyed is not None and len(keys) <= max(FEW_KEYS, len(state.entries) // 2)


def by_keys_txn(
    connection: PgConnection, run: Run, state: State, touched: TouchedRows
) -> FoundRows | None:
    """
    Return the new state of a query after some of its rows may have entered, left or changed.

    Args:
        connection: In the open transaction.
        run: The query.
        state: Its last known state.
        touched: The rows that may have changed.

    Returns:
        The new state, with the contents of at least the rows that differ; None if all rows have to be
        read.

    Raises:
        TooManyWatched, TooLarge: As `all_rows_txn`.
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
        found = _rows_of_keys_txn(connection, run, touched.keys) if rows is None else rows
        gone = names_of(run, touched.keys)
        entries = {name: each for name, each in state.entries.items() if name not in gone}
        entries.update(found.state.entries)
        found = FoundRows(State(entries, state.ordered), found.rows)
    if found is not None and len(found.state.entries) > run.shape.most:
        raise TooManyWatched(run.shape.most)
    if time.monotonic() - began > max(SLOW, run.duration):
        run.resting = PAUSE
    return found


def limit_time(connection: PgConnection, seconds: float) -> None:
    """Set the statement timeout, in the message of the next statement."""
    limit = f"SET LOCAL statement_timeout={round(seconds * 1000)};"
    connection.opening = f"{connection.opening or ''}{limit}"


def names_of(run: Run, keys: Iterable[Key]) -> dict[Hashable, Key]:
    """Return keys by the names of their rows (`name_of`)."""
    keys = list(keys)
    return dict(zip(map(name_of, wire_keys(run, keys)), keys, strict=True))


def wire_keys(run: Run, keys: Iterable[Key]) -> list[Any]:
    """Return keys in their wire form."""
    form = run.shape.form
    columns = form.columns or ()
    # The key of a group is a dict of columns of its row.
    return [form.key(dict(zip(columns, key, strict=False)), key) for key in keys]


def _ordered_txn(
    connection: PgConnection, run: Run, state: State, keys: frozenset[Key]
) -> FoundRows | None:
    """Return the state of an ordered query: query the order of the keys first, then the touched rows."""
    window, shape, keyed = state.window, run.shape, run.keyed
    if window is None or len(window.keys) + len(keys) > MOST_ORDERED:
        return None
    plan = shape.plan.read
    assert keyed is not None
    rows = keyed.rows
    asked = keys.union(window.keys)
    arrays, nulls = key_arrays(asked)
    if isinstance(plan, AggregatePlan):  # to order groups takes all that is in their rows
        ordered = _keyed_statement(shape, keyed, nulls)
    else:
        ordered = shape.built("order", lambda: select(order_of_keys(shape.catalog, plan, rows)))
    read, order = _read_txn(connection, run, ordered, [*run.values, *arrays], None)
    order = _group_keys(shape, read) or order
    shown = shape.most if run.shown is None else run.shown
    # Of keys with several columns the statement reads each combination of values, and so other rows, too.
    moved = window.moved(keys, [key for key in order if key in asked], shown, shown + run.spare)
    if moved is None:
        return None
    if isinstance(plan, AggregatePlan):
        groups, first = dict(zip(order, read, strict=True)), moved.keys[:shown]
        found = rows_of(shape.form, [groups[key] for key in first], first)
        return FoundRows(State(found.state.entries, state.ordered, moved), found.rows)
    names = names_of(run, moved.keys[:shown])
    fresh = [key for name, key in names.items() if key in keys or name not in state.entries]
    found = _rows_of_keys_txn(connection, run, fresh)
    entries = {
        name: found.state.entries[name] if name in found.rows else state.entries[name]
        for name in names
    }
    return FoundRows(State(entries, state.ordered, moved), found.rows)


def _group_keys(shape: WatchShape, rows: Sequence[Mapping[str, Any]]) -> list[Key]:
    """Return the keys of groups, which their rows contain; [] for rows that are not groups."""
    names = shape.form.columns if shape.form.kind == "group" else None
    return [] if names is None else [tuple([row[name] for name in names]) for row in rows]


def _rows_of_keys_txn(connection: PgConnection, run: Run, keys: Collection[Key]) -> FoundRows:
    """Return the rows with some keys, and possibly more."""
    form = run.shape.form
    if not keys:
        return rows_of(form, [], [])
    assert run.keyed is not None
    arrays, nulls = key_arrays(keys)
    statement = _keyed_statement(run.shape, run.keyed, nulls)
    return rows_of(form, *_read_txn(connection, run, statement, [*run.values, *arrays], None))


def _keyed_statement(shape: WatchShape, keyed: KeyPlan, nulls: frozenset[int]) -> Statement:
    """Return the statement that reads rows by key; `nulls` are the key columns that may be null."""

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
    Return the rows with some keys of several queries of one shape, read by one statement.

    Args:
        connection: In the open transaction.
        asked: The queries, all under one identity, each with at least one key.
    """
    (run, _), *_ = asked
    shape, keyed = run.shape, run.keyed
    assert keyed is not None
    keyed_by = [key_arrays(keys) for _, keys in asked]
    nulls = frozenset[int]().union(*(null for _, null in keyed_by))
    statement = _keyed_statement(shape, keyed, nulls)
    # All values as text: the statement casts each of them to the type of its parameter.
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
        rows_and_keys_txn,
        shape.codec,
        statement,
        values,
        most,
        Shape("dicts", shape.max_bytes),
    )
    return found
