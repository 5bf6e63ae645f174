"""
Who has left the realm.
"""

from __future__ import annotations

from typing import Any

import pytest
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, fail, succeed

from service.wamp.client import TOPIC, Departures


class Session:
    """A session whose router grants a subscription, or not."""

    def __init__(self, answer: Deferred[Any]) -> None:
        self.answer = answer
        self.topics: list[str] = []
        self.handler: Any = None

    def subscribe(self, handler: Any, topic: str, options: Any) -> Deferred[Any]:
        """Record the subscription."""
        self.handler = handler
        self.topics.append(topic)
        return self.answer


def joined(answer: Deferred[Any], gone: list[int]) -> Session:
    """Let Departures join a session; return the session."""
    session = Session(answer)
    done = Deferred.fromCoroutine(Departures(gone.append).joined(session, None))  # type: ignore[arg-type]
    done.addErrback(lambda failure: pytest.fail(str(failure)))
    assert done.called
    return session


def test_departures_of_sessions_are_passed_on_once_in_order() -> None:
    """Values that are no ids are ignored."""
    gone: list[int] = []
    session = joined(succeed(None), gone)
    assert session.topics == [TOPIC]
    for args in ([7], [8, "authid", "role"], [], ["9"], [None], [10]):
        session.handler(args, {}, None)
    assert gone == [7, 8, 10]


def test_router_without_departure_events_is_accepted() -> None:
    """The service joins nevertheless."""
    gone: list[int] = []
    joined(fail(ApplicationError(ApplicationError.NOT_AUTHORIZED)), gone)
    assert gone == []
