"""
The leader: its election among service processes, how it falls asleep, and its upkeep of the log.

The leader is the process whose session holds an advisory lock. The same session inserts the ticks, so a
process that has lost its session cannot make another tick. Followers call `pg_try_advisory_lock` again and
again in place of `pg_advisory_lock`: a session that waits for the lock keeps its snapshot (`backend_xmin`),
and keeps VACUUM from removing what was deleted since.

A leader whose process hangs keeps its session, because the kernel still answers TCP keepalives. So a
follower terminates the session when it has run no statement for the time of the lease.

Behind a transaction pooler, sessions are shared, so a session lock means nothing. There the leader is the
process that made the newest tick. Another one takes over when log rows were not read, or a tick was not
marked as published, for the time of the lease. If two make the same tick, its primary key stops the second.

Between ticks the leader does the upkeep of the log: it detects DDL that fires no trigger, and prunes old rows.
`pruned_below` of the epoch is committed before the first row is deleted. So a client's position is either
refused, or the log still has all changes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from schema.changes import LEADER
from schema.triggers import ASLEEP, OUTDATED
from service.changes.log import FOLLOWERS, installed_txn, unreadable_log_owner_txn
from service.db.connection import PgConnection
from service.db.planned import PreparedStatement

LEASE = 3.0
"""Seconds without a statement after which a leader counts as hanging."""

PREPARE = (
    "SET search_path = pg_catalog, pg_temp;"
    "SET default_transaction_isolation = 'read committed';"
    "SET default_transaction_read_only = off;"
    # A plan made while the log was small would stay a sequential scan when the log has grown. And each
    # statement is planned once, not for each tick's values. Before PostgreSQL 18, a sequential scan that
    # cannot be avoided then costs so much that the statement is compiled, for most of a second.
    "SET enable_seqscan = off; SET jit = off; SET plan_cache_mode = force_generic_plan;"
    # A crash must not take back what was published. Stronger settings (remote_apply) are kept.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)
EACH_TIME = (
    "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL enable_seqscan = off;"
    "SET LOCAL jit = off; SET LOCAL synchronous_commit = 'on'; SET LOCAL statement_timeout = '60s';"
    "SET LOCAL datestyle = 'ISO'; SET LOCAL timezone = 'UTC';"
)
"""Sent before each statement behind a pooler: other clients use the session in between."""

# pg_locks shows the bigint key of an advisory lock as two halves, with objsubid = 1.
HOLDER = f"""
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
     AND l.classid = {LEADER >> 32} AND l.objid = {LEADER & 0xFFFFFFFF}
     AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""

NAME = """
SELECT pg_catalog.set_config('application_name',
    pg_catalog.left(pg_catalog.current_setting('application_name'), 38) || ' process {process}', false)
"""
WHO_LEADS = f"SELECT pg_catalog.substring(a.application_name, ' process (.+)$'), a.pid {HOLDER}"

# An active session still works for the leader, unless it waits in ClientWrite: then its client does not
# read. Sessions of roles that we may not terminate show no `state_change` either.
BREAK = f"""
SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(l.pid)) {HOLDER}
   AND (a.state <> 'active' OR a.wait_event = 'ClientWrite')
   AND a.state_change < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => {{lease}})
   AND pg_catalog.pg_has_role(a.usesysid, 'USAGE')
"""

# Old log rows that are in no tick, or an old tick that no empty tick follows, which would mark it as
# published.
OVERDUE = """
WITH newest AS (SELECT * FROM rowcast.ticks ORDER BY tick DESC LIMIT 1),
     late AS (SELECT clock_timestamp() - make_interval(secs => {lease}) AS at)
SELECT coalesce((SELECT tick FROM newest), 0),
       NOT EXISTS (SELECT FROM newest)
    OR EXISTS (SELECT FROM newest, late WHERE newest.changes > 0 AND newest.at < late.at)
    OR EXISTS (SELECT FROM newest, late, rowcast.log l
                WHERE l.xid >= pg_snapshot_xmin(newest.snapshot)
                  AND NOT pg_visible_in_snapshot(l.xid, newest.snapshot) AND l.at < late.at)
"""

WRITERS = PreparedStatement("""
SELECT pg_catalog.array_agg(virtualtransaction) FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND relation = 'rowcast.log'::pg_catalog.regclass AND pid <> pg_catalog.pg_backend_pid()
""")


class Duty(Enum):
    """The part of a feed among those of all processes."""

    NOTHING = "nothing is tracked"
    BARRED = "the log of changes is another role's"
    LEAD = "leading"
    FOLLOW = "following"


