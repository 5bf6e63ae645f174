"""
Latency, throughput and cost of changes and live queries, measured at the clients.

    python -m bench.live [--what latency watches fanout memory catchup] [--seconds 4]

PostgreSQL, the router, the service, the writers and the clients are separate processes. The floor is
the same measurement with a plain publisher at the same router in the same run. The output is for
docs/performance.md, which explains each figure. A run takes about five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psycopg2

from bench.stage import Stage, memory, spent, staged
from schema.changes import install
from tests.conftest import ROOT, execute

SCHEMA = f"""
CREATE ROLE guest;
CREATE TABLE items (id int PRIMARY KEY, grp int, n int, title text);
CREATE TABLE guarded (id int PRIMARY KEY, grp int, n int, title text, owner name DEFAULT 'guest');
CREATE TABLE owned (id int PRIMARY KEY, ten int, n int, title text);
CREATE TABLE parents (id int PRIMARY KEY, title text);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents, n int, title text);
CREATE TABLE untracked (id int);
INSERT INTO items SELECT i, i / 100, 0, 'title' || repeat(' x', 40) FROM generate_series(0, 999) i;
INSERT INTO guarded SELECT * FROM items;
INSERT INTO owned SELECT i, i / 10, 0, 'title' || repeat(' x', 40) FROM generate_series(0, 19999) i;
INSERT INTO parents SELECT i, 'title' || repeat(' x', 40) FROM generate_series(0, 999) i;
INSERT INTO children SELECT i, i / 10, 0, 'title' FROM generate_series(0, 9999) i;
CREATE INDEX ON items (grp); CREATE INDEX ON guarded (grp); CREATE INDEX ON owned (ten);
CREATE INDEX ON children (parent);
GRANT SELECT ON items, guarded, owned, parents, children TO guest;
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON guarded USING (owner = current_user);
{install()}
SELECT rowcast.track(name::regclass) FROM unnest('{{items, guarded, owned, parents, children}}'::text[]) name;
"""
WRITERS = 4
HEAD = (
    "",
    "changes/s",
    "p50 ms",
    "p99 ms",
    "most ms",
    "× floor",
    "service",
    "router",
    "PG",
    "load",
)


class Guest:
    """A process of `bench.guests`."""

    def __init__(self, act: str, **what: Any) -> None:
        command = [sys.executable, "-m", "bench.guests"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        assert self.process.stdin is not None
        print(json.dumps({"act": act, **what}), file=self.process.stdin, flush=True)

    def ready(self) -> Guest:
        """Wait until it receives messages, and return it."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", "a client has failed"
        return self

    def end(self, told: Any = None) -> Any:
        """Send it a line of JSON, wait for its end, and return what it printed."""
        found, _ = self.process.communicate(f"{json.dumps(told)}\n")
        return json.loads(found)


Written = Sequence[tuple[int, int, float]]
"""Tuples of a key, a number, and the time of its commit or publication."""


class Bench:
    """
    Measurements on one stage.

    Args:
        stage: The running processes.
        seconds: Duration of the changes of each measurement.
    """

    def __init__(self, stage: Stage, seconds: float) -> None:
        self.stage = stage
        self.seconds = seconds
        self.since = 0
        self.floor: dict[float, float] = {}

    def written(self, rate: float, table: str, keys: int) -> Written:
        """Update rows from several processes, each with its own range of keys."""
        writers = 1 if rate < 100 else WRITERS
        share = keys // writers
        running = [
            Guest(
                "write",
                dsn=self.stage.dsn,
                table=table,
                keys=[at * share, (at + 1) * share],
                rate=rate / writers,
                seconds=self.seconds,
                since=self.since,
            )
            for at in range(writers)
        ]
        return [each for guest in running for each in guest.end()]

    def published(self, rate: float, topic: str, keys: int) -> Written:
        """Publish the same events from a plain publisher."""
        what = {"topic": topic, "rate": rate, "seconds": self.seconds, "since": self.since}
        done: Written = Guest("publish", url=self.stage.private, keys=keys, **what).end()
        return done

    def row(self, name: str, rate: float, guest: Guest, source: Callable[[], Written]) -> None:
        """Measure what one client receives; print a row of the table."""
        with spent(self.stage) as cost:
            written = source()
            newest = {}
            for key, number, _ in sorted(written, key=lambda each: each[1]):
                newest[key] = number
            heard = guest.end(newest)
        self.since += len(written) + 1
        taken, lost = latencies(written, heard)
        p50, p99, most = (taken[int(part * (len(taken) - 1))] * 1000 for part in (0.5, 0.99, 1))
        if name.endswith("(floor)"):
            self.floor[rate] = p50
        ratio = f"{p50 / self.floor[rate]:.1f}"
        figures = [f"{p50:.1f}", f"{p99:.1f}", f"{most:.1f}", ratio]
        figures += [f"{each / len(written) * 1e6:.0f}" for each in cost]
        line(name + (f" ({lost} LOST)" if lost else ""), f"{rate:g}", *figures, load())


