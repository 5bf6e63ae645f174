"""
Concurrent writers, an observer that records snapshots, and readers that are deliberately wrong.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from schema.changes import install
from service.changes.log import PgSnapshot

ACCOUNTS, ITEMS, BALANCE = 40, 60, 100
TOTAL = ACCOUNTS * BALANCE
TABLES = f"""
CREATE TABLE accounts (id int PRIMARY KEY, amount int NOT NULL);
CREATE TABLE items (id int PRIMARY KEY, name text, n int NOT NULL);
CREATE TABLE untracked (id int);
INSERT INTO accounts SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
INSERT INTO items SELECT i, 'first', 0 FROM generate_series(1, {ITEMS}) i;
{install()}
-- writers that notify could not prepare a transaction
SELECT rowcast.track('accounts', 'full', false), rowcast.track('items', 'full', false);
"""
RELATIONS = ("accounts", "items")

State = dict[tuple[str, int], dict[str, Any]]


def content(rows: Cursor) -> State:
    """Return the contents of the tables."""
    found: State = {}
    for name in RELATIONS:
        rows.execute(f"SELECT id, row_to_json(t) FROM {name} t")
        found.update({(name, key): image for key, image in rows.fetchall()})
    return found


class Copy:
    """
    A copy of the tables that changes maintain.

    Args:
        state: The contents of the tables before the first change.

    Attributes:
        wrong: Changes whose old row differs from the copy, and totals that no transaction leaves.
    """

    def __init__(self, state: State) -> None:
        self.state = dict(state)
        self.wrong: list[object] = []

    def apply(self, relation: str, old: Any, new: Any) -> None:
        """Apply one change."""
        if old is not None and self.state.pop((relation, old["id"]), None) != old:
            self.wrong.append((relation, old, new))
        if new is not None:
            if (relation, new["id"]) in self.state:
                self.wrong.append((relation, old, new))
            self.state[relation, new["id"]] = new

    def end(self) -> None:
        """Check the total of a state that the database must have had."""
        if (
            sum(row["amount"] for (name, _), row in self.state.items() if name == "accounts")
            != TOTAL
        ):
            self.wrong.append("the sum of all accounts, which no transaction changes")


class Threads:
    """
    Threads that reconnect after crashes of the server, until they are stopped.

    Args:
        dsn: DSN of the database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()

    def start(self, run: Callable[[Connection], None]) -> None:
        """Run a function with a connection repeatedly, in a new thread."""

        def keep() -> None:
            while not self._stopping.is_set():
                connection = None
                try:
                    connection = psycopg2.connect(self._dsn)
                    while not self._stopping.is_set():
                        run(connection)
                except psycopg2.Error as error:
                    if error.pgcode is not None and not isinstance(
                        error, psycopg2.OperationalError
                    ):
                        raise
                    self.counts["connections lost"] += 1
                    time.sleep(0.05)
                finally:
                    if connection is not None:
                        connection.close()

        self._threads.append(threading.Thread(target=keep))
        self._threads[-1].start()

    def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the threads are stopped."""
        self._stopping.wait(seconds)

    def stop(self) -> None:
        """Stop all threads."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)


class Writers(Threads):
    """
    Eight writers, and a session that holds a transaction open.

    Args:
        dsn: DSN of the database.
        seed: Seed of the random writes.
    """

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__(dsn)
        for number in range(8):
            dice = random.Random(seed * 100 + number)
            self.start(
                lambda connection, dice=dice, number=number: self._write(connection, dice, number)
            )  # type: ignore[misc]
        self.start(self._hold)

    def _hold(self, connection: Connection) -> None:
        with connection.cursor() as rows:
            rows.execute("INSERT INTO untracked VALUES (1)")
            self.pause(random.uniform(1, 3))
        connection.commit()

    def _write(self, connection: Connection, dice: random.Random, number: int) -> None:
        name = f"p{number}"
        try:
            with connection.cursor() as rows:
                self._end_prepared(connection, rows, name, commit=True)
                for _ in range(dice.randint(1, 4)):
                    self._step(rows, dice)
                if dice.random() < 0.02:
                    self._many_savepoints(rows, dice)
                self.pause(dice.uniform(0.3, 1.2) if dice.random() < 0.06 else dice.random() * 0.02)
                end = dice.random()
                if end < 0.15:
                    connection.rollback()
                    self.counts["rolled back"] += 1
                elif end < 0.20:
                    rows.execute("PREPARE TRANSACTION %s", [name])
                    connection.commit()
                    self.pause(dice.random() * 0.2)
                    self._end_prepared(connection, rows, name, commit=dice.random() < 0.7)
                    self.counts["prepared"] += 1
                else:
                    connection.commit()
                    self.counts["committed"] += 1
        except (errors.DeadlockDetected, errors.UniqueViolation) as error:
            connection.rollback()
            self.counts[type(error).__name__] += 1

    def _end_prepared(self, connection: Connection, rows: Cursor, name: str, commit: bool) -> None:
        connection.rollback()
        rows.execute("SELECT 1 FROM pg_prepared_xacts WHERE gid = %s", [name])
        found = rows.fetchone()
        connection.rollback()
        if found:
            connection.autocommit = True
            rows.execute(f"{'COMMIT' if commit else 'ROLLBACK'} PREPARED '{name}'")
            connection.autocommit = False

    def _step(self, rows: Cursor, dice: random.Random) -> None:
        if dice.random() < 0.3:
            rows.execute("SAVEPOINT step")
            _write_some(rows, dice)
            rows.execute(f"{'ROLLBACK TO' if dice.random() < 0.4 else 'RELEASE'} step")
        else:
            _write_some(rows, dice)

    def _many_savepoints(self, rows: Cursor, dice: random.Random) -> None:
        """Use more than 64 savepoints: then a snapshot no longer lists the subtransactions."""
        for number in range(70):
            rows.execute("SAVEPOINT many")
            rows.execute("UPDATE items SET n = n + 1 WHERE id = %s", [dice.randint(1, ITEMS)])
            rows.execute(f"{'ROLLBACK TO' if number % 10 == 3 else 'RELEASE'} many")
        self.counts["many savepoints"] += 1


