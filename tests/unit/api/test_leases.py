"""Leases: how long a resource is held for a session, and how many there may be."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from service.api.leases import BRIDGE as SHARED
from service.api.leases import MOST_REMEMBERED, REMEMBERED, Lease, Leases, new_process, process_of
from service.errors import NotAuthorized, Unavailable
from service.request.arguments import Caller

IDLE = 10.0
ANN, BOB, NOBODY = (Caller(session, "ann", None, "realm1") for session in (1, 2, None))
BRIDGE = Caller(3, None, "anonymous", "realm1")


class Thing:
    """A leased resource that records why it was dropped."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def drop(self, reason: str) -> None:
        """Record the reason."""
        self.dropped.append(reason)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases[Thing]:
    return Leases(clock, new_process(), "thing", 3, 2, "end one")


def opened(leases: Leases[Thing], owner: Caller = ANN) -> Lease[Thing]:
    """Open a lease, and make its first call."""
    lease = leases.open(owner, Thing(), IDLE)
    with leases.use(lease):
        pass
    return lease


def test_idle_lease_is_dropped_after_its_time(clock: Clock, leases: Leases[Thing]) -> None:
    """The time starts again after each call, and after the last of concurrent ones."""
    lease = opened(leases)
    clock.advance(IDLE - 1)
    with leases.use(lease), leases.use(lease):
        clock.advance(IDLE * 2)
    clock.advance(IDLE - 1)
    assert lease.held.dropped == []
    clock.advance(1)
    assert lease.held.dropped == ["idle_timeout"]
    assert (leases.find(lease.id, 1), leases.reason(lease.id)) == (None, "idle_timeout")
    assert not clock.getDelayedCalls()


def test_lease_of_a_running_call_ends_once(clock: Clock, leases: Leases[Thing]) -> None:
    lease = opened(leases)
    with leases.use(lease):
        assert leases.end(lease, "committed")
        leases.drop(lease, "failed")
    assert lease.held.dropped == []
    assert leases.reason(lease.id) == "committed"
    assert not clock.getDelayedCalls()


def test_leases_of_a_session_that_leaves_are_dropped(clock: Clock, leases: Leases[Thing]) -> None:
    """Also during a running call; without a session id, all leases end."""
    one, other = opened(leases), opened(leases, BOB)
    with leases.use(one):
        leases.departed(1)
        assert (one.held.dropped, other.held.dropped) == (["session_left"], [])
    leases.departed()
    assert (one.held.dropped, other.held.dropped) == (["session_left"], ["session_left"])
    assert len(leases) == 0
    assert not clock.getDelayedCalls()


def test_stop_waits_for_running_calls(clock: Clock, leases: Leases[Thing]) -> None:
    """No lease is opened any more; idle ones are dropped at once, others after their calls."""
    idle, busy = opened(leases), opened(leases)
    with leases.use(busy):
        leases.stop()
        assert (idle.held.dropped, busy.held.dropped) == (["stopped"], [])
        with pytest.raises(Unavailable):
            opened(leases, BOB)
    assert busy.held.dropped == ["stopped"]
    assert not clock.getDelayedCalls()


def test_leases_are_bounded_per_session_and_in_total(leases: Leases[Thing]) -> None:
    """A lease that ends makes room; callers without a disclosed session share one bound."""
    first, _ = opened(leases), opened(leases)
    with pytest.raises(Unavailable) as caught:
        opened(leases)
    assert caught.value.details["hint"] == "end one"
    opened(leases, BOB)
    with pytest.raises(Unavailable):
        opened(leases, NOBODY)
    leases.drop(first, "failed")
    for _ in range(2):
        leases.drop(opened(leases, NOBODY), "failed")


def test_refusal_of_bridge_callers_says_that_they_share_a_bound(leases: Leases[Thing]) -> None:
    """The refused caller may have no lease itself."""
    for _ in range(2):
        opened(leases, BRIDGE)
    with pytest.raises(Unavailable) as caught:
        opened(leases, BRIDGE)
    assert caught.value.details["hint"] == f"end one; {SHARED}"


def test_another_session_is_refused_before_and_after_the_end(leases: Leases[Thing]) -> None:
    lease = opened(leases)
    assert leases.find(lease.id, 1) is lease
    for _ in range(2):
        with pytest.raises(NotAuthorized):
            leases.find(lease.id, 2)
        leases.drop(lease, "failed")
    assert leases.find("unknown", 2) is None


def test_reason_is_known_for_a_while(clock: Clock, leases: Leases[Thing]) -> None:
    lease = opened(leases)
    leases.drop(lease, "rolled_back")
    clock.advance(REMEMBERED - 1)
    assert leases.reason(lease.id) == "rolled_back"
    clock.advance(1)
    assert leases.reason(lease.id) is None


def test_reasons_of_many_leases_are_bounded(leases: Leases[Thing]) -> None:
    first = opened(leases)
    leases.drop(first, "failed")
    for _ in range(MOST_REMEMBERED):
        leases.drop(opened(leases), "failed")
    assert leases.reason(first.id) is None


def test_id_of_a_lease_names_its_process() -> None:
    """Any other id from a client names no process."""
    leases: Leases[Thing] = Leases(Clock(), new_process(), "thing", 1, 1, "")
    id = leases.open(ANN, Thing(), IDLE).id
    assert process_of(id) == leases.process
    for wrong in (
        "",
        "nope",
        id[1:],
        f"{id}x",
        f"{id}\n",
        id.replace(".", "-"),
        f".{id}",
        "é" * 41,
    ):
        assert process_of(wrong) is None
