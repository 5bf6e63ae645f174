"""
One reader among replicas, that makes ticks and publishes; and how it falls asleep.

It is the one whose session holds an advisory lock, the session that inserts the ticks: one whose
session is gone cannot make another. The lock is tried for, not waited for: a session that waits
in `pg_advisory_lock` keeps its snapshot, and VACUUM from all that was deleted since.

A leader whose process stands still keeps its session, for its kernel goes on to answer. So its
session is ended by those that try, once it has asked for nothing for as long as the lease.

Behind a transaction pooler no session is one's own, and there is no such lock. There the one leads
that made the newest tick, and another one once something has lain unread, or may lie unpublished,
for as long as the lease. Of two that make the same tick, its primary key stops the later one.
"""

from __future__ import annotations

from enum import Enum

from schema.changes import LEADER
from schema.triggers import ASLEEP
from service.changes.log import barred_txn, installed_txn
from service.db.connection import PgConnection
from service.db.planned import Planned

LEASE = 3.0
"""Seconds without a statement after which a leader is taken for one that stands still."""

PREPARE = (
    "SET search_path = pg_catalog, pg_temp;"
    "SET default_transaction_isolation = 'read committed';"
    "SET default_transaction_read_only = off;"
    "SET idle_session_timeout = 0;"
    # A plan made while the log was small is kept when it is not, and made once for all values.
    "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan;"
    # What was published may not be taken back by a crash. More than "on" may be set.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)
EACH_TIME = (
    "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL enable_seqscan = off;"
    "SET LOCAL synchronous_commit = 'on'; SET LOCAL statement_timeout = '60s';"
    "SET LOCAL datestyle = 'ISO'; SET LOCAL timezone = 'UTC';"
)
"""Before each statement behind a pooler: others use the session in between."""

HOLDER = f"""
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
     AND l.classid = {LEADER >> 32} AND l.objid = {LEADER & 0xFFFFFFFF}
     AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""

# One that is active works for it, or has sent an answer that nobody takes. Of sessions of other
# roles, which we may not end, `state_change` is not shown.
BREAK = f"""
SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(l.pid)) {HOLDER}
   AND (a.state <> 'active' OR a.wait_event = 'ClientWrite')
   AND a.state_change < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => {{lease}})
   AND pg_catalog.pg_has_role(a.usesysid, 'USAGE')
"""

# Rows that no tick has, or a tick that nobody has said to be published.
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

WRITERS = Planned("""
SELECT pg_catalog.array_agg(virtualtransaction) FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND relation = 'rowcast.log'::pg_catalog.regclass AND pid <> pg_catalog.pg_backend_pid()
""")


AWAKEN = f"SELECT pg_catalog.pg_advisory_unlock({ASLEEP})"
"""Stops writers from notifying."""


class Duty(Enum):
    """What a reader has to do."""

    NOTHING = "nothing is tracked"
    BARRED = "the log of changes is another role's"
    LEAD = "leading"
    FOLLOW = "following"


def prepare_txn(connection: PgConnection) -> None:
    """Set what ticks rely on."""
    if connection.pooled:
        connection.assume(EACH_TIME)
    else:
        connection.command(PREPARE)


def duty_txn(connection: PgConnection, lease: float | None, made: int) -> Duty:
    """
    Return the duty that this session has, after a try at the lead.

    Args:
        connection: In autocommit.
        lease: Seconds without a statement after which the lead of another one is ended; None
            follows, whoever leads.
        made: The newest tick that this process made or found when it began to lead; 0 if none.
    """
    if not installed_txn(connection):
        return Duty.NOTHING if barred_txn(connection) is None else Duty.BARRED
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


def _tracked_txn(connection: PgConnection) -> bool:
    (found,) = connection.ask("SELECT EXISTS (SELECT FROM rowcast.tracked)")
    return bool(found)


def _try_txn(connection: PgConnection) -> bool:
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock({LEADER})")
    return bool(taken)


def fall_asleep_txn(connection: PgConnection) -> set[str] | None:
    """
    Make writers notify from now on.

    Returns:
        Transactions that may have looked before, and so will not: the log is to be read on until
        they have ended, and then once more. None if a writer looked at this very moment.
    """
    (taken,) = connection.ask(f"SELECT pg_catalog.pg_try_advisory_lock({ASLEEP})")
    return writers_txn(connection) if taken else None


def writers_txn(connection: PgConnection) -> set[str]:
    """Return the transactions that have written to the log and have not ended."""
    # An orphaned prepared transaction has no process, and may stay for days.
    with connection.cursor() as cursor:
        WRITERS.run(cursor)
        ((found,),) = cursor.fetchall()
    return set(found or ())
