"""
The service connects to its router, reconnects, and leaves gracefully.
"""

from __future__ import annotations

import gc
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from service.embedded.crossbar import node_command
from service.wamp import client as client_module
from service.wamp.auth import Cryptosign, Ticket
from service.wamp.client import RouterAddress, WampClient, WampConfig
from tests.conftest import Router, crossbar, free_port, wait_until
from tests.wamp.conftest import Join, StartEdge
from tests.wamp.test_session import RecordingSubscriber


def reasons(events: list[dict[str, Any]]) -> list[str]:
    """Return the logged reasons for being without a session."""
    return [event["reason"] for event in events if "reason" in event]


def shorten_steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Shorten the timeout of the steps that follow connecting, which a loaded machine needs longer for."""
    whole = RouterAddress.endpoint

    def endpoint(address: RouterAddress, reactor: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(client_module, "CONNECT_TIMEOUT", 10)
            return whole(address, reactor)

    monkeypatch.setattr(RouterAddress, "endpoint", endpoint)
    monkeypatch.setattr(client_module, "CONNECT_TIMEOUT", seconds)


@pytest.mark.parametrize("way", ["unix", "websocket", "rawsocket"])
@pytest_twisted.ensureDeferred
async def test_service_by_a_public_port_joins_and_may_not_register(
    way: str, router: Router, start_edge: StartEdge
) -> None:
    """A service joins through the Unix socket; through the public port it joins but may not register."""
    urls = {
        "unix": f"unix:{router.socket}",
        "websocket": router.websocket,
        "rawsocket": router.rawsocket,
    }
    observer = RecordingSubscriber()
    edge = await start_edge(urls=[urls[way]], observers=[], wait=way == "unix")
    if way == "unix":
        assert edge.client.joined
        return
    client = WampClient(edge.client._reactor, WampConfig([urls[way]], router.realm), [observer])
    client.startService()
    await client.when_joined()
    assert observer.session is not None
    assert not edge.client.joined
    await client.stopService()


@pytest_twisted.ensureDeferred
async def test_unreachable_router_is_skipped(
    router: Router, start_edge: StartEdge, call_from: Join
) -> None:
    """The next URL is tried at once."""
    nobody = [f"rs://127.0.0.1:{free_port()}", "unix:/nowhere.sock"]
    edge = await start_edge(urls=[*nobody, f"unix:{router.socket}"], first_delay=60, max_delay=60)
    caller = await call_from()
    assert await caller.call("rowcast.echo", 1) == 1
    assert edge.dispatch.serving


@pytest_twisted.ensureDeferred
async def test_service_that_lost_its_connection_is_registered_again(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A service that lost its connection rejoins, registers and logs it."""
    edge = await start_edge()
    caller = await call_from()
    for n in range(3):
        edge.client._abort("the test")
        while edge.client.joined:
            await tick()
        await edge.client.when_joined()
        assert await caller.call("rowcast.echo", n) == n


@pytest_twisted.ensureDeferred
async def test_stop_without_a_router_ends(start_edge: StartEdge) -> None:
    """Stopping works at any time: without a router, with a silent router, and twice."""
    edge = await start_edge(urls=["unix:/nowhere.sock"], wait=False)
    await edge.client.stopService()
    first, second = edge.client.stopService(), edge.client.stopService()
    await first
    await second
    assert not edge.client.joined


class Silent(Protocol):
    """A router that accepts connections and sends nothing."""

    def connectionMade(self) -> None:
        """Count."""
        self.factory.accepted.callback(None)  # type: ignore[attr-defined]

    def connectionLost(self, reason: object = None) -> None:
        """Count."""
        self.factory.lost.callback(None)  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_stop_while_router_is_silent_ends(start_edge: StartEdge) -> None:
    """A router that never answers the HELLO does not delay the stop."""
    factory: Any = Factory.forProtocol(Silent)
    factory.noisy = False
    factory.accepted, factory.lost = Deferred(), Deferred()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    for scheme in ("rs", "ws"):
        factory.accepted, factory.lost = Deferred(), Deferred()
        url = f"{scheme}://127.0.0.1:{port.getHost().port}/ws"
        edge = await start_edge(urls=[url], wait=False)
        await factory.accepted
        await edge.client.stopService()
        await factory.lost
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_service_that_was_stopped_can_be_started_again(
    start_edge: StartEdge, call_from: Join
) -> None:
    edge = await start_edge()
    await edge.client.stopService()
    assert not edge.client.joined
    edge.client.startService()
    await edge.client.when_joined()
    caller = await call_from()
    assert await caller.call("rowcast.echo", 1) == 1


