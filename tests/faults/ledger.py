"""
What events say, against what they must add up to.

Each event has to fit the copy that those before it have made: an update says what its columns had, a
delete the whole row. So one that is lost, comes late or comes under two positions breaks the copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import psycopg2
from psycopg2.extras import RealDictCursor

from service.changes.delta import canonical
from service.changes.positions import PgSnapshot, SnapshotPosition
from tests.faults.house import ACCOUNTS, BALANCE

RELATIONS = {"accounts": "id", "moves": "id", "notes": "id", "slots": "id", "pledges": "token"}
"""What is tracked, with the keys."""
TOKENS = {
    ("moves", "insert"): "row",
    ("notes", "insert"): "row",
    ("slots", "insert"): "row",
    ("slots", "update"): "row",
    ("pledges", "delete"): "old",
}
"""Where the token of a write is in an event. Each write that is kept has one event with it."""
KEPT = (
    "SELECT token FROM moves UNION ALL SELECT token FROM notes UNION ALL SELECT token FROM writes"
)

Rows = dict[Any, dict[str, Any]]


class State:
    """
    What a database has in one snapshot.

    Attributes:
        snapshot: That one.
        position: To go on from there.
        tables: The rows by their keys.
        tokens: Of the writes that are kept.
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
    A copy that is kept by events.

    Args:
        state: Where it begins.

    Attributes:
        tables: The copy.
        seen: The events, by their positions.
        again: How many came that had come before.
        other: Those that came again and were not the same.
        broken: Those that do not fit what came before them.
        torn: Transactions that did not come as one, or after which money is missing.
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
        Return whether the copy has what an event tells, from the event itself or from the beginning.

        A new leader publishes the newest tick again: of what was there before, `changes` has nothing.
        """
        return change["position"] in self.seen or self._began.sees(int(change["tx"]))

    def take(self, change: Mapping[str, Any]) -> None:
        """Take an event, or an entry of `changes`."""
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
        """Return what is not as it must be, by its kind, once all was heard up to a state."""
        lost, doubled = end.tokens - self.tokens, self.tokens - end.tokens
        others = [name for name, rows in end.tables.items() if rows != self.tables[name]]
        return {
            "lost": [*lost, *(f"{name} is not what it is copied from" for name in others)],
            "doubled": [*doubled, *self.other],
            "in another order": self.broken,
            "torn": self.torn,
        }
