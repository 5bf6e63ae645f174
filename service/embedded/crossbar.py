"""
The embedded router: Crossbar, in a virtual environment of its own, as a supervised child process.

It has two transports. Whoever can open its private Unix socket has the role of the service. On one TCP port
of 127.0.0.1 every session is `anonymous`, and may call and subscribe below the prefix. Clients get no
permission for the empty prefix, which would include `wamp.session.kill` and `register`.

Crossbar's HTTP bridge answers pages of every origin, with credentials, and has no setting to prevent that.
So a page from anywhere could use the database of the user who opens it, if it knew the URL: the path is a
secret.
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

MAX_MESSAGE = 16 * 1024 * 1024
"""Maximum bytes of a message: the limit of RawSocket, set for WebSocket too, so both read every answer."""


SOCKET = "service.sock"
CODE = PROJECT / "router"
"""The code of this project that runs in the router's process."""


class Crossbar(Supervised):
    """
    Writes the node's configuration and runs the node.

    Args:
        reactor: Spawns the process.
        settings: Has the realm, the prefix, the port, and the path of Crossbar.
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
        """The path of the socket that the service connects to."""
        return socket_directory(self._home, SOCKET) / SOCKET

    @property
    def version(self) -> str:
        """The version of Crossbar in its virtual environment."""
        # `importlib.metadata` sees only the environment of the service.
        packages = self._settings.crossbar.parent.parent.glob(
            "lib/*/site-packages/crossbar-*.*-info"
        )
        return next((path.name.split("-")[1].removesuffix(".dist") for path in packages), "")

    async def prepare(self) -> list[str]:
        """Write the configuration, and remove the files that a killed node has left."""
        # In a thread, since the file system may block.
        threads = self.reactor.getThreadPool()
        problem = await deferToThreadPool(self.reactor, threads, obstacle, self._settings)
        if problem:
            raise NotReady(problem)
        # Crossbar creates its socket with mode 0666, so the directory has to keep other users out.
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
        # If its process id is in use by another process, the node refuses to start.
        (self._home / "node.pid").unlink(missing_ok=True)
        # A socket cannot be bound to a path where a killed node has left its file.
        self.socket.unlink(missing_ok=True)
        return node_command(self._settings.crossbar, self._home)

    async def ready(self, pid: int) -> bool:
        """Return whether all transports are open; the HTTP bridge is the last one to open."""
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self._settings.port, timeout=5)
        probes = Factory.forProtocol(partial(Probe, self._bridge))
        probes.noisy = False  # else it logs a line for each check
        try:
            probe = cast(Probe, await endpoint.connect(probes))
            return b" 405 " in await probe.answer.addTimeout(5, self.reactor)
        except (ConnectError, Late):
            return False

    def sweep(self, pid: int) -> None:
        """Kill the worker of a controller that was killed; it would keep the port for seconds."""
        with suppress(ProcessLookupError):
            os.killpg(pid, SIGKILL)

    def shutdown_signal(self) -> str:
        """Return the signal at which Crossbar ends its worker before itself."""
        return "TERM"


def node_command(crossbar: str | Path, home: Path) -> list[str]:
    """
    Return the command that runs a node, which ends together with this process.

    Args:
        crossbar: The path of the program.
        home: The directory of its `config.json`.
    """
    # With this path the controller process, too, skips the imports that it does not need at its start.
    start = ["/usr/bin/env", f"PYTHONPATH={CODE}", str(crossbar), "start", "--cbdir", str(home)]
    # At `info` Crossbar logs 128 lines at its start and several for each session.
    options = ["--loglevel", "warn", "--color", "false", "--logformat", "none"]
    # A killed service cannot end its router, which would then keep the port.
    return bound_to_parent([*start, *options], SIGTERM)


class Probe(Protocol):
    """
    Sends the HTTP bridge a GET, which it refuses with 405 once it is open.

    Args:
        path: The path of the bridge.
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
        """Collect the response."""
        self._response += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Fire `answer` with the response."""
        if not self.answer.called:
            self.answer.callback(self._response)


def obstacle(settings: Settings) -> str | None:
    """Return the message why the router cannot start; None if it can."""
    if not settings.crossbar.is_file():
        return (
            f"the router is not installed ({settings.crossbar}) → make .venv-router,"
            " or ROWCAST_ROUTER_URL=ws://host/ws for one of your own"
        )
    with socket.socket() as probe:
        # Connections of a router that has just ended are in TIME_WAIT, and would make the port seem taken.
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
        # A path that other users could have read, or that is empty, is replaced by a new one.
        known = file.read_text().strip()
        if known and not file.stat().st_mode & 0o077:
            return known
    state.mkdir(parents=True, exist_ok=True)
    path = f"call-{secrets.token_urlsafe(24)}"
    new = file.with_name(f"{FILE}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(path)
    # Renamed into place, so that a concurrent start never reads a part of the path.
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
        realm: The name of the only realm.
        prefix: The prefix of procedure URIs, without the dot.
        port: TCP port on 127.0.0.1 for WebSocket (`/ws`), RawSocket and HTTP.
        socket: Path of the Unix socket for the service, with RawSocket and CBOR.
        bridge: Path of the HTTP bridge, a secret because it answers every origin; "" for no bridge.
        code: Directory of the router's `component` package; "" if it is in PYTHONPATH.
        connections: Maximum number of database connections of the service.
    """
    everyone = {"anonymous": {"type": "static", "role": "anonymous"}}
    service = {"anonymous": {"type": "static", "role": "service"}}
    websocket = {
        "type": "websocket",
        "serializers": SERIALIZERS,
        "auth": everyone,
        "options": {
            # A page of another origin must not use the database through the browser of a local user.
            "allowed_origins": ["http://127.0.0.1:*", "http://localhost:*"],
            "allow_null_origin": False,
            # Crossbar buffers what a client does not read; the pings find a client that has stopped.
            "auto_ping_interval": 20_000,
            "auto_ping_timeout": 10_000,
            "max_frame_size": MAX_MESSAGE,
            "max_message_size": MAX_MESSAGE,
        },
    }
    public: dict[str, Any] = {
        "type": "universal",
        # For this machine only, since sessions need not log in here.
        "endpoint": {"type": "tcp", "port": port, "interface": "127.0.0.1"},
        "rawsocket": {"serializers": SERIALIZERS, "auth": everyone},
        "websocket": {"ws": websocket},
    }
    if bridge:
        # Nothing at "/": Crossbar's `nodeinfo` there would also answer for every path below it.
        caller = {"type": "caller", "realm": realm, "role": "anonymous"}
        public["web"] = {"paths": {bridge: caller}}
    private = {
        "type": "rawsocket",
        "endpoint": {"type": "unix", "path": str(socket)},
        # CBOR only: a client's dict with integer keys ends the connection in MessagePack, and its string
        # that begins with NUL ends it in JSON.
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
        # Crossbar discloses callers only by this setting; a CALL that asks for it is not enough.
        "disclose": {"caller": True, "publisher": True},
        # The cache, by role, URI and action, never expires, which is right for static roles.
        "cache": True,
    }
    return {"name": name, "permissions": [permission]}
