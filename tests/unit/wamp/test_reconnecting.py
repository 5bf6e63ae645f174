"""Pauses before reconnecting depend on whether a router accepts connections."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from service.wamp.client import WampClient, WampConfig

FIRST, MOST = 0.5, 2.0
GREETING = b"\x7f\xf3\x00\x00"
"""RawSocket's, from a router that takes messages of 16 MiB in CBOR."""


class Router(MemoryReactorClock):
    """A reactor whose connections end as the test requests."""

    def refuse(self) -> None:
        """Refuse the pending connection."""
        *_, (_, factory, _, _) = self.unixClients
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    def close(self, greeting: bytes) -> None:
        """Accept the pending connection, answer the handshake, and close it before a join."""
        *_, (_, factory, _, _) = self.unixClients
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        transport.socket = SimpleNamespace(family=socket.AF_UNIX)
        transport.abortConnection = transport.loseConnection
        protocol.makeConnection(transport)
        if greeting:
            protocol.dataReceived(greeting)
        protocol.connectionLost(Failure(ConnectionDone()))

    def pause(self) -> float:
        """Return the seconds until the next attempt, and let them pass."""
        tries, (call,) = len(self.unixClients), self.getDelayedCalls()
        seconds = call.getTime() - self.seconds()
        self.advance(seconds)
        assert len(self.unixClients) == tries + 1
        return float(seconds)


@pytest.fixture
def router() -> Router:
    """Start a service that connects."""
    reactor = Router()
    config = WampConfig(["unix:/router.sock"], "realm1", first_delay=FIRST, max_delay=MOST)
    WampClient(reactor, config, []).startService()
    return reactor


def test_router_that_is_away_is_tried_at_an_even_pace(router: Router) -> None:
    """Callers wait for its return, and a refused connection costs little."""
    for _ in range(20):
        router.refuse()
        assert 0.7 * FIRST <= router.pause() <= FIRST


def test_proxy_whose_router_is_away_is_tried_at_an_even_pace(router: Router) -> None:
    for _ in range(20):
        router.close(b"")
        assert 0.7 * FIRST <= router.pause() <= FIRST


def test_router_that_refuses_logins_is_tried_less_and_less(router: Router) -> None:
    pauses = []
    for _ in range(20):
        router.close(GREETING)
        pauses.append(router.pause())
    assert pauses[0] <= FIRST
    assert all(0.7 * MOST <= pause <= MOST for pause in pauses[5:])
    router.refuse()
    assert router.pause() <= FIRST
