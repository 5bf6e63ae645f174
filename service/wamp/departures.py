"""
Who has left the realm, as the router tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import SessionDetails, SubscribeOptions
from twisted.logger import Logger

from service.wamp.session import DETAILS, SafeSession

log = Logger()

TOPIC = "wamp.session.on_leave"


class Departures:
    """
    Passes on the ids of sessions that are gone.

    A router that does not let us hear of them is no hindrance: what they have begun then ends
    when it has lain idle for long enough.

    Args:
        departed: Called with each id.
    """

    def __init__(self, departed: Callable[[int], None]) -> None:
        self._departed = departed

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Subscribe."""
        try:
            await session.subscribe(self._heard, TOPIC, SubscribeOptions(details_arg=DETAILS))
        except ApplicationError as error:
            log.info("the router does not tell who leaves: {error}", error=error.error)

    def displaced(self, registration: int) -> None:
        """Hold nothing."""

    async def leaving(self) -> None:
        """Hold nothing."""

    def left(self) -> None:
        """Hold nothing."""

    def _heard(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: Any) -> None:
        if args and isinstance(args[0], int):
            self._departed(args[0])
