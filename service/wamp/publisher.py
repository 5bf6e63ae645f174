"""
The publisher: sends events to the router, each with acknowledgement.

An event counts as published when the router has acknowledged it. If the session is lost, publishing
continues in the next session with the first event that was not acknowledged. So subscribers may receive an
event twice, but miss none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import PublishOptions, SessionDetails
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from service.errors import in_line
from service.payload import Audience, Publication
from service.waiting import Waiters
from service.wamp.backpressure import shielded
from service.wamp.client import SessionObserver
from service.wamp.session import SafeSession

log = Logger()

UNACKNOWLEDGED = 128
"""Maximum number of events that were sent and not acknowledged yet."""

ACK_TIMEOUT = 10.0
"""Seconds without an acknowledgement, while some are owed, after which the router counts as hanging."""

NO_SUBSCRIBER_LISTS = "rowcast.error.subscriber_lists_not_supported"
"""Error, for the log only: the router does not support subscriber_blackwhite_listing."""


class Publisher(SessionObserver):
    """
    Publishes in the current session, or in the next one if there is none.

    Args:
        clock: Measures how long the router takes to acknowledge.

    Attributes:
        published: Number of events that a router has acknowledged.
        refused: Number of events that a router has refused.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # Number of acknowledgements that the router owes, and the last time that it sent one or owed none.
        self._owed, self._heard = 0, 0.0
        self._session: SafeSession | None = None
        self._waiting = Waiters()
        self._logged: set[str] = set()
        self.published = self.refused = 0

    @property
    def can_publish(self) -> bool:
        """
        Whether there is a session to publish in, whose router answers.

        A router counts as hanging until it answers again, or the session is lost. The feed then cancels
        its call of `send`, so that another process may publish at another router.
        """
        hangs = self._owed > 0 and self._clock.seconds() >= self._heard + ACK_TIMEOUT
        return self._session is not None and not self._lost(self._session) and not hangs

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Publish in this session from now on."""
        self._session, self._owed = session, 0
        self._waiting.fire()

    def left(self) -> None:
        """Wait for the next session."""
        self._session = None
        self._logged.clear()

    async def send(self, publications: Sequence[Publication]) -> None:
        """Publish events in order; return when each was acknowledged, by this router or a later one."""
        rest = deque(publications)
        while rest:
            session = await self._joined()
            try:
                await self._send(session, rest)
            except CancelledError:
                raise
            except Exception:
                if not self._lost(session):
                    raise

    async def _joined(self) -> SafeSession:
        # A lost session may not have left yet. To try it again at once would never return to the
        # reactor, which has to deliver the next session: the service would hang.
        while self._session is None or self._lost(self._session):
            await self._waiting.wait()
        return self._session

    def _lost(self, session: SafeSession) -> bool:
        return session.lost or session is not self._session

    async def _send(self, session: SafeSession, rest: deque[Publication]) -> None:
        """
        Publish in one session, with back-pressure; remove what was acknowledged from `rest`.

        Raises:
            Exception: The session was lost; `rest` starts with the first event that was not acknowledged.
        """
        sent: deque[Deferred[Any]] = deque()
        try:
            with session.outflow() as outflow:
                while rest:
                    while len(sent) < min(len(rest), UNACKNOWLEDGED):
                        await outflow.drained()
                        sent.append(self._publish(session, rest[len(sent)]))
                    await self._acknowledged(session, sent[0], rest[0])
                    sent.popleft()
                    rest.popleft()
        finally:
            for each in sent:  # else Twisted logs each as an unhandled error
                each.addErrback(lambda _: None)

    def _publish(self, session: SafeSession, publication: Publication) -> Deferred[Any]:
        audience = publication.audience
        if audience != Audience() and not session.can_restrict:
            # A router that ignores the lists would send the event to all subscribers.
            return fail(ApplicationError(NO_SUBSCRIBER_LISTS))
        options = PublishOptions(
            acknowledge=True,
            # Never an empty list: Crossbar treats it as no list, and so sends the event to everybody.
            eligible_authrole=list(audience.eligible) or None,
            exclude_authrole=list(audience.excluded) or None,
        )
        try:
            asked = session.publish(publication.topic, publication.event, options=options)
        except Exception as error:
            # Encoding failed, the event is too large, or the session is lost; `_acknowledged` decides.
            return fail(error)
        if not self._owed:
            self._heard = self._clock.seconds()
        self._owed += 1
        # Cancelling what is returned must not cancel autobahn's Deferred, which still gets its reply.
        return shielded(asked.addBoth(self._answered, session))

    def _answered(self, result: Any, session: SafeSession) -> Any:
        if session is self._session:
            self._owed -= 1
            self._heard = self._clock.seconds()
        return result

    async def _acknowledged(
        self, session: SafeSession, acknowledgement: Deferred[Any], publication: Publication
    ) -> None:
        try:
            await acknowledgement
        except CancelledError:
            raise
        except Exception as error:
            if self._lost(session):
                raise
            # Dropped, not sent again: it would be refused again, and block all events after it.
            self.refused += 1
            why = error.error if isinstance(error, ApplicationError) else type(error).__name__
            if why not in self._logged:
                self._logged.add(why)
                log.error(
                    "the router refuses events: {error} ({topic})",
                    error=in_line(why),
                    topic=in_line(publication.topic),
                )
        else:
            self.published += 1
