"""
adbapi's face on `Database`: what code written for twistar finds as the Registry's pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.db.database import Database
from service.db.transaction import cursor_txn


class Face:
    """
    Speaks to the database as a pool would, but in the caller's transaction, and as the caller.

    Args:
        database: Where it goes.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.dbapi = database.pool.dbapi

    def runQuery(self, sql: Any, params: Sequence[Any] | None = None) -> Deferred[Any]:
        """Run one statement; gives its rows."""
        return self.database.statement(sql, params)

    def runOperation(self, sql: Any, params: Sequence[Any] | None = None) -> Deferred[None]:
        """Run one statement; gives nothing."""
        return self.database.statement(sql, params, fetch=False).addCallback(lambda _: None)

    def runInteraction(
        self, interaction: Callable[..., Any], *args: Any, **kw: Any
    ) -> Deferred[Any]:
        """Run a function with a cursor as one transaction, or inside the caller's."""
        return self.database.atomic(cursor_txn, interaction, args, kw)

    def runWithConnection(self, func: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]:
        """Run a function with a connection: in autocommit, or in the caller's transaction."""
        return self.database.run(partial(func, **kw), *args)
