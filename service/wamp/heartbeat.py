"""
Signs of life for a router with our component, which drops a service that gives none any more.

A process that is stopped keeps its socket, and the calls that it is dealt.
"""

from __future__ import annotations

from typing import Any

from autobahn.wamp.types import SessionDetails
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from service.wamp.client import SessionObserver
from service.wamp.session import SafeSession

EVERY = 1.0
"""Seconds between two signs; the router waits for several."""


class Heartbeat(SessionObserver):
    """
    Calls the router, again and again, as long as a session stands.

    Args:
        reactor: For the pauses.
        uri: The router's procedure. One that is refused once is not called again in that session: the
            router has no such procedure, and misses nothing.
    """

    def __init__(self, reactor: IReactorTime, uri: str) -> None:
        self._reactor = reactor
        self._uri = uri
        self._next: IDelayedCall | None = None

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Call for the first time."""
        self._beat(session)

    # Nothing stops it when the session begins to leave: calls that run are still answered.
    def left(self) -> None:
        """Call no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _beat(self, session: SafeSession) -> None:
        self._next = None
        session.call(self._uri).addCallbacks(self._later, lambda _: None, callbackArgs=[session])

    def _later(self, answer: Any, session: SafeSession) -> None:
        if not session.lost:
            self._next = self._reactor.callLater(EVERY, self._beat, session)
