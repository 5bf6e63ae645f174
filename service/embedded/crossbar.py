"""
The embedded router: Crossbar, in an environment of its own, as a supervised child.

Two doors: a private Unix socket, where whoever can open it is the service, and one TCP port
on 127.0.0.1, where everyone is `anonymous` and may call and subscribe below the prefix. No
client is given the empty prefix: it would include `wamp.session.kill` and `register`.

Crossbar's HTTP bridge answers pages of every origin, with credentials, and has no setting for it.
So any page could use the database of whoever reads it if it knew where to send its calls: the
path is a secret.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from schema.child import bound_to_parent, socket_directory
from schema.database_url import PROJECT
from service.embedded.supervisor import NotReady, Supervised
from service.settings import Settings

FILE = "bridge"


SERIALIZERS = ["cbor", "msgpack", "json"]

# RawSocket allows 16 MiB; a WebSocket takes as much, so that every client can read every answer.
LARGEST_MESSAGE = 16 * 1024 * 1024


SOCKET = "service.sock"
CODE = PROJECT / "router"
"""What runs in the router's own process."""


class Crossbar(Supervised):
    """
    Writes the node's configuration and runs the node.

    Args:
        reactor: For the process, pauses and connections.
        settings: The realm, the prefix, the port, and where Crossbar is.
    """

    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.state / f"router-{settings.port}"
        self._bridge = ""
        super().__init__(
            reactor, "the embedded router", settings.state / f"router-{settings.port}.log"
        )

    @property
    def socket(self) -> Path:
        """Where the service connects."""
        return socket_directory(self._home, SOCKET) / SOCKET

    @property
    def version(self) -> str:
        """Crossbar's version, as its environment names it."""
        # It is in an environment of its own, which our `importlib.metadata` does not see.
        packages = self._settings.crossbar.parent.parent.glob(
            "lib/*/site-packages/crossbar-*.*-info"
        )
        return next((path.name.split("-")[1].removesuffix(".dist") for path in packages), "")

    async def prepare(self) -> list[str]:
        """Write the configuration, and clear away what a killed node left."""
        # In a thread: what it asks of the file system may block.
        threads = self.reactor.getThreadPool()
        problem = await deferToThreadPool(self.reactor, threads, obstacle, self._settings)
        if problem:
            raise NotReady(problem)
        # Crossbar makes its socket with mode 0666: the directory keeps others out.
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings, self._bridge = self._settings, bridge(self._settings.state)
        config = node(
            settings.realm,
            settings.prefix,
            settings.port,
            self.socket,
            self._bridge,
            str(CODE),
            settings.pool_max,
        )
        (self._home / "config.json").write_text(json.dumps(config, indent=1))
        # A process id that is in use again would keep the node from starting.
        (self._home / "node.pid").unlink(missing_ok=True)
        # Nor can a socket be bound where a killed node has left its file.
        self.socket.unlink(missing_ok=True)
        return node_command(self._settings.crossbar, self._home)

    async def ready(self, pid: int) -> bool:
        """Return whether every transport is open; the HTTP bridge is the last."""
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self._settings.port, timeout=5)
        probes = Factory.forProtocol(partial(Probe, self._bridge))
        probes.noisy = False  # it would log a line for each look
        try:
            probe = cast(Probe, await endpoint.connect(probes))
            return b" 405 " in await probe.answer.addTimeout(5, self.reactor)
        except (ConnectError, Late):
            return False

    def sweep(self, pid: int) -> None:
        """Kill the worker of a controller that was killed: it keeps the port for seconds."""
        with suppress(ProcessLookupError):
            os.killpg(pid, SIGKILL)

    def ask_to_end(self) -> str:
        """Return the signal upon which Crossbar ends its worker first."""
        return "TERM"


def node_command(crossbar: str | Path, home: Path) -> list[str]:
    """
    Return the command of a node, which ends with this process.

    Args:
        crossbar: The program.
        home: Where its `config.json` is.
    """
    # By this path Crossbar's own process, too, leaves out what it does not need at its start.
    start = ["/usr/bin/env", f"PYTHONPATH={CODE}", str(crossbar), "start", "--cbdir", str(home)]
    # At `info` Crossbar logs 128 lines at its start and several for each session.
    options = ["--loglevel", "warn", "--color", "false", "--logformat", "none"]
    # A process that was killed could not end its router, which would keep the port.
    return bound_to_parent([*start, *options], SIGTERM)


class Probe(Protocol):
    """
    Asks the HTTP bridge for what it refuses (405), which only a bridge that is there does.

    Args:
        path: The bridge's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.answer: Deferred[bytes] = Deferred()
        self._response = b""

    def connectionMade(self) -> None:
        """Send the request."""
        assert self.transport is not None
        self.transport.write(f"GET /{self._path} HTTP/1.0\r\n\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        """Keep the response."""
        self._response += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Fire `answer` with the response."""
        if not self.answer.called:
            self.answer.callback(self._response)


