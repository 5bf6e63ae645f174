"""
What lives in a session: the calls, the publisher.
"""

from __future__ import annotations

from typing import Protocol

from autobahn.wamp.types import SessionDetails

from service.wamp.session import SafeSession


class Guest(Protocol):
    """What lives in a session."""

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Begin: register, subscribe. An error ends the session, to be tried again."""

    def displaced(self, registration: int) -> None:
        """Take note that the router gave this registration to another session."""

    async def leaving(self) -> None:
        """Come to an end while the session still stands."""

    def left(self) -> None:
        """Give up what cannot be answered any more; the session is gone."""