def prepare_txn(connection: PgConnection, process: str = "") -> None:
    """
    Set the session parameters that the feed's statements rely on.

    Args:
        connection: In autocommit.
        process: Id of this process, which the name of the session shows to `leader_txn`.
    """
    if connection.pooled:
        connection.assume(EACH_TIME)
        return
    connection.command(PREPARE)
    if process:
        connection.ask(NAME.format(process=process))


def leader_txn(connection: PgConnection) -> tuple[str | None, int] | None:
    """Return the leader's process, if its session names one, and its backend; None if nothing holds the lock."""
    found: tuple[str | None, int] | None = connection.ask(WHO_LEADS)
    return found


def duty_txn(connection: PgConnection, lease: float | None, made: int) -> Duty:
    """
    Try to take the lead; return the duty of this session.

    Args:
        connection: In autocommit.
        lease: Seconds without a statement after which another leader's session is terminated; None
            to follow without trying.
        made: Newest tick that this process made, or found when it took the lead; 0 if none.
    """
    if not installed_txn(connection):
        return Duty.NOTHING if unreadable_log_owner_txn(connection) is None else Duty.BARRED
    (tracked,) = connection.ask("SELECT EXISTS (SELECT FROM rowcast.tracked)")
    if not tracked:
        return Duty.NOTHING
    if lease is None:
        return Duty.FOLLOW
    if connection.pooled:
        newest, overdue = connection.ask(OVERDUE.format(lease=lease))
        return Duty.LEAD if overdue or newest == made else Duty.FOLLOW
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock({LEADER})")
    if taken:
        return Duty.LEAD
    connection.ask(BREAK.format(lease=lease))
    return Duty.FOLLOW


def follow_txn(connection: PgConnection) -> bool:
    """
    Try to make the leader notify of each tick, for as long as the session lasts.

    It does not wait for the lock, which a leader that hangs may keep, and which `duty_txn` then breaks.

    Returns:
        Whether the leader notifies of all ticks that are not committed yet.
    """
    if connection.pooled:  # no session keeps a lock or listens
        return True
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock_shared({FOLLOWERS})")
    return bool(taken)


def fall_asleep_txn(connection: PgConnection) -> set[str] | None:
    """
    Take the lock that makes writers notify.

    Returns:
        The open transactions that may have tested the lock before, and so will not notify: the log has
        to be polled until they have ended, and then once more. None if the lock could not be taken,
        because a writer was testing it.
    """
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock({ASLEEP})")
    return writers_txn(connection) if taken else None


def writers_txn(connection: PgConnection) -> set[str]:
    """Return the open transactions that have written to the log."""
    # The condition on pid leaves out prepared transactions, which have none and may stay for days.
    with connection.cursor() as cursor:
        WRITERS.run(cursor)
        ((found,),) = cursor.fetchall()
    return set(found or ())


NOTICE = 30.0
"""Seconds between two checks for DDL while there are changes; a catalog reload checks at once."""
PRUNE = 60.0
"""Maximum number of seconds between two checks for old rows."""
BATCH = 5_000
"""Number of rows that are deleted at a time: about 10 ms, during which the feed reads nothing."""
BUSY_TABLE = "55P03"
"""SQLSTATE lock_not_available: another session is in a transaction that tracks a table."""

OLD = f"SELECT count(*) FROM rowcast.tracked t WHERE {OUTDATED.format('t.relation')}"

# The first tick that is young enough: it and all later ticks are kept.
FIRST_KEPT = """
SELECT least(
    (SELECT tick FROM rowcast.ticks WHERE at >= clock_timestamp() - make_interval(secs => %(keep)s)
      ORDER BY tick LIMIT 1),
    (SELECT max(tick) FROM rowcast.ticks)
)
"""

# Estimates: the number of rows from the statistics, their size from the newest 1,000, which are likely to
# be cached. To count would read all of the log each minute.
SURPLUS = """
SELECT coalesce(pg_stat_get_live_tuples('rowcast.log'::regclass), 0) - %(bytes)s / greatest(1, (
    SELECT avg(pg_column_size(l)) FROM (SELECT * FROM rowcast.log ORDER BY xid DESC, seq DESC LIMIT 1000) AS l
))::bigint
"""
FIRST_WITHIN = """
SELECT least(
    (SELECT tick FROM rowcast.ticks
      WHERE pg_snapshot_xmin(snapshot) > (SELECT xid FROM rowcast.log ORDER BY xid, seq OFFSET %(surplus)s LIMIT 1)
      ORDER BY tick LIMIT 1),
    (SELECT max(tick) FROM rowcast.ticks)
)
"""

