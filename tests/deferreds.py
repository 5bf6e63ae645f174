"""
Waiting in tests: for what has come true already, for a while, for a condition, for a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

REST = 2
"""A question whether a condition holds is followed by a rest of so many times its length."""
MOST = 0.1
"""Seconds of that rest at most: what is waited for may pass."""


def result_of(awaited: Deferred[Any] | Coroutine[Any, Any, Any]) -> Any:
    """Return the result of what has come true already, with no reactor; raise what it failed with."""
    found: list[Any] = []
    deferred = awaited if isinstance(awaited, Deferred) else ensureDeferred(awaited)
    deferred.addBoth(found.append)
    assert found, "it has not come true yet"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


async def pause(seconds: float) -> None:
    """Let the reactor turn for some seconds."""
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Let the reactor turn until a condition holds; fail after some seconds."""
    end, asked = reactor.seconds() + seconds, reactor.seconds()
    while not condition():
        now = reactor.seconds()
        assert now < end, "it did not come true in time"
        # A question to the database takes the reactor's time, and a processor's that the answer needs.
        await pause(max(0.005, min(REST * (now - asked), MOST)))
        asked = reactor.seconds()


async def failure_of(awaitable: Any) -> BaseException:
    """Return the exception that it ends in."""
    try:
        await awaitable
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")
