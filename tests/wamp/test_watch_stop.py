"""Live queries when their service stops: they end at once, and resume at the next service."""

from __future__ import annotations

import pytest_twisted
from twisted.internet import reactor

from tests.conftest import Router, execute
from tests.deferreds import until
from tests.wamp.conftest import Join
from tests.wamp.service import served
from tests.wamp.test_watching import SCHEMA, Watching

__all__ = ["SCHEMA"]


@pytest_twisted.ensureDeferred
async def test_service_that_stops_ends_watches_to_be_resumed(
    dsn: str, router: Router, call_from: Join
) -> None:
    """The error says that the service stops; the next one resumes without a reset."""
    caller = await call_from()
    async with served(dsn, router) as first:
        await until(
            lambda: first.feed.leading
        )  # it begins an epoch when it leads for the first time
        live = Watching(caller, "drivers", order=["name"])
        await until(lambda: live.copy.complete)
        began = reactor.seconds()
        stopping = first.stopService()
        await until(lambda: live.ended)
        assert reactor.seconds() - began < 1
        error = live.ended[0].value
        assert error.error == "rowcast.error.unavailable"
        assert (error.kwargs["reason"], error.kwargs["retry"]) == ("stopped", True)
        await stopping
    execute(dsn, "UPDATE drivers SET name = 'driver 9' WHERE id = 1")
    async with served(dsn, router):
        again = Watching(caller, "drivers", live.copy, order=["name"], since=live.copy.position)
        await until(lambda: again.messages)
        assert again.copy.resets == 0
        assert [row["id"] for row in again.copy.values] == [2, 3, 4, 5, 1]
        again.call.cancel()
    execute(dsn, "UPDATE drivers SET name = 'driver 1' WHERE id = 1")
