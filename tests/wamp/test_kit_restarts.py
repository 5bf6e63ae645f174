"""
The kit for Python over restarts of the service: there is none beside those of the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_twisted

from tests.conftest import Router, execute
from tests.deferreds import pause, until
from tests.wamp import kit_client
from tests.wamp.kit_client import Client, same
from tests.wamp.service import served

SCHEMA = kit_client.SCHEMA


@pytest_twisted.async_yield_fixture
async def client(router: Router, dsn: str) -> AsyncIterator[Client]:
    """Join before any service is there."""
    execute(dsn, kit_client.RESET)
    client = Client(router)
    yield client
    await client.close()


@pytest_twisted.ensureDeferred
async def test_live_query_waits_for_a_service_and_goes_on_at_the_next(
    dsn: str, router: Router, client: Client
) -> None:
    """A service that stops says so; until the next one is there, the router knows no procedure."""
    live = client.db.live("drivers", order=["id"])
    await pause(0.3)
    assert live.error is None
    async with served(dsn, router):
        await live.ready()
        execute(dsn, "UPDATE drivers SET name = 'first' WHERE id = 1")
        await until(lambda: live.rows[0]["name"] == "first")
    execute(dsn, "UPDATE drivers SET name = 'between' WHERE id = 1")
    async with served(dsn, router):
        await until(lambda: live.rows[0]["name"] == "between")
        execute(dsn, "UPDATE drivers SET name = 'second' WHERE id = 1")
        await until(lambda: live.rows[0]["name"] == "second")
        await same(client.db, live)
    assert (live.error, live.mismatches) == (None, 0)