def _write_some(rows: Cursor, dice: random.Random) -> None:
    one, other = dice.sample(range(1, ACCOUNTS + 1), 2)
    key, target = dice.randint(1, ITEMS + 20), dice.randint(1, ITEMS + 20)
    kind = dice.randrange(10)
    if kind < 3:
        _move(rows, one, other, dice.randint(1, 9))
    elif kind == 3:  # all of an account, which goes
        rows.execute("SELECT FROM accounts WHERE id = %s FOR UPDATE", [other])
        if rows.rowcount:
            rows.execute("DELETE FROM accounts WHERE id = %s RETURNING amount", [one])
            for (amount,) in rows.fetchall():
                rows.execute(
                    "UPDATE accounts SET amount = amount + %s WHERE id = %s", [amount, other]
                )
    elif kind == 4:
        rows.execute("INSERT INTO accounts VALUES (%s, 0) ON CONFLICT (id) DO UPDATE"
                     " SET amount = accounts.amount", [one])  # fmt: skip
    elif kind == 5:
        rows.execute("INSERT INTO items VALUES (%s, 'new', 1) ON CONFLICT (id) DO UPDATE"
                     " SET n = items.n + 10", [key])  # fmt: skip
    elif kind == 6:
        rows.execute("DELETE FROM items WHERE id = %s", [key])
    elif kind == 7:
        rows.execute("UPDATE items SET id = %s WHERE id = %s"
                     " AND NOT EXISTS (SELECT FROM items WHERE id = %s)", [target, key, target])  # fmt: skip
    elif kind == 8:
        rows.execute("WITH gone AS (DELETE FROM items WHERE id = %s RETURNING n)"
                     " INSERT INTO items SELECT %s, 'moved', n FROM gone ON CONFLICT DO NOTHING", [key, target])  # fmt: skip
    else:
        rows.execute("MERGE INTO items t USING (SELECT %s AS id) s ON t.id = s.id"
                     " WHEN MATCHED AND t.n %% 3 = 0 THEN DELETE"
                     " WHEN MATCHED THEN UPDATE SET n = t.n + 7"
                     " WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'merged', 3)", [key])  # fmt: skip


def _move(rows: Cursor, source: int, target: int, amount: int) -> None:
    statement = "UPDATE accounts SET amount = amount + %s WHERE id = %s"
    rows.execute(statement, [-amount, source])
    if rows.rowcount:
        rows.execute(statement, [amount, target])
        if not rows.rowcount:
            rows.execute(statement, [amount, source])


class Observer(Threads):
    """An observer that takes snapshots, each with the visible contents of the tables."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.seen: list[tuple[PgSnapshot, State]] = []
        self.start(self._look)

    def _look(self, connection: Connection) -> None:
        connection.set_session(isolation_level="REPEATABLE READ")
        with connection.cursor() as rows:
            rows.execute("SELECT pg_current_snapshot()::text")
            ((text,),) = rows.fetchall()
            self.seen.append((PgSnapshot.of(text), content(rows)))
        connection.rollback()
        self.pause(0.3)


Row = tuple[int, int, str, Any, Any]
"""A row of the log: its sequence number, transaction id, table, old and new image."""
READ = """
SELECT l.seq, l.xid::text::bigint, t.relation::text, l.old, l.new
  FROM rowcast.log l JOIN rowcast.tracked t ON t.id = l.relation
"""


class WrongReader(Threads):
    """
    A plausible but wrong reader of the log.

    Args:
        dsn: DSN of the database.
        state: The contents of the tables before the first change.
        order: ORDER BY of the rows below the lowest running transaction; "" to read the rows above
            the highest sequence number seen.
    """

    def __init__(self, dsn: str, state: State, order: str = "") -> None:
        super().__init__(dsn)
        self.copy = Copy(state)
        self._order = order
        self._last = 0
        self.start(self._read)

    def _read(self, connection: Connection) -> None:
        with connection.cursor() as rows:
            if self._order:
                rows.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                rows.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
                ((below,),) = rows.fetchall()
                bounds = "WHERE xid >= %s::text::xid8 AND xid < %s::text::xid8"
                rows.execute(f"{READ} {bounds} ORDER BY {self._order}", [self._last, below])
                found = rows.fetchall()
                self._last = below
            else:
                rows.execute(f"{READ} WHERE seq > %s ORDER BY seq", [self._last])
                found = rows.fetchall()
                self._last = found[-1][0] if found else self._last
        connection.rollback()
        self.take(found)
        self.pause(0.01)

    def take(self, found: Iterable[Row]) -> None:
        """Apply a batch of rows."""
        for _, _, relation, old, new in found:
            self.copy.apply(relation, old, new)
        self.copy.end()

    def end(self, final: State) -> int:
        """Return the number of errors, including rows that differ from the final contents."""
        keys = self.copy.state.keys() | final.keys()
        differ = sum(self.copy.state.get(key) != final.get(key) for key in keys)
        return len(self.copy.wrong) + differ
