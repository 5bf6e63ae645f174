"""
Fixtures that serve the database of a test module without a router.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import connection
from twistar.registry import Registry

from service.changes import watchers
from service.db.introspect import Fingerprint, fingerprint_txn
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving


@pytest.fixture(autouse=True)
def no_alive_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Send watches no `alive` messages, unless the test sets another time.

    On a loaded machine 15 s pass between two changes, and tests count the messages that they expect.
    """
    monkeypatch.setattr(watchers, "ALIVE", 3600.0)


@pytest.fixture(scope="module")
def connected(dsn: str) -> Iterator[connection]:
    """Yield a psycopg2 connection in autocommit mode to the database of a test module."""
    made = psycopg2.connect(dsn)
    made.autocommit = True
    yield made
    made.close()


@pytest_twisted.async_yield_fixture
async def db(
    request: pytest.FixtureRequest, dsn: str, shared: SharedService
) -> AsyncIterator[DirectCaller]:
    """
    Run the SQL of the module's BEFORE_EACH, and serve its database with the arguments of the mark `serving`.

    A test with its own mark gets its own service; the other tests of the module share one.
    """
    if rows := getattr(request.module, "BEFORE_EACH", ""):
        execute(dsn, rows)
    if any(mark.name == "serving" for mark in request.node.own_markers):
        async with serving_as_marked(request.node, dsn) as own:
            yield own
    else:
        yield await shared.served()
        await shared.stop_if_busy()


@pytest_twisted.async_yield_fixture(scope="module")
async def shared(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[SharedService]:
    """Yield the service that the tests of a module share."""
    found = SharedService(request.node, dsn)
    yield found
    await found.end()


class SharedService:
    """
    A service that tests share until the catalog changes.

    Reading the catalog in new connections is most of the work of a test that only reads: 65 ms of
    PostgreSQL's CPU and 15 ms of the service's. Checking whether it has changed takes 3 ms.

    Args:
        module: The test module, whose mark `serving` has the arguments of `serving`.
        dsn: The DSN of the database.
    """

    def __init__(self, module: pytest.Module, dsn: str) -> None:
        self._module = module
        self._dsn = dsn
        self._open = AsyncExitStack()
        self._db: DirectCaller | None = None
        self._models: object = None
        self._seen: Fingerprint | None = None

    async def served(self) -> DirectCaller:
        """Return the service; a new one if the catalog, or twistar's global pool, has changed."""
        if self._db is not None and (
            self._models is not Registry.DBPOOL or await self._changed(self._db)
        ):
            await self.end()
        if self._db is None:
            self._db = await self._open.enter_async_context(
                serving_as_marked(self._module, self._dsn)
            )
            self._models = Registry.DBPOOL
            await self._changed(self._db)
        return self._db

    async def stop_if_busy(self) -> None:
        """Stop the service if the test has left a query or an upload running."""
        if (db := self._db) is not None and (
            db.pool.stats().busy or db.dispatcher._importing.uploads
        ):
            await self.end()

    async def end(self) -> None:
        """Stop the service, if one runs."""
        self._db = self._seen = None
        await self._open.aclose()

    async def _changed(self, db: DirectCaller) -> bool:
        seen = self._seen
        self._seen = await db.database.run(fingerprint_txn, seen, retry=True)
        return seen is None or seen.value != self._seen.value


def serving_as_marked(
    node: pytest.Item | pytest.Module, dsn: str
) -> AbstractAsyncContextManager[DirectCaller]:
    """Serve a database with the arguments of the node's closest mark `serving`."""
    mark = node.get_closest_marker("serving")
    args, options = (mark.args, mark.kwargs) if mark else ((), {})
    return serving(dsn, *args, **options)
