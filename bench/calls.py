"""
The cost of calls, compared with an echo at the same router in the same run.

    python -m bench.calls [--rounds 3] [--seconds 2] [--only get update]
    python -m bench.calls --before ../rowcast-before [--only create]
    python -m bench.calls --check | --record

PostgreSQL, the router and the service run as separate processes, configured like the embedded ones, on a
fresh database. The echo is a plain autobahn component that returns a constant row. Callers use RawSocket
with CBOR, then WebSocket with JSON: 64 sessions with one call in flight each, then a single one. The
output is for docs/performance.md, which explains each figure.

`--before` measures alternately with the service of another checkout, and prints the cost and the rate of each
kind of call as ratios to those there.

`--check` is quick, and fails if the CPU of a call, in echoes, is far above the value in `baseline.json`;
`--record` writes that file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autobahn.twisted.component import Component
from autobahn.twisted.component import run as run_component

from bench.callers import Callers, RawSocketCbor, Transport, WebSocketJson
from bench.stage import Stage, memory, spent, staged
from tests.conftest import ROOT

ROWS = 100_000
SCHEMA = f"""
CREATE TABLE actions (id serial PRIMARY KEY, action varchar(255) NOT NULL,
    path varchar(255) NOT NULL, status boolean NOT NULL DEFAULT false);
CREATE TABLE drivers (id serial PRIMARY KEY, name varchar(255) NOT NULL);
CREATE TABLE vehicles (id serial PRIMARY KEY, driver_id integer NOT NULL REFERENCES drivers (id),
    plate varchar(32) NOT NULL, seats integer NOT NULL);
INSERT INTO actions (action, path, status) SELECT 'action-' || (i % 20),
    '/srv/app/releases/' || i, (i::bigint * 7919) % 3 = 0 FROM generate_series(1, {ROWS}) i;
INSERT INTO drivers (name) SELECT 'Driver ' || i FROM generate_series(1, 10000) i;
INSERT INTO vehicles (driver_id, plate, seats) SELECT 1 + (i - 1) % 10000,
    'AB-' || lpad(i::text, 5, '0'), 2 + i % 7 FROM generate_series(1, 30000) i;
