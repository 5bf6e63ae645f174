"""
The WAMP client: keeps the service joined to one of its routers, and reconnects when the session is lost.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from autobahn.exception import Disconnected
from autobahn.twisted.rawsocket import WampRawSocketClientFactory, WampRawSocketClientProtocol
from autobahn.twisted.websocket import WampWebSocketClientFactory, WampWebSocketClientProtocol
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import SessionDetails, SubscribeOptions
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IProtocolFactory,
    IReactorCore,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from service.errors import in_line
from service.settings import Address
from service.waiting import Waiters, cancel_timer
from service.wamp import tls
from service.wamp.application_errors import application_error
from service.wamp.auth import Anonymous, Login
from service.wamp.session import DETAILS, MessageSizes, SafeSerializer, SafeSession

log = Logger()

CONNECT_TIMEOUT = 10
"""Timeout in seconds of each step of a connection: connecting, handshake, login."""

TLS = "TLS handshake"

PING_EVERY, PING_WITHIN = 20, 10
"""Seconds between pings, and until a pong is due; below the 55 s after which Heroku cuts idle connections."""

HEARTBEAT = 1.0
"""Seconds between two heartbeats; the router drops a service after several have failed to come."""

LEAVE_TIMEOUT = 2.0
"""Seconds to wait for the router's GOODBYE."""

TOPIC = "wamp.session.on_leave"


class SessionObserver:
    """Base class for what is notified when a session joins and leaves; its methods do nothing."""

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Register and subscribe in a new session. An error ends the session, and the client reconnects."""

    def displaced(self, registration: int) -> None:
        """Forget a registration that another session has taken over."""

    async def leaving(self) -> None:
        """Finish work before the session leaves the realm."""

    def left(self) -> None:
        """Cancel what cannot be answered any more, because the session is gone."""


class Departures(SessionObserver):
    """
    Reports the sessions that leave the router.

    If the router does not allow the subscription, what those sessions hold (such as transactions) ends by
    its idle timeout.

    Args:
        departed: Called with the id of each session that left, and with None when the connection to the
            router is lost, which counts as the end of all sessions.
    """

    def __init__(self, departed: Callable[[int | None], None]) -> None:
        self._departed = departed

    async def joined(self, session: SafeSession, details: SessionDetails) -> None:
        """Subscribe to the router's topic."""
        try:
            await session.subscribe(self._heard, TOPIC, SubscribeOptions(details_arg=DETAILS))
        except ApplicationError as error:
            if session.lost:
                raise
            log.info("the router does not report who leaves: {error}", error=in_line(error.error))

    def left(self) -> None:
        """Report that all sessions are gone."""
        self._departed(None)

    def _heard(self, args: Sequence[Any], kwargs: Mapping[str, Any], details: Any) -> None:
        if args and isinstance(args[0], int):
            self._departed(args[0])


