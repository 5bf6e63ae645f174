"""
Rows sorted by a measure of their related rows, compared with hand-written SQL:
`python -m bench.sorting [--parents N] [--children N] [--turns N] [--plans]`.

Alternately measures, by EXPLAIN (ANALYZE), the statement of the service (by its `explain`), a hand-written
one that joins groups, and one with a subselect per row. Prints the medians in milliseconds, their ratios
to the second statement, and with `--plans` the plans.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred

from service.settings import Place
from tests.conftest import execute
from tests.db.dispatchers import serving

SCHEMA = """
CREATE TABLE bench_parents (id int PRIMARY KEY, name text, region int);
CREATE TABLE bench_children (id int PRIMARY KEY, parent int REFERENCES bench_parents, amount numeric);
INSERT INTO bench_parents SELECT i, 'p' || i, i % 1000 FROM generate_series(1, {parents}) i;
INSERT INTO bench_children SELECT i, (random() * ({parents} - 1))::int + 1, i % 500
  FROM generate_series(1, {children}) i;
CREATE INDEX ON bench_children (parent); CREATE INDEX ON bench_parents (region);
CREATE INDEX ON bench_parents (name);
ANALYZE bench_parents, bench_children;
"""
MEASURED = {"bench_children": {"measures": {"n": {"count": "*"}}, "spread": True}}
JOINED = """
SELECT p.id, coalesce(m.n, 0) FROM bench_parents p
  LEFT JOIN (SELECT parent, count(*) AS n FROM bench_children GROUP BY 1) m ON m.parent = p.id
 {where} ORDER BY coalesce(m.n, 0) DESC, p.id LIMIT 21
"""
EACH = """
SELECT p.id, (SELECT count(*) FROM bench_children c WHERE c.parent = p.id) FROM bench_parents p
 {where} ORDER BY {by}(SELECT count(*) FROM bench_children c WHERE c.parent = p.id) DESC, p.id LIMIT 21
"""
QUERIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "all": (
        {"order": ["-bench_children.n"]},
        JOINED.format(where=""),
        EACH.format(where="", by=""),
    ),
    "of a region": (
        {"order": ["-bench_children.n"], "where": {"region": 7}},
        EACH.format(where="WHERE region = 7", by=""),
        EACH.format(where="WHERE region = 7", by=""),
    ),
    "by name first": (
        {"order": ["name", "-bench_children.n"]},
        EACH.format(where="", by="name, "),
        EACH.format(where="", by="name, "),
    ),
    "more than 12": (
        {"order": ["-bench_children.n"], "where": {"bench_children.n": {"gt": 12}}},
        JOINED.format(where="WHERE coalesce(m.n, 0) > 12"),
        EACH.format(
            where="WHERE (SELECT count(*) FROM bench_children c WHERE c.parent = p.id) > 12", by=""
        ),
    ),
}


async def measure(dsn: str, turns: int, plans: bool) -> None:
    """Measure the statements, and print the medians."""
    async with serving(dsn) as db:
        for name, (query, *statements) in QUERIES.items():
            taken: list[list[float]] = [[], [], []]
            kwargs = {"select": ["id"], "embed": MEASURED, "limit": 20, **query}
            for turn in range(turns + 1):
                operation = {"call": "bench_parents.find", "kwargs": kwargs, "analyze": True}
                found = await db.call("explain", operation)
                words = "EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS)"
                found += [execute(dsn, f"{words} {each}")[0][0][0] for each in statements]
                for times, plan in zip(taken, found, strict=True):
                    if turn:  # the first one warms up
                        times.append(plan["Execution Time"])
            ours, expert, each = map(median, taken)
            print(
                f"{name:14} ours {ours:.1f} ms, by hand {expert:.1f} (× {ours / expert:.2f}),"
                f" a subselect a row {each:.1f} (× {each / expert:.2f})",
                flush=True,
            )
            if plans:
                print(json.dumps(found, indent=1))


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parents", type=int, default=100_000)
    options.add_argument("--children", type=int, default=500_000)
    options.add_argument("--turns", type=int, default=7)
    options.add_argument("--plans", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, SCHEMA.format(parents=given.parents, children=given.children))
        work = measure(dsn, given.turns, given.plans)
        task.react(lambda _: Deferred.fromCoroutine(work))


if __name__ == "__main__":
    main()
