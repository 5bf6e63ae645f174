"""
A long run of the oracle: `python -m tests.oracle [--seed N] [--comparisons 1000000]`.

Each round has its own seed, from which its queries and writers follow. A wrong copy is printed with
what is needed to reproduce it, and ends the run with status 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg2
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from schema.database_url import Place
from tests.conftest import execute
from tests.oracle.oracle import DATABASE, Oracle, run, torture

ROUND = 20_000
"""Comparisons with one seed."""


def main() -> None:
    """Read the options, and run."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seed", type=int, default=random.randrange(10**6))
    options.add_argument("--comparisons", type=int, default=1_000_000)
    options.add_argument("--queries", type=int, default=120, help="watched queries per round")
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="rowcast-oracle-") as home,
        Place(state=Path(home)).running() as dsn,
    ):
        react(lambda _: Deferred.fromCoroutine(_rounds(dsn, given)))


async def _rounds(dsn: str, given: Any) -> None:
    done, resets, began, seed = 0, 0, time.monotonic(), given.seed

    async def work(oracle: Oracle) -> None:
        await torture(oracle, given.queries, ROUND)

    while done < given.comparisons:
        name = f"round_{seed}"
        execute(dsn, f"CREATE DATABASE {name}")
        made = psycopg2.extensions.make_dsn(dsn, dbname=name)
        execute(made, DATABASE)
        report = await run(made, seed, work)
        execute(dsn, f"DROP DATABASE {name} WITH (FORCE)")
        done += report.comparisons
        resets += report.resets
        minutes = (time.monotonic() - began) / 60
        print(
            f"seed {seed}: {report.comparisons} comparisons, {report.steps} steps,"
            f" {report.resets} resets, {len(report.wrong)} wrong;"
            f" {done} in {minutes:.1f} minutes",
            flush=True,
        )
        if report.wrong or report.errors:
            print(*report.errors, sep="\n")
            for query, position, copy, rows in report.wrong[:3]:
                print(f"{query}\n  at {position}\n  kept {copy}\n  find {rows}")
            sys.exit(1)
        seed += 1
    print(f"{done} comparisons, {resets} resets, 0 wrong")


if __name__ == "__main__":
    main()
