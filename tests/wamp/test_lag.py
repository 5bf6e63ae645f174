"""
Calls that are slow in the database neither block the reactor nor delay other calls.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from tests.conftest import Router
from tests.db.lag import LagProbe, least_lag
from tests.deferreds import until
from tests.wamp.callers import join
from tests.wamp.service import served

SLOW = 16
BOUND = 0.02
"""Seconds, less those that others have the processors for; a few thousandths are usual."""

SCHEMA = """
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(1);
CREATE TABLE rows (id int PRIMARY KEY, name text, at timestamptz DEFAULT now());
INSERT INTO rows SELECT i, 'row number ' || i FROM generate_series(1, 1000) i;
"""


def shown(what: str, probe: LagProbe, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the figures."""
    p50, p99, most = (probe.own(part) * 1000 for part in (0.5, 0.99, 1))
    with capsys.disabled():
        print(f"\n{what}: reactor lag p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {most:.2f} ms")


@pytest.mark.parametrize("connections", [SLOW, 5])
@pytest_twisted.ensureDeferred
async def test_slow_calls_in_a_pool_do_not_block_the_reactor(
    dsn: str, router: Router, connections: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen slow calls, each with a connection or in a queue for one, leave the reactor free."""
    async with served(dsn, router, pool_max=connections, pool_timeout=30) as service:
        caller = await join(router, "rawsocket cbor")
        await caller.call("rowcast.slow.find")  # everything that happens only once has happened

        async def measure() -> LagProbe:
            gc.collect()
            with LagProbe(reactor) as probe:
                calls = [caller.call("rowcast.slow.find") for _ in range(SLOW)]
                await until(lambda: service.pool.stats().busy == connections)
                health = await caller.call("rowcast.stats")
                answers: list[Any] = await gatherResults(calls)
            assert health["pool"]["busy"] == connections
            assert health["calls"]["in_progress"] == SLOW + 1
            assert [answer["rows"] for answer in answers] == [[{"id": 1}]] * SLOW
            shown(f"{SLOW} slow calls over {connections} connections", probe, capsys)
            return probe

        assert await least_lag(measure, 0.99, BOUND) < BOUND
        await caller.close()


@pytest_twisted.ensureDeferred
async def test_quick_calls_beside_slow_ones_are_answered_soon(
    dsn: str, router: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    """While fifteen slow calls run, others are answered through the connection that is left."""
    async with served(dsn, router, pool_max=SLOW) as service:
        caller = await join(router, "rawsocket cbor")
        await caller.call("rowcast.rows.get", 1)

        async def measure() -> LagProbe:
            slow = [caller.call("rowcast.slow.find") for _ in range(SLOW - 1)]
            await until(lambda: service.pool.stats().busy == SLOW - 1)
            gc.collect()
            quick = 0
            with LagProbe(reactor) as probe:
                while not all(call.called for call in slow):
                    row = await caller.call("rowcast.rows.get", quick % 1000 + 1)
                    assert row["id"] == quick % 1000 + 1
                    quick += 1
            await gatherResults(slow)
            shown(f"{quick} quick calls beside {SLOW - 1} slow ones", probe, capsys)
            assert quick > 2  # if they waited, the first would take as long as the slow ones
            return probe

        assert await least_lag(measure, 0.99, BOUND) < BOUND
        await caller.close()
