"""A caller that does not read the parts that it requested."""

from __future__ import annotations

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import Deferred

from tests.conftest import Router
from tests.deferreds import until
from tests.wamp.callers import join
from tests.wamp.service import served
from tests.wamp.test_long_calls import open_transactions

SCHEMA = """
CREATE VIEW large AS SELECT i AS id, repeat('x', 1000) AS body FROM generate_series(1, 60000) i;
"""


@pytest.mark.parametrize("verb", ["stream", "export"])
@pytest_twisted.ensureDeferred
async def test_call_whose_caller_takes_nothing_is_timeout(
    verb: str, dsn: str, router: Router
) -> None:
    """Its transaction is rolled back after the idle time, to free the connection."""
    async with served(dsn, router, tx_idle_timeout=0.3) as service:
        caller = await join(router, "rawsocket cbor")
        begun: Deferred[None] = Deferred()
        options = CallOptions(on_progress=lambda _: begun.called or begun.callback(None))
        call = caller.call(f"rowcast.large.{verb}", options=options)
        await begun
        caller._transport.transport.pauseProducing()
        assert open_transactions(dsn)
        await until(lambda: not service.pool.stats().busy)
        assert not open_transactions(dsn)
        caller._transport.transport.resumeProducing()
        with pytest.raises(ApplicationError) as caught:
            await call
        assert caught.value.error == "rowcast.error.timeout"
        await caller.close()


@pytest.mark.parametrize("verb", ["stream", "export"])
@pytest_twisted.ensureDeferred
async def test_call_whose_caller_takes_nothing_does_not_hold_a_stop(
    verb: str, dsn: str, router: Router
) -> None:
    """Check that it ends with `unavailable`, long before the drain's end and the idle time."""
    caller = await join(router, "rawsocket cbor")
    async with served(dsn, router, drain_timeout=3600, tx_idle_timeout=3600):
        begun: Deferred[None] = Deferred()
        options = CallOptions(on_progress=lambda _: begun.called or begun.callback(None))
        call = caller.call(f"rowcast.large.{verb}", options=options)
        await begun
        caller._transport.transport.pauseProducing()
    assert not open_transactions(dsn)
    caller._transport.transport.resumeProducing()
    with pytest.raises(ApplicationError) as caught:
        await call
    assert (caught.value.error, caught.value.kwargs["retry"]) == (
        "rowcast.error.unavailable",
        True,
    )
    await caller.close()
