"""
A complete service in a separate process, for tests with several: `python -m tests.wamp.replica dsn socket`.

Prints a line when it has joined.
"""

from __future__ import annotations

import sys

from pydantic import SecretStr
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol

from service.app import Serving
from service.settings import Settings
from service.wamp.client import WampConfig
from tests.conftest import ROOT, Router
from tests.wamp.service import UNHURRIED


class Child(ProcessProtocol):
    """
    A service as a child of this process.

    Args:
        module: The module that serves.
        arguments: Its arguments.

    Attributes:
        ready: A Deferred that fires when the service has joined.
        ended: A Deferred that fires when its process has ended.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.errors = b""
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        command = [sys.executable, "-m", module, *arguments]
        reactor.spawnProcess(self, sys.executable, command, env=None, path=str(ROOT))

    def outReceived(self, data: bytes) -> None:
        """Fire `ready`."""
        if not self.ready.called:
            self.ready.callback(None)

    def errReceived(self, data: bytes) -> None:
        """Collect error output."""
        self.errors += data

    def processEnded(self, reason: object) -> None:
        """Fire `ended`."""
        if not self.ready.called:
            self.ready.errback(RuntimeError(self.errors.decode()))
        self.ended.callback(None)

    def kill(self) -> Deferred[None]:
        """Kill the process; return `ended`."""
        if not self.ended.called:
            self.transport.signalProcess("KILL")
        return self.ended


def replica(dsn: str, router: Router) -> Child:
    """Start a complete service."""
    return Child("tests.wamp.replica", dsn, str(router.socket))


def main(dsn: str, socket: str) -> None:
    """Serve until killed."""
    settings = Settings(database_url=SecretStr(dsn), shared=True, **UNHURRIED)
    config = WampConfig([f"unix:{socket}"], "realm1", first_delay=0.05)
    service = Serving(settings, reactor, config)
    service.startService()
    joined = Deferred.fromCoroutine(service.joined())
    joined.addCallback(lambda _: print("joined", flush=True))
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