ANNOUNCE = """
UPDATE rowcast.epochs SET pruned_below = before.xmin
  FROM (SELECT pg_snapshot_xmin(snapshot) AS xmin FROM rowcast.ticks WHERE tick < %(first)s
         ORDER BY tick DESC LIMIT 1) AS before
 WHERE epoch = (SELECT max(epoch) FROM rowcast.epochs) AND pruned_below < before.xmin
RETURNING pruned_below::text
"""

PRUNE_LOG = """
DELETE FROM rowcast.log WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM rowcast.log WHERE xid < %(below)s::xid8 ORDER BY xid, seq LIMIT %(most)s))
"""
# The tick before the first one kept is kept, too: its snapshot is where that one begins.
PRUNE_TICKS = """
DELETE FROM rowcast.ticks WHERE tick = ANY (ARRAY(
    SELECT tick FROM rowcast.ticks WHERE tick < %(first)s - 1 ORDER BY tick LIMIT %(most)s))
"""


@dataclass
class Upkeep:
    """
    The upkeep of one leader, and its schedule.

    Args:
        keep: Seconds for which log rows are kept.
        keep_bytes: Approximate maximum size of the log's rows in bytes.

    Attributes:
        looking: Whether to check for DDL at once.
        pruned: Number of log rows deleted so far.
        outdated: Number of tables that are tracked by triggers of an older version.
    """

    keep: float
    keep_bytes: int
    looking: bool = True
    pruned: int = 0
    outdated: int = 0
    _noticed_at: float = 0.0
    _changed: bool = False
    _pruned_at: float = 0.0
    _first: int = 0
    _below: int | None = None

    def changed(self) -> None:
        """Record that there were changes, so that DDL is worth a check."""
        self._changed = True

    def due(self, now: float) -> bool:
        """Return whether a step of the upkeep is due."""
        return self._notices(now) or self._below is not None or self._prunes(now)

    def _notices(self, now: float) -> bool:
        return self.looking or (self._changed and now >= self._noticed_at + NOTICE)

    def _prunes(self, now: float) -> bool:
        return now >= self._pruned_at + min(PRUNE, self.keep / 10)

    def run_txn(self, connection: PgConnection, now: float) -> None:
        """Run one step that is due; a step takes some milliseconds."""
        if self._notices(now):
            self.looking = self._changed = False
            self._noticed_at = now
            if not notice_txn(connection):
                self.looking = True
            (self.outdated,) = connection.ask(OLD)
        elif self._below is not None:
            many = self._delete_txn(connection, PRUNE_LOG, below=str(self._below))
            self.pruned += many
            if (
                many < BATCH
                and self._delete_txn(connection, PRUNE_TICKS, first=self._first) < BATCH
            ):
                self._below = None
        else:
            self._pruned_at = now
            self._first, self._below = announce_txn(connection, self.keep, self.keep_bytes)

    def _delete_txn(self, connection: PgConnection, statement: str, **values: object) -> int:
        with connection.cursor() as cursor:
            cursor.execute(statement, values | {"most": BATCH}, clean=True)
            return cursor.rowcount


def notice_txn(connection: PgConnection) -> bool:
    """Log resets for DDL that fires no trigger; return False if a lock could not be taken in time."""
    try:
        # A long transaction that tracks a table must not keep the feed from reading.
        connection.command(
            "BEGIN; SET LOCAL lock_timeout = '200ms'; SELECT rowcast.notice(); COMMIT"
        )
    except Exception as error:
        if getattr(error, "pgcode", None) != BUSY_TABLE:
            raise
        connection.command("ROLLBACK")
        return False
    return True


def announce_txn(connection: PgConnection, keep: float, keep_bytes: int) -> tuple[int, int | None]:
    """
    Record in the epoch what will be pruned.

    Returns:
        The first tick that is kept, and the transaction id below which log rows may be deleted; None in
        place of the id if there is nothing to prune.
    """
    first = connection.ask(FIRST_KEPT, keep=keep)[0] or 0
    surplus = connection.ask(SURPLUS, bytes=keep_bytes)[0] or 0
    if surplus > 0:
        first = max(first, connection.ask(FIRST_WITHIN, surplus=surplus)[0] or 0)
    found = connection.ask(ANNOUNCE, first=first)
    return first, None if found is None else int(found[0])
