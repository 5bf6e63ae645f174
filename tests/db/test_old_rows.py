"""Writes that return the rows as they were before, alone or beside the new ones."""

from __future__ import annotations

import json
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from service.errors import Conflict, InvalidArgument, InvalidRow, NotFound, TooManyRows
from service.models.model import Model
from tests.conftest import execute, wait_for_lock
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE owners (id int PRIMARY KEY, name text);
CREATE TABLE items (id int PRIMARY KEY, code text UNIQUE, n int, owner int REFERENCES owners,
    noted text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    new.noted := old.n || ' to ' || new.n; RETURN new; END$$;
CREATE TRIGGER note BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE loose (n int);
CREATE VIEW sight AS SELECT DISTINCT id, n FROM items;
COMMENT ON VIEW sight IS '@key id';
CREATE FUNCTION put() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    UPDATE items SET n = new.n WHERE id = old.id; RETURN new; END$$;
CREATE TRIGGER put INSTEAD OF UPDATE ON sight FOR EACH ROW EXECUTE FUNCTION put();
"""
BEFORE_EACH = (
    "TRUNCATE items, owners, loose; INSERT INTO owners VALUES (1, 'Ada'), (2, 'Bob');"
    " INSERT INTO items SELECT i, 'c' || i, i, 1 FROM generate_series(1, 4) i;"
    " INSERT INTO loose VALUES (1)"
)
PICK: dict[str, Any] = {"select": ["id", "n", "noted"]}


class Counted(Model):
    """A model that refuses counts above 50."""

    TABLENAME = "items"

    def beforeUpdate(self) -> bool:
        """Refuse a higher count."""
        return bool(self.n <= 50)


def was(id: int, n: int | None = None, noted: str | None = None) -> dict[str, Any]:
    """Return a row."""
    return {"id": id, "n": id if n is None else n, "noted": noted}


@pytest.mark.parametrize("written", [(), (Counted,)])
@pytest_twisted.ensureDeferred
async def test_update_returns_rows_as_they_were(dsn: str, written: tuple[type[Model], ...]) -> None:
    """By key, by filter and row by row; "both" also returns the rows as triggers have changed them."""
    execute(dsn, BEFORE_EACH)
    async with serving(dsn, written=written) as db:
        add = {"n": {"$add": 10}}
        assert await db.call("items.update", 1, add, returning="old", **PICK) == was(1)
        both = await db.call("items.update", 1, add, returning="both", **PICK)
        assert both == {"old": was(1, 11, "1 to 11"), "new": was(1, 21, "11 to 21")}
        call = {"where": {"id": [2, 3]}, "changes": add, "order": ["-n"], **PICK}
        assert await db.call("items.update", **call, returning="old") == {
            "rows": [was(3), was(2)],
            "affected": 2,
        }
        assert await db.call("items.update", **call, returning="both", limit=1) == {
            "rows": [{"old": was(3, 13, "3 to 13"), "new": was(3, 23, "13 to 23")}],
            "affected": 1,
        }
        rows = [{"code": "c4", "n": 5}, {"code": "c2", "n": {"$add": 1}}]
        call = {"rows": rows, "by": ["code"], **PICK}
        assert await db.call("items.update", **call, returning="both") == [
            {"old": was(4), "new": was(4, 5, "4 to 5")},
            {"old": was(2, 12, "2 to 12"), "new": was(2, 13, "12 to 13")},
        ]
        assert await db.call("items.update", **call, returning="old") == [
            was(4, 5, "4 to 5"),
            was(2, 13, "12 to 13"),
        ]
        if written:
            refused = await failure_of(
                db.call("items.update", all=True, changes={"n": 99}, returning="old")
            )
            assert isinstance(refused, InvalidRow)


@pytest_twisted.ensureDeferred
async def test_old_rows_are_returned_in_every_form(db: DirectCaller) -> None:
    """Lists, JSON and embeds, in the state before the change."""
    embed = {"owner": {"relation": "owners", "select": ["name"]}}
    call = {"select": ["id"], "embed": embed, "returning": "both"}
    ada, bob = {"id": 1, "owner": {"name": "Ada"}}, {"id": 1, "owner": {"name": "Bob"}}
    assert await db.call("items.update", 1, {"owner": 2}, **call) == {"old": ada, "new": bob}
    text = await db.call("items.update", 1, {"owner": 1}, **call, form="json")
    assert json.loads(text) == {"old": bob, "new": ada}
    answer = await db.call(
        "items.update",
        where={"id": 2},
        changes={"n": 7},
        select=["n"],
        form="lists",
        returning="both",
    )
    assert answer == {"columns": ["n"], "rows": [{"old": [2], "new": [7]}], "affected": 1}
    answer = await db.call(
        "items.update",
        where={"id": 2},
        changes={"n": 8},
        select=["n"],
        form="lists",
        returning="old",
    )
    assert answer == {"columns": ["n"], "rows": [[7]], "affected": 1}


@pytest_twisted.ensureDeferred
async def test_delete_returns_rows_as_they_were(db: DirectCaller) -> None:
    """There are no new rows."""
    assert await db.call("items.delete", 1, returning="old", **PICK) == was(1)
    assert await db.call("items.delete", 2, returning="both", **PICK) == {
        "old": was(2),
        "new": None,
    }
    answer = await db.call("items.delete", where={"id": 3}, returning="both", **PICK)
    assert answer == {"rows": [{"old": was(3), "new": None}], "affected": 1}
    text = await db.call("items.delete", 4, returning="both", form="json", **PICK)
    assert json.loads(text) == {"old": was(4), "new": None}


@pytest_twisted.ensureDeferred
async def test_update_that_returns_old_rows_is_refused_like_others(db: DirectCaller) -> None:
    """By a missing row, `expect` and `max_affected`; empty changes change nothing."""
    call = {"changes": {"n": 0}, "returning": "both"}
    assert isinstance(await failure_of(db.call("items.update", 9, **call)), NotFound)
    refused = await failure_of(db.call("items.update", 1, expect={"n": 5}, **call))
    assert isinstance(refused, Conflict)
    assert refused.details["row"]["n"] == 1
    refused = await failure_of(db.call("items.update", all=True, max_affected=3, **call))
    assert isinstance(refused, TooManyRows)
    refused = await failure_of(
        db.call("items.update", rows=[{"id": 1, "n": 0}, {"id": 9, "n": 0}], returning="old")
    )
    assert isinstance(refused, NotFound)
    assert refused.details["row"] == 1
    assert await db.call("items.update", 1, {}, returning="both", **PICK) == {
        "old": was(1),
        "new": was(1),
    }
    assert await db.call("items.update", where={"id": 9}, **call) == {"rows": [], "affected": 0}
    assert await db.call("items.count", where={"n": 0}) == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "path"),
    [
        ("items.update", {"key": 1, "changes": {"id": 9}, "returning": "old"}, "returning"),
        ("loose.update", {"all": True, "changes": {"n": 9}, "returning": "both"}, "returning"),
        ("items.update", {"key": 1, "changes": {"n": 9}, "returning": "new"}, "returning"),
        ("items.create", {"values": {"id": 9}, "returning": "old"}, "returning"),
        (
            "items.update",
            {"rows": [{"id": 1, "n": 1}], "returning": "old", "order": ["id"]},
            "order",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_returning_old_without_identifiable_rows_is_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any], path: str
) -> None:
    """If there is no key, if it is changed, or if there are no old rows."""
    with pytest.raises(InvalidArgument) as refused:
        await db.call(name, **kwargs)
    assert refused.value.details["path"] == path


@pytest.mark.parametrize("returning", ["new", "", 1, ["old"]])
@pytest_twisted.ensureDeferred
async def test_unknown_returning_is_refused_with_the_valid_values(
    db: DirectCaller, returning: Any
) -> None:
    """The valid values of the verb include "old" only if it has old rows."""
    for name, kwargs in (("update", {"changes": {"n": 0}}), ("delete", {})):
        with pytest.raises(InvalidArgument, match='true, false, "old" or "both"') as refused:
            await db.call(f"items.{name}", 1, returning=returning, **kwargs)
        assert refused.value.details["path"] == "returning"


@pytest_twisted.ensureDeferred
async def test_concurrent_changes_each_return_their_old_value(db: DirectCaller) -> None:
    """Rows are locked before they are read, so no old value is returned twice."""
    calls = [
        ensureDeferred(
            db.call("items.update", 1, {"n": {"$add": 1}}, returning="both", select=["n"])
        )
        for _ in range(20)
    ]
    found = await gatherResults(calls)
    assert sorted(each["old"]["n"] for each in found) == list(range(1, 21))
    assert all(each["new"]["n"] == each["old"]["n"] + 1 for each in found)


@pytest.mark.parametrize("returning", ["both", True])
@pytest_twisted.ensureDeferred
async def test_concurrent_changes_of_a_view_without_locks_start_from_the_same_row(
    db: DirectCaller, dsn: str, returning: Any
) -> None:
    """As in PostgreSQL itself: the second one reads the row as it was before the first."""
    with psycopg2.connect(dsn) as other, other.cursor() as cursor:
        cursor.execute("UPDATE sight SET n = n + 10 WHERE id = 1")
        add: dict[str, Any] = {"changes": {"n": {"$add": 1}}, "select": ["n"]}
        answer = ensureDeferred(db.call("sight.update", 1, returning=returning, **add))
        await deferToThread(wait_for_lock, dsn)
        other.commit()
        new = {"n": 2}
        assert await answer == ({"old": {"n": 1}, "new": new} if returning == "both" else new)
    assert execute(dsn, "SELECT n FROM items WHERE id = 1") == [(2,)]


@pytest.mark.parametrize("returning", ["old", "both"])
@pytest_twisted.ensureDeferred
async def test_inner_embed_of_rows_as_they_were_is_refused(
    db: DirectCaller, dsn: str, returning: str
) -> None:
    """A row that the embed leaves out was written, and the result has each written row."""
    before = execute(dsn, "SELECT n FROM items ORDER BY id")
    embed = {"owners": {"inner": True, "where": {"id": 99}}}
    for kwargs in (
        {"rows": [{"id": 1, "n": 5}]},
        {"key": 1, "changes": {"n": 5}},
        {"where": {"id": 1}, "changes": {"n": 5}},
    ):
        refused = await failure_of(
            db.call("items.update", returning=returning, embed=embed, **kwargs)
        )
        assert isinstance(refused, InvalidArgument), refused
        assert refused.details["path"] == "embed"
    assert execute(dsn, "SELECT n FROM items ORDER BY id") == before
