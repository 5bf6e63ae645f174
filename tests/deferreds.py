"""
Waiting in tests: for a fired Deferred, for some seconds, for a condition, for an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

Raised = TypeVar("Raised", bound=BaseException)
REST = 2
"""Between two checks of a condition, `until` pauses for this multiple of a check's duration."""
MOST = 0.1
"""Maximum pause in seconds, because the condition may hold only for a short time."""


def result_of(awaited: Deferred[Any] | Coroutine[Any, Any, Any]) -> Any:
    """Return the result of an awaitable that needs no reactor to finish; raise what it failed with."""
    found: list[Any] = []
    deferred = awaited if isinstance(awaited, Deferred) else ensureDeferred(awaited)
    deferred.addBoth(found.append)
    assert found, "it has not come true yet"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


async def pause(seconds: float) -> None:
    """Wait for some seconds while the reactor runs."""
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Poll a condition until it holds while the reactor runs; fail after some seconds."""
    end, asked = reactor.seconds() + seconds, reactor.seconds()
    while not condition():
        now = reactor.seconds()
        assert now < end, "it did not come true in time"
        # A check that queries the database blocks the reactor and takes CPU from what it waits for.
        await pause(max(0.005, min(REST * (now - asked), MOST)))
        asked = reactor.seconds()


async def failure_of(
    awaitable: Any,
    kind: type[Raised] = BaseException,  # type: ignore[assignment]
) -> Raised:
    """Return the exception that an awaitable raises; fail unless it is of the class."""
    try:
        await awaitable
    except BaseException as error:
        assert isinstance(error, kind), error
        return error
    raise AssertionError("it did not fail")
