"""
The refresh cycle: all queries that are watched, as they are in one snapshot.

A cycle is one REPEATABLE READ transaction on a session of its own. It reads what the log has that
was not visible in the cycle before, and reads again those rows that may be others of the queries that
they concern, each under its role and claims. So what watchers are told is a state that the database really had, the
same for all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.changes.delta import FoundRows, State, difference
from service.changes.epochs import NEWEST, TIMELINE, resume_txn
from service.changes.invalidation import WatchedRuns, touched_txn
from service.changes.log import (
    MOST_BYTES,
    MOST_ROWS,
    READ,
    LogRow,
    read_rows,
    read_txn,
    read_values,
)
from service.changes.positions import LAST_XID, PgSnapshot, Position, SnapshotPosition
from service.changes.refresh import Run, TouchedRows, by_keys_txn, whole_txn
from service.changes.resume import OURSELVES, Missed
from service.changes.touched import row_change
from service.db.connection import PgConnection
from service.db.planned import Planned
from service.db.session_settings import Dsn, SessionSettings, open_session
from service.db.thread import in_thread
from service.db.transaction import begin_statement, commit_txn, rollback_txn

BUDGET = 0.25
"""Seconds of a cycle after which what needs a read of all rows is put off, but for the first."""

# What makes us look is a tick, which goes to the disk while the queries are read, and at other times
# some writer does. To write something of our own is to wait for the disk once more than for theirs.
LOOKS = (0.00025, 0.0005, 0.001, 0.002, 0.004)
"""Seconds before each look whether others have brought what was read to the disk."""

MOST_TRIES = 20
"""How often a cycle runs at most whose tables get other files meanwhile."""

# TRUNCATE, and DDL that rewrites a table, give it another file; to a snapshot from before, it then
# looks empty (PostgreSQL's documentation has it under "Caveats" of its concurrency control). So the
# files that a snapshot knows have to be those that are there when all was read.
FILES = """
(SELECT pg_catalog.md5(pg_catalog.string_agg(c.oid || ' ' || c.relfilenode, ',' ORDER BY c.oid)) FROM (
    SELECT relation::oid FROM rowcast.tracked
    UNION SELECT p.relid FROM rowcast.tracked t, pg_catalog.pg_partition_tree(t.relation) p
) AS t (oid) JOIN pg_catalog.pg_class c ON c.oid = t.oid)
"""

MOMENT = Planned(
    f"""
WITH read AS ({READ})
SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_current_wal_insert_lsn()::text, {FILES},
       coalesce(e.epoch, 0), e.pruned_below::text, e.timeline = {TIMELINE}, read.*
  FROM (VALUES (1)) AS one LEFT JOIN ({NEWEST}) AS e ON true LEFT JOIN read ON true
 ORDER BY read.seq
""",
    xmax="text",
    running="text[]",
    most="bigint",
    most_bytes="bigint",
)

# Of a log that was small, or of the part of one that no value tells, a plan reads all of it.
BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan;"
AS_EVER = "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL plan_cache_mode TO DEFAULT;"

NOTHING_SINCE = PgSnapshot(LAST_XID, LAST_XID, ())
"""Sees all transactions."""

# A row that is visible may be lost in a crash, if its writer has not waited for the disk, and the
# number of its transaction given out again: whoever was told of it would never hear that it is gone,
# and whoever has a position that sees the one would never hear of the other.
FLUSHED = Planned(
    f"SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(written)s, {FILES}", written="pg_lsn"
)
WRITTEN = Planned("SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(written)s", written="pg_lsn")
FLUSH = (
    "BEGIN; SET LOCAL synchronous_commit = 'on';"
    " SELECT pg_catalog.pg_logical_emit_message(true, 'rowcast', ''); COMMIT"
)


@dataclass(frozen=True, slots=True)
class Order:
    """
    What a cycle is to find out of one query.

    Args:
        run: How.
        before: What it was found in last; None the first time.
        whole: Whether all of its rows are wanted, whatever has changed.
        stale: Whether they may be others whatever the log says.
        check: Whether what the log leads to is to be compared with all of its rows.
        resumes: Positions of which callers have rows.
        late: How many cycles it was put off.
        since: Where `before` was found, if not by the cycle before.
        aside: Whether its rows are read aside, in the snapshot of the cycle.
    """

    run: Run
    before: State | None
    whole: bool = False
    stale: bool = False
    check: bool = False
    resumes: tuple[Position, ...] = ()
    late: int = 0
    since: SnapshotPosition | None = None
    aside: bool = False

    @property
    def asks(self) -> bool:
        """Whether it is to be run, even if nothing was logged that concerns it."""
        return self.before is None or self.whole or self.stale or self.check


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a cycle has found.

    Args:
        state: Of the query.
        rows: Those that are different, or all that were wanted.
        resumed: For a position the keys of all rows that may be others since; None if that cannot
            be said.
        drifted: Whether it was checked, and the log had led to other rows.
    """

    state: State
    rows: Mapping[Hashable, Any]
    resumed: Mapping[Position, Sequence[Any] | None] = field(default_factory=dict)
    drifted: bool = False

    @property
    def weight(self) -> int:
        """What the rows weigh, in characters."""
        return sum(self.state.entries[name].weight for name in self.rows)


