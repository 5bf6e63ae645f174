"""
A short run of what `make faults` does for longer: whatever fails, nothing is lost or done twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import DeferredList

from tests.deferreds import pause
from tests.faults.crowd import crowd
from tests.faults.heard import ALL, listening
from tests.faults.house import House, house
from tests.faults.rounds import restart_in_turn, rolling, strike
from tests.faults.storm import storm
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
"""Those that differ most; the others are for `make faults`."""

pytestmark = pytest.mark.timeout(400)


@pytest_twisted.async_yield_fixture(scope="module")
async def running() -> AsyncIterator[House]:
    """Run all of it once for this module."""
    async with house() as all_of_it:
        yield all_of_it


@pytest_twisted.ensureDeferred
async def test_rolling_restart_loses_no_call(running: House) -> None:
    """Both services stop and start again, told so twice, and callers see no error at all."""
    found = await rolling(running, SEED, 500)
    assert found.wrong() == []
    assert not found.tally.errors
    assert running.failures() == []


@pytest_twisted.ensureDeferred
async def test_cancelled_calls_cost_no_other_one(running: House) -> None:
    """Cancels at random moments end their own calls, or none."""
    found = await storm(running, SEED, 1000)
    assert found.failed == []
    assert found.wrong == []
    assert found.ends["answered"] > 20
    assert found.ends["wamp.error.canceled"] > 20
    assert running.failures() == []


@pytest.mark.parametrize("name", SHORT)
@pytest_twisted.ensureDeferred
async def test_fault_loses_and_doubles_nothing(name: str, running: House) -> None:
    """
    Answered writes are there once, refused ones are not, and every call ends; nothing of them is left.

    Each change comes as an event, in order, whole transactions at a time; live queries go on with no
    reset, and have what `find` answers.
    """
    found = await strike(running, name, SEED, 0.3, 0.3)
    assert found.wrong() == []
    assert found.heard.events > 20
    assert found.heard.changes > 20


@pytest_twisted.ensureDeferred
async def test_tick_that_a_new_leader_publishes_again_is_known_to_who_began_after_it(
    running: House,
) -> None:
    """Nobody has written since, so it is the first that a subscriber hears, and `changes` has nothing."""
    await (await listening(running)).end()
    listeners, asker = await listening(running), await join(running.router, "service cbor")
    while not await asker.call("wamp.subscription.lookup", ALL, {"match": "wildcard"}):
        await pause(0.05)
    await asker.close()
    running.leader().signal(SIGKILL)
    await running.whole()
    found = await listeners.end()
    assert found.wrong() == []
    assert found.again > 0


@pytest.mark.parametrize("how", ["services killed", "services in turn", "router killed"])
@pytest_twisted.ensureDeferred
async def test_thousand_live_queries_go_on_without_a_reset(how: str, running: House) -> None:
    """Of twenty sessions, whose services or router go while others write."""

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
async def test_service_that_stands_still_is_dropped_and_joins_again(running: House) -> None:
    """Calls that it was dealt end soon, the others are answered, and it is one of two again afterwards."""
    await running.whole()
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
    await running.whole()
    await caller.close()
