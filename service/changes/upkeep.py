"""
Upkeep, done by the leader between ticks: detect DDL that fires no trigger, and prune the log.

`pruned_below` of the epoch is committed before the first row is deleted. So a client's position is either
refused, or the log still has all changes after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from schema.triggers import OUTDATED
from service.db.connection import PgConnection

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