CREATE INDEX ON actions (action, id); CREATE INDEX ON vehicles (driver_id);
CREATE TABLE plain (LIKE actions INCLUDING ALL);
INSERT INTO plain SELECT * FROM actions;
"""
"""`plain` has the columns of `actions`, but no model; `actions` has a model with validations in `app/`."""

ROW = {"id": 12345, "action": "action-5", "path": "/srv/app/releases/12345", "status": False}
MANY = 64
BASELINE = Path(__file__).with_name("baseline.json")
FACTOR = 1.6
"""Factor over the baseline above which the check fails; load of the machine alone stays below it."""

Kwargs = Callable[[random.Random], dict[str, Any]]


def _new(some: random.Random) -> dict[str, Any]:
    number = some.randrange(10**9)
    return {"path": f"/srv/app/new/{number}", "status": number % 2 == 0}


def _terms(some: random.Random) -> dict[str, Any]:
    many = [{"id": {"neq": -some.randrange(1, 10**6)}} for _ in range(49)]
    return {"where": {"and": [{"id": some.randrange(1, ROWS)}, *many]}}


CALLS: dict[str, tuple[str, Kwargs]] = {
    "echo": ("bench.echo", lambda some: {"key": some.randrange(1, ROWS)}),
    "get": ("actions.get", lambda some: {"key": some.randrange(1, ROWS)}),
    "find 100": (
        "actions.find",
        lambda some: {
            "where": {"action": f"action-{some.randrange(20)}"},
            "order": ["-id"],
            "limit": 100,
        },
    ),
    "embed one": (
        "vehicles.get",
        lambda some: {
            "key": some.randrange(1, 30_000),
            "embed": {"driver": {"relation": "drivers"}},
        },
    ),
    "embed many": (
        "drivers.get",
        lambda some: {"key": some.randrange(1, 10_000), "embed": {"vehicles": True}},
    ),
    "count by group": (
        "actions.aggregate",
        lambda some: {
            "measures": {"count": {"count": "*"}},
            "where": {"action": f"action-{some.randrange(20)}"},
            "group": ["status"],
        },
    ),
    "create": (
        "plain.create",
        lambda some: {"values": {"action": f"action-{some.randrange(20)}", **_new(some)}},
    ),
    "create, model": (
        "actions.create",
        lambda some: {"values": {"action": f"action-{some.randrange(20)}", **_new(some)}},
    ),
    "update": (
        "plain.update",
        lambda some: {"key": some.randrange(1, ROWS), "changes": _new(some)},
    ),
    "update, model": (
        "actions.update",
        lambda some: {"key": some.randrange(1, ROWS), "changes": _new(some)},
    ),
    "where of 50 terms": ("actions.find", _terms),
    "find 1,000": (
        "actions.find",
        lambda some: {"where": {"id": {"gt": some.randrange(ROWS - 1000)}}, "limit": 1000},
    ),
}
"""By kind of call: the procedure, and a function that draws the arguments of one call."""

CHECKED = [kind for kind in CALLS if kind not in ("echo", "embed many", "create, model")]

HEAD = (
    "call",
    "calls/s",
    "of echo",
    "p50 of 1",
    "p50",
    "p99",
    "service",
    "router",
    "PG",
    "all",
    "× echo",
)

Measured = dict[str, float]
"""
CPU milliseconds per call, by process and as `all`; latencies; the latency of one call at a time as `alone`;
`rate`.
"""


class Bench:
    """
    Measurements over one transport.

    Args:
        stages: The stage, and the same stage with the echo as its service.
        url: URL for callers.
        transport: The transport and serializer of the callers.
        seconds: Duration of each measurement.
        sessions: Number of callers, each with one call in flight.
    """

    def __init__(
        self,
        stages: tuple[Stage, Stage],
        url: str,
        transport: Transport,
        seconds: float,
        sessions: int = MANY,
    ) -> None:
        self.stages = stages
        self.url = url
        self.transport = transport
        self.seconds = seconds
        self.sessions = sessions

    def rounds(self, kinds: Sequence[str], many: int, alone: bool) -> dict[str, list[Measured]]:
        """Measure the echo and kinds of calls alternately; return the results of each round, by kind."""
        found: dict[str, list[Measured]] = defaultdict(list)
        for _ in range(many):
            for kind in ("echo", *kinds):
                measured = self.turn(kind, alone)
                found[kind].append(measured)
                echo = found["echo"][-1]
                measured |= {
                    "cost": measured["all"] / echo["all"],
                    "share": measured["rate"] / echo["rate"],
                }
        return found

    def turn(self, kind: str, alone: bool) -> Measured:
        """Measure a kind of call once; with `alone`, also with one call at a time."""
        name, kwargs = CALLS[kind]
        uri, some = f"rowcast.{name}", random.Random(42)
        with Callers(self.url, self.transport, self.sessions) as callers:
            calls = [callers.template(uri, kwargs(some)) for _ in range(2000)]
            callers.run(calls, self.seconds / 4)
            with spent(self.stages[kind == "echo"]) as cost:
                turn = callers.run(calls, self.seconds)
        each = [seconds / turn.calls * 1e3 for seconds in cost]
        found = dict(zip(("service", "router", "PG"), each, strict=True))
        found |= {"all": sum(each), "rate": turn.rate}
        found |= {"p50": turn.quantile(0.5) * 1e3, "p99": turn.quantile(0.99) * 1e3}
        if alone:
            with Callers(self.url, self.transport, 1) as callers:
                callers.run(calls, self.seconds / 8)
                found["alone"] = callers.run(calls, self.seconds / 2).quantile(0.5) * 1e3
        return found


@contextmanager
def echoing(stage: Stage) -> Iterator[Stage]:
    """Start the echo; yield the stage with the echo as its service."""
    command = [sys.executable, "-m", "bench.calls", "--echo", stage.private]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as echo:
        assert echo.stdout is not None
        assert echo.stdout.readline() == "joined\n", "the echo has failed"
        try:
            yield replace(stage, service=echo.pid)
        finally:
            echo.kill()


def echo(url: str) -> None:
    """Run the echo until the parent process kills it."""
    transport = {"type": "rawsocket", "serializer": "cbor", "url": "rs://localhost"}
    path = url.removeprefix("unix:")
    component = Component(
        realm="realm1", transports=[{**transport, "endpoint": {"type": "unix", "path": path}}]
    )

    @component.register(f"rowcast.{CALLS['echo'][0]}")
    def answer(key: int) -> dict[str, Any]:
        return ROW

    # to the original stdout, because autobahn's logging replaces sys.stdout
    component.on("ready", lambda *_: print("joined", file=sys.__stdout__, flush=True))
    run_component([component], log_level="error")


def table(title: str, found: Mapping[str, Sequence[Measured]]) -> None:
    """Print the medians of all rounds."""
    print(f"\n{title}, load {os.getloadavg()[0]:.1f}\n\n| {' | '.join(HEAD)} |")
    print("|---" * len(HEAD) + "|")
    for kind, turns in found.items():
        usual = {name: median(turn[name] for turn in turns) for name in turns[0]}
        cells = [
            f"{usual['rate']:.0f}",
            f"{usual['share']:.2f}",
            *(f"{usual[name]:.2f}" for name in ("alone", "p50", "p99")),
            *(f"{usual[name]:.3f}" for name in ("service", "router", "PG", "all")),
            f"{usual['cost']:.2f}",
        ]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


def cheapest(found: Mapping[str, Sequence[Measured]]) -> dict[str, float]:
    """Return the CPU of each kind, in echoes, in the round in which it was lowest."""
    return {
        kind: round(min(turn["cost"] for turn in turns), 2)
        for kind, turns in found.items()
        if kind != "echo"
    }


def compare(found: Mapping[str, float], known: Mapping[str, float]) -> int:
    """Print costs beside those of the baseline; return 1 if a cost is far above it."""
    failed = 0
    for kind, cost in found.items():
        late = cost > FACTOR * known[kind]
        failed |= late
        words = f" more than {FACTOR} × as much" if late else ""
        print(f"{kind:20} {cost:6.2f} echoes, baseline {known[kind]:6.2f}{words}", flush=True)
    return int(failed)


def ratios(benches: Sequence[Bench], kinds: Sequence[str], rounds: int) -> None:
    """Measure kinds of calls alternately before and now; print the medians of the ratios."""
    columns = ("service", "router", "PG", "all", "rate", "p50", "p99")
    print(f"| call | {' | '.join(columns)} |\n{'|---' * (1 + len(columns))}|")
    for kind in kinds:
        turns = []
        for at in range(rounds):
            # alternate the order: the first one runs with CPU caches filled by the other checkout
            first, second = sorted((0, 1), reverse=bool(at % 2))
            found = {each: benches[each].turn(kind, alone=False) for each in (first, second)}
            turns.append({name: found[1][name] / found[0][name] for name in columns})
        cells = (f"{median(turn[name] for turn in turns):.2f}" for name in columns)
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")


def main() -> int:
    """Measure, or run the echo; return the exit status."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options.add_argument("--only", nargs="+", choices=list(CALLS), help="kinds of calls")
    options.add_argument("--transport", choices=["rawsocket", "websocket"])
    options.add_argument("--before", type=Path, help="another checkout to compare with")
    options.add_argument(
        "--sessions",
        type=int,
        default=MANY,
        help="callers with one call in flight each, with --before",
    )
    options.add_argument("--check", action="store_true", help="compare with the baseline")
    options.add_argument("--record", action="store_true", help="write the baseline")
    options.add_argument("--echo", metavar="URL", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.echo:
        echo(given.echo)
        return 0
    quick = given.check or given.record
    kinds = given.only or (CHECKED if quick else [kind for kind in CALLS if kind != "echo"])
    with ExitStack() as stack:
        checkouts = [given.before.resolve(), ROOT] if given.before else [ROOT]
        running = [
            stack.enter_context(staged(given.crossbar, SCHEMA, False, code, app="app"))
            for code in checkouts
        ]
        stage = running[-1]
        stages = stage, stack.enter_context(echoing(stage))
        if given.before:
            benches = [
                Bench((s, s), s.url, RawSocketCbor(), given.seconds, given.sessions)
                for s in running
            ]
            ratios(benches, kinds, given.rounds)
            return 0
        if quick:
            bench = Bench(stages, stage.url, RawSocketCbor(), 0.4)
            found = cheapest(bench.rounds(kinds, 3, alone=False))
            if given.check:
                known = json.loads(BASELINE.read_text())
                late = [kind for kind, cost in found.items() if cost > FACTOR * known[kind]]
                # If only the machine was busy, one of six more rounds is below the limit.
                found |= cheapest(bench.rounds(late, 6, alone=False)) if late else {}
                return compare(found, known)
            BASELINE.write_text(f"{json.dumps(found, indent=1)}\n")
            return 0
        print(f"{os.cpu_count()} cores; memory at rest: service {memory(stage.service):.0f} MB")
        for title, url, transport in (
            ("RawSocket, CBOR", stage.url, RawSocketCbor()),
            ("WebSocket, JSON", stage.websocket, WebSocketJson()),
        ):
            if given.transport in (None, title.split(",")[0].lower()):
                bench = Bench(stages, url, transport, given.seconds)
                table(title, bench.rounds(kinds, given.rounds, alone=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
