"""
Events to the router, each acknowledged.

What is sent is published when the router says so. Where it goes away, or is not there, publishing
goes on at the next one with the first event that was not acknowledged: an event may come twice, and
none is left out.
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
from service.wamp.backpressure import kept
from service.wamp.client import SessionObserver
from service.wamp.session import SafeSession

log = Logger()

UNACKNOWLEDGED = 128
"""Events that are on their way at once."""

PATIENCE = 10.0
"""Seconds without an acknowledgement of what is on its way after which a router is taken to hang."""

NOT_RESTRICTED = "rowcast.error.subscriber_lists_not_supported"
"""Stands in the log for a router that cannot keep an event from some of the subscribers."""


class Publisher(SessionObserver):
    """
    Publishes by whatever session there is.

    Args:
        clock: For how long a router takes.

    Attributes:
        published: Events that a router has acknowledged.
        refused: Events that one did not take.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # Acknowledgements that the router owes, and when it had sent one, or owed none, last.
        self._owed, self._heard = 0, 0.0
        self._session: SafeSession | None = None
        self._waiting: list[Deferred[None]] = []
        self._told: set[str] = set()
        self.published = self.refused = 0

    @property
    def able(self) -> bool:
        """
        Whether there is a session to publish by, whose router answers.

        One that hangs does so until it answers after all, or its session is lost; whoever waits for
        it is to be cancelled, so that another process may publish by another router.
        """
        hangs = self._owed > 0 and self._clock.seconds() >= self._heard + PATIENCE
        return self._session is not None and not self._lost(self._session) and not hangs

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Publish by this session."""
        self._session, self._owed = session, 0
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def left(self) -> None:
        """Wait for the next session."""
        self._session = None
        self._told.clear()

    async def send(self, publications: Sequence[Publication]) -> None:
        """Publish events in their order; done when each is acknowledged, by whatever router."""
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
        # By one that is lost nothing leaves, and nobody learns of the next while this is tried again.
        while self._session is None or self._lost(self._session):
            there: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(there)
            await there
        return self._session

    def _lost(self, session: SafeSession) -> bool:
        return session.lost or session is not self._session

    async def _send(self, session: SafeSession, rest: deque[Publication]) -> None:
        """
        Publish by one session, as fast as it takes them; what was acknowledged leaves `rest`.

        Raises:
            Exception: The session was lost; `rest` begins with what may not have been published.
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
            for each in sent:  # nobody waits for them any more
                each.addErrback(lambda _: None)

    def _publish(self, session: SafeSession, publication: Publication) -> Deferred[Any]:
        audience = publication.audience
        if audience != Audience() and not session.can_restrict:
            # A router that does not know the lists would give it to everybody.
            return fail(ApplicationError(NOT_RESTRICTED))
        options = PublishOptions(
            acknowledge=True,
            # Never an empty list, which Crossbar takes for no list.
            eligible_authrole=list(audience.eligible) or None,
            exclude_authrole=list(audience.excluded) or None,
        )
        try:
            asked = session.publish(publication.topic, publication.event, options=options)
        except Exception as error:
            # Not encoded, or too large: `_acknowledged` tells it apart from a session that was lost.
            return fail(error)
        if not self._owed:
            self._heard = self._clock.seconds()
        self._owed += 1
        # autobahn waits for the acknowledgement and knows nothing of a Deferred that was cancelled.
        return kept(asked.addBoth(self._answered, session))

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
            # Sent again, it would be refused again, and nothing after it would leave.
            self.refused += 1
            why = error.error if isinstance(error, ApplicationError) else type(error).__name__
            if why not in self._told:
                self._told.add(why)
                log.error(
                    "the router does not take events: {error} ({topic})",
                    error=in_line(why),
                    topic=in_line(publication.topic),
                )
        else:
            self.published += 1
