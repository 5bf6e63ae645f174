"""
Upsert that looks at the rows first: with them as they were, and with models that have a say in changes.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from service.errors import InvalidArgument, InvalidRow, ServiceError, TooManyRows
from service.models.model import Model
from tests.conftest import execute, wait_for_lock
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE owners (id int PRIMARY KEY, name text);
CREATE TABLE items (id int PRIMARY KEY, code text UNIQUE, n int DEFAULT 7, owner int REFERENCES owners,
    noted text, slot int UNIQUE);
CREATE TABLE places (id int PRIMARY KEY, slot int UNIQUE NULLS NOT DISTINCT);
CREATE UNIQUE INDEX items_lower ON items (lower(code));
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    new.noted := old.n || ' to ' || new.n; RETURN new; END$$;
CREATE TRIGGER note BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION note();
CREATE VIEW shown AS SELECT id, code, n, noted FROM items;
"""
BEFORE_EACH = (
    "TRUNCATE items, owners; INSERT INTO owners VALUES (1, 'Ada'), (2, 'Bob');"
    " INSERT INTO items SELECT i, 'c' || i, i, 1, NULL, i FROM generate_series(1, 4) i"
)
PICK: dict[str, Any] = {"select": ["id", "n", "noted"]}


class Counted(Model):
    """Counts no further than 50."""

    TABLENAME = "items"

    def beforeUpdate(self) -> bool:
        """Refuse more."""
        return bool(self.n <= 50)


def row(id: int, n: int | None = None, noted: str | None = None) -> dict[str, Any]:
    """Return a row."""
    return {"id": id, "n": id if n is None else n, "noted": noted}


@pytest.mark.parametrize("written", [(), (Counted,)], ids=["plain", "ruled"])
@pytest.mark.parametrize("name", ["items", "shown"])
@pytest_twisted.ensureDeferred
async def test_upsert_answers_rows_as_they_were(
    dsn: str, name: str, written: tuple[type[Model], ...]
) -> None:
    """Null for those that are new; beside what triggers have made of them; in the order of the call."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, written=written) as db:
        kwargs = {"on_conflict": ["id"], **PICK}
        rows = [{"id": 9, "n": 9}, {"id": 2, "n": 20}, {"id": 1, "n": 10}, {"id": 8}]
        both = await db.call(f"{name}.upsert", rows, returning="both", **kwargs)
        new = [row(9), row(2, 20, "2 to 20"), row(1, 10, "1 to 10"), row(8, 7)]
        old = [None, row(2), row(1), None]
        assert both == [{"old": a, "new": b} for a, b in zip(old, new, strict=True)]
        add = {**kwargs, "update": {"n": {"$add": 1}}}
        assert await db.call(f"{name}.upsert", {"id": 9, "n": 0}, returning="old", **add) == row(9)
        assert await db.call(f"{name}.upsert", {"id": 6}, returning="old", **add) is None
        both = await db.call(f"{name}.upsert", {"id": 9, "n": 0}, returning="both", **add)
        assert both == {"old": row(9, 10, "9 to 10"), "new": row(9, 11, "10 to 11")}
        lists = await db.call(f"{name}.upsert", rows[1:3], returning="old", form="lists", **add)
        assert lists["columns"] == ["id", "n", "noted"]
        assert [each[:2] for each in lists["rows"]] == [[2, 20], [1, 10]]
        text = await db.call(
            f"{name}.upsert", [{"id": 5}, rows[1]], returning="both", form="json", **add
        )
        assert json.loads(text) == [
            {"old": None, "new": row(5, 7)},
            {"old": row(2, 21, "20 to 21"), "new": row(2, 22, "21 to 22")},
        ]
        alone = {**kwargs, "update": [], "returning": "both"}
        assert await db.call(f"{name}.upsert", [{"id": 4}, {"id": 11}], **alone) == [
            {"old": None, "new": row(11, 7)}
        ]
        assert await db.call(f"{name}.upsert", {"id": 4}, **alone) is None
        some = {**add, "where": {"n": {"gt": 3}}, "returning": "both"}
        assert await db.call(f"{name}.upsert", [{"id": 3}, {"id": 4}, {"id": 12}], **some) == [
            {"old": row(4), "new": row(4, 5, "4 to 5")},
            {"old": None, "new": row(12, 7)},
        ]
        same = await db.call(f"{name}.upsert", {"id": 3}, returning="both", **kwargs)
        assert same == {"old": row(3), "new": row(3, 3, "3 to 3")}
        took = {**kwargs, "update": ["n"], "returning": "old"}
        assert await db.call(f"{name}.upsert", {"id": 3, "n": 33}, **took) == row(3, 3, "3 to 3")
        assert execute(dsn, "SELECT n FROM items WHERE id IN (3, 4) ORDER BY id") == [(33,), (5,)]


@pytest_twisted.ensureDeferred
async def test_upsert_answers_old_rows_by_another_key_with_embeds_in_a_batch(
    db: DirectCaller, dsn: str
) -> None:
    """As they were when the batch came to them."""
    kwargs: dict[str, Any] = {"on_conflict": "items_code_key", "returning": "both"}
    kwargs |= {"select": ["n"], "embed": {"owners": {"select": ["name"]}}}
    call = {
        "call": "items.upsert",
        "args": [{"id": 50, "code": "c1", "owner": 2, "slot": 1}],
        "kwargs": kwargs,
    }
    found = await db.call("transaction", [call, call])
    ada, bob = {"owners": {"name": "Ada"}}, {"owners": {"name": "Bob"}}
    assert found == [
        {"old": {"n": 1, **ada}, "new": {"n": 1, **bob}},
        {"old": {"n": 1, **bob}, "new": {"n": 1, **bob}},
    ]
    assert execute(dsn, "SELECT id FROM items WHERE code = 'c1'") == [(50,)]
    receipt = await db.call(
        "items.upsert", {"id": 1, "code": "c1", "slot": 1}, receipt=True, **kwargs
    )
    assert receipt.tx


@pytest_twisted.ensureDeferred
async def test_many_rows_are_answered_as_they_were(db: DirectCaller, dsn: str) -> None:
    """So many that they are read in a pool thread."""
    rows = [{"id": id, "n": 9} for id in range(150, 0, -1)]
    for kwargs, there in (({"update": []}, set[int]()), ({}, {1, 2, 3, 4})):
        execute(dsn, BEFORE_EACH)
        found = await db.call("items.upsert", rows, returning="both", select=["id", "n"], **kwargs)
        assert [each["new"]["id"] for each in found if each["old"] is None] == [*range(150, 4, -1)]
        assert {each["new"]["id"] for each in found if each["old"]} == there


@pytest_twisted.ensureDeferred
async def test_row_that_comes_meanwhile_is_met_as_it_came(db: DirectCaller, dsn: str) -> None:
    """The upsert waits for whoever makes it, and goes again: nothing passes for new that was there."""
    with psycopg2.connect(dsn) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO items (id, n) VALUES (30, 30)")
        kwargs = {"update": {"n": {"$add": 1}}, "returning": "both", **PICK}
        answer = ensureDeferred(db.call("items.upsert", [{"id": 30}, {"id": 1}], **kwargs))
        await deferToThread(wait_for_lock, dsn)
        other.commit()
        assert (await answer)[0] == {"old": row(30), "new": row(30, 31, "30 to 31")}
    calls = [
        ensureDeferred(db.call("items.upsert", {"id": 40, "slot": 40}, **kwargs)) for _ in range(6)
    ]
    found = await gatherResults(calls)
    assert sorted(each["new"]["n"] for each in found) == [*range(7, 13)]
    assert [each["old"] for each in found].count(None) == 1
    assert all(each["old"] is None or each["old"]["n"] == each["new"]["n"] - 1 for each in found)


@pytest_twisted.ensureDeferred
async def test_model_has_a_say_in_what_an_upsert_computes(dsn: str) -> None:
    """Of the rows that are there it sees the changes with their values, and refuses them all or none."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, written=(Counted,)) as db:
        add: dict[str, Any] = {"update": {"n": {"$add": 20}}, "select": ["id", "n"]}
        rows = [{"id": 1}, {"id": 60, "n": 5, "slot": 60}]
        assert await db.call("items.upsert", rows, **add) == [
            {"id": 1, "n": 21},
            {"id": 60, "n": 5},
        ]
        assert await db.call("items.upsert", rows, **add) == [
            {"id": 1, "n": 41},
            {"id": 60, "n": 25},
        ]
        refused = await failure_of(db.call("items.upsert", [{"id": 70, "slot": 70}, *rows], **add))
        assert isinstance(refused, InvalidRow)
        kwargs = {**add, "returning": False}
        del kwargs["select"]
        assert await db.call("items.upsert", rows[1:], **kwargs) == {"affected": 1}
        found = execute(dsn, "SELECT id, n FROM items WHERE id IN (1, 60, 70) ORDER BY id")
        assert found == [(1, 41), (60, 45)]
        call = db.call("items.upsert", {"id": 1}, update={"n": 51})
        assert isinstance(await failure_of(call), InvalidRow)


