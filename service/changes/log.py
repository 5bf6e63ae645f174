"""
Queries on the change log: the rows that are visible in one snapshot and were not in an earlier one.

The functions run in a thread; in a REPEATABLE READ transaction if two of them have to see the same rows.
`schema/triggers.py` has the triggers that write the log.

`seq > last` would lose changes: sequence order is not commit order, so the row of a slower transaction would
never be read (25 % of the events in a test). `xid < xmin` would wait for every open write transaction of
the server, other databases included, and xid order is not the order of two changes of one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.changes.positions import PgSnapshot
from service.db.connection import PgConnection
from service.db.planned import PreparedStatement
from service.errors import DatabaseRefused

Op = Literal["I", "U", "D", "T", "C", "R"]
"""Operation: inserted, updated, deleted; truncated; changed (level `touch`); reset: read the table again."""

MOST_ROWS, MOST_BYTES = 10_000, 32 << 20
"""Maximum number of log rows that are read at a time, and maximum stored size of their images in bytes."""

AT = """pg_catalog.btrim(pg_catalog.to_json(at AT TIME ZONE 'UTC')::text, '"') || 'Z'"""
"""Time of a log row in its wire form: PostgreSQL formats it in a fifth of the time that Python takes."""

# `pg_visible_in_snapshot` would need a sequential scan; these are two index scans. The second one finds
# the transactions that were running when the first snapshot was taken.
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
    return {
        "xmax": str(since.xmax),
        "running": [str(xid) for xid in since.running],
        "most": most,
        "most_bytes": most_bytes,
    }


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
