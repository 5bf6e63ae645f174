"""
A stream of 1,000,000 rows × 200 bytes: `python -m bench.stream [--crossbar PATH] [--pause 0.01]`.

Prints the memory of the service and the router, the loop lag of the service, and the latency of other
callers' `get` before and meanwhile. `--pause` makes the caller slow: it sleeps that many seconds after
each chunk. `--verb export` measures `export` instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from autobahn.wamp.types import CallOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from bench.stage import Peaks, Stage, quantiles, staged
from service.wamp.client import WampClient, WampConfig

SCHEMA = """
CREATE TABLE big (id int PRIMARY KEY, at timestamptz NOT NULL, price numeric NOT NULL, body text);
INSERT INTO big SELECT i, '2026-01-01Z'::timestamptz + i * '1s'::interval, i * 1.25,
    repeat('x', 160) FROM generate_series(1, {rows}) i;
ANALYZE big;
"""


def main() -> None:
    """Measure, or run one of the callers."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--verb", choices=["stream", "export"], default="stream")
    options.add_argument("--pause", type=float, default=0.0)
    options.add_argument("--others", type=int, default=4, help="callers of get")
    options.add_argument("--arguments", type=json.loads, default={})
    options.add_argument("--take", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.take:
        join(given.take, Taker(given))
        return
    with staged(given.crossbar, SCHEMA.format(rows=given.rows)) as stage:
        join(stage.websocket, Others(given, stage, "bench.stream"))


def join(url: str, guest: Any) -> None:
    """Run a caller until it stops the reactor."""
    WampClient(reactor, WampConfig([url], "realm1"), [guest]).startService()
    reactor.run()


class Guest:
    """A caller that runs `go` and then stops the reactor."""

    def __init__(self, given: Any) -> None:
        self.given = given

    async def joined(self, session: Any, details: Any) -> None:
        """Start `go`, without waiting for it."""
        Deferred.fromCoroutine(self.go(session)).addBoth(self.done)

    async def go(self, session: Any) -> None:
        """Make the calls."""
        raise NotImplementedError

    def done(self, result: Any) -> None:
        """Print an error, if there is one, and stop the reactor."""
        if result is not None:
            print(f"failed: {result.value!r}", file=sys.stderr)
        reactor.stop()

    def displaced(self, registration: int) -> None:
        """Do nothing: this session holds no state."""

    async def leaving(self) -> None:
        """Do nothing: this session holds no state."""

    def left(self) -> None:
        """Do nothing: this session holds no state."""


class Held(Guest):
    """An observer that passes its session on through a Deferred."""

    def __init__(self, here: Deferred[Any]) -> None:
        super().__init__(None)
        self.here = here

    async def joined(self, session: Any, details: Any) -> None:
        """Fire the Deferred with the session."""
        self.here.callback(session)


class Taker(Guest):
    """The caller that receives the rows."""

    async def go(self, session: Any) -> None:
        """Receive all rows, slowly with `--pause`; print their number and the duration."""
        parts = 0

        def take(part: Any) -> None:
            nonlocal parts
            parts += 1
            time.sleep(self.given.pause)

        began = time.monotonic()
        uri = f"rowcast.big.{self.given.verb}"
        options = CallOptions(on_progress=take)
        answer = await session.call(uri, options=options, **self.given.arguments)
        print(f"{answer} in {parts} parts, {time.monotonic() - began:.1f} s")


class Others(Guest):
    """The other callers, whose latency is measured before and meanwhile."""

    def __init__(self, given: Any, stage: Stage, module: str) -> None:
        super().__init__(given)
        self.stage = stage
        self.module = module

    async def go(self, session: Any) -> None:
        """Measure alone, then during the stream."""
        self.sessions = [session]
        for _ in range(self.given.others - 1):
            more: Deferred[Any] = Deferred()
            WampClient(
                reactor, WampConfig([self.stage.websocket], "realm1"), [Held(more)]
            ).startService()
            self.sessions.append(await more)
        await self.gets(time.monotonic() + 2, None)
        await session.call("rowcast.bench.lag")
        alone = await self.gets(time.monotonic() + 6, None)
        print(f"get alone:   {quantiles(alone)}")
        print(f"loop lag:    {words(await session.call('rowcast.bench.lag'))}")
        command = [sys.executable, "-m", self.module, *sys.argv[1:], "--take", self.stage.url]
        pids = {"service": self.stage.service, "router": self.stage.router}
        with Peaks(pids) as peaks:
            taker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            beside = await self.gets(None, taker)
        print(f"get beside:  {quantiles(beside)}; p99 {p99(beside) / p99(alone):.1f} × alone")
        print(f"loop lag:    {words(await session.call('rowcast.bench.lag'))}")
        print(f"memory:      {peaks.words()}")
        assert taker.stdout is not None
        print(f"taker:       {taker.stdout.read().strip()}")

    async def gets(self, end: float | None, taker: Any) -> list[float]:
        """Get a row repeatedly in each of several sessions, with a pause in between."""
        taken: list[float] = []

        async def loop(session: Any) -> None:
            key = 1
            while taker.poll() is None if end is None else time.monotonic() < end:
                began = time.monotonic()
                await session.call("rowcast.small.get", key % 10_000)
                taken.append(time.monotonic() - began)
                key += 1
                await deferLater(reactor, 0.01)

        await gatherResults([Deferred.fromCoroutine(loop(each)) for each in self.sessions])
        return taken


def p99(taken: list[float]) -> float:
    """Return the 99th percentile, in seconds."""
    return sorted(taken)[int(0.99 * (len(taken) - 1))]


def words(lag: list[float]) -> str:
    """Return the loop lag as text."""
    return "p50 {:.1f} p99 {:.1f} most {:.1f} ms".format(*lag)


if __name__ == "__main__":
    main()
