"""
Changes of the log as a feed passes them on, for tests of later steps.
"""

from __future__ import annotations

from service.changes.log import PgSnapshot, next_txn, page_txn, pages_txn, tracked_txn
from service.changes.net import Change, net_changes
from service.changes.positions import begin_txn
from service.db.connection import PgConnection
from service.db.session_settings import SessionSettings, open_session


class Ticks:
    """A maker of ticks, beginning with the changes after its creation; `close` ends its session."""

    def __init__(self, dsn: str, most: int = 10_000) -> None:
        self._connection = open_session(dsn, SessionSettings())
        self._epoch, self._last = begin_txn(self._connection, 0)
        self._most = most
        self.next()

    def next(self) -> list[Change]:
        """Make a tick, and return its changes."""
        connection, epoch = self._connection, self._epoch.number
        found = next_txn(connection, self._last, epoch, self._most, "nobody")
        if found is None:
            return []
        self._last, rows = found
        if rows is None:
            pages = pages_txn(connection, self._last, self._most)
            rows = [row for page in pages for row in page_txn(connection, page)]
        return list(net_changes(rows, tracked_txn(connection), self._last))

    def close(self) -> None:
        """Close the session."""
        self._connection.close()


def snapshot_txn(connection: PgConnection) -> PgSnapshot:
    """Return the snapshot of the open transaction, or a new one."""
    (text,) = connection.ask("SELECT pg_catalog.pg_current_snapshot()::text")
    return PgSnapshot.of(text)
