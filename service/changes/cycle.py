"""
The refresh cycle: brings all watched queries to the same snapshot.

A cycle is one REPEATABLE READ transaction in a session of its own. It reads the log rows that were not
visible in the cycle before, and reads again those rows of the affected queries that may have changed,
each query under its caller's role and claims. The changes and the rows come from the same snapshot, so
each delta leads to a state that the database really had, the same for all watches of the service. (Rows
read from a later snapshot than the changes differed from a fresh query in 685 of 2,662 comparisons.)
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.changes.delta import FoundRows, State, difference
from service.changes.invalidation import SERVICE_ACTOR, MissedChanges, WatchedRuns, touched_txn
from service.changes.leader import BUSY_TABLE
from service.changes.log import (
    MOST_BYTES,
    MOST_ROWS,
    READ,
    LogRow,
    PgSnapshot,
    read_rows,
    read_txn,
    read_values,
)
from service.changes.positions import (
    NEWEST,
    TIMELINE,
    Position,
    SnapshotPosition,
    resume_txn,
)
from service.changes.refresh import Run, TouchedRows, all_rows_txn, by_keys_txn
from service.changes.touched import row_change
from service.db.connection import GUARD, PgConnection
from service.db.planned import PreparedStatement
from service.db.session_settings import Dsn, Sessions, SessionSettings
from service.db.transaction import begin_statement, commit_txn, rollback_txn
from service.waiting import in_thread

# A cycle is woken by a tick, whose commit flushes the WAL while the queries are read. A flush of our own
# would queue behind that one, and then wait for the disk again; 3 to 5 of 100 cycles need it after these.
FLUSH_POLLS = (0.00025, 0.0005, 0.001, 0.002, 0.004)
"""Seconds before each poll whether other sessions have flushed the WAL far enough."""

# TRUNCATE, and DDL that rewrites a table, give the table a new file, and it looks empty to an older snapshot
# (PostgreSQL's documentation: "Caveats" of "Concurrency Control"). So the files have to be the same after all
# was read.
#
# pg_partition_tree would lock all partitions, but not the table: CREATE TABLE … PARTITION OF locks the table,
# then its default partition, and so met a deadlock with a cycle that read the table next.
#
# Each file is looked up by the index of pg_class, and the relations are an array, of which the planner expects
# ten: for a join it would scan and sort all of pg_class, in each cycle twice.
FILES = """
(SELECT pg_catalog.md5(pg_catalog.string_agg(t.oid || ' ' || (
            SELECT c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = t.oid), ',' ORDER BY t.oid))
   FROM pg_catalog.unnest(ARRAY(WITH RECURSIVE tree (oid) AS (
                SELECT relation::oid FROM rowcast.tracked
                UNION SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
            SELECT oid FROM tree)) AS t (oid))
"""

SNAPSHOT = PreparedStatement(
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

# A plan made while the log was small is a sequential scan, and stays one when the log has grown; a
# generic plan, which does not know the xids, may be one anyway. A sequential scan that cannot be avoided
# then costs so much that PostgreSQL before 18 would compile the statement, for most of a second.
PLANNER = {"enable_seqscan": "off", "jit": "off", "plan_cache_mode": "force_generic_plan"}
BY_INDEX = "".join(f"SET LOCAL {name} = {value};" for name, value in PLANNER.items())
PLANNER_DEFAULTS = "".join(f"SET LOCAL {name} TO DEFAULT;" for name in PLANNER)

LAST_XID = 2**64 - 1
"""The highest transaction id that `xid8` can hold."""

NOTHING_SINCE = PgSnapshot(LAST_XID, LAST_XID, ())
"""A snapshot that sees all transactions, so that the log has no row that is newer."""

# A crash may lose a row that is visible, if its writer committed with synchronous_commit = off, and the
# server then assigns the same xid again. A client that was sent the row would never be sent its removal,
# and one that resumes from a position that sees the lost xid would never be sent the new transaction.
FLUSHED = PreparedStatement(
    f"SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(written)s, {FILES}", written="pg_lsn"
)
WRITTEN = PreparedStatement(
    "SELECT pg_catalog.pg_current_wal_flush_lsn() >= %(written)s", written="pg_lsn"
)
FLUSH = (
    "BEGIN; SET LOCAL synchronous_commit = 'on';"
    " SELECT pg_catalog.pg_logical_emit_message(true, 'rowcast', ''); COMMIT"
)


class CycleSnapshot(NamedTuple):
    """
    The snapshot of a cycle, with what was read beside it.

    Args:
        position: Position of the snapshot.
        written: WAL insert position just after the snapshot was taken.
        files: Digest of the file numbers of the tracked tables.
        pruned_below: Transactions below this xid may be missing from the log.
        goes_on: Whether the server's timeline is that of the newest epoch.
    """

    position: SnapshotPosition
    written: str
    files: str | None
    pruned_below: int
    goes_on: bool


def snapshot_txn(
    connection: PgConnection, since: PgSnapshot | None
) -> tuple[CycleSnapshot, list[LogRow] | None]:
    """Return the snapshot of a cycle, and the log rows that an earlier snapshot did not see."""
    values = read_values(since or NOTHING_SINCE, MOST_ROWS, MOST_BYTES)
    with connection.cursor() as cursor:
        SNAPSHOT.run(cursor, values, BY_INDEX)
        found = cursor.fetchall()
    connection.opening = PLANNER_DEFAULTS
    snapshot, written, files, epoch, pruned, goes_on, *first = found[0]
    position = SnapshotPosition(epoch, PgSnapshot.of(snapshot))
    taken = CycleSnapshot(position, written, files, int(pruned or 0), bool(goes_on))
    if since is None:
        return taken, None
    return taken, [] if first[0] is None else read_rows([row[6:] for row in found], MOST_ROWS)


def flushed_txn(connection: PgConnection, written: str) -> tuple[bool, str | None]:
    """Commit; return whether the WAL is flushed up to `written`, and the digest of the files now."""
    before = "COMMIT;"
    if connection.touched:  # this COMMIT also resets what the queries may have set in the session
        commit_txn(connection)
        before = ""
    connection.opening = None
    with connection.cursor() as cursor:
        FLUSHED.run(cursor, {"written": written}, before)
        flushed, files = cursor.fetchone()
        return flushed, files


def share_txn(connection: PgConnection, background: PgConnection | None) -> None:
    """Begin a transaction of another session, if one is given, in the snapshot of the open transaction."""
    if background is not None:
        (name,) = connection.ask("SELECT pg_catalog.pg_export_snapshot()")
        words = begin_statement("repeatable read", read_only=True)
        background.begin(f"{words};SET TRANSACTION SNAPSHOT '{name}'")
        background.ask("SELECT 1")


def commit_durably_txn(connection: PgConnection, taken: CycleSnapshot) -> bool:
    """Commit, and wait until what was read is durable; False if a rewritten table may have looked empty."""
    flushed, files = flushed_txn(connection, taken.written)
    if files != taken.files:
        return False
    if not flushed and not any(_written_txn(connection, taken, pause) for pause in FLUSH_POLLS):
        connection.command(FLUSH)
    return True


def _written_txn(connection: PgConnection, taken: CycleSnapshot, pause: float) -> bool:
    """Pause for some seconds; return whether the WAL was then flushed as far as it was written before."""
    time.sleep(pause)
    with connection.cursor() as cursor:
        WRITTEN.run(cursor, {"written": taken.written})
        (flushed,) = cursor.fetchone()
        return bool(flushed)


BUDGET = 0.25
"""Seconds of a cycle after which no further query that needs a read of all rows is started."""

LOCK_TIMEOUT = 0.05
"""
Seconds that a cycle waits for a lock; for another one in the same cycle, a millisecond.

A cycle keeps its locks until it ends. After `deadlock_timeout`, 1 s by default, PostgreSQL would end DDL that
waits for these while the cycle waits for the DDL.
"""

STOP_TIMEOUT = 3.0
"""Seconds that a cycle may still take after the service was asked to stop."""

MOST_TRIES = 20
"""Maximum number of attempts at a cycle whose tables are truncated or rewritten meanwhile."""


@dataclass(frozen=True, slots=True)
class QueryTask:
    """
    A query with what a cycle has to find out about it.

    Args:
        run: How the query is run.
        before: Its last known state; None before its first run.
        all_rows: Whether all of its rows are wanted, whatever has changed.
        stale: Whether its rows may have changed without a row in the log.
        check: Whether to compare the state that follows from the log with a read of all rows.
        resumes: Positions at which callers have rows.
        late: Number of cycles by which it was postponed so far.
        since: Position of `before`, if the cycle before did not read it.
        background: Whether its rows are read in the background: in a second session, in the snapshot
            of the cycle, while later cycles run.
    """

    run: Run
    before: State | None
    all_rows: bool = False
    stale: bool = False
    check: bool = False
    resumes: tuple[Position, ...] = ()
    late: int = 0
    since: SnapshotPosition | None = None
    background: bool = False

    @property
    def asks(self) -> bool:
        """Whether to run the query even if no log row concerns it."""
        return self.before is None or self.all_rows or self.stale or self.check


@dataclass(frozen=True, slots=True)
class NewState:
    """
    The new state of one query, found by a cycle.

    Args:
        state: The state.
        rows: The rows that differ from the state before, or all rows if all were wanted.
        resumed: For each position, the keys of all rows that may have changed since; None if they
            cannot be told.
        drifted: Whether a check found other rows than the log had led to.
    """

    state: State
    rows: Mapping[Hashable, Any]
    resumed: Mapping[Position, Sequence[Any] | None] = field(default_factory=dict)
    drifted: bool = False

    @property
    def weight(self) -> int:
        """The size of the rows, in characters of canonical JSON."""
        return sum(self.state.entries[name].weight for name in self.rows)


@dataclass(frozen=True, slots=True)
class BackgroundRead:
    """
    Slow queries that are read in the background: in the snapshot of one cycle, while later cycles run.

    Args:
        connection: Second session, in a transaction that has imported the snapshot.
        tasks: The queries.
        taken: The snapshot.
    """

    connection: PgConnection
    tasks: Sequence[QueryTask]
    taken: CycleSnapshot


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    The outcome of a cycle.

    Args:
        position: Position of its snapshot.
        results: For each query that was run, its new state, None if nothing has changed, or a failure.
        late: The queries that were postponed, with the seconds until they may be run.
        joined: The queries that another session had read, and that are now at the cycle's position.
        background: The queries that are still to be read in its snapshot.
    """

    position: SnapshotPosition
    results: Mapping[Run, NewState | Failure | None]
    late: Mapping[Run, float]
    joined: frozenset[Run] = frozenset()
    background: BackgroundRead | None = None


POSTPONED = NewState(State({}, False), {})
"""Stands for the result of a query whose rows all have to be read, in a later cycle."""

ToRead = Mapping[Run, TouchedRows | None]
"""For each query that a change concerns, the rows to be read again; None for all rows."""


class Cycle:
    """
    The session in which cycles run, one at a time, and sessions for first reads and reads in the background.

    Args:
        reactor: Receives the results from the threads.
        dsn: Address of the database, not through a pooler; a function is called at each connect.
        session: Settings of the sessions.
    """

    def __init__(self, reactor: Any, dsn: str | Dsn, session: SessionSettings) -> None:
        self._reactor = reactor
        lock_timeout = min(session.lock_timeout, LOCK_TIMEOUT)
        self._sessions = Sessions(dsn, replace(session, lock_timeout=lock_timeout))
        self._connection: PgConnection | None = None
        self._idle: deque[PgConnection] = deque()  # without the session of `_connection`
        self._opened: dict[PgConnection, None] = {}  # all of them, for `give_up`
        self._watched = WatchedRuns()
        self._dropped: list[Run] = []

    def drop(self, run: Run) -> None:
        """Forget a query, from the next cycle on."""
        self._dropped.append(run)

    def run(
        self, tasks: Collection[QueryTask], since: SnapshotPosition | None
    ) -> Deferred[Outcome]:
        """
        Run a cycle for all queries that earlier cycles have read and that were not dropped.

        Args:
            tasks: New queries, and queries that need more than the changes in the log.
            since: Position of the cycle before; without it every query may have changed.
        """
        return in_thread(self._reactor, "pg-watch", self._run, tasks, since)

    def run_alone(self, tasks: Collection[QueryTask]) -> Deferred[Outcome]:
        """Run a cycle for new queries only, beside the others, which know nothing of them."""
        return in_thread(self._reactor, "pg-watch", self._run_alone, tasks)

    def read_in_background(self, background: BackgroundRead) -> Deferred[Outcome | None]:
        """
        Read queries in the background, and end their transaction.

        Returns:
            The outcome; None if a table was rewritten meanwhile, and may have looked empty.
        """
        return in_thread(self._reactor, "pg-watch", self._read_in_background, background)

    def give_up(self) -> None:
        """End the waits for a server that is silent; the reads that wait fail."""
        for connection in list(self._opened):
            GUARD.give_up(connection)

    def close(self) -> Deferred[None]:
        """Close the sessions, and forget all queries; nothing may be reading meanwhile."""
        return in_thread(self._reactor, "pg-watch", self._end)

    def _run(self, tasks: Collection[QueryTask], since: SnapshotPosition | None) -> Outcome:
        while self._dropped:
            self._watched.drop(self._dropped.pop())
        connection = self._connection
        if connection is None or not self._fit(connection):
            before = connection
            self._close()
            connection = self._open()
            if before is not None and before.address != connection.address:
                since = None  # a snapshot of another database means nothing here
        same, self._connection = connection is self._connection, connection
        background = self._other() if any(task.background for task in tasks) else None
        try:
            return _outcome_txn(connection, self._watched, tasks, since, same, background)
        except BaseException:
            self._close()
            if background is not None:
                background.close()
            raise

    def _run_alone(self, tasks: Collection[QueryTask]) -> Outcome:
        connection = self._other()
        try:
            return _outcome_txn(connection, WatchedRuns(), tasks, None)
        except BaseException:
            connection.close()
            raise
        finally:
            self._put(connection)

    def _other(self) -> PgConnection:
        """Return an idle session, or a new one."""
        with suppress(IndexError):  # another thread may take the last one
            while True:
                connection = self._idle.pop()
                if self._fit(connection):
                    return connection
                connection.close()
        return self._open()

    def _put(self, connection: PgConnection) -> None:
        """Keep a session for the next use, if it is fit for that."""
        if self._fit(connection):
            self._idle.append(connection)
        else:
            connection.close()

    def _fit(self, connection: PgConnection) -> bool:
        return connection.alive() and not self._sessions.outdated(connection)

    def _open(self) -> PgConnection:
        connection = self._sessions.open()
        for each in list(self._opened):
            if each.closed:
                self._opened.pop(each, None)
        self._opened[connection] = None
        return connection

    def _read_in_background(self, background: BackgroundRead) -> Outcome | None:
        try:
            return background_txn(background)
        finally:
            self._put(background.connection)

    def _end(self) -> None:
        self._close()
        self._watched = WatchedRuns()
        self._dropped.clear()

    def _close(self) -> None:
        """Close the sessions that are not in use."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


def _outcome_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    tasks: Collection[QueryTask],
    since: SnapshotPosition | None,
    same: bool = False,
    background: PgConnection | None = None,
) -> Outcome:
    """Return the outcome of a cycle, after further attempts if tables are rewritten; as `cycle_txn`."""
    for _ in range(MOST_TRIES):
        outcome = cycle_txn(connection, watched, tasks, since, same, background=background)
        if outcome is not None:
            return outcome
        if background is not None:
            rollback_txn(background)
    raise RuntimeError("tables are truncated or rewritten all the time")


def cycle_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    tasks: Collection[QueryTask],
    since: SnapshotPosition | None,
    same: bool = False,
    budget: float = BUDGET,
    background: PgConnection | None = None,
) -> Outcome | None:
    """
    Find what has changed in queries, and wait until what was read is durable.

    Args:
        connection: Outside a transaction.
        watched: The queries that earlier cycles have read.
        tasks: New queries, and queries that need more than the changes in the log.
        since: Position of the cycle before; without it every query may have changed.
        same: Whether the cycle before ran in this session.
        budget: Seconds after which queries that need a read of all rows wait for the next cycle.
        background: Another session, outside a transaction, which shall share the snapshot.

    Returns:
        The outcome; None if a table was rewritten meanwhile, and may have looked empty.
    """
    connection.begin(begin_statement("repeatable read", read_only=True))
    try:
        taken, rows = snapshot_txn(connection, since.snapshot if since and same else None)
        position = taken.position
        goes_on = same and taken.goes_on and since and position.epoch == since.epoch
        if since is not None and not (goes_on and since.snapshot.xmin >= taken.pruned_below):
            # After a reconnect the server may have another history (a failover, a restored dump), and
            # the log may have been pruned since the cycle before.
            rows = _rows_since_txn(connection, since)
        touched = _touched_txn(connection, watched, tasks, rows)
        asked = {task.run for task in tasks}
        tasks = [
            *tasks,
            *(QueryTask(run, watched.states[run]) for run in touched if run not in asked),
        ]
        slow = [task for task in tasks if task.background]
        tasks = [task for task in tasks if not task.background]
        results, late = _results_txn(connection, tasks, touched, budget)
        share_txn(connection, background)
    except BaseException:
        if not connection.closed:
            rollback_txn(connection)
        raise
    # Also if nothing has changed: the position may be sent, and the next cycle starts from it.
    if not commit_durably_txn(connection, taken):
        # The states that were read, and the windows that `_different` has replaced, may be those of
        # a table that looked empty.
        watched.stale.update(results)
        return None
    watched.stale.clear()
    for task in tasks:
        each = results.get(task.run)
        state = each.state if isinstance(each, NewState) else task.before
        if state is not None:
            watched.keep(task.run, state)
    joined = (task.run for task in tasks if task.since is not None)
    reading = None if background is None else BackgroundRead(background, slow, taken)
    return Outcome(position, results, late, frozenset(joined) - late.keys(), reading)


def background_txn(background: BackgroundRead) -> Outcome | None:
    """
    Read all rows of queries in the snapshot of a cycle, which has waited until that is durable.

    Returns:
        The outcome; None if a table was rewritten meanwhile, and may have looked empty.
    """
    connection, tasks = background.connection, background.tasks
    try:
        touched = dict.fromkeys(task.run for task in tasks)
        results, _ = _results_txn(connection, tasks, touched, math.inf)
    except BaseException:
        if not connection.closed:
            rollback_txn(connection)
        raise
    taken = background.taken
    _, files = flushed_txn(connection, taken.written)
    return Outcome(taken.position, results, {}) if files == taken.files else None


def _rows_since_txn(connection: PgConnection, since: SnapshotPosition) -> list[LogRow] | None:
    """Return the log rows since a position; None if they are not all in the log, or are too many."""
    before = resume_txn(connection, since)
    return None if before is None else read_txn(connection, before)


def _touched_txn(
    connection: PgConnection,
    watched: WatchedRuns,
    tasks: Collection[QueryTask],
    rows: Sequence[LogRow] | None,
) -> ToRead:
    """Return which rows to read again, of the queries that log rows concern; None for all rows."""
    found: dict[Run, TouchedRows | None] = {}
    if rows is None:
        new = (task.run for task in tasks if task.since is None)
        found |= dict.fromkeys([*watched.states, *new])
    elif rows:
        found |= touched_txn(connection, watched, list(map(row_change, rows)))
    for since in {task.since for task in tasks if task.since is not None}:
        found |= _joining_txn(connection, [each for each in tasks if each.since == since], since)
    stale = (task.run for task in tasks if task.stale)
    return found | dict.fromkeys([*watched.stale, *stale])


def _joining_txn(
    connection: PgConnection, tasks: Collection[QueryTask], since: SnapshotPosition
) -> ToRead:
    """Return which rows to read again, of queries that another session has read at the position `since`."""
    joining = WatchedRuns()
    for task in tasks:
        if task.before is not None:
            joining.keep(task.run, task.before)
    connection.act(SERVICE_ACTOR)
    rows = _rows_since_txn(connection, since)
    if rows is None:
        return dict.fromkeys(joining.states)
    return touched_txn(connection, joining, list(map(row_change, rows)))


def result_txn(
    connection: PgConnection, task: QueryTask, touched: ToRead, all_rows: bool = True
) -> NewState | Failure | None:
    """
    Return what has changed in a query, None if nothing has, or the failure of the query.

    Args:
        connection: In the snapshot in which the changes were read.
        task: The query.
        touched: Which rows to read again, of each query that a change concerns.
        all_rows: Whether all of its rows may be read; if not, `POSTPONED` is returned if they have to be.
    """
    try:
        result = _result_txn(connection, task, touched, all_rows)
        if task.check and task.before is not None:
            result = _checked_txn(connection, task, result)
        return result
    except Exception:
        if connection.closed:
            raise
        return Failure()


def _results_txn(
    connection: PgConnection,
    tasks: Collection[QueryTask],
    touched: ToRead,
    budget: float,
) -> tuple[dict[Run, NewState | Failure | None], dict[Run, float]]:
    """
    Run queries within the budget; return their results, and the seconds until the others may be run.

    Only the sessions that watch a postponed query wait for it.
    """
    todo = [task for task in tasks if task.asks or task.run in touched]
    # Slow queries come last, but a query that was postponed moves up each time.
    todo.sort(key=lambda task: task.run.duration / 2**task.late)
    results: dict[Run, NewState | Failure | None] = {}
    late: dict[Run, float] = {}
    missed = MissedChanges([task.run for task in todo if task.resumes])
    missed.read_txn(connection, {each for task in todo for each in task.resumes})
    began = time.monotonic()  # after `missed`, which is shared, so it counts against no query
    for task in todo:
        run, at = task.run, time.monotonic()
        # No rest for a first read: after each cycle `Watches` would only request it again, for ever.
        known = task.before is not None and budget < math.inf
        rests = known and (run.heavy or run.until > at)
        all_rows = task.asks or touched[run] is None
        postponed = all_rows and (rests or (results and at > began + budget))
        result = POSTPONED if postponed else result_txn(connection, task, touched, not rests)
        if result is POSTPONED:
            late[run] = max(0.0, run.until - at)
            continue
        if isinstance(result, Failure) and getattr(result.value, "pgcode", None) == BUSY_TABLE:
            connection.opening = f"{connection.opening or ''}SET LOCAL lock_timeout = 1;"
        if isinstance(result, NewState) and task.resumes:
            keys = {each: missed.keys_txn(connection, run, each) for each in task.resumes}
            result = replace(result, resumed=keys)
        results[run] = result
    return results, late


def _result_txn(
    connection: PgConnection, task: QueryTask, touched: ToRead, all_rows: bool
) -> NewState | None:
    run, before = task.run, task.before
    if before is None or task.all_rows:
        return _read_all_txn(connection, task)
    if run not in touched:
        return None
    keys = touched[run]
    found = None if keys is None else by_keys_txn(connection, run, before, keys)
    if found is None:
        return _read_all_txn(connection, task) if all_rows else POSTPONED
    return _different(before, found)


def _checked_txn(
    connection: PgConnection, task: QueryTask, found: NewState | None
) -> NewState | None:
    """Read all rows; return what was found by the log, or all rows if that is wrong."""
    known = task.before if found is None else found.state
    assert known is not None
    every = all_rows_txn(connection, task.run)
    if not difference(known, every.state):
        return found
    return NewState(every.state, every.rows, drifted=True)


def _read_all_txn(connection: PgConnection, task: QueryTask) -> NewState | None:
    found = all_rows_txn(connection, task.run)
    if task.before is None:
        return NewState(found.state, found.rows)
    change = _different(task.before, found)
    if not task.all_rows:
        return change
    # An unchanged state stays the same object: watches compare states by identity.
    return NewState(change.state if change else task.before, found.rows)


def _different(before: State, found: FoundRows) -> NewState | None:
    """Return the new state and the rows that differ from the state before; None if none differ."""
    change = difference(before, found.state, found.rows)
    if change:
        return NewState(
            found.state, {name: found.rows[name] for name in (*change.enter, *change.update)}
        )
    # The rows that are kept behind the last one shown may have changed, which no watch sees.
    before.window = found.state.window
    return None
