"""
Events: which topics have subscribers, as far as the router reports them, and publishing with acknowledgement.

An event counts as published when the router has acknowledged it. If the session is lost, publishing
continues in the next session with the first event that was not acknowledged. So subscribers may receive an
event twice, but miss none.

Events without subscribers are not published, so a wrong answer must err towards "subscribed", and no event of
the router alone is taken as the end of a subscription: when a session is lost, Crossbar reports the wrong
subscription, or none (its issues 1669 and 2084). And Crossbar's list of subscriptions lacks those with
wildcards. So the remaining subscriptions are queried again, one by one if need be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import PublishOptions, SessionDetails, SubscribeOptions
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from service.errors import in_line
from service.payload import Audience, Publication
from service.waiting import Waiters, cancel_timer
from service.wamp.backpressure import PROBE, shielded
from service.wamp.client import SessionObserver
from service.wamp.session import DETAILS, SafeSession

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


META = "wamp.subscription"
GONE = ("wamp.error.no_such_subscription", "wamp.error.no_such_session")
BEGINS = ("on_create", "on_subscribe")
ENDS = ("on_unsubscribe", "on_delete")

SETTLE = 1.0
"""Seconds from the end of a subscription until the remaining ones are queried."""
EVERY = 30.0
"""Maximum seconds between two such queries."""
AT_ONCE = 100
"""Number of subscriptions that are queried concurrently."""


def concerns(uri: str, match: str, head: str) -> bool:
    """
    Return whether a subscription may match a topic that begins with `head`.

    Args:
        uri: URI of the subscription.
        match: Match policy: "exact", "prefix" or "wildcard".
        head: Beginning of topics: complete components, without the dot after the last.
    """
    if match == "wildcard":
        wanted = head.split(".")
        pattern = uri.split(".")[: len(wanted)]
        return len(pattern) == len(wanted) and all(
            part in ("", component) for part, component in zip(pattern, wanted, strict=True)
        )
    below = f"{head}."
    return uri.startswith(below) or (match == "prefix" and below.startswith(uri))


class Subscriptions(SessionObserver):
    """
    Tracks the subscriptions at the router.

    Args:
        reactor: Runs timers.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._session: SafeSession | None = None
        self._known: dict[int, tuple[str, str]] = {}
        self._recent: set[int] = set()
        self._wanted: dict[str, bool] = {}
        self._complete = self._doubt = False
        self._asking: Deferred[None] | None = None
        self._later: IDelayedCall | None = None

    def wanted(self, head: str) -> bool:
        """Return whether topics that begin with `head` may have subscribers; if unsure, True."""
        if not self._complete:
            return True
        found = self._wanted.get(head)
        if found is None:
            found = any(concerns(*each, head) for each in self._known.values())
            self._wanted[head] = found
        return found

    async def wanted_of(self, heads: Collection[str]) -> Collection[str]:
        """
        Return those heads whose topics may have subscribers.

        No subscription is missed that the router had confirmed to a client before this was called.
        """
        found = [head for head in heads if self.wanted(head)]
        session = self._session
        if len(found) == len(heads) or session is None:
            return heads if session is None else found
        # The router reports a subscription right after it has confirmed it, and in order with its other
        # messages: when this call is answered, all reports of earlier subscriptions have arrived.
        with suppress(ApplicationError):
            await shielded(session.call(PROBE))
        return [head for head in heads if self.wanted(head)]

    async def registered(self, uri: str) -> bool | None:
        """Return whether the router has a registration of that URI; None if it does not say."""
        if self._session is None:
            return None
        try:
            return await shielded(self._session.call("wamp.registration.lookup", uri)) is not None
        except ApplicationError:
            return None

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Subscribe to the router's reports, and query the present subscriptions."""
        self._session = session
        options = SubscribeOptions(details_arg=DETAILS)
        try:
            for name in BEGINS:
                await session.subscribe(self._began, f"{META}.{name}", options)
            for name in ENDS:
                await session.subscribe(self._ended, f"{META}.{name}", options)
        except ApplicationError as error:
            if session.lost:
                raise
            log.info(
                "the router does not report who subscribes, so all changes are published: {error}",
                error=in_line(error.error),
            )
        else:
            self._ask()

    def left(self) -> None:
        """Forget all subscriptions: the next router has others."""
        self._session = None
        self._complete = False
        self._known.clear()
        self._wanted.clear()
        cancel_timer(self._later)

    def _began(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: Any) -> None:
        found = args[1] if len(args) > 1 else None
        if isinstance(found, Mapping):
            self._add(found)
        elif found not in self._known:
            # The report of its creation was missed.
            self._complete, self._doubt = False, True
            self._ask()

    def _ended(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: Any) -> None:
        self._ask_later(SETTLE)

    def _add(self, found: Mapping[str, Any]) -> None:
        id, uri, match = found["id"], str(found["uri"]), str(found.get("match", "exact"))
        self._known[id] = uri, match
        self._recent.add(id)
        for head, wanted in self._wanted.items():
            if not wanted and concerns(uri, match, head):
                self._wanted[head] = True

    def _ask_later(self, seconds: float) -> None:
        if self._session is None:
            return
        due = self._reactor.seconds() + seconds
        if self._later is not None and self._later.active() and self._later.getTime() <= due:
            return
        cancel_timer(self._later)
        self._later = self._reactor.callLater(seconds, self._ask)

    def _ask(self) -> None:
        """Query all subscriptions; if a query is running, again after it."""
        session = self._session
        if session is None:
            return
        if self._asking is not None:
            self._ask_later(SETTLE)
            return

        def asked(result: Any) -> None:
            self._asking = None
            if session is self._session:
                self._ask_later(EVERY)

        self._asking = Deferred.fromCoroutine(self._resync(session))
        self._asking.addErrback(
            lambda why: None if session.lost else log.failure("cannot ask for subscriptions", why)
        )
        self._asking.addBoth(asked)

    async def _resync(self, session: SafeSession) -> None:
        # A subscription that is created from here on may be reported before the answers, which lack it.
        self._recent.clear()
        self._doubt = False
        wildcards = {id for id, (_, match) in self._known.items() if match == "wildcard"}
        ids = await self._listed(session)
        gone = self._known.keys() - ids - wildcards
        # Listed ones that are not known, and known wildcards, which the list lacks.
        asked = sorted((ids - self._known.keys()) | (wildcards - ids))
        found = await self._each(asked, lambda id: self._get(session, id))
        if session is not self._session:
            return
        gone |= {id for id, there in zip(asked, found, strict=True) if not there}
        for id in gone - self._recent:
            self._known.pop(id, None)
        self._wanted.clear()
        self._complete = not self._doubt

    async def _listed(self, session: SafeSession) -> set[int]:
        """Return the ids of subscriptions that the router lists; with wildcards only for the first query."""
        listed = await shielded(session.call(f"{META}.list"))
        ids = {id for each in listed.values() for id in each}
        if self._complete:
            return ids

        # Crossbar's list of all subscriptions lacks wildcards, but its lists of single sessions have them.
        async def of(one: int) -> Any:
            return await self._unless_gone(session, f"{META}.list", one)

        sessions = await shielded(session.call("wamp.session.list"))
        for each in await self._each(sessions, of):
            ids |= set((each or {}).get("wildcard", ()))
        return ids

    async def _each(
        self, items: Sequence[int], ask: Callable[[int], Coroutine[Any, Any, Any]]
    ) -> list[Any]:
        found: list[Any] = []
        for at in range(0, len(items), AT_ONCE):
            asking = [Deferred.fromCoroutine(ask(each)) for each in items[at : at + AT_ONCE]]
            found += await gatherResults(asking, consumeErrors=True)
        return found

    async def _get(self, session: SafeSession, id: int) -> bool:
        """Query the URI of a subscription; return whether it exists."""
        found = await self._unless_gone(session, f"{META}.get", id)
        if found is not None and session is self._session and id not in self._known:
            self._add(found)
        return found is not None

    async def _unless_gone(self, session: SafeSession, procedure: str, id: int) -> Any:
        try:
            return await shielded(session.call(procedure, id))
        except ApplicationError as error:
            if session.lost or error.error not in GONE:
                raise
            return None
