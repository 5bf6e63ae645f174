"""
What a batch costs: five operations in one `transaction`, and as five calls, in turns.

    python -m bench.batches [rounds]

Over an embedded database, without a router: what a batch saves there, four messages each way
through the router, comes on top.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from bench.walk import TABLE
from schema.database import Place
from service.api.dispatcher import Dispatcher
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import serving

CALLER = Caller(None, None, None, "realm1")
READS: list[tuple[str, list[Any]]] = [("items.get", [at]) for at in range(1, 6)]
WRITES: list[tuple[str, list[Any]]] = [
    ("items.update", [at, {"status": True}]) for at in range(1, 6)
]
CALLS, AT_ONCE = 400, (1, 16)


async def one_by_one(dispatcher: Dispatcher, calls: list[tuple[str, list[Any]]]) -> None:
    """Make each call when the one before it is answered."""
    for name, args in calls:
        await dispatcher.answer(name, args, {}, CALLER)


async def together(dispatcher: Dispatcher, calls: list[tuple[str, list[Any]]]) -> None:
    """Make one batch of them."""
    operations = [{"call": name, "args": args} for name, args in calls]
    await dispatcher.answer("transaction", [operations], {}, CALLER)


async def costs(work: Callable[[], Awaitable[None]], at_once: int) -> tuple[float, float]:
    """Return the milliseconds, by the clock and of CPU, that a piece of work takes."""

    async def some() -> None:
        for _ in range(CALLS // at_once):
            await work()

    began, cpu = time.perf_counter(), time.process_time()
    await gatherResults([ensureDeferred(some()) for _ in range(at_once)])
    done = CALLS // at_once * at_once
    return (time.perf_counter() - began) / done * 1e3, (time.process_time() - cpu) / done * 1e3


async def measure(dsn: str, rounds: int) -> None:
    """Print the medians of the rounds."""
    async with serving(dsn) as callee:
        for kind, calls in (("get", READS), ("update", WRITES)):
            for at_once in AT_ONCE:
                ways: dict[str, Callable[[], Awaitable[None]]] = {
                    "five calls": lambda calls=calls: one_by_one(callee.dispatcher, calls),
                    "one batch": lambda calls=calls: together(callee.dispatcher, calls),
                }
                found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
                for _ in range(rounds):
                    for way, work in ways.items():
                        found[way].append(await costs(work, at_once))
                for way, each in found.items():
                    clock, cpu = (statistics.median(column) for column in zip(*each, strict=True))
                    print(
                        f"{kind:8}{at_once:3} at once  {way:12}{clock:7.2f} ms  {cpu:6.2f} ms CPU",
                        flush=True,
                    )


def main(rounds: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, TABLE.replace("actions", "items"))
        measured = Deferred.fromCoroutine(measure(dsn, rounds))
        measured.addErrback(lambda failure: failure.printTraceback())
        measured.addBoth(lambda _: reactor.callLater(0, reactor.stop))
        reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
