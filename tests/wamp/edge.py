"""
A WAMP edge with a fake dispatcher, in a separate process: `python -m tests.wamp.edge url realm prefix [how]`.

`how` is the registration: shared (the default) or single. Prints a line when it has joined.
"""

from __future__ import annotations

import sys

from twisted.internet import reactor

from service.wamp.callee import Callee
from service.wamp.client import WampClient, WampConfig
from tests.fakes import FakeDispatcher


def main(url: str, realm: str, prefix: str, how: str = "shared") -> None:
    """Serve until killed."""
    dispatch = Callee(reactor, FakeDispatcher().answer, prefix, shared=how == "shared")
    client = WampClient(reactor, WampConfig([url], realm), [dispatch])
    client.startService()
    client.when_joined().addCallback(lambda _: print("joined", flush=True))
    reactor.addSystemEventTrigger("before", "shutdown", client.stopService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
