"""
The cost of writes through the dispatcher, also compared with another checkout.

    python -m bench.writes [--before ../rowcast-before] [--rounds 5]

Prints for each kind of write the CPU microseconds per call, of the service and PostgreSQL together. With
`--before`, measures both checkouts alternately, and prints the minimums of both and their ratio. The
database is temporary and does not wait for the disk, so that the figures are those of the code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from bench.cpu import spent

CALLS, AT_ONCE = 1500, 16
SETUP = """
ALTER SYSTEM SET synchronous_commit = off;
SELECT pg_reload_conf();
CREATE TABLE owners (id int PRIMARY KEY, name text);
INSERT INTO owners SELECT i, 'owner ' || i FROM generate_series(0, 999) i;
CREATE TABLE plain (id serial PRIMARY KEY, owner int REFERENCES owners, note text, n int);
CREATE TABLE ruled (id serial PRIMARY KEY, owner int REFERENCES owners, note text, n int);
CREATE TABLE narrow (id serial PRIMARY KEY, n int);
CREATE TABLE before (id serial PRIMARY KEY, n int);
CREATE TABLE after (id serial PRIMARY KEY, n int);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER nothing BEFORE INSERT OR UPDATE ON before FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TRIGGER nothing AFTER INSERT OR UPDATE ON after FOR EACH ROW EXECUTE FUNCTION nothing();
"""
FILL = "; ".join(
    f"INSERT INTO {name} (n) SELECT i FROM generate_series(1, 1000) i"
    for name in ("plain", "ruled", "narrow", "before", "after")
)
EMBED = {"embed": {"owners": True}}
KINDS: dict[str, Any] = {
    "create": ("plain.create", lambda at: [{"owner": at % 1000, "note": "x"}], {}),
    "create, embed": ("plain.create", lambda at: [{"owner": at % 1000, "note": "x"}], EMBED),
    "create of 50, embed": ("plain.create", lambda at: [[{"owner": at % 1000}] * 50], EMBED),
    "update": ("plain.update", lambda at: [1 + at % 1000, {"note": f"{at}"}], {}),
    "update, model": ("ruled.update", lambda at: [1 + at % 1000, {"note": f"{at}"}], {}),
    "update, embed": ("plain.update", lambda at: [1 + at % 1000, {"note": f"{at}"}], EMBED),
    "create, narrow": ("narrow.create", lambda at: [{"n": at}], {}),
    "update, narrow": ("narrow.update", lambda at: [1 + at % 1000, {"n": at}], {}),
    "update, narrow, $add": ("narrow.update", lambda at: [1 + at % 1000, {"n": {"$add": 1}}], {}),
    "update, narrow, both": (
        "narrow.update",
        lambda at: [1 + at % 1000, {"n": at}],
        {"returning": "both"},
    ),
    "update of 10 rows": (
        "narrow.update",
        lambda at: [],
        lambda at: {"rows": [{"id": 1 + (10 * at + i) % 1000, "n": at} for i in range(10)]},
    ),
    "update, BEFORE trigger": ("before.update", lambda at: [1 + at % 1000, {"n": at}], {}),
    "update, AFTER trigger": ("after.update", lambda at: [1 + at % 1000, {"n": at}], {}),
}


async def _measure(dsn: str) -> None:
    from service.api.dispatcher import Dispatcher
    from service.api.reload import Catalogs
    from service.api.roles import Roles
    from service.db.database import Database
    from service.db.pool import PgPool
    from service.models.model import Model, not_blank
    from service.models.served import Models
    from service.request.arguments import Caller
    from service.request.read_request import Limits

    class Ruled(Model):
        TABLENAME = "ruled"
        VALIDATIONS = (not_blank("note"),)

    pool = PgPool(dsn, reactor)
    pool.start()
    database = Database(pool, reactor)
    dispatcher = Dispatcher(database, Limits(), 8 << 20, Roles())
    catalogs = Catalogs(
        reactor, database, ("public",), dispatcher, Models(database, (Ruled,)), Roles()
    )
    catalogs.startService()
    await catalogs.loaded()
    catalogs.stopService()
    caller = Caller(None, None, None, "realm1")

    async def some(first: int, name: str, args: Any, kwargs: Any, calls: int) -> None:
        for at in range(first, calls, AT_ONCE):
            named = kwargs(at) if callable(kwargs) else kwargs
            await dispatcher.answer(name, args(at), named, caller)

    await gatherResults([database.statement("SELECT pg_sleep(0.2)") for _ in range(AT_ONCE)])
    rows = await database.statement(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    )
    pids = [pid for (pid,) in rows]

    found = {}
    for kind, (name, args, kwargs) in KINDS.items():
        calls = CALLS // 10 if "of 50" in kind else CALLS
        began = spent(pids)
        await gatherResults(
            [ensureDeferred(some(at, name, args, kwargs, calls)) for at in range(AT_ONCE)]
        )
        found[kind] = (spent(pids) - began) / calls * 1e6
    print(json.dumps(found), flush=True)
    await pool.close()


def _child(checkout: Path, home: Path, dsn: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--of", dsn]
    # Both run the benchmarks of this checkout; all other code is that of the measured checkout.
    environment = os.environ | {"PYTHONPATH": f"{home}{os.pathsep}{checkout}"}
    done = subprocess.run(
        command, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure alternately, or run one measurement."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--before", type=Path, help="another checkout to compare with")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--of", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.of:
        task.react(lambda _: Deferred.fromCoroutine(_measure(given.of)))
    from schema.database_url import Place
    from tests.conftest import ROOT, execute

    checkouts = [given.before.resolve(), ROOT] if given.before else [ROOT]
    turns: list[list[dict[str, float]]] = [[] for _ in checkouts]
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        benches = Path(home) / "benches"
        benches.mkdir()
        (benches / "bench").symlink_to(Path(__file__).resolve().parent)
        for statement in [*SETUP.strip().split(";\n"), FILL]:
            execute(dsn, statement.rstrip(";"))
        for round in range(given.rounds):
            for at in sorted(range(len(checkouts)), reverse=bool(round % 2)):
                turns[at].append(_child(checkouts[at], benches, dsn))
    for kind in KINDS:
        *before, now = (min(turn[kind] for turn in each) for each in turns)
        compared = f"{before[0]:8.0f} → {now:.0f} µs, × {now / before[0]:.2f}" if before else ""
        print(f"{kind:24} {compared or f'{now:8.0f} µs'}")


if __name__ == "__main__":
    main()
