"""
The pace of progressive results: the amount that the router buffers decides when the next one is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from service.errors import StatementTimeout, Unavailable
from service.wamp.backpressure import HELD, PROBE, Pace

Answer = Callable[[str], Deferred[Any]]


class Router:
    """A fake session whose router answers as the test says."""

    lost = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def call(self, uri: str, *args: Any) -> Deferred[Any]:
        """Return the router's answer."""
        self.asked.append(uri)
        return self.answer(uri)

    def outflow(self) -> Any:
        """Return no backlog in the service's own socket."""
        return self

    def drained(self) -> Deferred[None]:
        """Return a fired Deferred."""
        return succeed(None)


def pace_of(clock: Clock, router: Any) -> Pace:
    """Return the pace of a session with a router."""
    return Pace(clock, router, "p.backlog", 10)


def sent(clock: Clock, pace: Pace, caller: int | None = 7) -> Deferred[None]:
    """Send a part, and let the pause for other work pass."""
    done = Deferred.fromCoroutine(pace.sent(caller))
    clock.advance(0)
    return done


def test_part_follows_once_the_router_buffers_little() -> None:
    """When the router has processed a part and buffers little, the next one may follow."""
    clock, asked = Clock(), Deferred[Any]()
    router = Router(lambda uri: asked)
    done = sent(clock, pace_of(clock, router))
    assert router.asked == ["p.backlog"]
    clock.advance(2)
    asked.callback(HELD)
    assert not done.called
    clock.advance(1)  # the router's time for the part, plus half of it for other work
    assert done.called


def test_router_that_buffers_much_is_polled_with_growing_intervals() -> None:
    clock = Clock()
    held = [5 * HELD, 4 * HELD, 3 * HELD, 2 * HELD, HELD]
    router = Router(lambda uri: succeed(held.pop(0)))
    done = sent(clock, pace_of(clock, router))
    clock.pump([0.01] * 7)
    assert len(router.asked) == 4
    assert not done.called
    clock.pump([0.01] * 8)
    assert done.called


def test_caller_that_takes_nothing_too_long_is_timeout() -> None:
    """A caller that reads nothing for too long is given up; one that reads slowly is not."""
    clock, held = Clock(), 1_000_000
    router = Router(lambda uri: succeed(held))
    failed: list[Any] = []
    done = sent(clock, pace_of(clock, router))
    done.addErrback(lambda failure: failed.append(failure.value))
    for _ in range(6):
        clock.pump([0.25] * 36)
        held -= 100_000
    assert not failed
    clock.pump([0.25] * 44)
    assert isinstance(failed[0], StatementTimeout)
    assert not clock.getDelayedCalls()


def test_caller_that_takes_nothing_is_given_up_soon_when_the_service_stops() -> None:
    """Check that it gets `unavailable` after a second, and that a caller that reads keeps its time."""
    clock, held = Clock(), 1_000_000
    router = Router(lambda uri: succeed(held))
    failed: list[Any] = []
    pace = pace_of(clock, router)
    done = sent(clock, pace)
    done.addErrback(lambda failure: failed.append(failure.value))
    clock.pump([0.25] * 2)
    pace.stop()
    for _ in range(6):
        held -= 100_000
        clock.pump([0.25] * 3)
    assert not failed
    clock.pump([0.25] * 4)
    assert isinstance(failed[0], Unavailable)
    assert not clock.getDelayedCalls()
    sent(clock, pace_of(clock, router)).addErrback(lambda failure: failed.append(failure.value))
    clock.pump([0.25] * 30)
    assert len(failed) == 1


@pytest.mark.parametrize("caller", [7, None])
def test_router_without_buffer_sizes_paces_by_any_answer(caller: int | None) -> None:
    """Without the component or without disclosure, any answer of the router paces; another router is asked again."""
    clock = Clock()
    unknown = ApplicationError(ApplicationError.NO_SUCH_PROCEDURE)
    router = Router(lambda uri: fail(unknown))
    pace = pace_of(clock, router)
    assert sent(clock, pace, caller).called
    assert sent(clock, pace, caller).called
    assert router.asked == ["p.backlog" if caller else PROBE, PROBE]
    assert sent(clock, pace_of(clock, router)).called
    assert router.asked[2:] == ["p.backlog"]


def test_stream_that_is_cancelled_leaves_the_question_as_it_is() -> None:
    """Cancelling a stream does not cancel the shared query to the router."""
    clock, asked = Clock(), Deferred[Any](lambda _: pytest.fail("it was cancelled"))
    done = sent(clock, pace_of(clock, Router(lambda uri: asked)))
    failed: list[Any] = []
    done.addErrback(lambda failure: failed.append(failure.value))
    done.cancel()
    assert isinstance(failed[0], CancelledError)
    asked.callback(0)


def test_lost_session_does_not_ask_the_router() -> None:
    """No call is made on a lost session."""
    clock, router = Clock(), Router(lambda uri: pytest.fail("it was asked"))
    router.lost = True
    assert sent(clock, pace_of(clock, router)).called
