"""Rows of queries that differ only in their values, read by one statement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from schema.changes import install
from service.changes import invalidation
from service.changes.delta import State
from service.changes.invalidation import WatchedRuns
from service.changes.refresh import TouchedRows, all_rows_txn, batch_txn, by_keys_txn
from service.changes.touched import Key, RowChange
from tests.db.kept_queries import KeptQuery, Reader

SCHEMA = f"""
CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", 100%');
CREATE TABLE teams (id int PRIMARY KEY, name text);
CREATE TABLE people (id int PRIMARY KEY, team int REFERENCES teams, name text, mood mood, born date);
CREATE TABLE pairs (a int, b text, n int, PRIMARY KEY (a, b));
INSERT INTO teams SELECT i, 't' || i FROM generate_series(1, 4) i;
INSERT INTO people SELECT i, nullif(i % 5, 0), 'p%s "' || i, (ARRAY['sad', 'it''s "ok", 100%'])[i % 2 + 1]::mood,
    date '2000-01-01' + i FROM generate_series(1, 40) i;
INSERT INTO pairs SELECT i % 4, 'b''",{{}}\\' || i, i FROM generate_series(1, 20) i;
{install()}
SELECT rowcast.track('teams'), rowcast.track('people'), rowcast.track('pairs');
"""


@pytest.fixture
def reader(dsn: str) -> Iterator[Reader]:
    found = Reader(dsn)
    yield found
    found.connection.close()


@pytest.mark.parametrize(
    ("relation", "queries", "keys"),
    [
        ("people", [{"where": {"team": team}} for team in (1, 2, 3)], [[(1,), (2,)], [(2,)], [(99,)]]),
        ("people", [{"where": {"name": {"like": text}}, "embed": {"teams": True}} for text in ("p%", "%7", "x")],
         [[(7,), (17,)]] * 3),
        ("people", [{"where": {"mood": ["sad", None], "born": {"gt": day}}} for day in ("2000-01-05", "2000-01-20")],
         [[(i,) for i in range(1, 41)]] * 2),
        ("teams", [{"embed": {"people": {"where": {"id": {"lt": n}}, "limit": 2}}} for n in (9, 30)], [[(1,), (3,)]] * 2),
        ("people", [{"group": ["team"], "measures": {"n": {"count": "*"}}, "where": {"id": {"lt": n}}} for n in (9, 30)],
         [[(1,), (None,)], [(2,)]]),
        ("people", [{"measures": {"n": {"count": "*"}}, "where": {"id": {"lt": n}}} for n in (9, 30)], [[()], [()]]),
        ("pairs", [{"where": {"n": {"gt": n}}} for n in (1, 9)], [[(1, "b'\",{}\\5"), (2, "b'\",{}\\6")]] * 2),
    ],
)  # fmt: skip
def test_rows_read_together_equal_those_read_one_by_one(
    reader: Reader, relation: str, queries: list[dict[str, Any]], keys: list[list[Key]]
) -> None:
    kept = [KeptQuery(reader, relation, "", query) for query in queries]
    watched = WatchedRuns()
    for each in kept:
        watched.keep(each.run, State({}, ordered=False))
    with reader.snapshot() as connection:
        states = [all_rows_txn(connection, each.run).state for each in kept]
        found = batch_txn(
            connection, [(each.run, ask) for each, ask in zip(kept, keys, strict=True)]
        )
        for each, state, ask in zip(kept, states, keys, strict=True):
            alone = by_keys_txn(connection, each.run, state, TouchedRows(frozenset(ask)))
            assert alone is not None
            together = found[each.run]
            # other rows may be returned, too, in their present state
            assert {name: together.rows[name] for name in alone.rows} == alone.rows
            for name in alone.rows:
                assert together.state.entries[name] == alone.state.entries[name]
    assert any(rows.rows for rows in found.values())


def test_many_changes_for_many_queries_are_not_checked_one_by_one(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidation, "MOST_PAIRS", 3)
    runs = [KeptQuery(reader, "teams", "", {"select": ["id", f"n{n}:name"]}).run for n in range(2)]
    watched = WatchedRuns()
    for each in runs:
        watched.keep(each, State({}, ordered=False))
    (teams,) = [each.id for each in reader.tracked if each.name == "teams"]
    changes = [RowChange(teams, "I", None, {"id": n, "name": "t"}) for n in range(4)]
    few, many = watched.affected(changes[:2]), watched.affected(changes)
    assert few.all_rows == set()
    assert few.own == {run: {(0,), (1,)} for run in runs}
    assert many.all_rows == set(runs)


def test_queries_that_differ_in_their_values_share_their_shape(reader: Reader) -> None:
    one, two, other = (
        KeptQuery(reader, "people", "", {"where": {"team": 1}, "select": ["id"]}).run,
        KeptQuery(reader, "people", "", {"where": {"team": 2}, "select": ["id"]}).run,
        KeptQuery(reader, "people", "", {"where": {"id": 2}, "select": ["id"]}).run,
    )
    watched = WatchedRuns()
    for each in (one, two, other):
        watched.keep(each, State({}, ordered=False))
    assert one.shape is two.shape
    assert one.shape is not other.shape
    assert len(watched._groups) == 2
    for each in (one, two, other):
        watched.drop(each)
    assert {name: len(each) for name, each in vars(watched).items()} == dict.fromkeys(
        vars(watched), 0
    )
