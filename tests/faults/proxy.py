"""
A wire between two processes that can be cut, stalled, or made slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

LINGER = 0.02
"""Seconds in which what was sent last reaches its end, of a connection about to be cut."""


class Proxy(Factory):
    """
    Takes connections on a TCP port of 127.0.0.1, and passes on what comes.

    Args:
        target: Returns the endpoint of the other side.

    Attributes:
        port: Where it listens.
        trap: Whoever sends this has the connection cut once the other side has got it.
    """

    def __init__(self, target: Callable[[], IStreamClientEndpoint]) -> None:
        self.target = target
        self.trap = b""
        self._listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port
        self.ends: set[End] = set()
        self.stalled = self.trickling = False

    def buildProtocol(self, address: Any) -> End:
        """Take a connection."""
        return End(self)

    def cut(self) -> None:
        """Reset every connection."""
        for end in list(self.ends):
            end.transport.abortConnection()

    def stall(self) -> None:
        """Pass nothing on, though all that comes is acknowledged."""
        self.stalled = True

    def trickle(self) -> None:
        """Pass on byte by byte."""
        self.trickling = True
        for end in list(self.ends):
            end.transport.setTcpNoDelay(True)

    def flow(self) -> None:
        """Pass on everything again."""
        self.stalled = self.trickling = False
        for end in list(self.ends):
            end.flush()

    def close(self) -> Any:
        """Stop to listen, and cut what there is."""
        self.cut()
        return self._listening.stopListening()


class End(Protocol):
    """
    One end of a connection that passes.

    Args:
        proxy: It passes through this one.
        peer: The other end, unless this is the one that came first.
    """

    def __init__(self, proxy: Proxy, peer: End | None = None) -> None:
        self._proxy = proxy
        self._peer = peer
        self._first = peer is None
        self._waiting = bytearray()
        self._turning = self._trapped = False

    def connectionMade(self) -> None:
        """Connect to the other side, or begin to pass on."""
        self._proxy.ends.add(self)
        if self._peer is None:
            factory = Factory.forProtocol(lambda: End(self._proxy, self))
            connecting = self._proxy.target().connect(factory)
            connecting.addErrback(lambda _: self.transport.abortConnection())
        elif self._peer in self._proxy.ends:
            self._peer._peer = self
            self._peer.flush()
        else:  # it has gone meanwhile
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Pass it on, or keep it."""
        if self._peer is not None and self._peer._trapped:
            return
        self._waiting += data
        trap = self._proxy.trap
        if trap and self._first and trap in data:
            self._trapped = True
            reactor.callLater(LINGER, self.transport.abortConnection)
        self.flush()

    def flush(self) -> None:
        """Pass on what waits, as much as may pass."""
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
        """End the other end too."""
        self._proxy.ends.discard(self)
        if self._peer is not None:
            if not self._proxy.stalled:
                self._peer.transport.write(bytes(self._waiting))
            self._waiting.clear()
            self._peer.transport.loseConnection()
