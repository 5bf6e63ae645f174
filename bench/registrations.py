"""
One prefix registration compared with exact ones: `python -m bench.registrations [--crossbar PATH]`.

Starts a new router for each variant, registers 1,000 relations × 15 verbs, and prints the calls per
second with 64 in flight, the time to join, and the memory of router and service. The caller is a
separate process.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from bench.stage import ROUTER, memory, workers_of
from service.embedded.crossbar import node
from service.wamp.callee import Callee
from service.wamp.client import WampClient, WampConfig
from tests.conftest import free_port

VERBS = [
    "get",
    "find",
    "count",
    "exists",
    "aggregate",
    "stream",
    "export",
    "create",
    "update",
    "upsert",
    "delete",
    "import",
    "watch",
    "describe",
    "touch",
]

ROW = {"id": 1, "action": "deploy", "path": "/srv/app/releases/42", "status": False}


def main() -> None:
    """Measure each variant, or run one of the processes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--relations", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=6.0)
    options.add_argument("--serve", choices=["prefix", "exact"])
    options.add_argument("--call", action="store_true")
    options.add_argument("--url")
    given = options.parse_args()
    if given.serve:
        serve(given.serve, given.url, given.relations)
    elif given.call:
        call(given.url, given.relations, given.seconds)
    else:
        print(f"{given.relations} relations × {len(VERBS)} verbs, 64 calls in flight")
        print("way     join s   calls/s   router MB (before)   service MB")
        for way in ("prefix", "exact", "prefix", "exact"):
            print(measure(way, given), flush=True)


def measure(way: str, given: Any) -> str:
    """Run router, service and caller; return a row of the table."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-bench-"))
    port = free_port()
    socket = home / "service.sock"
    (home / "config.json").write_text(
        json.dumps(node("realm1", "rowcast", port, socket, code=str(ROUTER)))
    )
    command = [given.crossbar, "start", "--cbdir", str(home), "--loglevel", "warn"]
    with (home / "log").open("wb") as log:
        router = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    me = [sys.executable, "-m", "bench.registrations", "--relations", str(given.relations)]
    service = None
    try:
        while not socket.exists():
            time.sleep(0.1)
        time.sleep(1)
        before = memory(workers_of(router.pid)[0])
        service = subprocess.Popen(
            [*me, "--serve", way, "--url", f"unix:{socket}"], stdout=subprocess.PIPE, text=True
        )
        assert service.stdout is not None
        joined = float(service.stdout.readline())
        url = f"rs://127.0.0.1:{port}"
        caller = [*me, "--call", "--url", url, "--seconds", str(given.seconds)]
        rate = float(subprocess.run(caller, capture_output=True, text=True, check=True).stdout)
        after, ours = memory(workers_of(router.pid)[0]), memory(service.pid)
        return f"{way:7} {joined:6.2f} {rate:9.0f} {after:11.0f} ({before:.0f}) {ours:16.0f}"
    finally:
        if service is not None:
            service.kill()
            service.wait()
        router.terminate()
        router.wait()
        shutil.rmtree(home)


def uris(relations: int) -> list[str]:
    """Return the URI of each procedure."""
    return [f"rowcast.relation_{n}.{verb}" for n in range(relations) for verb in VERBS]


class Exact(Callee):
    """A callee with an exact registration for each procedure."""

    relations = 0

    async def joined(self, session: Any, details: Any) -> None:
        """Register all procedures."""

        def take(args: Any, kwargs: Any) -> Any:
            return ROW

        names = uris(self.relations)
        for start in range(0, len(names), 500):
            await gatherResults(
                [session.register(take, name) for name in names[start : start + 500]]
            )


def serve(way: str, url: str, relations: int) -> None:
    """Serve until killed; print the seconds that joining took."""

    async def answer(name: str, args: Any, kwargs: Any, caller: Any, *rest: Any) -> Any:
        return ROW

    dispatch = (Exact if way == "exact" else Callee)(reactor, answer, "rowcast")
    if isinstance(dispatch, Exact):
        dispatch.relations = relations
    client = WampClient(reactor, WampConfig([url], "realm1"), [dispatch])
    began = time.monotonic()
    # This process has no threads to wait for, so it ends at once when its parent kills it.
    client.when_joined().addCallback(
        lambda _: print(round(time.monotonic() - began, 2), flush=True)
    )
    client.startService()
    reactor.run()


class Caller:
    """A caller with 64 calls in flight, to random procedures."""

    def __init__(self, names: list[str], seconds: float) -> None:
        self.names = names
        self.seconds = seconds
        self.calls = 0

    async def joined(self, session: Any, details: Any) -> None:
        """Call for the given time, then print the rate."""
        warm = time.monotonic() + 1
        while time.monotonic() < warm:
            await session.call(random.choice(self.names), 1)
        began = time.monotonic()
        loops = [Deferred.fromCoroutine(self.loop(session, began)) for _ in range(64)]
        await DeferredList(loops)
        print(self.calls / (time.monotonic() - began))
        reactor.stop()

    async def loop(self, session: Any, began: float) -> None:
        """Make one call after another."""
        while time.monotonic() - began < self.seconds:
            await session.call(random.choice(self.names), 1)
            self.calls += 1

    def displaced(self, registration: int) -> None:
        """Do nothing: this session holds no state."""

    async def leaving(self) -> None:
        """Do nothing: this session holds no state."""

    def left(self) -> None:
        """Do nothing: this session holds no state."""


def call(url: str, relations: int, seconds: float) -> None:
    """Run the caller."""
    guest = Caller(uris(relations), seconds)
    WampClient(reactor, WampConfig([url], "realm1"), [guest]).startService()
    reactor.run()


if __name__ == "__main__":
    main()
