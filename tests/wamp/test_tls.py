"""TLS to a router: which certificates are accepted, and how refused ones are logged."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL.SSL import TLS_SERVER_METHOD, Context
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import ContextFactory
from twisted.logger import LogLevel, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory, ProxyServer

from service.wamp.client import WampClient, WampConfig
from tests.conftest import Router
from tests.deferreds import until
from tests.wamp.test_client import reasons, shorten_steps
from tests.wamp.test_session import RecordingSubscriber

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority, or a self-signed certificate."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.key.public_key(), name, [], ca=True)

    def sign(
        self,
        key: Any,
        subject: str,
        names: list[x509.GeneralName],
        begin: datetime.datetime = NOW - 2 * DAY,
        end: datetime.datetime = NOW + DAY,
        ca: bool = False,
        use: x509.ObjectIdentifier | None = None,
    ) -> x509.Certificate:
        """Sign a certificate."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if use is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return builder.sign(self.key, SHA256())


TRUSTED, STRANGE = Authority("Trusted"), Authority("Strange")
LOCAL: list[x509.GeneralName] = [x509.DNSName("localhost")]


class ServerContext(ContextFactory):
    """The context factory of a server with one certificate."""

    def __init__(self, key: Any, certificate: x509.Certificate) -> None:
        self.context = Context(TLS_SERVER_METHOD)
        self.context.use_privatekey(key)
        self.context.use_certificate(certificate)

    def getContext(self) -> Context:
        """Return the context."""
        return self.context


def serving(names: list[x509.GeneralName], by: Authority = TRUSTED, **more: Any) -> ServerContext:
    """Return a server context whose certificate has these names."""
    key = ec.generate_private_key(ec.SECP256R1())
    return ServerContext(key, by.sign(key.public_key(), "localhost", names, **more))


class ProxyConnection(ProxyServer):
    """
    A proxy connection that is known while it is open.

    Twisted's own proxy pauses its transport until the router is reached: over TLS, a client that disconnects
    meanwhile is not noticed, and the socket stays open until it is garbage collected.
    """

    def connectionMade(self) -> None:
        """Connect to the router."""
        self.factory.connections.add(self)
        super().connectionMade()

    def connectionLost(self, reason: Any) -> None:
        """Disconnect from both sides."""
        self.factory.connections.discard(self)
        super().connectionLost(reason)


class QuietProxyFactory(ProxyFactory):
    """A proxy without a log."""

    noisy = False
    protocol = ProxyConnection

    def __init__(self, router: Router) -> None:
        super().__init__("127.0.0.1", router.port)
        self.connections: set[ProxyConnection] = set()