class Heartbeat(SessionObserver):
    """
    Calls a procedure of `router/component`, which drops a service that has stopped calling it.

    The socket of a stopped process stays open, so the router would keep giving it calls, which would hang.

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
            self._next = self._reactor.callLater(HEARTBEAT, self._beat, session)


@dataclass(frozen=True)
class WampConfig:
    """
    Configuration of a client.

    Args:
        urls: URLs of the routers, in order of preference.
        realm: Realm to join.
        login: Authentication method and credentials.
        max_bytes: Maximum size of an answer in bytes.
        first_delay: Seconds between two rounds of attempts while no router can be reached, and before
            the second attempt at a router that refuses the session.
        max_delay: Maximum seconds between two rounds; a session that lasted as long resets the delay.
        links: Authroles of router links, which may call on behalf of other sessions.
    """

    urls: Sequence[str]
    realm: str
    login: Login = field(default_factory=Anonymous)
    max_bytes: int = 8 * 2**20
    first_delay: float = 0.5
    max_delay: float = 2.0
    links: Container[str] = ()


class WampClient(Service):
    """
    Keeps a session joined from `startService` to `stopService`.

    autobahn's `Component` is not used: if it is stopped while it connects, it retries for ever, and it logs
    each attempt. `joined` is true while a session is open and all observers have joined.

    Args:
        reactor: Opens connections, and runs timers.
        config: Configuration of the client.
        observers: Notified of each session in this order, and of its end in the opposite order.
    """

    def __init__(
        self, reactor: Any, config: WampConfig, observers: Sequence[SessionObserver]
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._observers = observers
        self._routers = [RouterAddress.from_url(url) for url in config.urls]
        self.joined = False
        self._session: SafeSession | None = None
        self._transport: Any = None
        self._late: IDelayedCall | None = None
        self._reason = ""
        self._logged: set[tuple[str, str]] = set()
        self._following: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self._waiting = Waiters()

    def startService(self) -> None:
        """Start to connect."""
        super().startService()
        self._stopping = None
        self._following = Deferred.fromCoroutine(self._follow())

    def stopService(self) -> Deferred[None]:
        """Let the observers finish, leave the realm and close; return a Deferred that fires after that."""
        if self._stopping is None:
            super().stopService()
            self._stopping = Deferred.fromCoroutine(self._stop())
        # A new Deferred for each caller, so that callbacks and cancellation of one do not affect another.
        done: Deferred[None] = Deferred()

        def fire(result: Any) -> Any:
            done.callback(None)
            return result

        self._stopping.addBoth(fire)
        return done

    def when_joined(self) -> Deferred[None]:
        """Return a Deferred that fires when `joined` is true."""
        return succeed(None) if self.joined else self._waiting.wait()

    async def _follow(self) -> None:
        tries = refusals = 0
        refused = False
        while self.running:
            router = self._routers[tries % len(self._routers)]
            began = self._reactor.seconds()
            # The delay grows only while a router can be reached and refuses the session: an attempt at
            # a router that is down costs next to nothing, and all callers wait for its return.
            refused |= await self._attempt(router)
            if not self.running:
                return
            tries += 1
            # A session that was accepted and closed at once counts as refused, else there were no pause.
            if self._reactor.seconds() - began >= self._config.max_delay:
                tries, refusals, refused = 0, 0, False
            # No pause within a round: the next router may be up.
            elif tries % len(self._routers) == 0:
                refusals, refused = refusals + 1 if refused else 0, False
                await deferLater(self._reactor, self._delay(refusals), lambda: None)

    def _delay(self, refusals: int) -> float:
        # The exponent is bounded, or the float would overflow; jitter keeps services from reconnecting
        # at the same time.
        delay = self._config.first_delay * 1.5 ** min(max(refusals - 1, 0), 20)
        return min(delay, self._config.max_delay) * random.uniform(0.7, 1.0)

    async def _attempt(self, router: RouterAddress) -> bool:
        """Connect, wait until the connection is lost, and return whether the router could be reached."""
        self._reason = ""
        self._session = None
        try:
            serializer = SafeSerializer(application_error, self._config.max_bytes)
            make = partial(self._make_session, serializer.sizes)
            factory = router.factory(self._reactor, make, serializer)
            protocol: Any = await router.endpoint(self._reactor).connect(factory)
        except Exception as error:
            if self.running:
                self._log_once(router, _message_of(error))
            return False
        self._transport = protocol.transport
        keep_alive(protocol.transport)
        self._late = self._reactor.callLater(
            CONNECT_TIMEOUT, lambda: self._abort(f"no answer to the {protocol.stage}")
        )
        closed: Deferred[None] = Deferred()
        protocol.is_closed.addBoth(lambda _: None if closed.called else closed.callback(None))
        try:
            await closed
        finally:
            there = self._session is not None
            self._in_time()
            # The wait may also have been cancelled, and the connection still be open.
            self._abort(protocol.why)
            self._ended(router)
        return there

    def _make_session(self, sizes: MessageSizes) -> SafeSession:
        config = self._config
        self._session = SafeSession(
            config.realm, config.login, self._join, self._displaced, config.links, sizes
        )
        return self._session

    async def _join(self, session: SafeSession, details: SessionDetails) -> None:
        self._in_time()
        try:
            for observer in self._observers:
                await observer.joined(session, details)
                # `left` was called already; an observer would keep a session that is gone. The publisher
                # once retried such a session without ever returning to the reactor.
                if session.lost:
                    return
        except Exception as error:
            if not session.lost:
                self._abort(_message_of(error))
            return
        self.joined = True
        self._logged.clear()
        log.info(
            "joined {realm} as {authid} ({authrole}), session {session}",
            realm=details.realm,
            authid=in_line(details.authid),
            authrole=in_line(details.authrole),
            session=details.session,
        )
        self._waiting.fire()

    def _in_time(self) -> None:
        cancel_timer(self._late)
        self._late = None

    def _displaced(self, registration: int) -> None:
        for observer in self._observers:
            observer.displaced(registration)

    def _ended(self, router: RouterAddress) -> None:
        session, self._session, self._transport = self._session, None, None
        self.joined = False
        # In the opposite order: an observer may rely on those before it.
        for observer in reversed(self._observers):
            try:
                observer.left()
            except Exception:  # an observer's error must not end the loop that reconnects
                log.failure("an observer failed when the session was lost")
        if self.running:
            why = session.closing if session is not None else None
            ended = f"{why.reason}: {why.message}" if why is not None else ""
            self._log_once(router, self._reason or ended or "closed during the handshake")

    def _abort(self, reason: str) -> None:
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abortConnection()

    def _log_once(self, router: RouterAddress, reason: str) -> None:
        """Log a failure once until the next session, since a router may be down for hours."""
        reason = in_line(reason, 1000)
        if (router.url, reason) not in self._logged:
            self._logged.add((router.url, reason))
            log.warn("no session at {url}: {reason}; retrying", url=router.url, reason=reason)

    async def _stop(self) -> None:
        if self.joined and self._session is not None:
            for observer in reversed(self._observers):
                try:
                    await observer.leaving()
                except Exception:
                    log.failure("an observer failed before the session left")
        if self._following is None:
            return
        if self.joined and self._session is not None:
            self._session.leave()
            late = self._reactor.callLater(LEAVE_TIMEOUT, self._abort, "")
        else:
            late = None
            self._following.cancel()
        try:
            await self._following
        except CancelledError:
            pass
        finally:
            cancel_timer(late)


class RouterAddress(Address):
    """The address of a router, with its endpoint and protocol."""

    __slots__ = ()

    def endpoint(self, reactor: IReactorCore) -> IStreamClientEndpoint:
        """Return the endpoint to connect to."""
        if self.scheme == "unix":
            return UNIXClientEndpoint(reactor, self.path, timeout=CONNECT_TIMEOUT)
        plain = HostnameEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT)
        if self.scheme not in {"rss", "wss"}:
            return plain
        return wrapClientTLS(tls.TlsEndpoint(self.host), plain)

    def factory(
        self,
        reactor: IReactorCore,
        session: Callable[[], SafeSession],
        serializer: SafeSerializer,
    ) -> IProtocolFactory:
        """Return the protocol factory of one connection; `session` is called when it is open."""
        if self.scheme not in {"ws", "wss"}:
            plain = WampRawSocketClientFactory(session, serializer=serializer)
            plain.protocol = RawSocket
            return plain
        factory = WampWebSocketClientFactory(
            session, url=self.url, serializers=[serializer], reactor=reactor
        )
        factory.protocol = WebSocket
        factory.setProtocolOptions(
            openHandshakeTimeout=0,  # `CONNECT_TIMEOUT` covers it, and its message names the stage
            autoPingInterval=PING_EVERY,
            autoPingTimeout=PING_WITHIN,
            tcpNoDelay=True,
        )
        return factory


@implementer(IHandshakeListener)
class StageRecorder:
    """
    A mixin for protocols that records how far the connection came, for messages about its end.

    Attributes:
        stage: Step that the connection waits for until the session has joined.
        why: Why the connection was lost, if because of TLS.
    """

    stage = "login"
    why = ""
    transport: Any

    def connectionMade(self) -> None:
        """Record the TLS handshake as the first stage, if the transport uses TLS."""
        if ISSLTransport.providedBy(self.transport):
            self.stage = TLS
        super().connectionMade()  # type: ignore[misc]

    def handshakeCompleted(self) -> None:
        """Record that the TLS handshake is complete, and the login is next."""
        self.stage = "login"

    def connectionLost(self, reason: Any) -> None:
        """Record the reason, before `is_closed` fires."""
        self.why = tls.reason(reason.value)
        if not self.why and self.stage == TLS:
            self.why = f"closed during the {TLS}: is that a port for TLS?"
        super().connectionLost(reason)  # type: ignore[misc]


class RawSocket(StageRecorder, WampRawSocketClientProtocol):  # type: ignore[misc]
    """autobahn's RawSocket protocol, which records how far the connection came."""


