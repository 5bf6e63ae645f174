"""
What a transaction of several operations costs: `python -m bench.transactions [--turns 200]`.

Turn about: one call by itself; five, one after the other; a batch of the five; a transaction held
open over them, each call waiting for the answer before; the same with all of them, and the commit,
sent ahead. Each operation updates one row by its key. Prints the median time of each way, and its
ratio to the one call.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from twisted.internet.defer import gatherResults

from bench.stage import staged
from bench.stream import Guest, join

NUMBER = 5
UPDATE = "small.update"


def main() -> None:
    """Measure."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--crossbar", default=".venv-router/bin/crossbar")
    options.add_argument("--turns", type=int, default=200)
    given = options.parse_args()
    with staged(given.crossbar, "") as stage:
        join(stage.websocket, Ways(given))


class Ways(Guest):
    """Takes each way in turn."""

    async def go(self, session: Any) -> None:
        """Measure, and print."""
        ways: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "one call": one,
            "five calls": five,
            "a batch": batch,
            "held open": held,
            "held open, sent ahead": sent_ahead,
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self.given.turns + 20):
            for name, way in ways.items():
                began = time.perf_counter()
                await way(session)
                if turn >= 20:
                    taken[name].append(time.perf_counter() - began)
        first = median(taken["one call"])
        for name, times in taken.items():
            print(f"{name:22} {median(times) * 1000:6.2f} ms  × {median(times) / first:.2f}")


def arguments(number: int) -> list[Any]:
    """Give the arguments of one operation."""
    return [number, {"name": "new"}]


async def one(session: Any) -> None:
    """Call once."""
    await session.call(f"rowcast.{UPDATE}", *arguments(0))


async def five(session: Any) -> None:
    """Call five times."""
    for number in range(NUMBER):
        await session.call(f"rowcast.{UPDATE}", *arguments(number))


async def batch(session: Any) -> None:
    """Send all in one call."""
    operations = [{"call": UPDATE, "args": arguments(number)} for number in range(NUMBER)]
    await session.call("rowcast.transaction", operations)


async def held(session: Any) -> None:
    """Wait for each answer."""
    tx = (await session.call("rowcast.transaction.begin"))["tx"]
    for number in range(NUMBER):
        await session.call(tx, UPDATE, arguments(number))
    await session.call(f"{tx}.commit")


async def sent_ahead(session: Any) -> None:
    """Wait for all answers at the end."""
    tx = (await session.call("rowcast.transaction.begin"))["tx"]
    calls = [session.call(tx, UPDATE, arguments(number)) for number in range(NUMBER)]
    await gatherResults([*calls, session.call(f"{tx}.commit")])


if __name__ == "__main__":
    main()