@pytest_twisted.ensureDeferred
async def test_login_at_a_silent_router_is_given_up(
    start_edge: StartEdge, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that accepts connections and sends nothing is given up; a joined session is not."""
    shorten_steps(monkeypatch, 0.1)
    factory: Any = Factory.forProtocol(Silent)
    factory.noisy = False
    factory.accepted, factory.lost = Deferred(), Deferred()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    url = f"rs://127.0.0.1:{port.getHost().port}"
    stuck = await start_edge(urls=[url], wait=False, first_delay=60, max_delay=60)
    standing = await start_edge()
    session = standing.dispatch._registration
    await factory.lost
    await deferLater(reactor, 0.2, lambda: None)
    # The other one may have been given up, too, before it had joined.
    assert set(reasons(logged)) == {"no answer to the login"}
    assert standing.dispatch._registration is session
    await stuck.client.stopService()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_service_whose_heartbeats_are_late_is_not_dropped_while_it_sends(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Heartbeats come after the answers that were sent before them; the router waits 10 s for one."""
    observer = RecordingSubscriber()
    edge = await start_edge(observers=[observer])
    session, caller = observer.session, await call_from()
    assert session is not None
    await session.call("rowcast.router.alive")
    end = reactor.seconds() + 13
    while reactor.seconds() < end:
        assert await caller.call("rowcast.echo", 1) == 1
        await deferLater(reactor, 0.5, lambda: None)
    assert edge.client.joined
    assert observer.session is session


@pytest_twisted.ensureDeferred
async def test_long_outage_of_the_router_is_logged_once(
    start_edge: StartEdge, logged: list[dict[str, Any]]
) -> None:
    """A long outage is logged once, not at each attempt."""
    edge = await start_edge(
        urls=["unix:/nowhere.sock"], wait=False, first_delay=0.001, max_delay=0.001
    )
    for _ in range(50):
        await tick()
    assert len(reasons(logged)) == 1
    await edge.client.stopService()


@pytest_twisted.ensureDeferred
async def test_registration_without_permission_is_logged(
    router: Router, start_edge: StartEdge, logged: list[dict[str, Any]]
) -> None:
    """The missing permission is logged, and the service keeps trying."""
    edge = await start_edge(urls=[router.rawsocket], wait=False)
    while not reasons(logged):
        await tick()
    assert "register" in reasons(logged)[0]
    assert not edge.client.joined


SECRET = "a ticket of 20 letters"


@pytest.fixture(scope="module")
def locked() -> Iterator[tuple[Path, int]]:
    """Run a router that requires a ticket or a key; yield its directory and port."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-locked-"))
    key = Ed25519PrivateKey.generate()
    (home / "raw").write_bytes(key.private_bytes_raw())
    digits = key.private_bytes_raw().hex()
    (home / "hex").write_text(f"{digits}\n")
    (home / "crossbar").write_text(
        f"Crossbar.io node private key\n\nprivate-key-ed25519: {digits}\n"
    )
    (home / "pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (home / "openssh").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    port = free_port()
    public = key.public_key().public_bytes_raw().hex()
    role = {
        "name": "service",
        "permissions": [{"uri": "", "match": "prefix", "allow": {"call": True, "register": True}}],
    }
    auth = {
        "ticket": {
            "type": "static",
            "principals": {"rowcast": {"ticket": SECRET, "role": "service"}},
        },
        "cryptosign": {
            "type": "static",
            "principals": {"rowcast": {"authorized_keys": [public], "role": "service"}},
        },
    }
    transport = {
        "type": "universal",
        "endpoint": {"type": "tcp", "port": port, "interface": "127.0.0.1"},
        "rawsocket": {"serializers": ["cbor"], "auth": auth},
        "websocket": {"ws": {"type": "websocket", "serializers": ["cbor"], "auth": auth}},
    }
    worker = {
        "type": "router",
        "realms": [{"name": "realm1", "roles": [role]}],
        "transports": [transport],
    }
    (home / "config.json").write_text(
        json.dumps({"version": 2, "controller": {}, "workers": [worker]})
    )
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(
            node_command(crossbar(), home), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: accepts(port), 60, lambda: (home / "log").read_text()[-2000:])
        yield home, port
    finally:
        child.terminate()
        child.wait(timeout=20)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.parametrize("url", ["rs://127.0.0.1:{}", "ws://127.0.0.1:{}/ws"])
@pytest.mark.parametrize("method", ["ticket", "raw", "openssh", "pem", "hex", "crossbar"])
@pytest_twisted.ensureDeferred
async def test_service_with_a_ticket_or_a_key_joins(
    url: str, method: str, locked: tuple[Path, int], start_edge: StartEdge
) -> None:
    home, port = locked
    login = (
        Ticket("rowcast", SECRET) if method == "ticket" else Cryptosign("rowcast", home / method)
    )
    edge = await start_edge(urls=[url.format(port)], login=login)
    assert edge.dispatch.serving


@pytest_twisted.ensureDeferred
async def test_large_result_by_websocket_keeps_the_connection(
    locked: tuple[Path, int], start_edge: StartEdge
) -> None:
    """A service connected over WebSocket keeps its connection, whatever results it sends."""
    _, port = locked
    observer = RecordingSubscriber()
    url = f"ws://127.0.0.1:{port}/ws"
    login = Ticket("rowcast", SECRET)
    edge = await start_edge(urls=[url], login=login, observers=[observer], max_bytes=2**30)
    assert observer.session is not None
    for size in (17, 1):
        edge.dispatcher.on("give", lambda size=size: "x" * size * 2**20)
        try:
            assert len(await observer.session.call("rowcast.give")) == 2**20
        except ApplicationError as error:
            assert (size, error.error) == (17, "rowcast.error.too_large")
    assert not observer.session.lost


@pytest.mark.parametrize("url", ["rs://127.0.0.1:{}", "ws://127.0.0.1:{}/ws"])
@pytest_twisted.ensureDeferred
async def test_calls_with_progress_end_without_a_traceback_if_the_connection_is_lost(
    url: str, locked: tuple[Path, int], start_edge: StartEdge, logged: list[dict[str, Any]]
) -> None:
    """Autobahn answers them, and does not expect that an answer cannot be sent."""
    _, port = locked
    observer = RecordingSubscriber()
    login = Ticket("rowcast", SECRET)
    edge = await start_edge(urls=[url.format(port)], login=login, observers=[observer])
    assert observer.session is not None
    options = CallOptions(on_progress=lambda _: None)
    call = observer.session.call("rowcast.wait", options=options).addErrback(lambda _: "lost")
    while not edge.dispatcher.waiting:
        await tick()
    edge.client._transport.abortConnection()
    assert await call == "lost"
    await tick()
    gc.collect()  # a Deferred logs its error when it is collected
    assert [event for event in logged if "log_failure" in event] == []


@pytest.mark.parametrize("login", [Ticket("rowcast", "wrong"), None])
@pytest_twisted.ensureDeferred
async def test_login_with_wrong_credentials_is_logged_once_without_the_secret(
    login: Ticket | None,
    locked: tuple[Path, int],
    start_edge: StartEdge,
    logged: list[dict[str, Any]],
) -> None:
    """Wrong credentials are logged in one line without the secret, and login is retried."""
    _, port = locked
    config = {} if login is None else {"login": login}
    edge = await start_edge(urls=[f"rs://127.0.0.1:{port}"], wait=False, **config)
    for _ in range(100):
        await tick()
    assert len(reasons(logged)) == 1
    assert "wamp.error" in reasons(logged)[0]
    assert "wrong" not in str(logged)
    await edge.client.stopService()


@pytest_twisted.ensureDeferred
async def test_procedures_of_a_stopped_service_are_gone(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A stopped service has left: its procedures are unregistered when the stop has finished."""
    edge = await start_edge()
    caller = await call_from()
    await edge.client.stopService()
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.echo", 1)
    assert caught.value.error == "rowcast.error.unavailable"


def accepts(port: int) -> bool:
    """Return whether a process accepts connections on a TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tick() -> Deferred[None]:
    """Return a Deferred that fires in the next reactor iteration."""
    return deferLater(reactor, 0.005, lambda: None)
