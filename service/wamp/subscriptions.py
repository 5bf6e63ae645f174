"""
The subscriptions of clients, as far as the router reports them.

Events without subscribers are not published, so a wrong answer must err towards "subscribed", and no event of
the router alone is taken as the end of a subscription: when a session is lost, Crossbar reports the wrong
subscription, or none (its issues 1669 and 2084). And Crossbar's list of subscriptions lacks those with
wildcards. So the remaining subscriptions are queried again, one by one if need be.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import SessionDetails, SubscribeOptions
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from service.errors import in_line
from service.waiting import cancel_timer
from service.wamp.backpressure import PROBE, shielded
from service.wamp.client import SessionObserver
from service.wamp.session import DETAILS, SafeSession

log = Logger()

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
