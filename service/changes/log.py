"""
The change log: reading the rows that one snapshot sees and an earlier one did not, and cutting it into ticks.

`seq > last` would lose changes: sequence order is not commit order, so the row of a slower transaction would
never be read (25 % of the events in a test). `xid < xmin` would wait for every open write transaction of
the server, other databases included, and xid order is not the order of two changes of one row.

A tick is a batch that never changes: the log rows that are visible in its snapshot and were not visible in
the snapshot of the tick before. The statement that takes the snapshot also inserts the tick's row into
`rowcast.ticks`. That row is committed with `synchronous_commit` on before any change of the tick is
published, which flushes the WAL of all transactions that the tick sees, whatever `synchronous_commit` their
writers used. So the changes of a tick can be read again, the same in number and order: by the next leader
after a crash, and for subscribers that missed some.

A large tick is read in pages of complete transactions. A transaction that is too large by itself is
replaced by one row with the operation "R" for each of its relations: read that relation again.

The functions run in a thread; in a REPEATABLE READ transaction if two of them have to see the same rows.
`schema/triggers.py` has the triggers that write the log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

from schema.triggers import ASLEEP
from service.db.connection import PgConnection
from service.db.planned import GENERIC, PreparedStatement
from service.db.transaction import commit_txn
from service.errors import DatabaseRefused

Op = Literal["I", "U", "D", "T", "C", "R"]
"""Operation: inserted, updated, deleted; truncated; changed (level `touch`); reset: read the table again."""

MOST_ROWS, MOST_BYTES = 10_000, 32 << 20
"""Maximum number of log rows that are read at a time, and maximum stored size of their images in bytes."""

AT = """pg_catalog.btrim(pg_catalog.to_json(at AT TIME ZONE 'UTC')::text, '"') || 'Z'"""
"""Time of a log row in its wire form: PostgreSQL formats it in a fifth of the time that Python takes."""

# `pg_visible_in_snapshot` would need a sequential scan; these are two index scans. A row that was not visible
# in a snapshot belongs to a transaction that had not started when the snapshot was taken (xid >= xmax), or
# was running then (xid in the xip list).
_NEW = """
    SELECT {columns} FROM rowcast.log WHERE xid >= %(xmax)s::xid8
    UNION ALL SELECT {columns} FROM rowcast.log WHERE xid = ANY (%(running)s::xid8[])
"""
_SIZE = "coalesce(pg_catalog.pg_column_size(old), 0) + coalesce(pg_catalog.pg_column_size(new), 0)"

READ = f"""
SELECT seq, xid::text, {AT}, relation, op, CASE WHEN bytes <= %(most_bytes)s THEN old::text END,
       CASE WHEN bytes <= %(most_bytes)s THEN new::text END, bytes > %(most_bytes)s
  FROM (SELECT *, pg_catalog.sum({_SIZE}) OVER (ORDER BY seq) AS bytes
          FROM ({_NEW.format(columns="*")} LIMIT %(most)s + 1) AS found) AS weighed
 ORDER BY seq
"""

# A dropped table is still listed, by the name it had: its last log row, a reset, has yet to be published.
TRACKED = PreparedStatement("""
SELECT t.id, t.relation::oid::bigint, coalesce(n.nspname, (pg_catalog.parse_ident(t.name))[1]),
       coalesce(c.relname, (pg_catalog.parse_ident(t.name))[2]), t.level, t.since::text, t.problem,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
              WHERE i.indrelid = t.relation AND i.indisprimary
              ORDER BY pg_catalog.array_position(i.indkey::int2[], a.attnum)), t.wake
  FROM rowcast.tracked t
  LEFT JOIN pg_catalog.pg_class c ON c.oid = t.relation
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
""")


class PgSnapshot(NamedTuple):
    """
    A `pg_snapshot` of PostgreSQL: which transactions had ended when the snapshot was taken.

    Args:
        xmin: Lowest transaction id that was still running; all lower ones had ended.
        xmax: One above the highest transaction id that had ended.
        running: Ids between xmin and xmax that were still running, in ascending order.
    """

    xmin: int
    xmax: int
    running: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the snapshot of a text that PostgreSQL wrote, such as "100:104:100,102"."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), tuple(map(int, running.split(","))) if running else ())

    def sees(self, xid: int) -> bool:
        """Return whether the changes of a transaction are visible, if it has committed."""
        return xid < self.xmax and xid not in self.running

    def __str__(self) -> str:
        """Return the snapshot as text that PostgreSQL accepts."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.running))}"


