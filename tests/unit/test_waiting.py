"""
Pauses that can be cut short, and those who wait for one event.
"""

from __future__ import annotations

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from service.waiting import Pause, Waiters, cancel_timer


def test_pause_ends_after_its_time() -> None:
    clock = Clock()
    pause = Pause(clock)
    paused = Deferred.fromCoroutine(pause.wait(2.0))
    clock.advance(1.5)
    assert not paused.called
    clock.advance(0.5)
    assert paused.called


@pytest_twisted.ensureDeferred
async def test_pause_of_a_negative_time_ends_at_once() -> None:
    """As when a time that was still to come has passed before the pause begins; a Clock allows it."""
    await Pause(reactor).wait(-1e-5)


def test_pause_that_is_ended_leaves_no_timer() -> None:
    clock = Clock()
    pause = Pause(clock)
    paused = Deferred.fromCoroutine(pause.wait(2.0))
    pause.end()
    pause.end()
    assert paused.called
    assert clock.getDelayedCalls() == []


def test_pause_without_time_ends_only_when_it_is_ended() -> None:
    clock = Clock()
    pause = Pause(clock)
    paused = Deferred.fromCoroutine(pause.wait(None))
    clock.advance(1e6)
    assert not paused.called
    pause.end()
    assert paused.called


def test_cancelled_pause_leaves_no_timer() -> None:
    clock = Clock()
    pause = Pause(clock)
    paused = Deferred.fromCoroutine(pause.wait(2.0))
    seen: list[object] = []
    paused.addErrback(lambda why: seen.append(why.type))
    paused.cancel()
    pause.end()
    assert seen == [CancelledError]
    assert clock.getDelayedCalls() == []


def test_waiters_fire_once_except_those_cancelled() -> None:
    waiters, fired = Waiters(), list[str]()
    first, second = waiters.wait(), waiters.wait()
    first.addCallbacks(lambda _: fired.append("first"), lambda _: fired.append("cancelled"))
    second.addCallback(lambda _: fired.append("second"))
    first.cancel()
    assert len(waiters) == 1
    waiters.fire()
    waiters.fire()
    assert fired == ["cancelled", "second"]
    assert len(waiters) == 0


def test_waiter_cancelled_by_the_callback_of_another_one_does_not_keep_the_others_waiting() -> None:
    waiters, fired = Waiters(), list[str]()
    first, second, third = waiters.wait(), waiters.wait(), waiters.wait()
    second.addErrback(lambda _: fired.append("cancelled"))
    first.addCallback(lambda _: second.cancel())
    third.addCallback(lambda _: fired.append("third"))
    waiters.fire()
    assert fired == ["cancelled", "third"]


def test_timer_is_cancelled_only_while_it_is_due() -> None:
    clock = Clock()
    ran, due = clock.callLater(0, int), clock.callLater(1, int)
    clock.advance(0)
    for timer in (ran, due, due, None):
        cancel_timer(timer)
    assert clock.getDelayedCalls() == []
