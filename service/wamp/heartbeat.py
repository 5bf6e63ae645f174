"""
Heartbeats to a router that runs `router/component`, which drops a service that sends none any more.

The socket of a stopped process stays open, so the router would keep giving it calls, which would hang.
"""

from __future__ import annotations

from typing import Any

from autobahn.wamp.types import SessionDetails
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from service.wamp.client import SessionObserver
from service.wamp.session import SafeSession

EVERY = 1.0
"""Seconds between two heartbeats; the router drops a service after several have failed to come."""


class Heartbeat(SessionObserver):
    """
    Calls a procedure of the router periodically, as long as a session is open.

    Args:
        reactor: Runs timers.
        uri: The router's procedure. If a call fails, it is not repeated in that session: the router does
            not run the component.
    """

    def __init__(self, reactor: IReactorTime, uri: str) -> None:
        self._reactor = reactor
        self._uri = uri
        self._next: IDelayedCall | None = None

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Send the first heartbeat."""
        self._beat(session)

    # Not stopped in `leaving`: while the service drains, running calls still have to be answered.
    def left(self) -> None:
        """Send no more heartbeats."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _beat(self, session: SafeSession) -> None:
        self._next = None
        session.call(self._uri).addCallbacks(self._later, lambda _: None, callbackArgs=[session])

    def _later(self, answer: Any, session: SafeSession) -> None:
        if not session.lost:
            self._next = self._reactor.callLater(EVERY, self._beat, session)
