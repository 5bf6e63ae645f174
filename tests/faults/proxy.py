"""
A TCP proxy whose connections can be cut, stalled or slowed down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

LINGER = 0.02
"""Seconds for the last bytes to arrive before a trapped connection is cut."""


class Proxy(Factory):
    """
    A factory that accepts connections on a port of 127.0.0.1 and forwards their bytes.

    Args:
        target: Returns the endpoint to forward to.

    Attributes:
        port: The port that it listens on.
        trap: A connection whose client sends these bytes is cut after the server has received them.
    """

    def __init__(self, target: Callable[[], IStreamClientEndpoint]) -> None:
        self.target = target
        self.trap = b""
        self._listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port
        self.ends: set[End] = set()
        self.stalled = self.trickling = False

    def buildProtocol(self, address: Any) -> End:
        """Return the protocol of an accepted connection."""
        return End(self)

    def cut(self) -> None:
        """Reset every connection."""
        for end in list(self.ends):
            end.transport.abortConnection()

    def stall(self) -> None:
        """Forward nothing, but keep reading, so that TCP acknowledges what is sent."""
        self.stalled = True

    def trickle(self) -> None:
        """Forward byte by byte."""
        self.trickling = True
        for end in list(self.ends):
            end.transport.setTcpNoDelay(True)

    def flow(self) -> None:
        """Forward everything again."""
        self.stalled = self.trickling = False
        for end in list(self.ends):
            end.flush()

    def close(self) -> Any:
        """Stop listening, and cut all connections."""
        self.cut()
        return self._listening.stopListening()


class End(Protocol):
    """
    One of the two connections of a forwarded connection.

    Args:
        proxy: The proxy that it belongs to.
        peer: The accepted connection, for an outgoing one; None for the accepted one.
    """

    def __init__(self, proxy: Proxy, peer: End | None = None) -> None:
        self._proxy = proxy
        self._peer = peer
        self._first = peer is None
        self._waiting = bytearray()
        self._turning = self._trapped = False

    def connectionMade(self) -> None:
        """Connect to the target if this is the accepted connection, else start to forward."""
        self._proxy.ends.add(self)
        if self._peer is None:
            factory = Factory.forProtocol(lambda: End(self._proxy, self))
            connecting = self._proxy.target().connect(factory)
            connecting.addErrback(lambda _: self.transport.abortConnection())
        elif self._peer in self._proxy.ends:
            self._peer._peer = self
            self._peer.flush()
        else:  # the client has disconnected meanwhile
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Forward the data, or buffer it while forwarding is stalled or slowed down."""
        if self._peer is not None and self._peer._trapped:
            return
        self._waiting += data
        trap = self._proxy.trap
        if trap and self._first and trap in data:
            self._trapped = True
            reactor.callLater(LINGER, self.transport.abortConnection)
        self.flush()

    def flush(self) -> None:
        """Forward the buffered bytes as far as the proxy allows."""
        if self._peer is None or self._proxy.stalled or not self._waiting or self._turning:
            return
        count = 1 if self._proxy.trickling else len(self._waiting)
        self._peer.transport.write(bytes(self._waiting[:count]))
        del self._waiting[:count]
        if self._waiting:
            self._turning = True
            reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._turning = False
        self.flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Close the peer's connection too."""
        self._proxy.ends.discard(self)
        if self._peer is not None:
            if not self._proxy.stalled:
                self._peer.transport.write(bytes(self._waiting))
            self._waiting.clear()
            self._peer.transport.loseConnection()