@pytest_twisted.ensureDeferred
async def test_key_of_null_is_not_looked_for(db: DirectCaller, dsn: str) -> None:
    """Where it may be there once: elsewhere a row without one is new."""
    both = {"returning": "both", "select": ["id"]}
    call = db.call("places.upsert", {"id": 1, "slot": None}, on_conflict=["slot"], **both)
    refused = await failure_of(call)
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "on_conflict"
    row = {"id": 5, "code": None}
    assert await db.call("items.upsert", row, on_conflict=["code"], **both) == {
        "old": None,
        "new": {"id": 5},
    }


REFUSED: list[tuple[dict[str, Any], type[ServiceError], str | None]] = [
    ({"on_conflict": "items_lower"}, InvalidArgument, "on_conflict"),
    ({"order": ["id"]}, InvalidArgument, "order"),
    ({"embed": {"owners": {"inner": True}}}, InvalidArgument, "embed"),
    ({"update": {"id": 9}}, InvalidArgument, "update"),
    ({"returning": "new"}, InvalidArgument, "returning"),
    ({"max_affected": 1}, TooManyRows, None),
    ({"values": [{"id": 1, "n": 1}, {"id": 1, "n": 2}]}, InvalidArgument, "values"),
    ({"values": [{"id": 8, "slot": 8}] * 2}, InvalidArgument, "values"),
]


@pytest.mark.parametrize(("kwargs", "kind", "path"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_upsert_of_old_rows_that_cannot_be_answered_is_refused(
    db: DirectCaller, dsn: str, kwargs: dict[str, Any], kind: type[ServiceError], path: str | None
) -> None:
    """And nothing is written."""
    before = execute(dsn, "SELECT * FROM items ORDER BY id")
    values = [{"id": 1, "n": 5, "code": "c1"}, {"id": 77, "slot": 77}]
    call = db.call("items.upsert", **{"values": values, "returning": "both", **kwargs})
    refused = await failure_of(call)
    assert isinstance(refused, kind)
    assert refused.details.get("path") == path
    assert execute(dsn, "SELECT * FROM items ORDER BY id") == before
