"""
Changes as a feed would hand them on, for tests of what becomes of them.
"""

from __future__ import annotations

from service.changes.log import read_txn, snapshot_txn, tracked_txn
from service.changes.net import Change, net_changes
from service.changes.positions import PgSnapshot
from service.db.connection import PgConnection
from service.db.database import Database


class Ticks:
    """Reads the log tick by tick, from the moment of `begin` on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since = PgSnapshot(3, 3, ())
        self._number = 0

    async def begin(self) -> None:
        """Leave out what is in the log by now."""
        await self.next()

    async def next(self) -> list[Change]:
        """Return the changes since the last tick."""
        self._number += 1
        found: list[Change] = await self._database.atomic(
            self._next_txn, isolation="repeatable read"
        )
        return found

    def _next_txn(self, connection: PgConnection) -> list[Change]:
        now = snapshot_txn(connection)
        rows = read_txn(connection, self._since)
        self._since = now
        return list(net_changes(rows, tracked_txn(connection), 1, self._number))
