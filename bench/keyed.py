"""
The cost of a cycle of live queries: reading all rows of a query again, or only the changed rows by key.

    python -m bench.keyed [--rounds 7] [--watches 10000]

The first part has 200 queries of about 100 rows with an embed each, and changes embedded rows: it measures
both ways alternately, and prints medians and the ratio. The second part has `--watches` queries with a
different filter each: it measures the CPU that the index takes per change, and cycles after some changes.
The database is temporary.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2

from schema.changes import install
from schema.database_url import Place
from service.changes.cycle import cycle_txn
from service.changes.invalidation import WatchedRuns
from service.changes.match import Index, terms_of
from service.changes.positions import SnapshotPosition
from service.plan.read_plan import plan_find
from service.request.read_request import Limits, parse_find
from tests.conftest import execute
from tests.db.kept_queries import KeptQuery, Reader

SETUP = f"""
CREATE TABLE parents (id int PRIMARY KEY, region int, owner int, name text, score int);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE, amount int);
CREATE INDEX ON children (parent);
CREATE INDEX ON parents (region);
CREATE INDEX ON parents (owner);
INSERT INTO parents SELECT i, i % 200, i % 10000, 'n' || i, i * 37 % 1000 FROM generate_series(1, 20000) i;
INSERT INTO children SELECT i, i % 20000 + 1, i * 13 % 100 FROM generate_series(1, 60000) i;
{install()}
SELECT rowcast.track('parents'), rowcast.track('children');
VACUUM ANALYZE;
"""
EMBED = {"children": {"where": {"amount": {"gt": 30}}}}


class Cycles:
    """Live queries updated by cycles that can be timed one by one."""

    def __init__(self, reader: Reader, kept: Sequence[KeptQuery], whole: bool) -> None:
        self.reader = reader
        self.kept = kept
        if whole:
            for each in kept:
                each.run = replace(each.run, keyed=None)
        self.runs = {each.run: each for each in kept}
        self.watched = WatchedRuns()
        self.position: SnapshotPosition | None = None
        self.step()

    def step(self) -> tuple[float, int]:
        """Run a cycle; return its milliseconds, and the number of queries whose rows have changed."""
        orders = [each.order for each in self.kept if each.state is None]
        began = time.perf_counter()
        outcome = cycle_txn(
            self.reader.connection, self.watched, orders, self.position, budget=math.inf
        )
        took = (time.perf_counter() - began) * 1000
        assert outcome is not None
        self.position = outcome.position
        for run, found in outcome.results.items():
            self.runs[run].take(found)
        return took, sum(found is not None for found in outcome.results.values())


def change(dsn: str, statement: str, values: Sequence[Any]) -> None:
    """Run the statement once for each value, each time in a transaction of its own."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    with connection.cursor() as rows:
        for value in values:
            rows.execute(statement, [value])
    connection.close()


def compare(dsn: str, rounds: int, dice: random.Random) -> None:
    """Measure reading all rows and reading rows by key alternately, and print the medians."""
    asked = [{"where": {"region": region}, "embed": EMBED} for region in range(200)]
    ways = []
    for whole in (True, False):
        reader = Reader(dsn)
        ways.append(
            Cycles(reader, [KeptQuery(reader, "parents", "", each) for each in asked], whole)
        )
    print("changed children     all rows      by key   ratio   queries changed")
    for number in (1, 10, 100, 1000):
        took: list[list[float]] = [[], []]
        told = 0
        for _ in range(rounds):
            ids = dice.sample(range(1, 60001), number)
            change(dsn, "UPDATE children SET amount = 100 - amount WHERE id = %s", ids)
            for way, times in zip(ways, took, strict=True):
                milliseconds, told = way.step()
                times.append(milliseconds)
        whole_ms, keyed_ms = map(statistics.median, took)
        print(
            f"{number:16} {whole_ms:9.1f} ms {keyed_ms:8.1f} ms {whole_ms / keyed_ms:7.1f} {told:14}"
        )


KINDS: dict[str, Callable[[int], Any]] = {
    "equality": lambda at: {"owner": at},
    "equality and range": lambda at: {"region": at % 200, "score": {"gt": at % 1000}},
    "range": lambda at: {"id": {"gte": at, "lt": at + 10}},
}


def index_of(reader: Reader, watches: int, dice: random.Random) -> None:
    """Measure the CPU of the index alone, in this process."""
    relation = reader.catalog.relation("public", "parents")
    images = [
        {"id": i, "region": i % 200, "owner": i % 10000, "name": "n", "score": i * 37 % 1000}
        for i in dice.sample(range(1, 20001), 4000)
    ]
    print(f"\nµs with {watches} queries     add  remove  change  moved row  found")
    for kind, where in KINDS.items():
        terms = []
        for at in range(watches):
            call = parse_find((), {"where": where(at)}, Limits(), "parents")
            plan = plan_find(reader.catalog, relation, call.request)
            terms.append(terms_of(reader.catalog, reader.codec, plan.where, call.values))
        index: Index[int] = Index()
        began = time.process_time()
        for at, each in enumerate(terms):
            index.add(at, 1, each)
        times = [(time.process_time() - began) / watches]
        for olds in (images, images[1:] + images[:1]):
            began = time.process_time()
            found = sum(len(index.matching(1, *each)) for each in zip(olds, images, strict=True))
            times.append((time.process_time() - began) / len(images))
        began = time.process_time()
        for at, each in enumerate(terms):
            index.remove(at, 1, each)
        times.insert(1, (time.process_time() - began) / watches)
        figures = "  ".join(f"{each * 1e6:6.1f}" for each in times)
        print(f"{kind:22} {figures}     {found / len(images):6.1f}")


def many(dsn: str, watches: int, rounds: int, dice: random.Random) -> None:
    """Measure cycles with many queries."""
    reader = Reader(dsn)
    index_of(reader, watches, dice)
    kept = [
        KeptQuery(reader, "parents", "", {"where": where(at)})
        for where in KINDS.values()
        for at in range(watches // len(KINDS))
    ]
    cycles = Cycles(reader, kept, whole=False)
    print()
    for number in (0, 1, 50):
        took_ms, spent_ms, told = [], [], 0
        for _ in range(rounds):
            ids = dice.sample(range(1, 20001), number)
            change(dsn, "UPDATE parents SET name = name || 'x' WHERE id = %s", ids)
            began = time.process_time()
            milliseconds, told = cycles.step()
            spent_ms.append((time.process_time() - began) * 1000)
            took_ms.append(milliseconds)
        print(
            f"cycle with {len(kept)} queries after {number:2} changes:"
            f" {statistics.median(took_ms):.1f} ms, {statistics.median(spent_ms):.1f} ms of this process's CPU ({told} changed)"
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--watches", type=int, default=10_000)
    given = parser.parse_args()
    dice = random.Random(7)
    home = Path(tempfile.mkdtemp(prefix="rowcast-bench-"))
    with Place(state=home).running() as dsn:
        for statement in (SETUP.rpartition("VACUUM")[0], "VACUUM ANALYZE"):
            execute(dsn, statement)
        compare(dsn, given.rounds, dice)
        many(dsn, given.watches, given.rounds, dice)


if __name__ == "__main__":
    main()
