"""
The refresh cycle: all queries that are watched, as they are in one snapshot.

A cycle is one REPEATABLE READ transaction on a session of its own. It reads what the log has that
was not visible in the cycle before, and runs those queries again whose rows may be others, each
under its role and claims. So what watchers are told is a state that the database really had, the
same for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from service.changes.delta import Rows, State, difference, rows_of
from service.changes.log import LogRow, read_txn
from service.changes.positions import PgSnapshot, SnapshotPosition
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.session import Dsn, SessionSettings, open_session
from service.db.statements import Shape, keyed_txn, read_only_txn
from service.db.thread import in_thread
from service.db.transaction import Actor, apart_txn, begin_statement, commit_txn, rollback_txn
from service.plan.watch import WatchPlan
from service.sql.statement import Statement

MOST_ROWS = 10_000
"""Rows of the log that are looked at: with more of them every query is run again."""

MOMENT = """
SELECT pg_catalog.pg_current_snapshot()::text,
       (SELECT coalesce(max(epoch), 0) FROM rowcast.epochs),
       pg_catalog.pg_current_wal_insert_lsn()::text
"""

# A row that is visible may be lost in a crash, if its writer has not waited for the disk, and the
# number of its transaction given out again: whoever was told of it would never hear that it is gone.
FLUSHED = "SELECT pg_catalog.pg_current_wal_flush_lsn() >= '{}'::pg_lsn"
FLUSH = (
    "BEGIN; SET LOCAL synchronous_commit = 'on';"
    " SELECT pg_catalog.pg_logical_emit_message(true, 'rowcast', ''); COMMIT"
)


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Order:
    """
    What a cycle is to find out of one query.

    Args:
        run: How.
        before: What it was found in last; None the first time.
        whole: Whether all of its rows are wanted, whatever has changed.
    """

    run: Run
    before: State | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Found:
    """
    What a cycle has found.

    Args:
        state: Of the query.
        rows: Those that are different, or all that were wanted.
    """

    state: State
    rows: Mapping[Hashable, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    Of a cycle.

    Args:
        position: What it saw.
        found: For each order what was found, None if nothing can have changed, or why it failed.
        read: Rows of the log that were looked at.
    """

    position: SnapshotPosition
    found: Sequence[Found | Failure | None]
    read: int


Touched = frozenset[Hashable] | bool
"""Of what a query gives: whether all may be different, or which keys."""


def touched_txn(connection: PgConnection, order: Order, rows: Sequence[LogRow]) -> Touched:
    """Return what of a query may be different after changes that were logged."""
    reads = order.run.reads
    return any(row.relation in reads for row in rows)


class Cycle:
    """
    The session on which cycles run, one at a time.

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

    def run(self, orders: Sequence[Order], since: SnapshotPosition | None) -> Deferred[Outcome]:
        """
        Run a cycle.

        Args:
            orders: Of each query that is watched.
            since: What the cycle before saw; without it everything may have changed.
        """
        return in_thread(self._reactor, "pg-watch", self._run, orders, since)

    def close(self) -> Deferred[None]:
        """Close the session, between two cycles."""
        return in_thread(self._reactor, "pg-watch", self._close)

    def _run(self, orders: Sequence[Order], since: SnapshotPosition | None) -> Outcome:
        connection = self._connection
        if connection is None or not connection.alive():
            self._close()
            connection = self._connection = open_session(self._dsn(), self._session)
        try:
            return cycle_txn(connection, orders, since)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def cycle_txn(
    connection: PgConnection, orders: Sequence[Order], since: SnapshotPosition | None
) -> Outcome:
    """Find what has changed in queries, and wait until that cannot be lost any more."""
    connection.begin(begin_statement("repeatable read", read_only=True))
    try:
        snapshot, epoch, written = connection.ask(MOMENT)
        position = SnapshotPosition(epoch, PgSnapshot.parse(snapshot))
        rows = None
        if since is not None and since.epoch == epoch:
            rows = read_txn(connection, since.snapshot, MOST_ROWS + 1)
        found = [_found_txn(connection, order, rows) for order in orders]
    except BaseException:
        if not connection.closed:
            rollback_txn(connection)
        raise
    commit_txn(connection)
    told = any(isinstance(each, Found) for each in found)
    if told and not connection.ask(FLUSHED.format(written))[0]:
        connection.command(FLUSH)
    return Outcome(position, found, len(rows or ()))


def _found_txn(
    connection: PgConnection, order: Order, rows: Sequence[LogRow] | None
) -> Found | Failure | None:
    known = order.before is not None and not order.whole
    looked = known and rows is not None and len(rows) <= MOST_ROWS
    try:
        if looked and not touched_txn(connection, order, rows or ()):
            return None
        found = whole_txn(connection, order.run)
    except Exception:
        if connection.closed:
            raise
        return Failure()
    if order.before is None:
        return Found(found.state, found.rows)
    change = difference(order.before, found.state)
    # A state that is the same stays the same object, by which watchers know it.
    state = found.state if change else order.before
    if order.whole:
        return Found(state, found.rows)
    if not change:
        return None
    return Found(state, {name: found.rows[name] for name in (*change.enter, *change.update)})


def whole_txn(connection: PgConnection, run: Run) -> Rows:
    """
    Return all rows of a query, in the open transaction.

    Raises:
        TooManyWatched, TooLarge: There are more than are watched, or they weigh too much.
        KeyRepeated: Two of them have one key.
    """
    limit = f"SET LOCAL statement_timeout={round(run.timeout * 1000)};"
    connection.opening = f"{connection.opening or ''}{limit}"
    ahead = (read_only_txn,) if run.guarded else ()
    rows, keys = apart_txn(
        connection,
        run.actor,
        *ahead,
        keyed_txn,
        run.codec,
        run.statement,
        run.values,
        run.most,
        Shape("dicts", run.max_bytes),
    )
    return rows_of(run.plan.form, rows, keys)