class TlsProxy:
    """A TLS proxy before the router, with one certificate, that records connections."""

    def __init__(self, router: Router, context: ServerContext) -> None:
        self._factory = QuietProxyFactory(router)
        self.port = reactor.listenSSL(0, self._factory, context, interface="127.0.0.1")

    def url(self, scheme: str, host: str) -> str:
        """Return the URL of the proxy."""
        path = "/ws" if scheme == "wss" else ""
        return f"{scheme}://{host}:{self.port.getHost().port}{path}"

    async def close(self) -> None:
        """Stop listening, and close open connections."""
        await self.port.stopListening()
        for connection in list(self._factory.connections):
            connection.transport.abortConnection()
        await until(lambda: not self._factory.connections)


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust one authority."""
    file = tmp_path / "authorities.pem"
    file.write_bytes(TRUSTED.certificate.public_bytes(Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))


@pytest.fixture
def logged_errors() -> Iterator[list[dict[str, Any]]]:
    """Collect logged errors."""
    events: list[dict[str, Any]] = []

    def observe(event: dict[str, Any]) -> None:
        if event["log_level"] >= LogLevel.error or "log_failure" in event:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def named() -> Iterator[None]:
    """Resolve each name below `example` to this machine."""
    known: Any = reactor
    from twisted.internet._resolver import HostResolution
    from twisted.internet.address import IPv4Address
    from twisted.internet.interfaces import IHostnameResolver
    from zope.interface import implementer

    @implementer(IHostnameResolver)
    class Here:
        def resolveHostName(
            self, receiver: Any, hostName: str, portNumber: int = 0, *rest: Any, **more: Any
        ) -> Any:
            if not hostName.endswith(".example"):
                return before.resolveHostName(receiver, hostName, portNumber, *rest, **more)
            resolution = HostResolution(hostName)
            receiver.resolutionBegan(resolution)
            receiver.addressResolved(IPv4Address("TCP", "127.0.0.1", portNumber))
            receiver.resolutionComplete()
            return resolution

    before = known.installNameResolver(Here())
    yield
    known.installNameResolver(before)


async def refusal_reason(url: str, router: Router, events: list[dict[str, Any]]) -> str | None:
    """Return why a service does not join at a URL, or None once it has joined."""
    observer = RecordingSubscriber()
    config = WampConfig([url], router.realm, first_delay=60, max_delay=60)
    client = WampClient(reactor, config, [observer])
    client.startService()
    try:
        await until(lambda: client.joined or bool(reasons(events)))
        assert client.joined == (observer.session is not None)
        return None if client.joined else reasons(events)[0]
    finally:
        await client.stopService()


GOOD = {
    "name": (LOCAL, "localhost"),
    "second name": ([x509.DNSName("other.example"), *LOCAL], "localhost"),
    "capitals": (LOCAL, "LOCALHOST"),
    "address": ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], "127.0.0.1"),
    "wildcard": ([x509.DNSName("*.rowcast.example")], "one.rowcast.example"),
    "international": ([x509.DNSName("xn--bcher-kva.example")], "bücher.example"),
}


@pytest.mark.parametrize("scheme", ["wss", "rss"])
@pytest.mark.parametrize("case", GOOD)
@pytest.mark.usefixtures("trust", "named")
@pytest_twisted.ensureDeferred
async def test_server_with_a_good_certificate_is_joined(
    scheme: str, case: str, router: Router, logged: list[dict[str, Any]]
) -> None:
    """A trusted certificate with the host's name or address in its subjectAltName is joined."""
    names, host = GOOD[case]
    proxy = TlsProxy(router, serving(names))
    assert await refusal_reason(proxy.url(scheme, host), router, logged) is None
    await proxy.close()


IP = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
MANY: list[x509.GeneralName] = [x509.DNSName(f"n{n}.example") for n in range(8)]
BAD: dict[str, tuple[list[x509.GeneralName], str, dict[str, Any], str]] = {
    "foreign": (
        [x509.DNSName("a.example"), x509.DNSName("b.example")],
        "localhost",
        {},
        "certificate is for a.example, b.example, not localhost",
    ),
    "foreign of many names": (
        MANY,
        "localhost",
        {},
        "certificate is for n0.example, n1.example, n2.example, n3.example, n4.example and 3 more,"
        " not localhost",
    ),
    "no subjectAltName": (
        [],
        "localhost",
        {},
        "certificate has no subjectAltName, and so is not for localhost"
        " (its subject, CN=localhost, does not count)",
    ),
    "no name of a host": (
        [x509.RFC822Name("me@localhost")],
        "localhost",
        {},
        "certificate has no subjectAltName, and so is not for localhost"
        " (its subject, CN=localhost, does not count)",
    ),
    "malformed name": (
        [x509.DNSName("*.example"), *LOCAL],
        "localhost",
        {},
        "certificate cannot be read: Certificate's DNS-ID b'*.example' has too few host components"
        " for wildcard usage.",
    ),
    "address for a name": (
        [IP],
        "localhost",
        {},
        "certificate is for 127.0.0.1, not localhost",
    ),
    "name for an address": (
        LOCAL,
        "127.0.0.1",
        {},
        "certificate is for localhost, not 127.0.0.1",
    ),
    "other address": (
        [x509.IPAddress(ipaddress.ip_address("127.0.0.2"))],
        "127.0.0.1",
        {},
        "certificate is for 127.0.0.2, not 127.0.0.1",
    ),
    "wildcard one level up": (
        [x509.DNSName("*.rowcast.example")],
        "a.one.rowcast.example",
        {},
        "certificate is for *.rowcast.example, not a.one.rowcast.example",
    ),
    "wildcard alone": (
        [x509.DNSName("*.rowcast.example")],
        "rowcast.example",
        {},
        "certificate is for *.rowcast.example, not rowcast.example",
    ),
    "expired": (
        LOCAL,
        "localhost",
        {"end": NOW - DAY},
        f"certificate expired on {NOW - DAY:%Y-%m-%d %H:%M} UTC",
    ),
    "not yet valid": (
        LOCAL,
        "localhost",
        {"begin": NOW + DAY, "end": NOW + 2 * DAY},
        f"certificate is not valid before {NOW + DAY:%Y-%m-%d %H:%M} UTC",
    ),
    "unknown authority": (
        LOCAL,
        "localhost",
        {"by": STRANGE},
        "certificate is of an unknown authority, CN=Strange (SSL_CERT_FILE names the known)",
    ),
    "for clients": (
        LOCAL,
        "localhost",
        {"use": x509.ExtendedKeyUsageOID.CLIENT_AUTH},
        "certificate is not one for servers",
    ),
}


