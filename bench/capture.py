"""
The cost of capture: backend CPU of writes to tracked tables, compared with an untracked table.

    python -m bench.capture [--rounds 9]

The kinds of capture are measured alternately. For each, the minimum over the rounds is printed in
microseconds per row, with its ratio to no capture. Each single write is a transaction of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psycopg2
from psycopg2.extensions import cursor

from schema.changes import install
from schema.database_url import Place
from tests.conftest import execute

SETUP = """
CREATE TABLE plain (id bigint PRIMARY KEY, grp int NOT NULL, val numeric(12,2) NOT NULL, title text NOT NULL,
                    tags text[], at timestamptz NOT NULL DEFAULT now());
INSERT INTO plain SELECT g, g % 1000, g % 977, 'title ' || g || repeat(' x', 40), ARRAY['a', 'b'], now()
  FROM generate_series(1, 20000) g;
"""
CAPTURES = {
    "full": ("", "full', true"),
    "full, no wake": ("", "full', false"),
    "keys": ("", "keys', true"),
    "keys of two": (
        "ALTER TABLE {0} DROP CONSTRAINT {0}_pkey, ADD PRIMARY KEY (id, grp)",
        "keys', true",
    ),
    "touch": ("", "touch', true"),
}
"""By kind of capture: the SQL that prepares the table, and the SQL that tracks it."""
SINGLE, BATCH, BULK = 500, 25, 10000
INSERT = (
    "INSERT INTO {table} (id, grp, val, title, tags) VALUES ({id}, 5, 12.5, 'title', '{{a,b}}')"
)
UPDATE = "UPDATE {table} SET val = val + 1 WHERE id = {id}"
BULK_INSERT = """
INSERT INTO {table} SELECT g + 1000000, 5, 12.5, 'title ' || g || repeat(' x', 40), ARRAY['a', 'b'], now()
  FROM generate_series(1, 10000) g
"""
BULK_UPDATE = "UPDATE {table} SET val = val + 1 WHERE id BETWEEN 5000 AND 14999"


def spent(pid: int) -> float:
    """Return the CPU seconds of a backend."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9


def measured(rows: cursor, table: str) -> dict[str, float]:
    """Return the microseconds per row of each kind of write; leave the table unchanged."""
    pid = rows.connection.info.backend_pid
    found: dict[str, float] = {}

    def run(kind: str, each: int, statements: list[str]) -> None:
        began = spent(pid)
        for statement in statements:
            rows.execute(statement)
        cost = (spent(pid) - began) / len(statements) / each * 1e6
        found[kind] = min(cost, found.get(kind, cost))

    for first in range(100000, 100000 + SINGLE, BATCH):
        ids = range(first, first + BATCH)
        run("insert", 1, [INSERT.format(table=table, id=id) for id in ids])
        run("update", 1, [UPDATE.format(table=table, id=id - 99999) for id in ids])
    run("bulk insert", BULK, [BULK_INSERT.format(table=table)])
    run("bulk update", BULK, [BULK_UPDATE.format(table=table)])
    rows.execute(f"DELETE FROM {table} WHERE id > 20000")
    return found


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=9)
    rounds = options.parse_args().rounds
    costs: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as home, Place(state=Path(home)).running() as dsn:
        execute(dsn, SETUP + install())
        tables = {"none": "plain"}
        for number, (name, (first, how)) in enumerate(CAPTURES.items()):
            tables[name] = f"captured_{number}"
            execute(dsn, f"CREATE TABLE captured_{number} (LIKE plain INCLUDING ALL)")
            execute(dsn, f"INSERT INTO captured_{number} SELECT * FROM plain")
            execute(dsn, first.format(f"captured_{number}") or "SELECT 1")
            execute(dsn, f"SELECT rowcast.track('captured_{number}', '{how})")
        connection = psycopg2.connect(dsn)
        connection.autocommit = True
        with connection.cursor() as rows:
            for turn in range(rounds + 1):
                order = list(tables)[turn % len(tables) :] + list(tables)[: turn % len(tables)]
                for table in tables.values():
                    rows.execute(f"VACUUM {table}")
                rows.execute("TRUNCATE rowcast.log; CHECKPOINT")
                found = {name: measured(rows, tables[name]) for name in order}
                for name, each in found.items() if turn else ():  # the first one warms up
                    for kind, cost in each.items():
                        costs.setdefault((kind, name), []).append(cost)
        connection.close()
    kinds = ("insert", "update", "bulk insert", "bulk update")
    print(f"{'':14}" + "".join(f"{kind:>20}" for kind in kinds))
    for name in tables:
        print(f"{name:14}", end="")
        for kind in kinds:
            cost, none = min(costs[kind, name]), min(costs[kind, "none"])
            print(f"{f'{cost:.1f} µs  × {cost / none:.2f}':>20}", end="")
        print()


if __name__ == "__main__":
    main()
