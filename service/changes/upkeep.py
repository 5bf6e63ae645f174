"""
What the leader does beside reading: it looks for DDL that no trigger tells of, and prunes the log.

What is pruned is said first: `pruned_below` of the epoch is committed before the first row goes, so
a position is found to be gone, or else all that comes after it is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from schema.triggers import OUTDATED
from service.db.connection import PgConnection

NOTICE = 30.0
"""Seconds between two looks for DDL while there are changes; most is seen in the catalog at once."""
PRUNE = 60.0
"""Seconds between two looks for what is old, at most."""
BATCH = 5_000
"""Rows that are deleted at a time: some 10 ms, in which nothing is read."""
BUSY_TABLE = "55P03"
"""SQLSTATE of a lock that was not to be had: somebody tracks a table, and is not done."""

OLD = f"SELECT count(*) FROM rowcast.tracked t WHERE {OUTDATED.format('t.relation')}"

# A tick of which nothing is old: its changes are kept, and so is what was visible before it.
FIRST_KEPT = """
SELECT least(
    (SELECT tick FROM rowcast.ticks WHERE at >= clock_timestamp() - make_interval(secs => %(keep)s)
      ORDER BY tick LIMIT 1),
    (SELECT max(tick) FROM rowcast.ticks)
)
"""

# The numbers of rows are statistics; sizes are of the newest, which are likely to be in memory.
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
# The last one that goes is kept: the next tick begins where it ends.
PRUNE_TICKS = """
DELETE FROM rowcast.ticks WHERE tick = ANY (ARRAY(
    SELECT tick FROM rowcast.ticks WHERE tick < %(first)s - 1 ORDER BY tick LIMIT %(most)s))
"""


@dataclass
class Upkeep:
    """
    What is to be done, and when; for one leader.

    Args:
        keep: Seconds for which the log is kept.
        keep_bytes: Bytes of rows of the log that are kept, roughly.

    Attributes:
        looking: Whether DDL is to be looked for at once.
        pruned: Rows of the log that were deleted so far.
        outdated: Tables that are tracked by triggers of an older version.
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
        """Note that there were changes."""
        self._changed = True

    def due(self, now: float) -> bool:
        """Return whether there is something to do."""
        return self._notices(now) or self._below is not None or self._prunes(now)

    def _notices(self, now: float) -> bool:
        return self.looking or (self._changed and now >= self._noticed_at + NOTICE)

    def _prunes(self, now: float) -> bool:
        return now >= self._pruned_at + min(PRUNE, self.keep / 10)

    def run_txn(self, connection: PgConnection, now: float) -> None:
        """Do one thing that is due: some milliseconds."""
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
    """Log DDL that changes rows without a trigger; return whether it could be looked for."""
    try:
        # One that tracks a table in a long transaction must not keep changes from being read.
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
    Say what will be pruned.

    Returns:
        The first tick that is kept, and the number of a transaction: rows of those below may be
        deleted; None if there is nothing to prune.
    """
    first = _asked(connection, FIRST_KEPT, keep=keep) or 0
    surplus = _asked(connection, SURPLUS, bytes=keep_bytes) or 0
    if surplus > 0:
        first = max(first, _asked(connection, FIRST_WITHIN, surplus=surplus) or 0)
    with connection.cursor() as cursor:
        cursor.execute(ANNOUNCE, {"first": first}, clean=True)
        found = cursor.fetchone()
    return first, None if found is None else int(found[0])


def _asked(connection: PgConnection, statement: str, **values: object) -> int | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, values, clean=True)
        found: int | None = cursor.fetchone()[0]
        return found