class LogRow(NamedTuple):
    """
    A row of the change log.

    Args:
        seq: Sequence number. It is taken under the row lock, so a later change of a row has a higher one.
        xid: Transaction id (xid8), in digits.
        at: Time of the change: RFC 3339, in UTC.
        relation: Number of the tracked table (`TrackedTable.id`).
        op: Operation.
        old: Row before the change, as JSON text; None if there was none, or if it is not logged.
        new: Row after the change, likewise.
    """

    seq: int
    xid: str
    at: str
    relation: int
    op: Op
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class TrackedTable:
    """
    A table whose changes are in the log.

    Args:
        id: Number by which log rows refer to the table.
        oid: OID of the table.
        schema: Schema of the table.
        name: Name of the table.
        level: What is logged of a change: "full", "keys" or "touch".
        since: Id of the transaction that began to track the table; nothing is logged before it.
        problem: Why changes are no longer logged, such as that the table was dropped; None if they are.
        key: Columns of the primary key, in key order.
        wake: Whether writers notify a sleeping leader.
    """

    id: int
    oid: int
    schema: str
    name: str
    level: str
    since: int
    problem: str | None
    key: tuple[str, ...] = ()
    wake: bool = True


def installed_txn(connection: PgConnection) -> bool:
    """Return whether there is a change log that the service may read."""
    # has_table_privilege returns null for the OID of a table that does not exist.
    (found,) = connection.ask(
        "SELECT coalesce(pg_catalog.has_schema_privilege('rowcast', 'USAGE')"
        " AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('rowcast.log'), 'SELECT'), false)"
        " FROM (SELECT pg_catalog.to_regnamespace('rowcast')) AS n (oid) WHERE n.oid IS NOT NULL"
        " UNION ALL SELECT false LIMIT 1"
    )
    return bool(found)


def unreadable_log_owner_txn(connection: PgConnection) -> str | None:
    """Return the owner of a change log that the service may not read; None if there is no such log."""
    if installed_txn(connection):
        return None
    (owner,) = connection.ask(
        "SELECT max(pg_catalog.pg_get_userbyid(relowner)::text) FROM pg_catalog.pg_class"
        " WHERE relname = 'log' AND relnamespace = pg_catalog.to_regnamespace('rowcast')"
    )
    return None if owner is None else str(owner)


def refuse_barred_txn(connection: PgConnection) -> None:
    """
    Check that the service may read the change log, if there is one.

    Raises:
        DatabaseRefused: It may not.
    """
    if unreadable_log_owner_txn(connection) is not None:
        raise DatabaseRefused(
            "the log of changes is not the service's to read",
            hint="rowcast why, of any table, says whose it is",
            sqlstate="42501",
        )


def read_txn(
    connection: PgConnection,
    since: PgSnapshot,
    most: int = MOST_ROWS,
    most_bytes: int = MOST_BYTES,
) -> list[LogRow] | None:
    """
    Return the log rows that are visible now and were not in an earlier snapshot, ordered by `seq`.

    Args:
        connection: Connection to the primary: on a standby, `pg_current_snapshot()` lists no running
            transactions.
        since: Earlier snapshot of this database.
        most: Maximum number of rows.
        most_bytes: Maximum stored size of their images in bytes.

    Returns:
        The rows; None if they exceed a maximum.
    """
    with connection.cursor() as cursor:
        cursor.execute(READ, read_values(since, most, most_bytes), clean=True)
        return read_rows(cursor.fetchall(), most)


def read_values(since: PgSnapshot, most: int, most_bytes: int) -> dict[str, object]:
    """Return the parameters of `READ`."""
    return _since(since) | {"most": most, "most_bytes": most_bytes}


def read_rows(found: Sequence[Sequence[Any]], most: int) -> list[LogRow] | None:
    """Return log rows from the result of `READ`; None if they exceed a maximum."""
    if len(found) > most or any(heavy for *_, heavy in found):
        return None
    return [LogRow(*columns) for *columns, _ in found]


def tracked_txn(connection: PgConnection) -> dict[int, TrackedTable]:
    """Return the tracked tables, by their numbers in the log."""
    with connection.cursor() as cursor:
        TRACKED.run(cursor)
        return {
            id: TrackedTable(id, oid, schema, name, level, int(since), problem, tuple(key), wake)
            for id, oid, schema, name, level, since, problem, key, wake in cursor.fetchall()
        }


Found = TypeVar("Found")

FOLLOWERS = 0x726F776361737404  # after those of `schema`
"""Advisory lock that followers share, so that the leader knows whether there are any to be notified of ticks."""

