"""
The cost of an idempotency key: calls with and without a key, alternately, through the dispatcher.

    python -m bench.keys [--rounds 7] [--only create ...]

Prints for each kind of write the CPU microseconds per call, of the service and PostgreSQL together, and
the latency of one call after another: without a key, with a key, and the ratio of the minimums. The
database does not wait for the disk, so that the figures are those of the code.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from bench.cpu import spent
from schema.database_url import Place
from schema.own import make
from service.app import freeze_memory
from service.models.model import Model, not_blank
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import serving

CALLS, AT_ONCE, SESSIONS = 600, 8, 5
DOOMED = count(1)
SETUP = """
ALTER SYSTEM SET synchronous_commit = off;
SELECT pg_reload_conf();
CREATE TABLE plain (id serial PRIMARY KEY, note text, n int);
CREATE TABLE ruled (LIKE plain INCLUDING ALL);
CREATE TABLE strict (LIKE plain INCLUDING ALL);
CREATE TABLE doomed (LIKE plain INCLUDING ALL);
CREATE TABLE kept (LIKE plain INCLUDING ALL);
CREATE TABLE documents (id serial PRIMARY KEY, document jsonb);
CREATE TABLE listed (id serial PRIMARY KEY, tags text[]);
INSERT INTO plain (n) SELECT i FROM generate_series(1, 1000) i;
INSERT INTO ruled (id, n) SELECT i, i FROM generate_series(1, 1000) i;
INSERT INTO strict (id, n) SELECT i, i FROM generate_series(1, 1000) i;
INSERT INTO doomed (id) SELECT i FROM generate_series(1, 200000) i;
INSERT INTO kept (id) SELECT i FROM generate_series(1, 200000) i;
ANALYZE;
CREATE FUNCTION noted() RETURNS int LANGUAGE sql AS
    'INSERT INTO plain (note) VALUES (''x'') RETURNING id';
"""
KINDS: dict[str, Any] = {
    "create": ("plain.create", lambda at: [{"note": f"{at}", "n": at}]),
    "create of 50": ("plain.create", lambda at: [[{"note": f"{at}", "n": at}] * 50]),
    "create, JSON": ("documents.create", lambda at: [{"document": {"n": at, "tags": ["a", "b"]}}]),
    "create, list": ("listed.create", lambda at: [{"tags": ["a", "b", f"{at}"]}]),
    "create, model": ("ruled.create", lambda at: [{"note": f"{at}", "n": at}]),
    "upsert": ("plain.upsert", lambda at: [{"id": 1 + at % 1000, "note": f"{at}"}]),
    "update": ("plain.update", lambda at: [1 + at % 1000, {"note": f"{at}"}]),
    "update, model": ("ruled.update", lambda at: [1 + at % 1000, {"note": f"{at}"}]),
    "update, row": ("strict.update", lambda at: [1 + at % 1000, {"note": f"{at}"}]),
    "delete": ("doomed.delete", lambda at: [next(DOOMED)]),
    "delete, model": ("kept.delete", lambda at: [next(DOOMED)]),
    "function": ("fn.noted", lambda at: []),
    "batch of 5": (
        "transaction",
        lambda at: [[{"call": "plain.create", "args": [{"n": at}]}] * 5],
    ),
    "batch, model": (
        "transaction",
        lambda at: [[{"call": "ruled.create", "args": [{"note": "x"}]}] * 5],
    ),
}
"""
By kind: the procedure and its arguments. `model` has a validation of given values, `row` one of the entire
row.
"""


class Ruled(Model):
    """A model with a validation of given values."""

    TABLENAME = "ruled"
    VALIDATIONS = (not_blank("note"),)


class Strict(Model):
    """A model with a validation of the entire row."""

    TABLENAME = "strict"


Strict.addValidator(lambda row: row.n < 0 and row.errors.add("n", "is negative"))


class Kept(Model):
    """A model with a beforeDelete hook."""

    TABLENAME = "kept"

    def beforeDelete(self) -> bool:
        """Allow the delete."""
        return self.n is None


async def measure(dsn: str, rounds: int, kinds: Sequence[str]) -> None:
    """Measure with and without a key alternately, and print the minimums."""
    caller, keys = Caller(1, "ann", "clerk", "realm1"), count()
    async with serving(dsn, written=(Ruled, Strict, Kept), most=SESSIONS) as db:
        # All sessions of the pool, so that the CPU of each counts.
        opened = [db.database.statement("SELECT pg_sleep(0.3)") for _ in range(SESSIONS)]
        await gatherResults(opened)
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

        freeze_memory()
        for kind in kinds:
            name, args = KINDS[kind]
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
    """Measure on a temporary PostgreSQL."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        for statement in SETUP.strip().split(";\n"):
            execute(dsn, statement.rstrip(";"))
        make(dsn)
        task.react(lambda _: Deferred.fromCoroutine(measure(dsn, given.rounds, given.only)))


if __name__ == "__main__":
    main()
