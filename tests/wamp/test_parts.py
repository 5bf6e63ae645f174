"""
Progressive results arrive in order, and are sent no faster than the caller reads them.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from service.errors import TooLarge
from service.wamp.backpressure import Outflow
from tests.deferreds import until
from tests.wamp.callers import KINDS
from tests.wamp.conftest import Join, StartEdge


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_parts_for_any_client_arrive_once_in_order(
    how: str, start_edge: StartEdge, call_from: Join
) -> None:
    """Each part arrives once and in order, then the result, for each kind of client."""
    await start_edge()
    caller = await call_from(how)
    parts = [[{"id": n, "text": "é" * 100}] for n in range(200)]
    taken: list[Any] = []
    got = await caller.call("rowcast.parts", parts, options=CallOptions(on_progress=taken.append))
    assert got == 200
    assert taken == parts


@pytest_twisted.ensureDeferred
async def test_call_without_on_progress_is_marked_for_the_dispatcher(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The dispatcher's call has no `progress` if the caller takes no parts."""
    await start_edge()
    caller = await call_from()
    assert await caller.call("rowcast.parts", [1, 2]) is None


@pytest_twisted.ensureDeferred
async def test_part_over_the_limit_ends_the_call_with_too_large(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The session continues."""
    edge = await start_edge(max_bytes=50_000)
    caller = await call_from()
    taken: list[Any] = []
    options = CallOptions(on_progress=taken.append)

    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.parts", ["a", "x" * 40_000, "y" * 60_000], options=options)
    assert caught.value.error == TooLarge.uri
    assert "format: csv" in caught.value.kwargs["hint"]
    assert [len(part) for part in taken] == [1, 40_000]
    assert await caller.call("rowcast.echo", 1) == 1
    assert edge.client.joined


@pytest_twisted.ensureDeferred
async def test_call_cancelled_between_parts_sends_no_more(
    start_edge: StartEdge, call_from: Join
) -> None:
    edge = await start_edge()
    caller = await call_from()
    taken: list[Any] = []
    parts = ["x" * 100_000] * 60

    def take(part: Any) -> None:
        taken.append(part)
        if len(taken) == 1:
            call.cancel()

    call = caller.call("rowcast.parts", parts, options=CallOptions(on_progress=take))
    with pytest.raises(CancelledError):
        await call
    assert await caller.call("rowcast.echo", 1) == 1
    await until(lambda: not edge.dispatch.in_progress)
    assert edge.dispatcher.sent < 60


class Sink(Protocol):
    """A protocol that reads only after `resumeProducing`."""

    def connectionMade(self) -> None:
        """Pause reading."""
        self.transport.pauseProducing()
        self.factory.made.callback(self)


@pytest_twisted.ensureDeferred
async def test_outflow_waits_for_the_other_side() -> None:
    """While the peer reads nothing, nothing more is sent; then sending continues."""
    factory = Factory.forProtocol(Sink)
    factory.made = Deferred()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = await connectProtocol(endpoint, Protocol())
    sink = await factory.made
    outflow, sent = Outflow(client.transport), 0

    async def send() -> None:
        nonlocal sent
        with outflow:
            while sent < 400:
                client.transport.write(b"x" * 100_000)
                sent += 1
                await outflow.drained()

    sending = Deferred.fromCoroutine(send())
    try:
        await until(lambda: outflow.drained().called is False)
        held = sent
        assert held < 200  # size of the kernel's socket buffers on this machine
        given_up = outflow.drained()
        given_up.cancel()
        with pytest.raises(CancelledError):
            await given_up
        sink.transport.resumeProducing()
        await sending
        assert sent == 400
        assert client.transport.producer is None
    finally:
        client.transport.abortConnection()
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_outflow_of_a_lost_connection_waits_no_longer() -> None:
    """Waiting callers continue, and notice the loss when they send."""
    factory = Factory.forProtocol(Sink)
    factory.made = Deferred()
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    client = await connectProtocol(endpoint, Protocol())
    sink = await factory.made
    with Outflow(client.transport) as outflow:
        client.transport.write(b"x" * 20_000_000)
        waiting = outflow.drained()
        assert not waiting.called
        client.transport.abortConnection()
        await waiting
    # It reads nothing, so it does not notice the end, and nobody else would close its socket.
    sink.transport.abortConnection()
    await port.stopListening()
