"""
The cost of an order with ten lines: a nested create, a batch, and a database function.

    python -m bench.nested [--rounds 5]

All three go through the dispatcher, are measured alternately in one run, and return the order with its
lines. Prints for each the CPU microseconds per order, of the service and PostgreSQL together, with 16
calls in flight; the milliseconds per order with one call in flight; and the ratios of the minimums to
those of the function. The database is temporary and does not wait for the disk, so that the figures are
those of the code.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from bench.cpu import spent
from schema.database_url import Place
from service.api.dispatcher import Dispatcher
from service.api.reload import Catalogs
from service.api.roles import Roles
from service.api.transactions import TransactionProcedure
from service.app import freeze_memory
from service.db.database import Database
from service.db.pool import PgPool
from service.models.served import Models
from service.request.arguments import Caller
from service.request.read_request import Limits
from tests.conftest import execute

ORDERS, AT_ONCE, LINES = 600, 16, 10
SETUP = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 1000) i;
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id int NOT NULL REFERENCES customers, note text, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE lines (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES orders, sku text NOT NULL, qty int NOT NULL DEFAULT 1,
    price numeric(10, 2) NOT NULL, UNIQUE (order_id, sku));
CREATE FUNCTION place_order(customer_id int, note text, lines jsonb) RETURNS json LANGUAGE plpgsql AS $$
DECLARE made orders; answer json;
BEGIN
    INSERT INTO orders (customer_id, note) VALUES (place_order.customer_id, place_order.note)
        RETURNING * INTO made;
    INSERT INTO lines (order_id, sku, qty, price)
        SELECT made.id, l.sku, coalesce(l.qty, 1), l.price
          FROM jsonb_to_recordset(place_order.lines) AS l (sku text, qty int, price numeric);
    SELECT json_build_object('id', made.id, 'customer_id', made.customer_id, 'note', made.note,
                             'at', made.at, 'lines', json_agg(l ORDER BY l.id))
      INTO answer FROM lines l WHERE l.order_id = made.id;
    RETURN answer;
END$$
"""
Order = Callable[[int], tuple[str, list[Any], dict[str, Any]]]


def _lines(at: int) -> list[dict[str, Any]]:
    return [{"sku": f"{at}-{n}", "qty": n + 1, "price": "12.50"} for n in range(LINES)]


def _function(at: int) -> tuple[str, list[Any], dict[str, Any]]:
    kwargs = {"customer_id": 1 + at % 1000, "note": "n", "lines": _lines(at)}
    return "fn.place_order", [], kwargs


def _nested(at: int) -> tuple[str, list[Any], dict[str, Any]]:
    values = {"customer_id": 1 + at % 1000, "note": "n", "lines": _lines(at)}
    return "orders.create", [values], {}


def _batch(at: int) -> tuple[str, list[Any], dict[str, Any]]:
    order = {"call": "orders.create", "args": [{"customer_id": 1 + at % 1000, "note": "n"}]}
    lines = [{"order_id": {"$ref": "0.id"}, **line} for line in _lines(at)]
    return "transaction", [[order, {"call": "lines.create", "args": [lines]}]], {}


KINDS: dict[str, Order] = {"function": _function, "nested create": _nested, "batch": _batch}


async def _measure(dsn: str, rounds: int) -> None:
    pool = PgPool(dsn, reactor)
    pool.start()
    database = Database(pool, reactor)
    dispatcher = Dispatcher(database, Limits(), 8 << 20, Roles())
    catalogs = Catalogs(reactor, database, ("public",), dispatcher, Models(database), Roles())
    dispatcher.add(TransactionProcedure(dispatcher).procedures(), once=False)
    catalogs.startService()
    await catalogs.loaded()
    catalogs.stopService()
    freeze_memory()
    caller = Caller(None, None, None, "realm1")

    async def some(order: Order, first: int, step: int, orders: int) -> None:
        for at in range(first, orders, step):
            name, args, kwargs = order(at)
            await dispatcher.answer(name, args, kwargs, caller)

    await gatherResults([database.statement("SELECT pg_sleep(0.2)") for _ in range(AT_ONCE)])
    rows = await database.statement(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
    )
    pids = [pid for (pid,) in rows]

    cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}
    wall: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds):
        for kind in sorted(KINDS, reverse=bool(turn % 2)):
            order, began = KINDS[kind], spent(pids)
            await gatherResults(
                [ensureDeferred(some(order, at, AT_ONCE, ORDERS)) for at in range(AT_ONCE)]
            )
            cpu[kind].append((spent(pids) - began) / ORDERS * 1e6)
            began = time.perf_counter()
            await some(order, 0, 1, ORDERS // 4)
            wall[kind].append((time.perf_counter() - began) / (ORDERS // 4) * 1e3)
    await pool.close()
    found = {kind: (min(cpu[kind]), min(wall[kind])) for kind in KINDS}
    for kind, (least, quickest) in found.items():
        of_cpu, of_wall = least / found["function"][0], quickest / found["function"][1]
        print(
            f"{kind:14} {least:6.0f} µs of CPU × {of_cpu:.2f}   {quickest:6.2f} ms × {of_wall:.2f}"
        )
    print(json.dumps({"cpu": cpu, "wall": wall}))


def main() -> None:
    """Measure on a temporary PostgreSQL."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, "ALTER SYSTEM SET synchronous_commit = off")
        execute(dsn, f"SELECT pg_reload_conf(); {SETUP}")
        task.react(lambda _: Deferred.fromCoroutine(_measure(dsn, given.rounds)))


if __name__ == "__main__":
    main()
