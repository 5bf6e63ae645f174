"""
The cost of resetting a PostgreSQL session after a call: calls with and without it, alternately, on one pool.

    python -m bench.clean "host=... dbname=..." [rounds]

Any database will do: a table and a function are created, and dropped at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from service.api.dispatcher import Dispatcher
from service.api.reload import Catalogs
from service.db.connection import PgConnection
from service.db.database import Database
from service.db.pool import PgPool
from service.models.served import Models
from service.request.arguments import Caller
from service.request.read_request import Limits

SETUP = """
CREATE TABLE rowcast_bench (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, action text);
INSERT INTO rowcast_bench (action) SELECT 'a' || i FROM generate_series(1, 1000) i;
CREATE FUNCTION rowcast_bench_fn(i int) RETURNS int LANGUAGE sql AS 'SELECT i + 1';
"""
TEARDOWN = "DROP TABLE IF EXISTS rowcast_bench; DROP FUNCTION IF EXISTS rowcast_bench_fn(int)"
CALLS, AT_ONCE = 2000, 16
CALLER = Caller(None, None, None, "realm1")
NAMES: dict[str, tuple[str, Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "get": ("rowcast_bench.get", lambda at: ((1 + at % 1000,), {})),
    "find": ("rowcast_bench.find", lambda at: ((), {"where": {"id": 1 + at % 1000}})),
    "create": ("rowcast_bench.create", lambda at: (({"action": f"b{at}"},), {})),
    "function": ("fn.rowcast_bench_fn", lambda at: ((), {"i": at})),
}


@contextmanager
def _cleaned(dispatcher: Dispatcher, cleaned: bool | None) -> Iterator[None]:
    """Reset sessions after each call (True), never (False), or where the service does (None)."""
    codec, cleaning = dispatcher.served.codec, PgConnection.cleaning
    codec.current = cleaned is None or not cleaned
    if cleaned is False:
        PgConnection.cleaning = lambda _: ""  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        codec.current = True
        PgConnection.cleaning = cleaning  # type: ignore[method-assign]


async def _seconds(dispatcher: Dispatcher, name: str, cleaned: bool | None) -> float:
    """Return the seconds that the calls take."""
    procedure, arguments = NAMES[name]

    async def some(first: int) -> None:
        for at in range(first, CALLS, AT_ONCE):
            args, kwargs = arguments(at)
            await dispatcher.answer(procedure, args, kwargs, CALLER)

    with _cleaned(dispatcher, cleaned):
        began = time.perf_counter()
        await gatherResults([ensureDeferred(some(first)) for first in range(AT_ONCE)])
        return time.perf_counter() - began


async def _main(dsn: str, rounds: int) -> None:
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(TEARDOWN)
        cursor.execute(SETUP)
    pool = PgPool(dsn, reactor)
    pool.start()
    database = Database(pool, reactor)
    dispatcher = Dispatcher(database, Limits(), 8 << 20)
    catalogs = Catalogs(reactor, database, ("public",), dispatcher, Models(database))
    catalogs.startService()
    await catalogs.loaded()
    catalogs.stopService()
    try:
        for name in NAMES:
            found: dict[bool | None, list[float]] = {None: [], True: [], False: []}
            for cleaned in found:
                await _seconds(dispatcher, name, cleaned)
            for _ in range(rounds):
                for cleaned, times in found.items():
                    times.append(await _seconds(dispatcher, name, cleaned))
            as_it_is, always, never = (min(times) / CALLS * 1e6 for times in found.values())
            print(
                f"{name:9} {as_it_is:5.0f} µs; never cleaned {never:5.0f} µs,"
                f" ratio {as_it_is / never:.2f};"
                f" always {always:5.0f} µs, ratio {always / never:.2f}"
            )
    finally:
        await pool.close()
        with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
            cursor.execute(TEARDOWN)


def _run(_: Any) -> Deferred[None]:
    return ensureDeferred(_main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5))


if __name__ == "__main__":
    task.react(_run)
