"""
A WAMP session that no single message can end.

What stock autobahn does with each of these, and what this session does, is tested message by
message in `tests/wamp/test_session.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from typing import Any

from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import Challenge, CloseDetails, ComponentConfig, SessionDetails
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from service.errors import InvalidArgument, NotAuthorized, ServiceError
from service.wamp.login import Login
from service.wamp.outflow import Outflow
from service.wamp.refusals import refusal
from service.wamp.serializer import Scale, Undecodable, error_of
from service.wamp.uris import CANNOT_AUTHENTICATE

events = Logger()

Full = Callable[[int | None, int], ServiceError | None]
"""Called with a caller's session and the bytes of its call."""

DETAILS = "details"
"""The keyword under which an endpoint gets the call's details, after `args` and `kwargs`."""


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
        scale: What the messages of its connection weigh.

    Attributes:
        full: Asked whether a call may come in; what it returns is the refusal.
    """

    def __init__(
        self,
        realm: str,
        login: Login,
        joined: Callable[[SafeSession, SessionDetails], Awaitable[None]],
        displaced: Callable[[int], None],
        links: Container[str] = (),
        scale: Scale | None = None,
    ) -> None:
        super().__init__(ComponentConfig(realm))
        self.log.set_log_level("error")  # what a session goes through is logged by its client
        self._login = login
        self._joined = joined
        self._displaced = displaced
        self.scale = scale or Scale()
        self.full: Full = lambda caller, size: None
        self._links = links
        self._open: Any = None
        self._outflow: Outflow | None = None
        self.closing: CloseDetails | None = None

    @property
    def lost(self) -> bool:
        """Whether there is nobody left to answer."""
        return self._open is None

    def outflow(self) -> Outflow:
        """Give the outflow of the connection, for who sends much."""
        if self._outflow is None:
            self._outflow = Outflow(self._open.transport)
        return self._outflow

    def onOpen(self, transport: Any) -> None:
        """Keep the transport, to answer by it what autobahn would not."""
        self._open = transport
        super().onOpen(transport)

    def onConnect(self) -> None:
        """Say hello, or close if we cannot say who we are."""
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
        """Prove who we are."""
        return self._login.answer(challenge)

    def onJoin(self, details: SessionDetails) -> Any:
        """Hand the session on."""
        return Deferred.fromCoroutine(self._joined(self, details))  # type: ignore[arg-type]

    def onMessage(self, msg: Any) -> None:
        """Take a message, or answer in autobahn's place."""
        if isinstance(msg, Undecodable):
            self._refuse(msg.request, InvalidArgument(f"undecodable arguments: {msg.reason}"))
            return
        if isinstance(msg, (message.Invocation, message.Event)):
            problem = self._problem(msg)
            if problem is None and isinstance(msg, message.Invocation):
                problem = self.full(msg.caller, self.scale.received)
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
        """Keep why; pending requests fail and the transport closes."""
        self.closing = details
        return super().onLeave(details)

    def onClose(self, wasClean: bool) -> None:
        """Forget the transport first, so that nothing answers by it any more."""
        self._open = None
        super().onClose(wasClean)

    def onUserError(self, fail: Any, msg: str) -> None:
        """Log what is not a refusal; those are logged, or need no log, where they are made."""
        if not isinstance(fail.value, ApplicationError):
            events.failure("in a session: {text}", fail, text=msg)

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
        self._open.send(error_of(request, refusal(problem, "decoding")))
