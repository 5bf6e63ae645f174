"""
How to reach a router.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.twisted.websocket import WampWebSocketClientFactory
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocolFactory, IReactorCore, IStreamClientEndpoint

from service.address import Address
from service.wamp.serializer import SafeSerializer
from service.wamp.session import SafeSession

CONNECT_TIMEOUT = 10
"""Seconds for each step of a connection: the address, the handshake, the login."""

PING_EVERY, PING_WITHIN = 20, 10
"""Seconds; below the 55 after which Heroku's router cuts an idle connection."""


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
        from twisted.internet.endpoints import wrapClientTLS
        from twisted.internet.ssl import optionsForClientTLS  # there with pyOpenSSL alone

        return wrapClientTLS(optionsForClientTLS(self.host), plain)

    def factory(
        self,
        reactor: IReactorCore,
        session: Callable[[], SafeSession],
        serializer: SafeSerializer,
    ) -> IProtocolFactory:
        """Give the protocol factory for one connection; it makes the session when open."""
        if self.scheme not in {"ws", "wss"}:
            return WampRawSocketClientFactory(session, serializer=serializer)
        factory = WampWebSocketClientFactory(
            session, url=self.url, serializers=[serializer], reactor=reactor
        )
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
