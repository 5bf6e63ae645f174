"""
Topics at the router, by what writes: COPY, cascades, partitions.
"""

from __future__ import annotations

import io
from typing import Any

import psycopg2
import pytest_twisted
from autobahn.wamp.types import SubscribeOptions

from schema.changes import install
from service.app import Serving
from tests.conftest import execute
from tests.deferreds import until
from tests.wamp.callers import Caller
from tests.wamp.conftest import Join

SCHEMA = f"""
CREATE TABLE copied (id int PRIMARY KEY, name text);
CREATE TABLE parents (id int PRIMARY KEY);
CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE notes (id int PRIMARY KEY, child int REFERENCES children ON DELETE SET NULL);
CREATE TABLE parted (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_north PARTITION OF parted FOR VALUES IN ('north');
CREATE TABLE parted_south PARTITION OF parted FOR VALUES IN ('south');
{install()}
SELECT rowcast.track(name::regclass)
  FROM unnest('{{copied, parents, children, notes, parted}}'::text[]) name;
"""


async def heard_by(caller: Caller, *topics: str) -> list[dict[str, Any]]:
    """Subscribe to all changes of relations; return the list that will contain them."""
    found: list[dict[str, Any]] = []
    for each in topics:
        await caller.subscribe(
            found.append, f"rowcast.{each}.changed.", SubscribeOptions(match="prefix")
        )
    return found


def contents(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the contents of events, in an order that does not depend on that within a transaction."""
    said = ((each["tx"], each["op"], each["relation"], each["key"], each["row"]) for each in events)
    return [each for _, *each in sorted(said, key=lambda it: (int(it[0]), repr(it[1:])))]


@pytest_twisted.ensureDeferred
async def test_rows_written_by_copy_are_published(
    service: Serving, dsn: str, call_from: Join
) -> None:
    events = await heard_by(await call_from(), "copied")
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as cursor:
        rows = "".join(f"{at}\tname {at}\n" for at in range(300))
        cursor.copy_expert("COPY copied FROM STDIN", io.StringIO(rows))
    connection.close()
    await until(lambda: len(events) >= 300)
    assert sorted(each["key"]["id"] for each in events) == list(range(300))
    assert all(each["op"] == "insert" for each in events)
    assert all(each["row"]["name"] == f"name {each['key']['id']}" for each in events)
    assert len({each["tx"] for each in events}) == 1
    assert [each["last"] for each in events] == [False] * 299 + [True]
    assert [each["prev"] for each in events[1:]] == [each["position"] for each in events[:-1]]


@pytest_twisted.ensureDeferred
async def test_rows_written_by_a_cascade_are_published(
    service: Serving, dsn: str, call_from: Join
) -> None:
    execute(dsn, "INSERT INTO parents VALUES (1), (2)")
    execute(dsn, "INSERT INTO children VALUES (10, 1), (11, 1), (20, 2)")
    execute(dsn, "INSERT INTO notes VALUES (100, 10), (200, 20)")
    published = service.feed.counters
    await until(lambda: published.changes >= 7 and service.feed.asleep)
    events = await heard_by(await call_from(), "parents", "children", "notes")
    execute(dsn, "DELETE FROM parents WHERE id = 1")
    execute(dsn, "UPDATE parents SET id = 3 WHERE id = 2")
    await until(lambda: len(events) >= 7)
    assert contents(events) == [
        ["delete", "children", {"id": 10}, None],
        ["delete", "children", {"id": 11}, None],
        ["delete", "parents", {"id": 1}, None],
        ["update", "notes", {"id": 100}, {"id": 100, "child": None}],
        ["delete", "parents", {"id": 2}, None],
        ["insert", "parents", {"id": 3}, {"id": 3}],
        ["update", "children", {"id": 20}, {"id": 20, "parent": 3}],
    ]
    assert sum(each["last"] for each in events) == 2


@pytest_twisted.ensureDeferred
async def test_rows_of_partitions_are_published_for_the_root(
    service: Serving, dsn: str, call_from: Join
) -> None:
    events = await heard_by(await call_from(), "parted", "parted_north", "parted_south")
    for each in (
        "INSERT INTO parted VALUES (1, 'north', 1)",
        "INSERT INTO parted_south VALUES (2, 'south', 1)",
        "UPDATE parted_south SET n = 2",
        "UPDATE parted SET region = 'north' WHERE id = 2",
        "DELETE FROM parted_north WHERE id = 1",
    ):
        execute(dsn, each)
    await until(lambda: len(events) >= 6)
    north, south = {"id": 1, "region": "north"}, {"id": 2, "region": "south"}
    moved = {"id": 2, "region": "north"}
    assert contents(events) == [
        ["insert", "parted", north, {**north, "n": 1}],
        ["insert", "parted", south, {**south, "n": 1}],
        ["update", "parted", south, {**south, "n": 2}],
        ["delete", "parted", south, None],
        ["insert", "parted", moved, {**moved, "n": 2}],
        ["delete", "parted", north, None],
    ]
