"""
The service of a benchmark: `python -m bench.served <dsn> <url of the router> [probed]`.

It imports only what the service imports, so that its memory is that of the service. `probed` adds
`bench.lag`, which returns the loop lag since its last call.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

from pydantic import SecretStr
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from service.app import Serving, freeze_memory
from service.settings import Settings
from service.wamp.client import WampConfig
from tests.db.lag import LagProbe


def serve(dsn: str, url: str, probed: bool) -> None:
    """Run the service until a signal ends it; print "joined" when it is registered."""
    settings = Settings(database_url=SecretStr(dsn))
    serving = Serving(settings, reactor, WampConfig([url], "realm1", max_bytes=settings.max_bytes))
    probe = LagProbe(reactor)

    async def lag(caller: Any, args: Any, kwargs: Any) -> Any:
        found = [probe.quantile(part) * 1000 for part in (0.5, 0.99, 1.0)] if probe.lags else []
        probe.lags.clear()
        return found

    serving.dispatcher.add({"bench.lag": lag})
    serving.startService()

    async def run() -> None:
        await serving.joined()
        freeze_memory()
        print("joined", flush=True)

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()))
    reactor.addSystemEventTrigger("before", "shutdown", serving.stopService)
    with probe if probed else nullcontext():
        reactor.run()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], "probed" in sys.argv[3:])
