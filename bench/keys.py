"""
What an idempotency key costs: calls with one and without, by turns, through the hub.

    python -m bench.keys [--rounds 7]

Prints, for each kind of write, the microseconds of CPU that a call takes, of the service and of
PostgreSQL together, and those that one call after another waits; without a key, with one, and the ratio
of the quietest turns. The database waits for no disk, so that the code is what counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from bench.cpu import spent
from schema.database_url import Place
from schema.own import make
from service.app import settle
from service.models.model import Model
from service.models.validations import not_blank
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import serving

CALLS, AT_ONCE = 600, 8
SETUP = """
ALTER SYSTEM SET synchronous_commit = off;
SELECT pg_reload_conf();
CREATE TABLE plain (id serial PRIMARY KEY, note text, n int);
CREATE TABLE ruled (id serial PRIMARY KEY, note text, n int);
INSERT INTO plain (n) SELECT i FROM generate_series(1, 1000) i;
INSERT INTO ruled (n) SELECT i FROM generate_series(1, 1000) i;
CREATE FUNCTION noted() RETURNS int LANGUAGE sql AS
    'INSERT INTO plain (note) VALUES (''x'') RETURNING id';
"""
KINDS: dict[str, Any] = {
    "create": ("plain.create", lambda at: [{"note": f"{at}", "n": at}]),
    "create of 50": ("plain.create", lambda at: [[{"note": f"{at}", "n": at}] * 50]),
    "update": ("plain.update", lambda at: [1 + at % 1000, {"note": f"{at}"}]),
    "update, model": ("ruled.update", lambda at: [1 + at % 1000, {"note": f"{at}"}]),
    "function": ("fn.noted", lambda at: []),
    "batch of 5": (
        "transaction",
        lambda at: [[{"call": "plain.create", "args": [{"n": at}]}] * 5],
    ),
}


class Ruled(Model):
    """Has a validation."""

    TABLENAME = "ruled"
    VALIDATIONS = (not_blank("note"),)


async def measure(dsn: str, rounds: int) -> None:
    """Measure in turns, and print the quietest."""
    caller, keys = Caller(1, "ann", "clerk", "realm1"), count()
    async with serving(dsn, written=(Ruled,), most=5) as db:
        pids = [
            pid
            for (pid,) in await db.database.statement(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            )
        ]

        async def some(name: str, args: Any, keyed: bool, calls: int) -> None:
            for at in range(calls):
                kwargs = {"idempotency_key": f"{next(keys)}"} if keyed else {}
                await db.dispatcher.answer(name, args(at), kwargs, caller)

        async def turn(name: str, args: Any, keyed: bool, calls: int) -> tuple[float, float]:
            began = spent(pids)
            each = [ensureDeferred(some(name, args, keyed, calls)) for _ in range(AT_ONCE)]
            await gatherResults(each)
            cost = (spent(pids) - began) / calls / AT_ONCE
            began = time.perf_counter()
            await some(name, args, keyed, calls)
            return cost * 1e6, (time.perf_counter() - began) / calls * 1e6

        settle()
        for kind, (name, args) in KINDS.items():
            turns: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
            calls = CALLS // AT_ONCE // (5 if "of" in kind else 1)
            for round in range(rounds):
                for keyed in (bool(round % 2), not round % 2):
                    turns[keyed].append(await turn(name, args, keyed, calls))
            words = []
            for at, what in enumerate(("CPU", "wait")):
                bare, keyed_ = (min(each[at] for each in turns[one]) for one in (False, True))
                words.append(f"{what} {bare:6.0f} → {keyed_:5.0f} µs, × {keyed_ / bare:.2f}")
            print(f"{kind:14} {'   '.join(words)}", flush=True)


def main() -> None:
    """Measure on a database of its own."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        for statement in SETUP.strip().split(";\n"):
            execute(dsn, statement.rstrip(";"))
        make(dsn)
        task.react(lambda _: Deferred.fromCoroutine(measure(dsn, given.rounds)))


if __name__ == "__main__":
    main()
