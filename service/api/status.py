"""
The procedures by which the service reports on itself: describe, health, stats.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

from service.api.dispatcher import Dispatcher, Procedure
from service.catalog import Catalog
from service.db.statements import compute_txn
from service.describe.document import describe, size_of
from service.errors import TooMuchToDescribe
from service.request.arguments import Arguments, Caller
from service.request.read_request import WHOLE, DescribeRequest, parse_describe

PATIENCE = 2.0
"""Seconds that `health` waits for the database."""

Check = Callable[[], bool]


class StatusProcedures:
    """
    Answers describe, health and stats.

    Args:
        dispatcher: Has the catalog, the verbs and the database.
        version: The version of the service.
        checks: Further checks of `health` by name; each returns whether its component is healthy.
        figures: Further figures of `stats` by name, beside those of the pool.
        procedures: Returns the procedures written by hand that can be called now.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        version: str,
        checks: Mapping[str, Check],
        figures: Mapping[str, Callable[[], Mapping[str, Any]]],
        procedures: Callable[[], Mapping[str, Callable[..., Any]]],
    ) -> None:
        self._dispatcher = dispatcher
        self._backend = dispatcher.backend
        self._version = version
        self._checks = checks
        self._figures = figures
        self._written = procedures
        # A document must not refer to its catalog, or the weak reference would never be cleared.
        self._documents: WeakKeyDictionary[Catalog, Any] = WeakKeyDictionary()

    def procedures(self) -> dict[str, Procedure]:
        """Return the procedures by name."""
        return {
            "describe": self._describe,
            "health": self._plain(self._health),
            "stats": self._plain(self._stats),
        }

    def _plain(self, answer: Callable[[], Awaitable[Any]]) -> Procedure:
        async def procedure(_: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            Arguments(args, kwargs, [], []).timeout()
            return await answer()

        return procedure

    async def _describe(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `describe`: what the caller may call. The entire document is built once for each catalog.

        Raises:
            TooMuchToDescribe: The document is larger than an answer may be.
            UnknownName: The part that the call asks for does not exist.
        """
        part, timeout = parse_describe(args, kwargs)
        catalog = self._dispatcher.served_to(caller).catalog
        found = self._documents.get(catalog) if part == WHOLE else None
        if found is None:
            # In a pool thread, as if it were a query: a large database would block the reactor.
            building: Awaitable[Any] = self._backend.database.run(
                compute_txn, self._document, catalog, part, retry=True, timeout=timeout
            )
            found = await building
        if part == WHOLE:
            self._documents[catalog] = found
        return found

    def _document(self, catalog: Catalog, part: DescribeRequest) -> Any:
        """Build a document; runs in a pool thread."""
        verbs, written = self._dispatcher.verbs, self._written()
        explains = self._dispatcher.is_procedure("explain")
        prefix = self._dispatcher.prefix
        made = describe(catalog, prefix, self._version, verbs, written, part, explains)
        if size_of(made) > self._backend.max_bytes:
            raise TooMuchToDescribe(self._backend.max_bytes)
        return made

    async def _health(self) -> Any:
        """Answer `health`: whether calls can be answered, with the result of each check."""
        checks = {name: check() for name, check in self._checks.items()}
        checks["catalog"] = self._dispatcher.ready
        checks["postgres"] = await self._database_answers()
        return {"live": True, "ready": all(checks.values()), "checks": checks}

    async def _database_answers(self) -> bool:
        try:
            await self._backend.database.statement("SELECT 1", retry=True, timeout=PATIENCE)
        except Exception:  # for whatever reason, the database does not answer
            return False
        return True

    async def _stats(self) -> Any:
        figures = {name: figure() for name, figure in self._figures.items()}
        return {"pool": asdict(self._backend.database.pool.stats()), **figures}
