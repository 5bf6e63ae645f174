"""
The snapshot of a refresh cycle: how it is taken, shared with another session, and made durable.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from service.changes.epochs import NEWEST, TIMELINE
from service.changes.log import MOST_BYTES, MOST_ROWS, READ, LogRow, read_rows, read_values
from service.changes.positions import LAST_XID, PgSnapshot, SnapshotPosition
from service.db.connection import PgConnection
from service.db.planned import PreparedStatement
from service.db.transaction import begin_statement, commit_txn

# A cycle is woken by a tick, whose commit flushes the WAL while the queries are read. A flush of our own
# would queue behind that one, and then wait for the disk again; 3 to 5 of 100 cycles need it after these.
FLUSH_POLLS = (0.00025, 0.0005, 0.001, 0.002, 0.004)
"""Seconds before each poll whether other sessions have flushed the WAL far enough."""

# TRUNCATE, and DDL that rewrites a table, give the table a new file, and it looks empty to an older snapshot
# (PostgreSQL's documentation: "Caveats" of "Concurrency Control"). So the files have to be the same after all
# was read.
#
# Each file is looked up by the index of pg_class, and the relations are an array, of which the planner expects
# ten: for a join it expects 390,000 partitions, and scans and sorts all of pg_class, in each cycle twice.
FILES = """
(SELECT pg_catalog.md5(pg_catalog.string_agg(t.oid || ' ' || (
            SELECT c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = t.oid), ',' ORDER BY t.oid))
   FROM pg_catalog.unnest(ARRAY(
            SELECT relation::oid FROM rowcast.tracked
            UNION ALL SELECT p.relid::oid FROM rowcast.tracked t, pg_catalog.pg_partition_tree(t.relation) p
        )) AS t (oid))
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
# generic plan, which does not know the xids, may be one anyway.
BY_INDEX = "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan;"
PLANNER_DEFAULTS = "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL plan_cache_mode TO DEFAULT;"

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
