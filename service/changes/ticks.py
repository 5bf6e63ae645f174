"""
Ticks: the log in batches that stay as they are.

A tick is what is visible in one snapshot and was not in that of the tick before. Its row is
written by the statement that takes the snapshot, and is durable before anything of it is published:
with it all that it sees, whatever `synchronous_commit` the writers had. So its changes can be made
again, the same in number and order, by whoever publishes after a crash and for whoever missed some.

A tick of any size is read in pages of whole transactions; one that is too large by itself comes as
a row "R" for each of its relations: read them again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from service.changes.leader import AWAKEN
from service.changes.log import AT, LogRow
from service.changes.positions import PgSnapshot, TickPosition
from service.db.connection import PgConnection
from service.db.planned import GENERIC, Planned
from service.db.transaction import commit_txn

Found = TypeVar("Found")

PAGE_ROWS = 5_000
"""Rows of the log that are read in one piece."""
PAGE_BYTES = 32 << 20
"""Bytes of their images, as they are stored; a transaction that has more is too large."""
TRANSACTIONS = 100_000
"""Transactions that one look at a large tick tells of."""

# Two index scans. A row that was not visible in a snapshot is of a transaction that had not begun
# then, or was running.
_NEW = """
    SELECT {columns} FROM rowcast.log WHERE xid >= %(xmax)s::xid8
    UNION ALL SELECT {columns} FROM rowcast.log WHERE xid = ANY (%(running)s::xid8[])
"""
# The same, less what another snapshot does not see; all that came later is not looked at.
_BETWEEN = """
    SELECT * FROM (
        SELECT {columns} FROM rowcast.log WHERE xid >= %(xmax)s::xid8 AND xid < %(until)s::xid8
        UNION ALL SELECT {columns} FROM rowcast.log WHERE xid = ANY (%(running)s::xid8[])
    ) AS new WHERE pg_visible_in_snapshot(xid, %(snapshot)s::pg_snapshot)
"""
_COLUMNS = "seq, xid, at, relation, op, old, new"
_SIZE = "coalesce(pg_column_size(old), 0) + coalesce(pg_column_size(new), 0)"

NEXT = Planned(
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
    RETURNING snapshot::text, changes, pg_notify(%(channel)s, tick::text)
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

ROWS = Planned(
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

TICKS = Planned(
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
    A batch of the log.

    Args:
        epoch: In which it was made.
        number: One more than that of the tick before.
        since: The snapshot of the tick before.
        snapshot: What is visible in it, and was not in `since`, is the tick.
        rows: How many of the log.
    """

    epoch: int
    number: int
    since: PgSnapshot
    snapshot: PgSnapshot
    rows: int


@dataclass(frozen=True, slots=True)
class TickPage:
    """
    Transactions that are read in one piece.

    Args:
        xids: Their numbers.
        last: The highest number of a row of theirs.
        too_large: Whether it is one that is too large to be read.
    """

    xids: tuple[int, ...]
    last: int
    too_large: bool = False


Made = tuple[Tick, list[LogRow] | None]
"""A tick and its rows; None for those of one that is to be read in pages."""


def make_txn(
    connection: PgConnection,
    last: Tick,
    epoch: int,
    most: int,
    channel: str,
    awaken: bool,
    look_up: Callable[[PgConnection, list[LogRow]], Found],
    tell: Callable[[Made | None, Found], object],
) -> None:
    """
    Make the next tick, if anything is new; it is durable once this returns.

    To the disk and back takes milliseconds, in which what was read can be made ready to be published.

    Args:
        connection: In autocommit.
        last: The tick before.
        epoch: The one that it is.
        most: Rows of the log above which a transaction is too large.
        channel: Notified with the tick's number.
        awaken: Whether to stop writers from notifying, with a tick.
        look_up: Called with the rows that were read, if any, to look up what they are shown by.
        tell: Called with what `next_txn` and then `look_up` return, before it is durable.

    Raises:
        TransactionAborted: The server has rolled it back.
    """
    # Behind a pooler, a transaction would have to set all that the statement relies on.
    made = next_txn(connection, last, epoch, most, channel, held=not connection.pooled)
    rows = None if made is None else made[1]
    tell(made, look_up(connection, rows or []))
    if made is not None and not connection.pooled:
        connection.ending = f"{AWAKEN};" if awaken else ""
        commit_txn(connection)


def next_txn(
    connection: PgConnection, last: Tick, epoch: int, most: int, channel: str, held: bool = False
) -> Made | None:
    """
    Make the next tick, in one statement; return it, or None if nothing is new.

    Args:
        connection: In autocommit: the statement's snapshot is the tick's.
        last: The tick before.
        epoch: The one that it is.
        most: Rows of the log above which a transaction is too large.
        channel: Notified with the tick's number.
        held: Whether a tick that was made is still to be committed.
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
    """Return a new, empty tick, which says that the one before was published."""
    connection.command(
        "INSERT INTO rowcast.ticks (tick, epoch, snapshot, changes)"
        f" VALUES ({last.number + 1}, {epoch}, '{last.snapshot}', 0)"
    )
    return Tick(epoch, last.number + 1, last.snapshot, last.snapshot, 0)


def pages_txn(
    connection: PgConnection, tick: Tick, most: int, after: int = 0, rows: int | None = None
) -> list[TickPage]:
    """
    Return the pages of a tick that follow a number, in order; some of the next if there are many.

    Args:
        connection: To the log.
        tick: Whose rows.
        most: Rows above which a transaction is too large.
        after: `last` of the page before.
        rows: Of a page; more only if it is one transaction.
    """
    values = _between(tick.since, tick.snapshot) | {"after": after, "most": TRANSACTIONS}
    with connection.cursor() as cursor:
        cursor.execute(PAGES, values, clean=True)
        return list(_paged(cursor.fetchall(), most, rows or PAGE_ROWS))


def rows_txn(connection: PgConnection, ticks: Sequence[Tick], most: int) -> list[list[LogRow]]:
    """
    Return the rows of ticks, of each by itself, by one statement; none at all if they weigh too much.

    Args:
        connection: To the log.
        ticks: That follow one another, and have few rows.
        most: Rows above which a transaction is too large.
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
            # The first that sees it; what one snapshot sees, those after it see too.
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
    Return ticks from a number on.

    The oldest that is kept is there for the next one alone: it begins at its own snapshot, and has
    no rows.
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


def end_txn(connection: PgConnection, epoch: int) -> TickPosition:
    """Return the position after all ticks so far: before the first change of the next."""
    (number,) = connection.ask("SELECT coalesce(max(tick), 0) FROM rowcast.ticks")
    return TickPosition(epoch, number + 1, 0)


def _since(snapshot: PgSnapshot) -> dict[str, object]:
    return {"xmax": str(snapshot.xmax), "running": [str(xid) for xid in snapshot.running]}


def _between(since: PgSnapshot, until: PgSnapshot) -> dict[str, object]:
    return _since(since) | {"snapshot": str(until), "until": str(until.xmax)}


def _without_large(rows: list[LogRow], most: int) -> list[LogRow]:
    """Return rows of the log, of transactions that have too many what stands for them."""
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
