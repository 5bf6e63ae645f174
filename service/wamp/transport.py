"""
How to reach a router.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from autobahn.twisted.rawsocket import WampRawSocketClientFactory, WampRawSocketClientProtocol
from autobahn.twisted.websocket import WampWebSocketClientFactory, WampWebSocketClientProtocol
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IHandshakeListener,
    IProtocolFactory,
    IReactorCore,
    ISSLTransport,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from service.address import Address
from service.wamp import tls
from service.wamp.serializer import SafeSerializer
from service.wamp.session import SafeSession

CONNECT_TIMEOUT = 10
"""Seconds for each step of a connection: the address, the handshake, the login."""

TLS = "TLS handshake"

PING_EVERY, PING_WITHIN = 20, 10
"""Seconds; below the 55 after which Heroku's router cuts an idle connection."""


@implementer(IHandshakeListener)
class Ending:
    """
    A protocol that knows how far its connection came.

    Attributes:
        stage: What the connection waits for until it is joined.
        why: Why it was lost, if TLS was the reason.
    """

    stage = "login"
    why = ""
    transport: Any

    def connectionMade(self) -> None:
        """Begin with TLS, where there is any."""
        if ISSLTransport.providedBy(self.transport):
            self.stage = TLS
        super().connectionMade()  # type: ignore[misc]

    def handshakeCompleted(self) -> None:
        """Go on to the login: TLS stands."""
        self.stage = "login"

    def connectionLost(self, reason: Any) -> None:
        """Take note of the reason before whoever waits for the end."""
        self.why = tls.reason(reason.value)
        if not self.why and self.stage == TLS:
            self.why = f"closed during the {TLS}: is that a port for TLS?"
        super().connectionLost(reason)  # type: ignore[misc]


class RawSocket(Ending, WampRawSocketClientProtocol):  # type: ignore[misc]
    """Autobahn's, with its end told."""


class WebSocket(Ending, WampWebSocketClientProtocol):  # type: ignore[misc]
    """Autobahn's, with its end told."""


class Router(Address):
    """One address of a router, and the way there."""

    __slots__ = ()

    def endpoint(self, reactor: IReactorCore) -> IStreamClientEndpoint:
        """Give the endpoint to connect to."""
        if self.scheme == "unix":
            return UNIXClientEndpoint(reactor, self.path, timeout=CONNECT_TIMEOUT)
        plain = HostnameEndpoint(reactor, self.host, self.port, timeout=CONNECT_TIMEOUT)
        if self.scheme not in {"rss", "wss"}:
            return plain
        return wrapClientTLS(tls.Verified(self.host), plain)

    def factory(
        self,
        reactor: IReactorCore,
        session: Callable[[], SafeSession],
        serializer: SafeSerializer,
    ) -> IProtocolFactory:
        """Give the protocol factory for one connection; it makes the session when open."""
        if self.scheme not in {"ws", "wss"}:
            plain = WampRawSocketClientFactory(session, serializer=serializer)
            plain.protocol = RawSocket
            return plain
        factory = WampWebSocketClientFactory(
            session, url=self.url, serializers=[serializer], reactor=reactor
        )
        factory.protocol = WebSocket
        factory.setProtocolOptions(
            openHandshakeTimeout=CONNECT_TIMEOUT,
            autoPingInterval=PING_EVERY,
            autoPingTimeout=PING_WITHIN,
            tcpNoDelay=True,
        )
        return factory


def keep_alive(transport: Any) -> None:
    """
    Have the kernel find out that the other host is gone.

    RawSocket has no ping of its own; without this a router whose machine vanished is noticed
    when something is sent, and an idle service sends nothing.
    """
    handle = transport.socket
    if handle.family == socket.AF_UNIX:
        return
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    for option, value in (
        (socket.TCP_KEEPIDLE, PING_EVERY),
        (socket.TCP_KEEPINTVL, PING_WITHIN),
        (socket.TCP_KEEPCNT, 2),
    ):
        handle.setsockopt(socket.IPPROTO_TCP, option, value)
