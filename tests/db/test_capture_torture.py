"""
A reader of the log beside many writers: nothing lost, nothing twice, every state a real one.

The usual reader of such a table, which remembers the highest number, runs beside it and has to
fail, or the writers would prove nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import cursor

from schema.changes import install
from tests.conftest import execute, wait_until
from tests.db.captured import Entry, Image, SnapshotReader, connect, net

ACCOUNTS, WRITERS, TRANSACTIONS = 12, 6, 70
SCHEMA = f"""
CREATE TABLE accounts (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL);
CREATE TABLE untracked (id int);
INSERT INTO accounts SELECT i, 100 FROM generate_series(1, {ACCOUNTS}) i;
{install()}
SELECT rowcast.track('accounts'), rowcast.track('items');
"""
TOTAL = 100 * ACCOUNTS

State = dict[str, dict[Any, Image]]


class HighestReader:
    """Reads what is above the highest number that it has seen."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self.highest = 0
        self.seen: set[int] = set()

    def read(self) -> None:
        """Read what it takes for new."""
        with self.connection.cursor() as rows:
            rows.execute("SELECT seq FROM rowcast.log WHERE seq > %s", [self.highest])
            found = {seq for (seq,) in rows.fetchall()}
        self.seen |= found
        self.highest = max(found, default=self.highest)


class Replica:
    """
    A copy of the tables, kept by what the reader reads.

    Args:
        reader: Made before the first write.
        start: What the tables held then.
    """

    def __init__(self, reader: SnapshotReader, start: State) -> None:
        self.reader = reader
        self.state = start
        self.seen: list[int] = []
        self.wrong: list[object] = []
        self.batches = 0

    def step(self) -> None:
        """Read once and apply what has come, transaction by transaction."""
        entries = self.reader.read()
        self.seen += [entry.seq for entry in entries]
        self.batches += bool(entries)
        # of two transactions that wrote one row, the one that waited has the higher last number
        last = {entry.xid: entry.seq for entry in entries}
        for xid in sorted(last, key=lambda xid: last[xid]):
            self._apply([entry for entry in entries if entry.xid == xid])
        if sum(row["amount"] for row in self.state["accounts"].values()) != TOTAL:
            self.wrong.append("the sum of all accounts, which no transaction changes")

    def _apply(self, entries: list[Entry]) -> None:
        for name, rows in self.state.items():
            own = [entry for entry in entries if entry.relation == f"public.{name}"]
            for key, (old, new) in net(own, "id").items():
                if rows.get(key) != old:
                    self.wrong.append((name, key, rows.get(key), old))
                rows.pop(key, None)
                if new is not None:
                    rows[key] = new


def tables(dsn: str) -> State:
    """Return what the tables hold."""
    found: State = {}
    for name in ("accounts", "items"):
        rows = execute(dsn, f"SELECT id, row_to_json(t) FROM {name} t")
        found[name] = {key: image for key, image in rows if isinstance(image, dict)}
    return found


def write(dsn: str, seed: int) -> None:
    """Run transactions of all kinds, some rolled back, some slow."""
    dice = random.Random(seed)
    connection = connect(dsn)
    with connection.cursor() as rows:
        for _ in range(TRANSACTIONS):
            try:
                for _ in range(dice.randint(1, 3)):
                    _some(rows, dice)
                time.sleep(dice.choice((0, 0, 0.002, 0.01, 0.05)))
                if dice.random() < 0.15:
                    connection.rollback()
                else:
                    connection.commit()
            except (psycopg2.errors.DeadlockDetected, psycopg2.errors.UniqueViolation):
                connection.rollback()
    connection.close()


def _some(rows: cursor, dice: random.Random) -> None:
    one, other = dice.sample(range(1, ACCOUNTS + 1), 2)
    key, moved = dice.randint(1, 30), dice.randint(1, 30)
    kind = dice.randrange(8)
    if kind < 3:
        transfer = "UPDATE accounts SET amount = amount + %s WHERE id = %s"
        rows.execute(transfer, [-kind, one])
        rows.execute(transfer, [kind, other])
    elif kind == 3:
        rows.execute(
            "INSERT INTO items VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET n = items.n + 1", [key]
        )
    elif kind == 4:
        rows.execute("DELETE FROM items WHERE id = %s", [key])
    elif kind == 5:
        rows.execute("UPDATE items SET id = %s WHERE id = %s", [moved, key])
    elif kind == 6:
        rows.execute("WITH d AS (DELETE FROM items WHERE id = %s RETURNING n)"
                     " INSERT INTO items SELECT %s, n FROM d ON CONFLICT DO NOTHING", [key, moved])  # fmt: skip
    else:
        rows.execute("SAVEPOINT s; UPDATE items SET n = n + 100 WHERE id < %s", [key])
        rows.execute("ROLLBACK TO s" if dice.random() < 0.5 else "RELEASE s")


@pytest.fixture
def replica(dsn: str) -> Iterator[Replica]:
    """Keep a copy from here on."""
    reader = SnapshotReader(dsn)
    yield Replica(reader, tables(dsn))
    reader.connection.close()


def test_reader_by_snapshots_beside_writers_loses_and_doubles_nothing(
    dsn: str, replica: Replica
) -> None:
    naive = HighestReader(dsn)
    idle = connect(dsn)  # a transaction that writes elsewhere holds nothing up
    with idle.cursor() as rows:
        rows.execute("INSERT INTO untracked VALUES (1)")
    writers = [threading.Thread(target=write, args=(dsn, seed)) for seed in range(WRITERS)]
    for writer in writers:
        writer.start()
    began = time.monotonic()
    late = connect(dsn)
    with late.cursor() as rows:
        rows.execute("INSERT INTO items VALUES (99, 1)")
        ((number,),) = execute(dsn, "SELECT last_value FROM rowcast.log_seq")

        def passed() -> bool:
            replica.step()
            naive.read()
            return naive.highest > int(str(number))

        wait_until(passed, 60)
        late.commit()
    late.close()
    while any(writer.is_alive() for writer in writers):
        replica.step()
        naive.read()
        assert time.monotonic() < began + 240
    for writer in writers:
        writer.join()
    replica.step()
    naive.read()
    idle.rollback()
    idle.close()
    naive.connection.close()

    logged = {seq for (seq,) in execute(dsn, "SELECT seq FROM rowcast.log")}
    assert len(logged) > 300
    assert replica.batches > 20
    assert len(replica.seen) == len(set(replica.seen)), "read twice"
    assert set(replica.seen) == logged, "lost"
    assert replica.wrong == []
    assert replica.state == tables(dsn)
    assert logged - naive.seen, "a reader that remembers the highest number would do"


def test_resumed_reader_gets_what_the_steps_between_have_brought(
    dsn: str, replica: Replica
) -> None:
    """From any earlier position, merged into one batch."""
    positions = [replica.reader.snapshot]
    steps: list[set[int]] = []
    writers = [threading.Thread(target=write, args=(dsn, 50 + seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        steps.append({entry.seq for entry in replica.reader.read()})
        positions.append(replica.reader.snapshot)
    for writer in writers:
        writer.join()
    steps.append({entry.seq for entry in replica.reader.read()})
    dice = random.Random(5)
    for _ in range(25):
        start = dice.randrange(len(positions))
        replica.reader.snapshot = positions[start]
        entries = [entry.seq for entry in replica.reader.read()]
        assert len(entries) == len(set(entries))
        assert set(entries) == set().union(*steps[start:])
