"""
A WAMP session that no single message can end, and what lives in it.

What stock autobahn does with each of these, and what this session does, is tested message by
message in `tests/wamp/test_session.py`.

WAMP has no backpressure. The only sign of a router that is behind is our own socket: Twisted
pauses a producer when its buffer is full, and resumes it when everything has been handed to
the kernel.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import (
    Challenge,
    CloseDetails,
    ComponentConfig,
    SessionDetails,
    SubscribeOptions,
)
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from service.cancellation import CooperativeDeferred
from service.errors import InvalidArgument, NotAuthorized, ServiceError, in_line
from service.wamp.auth import Login
from service.wamp.errors import CANNOT_AUTHENTICATE, application_error
from service.wamp.serializer import MessageSizes, Undecodable, error_of

log = Logger()

Full = Callable[[int | None, int], ServiceError | None]
"""Called with a caller's session and the bytes of its call."""

DETAILS = "details"
"""The keyword under which an endpoint gets the call's details, after `args` and `kwargs`."""

TOPIC = "wamp.session.on_leave"


class SafeSession(ApplicationSession):
    """
    Our side of one session.

    Endpoints and handlers are called as `f(args, kwargs, details)`: spread into keyword
    arguments, a caller's `{"self": 1}`, `{"fun": 1}` or `{1: 2}` would break autobahn's own
    calls and with them the connection.

    Args:
        realm: Which to join.
        login: How to say who we are.
        joined: Called when the session stands; what it returns is not waited for.
        displaced: Called with the id of a registration that the router gave to another.
        links: Authroles of the sessions that may say for whom they call.
        sizes: What the messages of its connection weigh.

    Attributes:
        full: Asked whether a call may come in; what it returns is the refusal.
        refused: Called with the session whose call was refused so.
    """

    def __init__(
        self,
        realm: str,
        login: Login,
        joined: Callable[[SafeSession, SessionDetails], Awaitable[None]],
        displaced: Callable[[int], None],
        links: Container[str] = (),
        sizes: MessageSizes | None = None,
    ) -> None:
        super().__init__(ComponentConfig(realm))
        self.log.set_log_level("error")  # what a session goes through is logged by its client
        self._login = login
        self._joined = joined
        self._displaced = displaced
        self.sizes = sizes or MessageSizes()
        self.full: Full = lambda caller, size: None
        self.refused: Callable[[int | None], None] = lambda caller: None
        self._links = links
        self._open: Any = None
        self._outflow: Outflow | None = None
        self.closing: CloseDetails | None = None

    @property
    def lost(self) -> bool:
        """Return whether the connection is gone, and answers with it."""
        return self._open is None

    def outflow(self) -> Outflow:
        """Return the producer of the connection, for calls that send much."""
        if self._outflow is None:
            self._outflow = Outflow(self._open.transport)
        return self._outflow

    def call_through(self, uri: str, *args: Any) -> Deferred[Any]:
        """
        Call, and be answered as the call ended even if it is cancelled: CANCEL in mode "kill".

        autobahn sends none of a mode, and takes the call for cancelled at once.
        """
        self.sizes.weigh = lambda size: None  # no answer of ours to anybody
        asked = self.call(uri, *args)
        # autobahn does not return the id that it gave the request: it is the last in its table.
        requests = [next(reversed(self._call_reqs))]

        def cancel() -> None:
            if requests and self._open is not None:  # once, however often it is asked for
                self._open.send(message.Cancel(requests.pop(), message.Cancel.KILL))

        answer = CooperativeDeferred()
        answer.request = cancel
        asked.addCallbacks(answer.callback, answer.errback)
        return answer

    def onOpen(self, transport: Any) -> None:
        """Keep the transport, to answer by it what autobahn would not."""
        self._open = transport
        super().onOpen(transport)

    def onConnect(self) -> None:
        """Send HELLO, or close if there are no usable credentials."""
        login = self._login
        try:
            extra = login.extra()
        except Exception as error:
            self.closing = CloseDetails(CANNOT_AUTHENTICATE, f"{login.method}: {error}")
            self.disconnect()
            return
        self.join(
            self.config.realm, authmethods=[login.method], authid=login.authid, authextra=extra
        )

    def onChallenge(self, challenge: Challenge) -> str:
        """Answer the router's challenge."""
        return self._login.answer(challenge)

    def onJoin(self, details: SessionDetails) -> Any:
        """Call `joined` with the session."""
        return Deferred.fromCoroutine(self._joined(self, details))  # type: ignore[arg-type]

    def onMessage(self, msg: Any) -> None:
        """Handle a message, or answer it in autobahn's place."""
        if isinstance(msg, Undecodable):
            self._refuse(msg.request, InvalidArgument(f"undecodable arguments: {msg.reason}"))
            return
        if isinstance(msg, (message.Invocation, message.Event)):
            problem = self._problem(msg) if msg.forward_for or msg.payload is not None else None
            if problem is None and isinstance(msg, message.Invocation):
                problem = self.full(msg.caller, self.sizes.received)
                if problem is not None:
                    self.refused(msg.caller)
            if problem is not None:
                if isinstance(msg, message.Invocation):
                    self._refuse(msg.request, problem)
                return
            msg.args = [msg.args or [], msg.kwargs or {}]
            msg.kwargs = None
        elif isinstance(msg, message.Unregistered) and not msg.request:
            self._displaced(msg.registration)
        super().onMessage(msg)

    def onLeave(self, details: CloseDetails) -> Any:
        """Keep the reason; pending requests fail and the transport closes."""
        self.closing = details
        return super().onLeave(details)

    def onClose(self, wasClean: bool) -> None:
        """Forget the transport first, so that nothing answers by it any more."""
        self._open = None
        super().onClose(wasClean)

    def onUserError(self, fail: Any, msg: str) -> None:
        """Log what is not a refusal; those are logged, or need no log, where they are made."""
        if not isinstance(fail.value, ApplicationError):
            log.failure("in a session: {text}", fail, text=msg)

    def _problem(self, msg: Any) -> ServiceError | None:
        # A CALL's `forward_for` is its sender's own word; the router takes the first entry for the
        # caller, and adds the true session at the end. So all that follow the first must be links.
        hops = msg.forward_for
        if hops and any(hop.get("authrole") not in self._links for hop in hops[1:] or [{}]):
            return NotAuthorized(
                "this session may not call for others",
                hint="leave forward_for out; ROWCAST_ROUTER_LINKS names the roles that may",
            )
        return None if msg.payload is None else InvalidArgument("opaque arguments are not served")

    def _refuse(self, request: int, problem: ServiceError) -> None:
        self._open.send(error_of(request, application_error(problem, "decoding")))