def obstacle(settings: Settings) -> str | None:
    """Return what keeps the router from starting, if anything does."""
    if not settings.crossbar.is_file():
        return (
            f"the router is not installed ({settings.crossbar}) → make .venv-router,"
            " or ROWCAST_ROUTER_URL=ws://host/ws for one of your own"
        )
    with socket.socket() as probe:
        # Connections of a router that has just ended stay in TIME_WAIT: its port would seem taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError as error:
            return _refused(settings.port, error)
    return None


def _refused(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        another = port + 1 if port < 65535 else port - 1
        return f"port {port} is taken → PORT={another} make run"
    return f"port {port} cannot be used: {error.strerror} → PORT=8080 make run"


def bridge(state: Path) -> str:
    """Return the path of the HTTP bridge, without its first slash; the same at each start."""
    file = state / FILE
    with suppress(FileNotFoundError):
        # One that others could have read, or that was not written to its end, is drawn anew.
        known = file.read_text().strip()
        if known and not file.stat().st_mode & 0o077:
            return known
    state.mkdir(parents=True, exist_ok=True)
    path = f"call-{secrets.token_urlsafe(24)}"
    new = file.with_name(f"{FILE}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(path)
    # Renamed into place, so that no other start reads half a path.
    new.rename(file)
    return path


def node(
    realm: str,
    prefix: str,
    port: int,
    socket: Path,
    bridge: str = "",
    code: str = "",
    connections: int = 0,
) -> dict[str, Any]:
    """
    Return the configuration of a node.

    Args:
        realm: The one realm.
        prefix: What the URIs of procedures begin with, without the dot.
        port: TCP port on 127.0.0.1 for WebSocket (`/ws`), RawSocket and HTTP.
        socket: Where the service connects, with RawSocket and CBOR.
        bridge: Path of the HTTP bridge, a secret: it answers every origin. Without one, no HTTP.
        code: Directory of `component`, which guards the router; unset: it is in PYTHONPATH.
        connections: That the service has to the database.
    """
    everyone = {"anonymous": {"type": "static", "role": "anonymous"}}
    service = {"anonymous": {"type": "static", "role": "service"}}
    websocket = {
        "type": "websocket",
        "serializers": SERIALIZERS,
        "auth": everyone,
        "options": {
            # A page from elsewhere must not reach the database through its reader's browser.
            "allowed_origins": ["http://127.0.0.1:*", "http://localhost:*"],
            "allow_null_origin": False,
            # Crossbar keeps whatever a client does not take; a ping finds one that stands still.
            "auto_ping_interval": 20_000,
            "auto_ping_timeout": 10_000,
            "max_frame_size": LARGEST_MESSAGE,
            "max_message_size": LARGEST_MESSAGE,
        },
    }
    public: dict[str, Any] = {
        "type": "universal",
        # For this machine alone, since nobody has to log in here.
        "endpoint": {"type": "tcp", "port": port, "interface": "127.0.0.1"},
        "rawsocket": {"serializers": SERIALIZERS, "auth": everyone},
        "websocket": {"ws": websocket},
    }
    if bridge:
        # No page at "/": Crossbar's `nodeinfo` there would answer for every path below it too.
        caller = {"type": "caller", "realm": realm, "role": "anonymous"}
        public["web"] = {"paths": {bridge: caller}}
    private = {
        "type": "rawsocket",
        "endpoint": {"type": "unix", "path": str(socket)},
        # CBOR alone: integer keys of a client's end a connection in MessagePack, and a string that
        # begins with NUL one in JSON.
        "serializers": ["cbor"],
        "auth": service,
    }
    component = {
        "type": "class",
        "classname": "component.Component",
        "realm": realm,
        "role": "service",
        "extra": {"prefix": prefix, **({"connections": connections} if connections else {})},
    }
    roles = [
        _role("service", "", "call", "register", "publish", "subscribe"),
        _role("anonymous", f"{prefix}.", "call", "subscribe"),
    ]
    router = {
        "type": "router",
        **({"options": {"pythonpath": [code]}} if code else {}),
        "components": [component],
        "realms": [{"name": realm, "roles": roles}],
        "transports": [private, public],
    }
    return {"version": 2, "controller": {}, "workers": [router]}


def _role(name: str, prefix: str, *allowed: str) -> dict[str, Any]:
    permission = {
        "uri": prefix,
        "match": "prefix",
        "allow": dict.fromkeys(allowed, True),
        # Crossbar tells who calls by this alone; a CALL that asks for it is not enough.
        "disclose": {"caller": True, "publisher": True},
        # Kept by role, URI and action, without an expiry: right for roles that are static.
        "cache": True,
    }
    return {"name": name, "permissions": [permission]}
