"""
One caller with many calls in flight: `python -m bench.crowd [--what large|many|flood] [--hold 15]`.

`large`: 150 calls in flight with results of 8 MB each, from a caller that reads nothing for `--hold`
seconds, then everything. `many`: 20,000 calls in flight with results of 100 rows, all of them read.
`flood`: 10,000 calls of `get` in flight for `--hold` seconds; each call that ends is followed by
another one. Prints the memory of the service and the router, how the calls ended, and the latency of
other callers' `get` before and meanwhile.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from bench.stage import staged
from bench.stream import Guest, Others, join

SCHEMA = """
CREATE TABLE wide AS SELECT i AS id, repeat('x', 7900) AS body FROM generate_series(1, 1000) i;
ALTER TABLE wide ADD PRIMARY KEY (id);
ANALYZE;
"""

CALLS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "large": (150, "rowcast.wide.find", {"limit": 1000}),
    "many": (20_000, "rowcast.small.find", {"limit": 100}),
    "flood": (10_000, "rowcast.small.get", {"key": 1}),
    "gets": (10_000, "rowcast.small.get", {"key": 1}),
}


def main() -> None:
    """Measure, or run one of the callers."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--what", choices=list(CALLS), default="large")
    options.add_argument("--hold", type=float, default=15.0)
    options.add_argument("--others", type=int, default=4, help="callers of get")
    options.add_argument("--take", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.take:
        join(given.take, Crowd(given))
        return
    with staged(given.crossbar, SCHEMA) as stage:
        join(stage.websocket, Others(given, stage, "bench.crowd"))


class Crowd(Guest):
    """The caller with many calls in flight."""

    async def go(self, session: Any) -> None:
        """Call, read nothing for a while if the results are large, and count how the calls ended."""
        number, uri, arguments = CALLS[self.given.what]
        began, end = time.monotonic(), time.monotonic() + self.given.hold
        ended: Counter[str] = Counter()

        def count(result: Any) -> None:
            ended[getattr(getattr(result, "value", None), "error", "answered")] += 1

        def call() -> Deferred[None]:
            return session.call(uri, **arguments).addBoth(count)

        async def go_on() -> None:
            while time.monotonic() < end:
                refused = ended["rowcast.error.unavailable"]
                await call()
                if ended["rowcast.error.unavailable"] > refused:  # retry_after
                    await deferLater(reactor, random.uniform(0.5, 1.5))

        if self.given.what == "flood":
            calls = [Deferred.fromCoroutine(go_on()) for _ in range(number)]
        else:
            calls = [call() for _ in range(number)]
        if self.given.what == "large":
            await deferLater(reactor, 0.05)
            session._open.transport.pauseProducing()
            await deferLater(reactor, self.given.hold)
            session._open.transport.resumeProducing()
        await gatherResults(calls)
        print(f"{dict(ended)}, {time.monotonic() - began:.1f} s")
        again = time.monotonic()
        await session.call("rowcast.small.get", 1)
        print(f"served again in {(time.monotonic() - again) * 1000:.0f} ms")


if __name__ == "__main__":
    main()
