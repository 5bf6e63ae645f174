"""
The tables as they were at a position, made again from the log.
"""

from __future__ import annotations

from collections import Counter

import psycopg2

from service.changes.positions import PgSnapshot, SnapshotPosition, parse_position
from tests.oracle.world import TABLES

LOG = """
SELECT l.xid::text::bigint, t.name, l.op, l.old::text, l.new::text
  FROM rowcast.log l JOIN rowcast.tracked t ON t.id = l.relation ORDER BY l.seq
"""

Rows = dict[str, Counter[str]]


class Past:
    """
    Makes the tables again.

    Args:
        dsn: Of the database whose log is read: it was empty when tracking began.
        beside: Of another one with the same tables, which become those of the past.
    """

    def __init__(self, dsn: str, beside: str) -> None:
        self._log = psycopg2.connect(dsn, application_name="past")
        self._log.autocommit = True
        self._beside = psycopg2.connect(beside)
        self._entries: list[tuple[int, str, str, str | None, str | None]] = []
        self._shown: Rows = {}

    def read(self) -> None:
        """Read the log anew, once no writer is at work."""
        with self._log.cursor() as rows:
            rows.execute(LOG)
            self._entries = [
                (xid, name.rpartition(".")[2], op, old, new)
                for xid, name, op, old, new in rows.fetchall()
            ]

    def show(self, position: str) -> None:
        """Make the tables what they were at a position."""
        parsed = parse_position(position)
        assert isinstance(parsed, SnapshotPosition)
        state = self._state(parsed.snapshot)
        with self._beside, self._beside.cursor() as rows:
            # neither cascades nor checks of keys that come in another order
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
        """Return the images of all rows that there were, each as often as it was there."""
        # Images alone, whatever the keys: what a transaction replaced was there before, or is its
        # own. So there is no key, no order and no net change to get wrong here.
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
        self._beside.close()


def _lasting(image: str) -> str:
    """Return an image less the column that comes and goes, and is always null."""
    return image.replace(',"extra":null', "")
