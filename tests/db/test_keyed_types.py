"""
Rows are read again by keys of each type whose text in the log determines equality in PostgreSQL.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from schema.changes import install
from service.changes import cycle, refresh
from service.changes.cycle import QueryTask, cycle_txn
from service.changes.invalidation import WatchedRuns
from service.changes.positions import SnapshotPosition
from service.changes.refresh import Run
from tests.conftest import execute
from tests.db.kept_queries import KeptQuery, Reader

VALUES = {
    "bool": ("true", "false"),
    "bytea": (r"\x", r"\x00ff5c22", r"\x2c7b7d"),
    "char(4)": ("", "a", 'b"\\', "ö", "a,b"),
    "date": ("2026-01-01", "0044-03-15 BC", "infinity", "12026-01-01"),
    "int8": ("-9223372036854775808", "9007199254740993", "0"),
    "interval": ("30 days", "-1 year 2 mons -3 days 04:05:06.789012", "1 us", "-0.000001 s", "170000000 years"),
    "interval(0)": ("30 days", "1 day 2 s"),
    "numeric": ("1.0", "0.00000000000000000012", "-1e130", "NaN", "Infinity", "90071992547409931"),
    "numeric(8,2)": ("1", "0.01", "-123456.78", "NaN"),
    "text": ("", "NULL", 'q"\\{},', "ö"),
    "time": ("24:00", "00:00:00.000001"),
    "timestamp": ("2026-01-01 10:00:00.000001", "0044-03-15 12:00 BC", "-infinity", "12026-01-01"),
    "timestamptz": ("2026-01-01 00:00:00.1+05:30", "0044-03-15 12:00Z BC", "infinity", "12026-01-01"),
    "timetz": ("12:00+05:30:15", "12:00+00", "07:00-05"),
    "uuid": ("00000000-0000-0000-0000-000000000001", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
}  # fmt: skip
AGAIN = {
    "interval": ("30 days", "1 month"),
    "interval(0)": ("30 days", "1 month"),
    "numeric": ("1.0", "1.000"),
}
"""Types of which equal values look different: as one key is, and as it comes to be."""

SCHEMA = install()
TABLES = """
DROP TABLE IF EXISTS parts, things;
CREATE TABLE things (id {type} PRIMARY KEY, n int);
CREATE TABLE parts (id int PRIMARY KEY, n int,
    thing {type} REFERENCES things ON UPDATE CASCADE ON DELETE CASCADE);
INSERT INTO things SELECT v, row_number() OVER () FROM unnest(ARRAY[{values}]::{type}[]) v;
INSERT INTO parts SELECT row_number() OVER (), 1, id FROM things;
SELECT rowcast.track('things'), rowcast.track('parts');
"""
GROUPS = {"group": ["thing"], "measures": {"n": {"sum": "n"}}}
QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("things", {"embed": {"parts": {"order": ["id"]}}}),
    ("things", {"where": {"parts.n": {"gt": 1}}}),
    ("things", {"order": ["-n"], "limit": 3, "select": ["n"]}),
    ("parts", {"embed": {"things": True}}),
    ("parts", GROUPS),
]


class Keeper:
    """Keeps queries by cycles, and counts how often all rows of one are read."""

    def __init__(self, dsn: str, queries: list[tuple[str, dict[str, Any]]]) -> None:
        self.reader = Reader(dsn)
        self.kept = [KeptQuery(self.reader, relation, "", query) for relation, query in queries]
        self.watched = WatchedRuns()
        self.position: SnapshotPosition | None = None
        self.read_all: list[Run] = []

    def step(self) -> None:
        """Run a cycle, and compare the kept rows with those of new queries."""
        tasks = [kept.task for kept in self.kept if kept.state is None]
        plain = [QueryTask(kept.plain, None, True) for kept in self.kept]
        outcome = cycle_txn(
            self.reader.connection, self.watched, [*tasks, *plain], self.position, budget=math.inf
        )
        assert outcome is not None
        self.position = outcome.position
        for kept in self.kept:
            self.watched.drop(kept.plain)
            kept.take(outcome.results.get(kept.run))
            assert not kept.differs(outcome.results[kept.plain]), kept.query


@pytest.fixture
def all_row_runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Collect the queries whose rows are all read."""
    found: list[Run] = []

    def noted(connection: Any, run: Run) -> Any:
        found.append(run)
        return refresh.all_rows_txn(connection, run)

    monkeypatch.setattr(cycle, "all_rows_txn", noted)
    monkeypatch.setattr(refresh, "SLOW", 60.0)  # the load of the machine has no influence
    return found


@pytest.mark.parametrize("type", VALUES)
def test_rows_are_read_again_by_keys_of_the_type(
    dsn: str, all_row_runs: list[Run], type: str
) -> None:
    values = [f"'{value}'" for value in VALUES[type]]
    again = [f"'{value}'" for value in AGAIN.get(type, VALUES[type][:1] * 2)]
    execute(dsn, TABLES.format(type=type, values=",".join(values)))
    # which of the equal values names a group is not defined
    grouped = type not in AGAIN
    keeper = Keeper(dsn, QUERIES if grouped else QUERIES[:-1])
    try:
        assert all(kept.run.keyed is not None for kept in keeper.kept)
        assert (KeptQuery(keeper.reader, "parts", "", GROUPS).run.keyed is not None) is grouped
        keeper.step()
        all_row_runs.clear()
        first, second, *_ = values
        for words in (
            "UPDATE things SET n = n + 10",
            f"UPDATE parts SET n = 2 WHERE thing = {first}",
            f"UPDATE parts SET thing = {second} WHERE thing = {first}",
            f"UPDATE things SET id = {again[1]} WHERE id = {again[0]}",
            f"DELETE FROM things WHERE id = {first}",
            f"INSERT INTO things VALUES ({first}, 5)",
            f"INSERT INTO parts VALUES (50, 3, {first}), (51, 1, NULL)",
            "DELETE FROM things",
        ):
            execute(dsn, words)
            keeper.step()
        kept = {each.run for each in keeper.kept}
        assert not [run.shape.statement.text for run in all_row_runs if run in kept]
    finally:
        keeper.reader.connection.close()