def latencies(written: Written, heard: Written) -> tuple[list[float], int]:
    """Return the seconds until each change, or a later one of its row, was received, and the number lost."""
    of: dict[int, tuple[list[int], list[float]]] = {}
    for key, number, at in heard:
        numbers, times = of.setdefault(key, ([], []))
        numbers.append(number)
        times.append(at)
    found = []
    for key, number, at in written:
        numbers, times = of.get(key, ([], []))
        place = bisect_left(numbers, number)
        if place < len(numbers):
            found.append(times[place] - at)
    return sorted(found), len(written) - len(found)


def load() -> str:
    """Return the load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def line(*cells: str) -> None:
    """Print a row of a table."""
    print(f"| {cells[0]:45} |" + "".join(f" {cell:>9} |" for cell in cells[1:]), flush=True)


def table(cells: Sequence[str]) -> None:
    """Print the header of a table."""
    line(*cells)
    print("|---" * len(cells) + "|")


def latency(bench: Bench) -> None:
    """Measure the latency from commit to client, beside that of a plain publisher."""
    url = bench.stage.url
    queries = [{"where": {"grp": grp}} for grp in range(10)]
    elsewhere = ", a transaction open elsewhere"

    def hears(topic: str) -> Guest:
        return Guest("subscribe", url=url, topic=topic, sessions=1).ready()

    def watches(name: str) -> Guest:
        return Guest("watch", url=url, table=name, queries=queries, sessions=1).ready()

    for rate in (10, 1000):
        floor, items = "rowcast.bench.changed.", "rowcast.items.changed."
        bench.row(
            "publish → event (floor)",
            rate,
            hears(floor),
            partial(bench.published, rate, floor, 1000),
        )
        for way in ("", elsewhere):
            other = psycopg2.connect(bench.stage.dsn, application_name="bench")
            if way:
                with other.cursor() as rows:
                    rows.execute("INSERT INTO untracked VALUES (1)")
            source = partial(bench.written, rate, "items", 1000)
            bench.row(f"commit → event{way}", rate, hears(items), source)
            bench.row(f"commit → delta{way}", rate, watches("items"), source)
            other.close()
        bench.row(
            "commit → delta, row-level security",
            rate,
            watches("guarded"),
            partial(bench.written, rate, "guarded", 1000),
        )


def watches(bench: Bench) -> None:
    """Measure many watches, of which each change concerns one."""
    floor = "rowcast.bench.changed."
    bench.row(
        "publish → event (floor)",
        1000,
        Guest("subscribe", url=bench.stage.url, topic=floor, sessions=1).ready(),
        partial(bench.published, 1000, floor, 1000),
    )
    many = [{"where": {"id": at}} for at in range(10_000)]
    embeds = [{"where": {"id": at}, "embed": {"children": {}}} for at in range(1000)]
    for name, table, queries, changed, deep in (
        ("10,000 watches by key", "owned", many, "owned", None),
        ("1,000 watches, rows with 10 embedded", "parents", embeds, "children", "children"),
    ):
        what = {"table": table, "queries": queries, "sessions": len(queries) // 100, "deep": deep}
        began = time.monotonic()
        guest = Guest("watch", url=bench.stage.url, **what).ready()
        took = time.monotonic() - began
        bench.row(name, 1000, guest, partial(bench.written, 1000, changed, 10_000))
        print(f"\nAll {len(queries):,} had their rows within {took:.1f} s.\n")


def fanout(bench: Bench) -> None:
    """Measure one topic with many subscribers: the latency until the last one receives an event."""
    stage, rate = bench.stage, 2.0

    def hears(topic: str) -> Guest:
        return Guest("subscribe", url=stage.url, topic=topic, sessions=1000).ready()

    floor = "rowcast.bench.changed."
    bench.row(
        "publish → last of 1,000 subscribers (floor)",
        rate,
        hears(floor),
        partial(bench.published, rate, floor, 1000),
    )
    bench.row(
        "commit → last of 1,000 subscribers",
        rate,
        hears("rowcast.items.changed."),
        partial(bench.written, rate, "items", 1000),
    )


def keep(bench: Bench) -> None:
    """Measure the memory of watches."""

    def watching(queries: Sequence[Mapping[str, Any]]) -> Guest:
        what = {"table": "owned", "queries": queries, "sessions": len(queries) // 100}
        return Guest("watch", url=bench.stage.url, **what).ready()

    def resident() -> float:
        time.sleep(1)  # until memory has been freed
        return memory(bench.stage.service)

    number = 2000
    for where in ({"id": 1}, {"ten": 1}):
        watching([{"where": where}] * 100).end({})
    begin = resident()
    first = watching([{"where": {"id": at}} for at in range(number)])
    one = resident()
    second = watching([{"where": {"ten": at}} for at in range(number)])
    ten = resident()
    for each in (first, second):
        each.end({})
    row = (ten - one - (one - begin)) / number / 9 * 1e6
    watch = (one - begin) / number * 1e6 - row
    print(
        f"\nMemory of a watch beyond its keys: {watch:,.0f} bytes; of each row: {row:,.0f} bytes."
    )
    print(f"(The service: {begin:.1f} MB; with {number} watches of a row {one:.1f};", end=" ")
    print(f"with {number} more of 10 rows {ten:.1f}.)\n")


def catch_up(bench: Bench) -> None:
    """Measure how fast `changes` returns missed changes."""
    stage = bench.stage

    def transactions(each: int) -> None:
        update = (
            "UPDATE owned SET n = n + 1 WHERE id >= i * {0} % 20000 AND id < i * {0} % 20000 + {0}"
        )
        loop = f"FOR i IN 1..{20_000 // each} LOOP {update.format(each)}; COMMIT; END LOOP;"
        quick = "PERFORM set_config('synchronous_commit', 'off', false);"
        execute(stage.dsn, f"DO $$ BEGIN {quick} {loop} END $$")

    def away() -> None:
        os.kill(stage.service, signal.SIGSTOP)
        try:
            transactions(1)
        finally:
            os.kill(stage.service, signal.SIGCONT)

    ways: dict[str, Callable[[], object]] = {
        "1 row a transaction": lambda: transactions(1),
        "the same, written while no service ran": away,
        "100 rows a transaction": lambda: transactions(100),
        "as written at 1000/s by 4 writers": lambda: bench.written(1000, "items", 1000),
    }
    table(("catch-up by changes()", "changes/s", "changes", "service", "router", "PG", "load"))
    for name, make in ways.items():
        since = Guest("position", url=stage.url).end()
        make()
        time.sleep(2)
        with spent(stage) as cost:
            count, took = Guest("catch_up", url=stage.url, since=since).end()
        figures = [f"{each / count * 1e6:.1f}" for each in cost]
        line(name, f"{count / took:,.0f}", f"{count:,}", *figures, load())


PARTS: dict[str, Callable[[Bench], None]] = {
    "latency": latency,
    "watches": watches,
    "fanout": fanout,
    "memory": keep,
    "catchup": catch_up,
}


def main() -> None:
    """Run the chosen measurements, each on a new stage."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--what", nargs="+", choices=list(PARTS), default=list(PARTS))
    options.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement")
    given = options.parse_args()
    began = time.monotonic()
    print(
        f"{os.cpu_count()} cores, load {load()} before; service, router, PG: µs of CPU per change\n"
    )
    for name in given.what:
        print(f"\n{name}: {PARTS[name].__doc__}\n")
        with staged(given.crossbar, SCHEMA, probed=False, anonymous="guest") as stage:
            execute(stage.dsn, "VACUUM ANALYZE")
            if name in ("latency", "watches", "fanout"):
                table(HEAD)
            PARTS[name](Bench(stage, given.seconds))
    print(f"\nload {load()} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
