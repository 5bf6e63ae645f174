"""
Leader election among service processes, and how the leader falls asleep.

The leader is the process whose session holds an advisory lock. The same session inserts the ticks, so a
process that has lost its session cannot make another tick. Followers call `pg_try_advisory_lock` again and
again in place of `pg_advisory_lock`: a session that waits for the lock keeps its snapshot (`backend_xmin`),
and keeps VACUUM from removing what was deleted since.

A leader whose process hangs keeps its session, because the kernel still answers TCP keepalives. So a
follower terminates the session when it has run no statement for the time of the lease.

Behind a transaction pooler, sessions are shared, so a session lock means nothing. There the leader is the
process that made the newest tick. Another one takes over when log rows were not read, or a tick was not
marked as published, for the time of the lease. If two make the same tick, its primary key stops the second.
"""

from __future__ import annotations

from enum import Enum

from schema.changes import LEADER
from schema.triggers import ASLEEP
from service.changes.log import installed_txn, unreadable_log_owner_txn
from service.db.connection import PgConnection
from service.db.planned import PreparedStatement

FOLLOWERS = 0x726F776361737404  # after those of `schema`
"""Advisory lock that followers share, so that the leader knows whether there are any to be notified of ticks."""

LEASE = 3.0
"""Seconds without a statement after which a leader counts as hanging."""

PREPARE = (
    "SET search_path = pg_catalog, pg_temp;"
    "SET default_transaction_isolation = 'read committed';"
    "SET default_transaction_read_only = off;"
    "SET idle_session_timeout = 0;"
    # A plan made while the log was small would stay a sequential scan when the log has grown. And each
    # statement is planned once, not for each tick's values.
    "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;"
    # A crash must not take back what was published. Stronger settings (remote_apply) are kept.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)
EACH_TIME = (
    "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL enable_seqscan = off;"
    "SET LOCAL synchronous_commit = 'on'; SET LOCAL statement_timeout = '60s';"
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


AWAKEN = f"SELECT pg_catalog.pg_advisory_unlock({ASLEEP})"
"""Makes writers stop notifying."""


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
    if not _tracked_txn(connection):
        return Duty.NOTHING
    if lease is None:
        return Duty.FOLLOW
    if connection.pooled:
        newest, overdue = connection.ask(OVERDUE.format(lease=lease))
        return Duty.LEAD if overdue or newest == made else Duty.FOLLOW
    if _try_txn(connection):
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


def _tracked_txn(connection: PgConnection) -> bool:
    (found,) = connection.ask("SELECT EXISTS (SELECT FROM rowcast.tracked)")
    return bool(found)


def _try_txn(connection: PgConnection) -> bool:
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock({LEADER})")
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
