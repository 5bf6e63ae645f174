"""
A short version of `make faults`: no fault loses a write or runs one twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import DeferredList

from tests.amounts import amount
from tests.faults.cancelled_calls import cancel_calls
from tests.faults.crowd import crowd
from tests.faults.deployment import Deployment, deployment
from tests.faults.listeners import start_listeners
from tests.faults.rounds import restart_in_turn, rolling, strike
from tests.wamp.callers import join

SEED = 9
SHORT = (
    "leader: kill -9",
    "leader: SIGSTOP for long",
    "router: kill -9",
    "backend: kill -9",
    "postmaster: kill -9",
    "PostgreSQL: SIGSTOP",
    "clients: cut",
    "clients: byte by byte",
    "services: cut",
    "database: stalled, cut",
    "database: cut in COMMIT",
    "several, one after another",
    "several, one upon another",
)
"""The faults that differ most from each other; `make faults` runs the others too."""

pytestmark = pytest.mark.timeout(400)


@pytest_twisted.async_yield_fixture(scope="module")
async def running() -> AsyncIterator[Deployment]:
    """Run one deployment for the module."""
    async with deployment() as started:
        yield started


@pytest_twisted.ensureDeferred
async def test_rolling_restart_loses_no_call(running: Deployment) -> None:
    """Each service receives SIGTERM twice and is restarted; callers receive no error."""
    known = len(running.failures())
    found = await rolling(running, SEED, amount(150, 500))
    assert found.wrong() == []
    assert not found.tally.errors
    new = running.failures()[known:]
    assert not new, "\n".join(new)


@pytest_twisted.ensureDeferred
async def test_cancelled_calls_do_not_affect_other_calls(running: Deployment) -> None:
    """A CANCEL at a random time ends its own call or comes too late."""
    known = len(running.failures())
    found = await cancel_calls(running, SEED, amount(300, 1000))
    assert found.failed == []
    assert found.wrong == []
    assert found.ends["answered"] > 20
    assert found.ends["wamp.error.canceled"] > 20
    new = running.failures()[known:]
    assert not new, "\n".join(new)


@pytest.mark.parametrize("name", SHORT)
@pytest_twisted.ensureDeferred
async def test_fault_loses_and_repeats_no_write(name: str, running: Deployment) -> None:
    """
    Answered writes exist once, refused writes do not, each call ends, and nothing remains of ended calls.

    Each change is published as an event, in order and one transaction at a time. Live queries continue
    without a reset, and end with the rows that `find` returns.
    """
    found = await strike(running, name, SEED, 0.3, 0.3)
    assert found.wrong() == []
    assert found.listeners.events > 20
    assert found.listeners.changes > 20


@pytest_twisted.ensureDeferred
async def test_tick_republished_by_new_leader_is_recognized_by_later_subscriber(
    running: Deployment,
) -> None:
    """Without later writes, the subscriber's first event is older than its position in `changes`."""
    await (await start_listeners(running)).end()
    listeners = await start_listeners(running)
    running.leader().signal(SIGKILL)
    await running.wait_until_ready()
    found = await listeners.end()
    assert found.wrong() == []
    assert found.again > 0


@pytest.mark.parametrize("how", ["services killed", "services in turn", "router killed"])
@pytest_twisted.ensureDeferred
async def test_many_live_queries_resume_without_a_reset(how: str, running: Deployment) -> None:
    """Twenty sessions watch them while the services or the router restart and rows change."""

    async def act() -> None:
        if how == "services in turn":
            await restart_in_turn(running)
            return
        for each in running.services if how == "services killed" else [running.crossbar]:
            each.signal_all(SIGKILL)

    found = await crowd(running, act)
    print(found)
    assert (found.resets, found.mismatches, found.errors) == (0, 0, [])


@pytest_twisted.ensureDeferred
async def test_suspended_service_is_dropped_and_joins_again_after_resume(
    running: Deployment,
) -> None:
    """Calls routed to it are cancelled soon, the others are answered, and later it registers again."""
    await running.wait_until_ready()
    frozen = running.services[0]
    caller = await join(running.router, "rawsocket cbor")
    frozen.signal_all(SIGSTOP)
    try:
        dealt = [caller.call("rowcast.items.get", 1) for _ in range(8)]
        ends = await DeferredList(dealt, consumeErrors=True).addTimeout(60, reactor)
        errors = Counter(found.value.error for good, found in ends if not good)
        assert errors == {"wamp.error.canceled": 4}
        for _ in range(20):
            assert (await caller.call("rowcast.items.get", 1))["id"] == 1
    finally:
        frozen.signal_all(SIGCONT)
    await running.wait_until_ready()
    await caller.close()
