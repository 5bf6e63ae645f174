"""
What a call's INVOCATION says beside its arguments changes nothing of the answer.

The shipped routers disclose callers, and then most invocations are of one form, which is read apart
(`service/wamp/session.py`). Others are not: a stock router discloses nobody, and a call may ask for
progressive results or name a timeout.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted
from autobahn.wamp.types import CallOptions

from service.app import Serving
from tests.conftest import Router, crossbar_running
from tests.wamp.callers import KINDS, join
from tests.wamp.service import served

SCHEMA = """
CREATE TABLE items (id int PRIMARY KEY, name text);
INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 500) i;
"""

ROWS = [{"id": number, "name": f"item {number}"} for number in range(1, 501)]

OPTIONS = {
    "none": CallOptions(),
    "progress": CallOptions(on_progress=lambda _: None),
    "timeout": CallOptions(timeout=30_000),
}


@pytest.fixture(scope="module")
def stock_router() -> Iterator[Router]:
    """Run a router that discloses nobody."""
    with crossbar_running(disclosed=False) as found:
        yield found


@pytest_twisted.async_yield_fixture(scope="module")
async def behind_stock_router(dsn: str, stock_router: Router) -> AsyncIterator[Serving]:
    """Serve the module's database there."""
    async with served(dsn, stock_router) as serving:
        yield serving


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_call_of_an_undisclosed_caller_is_answered_with_all_rows(
    how: str, options: str, behind_stock_router: Serving, stock_router: Router
) -> None:
    """Who is not disclosed has the same answers."""
    caller = await join(stock_router, how)
    few = await caller.call("rowcast.items.find", limit=2, options=OPTIONS[options])
    assert few["rows"] == ROWS[:2]
    many = await caller.call("rowcast.items.find", limit=500, options=OPTIONS[options])
    assert many["rows"] == ROWS
    made = await caller.call("rowcast.items.get", key=7, options=OPTIONS[options])
    assert made == ROWS[6]
    await caller.close()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_call_with_options_is_answered_with_all_rows(
    how: str, options: str, service: Serving, router: Router
) -> None:
    """Nor do options of a call change what many rows look like."""
    caller = await join(router, how)
    many = await caller.call("rowcast.items.find", limit=500, options=OPTIONS[options])
    assert many["rows"] == ROWS
    await caller.close()
