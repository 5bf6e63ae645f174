"""
A check of change events against the state of the database that they lead to.

Each event must fit the copy that the earlier events have made: an update has the old values of its
columns, a delete has the entire old row. So an event that is lost, late or published under two
positions contradicts the copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import psycopg2
from psycopg2.extras import RealDictCursor

from service.changes.delta import canonical
from service.changes.log import PgSnapshot
from service.changes.positions import SnapshotPosition
from tests.faults.deployment import ACCOUNTS, BALANCE

RELATIONS = {"accounts": "id", "moves": "id", "notes": "id", "slots": "id", "pledges": "token"}
"""The tracked relations, and the key column of each."""
TOKENS = {
    ("moves", "insert"): "row",
    ("notes", "insert"): "row",
    ("slots", "insert"): "row",
    ("slots", "update"): "row",
    ("pledges", "delete"): "old",
}
"""Whether `row` or `old` of an event has the write's token. Each committed write has one such event."""
KEPT = (
    "SELECT token FROM moves UNION ALL SELECT token FROM notes UNION ALL SELECT token FROM writes"
)

Rows = dict[Any, dict[str, Any]]


class State:
    """
    The contents of a database in one snapshot.

    Attributes:
        snapshot: The snapshot.
        position: The position of the snapshot, from which `changes` can continue.
        tables: The rows of each table, by key.
        tokens: The tokens of the committed writes.
    """

    def __init__(self, dsn: str) -> None:
        connection = psycopg2.connect(dsn, cursor_factory=RealDictCursor)
        try:
            connection.set_session("REPEATABLE READ", readonly=True)
            with connection.cursor() as rows:
                rows.execute(
                    "SELECT pg_current_snapshot()::text AS snapshot, max(epoch) AS epoch FROM rowcast.epochs"
                )
                (found,) = rows.fetchall()
                self.snapshot = PgSnapshot.of(found["snapshot"])
                self.position = str(SnapshotPosition(found["epoch"], self.snapshot))
                self.tables: dict[str, Rows] = {}
                for name, key in RELATIONS.items():
                    rows.execute(f"SELECT * FROM {name}")
                    self.tables[name] = {row[key]: dict(row) for row in rows.fetchall()}
                rows.execute(KEPT)
                self.tokens = Counter(str(row["token"]) for row in rows.fetchall())
        finally:
            connection.close()


class Ledger:
    """
    A copy of the tables that events maintain.

    Args:
        state: The state at which the copy begins.

    Attributes:
        tables: The copy.
        seen: The events, by position.
        again: Number of events received again.
        other: Events received again with other content.
        broken: Events that contradict the copy.
        torn: Transactions whose events were not contiguous, or left a wrong total of balances.
    """

    def __init__(self, state: State) -> None:
        self.tables = {name: dict(rows) for name, rows in state.tables.items()}
        self.seen: dict[str, str] = {}
        self.again = 0
        self.other: list[str] = []
        self.broken: list[str] = []
        self.torn: list[str] = []
        self.tokens = state.tokens.copy()
        self._began = state.snapshot
        self._open: str | None = None
        self._ended: set[str] = set()

    def has(self, change: Mapping[str, Any]) -> bool:
        """
        Return whether the copy already has a change, from an earlier event or from the initial state.

        A new leader publishes the newest tick again. Its changes may be older than the initial state,
        so `changes` does not return them from the initial position.
        """
        return change["position"] in self.seen or self._began.sees(int(change["tx"]))

    def take(self, change: Mapping[str, Any]) -> None:
        """Apply an event, or an entry of `changes`."""
        text = canonical({name: each for name, each in change.items() if name != "prev"})
        if self.has(change):
            self.again += 1
            before = self.seen.get(change["position"], text)
            if before != text:
                self.other.append(f"{before} is {text}")
            return
        self.seen[change["position"]] = text
        self._apply(change)
        self._count(change)
        self._step(change)

    def _apply(self, change: Mapping[str, Any]) -> None:
        name, op, row, old = (change[each] for each in ("relation", "op", "row", "old"))
        rows, key = self.tables[name], RELATIONS[name]
        held = rows.get(change["key"][key]) if change["key"] else None
        fits = {
            "insert": held is None,
            "update": held is not None and old is not None and {**held, **old} == held,
            "delete": held is not None and held == old,
        }
        if not fits.get(op):
            self.broken.append(f"{change}, and the copy has {held}")
        if op == "delete":
            rows.pop(change["key"][key], None)
        elif row is not None:
            rows[row[key]] = row

    def _count(self, change: Mapping[str, Any]) -> None:
        where = TOKENS.get((change["relation"], change["op"]))
        if where is not None and change[where] is not None:
            self.tokens[change[where]["token"]] += 1

    def _step(self, change: Mapping[str, Any]) -> None:
        tx = change["tx"]
        if self._open not in {None, tx} or tx in self._ended:
            self.torn.append(f"{change}, in the midst of {self._open}")
        self._open = tx
        if change["last"]:
            self._open = None
            self._ended.add(tx)
            total = sum(row["balance"] for row in self.tables["accounts"].values())
            if total != ACCOUNTS * BALANCE:
                self.torn.append(f"{change}: all accounts have {total}")

    def wrong(self, end: State) -> dict[str, list[str]]:
        """Return what is wrong, by kind, after all events up to a state of the database were applied."""
        lost, doubled = end.tokens - self.tokens, self.tokens - end.tokens
        others = [name for name, rows in end.tables.items() if rows != self.tables[name]]
        return {
            "lost": [*lost, *(f"{name} is not what it is copied from" for name in others)],
            "doubled": [*doubled, *self.other],
            "in another order": self.broken,
            "torn": self.torn,
        }
