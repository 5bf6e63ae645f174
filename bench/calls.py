"""
Calls per second of one procedure, beside an echo on the same router in the same run.

`python -m bench.calls --url rs://127.0.0.1:8080 --procedure rowcast.actions.get --args '[1]' --echo`

With `--echo` an echo procedure is called in turns with it, so that the ratio holds on a noisy
machine. The echo is a service of ours without a dispatcher; it wants a role that may register (default
the router's own socket: `--service unix:.rowcast/router-8080/service.sock`). `--pid NAME=PID` adds
the CPU time a call costs that process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from service.wamp.callee import Callee
from service.wamp.client import WampClient, WampConfig

ECHO = "bench"


def main() -> None:
    """Measure, or be the echo."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--url", required=True, help="where callers connect")
    options.add_argument("--realm", default="realm1")
    options.add_argument("--procedure")
    options.add_argument("--args", type=json.loads, default=[])
    options.add_argument("--kwargs", type=json.loads, default={})
    options.add_argument("--in-flight", type=int, default=64)
    options.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--echo", action="store_true")
    options.add_argument("--service", default="", help="where the echo connects; default --url")
    options.add_argument("--echo-prefix", default=f"rowcast.{ECHO}")
    options.add_argument("--pid", action="append", default=[], metavar="NAME=PID")
    options.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve_echo:
        serve_echo(given)
        return
    echo = start_echo(given) if given.echo else None
    try:
        WampClient(reactor, WampConfig([given.url], given.realm), [Bench(given)]).startService()
        reactor.run()
    finally:
        if echo is not None:
            echo.kill()
            echo.wait()


def start_echo(given: Any) -> subprocess.Popen[str]:
    """Start the echo in a process of its own and wait until it is registered."""
    where = given.service or given.url
    command = [sys.executable, "-m", "bench.calls", "--serve-echo", "--url", where]
    command += ["--realm", given.realm, "--echo-prefix", given.echo_prefix]
    echo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert echo.stdout is not None
    echo.stdout.readline()
    return echo


def serve_echo(given: Any) -> None:
    """Be the echo; killed by the one that started it."""

    async def answer(name: str, args: Any, kwargs: Any, caller: Any, progress: Any) -> Any:
        return args[0] if args else kwargs

    dispatch = Callee(reactor, answer, given.echo_prefix)
    client = WampClient(reactor, WampConfig([given.url], given.realm), [dispatch])
    client.when_joined().addCallback(lambda _: print("joined", flush=True))
    client.startService()
    reactor.run()


class Bench:
    """Calls in turns, and prints the table."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.pids = dict(pid.split("=") for pid in given.pid)

    async def joined(self, session: Any, details: Any) -> None:
        """Begin; the session goes on."""
        Deferred.fromCoroutine(self.measure(session)).addErrback(self.failed)

    async def measure(self, session: Any) -> None:
        """Call the procedure and the echo in turns."""
        given = self.given
        runs: list[tuple[str, list[Any], dict[str, Any]]] = []
        if given.procedure:
            runs.append((given.procedure, given.args, given.kwargs))
        if given.echo:
            row = {"id": 1, "action": "deploy", "path": "/srv/app/releases/42", "status": False}
            runs.append((f"{given.echo_prefix}.echo", [row], {}))
        rates: dict[str, list[float]] = {uri: [] for uri, _, _ in runs}
        print(f"{given.in_flight} calls in flight, {given.turns} turns of {given.seconds:g} s")
        for uri, args, kwargs in runs:
            await self.turn(session, uri, args, kwargs, 0.5)
        for _ in range(given.turns):
            for uri, args, kwargs in runs:
                rate, latencies, costs = await self.turn(session, uri, args, kwargs, given.seconds)
                rates[uri].append(rate)
                print(f"{uri:40} {rate:7.0f}/s  {latencies}  {costs}", flush=True)
        best = [max(each) for each in rates.values()]
        if len(best) == 2:
            print(f"ratio of the best turns: {best[0] / best[1]:.2f} of the echo")
        reactor.stop()

    async def turn(
        self, session: Any, uri: str, args: list[Any], kwargs: dict[str, Any], seconds: float
    ) -> tuple[float, str, str]:
        """Keep calls in flight; gives calls per second, latencies and CPU per call."""
        taken: list[float] = []
        before = {name: cpu(pid) for name, pid in self.pids.items()}
        began = time.monotonic()

        async def loop() -> None:
            while time.monotonic() - began < seconds:
                start = time.monotonic()
                await session.call(uri, *args, **kwargs)
                taken.append(time.monotonic() - start)

        loops = [Deferred.fromCoroutine(loop()) for _ in range(self.given.in_flight)]
        for _, failure_or_none in await DeferredList(loops, consumeErrors=True):
            if failure_or_none is not None:
                failure_or_none.raiseException()
        elapsed = time.monotonic() - began
        taken.sort()
        latencies = " ".join(
            f"p{part * 100:g} {taken[int(part * (len(taken) - 1))] * 1000:.1f} ms"
            for part in (0.5, 0.99)
        )
        costs = " ".join(
            f"{name} {(cpu(pid) - before[name]) / len(taken) * 1e6:.0f} µs"
            for name, pid in self.pids.items()
        )
        return len(taken) / elapsed, latencies, costs

    def failed(self, failure: Any) -> None:
        """Say why and end."""
        print(f"failed: {failure.value}", file=sys.stderr)
        reactor.stop()

    def displaced(self, registration: int) -> None:
        """Hold nothing."""

    async def leaving(self) -> None:
        """Hold nothing."""

    def left(self) -> None:
        """Hold nothing."""


def cpu(pid: str) -> float:
    """Give the CPU seconds a process and its children that still run have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