class WebSocket(StageRecorder, WampWebSocketClientProtocol):  # type: ignore[misc]
    """autobahn's WebSocket protocol, which records how far the connection came."""

    def send(self, msg: Any) -> None:
        """
        Send a message, unless the connection is closed, as RawSocket does.

        `is_closed` fires before autobahn's session knows that the connection is lost. autobahn then answers
        the calls that end, and catches no error of the transport.
        """
        with suppress(Disconnected):
            super().send(msg)


def keep_alive(transport: Any) -> None:
    """
    Enable TCP keepalive, which detects that the other host is gone, and disable Nagle's algorithm.

    autobahn's RawSocket sends no pings. Without keepalive, the loss of the router's machine would be noticed
    only when something is sent, and an idle service sends nothing.
    """
    handle = transport.socket
    if handle.family == socket.AF_UNIX:
        return
    # Nagle's algorithm would hold back the second of two small answers until the first is acknowledged,
    # and a peer with nothing to send delays that acknowledgement by about 40 ms.
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    for option, value in (
        (socket.TCP_KEEPIDLE, PING_EVERY),
        (socket.TCP_KEEPINTVL, PING_WITHIN),
        (socket.TCP_KEEPCNT, 2),
    ):
        handle.setsockopt(socket.IPPROTO_TCP, option, value)


def _message_of(error: Exception) -> str:
    if isinstance(error, ApplicationError):
        return error.error_message()
    return str(error) or type(error).__name__