@dataclass(frozen=True, slots=True)
class Aside:
    """
    What is read aside: in the snapshot of a cycle, while others run.

    Args:
        connection: In a transaction that has it.
        orders: Of the queries.
        moment: Of that snapshot.
    """

    connection: PgConnection
    orders: Sequence[Order]
    moment: Moment


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Of a cycle.

    Args:
        position: What it saw.
        found: What was found of queries that were run, None if nothing has changed, or why it failed.
        late: Those that were put off, with the seconds until they may be run.
        joined: Those that another session had found, of which the state is by now that of the others.
        aside: What is to be read in its snapshot yet.
    """

    position: SnapshotPosition
    found: Mapping[Run, Found | Failure | None]
    late: Mapping[Run, float]
    joined: frozenset[Run] = frozenset()
    aside: Aside | None = None


PUT_OFF = Found(State({}, False), {})
"""Of a query of which all rows are to be read, and it is not the time for it."""

ToRead = Mapping[Run, TouchedRows | None]
"""Which rows are to be read again, of each query that a change concerns; None for all of its rows."""


class Cycle:
    """
    The session on which cycles run, one at a time, and those for what is read aside.

    Args:
        reactor: To come back from the thread.
        dsn: Where the database is, past any pooler; asked at every connect.
        session: What is set in the session.
    """

    def __init__(self, reactor: Any, dsn: str | Dsn, session: SessionSettings) -> None:
        self._reactor = reactor
        self._dsn: Dsn = dsn if callable(dsn) else lambda: dsn
        self._session = session
        self._connection: PgConnection | None = None
        self._asides: list[PgConnection] = []  # those at which nothing is read now
        self._watched = WatchedRuns()
        self._dropped: list[Run] = []

    def drop(self, run: Run) -> None:
        """Forget a query from the next cycle on."""
        self._dropped.append(run)

    def run(self, orders: Collection[Order], since: SnapshotPosition | None) -> Deferred[Outcome]:
        """
        Run a cycle, for all queries that were found before, and were not dropped since.

        Args:
            orders: Of others, and of those of which more is asked than what the log says.
            since: What the cycle before saw; without it everything may have changed.
        """
        return in_thread(self._reactor, "pg-watch", self._run, self._watched, orders, since)

    def run_alone(self, orders: Collection[Order]) -> Deferred[Outcome]:
        """Run a cycle for queries that were not found before; it keeps nothing of them."""
        return in_thread(self._reactor, "pg-watch", self._run, WatchedRuns(), orders, None)

    def read_aside(self, aside: Aside) -> Deferred[Outcome | None]:
        """Read queries aside, and end that transaction; None if a table may have looked empty."""
        return in_thread(self._reactor, "pg-watch", self._read_aside, aside)

    def close(self) -> Deferred[None]:
        """Close the sessions, while nothing is read, and forget all queries."""
        return in_thread(self._reactor, "pg-watch", self._end)

    def _run(
        self, watched: WatchedRuns, orders: Collection[Order], since: SnapshotPosition | None
    ) -> Outcome:
        while self._dropped:
            self._watched.drop(self._dropped.pop())
        connection = self._connection
        if connection is None or not connection.alive():
            self._close()
            connection = open_session(self._dsn(), self._session)
        same, self._connection = connection is self._connection, connection
        aside = self._opened_aside() if any(order.aside for order in orders) else None
        try:
            for _ in range(MOST_TRIES):
                outcome = cycle_txn(connection, watched, orders, since, same, aside=aside)
                if outcome is not None:
                    return outcome
                if aside is not None:
                    rollback_txn(aside)
            raise RuntimeError("tables are truncated or rewritten all the time")
        except BaseException:
            self._close()
            if aside is not None:
                aside.close()
            raise

    def _opened_aside(self) -> PgConnection:
        while self._asides:
            connection = self._asides.pop()
            if connection.alive():
                return connection
            connection.close()
        return open_session(self._dsn(), self._session)

    def _read_aside(self, aside: Aside) -> Outcome | None:
        try:
            return aside_txn(aside)
        finally:
            self._asides.append(aside.connection)

    def _end(self) -> None:
        while self._asides:
            self._asides.pop().close()
        self._close()
        self._watched = WatchedRuns()
        self._dropped.clear()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def cycle_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    orders: Collection[Order],
    since: SnapshotPosition | None,
    same: bool = False,
    budget: float = BUDGET,
    aside: PgConnection | None = None,
) -> Outcome | None:
    """
    Find what has changed in queries, and wait until what was seen cannot be lost any more.

    Args:
        connection: With nothing begun.
        watched: The queries that were found before.
        orders: Of others, and of those of which more is asked than what the log says.
        since: What the cycle before saw; without it everything may have changed.
        same: Whether that was in this very session.
        budget: Seconds after which what needs a read of all rows is put off.
        aside: Another session, with nothing begun, to read some queries in the same snapshot.

    Returns:
        What was found; None if a table may have looked empty that was not.
    """
    connection.begin(begin_statement("repeatable read", read_only=True))
    try:
        moment, rows = moment_txn(connection, since.snapshot if since and same else None)
        position = moment.position
        goes_on = same and moment.goes_on and since and position.epoch == since.epoch
        if since is not None and not (goes_on and since.snapshot.xmin >= moment.pruned_below):
            # A session that was lost may be one of another history now, or the log may be pruned.
            before = resume_txn(connection, since)
            rows = None if before is None else read_txn(connection, before)
        touched = _touched_txn(connection, watched, orders, rows)
        asked = {order.run for order in orders}
        orders = [
            *orders,
            *(Order(run, watched.states[run]) for run in touched if run not in asked),
        ]
        slow = [order for order in orders if order.aside]
        orders = [order for order in orders if not order.aside]
        found, late = _answers_txn(connection, orders, touched, budget)
        _share_txn(connection, aside)
    except BaseException:
        if not connection.closed:
            rollback_txn(connection)
        raise
    # Where nothing was found, too: the position may be told, and is where the next cycle goes on from.
    if not _lasts_txn(connection, moment):
        # What was read, windows too, may be that of an empty table.
        watched.stale.update(found)
        return None
    watched.stale.clear()
    for order in orders:
        each = found.get(order.run)
        state = each.state if isinstance(each, Found) else order.before
        if state is not None:
            watched.keep(order.run, state)
    joined = (order.run for order in orders if order.since is not None)
    reading = None if aside is None else Aside(aside, slow, moment)
    return Outcome(position, found, late, frozenset(joined) - late.keys(), reading)


def _share_txn(connection: PgConnection, aside: PgConnection | None) -> None:
    """Begin a transaction of another session, if there is one, in the snapshot of the one that is open."""
    if aside is not None:
        (name,) = connection.ask("SELECT pg_catalog.pg_export_snapshot()")
        words = begin_statement("repeatable read", read_only=True)
        aside.begin(f"{words};SET TRANSACTION SNAPSHOT '{name}'")
        aside.ask("SELECT 1")


def aside_txn(aside: Aside) -> Outcome | None:
    """
    Read all rows of queries in the snapshot of a cycle, and wait until they cannot be lost any more.

    Returns:
        What was found; None if a table may have looked empty that was not.
    """
    connection, orders = aside.connection, aside.orders
    try:
        touched = dict.fromkeys(order.run for order in orders)
        found, _ = _answers_txn(connection, orders, touched, math.inf)
    except BaseException:
        if not connection.closed:
            rollback_txn(connection)
        raise
    lasts = _lasts_txn(connection, aside.moment)
    return Outcome(aside.moment.position, found, {}) if lasts else None


def _lasts_txn(connection: PgConnection, moment: Moment) -> bool:
    """Commit; return whether what was read cannot be lost, and no table has looked empty by mistake."""
    flushed, files = flushed_txn(connection, moment.written)
    if files != moment.files:
        return False
    if not flushed and not any(_written_txn(connection, moment, pause) for pause in LOOKS):
        connection.command(FLUSH)
    return True


def _written_txn(connection: PgConnection, moment: Moment, pause: float) -> bool:
    """Return whether what was written by a moment is safe from a crash, after a pause, in seconds."""
    time.sleep(pause)
    with connection.cursor() as cursor:
        WRITTEN.run(cursor, {"written": moment.written})
        (flushed,) = cursor.fetchone()
        return bool(flushed)


class Moment(NamedTuple):
    """
    What the snapshot of a cycle is of.

    Args:
        position: What it sees.
        written: Up to where the write-ahead log was written by then.
        files: Of the tracked tables, as a digest.
        pruned_below: Rows of the log of transactions below may be gone.
        goes_on: Whether the server is in the history of the newest epoch.
    """

    position: SnapshotPosition
    written: str
    files: str | None
    pruned_below: int
    goes_on: bool


def moment_txn(
    connection: PgConnection, since: PgSnapshot | None
) -> tuple[Moment, list[LogRow] | None]:
    """Return what the log has since another snapshot, with the snapshot of a cycle, which it takes."""
    values = read_values(since or NOTHING_SINCE, MOST_ROWS, MOST_BYTES)
    with connection.cursor() as cursor:
        MOMENT.run(cursor, values, BY_INDEX)
        found = cursor.fetchall()
    connection.opening = AS_EVER
    snapshot, written, files, epoch, pruned, goes_on, *first = found[0]
    position = SnapshotPosition(epoch, PgSnapshot.of(snapshot))
    moment = Moment(position, written, files, int(pruned or 0), bool(goes_on))
    if since is None:
        return moment, None
    return moment, [] if first[0] is None else read_rows([row[6:] for row in found], MOST_ROWS)


def flushed_txn(connection: PgConnection, written: str) -> tuple[bool, str | None]:
    """Commit; return whether what was written by then is safe from a crash, and the files by now."""
    before = "COMMIT;"
    if connection.touched:  # what was left behind goes with it
        commit_txn(connection)
        before = ""
    connection.opening = None
    with connection.cursor() as cursor:
        FLUSHED.run(cursor, {"written": written}, before)
        flushed, files = cursor.fetchone()
        return flushed, files


def _touched_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    orders: Collection[Order],
    rows: Sequence[LogRow] | None,
) -> ToRead:
    """Return which rows the log names, of each query that it concerns; None for all of its rows."""
    found: dict[Run, TouchedRows | None] = {}
    if rows is None:
        new = (order.run for order in orders if order.since is None)
        found |= dict.fromkeys([*watched.states, *new])
    elif rows:
        found |= touched_txn(connection, watched, list(map(row_change, rows)))
    for since in {order.since for order in orders if order.since is not None}:
        found |= _joining_txn(connection, [each for each in orders if each.since == since], since)
    stale = (order.run for order in orders if order.stale)
    return found | dict.fromkeys([*watched.stale, *stale])


def _joining_txn(
    connection: PgConnection, orders: Collection[Order], since: SnapshotPosition
) -> ToRead:
    """Return which rows the log names of queries that another session has found, before this one."""
    joining = WatchedRuns()
    for order in orders:
        if order.before is not None:
            joining.keep(order.run, order.before)
    connection.act(OURSELVES)
    before = resume_txn(connection, since)
    rows = None if before is None else read_txn(connection, before)
    if rows is None:
        return dict.fromkeys(joining.states)
    return touched_txn(connection, joining, list(map(row_change, rows)))


def found_txn(
    connection: PgConnection, order: Order, touched: ToRead, whole: bool = True
) -> Found | Failure | None:
    """
    Return what is different in a query, if anything is, or why it is refused.

    Args:
        connection: In the snapshot in which the changes were read.
        order: Of the query.
        touched: Which of its rows changes have touched.
        whole: Whether all of its rows may be read; without, they are `PUT_OFF` where they have to be.
    """
    try:
        found = _found_txn(connection, order, touched, whole)
        if order.check and order.before is not None:
            found = _checked_txn(connection, order, found)
        return found
    except Exception:
        if connection.closed:
            raise
        return Failure()


def _answers_txn(
    connection: PgConnection,
    orders: Collection[Order],
    touched: ToRead,
    budget: float,
) -> tuple[dict[Run, Found | Failure | None], dict[Run, float]]:
    """
    Return what was found of queries in the time that there is, and the seconds until others may be run.

    The sessions that watch one which is put off wait for it, and nobody else.
    """
    todo = [order for order in orders if order.asks or order.run in touched]
    # What takes long comes last, and each time that it was put off, sooner.
    todo.sort(key=lambda order: order.run.whole / 2**order.late)
    found: dict[Run, Found | Failure | None] = {}
    late: dict[Run, float] = {}
    missed = Missed([order.run for order in todo if order.resumes])
    missed.read_txn(connection, {each for order in todo for each in order.resumes})
    began = time.monotonic()  # that all who come back share is no query's time
    for order in todo:
        run, at = order.run, time.monotonic()
        heavy = run.heavy and budget < math.inf
        whole = order.asks or touched[run] is None
        if whole and (heavy or (found and at > began + budget)):
            late[run] = max(0.0, run.until - at)
            continue
        answer = found_txn(connection, order, touched, not heavy)
        if answer is PUT_OFF:
            late[run] = max(0.0, run.until - at)
            continue
        if isinstance(answer, Found) and order.resumes:
            keys = {each: missed.keys_txn(connection, run, each) for each in order.resumes}
            answer = replace(answer, resumed=keys)
        found[run] = answer
    return found, late


def _found_txn(
    connection: PgConnection, order: Order, touched: ToRead, whole: bool
) -> Found | None:
    run, before = order.run, order.before
    if before is None or order.whole:
        return _whole_txn(connection, order)
    if run not in touched:
        return None
    keys = touched[run]
    found = None if keys is None else by_keys_txn(connection, run, before, keys)
    if found is None:
        return _whole_txn(connection, order) if whole else PUT_OFF
    return _different(before, found)


def _checked_txn(connection: PgConnection, order: Order, found: Found | None) -> Found | None:
    """Return what was found of a query, or if that is wrong, all of its rows."""
    known = order.before if found is None else found.state
    assert known is not None
    every = whole_txn(connection, order.run)
    if not difference(known, every.state):
        return found
    return Found(every.state, every.rows, drifted=True)


def _whole_txn(connection: PgConnection, order: Order) -> Found | None:
    found = whole_txn(connection, order.run)
    if order.before is None:
        return Found(found.state, found.rows)
    change = _different(order.before, found)
    if not order.whole:
        return change
    # A state that is the same stays the same object, by which watchers know it.
    return Found(change.state if change else order.before, found.rows)


def _different(before: State, found: FoundRows) -> Found | None:
    """Return the rows that are different from those of a state, and the new state, if any are."""
    change = difference(before, found.state, found.rows)
    if change:
        return Found(
            found.state, {name: found.rows[name] for name in (*change.enter, *change.update)}
        )
    # what is kept behind the last row has nothing to do with it
    before.window = found.state.window
    return None
