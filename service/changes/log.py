"""
Reading the log of changes: what is visible in one snapshot and was not in another.

The functions run in a worker, in a REPEATABLE READ transaction where two of them have to see the
same. `schema/changes.py` says what writes the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.changes.positions import PgSnapshot
from service.db.connection import PgConnection
from service.db.planned import Planned
from service.errors import DatabaseRefused

Op = Literal["I", "U", "D", "T", "C", "R"]
"""Inserted, updated, deleted; truncated; written to (level `touch`); to be read again."""

MOST_ROWS, MOST_BYTES = 10_000, 32 << 20
"""Rows that are read at a time, and bytes of their images as they are stored."""

AT = """pg_catalog.btrim(pg_catalog.to_json(at AT TIME ZONE 'UTC')::text, '"') || 'Z'"""
"""When a row was logged, as it goes out: PostgreSQL writes it in a fifth of the time that Python takes."""

# Not `pg_visible_in_snapshot`, which no index answers. The second part is of transactions that ran
# when the first snapshot was taken.
READ = f"""
SELECT seq, xid::text, {AT}, relation, op, CASE WHEN bytes <= %(most_bytes)s THEN old::text END,
       CASE WHEN bytes <= %(most_bytes)s THEN new::text END, bytes > %(most_bytes)s
  FROM (SELECT *, pg_catalog.sum(
            coalesce(pg_catalog.pg_column_size(old), 0) + coalesce(pg_catalog.pg_column_size(new), 0)
        ) OVER (ORDER BY seq) AS bytes
          FROM (SELECT * FROM rowcast.log WHERE xid >= %(xmax)s::xid8
                UNION ALL SELECT * FROM rowcast.log WHERE xid = ANY (%(running)s::xid8[])
                LIMIT %(most)s + 1) AS found) AS weighed
 ORDER BY seq
"""

# One that is gone is there by its name: its last row in the log says that it is to be read again.
TRACKED = Planned("""
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


class LogRow(NamedTuple):
    """
    A row of the log.

    Args:
        seq: Counts up; of two changes of one row the later one has the higher number.
        xid: The transaction, in digits.
        at: When it was written: RFC 3339, in UTC.
        relation: Of what is tracked, by its number there.
        op: What happened.
        old: The row before, as JSON text; None where there was none, or it is not logged.
        new: The row after it, likewise.
    """

    seq: int
    xid: str
    at: str
    relation: int
    op: Op
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Tracked:
    """
    A table whose changes are in the log.

    Args:
        id: By which the log names it.
        oid: The table itself.
        schema: Where it is.
        name: Less the schema.
        level: What the log has of a change: "full", "keys" or "touch".
        since: The transaction that began to track it; nothing before that is logged.
        problem: Why changes are no longer logged, if they are not: it may be gone.
        key: The columns of the primary key, in its order.
        wake: Whether writers notify a reader that sleeps.
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
    """Return whether there is a log that we may read."""
    # has_table_privilege of an OID is null where there is no such table
    (found,) = connection.ask(
        "SELECT coalesce(pg_catalog.has_schema_privilege('rowcast', 'USAGE')"
        " AND pg_catalog.has_table_privilege(pg_catalog.to_regclass('rowcast.log'), 'SELECT'), false)"
        " FROM (SELECT pg_catalog.to_regnamespace('rowcast')) AS n (oid) WHERE n.oid IS NOT NULL"
        " UNION ALL SELECT false LIMIT 1"
    )
    return bool(found)


def barred_txn(connection: PgConnection) -> str | None:
    """Return whose the log is that we may not read, None if there is none such."""
    if installed_txn(connection):
        return None
    (owner,) = connection.ask(
        "SELECT max(pg_catalog.pg_get_userbyid(relowner)::text) FROM pg_catalog.pg_class"
        " WHERE relname = 'log' AND relnamespace = pg_catalog.to_regnamespace('rowcast')"
    )
    return None if owner is None else str(owner)


def refuse_barred_txn(connection: PgConnection) -> None:
    """
    Check that there is no log that we may not read.

    Raises:
        DatabaseRefused: There is one.
    """
    if barred_txn(connection) is not None:
        raise DatabaseRefused(
            "the log of changes is not the service's to read",
            hint="rowcast why, of any table, says whose it is",
        )


def read_txn(
    connection: PgConnection,
    since: PgSnapshot,
    most: int = MOST_ROWS,
    most_bytes: int = MOST_BYTES,
) -> list[LogRow] | None:
    """
    Return the rows of the log that are visible now and were not in a snapshot, by number.

    Args:
        connection: To the primary: on a standby snapshots do not say which transactions run.
        since: A snapshot of this database, taken before.
        most: How many rows there may be.
        most_bytes: What their images may weigh, as they are stored.

    Returns:
        None if there are more.
    """
    with connection.cursor() as cursor:
        cursor.execute(READ, read_values(since, most, most_bytes), clean=True)
        return read_rows(cursor.fetchall(), most)


def read_values(since: PgSnapshot, most: int, most_bytes: int) -> dict[str, object]:
    """Return the parameters of `READ`."""
    return {
        "xmax": str(since.xmax),
        "running": [str(xid) for xid in since.running],
        "most": most,
        "most_bytes": most_bytes,
    }


def read_rows(found: Sequence[Sequence[Any]], most: int) -> list[LogRow] | None:
    """Return the rows of the log from what `READ` has found; None if that is not all."""
    if len(found) > most or any(heavy for *_, heavy in found):
        return None
    return [LogRow(*columns) for *columns, _ in found]


def tracked_txn(connection: PgConnection) -> dict[int, Tracked]:
    """Return what is tracked, by its number in the log."""
    with connection.cursor() as cursor:
        TRACKED.run(cursor)
        return {
            id: Tracked(id, oid, schema, name, level, int(since), problem, tuple(key), wake)
            for id, oid, schema, name, level, since, problem, key, wake in cursor.fetchall()
        }
