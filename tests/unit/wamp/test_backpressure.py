"""
The pace of parts: what the router tells decides when the next one leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from service.errors import StatementTimeout
from service.wamp.backpressure import HELD, PROBE, Pace

Answer = Callable[[str], Deferred[Any]]


class Router:
    """A session, as far as the pace knows one, with a router that answers as it is told."""

    lost = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def call(self, uri: str, *args: Any) -> Deferred[Any]:
        """Ask."""
        self.asked.append(uri)
        return self.answer(uri)

    def outflow(self) -> Any:
        """Nothing waits in our own socket."""
        return self

    def drained(self) -> Deferred[None]:
        """Nothing waits."""
        return succeed(None)


def sent(clock: Clock, pace: Pace, router: Any, caller: int | None = 7) -> Deferred[None]:
    """Send a part, and let the pause for others pass."""
    done = Deferred.fromCoroutine(pace.sent(router, caller))
    clock.advance(0)
    return done


def test_part_after_a_router_that_holds_little_may_follow() -> None:
    """When the router has dealt with a part and holds little, the next may follow."""
    clock, asked = Clock(), Deferred[Any]()
    router = Router(lambda uri: asked)
    done = sent(clock, Pace(clock, "p.backlog", 10), router)
    assert router.asked == ["p.backlog"]
    clock.advance(2)
    asked.callback(HELD)
    assert not done.called
    clock.advance(1)  # what the router took, half of it again for others
    assert done.called


def test_router_that_holds_much_is_asked_ever_more_seldom() -> None:
    """While the router holds much, it is asked again and again, ever more seldom."""
    clock = Clock()
    held = [5 * HELD, 4 * HELD, 3 * HELD, 2 * HELD, HELD]
    router = Router(lambda uri: succeed(held.pop(0)))
    done = sent(clock, Pace(clock, "p.backlog", 10), router)
    clock.pump([0.01] * 7)
    assert len(router.asked) == 4
    assert not done.called
    clock.pump([0.01] * 8)
    assert done.called


def test_caller_that_takes_nothing_too_long_is_timeout() -> None:
    """A caller that takes nothing for too long is given up; one that takes a little is not."""
    clock, held = Clock(), 1_000_000
    router = Router(lambda uri: succeed(held))
    failed: list[Any] = []
    done = sent(clock, Pace(clock, "p.backlog", 10), router)
    done.addErrback(lambda failure: failed.append(failure.value))
    for _ in range(6):
        clock.pump([0.25] * 36)
        held -= 100_000
    assert not failed
    clock.pump([0.25] * 44)
    assert isinstance(failed[0], StatementTimeout)
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize("caller", [7, None])
def test_router_without_buffer_sizes_paces_by_any_answer(caller: int | None) -> None:
    """Without the component, or without disclosure, any answer paces; another router is asked."""
    clock = Clock()
    unknown = ApplicationError(ApplicationError.NO_SUCH_PROCEDURE)
    router = Router(lambda uri: fail(unknown))
    pace = Pace(clock, "p.backlog", 10)
    assert sent(clock, pace, router, caller).called
    assert sent(clock, pace, router, caller).called
    assert router.asked == ["p.backlog" if caller else PROBE, PROBE]
    pace.begin()
    assert sent(clock, pace, router, 7).called
    assert router.asked[2:] == ["p.backlog"]


def test_stream_that_is_cancelled_leaves_the_question_as_it_is() -> None:
    """A stream that is cancelled leaves the question to the router as it is."""
    clock, asked = Clock(), Deferred[Any](lambda _: pytest.fail("it was cancelled"))
    done = sent(clock, Pace(clock, "p.backlog", 10), Router(lambda uri: asked))
    failed: list[Any] = []
    done.addErrback(lambda failure: failed.append(failure.value))
    done.cancel()
    assert isinstance(failed[0], CancelledError)
    asked.callback(0)


def test_lost_session_does_not_ask_the_router() -> None:
    """When the session is gone, nobody is asked."""
    clock, router = Clock(), Router(lambda uri: pytest.fail("it was asked"))
    router.lost = True
    assert sent(clock, Pace(clock, "p.backlog", 10), router).called
