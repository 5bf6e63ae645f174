"""
Several services with shared registrations at one router, with and without Crossbar's proxy workers.

    python -m bench.shared [--rounds 3] [--seconds 2] [--only get create]

Runs calls of `bench.calls` over RawSocket with CBOR, 64 sessions with one in flight each, against 1, 2 and
4 services (`ROWCAST_SHARED`) with 8 database connections in total. Callers connect to the router or to
proxies. Prints calls/s, the CPU milliseconds per call of each part, and the share of one processor that
the busiest process of all parts used: near 1, that process is the limit.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.callers import Callers, RawSocketCbor
from bench.calls import CALLS, MANY, SCHEMA
from bench.cpu import of_process
from bench.stage import CONNECTIONS, Stage, staged
from service.embedded.crossbar import SERIALIZERS
from tests.conftest import execute

CONNECTED = 8
"""Database connections for calls, of all services together."""
WAYS = ((1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (2, 2))
"""Pairs of a number of services and a number of proxies."""
PARTS = ("service", "router", "proxy", "PG")
HEAD = ("call", "services", "proxies", "calls/s", *PARTS, "all", "busiest")


def proxied(config: dict[str, Any], home: Path, proxies: int) -> None:
    """Change the node's configuration so that callers connect to proxies instead of the router."""
    if not proxies:
        return
    (router,) = config["workers"]
    private, public = router["transports"]
    door = {"type": "unix", "path": str(home / "proxies.sock")}
    # Connections through this socket are trusted to name the role of the proxy's client.
    inner = {"type": "rawsocket", "serializers": ["cbor"], "endpoint": door}
    trusted = {"anonymous-proxy": {"type": "static", "role": "anonymous"}}
    router["transports"] = [private, inner | {"auth": trusted}]
    transport = {
        "type": "rawsocket",
        "serializer": "cbor",
        "endpoint": door,
        "url": "rs://localhost",
    }
    outer = {
        "type": "rawsocket",
        "serializers": SERIALIZERS,
        # Several processes listen on this port; the kernel distributes the connections.
        "endpoint": public["endpoint"] | {"shared": True},
        "auth": public["rawsocket"]["auth"],
    }
    proxy = {
        "type": "proxy",
        "connections": {"router": {"transport": transport, "auth": {"anonymous-proxy": {}}}},
        "routes": {"realm1": {"anonymous": "router"}},
        "transports": [outer],
    }
    config["workers"] += [proxy] * proxies


def processes(stage: Stage) -> list[list[int]]:
    """Return the process ids of each of `PARTS`."""
    backends = [pid for (pid,) in execute(stage.dsn, CONNECTIONS) if isinstance(pid, int)]
    return [[stage.service, *stage.others], [stage.router], [*stage.proxies], backends]


def measured(stage: Stage, kind: str, seconds: float) -> list[float]:
    """Return calls/s, the CPU milliseconds per call of each part, and the share of the busiest process."""
    name, kwargs = CALLS[kind]
    some = random.Random(42)
    with Callers(stage.url, RawSocketCbor(), MANY) as callers:
        calls = [callers.template(f"rowcast.{name}", kwargs(some)) for _ in range(2000)]
        callers.run(calls, seconds / 4)
        parts = processes(stage)
        before, began = {pid: of_process(pid) for part in parts for pid in part}, time.monotonic()
        turn = callers.run(calls, seconds)
        took = time.monotonic() - began
        used = {pid: of_process(pid) - cpu for pid, cpu in before.items()}
    each = [sum(used[pid] for pid in part) / turn.calls * 1e3 for part in parts]
    return [turn.rate, *each, sum(each), max(used.values()) / took]


def main() -> None:
    """Measure the combinations alternately, and print the medians."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options.add_argument("--only", nargs="+", choices=list(CALLS), default=["get", "create"])
    given = options.parse_args()
    found: dict[tuple[str, int, int], list[Sequence[float]]] = {}
    for _ in range(given.rounds):
        for services, proxies in WAYS:
            pool = str(CONNECTED // services)
            with staged(
                given.crossbar,
                SCHEMA,
                probed=False,
                services=services,
                arrange=lambda config, home, proxies=proxies: proxied(config, home, proxies),
                shared="true",
                pool_max=pool,
            ) as stage:
                for kind in given.only:
                    turn = measured(stage, kind, given.seconds)
                    found.setdefault((kind, services, proxies), []).append(turn)
    print(f"load {os.getloadavg()[0]:.1f}\n\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    for way, turns in sorted(found.items()):
        rate, *cpu, busiest = map(median, zip(*turns, strict=True))
        cells = [*way, f"{rate:.0f}", *(f"{each:.3f}" for each in cpu), f"{busiest:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
