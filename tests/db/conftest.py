"""
A service without a router in front of it, over the database of a test module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest
import pytest_twisted
from twistar.registry import Registry

from service.db.fingerprint import Fingerprint, fingerprint_txn
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving


@pytest_twisted.async_yield_fixture
async def db(
    request: pytest.FixtureRequest, dsn: str, shared: Shared
) -> AsyncIterator[DirectCaller]:
    """
    Run the SQL of the module's BEFORE_EACH, and serve its database as the mark `serving` says.

    A test that has such a mark of its own has a service of its own, too; the others share one.
    """
    if rows := getattr(request.module, "BEFORE_EACH", ""):
        execute(dsn, rows)
    if any(mark.name == "serving" for mark in request.node.own_markers):
        async with marked(request.node, dsn) as own:
            yield own
    else:
        yield await shared.served()
        await shared.put_back()


@pytest_twisted.async_yield_fixture(scope="module")
async def shared(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Shared]:
    """Give the service of the tests of a module."""
    found = Shared(request.node, dsn)
    yield found
    await found.end()


class Shared:
    """
    A service that tests share for as long as the catalog stays as it was read.

    Reading it, in connections that know nothing yet, is most of the work of tests that only ask: 65 ms
    of PostgreSQL's CPU and 15 of ours. To look whether it has changed takes 3.

    Args:
        module: Its mark `serving` says how the database is served.
        dsn: Of the database.
    """

    def __init__(self, module: pytest.Module, dsn: str) -> None:
        self._module = module
        self._dsn = dsn
        self._open = AsyncExitStack()
        self._db: DirectCaller | None = None
        self._models: object = None
        self._seen: Fingerprint | None = None

    async def served(self) -> DirectCaller:
        """Return the service, another one if the catalog has changed, or models are another service's."""
        if self._db is not None and (
            self._models is not Registry.DBPOOL or await self._changed(self._db)
        ):
            await self.end()
        if self._db is None:
            self._db = await self._open.enter_async_context(marked(self._module, self._dsn))
            self._models = Registry.DBPOOL
            await self._changed(self._db)
        return self._db

    async def put_back(self) -> None:
        """End the service if the test has left something under way."""
        if (db := self._db) is not None and (
            db.pool.stats().busy or db.dispatcher._importing.uploads
        ):
            await self.end()

    async def end(self) -> None:
        """Serve no more."""
        self._db = self._seen = None
        await self._open.aclose()

    async def _changed(self, db: DirectCaller) -> bool:
        seen = self._seen
        self._seen = await db.database.run(fingerprint_txn, seen, retry=True)
        return seen is None or seen.value != self._seen.value


def marked(
    node: pytest.Item | pytest.Module, dsn: str
) -> AbstractAsyncContextManager[DirectCaller]:
    """Serve a database as the closest mark says."""
    mark = node.get_closest_marker("serving")
    args, options = (mark.args, mark.kwargs) if mark else ((), {})
    return serving(dsn, *args, **options)
