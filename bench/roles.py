"""
The cost of a database role: `get` by key with and without one, alternately, on the same pool.

    python -m bench.roles "host=... dbname=..." [rounds]

Any database will do: a role `rowcast_bench` and a table are created, and dropped at the end.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import psycopg2
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from service.api.dispatcher import Dispatcher
from service.api.reload import Catalogs
from service.api.roles import Roles
from service.db.database import Database
from service.db.pool import PgPool
from service.models.served import Models
from service.request.arguments import Caller
from service.request.read_request import Limits

SETUP = """
CREATE ROLE rowcast_bench;
CREATE TABLE rowcast_bench (id int PRIMARY KEY, action text, path text, status boolean);
INSERT INTO rowcast_bench SELECT i, 'a' || i, '/p/' || i, true FROM generate_series(1, 1000) i;
GRANT SELECT ON rowcast_bench TO rowcast_bench;
"""
TEARDOWN = "DROP TABLE IF EXISTS rowcast_bench; DROP ROLE IF EXISTS rowcast_bench"
CALLS, AT_ONCE = 4000, 16


async def _hub(database: Database, roles: Roles) -> Dispatcher:
    dispatcher = Dispatcher(database, Limits(), 8 << 20, roles)
    catalogs = Catalogs(reactor, database, ("public",), dispatcher, Models(database), roles)
    catalogs.startService()
    await catalogs.loaded()
    catalogs.stopService()
    return dispatcher


async def _seconds(dispatcher: Dispatcher, caller: Caller) -> float:
    """Return the seconds that the calls take."""

    async def some(first: int) -> None:
        for at in range(first, CALLS, AT_ONCE):
            await dispatcher.answer("rowcast_bench.get", [1 + at % 1000], {}, caller)

    began = time.perf_counter()
    await gatherResults([ensureDeferred(some(first)) for first in range(AT_ONCE)])
    return time.perf_counter() - began


async def _main(dsn: str, rounds: int) -> None:
    pool = PgPool(dsn, reactor)
    pool.start()
    database = Database(pool, reactor)
    plain = await _hub(database, Roles())
    mapped = await _hub(database, Roles({"clerk": "rowcast_bench"}))
    caller = Caller(1, "ada", "clerk", "realm1")
    ratios = []
    for _ in range(rounds + 1):
        without, with_role = await _seconds(plain, caller), await _seconds(mapped, caller)
        ratios.append(with_role / without)
        print(f"{CALLS / without:8.0f} calls/s without, {CALLS / with_role:8.0f} with a role")
    print(f"time with a role / without: median {statistics.median(ratios[1:]):.3f}")
    await pool.close()


def main(_: Any, dsn: str, rounds: str = "9") -> Deferred[None]:
    """Create the role and the table, measure, and drop them."""
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    connection.cursor().execute(TEARDOWN)
    connection.cursor().execute(SETUP)

    def tidy(result: Any) -> Any:
        connection.cursor().execute(TEARDOWN)
        connection.close()
        return result

    return ensureDeferred(_main(dsn, int(rounds))).addBoth(tidy)


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