AWAKEN = f"SELECT pg_catalog.pg_advisory_unlock({ASLEEP})"
"""Makes writers stop notifying."""

PAGE_ROWS = 5_000
"""Maximum number of log rows in one page."""
PAGE_BYTES = 32 << 20
"""Maximum stored size of the row images of a page; a transaction with more is too large."""
TRANSACTIONS = 100_000
"""Maximum number of transactions of a large tick that one `PAGES` query returns."""

# As `_NEW`, without what a later snapshot does not see either. `xid < until` keeps the scan from reading
# the log up to its end.
_BETWEEN = """
    SELECT * FROM (
        SELECT {columns} FROM rowcast.log WHERE xid >= %(xmax)s::xid8 AND xid < %(until)s::xid8
        UNION ALL SELECT {columns} FROM rowcast.log WHERE xid = ANY (%(running)s::xid8[])
    ) AS new WHERE pg_visible_in_snapshot(xid, %(snapshot)s::pg_snapshot)
"""
_COLUMNS = "seq, xid, at, relation, op, old, new"

# One statement, so the INSERT and the read of the log share the snapshot that becomes the tick's. A large
# tick is returned without rows, and is then read in pages.
#
# The leader notifies only if it cannot take the followers' lock alone. Taken, the lock is kept until the tick is
# committed: a follower that comes meanwhile takes its share afterwards, and then reads which tick is the newest.
NEXT = PreparedStatement(
    f"""
WITH found AS MATERIALIZED (
    SELECT * FROM ({_NEW.format(columns=_COLUMNS)}) AS new LIMIT %(page_rows)s + 1
), size AS (
    SELECT count(*) AS rows, coalesce(sum({_SIZE}), 0) AS bytes FROM found
), tick AS (
    INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes)
    SELECT %(tick)s, %(epoch)s, pg_current_snapshot(), CASE WHEN rows <= %(page_rows)s THEN rows
           ELSE (SELECT count(*) FROM ({_NEW.format(columns="1")}) AS every) END
      FROM size WHERE rows > 0
    RETURNING snapshot::text, changes,
              CASE WHEN NOT pg_try_advisory_xact_lock({FOLLOWERS})
                   THEN pg_notify(%(channel)s, tick::text) END
)
SELECT tick.snapshot, tick.changes, f.seq, f.xid::text, {AT}, f.relation, f.op, f.old::text, f.new::text
  FROM tick CROSS JOIN size
  LEFT JOIN found f ON size.rows <= %(page_rows)s AND size.bytes <= %(page_bytes)s
 ORDER BY f.seq
""",
    xmax="text",
    running="text[]",
    tick="bigint",
    epoch="int",
    page_rows="bigint",
    page_bytes="bigint",
    channel="text",
)

PAGES = f"""
SELECT xid::text, count(*), sum(size), max(seq) FROM ({
    _BETWEEN.format(columns=f"seq, xid, {_SIZE} AS size")
}) AS new
 GROUP BY xid HAVING max(seq) > %(after)s ORDER BY max(seq) LIMIT %(most)s
"""

ROWS = PreparedStatement(
    f"""
WITH found AS MATERIALIZED ({_BETWEEN.format(columns=_COLUMNS)})
SELECT seq, xid::text, {AT}, relation, op, old::text, new::text FROM found
 WHERE (SELECT coalesce(sum({_SIZE}), 0) FROM found) <= %(page_bytes)s ORDER BY seq
""",
    xmax="text",
    running="text[]",
    until="text",
    snapshot="text",
    page_bytes="bigint",
)

PAGE = f"""
SELECT seq, xid::text, {AT}, relation, op, old::text, new::text
  FROM (SELECT {_COLUMNS} FROM rowcast.log WHERE xid = ANY (%(xids)s::xid8[])) AS page ORDER BY seq
"""

TOO_LARGE = f"""
SELECT seq, xid::text, {AT}, relation, 'R', NULL, NULL FROM (
    SELECT max(seq) AS seq, xid, max(at) AS at, relation FROM rowcast.log
     WHERE xid = ANY (%(xids)s::xid8[]) GROUP BY relation, xid
) AS last ORDER BY seq
"""

TICKS = PreparedStatement(
    """
SELECT tick, epoch, snapshot::text, changes FROM (
    SELECT * FROM rowcast.ticks WHERE tick >= %(first)s ORDER BY tick LIMIT %(most)s
) AS found ORDER BY tick
""",
    first="bigint",
    most="bigint",
)


