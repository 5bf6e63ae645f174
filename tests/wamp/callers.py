"""
Callers over each transport and serializer, and how their calls end.
"""

from __future__ import annotations

from typing import Any

from autobahn.twisted.rawsocket import WampRawSocketClientFactory
from autobahn.twisted.wamp import ApplicationSession
from autobahn.twisted.websocket import WampWebSocketClientFactory
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.serializer import CBORSerializer, JsonSerializer, MsgPackSerializer
from autobahn.wamp.types import ComponentConfig
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint

from tests.conftest import Router
from tests.deferreds import failure_of

SERIALIZERS = {"cbor": CBORSerializer, "json": JsonSerializer, "msgpack": MsgPackSerializer}

KINDS = [f"{door} {name}" for door in ("rawsocket", "websocket") for name in SERIALIZERS]


class Caller(ApplicationSession):
    """A session of a client."""

    def __init__(self, realm: str, hello: dict[str, Any], ticket: str = "") -> None:
        super().__init__(ComponentConfig(realm))
        self.hello = hello
        self.ticket = ticket
        self.here: Deferred[Caller] = Deferred()
        self.gone: Deferred[None] = Deferred()

    def onConnect(self) -> None:
        """Join with the HELLO details of the test."""
        self.join(self.config.realm, **self.hello)

    def onChallenge(self, challenge: Any) -> str:
        """Return the ticket."""
        return self.ticket

    def onJoin(self, details: Any) -> None:
        """Fire `here`."""
        self.here.callback(self)

    def onUserError(self, fail: Any, msg: str) -> None:
        """Log nothing: the test receives the error."""

    def onClose(self, wasClean: bool) -> None:
        """Fire `gone`, and fail `here` if the session has not joined."""
        super().onClose(wasClean)
        if not self.here.called:
            self.here.errback(ConnectionError("not joined"))
        self.gone.callback(None)

    def close(self) -> Deferred[None]:
        """Leave; return a Deferred that fires when the connection is closed, by abort after some seconds."""
        from twisted.internet import reactor

        if self.is_attached():
            self.leave()
        elif not self.gone.called:
            self.disconnect()
        if not self.gone.called:
            late = reactor.callLater(5, self._transport.abort)
            self.gone.addBoth(lambda _: late.active() and late.cancel())
        return self.gone


async def join(router: Router, how: str, ticket: str = "", **hello: Any) -> Caller:
    """
    Join as a client.

    Args:
        router: The router.
        how: Transport and serializer: "rawsocket cbor", "websocket json" …; "service cbor" is the private socket.
        ticket: The ticket to authenticate with.
        hello: Further HELLO details.
    """
    from twisted.internet import reactor

    door, name = how.split()
    session = Caller(router.realm, hello, ticket)
    serializer = SERIALIZERS[name]()
    factory: Any
    if door == "websocket":
        factory = WampWebSocketClientFactory(
            lambda: session, url=router.websocket, serializers=[serializer]
        )
        # autobahn's default of 5 s is too short on a loaded machine: the session would never join
        factory.setProtocolOptions(openHandshakeTimeout=60)
    else:
        factory = WampRawSocketClientFactory(lambda: session, serializer=serializer)
    if door == "service":
        endpoint: Any = UNIXClientEndpoint(reactor, str(router.socket))
    else:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", router.port)
    await endpoint.connect(factory)
    return await session.here


async def refusal_of(call: Any) -> ApplicationError:
    """Return the error of a call."""
    return await failure_of(call, ApplicationError)


async def end_of(call: Any) -> str:
    """Return how a call ends: "result", or the URI of its error."""
    try:
        await call
    except ApplicationError as error:
        return str(error.error)
    return "result"
