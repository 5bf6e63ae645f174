"""
The embedded router: Crossbar, in an environment of its own, as a supervised child.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, cast

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from schema.child import leashed, socket_directory
from schema.database import PROJECT
from service.embedded.bridge import bridge
from service.embedded.node import node
from service.embedded.supervised import NotReady, Supervised
from service.settings import Settings

SOCKET = "service.sock"
CODE = PROJECT / "router"
"""What runs in the router's own process."""


class Router(Supervised):
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
        super().__init__(reactor, "the embedded router", settings.state / "router.log")

    @property
    def socket(self) -> Path:
        """Where the service connects."""
        return socket_directory(self._home, SOCKET) / SOCKET

    @property
    def version(self) -> str:
        """Crossbar's version, as its environment names it."""
        packages = self._settings.crossbar.parent.parent.glob(
            "lib/*/site-packages/crossbar-*.*-info"
        )
        return next((path.name.split("-")[1].removesuffix(".dist") for path in packages), "")

    async def prepare(self) -> list[str]:
        """Write the configuration, and clear away what a killed node left."""
        # In a thread: whoever has the port is looked for among all processes of the machine.
        threads = self.reactor.getThreadPool()
        problem = await deferToThreadPool(self.reactor, threads, obstacle, self._settings)
        if problem:
            raise NotReady(problem)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings, self._bridge = self._settings, bridge(self._settings.state)
        config = node(
            settings.realm,
            settings.prefix,
            settings.port,
            self.socket,
            self._bridge,
            str(CODE),
        )
        (self._home / "config.json").write_text(json.dumps(config, indent=1))
        # A process id that is in use again would keep the node from starting.
        (self._home / "node.pid").unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        crossbar = [str(self._settings.crossbar), "start", "--cbdir", str(self._home)]
        options = ["--loglevel", "warn", "--color", "false", "--logformat", "none"]
        return leashed([*crossbar, *options], SIGTERM)

    async def ready(self, pid: int) -> bool:
        """Whether every door is open; the HTTP bridge is the last."""
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self._settings.port, timeout=5)
        try:
            knock = cast(Knock, await endpoint.connect(Knocks(self._bridge)))
            return b" 405 " in await knock.answer.addTimeout(5, self.reactor)
        except (ConnectError, Late):
            return False

    def sweep(self, pid: int) -> None:
        """Kill the worker of a controller that was killed: it keeps the port for seconds."""
        with suppress(ProcessLookupError):
            os.killpg(pid, SIGKILL)

    def ask_to_end(self) -> str:
        """Crossbar ends its worker first."""
        return "TERM"


class Knock(Protocol):
    """
    Asks the HTTP bridge for what it refuses (405), which only a bridge that is there does.

    Args:
        path: The bridge's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.answer: Deferred[bytes] = Deferred()
        self._heard = b""

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self.transport.write(f"GET /{self._path} HTTP/1.0\r\n\r\n".encode())

    def dataReceived(self, data: bytes) -> None:
        """Listen."""
        self._heard += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Tell what was heard."""
        if not self.answer.called:
            self.answer.callback(self._heard)


class Knocks(Factory):
    """
    Makes a `Knock`, without a line in the log for each.

    Args:
        path: The bridge's.
    """

    noisy = False

    def __init__(self, path: str) -> None:
        self._path = path

    def buildProtocol(self, addr: Any) -> Knock:
        """Make one."""
        return Knock(self._path)


def obstacle(settings: Settings) -> str | None:
    """Say what keeps the router from starting, if anything does."""
    if not settings.crossbar.is_file():
        return (
            f"the router is not installed ({settings.crossbar}) → make .venv-router,"
            " or ROWCAST_ROUTER_URL=ws://host/ws for one of your own"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError as error:
            return _refused(settings.port, error)
    return None


def _refused(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        another = port + 1 if port < 65535 else port - 1
        return f"port {port} is taken{_by_whom(port)} → PORT={another} make run"
    return f"port {port} cannot be used: {error.strerror} → PORT=8080 make run"


def _by_whom(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""