class Tick(NamedTuple):
    """
    A batch of the log: the rows that are visible in `snapshot` and were not visible in `since`.

    Args:
        epoch: Number of the epoch in which the tick was made.
        number: Number of the tick; consecutive.
        since: Snapshot of the tick before.
        snapshot: Snapshot of this tick.
        rows: Number of log rows in the tick.
    """

    epoch: int
    number: int
    since: PgSnapshot
    snapshot: PgSnapshot
    rows: int


@dataclass(frozen=True, slots=True)
class TickPage:
    """
    Transactions of a tick that are read together.

    Args:
        xids: Their transaction ids.
        last: Highest `seq` of their log rows.
        too_large: Whether the page is a single transaction that is too large to be read.
    """

    xids: tuple[int, ...]
    last: int
    too_large: bool = False


NewTick = tuple[Tick, list[LogRow] | None]
"""A tick and its rows; None in place of the rows of a tick that has to be read in pages."""


def make_txn(
    connection: PgConnection,
    last: Tick,
    epoch: int,
    most: int,
    channel: str,
    awaken: bool,
    look_up: Callable[[PgConnection, list[LogRow]], Found],
    hand_over: Callable[[NewTick | None, Found], object],
) -> None:
    """
    Make the next tick, if the log has new rows; the tick is durable when this function returns.

    The commit waits milliseconds for the disk. `hand_over` is called before it, so that the reactor can
    prepare the events meanwhile.

    Args:
        connection: In autocommit.
        last: The tick before.
        epoch: Number of the current epoch.
        most: Number of log rows above which a transaction is too large.
        channel: Channel that is notified with the tick's number if another feed follows.
        awaken: Whether the commit of a tick also releases the lock that makes writers notify.
        look_up: Called with the rows that were read, to look up who may read them in the same
            transaction.
        hand_over: Called with the results of `next_txn` and `look_up`, before the commit.

    Raises:
        TransactionAborted: The server answered COMMIT by rolling back.
    """
    # Behind a pooler the tick is a single statement in autocommit: in a transaction, all settings
    # that the statement relies on would have to be set first.
    made = next_txn(connection, last, epoch, most, channel, held=not connection.pooled)
    rows = None if made is None else made[1]
    hand_over(made, look_up(connection, rows or []))
    if made is not None and not connection.pooled:
        connection.ending = f"{AWAKEN};" if awaken else ""
        commit_txn(connection)


def next_txn(
    connection: PgConnection, last: Tick, epoch: int, most: int, channel: str, held: bool = False
) -> NewTick | None:
    """
    Make the next tick, in one statement; return it, or None if the log has no new rows.

    Args:
        connection: In autocommit: the statement's snapshot becomes the tick's.
        last: The tick before.
        epoch: Number of the current epoch.
        most: Number of log rows above which a transaction is too large.
        channel: Channel that is notified with the tick's number if another feed follows.
        held: Whether to leave the transaction of a new tick open, for the caller to commit.
    """
    values = _since(last.snapshot) | {
        "tick": last.number + 1,
        "epoch": epoch,
        "page_rows": PAGE_ROWS,
        "page_bytes": PAGE_BYTES,
        "channel": channel,
    }
    with connection.cursor() as cursor:
        NEXT.run(cursor, values, "BEGIN;" if held else "")
        found = cursor.fetchall()
    if not found:
        if held:
            connection.command("COMMIT")
        return None
    text, changes, *first = found[0]
    tick = Tick(epoch, last.number + 1, last.snapshot, PgSnapshot.of(text), changes)
    if first[0] is None:
        return tick, None
    return tick, _without_large([LogRow(*columns) for _, _, *columns in found], most)


def finish_txn(connection: PgConnection, last: Tick, epoch: int) -> Tick:
    """Insert an empty tick, which records that the tick before was published; return it."""
    connection.command(
        "INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes)"
        f" VALUES ({last.number + 1}, {epoch}, '{last.snapshot}', 0)"
    )
    return Tick(epoch, last.number + 1, last.snapshot, last.snapshot, 0)


def pages_txn(
    connection: PgConnection, tick: Tick, most: int, after: int = 0, rows: int | None = None
) -> list[TickPage]:
    """
    Return the next pages of a tick, in order; not all of them if there are many.

    Args:
        connection: Connection that may read the log.
        tick: The tick to be read.
        most: Number of log rows above which a transaction is too large.
        after: `last` of the page before.
        rows: Maximum number of rows in a page; a single transaction may have more.
    """
    values = _between(tick.since, tick.snapshot) | {"after": after, "most": TRANSACTIONS}
    with connection.cursor() as cursor:
        cursor.execute(PAGES, values, clean=True)
        return list(_paged(cursor.fetchall(), most, rows or PAGE_ROWS))


