"""
Reading what has already come true, with no reactor.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure


def result_of(awaited: Deferred[Any] | Coroutine[Any, Any, Any]) -> Any:
    """Give the result; raise what it failed with."""
    found: list[Any] = []
    deferred = awaited if isinstance(awaited, Deferred) else ensureDeferred(awaited)
    deferred.addBoth(found.append)
    assert found, "it has not come true yet"
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def failure_of(awaited: Deferred[Any] | Coroutine[Any, Any, Any]) -> BaseException:
    """Give the exception that it failed with."""
    try:
        result_of(awaited)
    except BaseException as error:
        return error
    raise AssertionError("it did not fail")
