"""
The tables as they were at a position, rebuilt from the log.
"""

from __future__ import annotations

from collections import Counter

import psycopg2

from service.changes.log import PgSnapshot
from service.changes.positions import SnapshotPosition, parse_position
from tests.oracle.world import TABLES

LOG = """
SELECT l.xid::text::bigint, t.name, l.op, l.old::text, l.new::text
  FROM rowcast.log l JOIN rowcast.tracked t ON t.id = l.relation ORDER BY l.seq
"""

Rows = dict[str, Counter[str]]


class Past:
    """
    A second database whose tables are set to past states.

    Args:
        dsn: DSN of the database whose log is read; its tables were empty when tracking began.
        past: DSN of the second database, which has the same tables.
    """

    def __init__(self, dsn: str, past: str) -> None:
        self._log = psycopg2.connect(dsn, application_name="past")
        self._log.autocommit = True
        self._past = psycopg2.connect(past)
        self._entries: list[tuple[int, str, str, str | None, str | None]] = []
        self._shown: Rows = {}

    def read(self) -> None:
        """Read the entire log; no writer may be running."""
        with self._log.cursor() as rows:
            rows.execute(LOG)
            self._entries = [
                (xid, name.rpartition(".")[2], op, old, new)
                for xid, name, op, old, new in rows.fetchall()
            ]

    def show(self, position: str) -> None:
        """Set the tables to their state at a position."""
        parsed = parse_position(position)
        assert isinstance(parsed, SnapshotPosition)
        state = self._state(parsed.snapshot)
        with self._past, self._past.cursor() as rows:
            # no cascades, and no foreign key checks, because tables are filled in any order
            rows.execute("SET LOCAL session_replication_role = replica")
            for table in TABLES:
                if state[table] == self._shown.get(table):
                    continue
                rows.execute(f"DELETE FROM {table}")
                rows.execute(
                    f"INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, %s)",
                    [f"[{','.join(state[table].elements())}]"],
                )
        self._shown = state

    def _state(self, snapshot: PgSnapshot) -> Rows:
        """Return the row images visible in a snapshot, with the number of rows of each."""
        # Counting images needs no keys: each old image was added by an earlier entry or by the same
        # transaction. So no key, order or net change can be computed wrongly here.
        state: Rows = {table: Counter() for table in TABLES}
        for xid, table, op, old, new in self._entries:
            if not snapshot.sees(xid):
                continue
            if op == "T":
                state[table].clear()
            if old is not None:
                state[table][_lasting(old)] -= 1
            if new is not None:
                state[table][_lasting(new)] += 1
        for table, images in state.items():
            assert all(count >= 0 for count in images.values()), table
            state[table] = +images
        return state

    def close(self) -> None:
        """Close both connections."""
        self._log.close()
        self._past.close()


def _lasting(image: str) -> str:
    """Return an image without the column that `ALTERATIONS` adds and drops, which is always null."""
    return image.replace(',"extra":null', "")