def rows_txn(connection: PgConnection, ticks: Sequence[Tick], most: int) -> list[list[LogRow]]:
    """
    Return the rows of each of several ticks, read by one statement; [] if they exceed `PAGE_BYTES`.

    Args:
        connection: Connection that may read the log.
        ticks: Consecutive ticks with few rows.
        most: Number of log rows above which a transaction is too large.
    """
    values = _between(ticks[0].since, ticks[-1].snapshot) | {"page_bytes": PAGE_BYTES}
    with connection.cursor() as cursor:
        ROWS.run(cursor, values, GENERIC)
        rows = list(map(LogRow._make, cursor.fetchall()))
    if not rows:
        return []
    found: list[list[LogRow]] = [[] for _ in ticks]
    ends = [tick.snapshot.xmax for tick in ticks]
    place: dict[str, list[LogRow]] = {}
    for row in rows:
        of = place.get(row.xid)
        if of is None:
            xid = int(row.xid)
            # The first tick that sees the transaction. All later snapshots see it too, so a tick
            # whose xmax is not above the xid can be skipped.
            at = bisect_right(ends, xid)
            while not ticks[at].snapshot.sees(xid):
                at += 1
            of = place[row.xid] = found[at]
        of.append(row)
    return [_without_large(each, most) for each in found]


def page_txn(connection: PgConnection, page: TickPage) -> list[LogRow]:
    """Return the rows of a page."""
    with connection.cursor() as cursor:
        xids = [str(xid) for xid in page.xids]
        cursor.execute(TOO_LARGE if page.too_large else PAGE, {"xids": xids}, clean=True)
        return list(map(LogRow._make, cursor))


def last_txn(connection: PgConnection) -> Tick | None:
    """Return the newest tick, or None before the first."""
    (number,) = connection.ask("SELECT max(tick) FROM rowcast.ticks")
    if number is None:
        return None
    found = ticks_txn(connection, number, 1)
    return found[-1] if found else None


def ticks_txn(connection: PgConnection, first: int, most: int) -> list[Tick]:
    """
    Return up to `most` ticks, from the number `first` on.

    The oldest tick that is kept only serves as the start of the next one. It is returned without
    rows: the snapshot before it is gone.
    """
    with connection.cursor() as cursor:
        TICKS.run(cursor, {"first": first - 1, "most": most + 1})
        rows = cursor.fetchall()
    found: list[Tick] = []
    for number, epoch, text, changes in rows:
        snapshot = PgSnapshot.of(text)
        if found:
            found.append(Tick(epoch, number, found[-1].snapshot, snapshot, changes))
        else:
            found.append(Tick(epoch, number, snapshot, snapshot, 0))
    return [tick for tick in found if tick.number >= first][:most]


def _since(snapshot: PgSnapshot) -> dict[str, object]:
    return {"xmax": str(snapshot.xmax), "running": [str(xid) for xid in snapshot.running]}


def _between(since: PgSnapshot, until: PgSnapshot) -> dict[str, object]:
    return _since(since) | {"snapshot": str(until), "until": str(until.xmax)}


def _without_large(rows: list[LogRow], most: int) -> list[LogRow]:
    """Return the rows, with those of each transaction that has too many replaced by "R" rows."""
    large = {xid for xid, count in Counter(row.xid for row in rows).items() if count > most}
    if not large:
        return rows
    kept = [row for row in rows if row.xid not in large]
    last = {(row.xid, row.relation): row for row in rows if row.xid in large}
    resets = [row._replace(op="R", old=None, new=None) for row in last.values()]
    return sorted(kept + resets, key=lambda row: row.seq)


def _paged(
    transactions: list[tuple[str, int, int, int]], most: int, page_rows: int
) -> Iterator[TickPage]:
    xids: list[int] = []
    rows = size = last = 0
    for text, count, bytes, seq in transactions:
        too_large = count > most or bytes > PAGE_BYTES
        if xids and (too_large or rows + count > page_rows or size + bytes > PAGE_BYTES):
            yield TickPage(tuple(xids), last)
            xids, rows, size = [], 0, 0
        if too_large:
            yield TickPage((int(text),), seq, too_large=True)
        else:
            xids.append(int(text))
            rows, size = rows + count, size + int(bytes)
        last = seq
    if xids:
        yield TickPage(tuple(xids), last)