@pytest.mark.parametrize("scheme", ["wss", "rss"])
@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("trust", "named")
@pytest_twisted.ensureDeferred
async def test_bad_certificate_is_refused_with_its_reason(
    scheme: str,
    case: str,
    router: Router,
    logged: list[dict[str, Any]],
    logged_errors: list[dict[str, Any]],
) -> None:
    """Nothing is joined; the log has one line with the reason, and no traceback."""
    names, host, more, why = BAD[case]
    proxy = TlsProxy(router, serving(names, **more))
    assert await refusal_reason(proxy.url(scheme, host), router, logged) == why
    assert logged_errors == []
    await proxy.close()


@pytest.mark.parametrize("scheme", ["wss", "rss"])
@pytest.mark.usefixtures("trust")
@pytest_twisted.ensureDeferred
async def test_self_signed_certificate_is_refused_unless_trusted(
    scheme: str,
    router: Router,
    logged: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is accepted if it is among the trusted certificates."""
    own = Authority("localhost")
    own.certificate = own.sign(own.key.public_key(), "localhost", LOCAL)
    proxy = TlsProxy(router, ServerContext(own.key, own.certificate))
    url = proxy.url(scheme, "localhost")
    why = "certificate is self-signed, and not trusted here (SSL_CERT_FILE names what is)"
    assert await refusal_reason(url, router, logged) == why
    file = tmp_path / "own.pem"
    file.write_bytes(own.certificate.public_bytes(Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    logged.clear()
    assert await refusal_reason(url, router, logged) is None
    await proxy.close()


class Answers(Protocol):
    """A server that answers the first bytes by something other than TLS, or by closing."""

    def dataReceived(self, data: bytes) -> None:
        """Answer."""
        said: bytes = self.factory.said  # type: ignore[attr-defined]
        self.transport.write(said)
        if not said:
            self.transport.loseConnection()


@pytest.mark.parametrize("scheme", ["wss", "rss"])
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS (ws:// and rs:// go without)"),
        (b"", "closed during the TLS handshake: is that a port for TLS?"),
    ],
)
@pytest.mark.usefixtures("trust")
@pytest_twisted.ensureDeferred
async def test_server_without_tls_is_reported_as_such(
    scheme: str, said: bytes, why: str, router: Router, logged: list[dict[str, Any]]
) -> None:
    """The error says that the server does not use TLS."""
    factory: Any = Factory.forProtocol(Answers)
    factory.noisy, factory.said = False, said
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    url = f"{scheme}://localhost:{port.getHost().port}/"
    found = await refusal_reason(url, router, logged)
    assert found is not None
    assert found.endswith(why)
    await port.stopListening()


@pytest.mark.parametrize("scheme", ["wss", "rss"])
@pytest.mark.usefixtures("trust")
@pytest_twisted.ensureDeferred
async def test_silent_server_is_given_up_in_its_handshake(
    scheme: str, router: Router, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts and sends nothing is given up after the timeout of a login."""
    shorten_steps(monkeypatch, 1.0)
    factory: Any = Factory.forProtocol(Protocol)
    factory.noisy = False
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    url = f"{scheme}://localhost:{port.getHost().port}/"
    assert await refusal_reason(url, router, logged) == "no answer to the TLS handshake"
    await port.stopListening()
