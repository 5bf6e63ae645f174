"""
What the service answers about itself: describe, health, stats.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from service.answer.describing import describe
from service.answer.hub import Hub, Procedure
from service.catalog import Catalog
from service.db.connection import PgConnection
from service.db.interactions import apart_txn
from service.db.scope import Database
from service.request.arguments import Arguments
from service.request.caller import Caller

PATIENCE = 2.0
"""Seconds that `health` waits for the database."""

Check = Callable[[], bool]


class Own:
    """
    Args:
        hub: For the catalog and the verbs.
        database: Asked by `health`, counted by `stats`.
        prefix: Of the procedures' URIs.
        version: Of the service.
        checks: By name, what else `health` asks: whether it is well.
        calls: The figures of the calls so far.
        procedures: Names the procedures written by hand, as far as they can be called now.
    """

    def __init__(
        self,
        hub: Hub,
        database: Database,
        prefix: str,
        version: str,
        checks: Mapping[str, Check],
        calls: Callable[[], Mapping[str, Any]],
        procedures: Callable[[], Iterable[str]],
    ) -> None:
        self._hub = hub
        self._database = database
        self._prefix = prefix
        self._version = version
        self._checks = checks
        self._calls = calls
        self._names = procedures
        self._documents: WeakKeyDictionary[Catalog, Any] = WeakKeyDictionary()

    def procedures(self) -> dict[str, Procedure]:
        """Give the procedures by name."""
        return {
            "describe": self._plain(self._describe),
            "health": self._plain(self._health),
            "stats": self._plain(self._stats),
        }

    def _plain(self, answer: Callable[[Caller], Awaitable[Any]]) -> Procedure:
        async def procedure(caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            Arguments(args, kwargs, [], []).timeout()
            return await answer(caller)

        return procedure

    async def _describe(self, caller: Caller) -> Any:
        """Describe what is served to the caller: made once for each catalog, in a pool thread."""
        catalog = self._hub.served_to(caller).catalog
        found = self._documents.get(catalog)
        if found is None:
            found = self._documents[catalog] = await self._database.run(
                apart_txn,
                describe,
                catalog,
                self._prefix,
                self._version,
                self._hub.verbs,
                self._names(),
            )
        return found

    async def _health(self, _: Caller) -> Any:
        """Say that we live, and whether calls can be answered."""
        checks = {name: check() for name, check in self._checks.items()}
        checks["catalog"] = self._hub.ready
        checks["postgres"] = await self._asked()
        return {"live": True, "ready": all(checks.values()), "checks": checks}

    async def _asked(self) -> bool:
        try:
            await self._database.run(_ask_txn, retry=True, timeout=PATIENCE)
        except Exception:  # whatever the reason, the database does not answer
            return False
        return True

    async def _stats(self, _: Caller) -> Any:
        return {"calls": self._calls(), "pool": asdict(self._database.pool.stats())}


def _ask_txn(connection: PgConnection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