class SessionObserver(Protocol):
    """What is called as a session joins and leaves: it registers, subscribes, cleans up."""

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Register, subscribe. An error ends the session, to be tried again."""

    def displaced(self, registration: int) -> None:
        """Forget a registration that the router gave to another session."""

    async def leaving(self) -> None:
        """Finish while the session is still joined."""

    def left(self) -> None:
        """Cancel what cannot be answered any more; the session is gone."""


class Departures:
    """
    Passes on the ids of sessions that are gone.

    Where the router does not allow the subscription, what they have begun ends when it has been
    idle for long enough.

    Args:
        departed: Called with each id, and with None when the router is: all are gone then.
    """

    def __init__(self, departed: Callable[[int | None], None]) -> None:
        self._departed = departed

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Subscribe to the router's topic."""
        try:
            await session.subscribe(self._heard, TOPIC, SubscribeOptions(details_arg=DETAILS))
        except ApplicationError as error:
            log.info("the router does not tell who leaves: {error}", error=in_line(error.error))

    def displaced(self, registration: int) -> None:
        """Do nothing."""

    async def leaving(self) -> None:
        """Do nothing."""

    def left(self) -> None:
        """Pass on that all are gone."""
        self._departed(None)

    def _heard(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: Any) -> None:
        if args and isinstance(args[0], int):
            self._departed(args[0])


@implementer(IPushProducer)
class Outflow:
    """
    The producer of one connection, registered while a call sends parts: use it with `with`.

    A connection with a paused producer would not close, so it has none at other times.

    Args:
        transport: Of the connection.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._users = 0
        self._paused = False
        self._waiting: list[Deferred[None]] = []

    def __enter__(self) -> Outflow:
        self._users += 1
        if self._users == 1:
            self._transport.registerProducer(self, True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._users -= 1
        if not self._users:
            # Twisted resumes no producer that it no longer knows: what waits is let go by us.
            self._transport.unregisterProducer()
            self.resumeProducing()

    def drained(self) -> Deferred[None]:
        """Return a Deferred that fires when more may be sent; it can be cancelled."""
        done: Deferred[None] = Deferred(self._waiting_no_more)
        if self._paused:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """Record that the buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Fire what waits for the buffer."""
        self._paused = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def stopProducing(self) -> None:
        """Fire what waits: it finds that the connection is lost."""
        self.resumeProducing()

    def _waiting_no_more(self, done: Deferred[None]) -> None:
        if done in self._waiting:
            self._waiting.remove(done)
