"""
The CPU time of the forms of a result: `python -m bench.forms [--crossbar PATH]`.

One caller reads a page of 1,000 rows in each form alternately, so that the ratios hold on a noisy
machine. Prints the CPU time per call in the service and in the router's worker.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from statistics import median
from typing import Any

from bench.cpu import of_process
from bench.stage import Stage, staged
from bench.stream import Guest, join

SCHEMA = """
CREATE TABLE made AS SELECT i AS id, 'row ' || i AS name, now() AS at, i * 1.25::numeric AS price,
    i % 2 = 0 AS ok, jsonb_build_object('n', i, 'tags', jsonb_build_array('a', 'b')) AS doc,
    'a longer text that many rows have ' || i AS note, i * 0.1::float8 AS ratio
    FROM generate_series(1, 1000) i;
ALTER TABLE made ADD PRIMARY KEY (id);
"""
FORMS = ("dicts", "lists", "json")


class Turns(Guest):
    """A caller that reads the page in each form alternately."""

    def __init__(self, given: Any, stage: Stage) -> None:
        super().__init__(given)
        self.pids = {"service": stage.service, "router": stage.router}

    async def go(self, session: Any) -> None:
        """Measure, and print the medians."""
        taken: dict[tuple[str, str], list[float]] = defaultdict(list)
        for turn in range(self.given.turns + 1):
            for form in FORMS:
                before = {name: of_process(pid) for name, pid in self.pids.items()}
                for _ in range(self.given.calls):
                    await session.call("rowcast.made.find", limit=1000, form=form)
                for name, pid in self.pids.items():
                    if turn:  # the first one warms up
                        taken[name, form].append(
                            (of_process(pid) - before[name]) / self.given.calls
                        )
        for name in self.pids:
            usual = median(taken[name, "dicts"])
            words = (
                f"{form} {median(taken[name, form]) * 1000:.1f} ms"
                f" ({median(taken[name, form]) / usual:.2f})"
                for form in FORMS
            )
            print(f"{name:8} {', '.join(words)}", flush=True)


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--calls", type=int, default=20, help="per form and round")
    options.add_argument("--turns", type=int, default=5)
    given = options.parse_args()
    with staged(given.crossbar, SCHEMA) as stage:
        join(stage.websocket, Turns(given, stage))


if __name__ == "__main__":
    main()
