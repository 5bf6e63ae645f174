"""Updates of several rows with different changes, in one statement."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import (
    CheckViolation,
    InvalidArgument,
    InvalidRow,
    NoSuchProcedure,
    NotChanged,
    NotFound,
    ServiceError,
    TooManyRows,
)
from service.models.model import Model
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.relay import Relay
from tests.deferreds import failure_of

SCHEMA = """
CREATE DOMAIN level AS int CHECK (VALUE < 100);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE owners (id int PRIMARY KEY, name text);
CREATE TABLE items (
    id int PRIMARY KEY, code varchar(5) UNIQUE, alias text, owner int REFERENCES owners,
    n int DEFAULT 7, price numeric(8, 2), day date, fixed char(3), level level, tags text[],
    pairs pair[], one pair, doc jsonb, raw json, data bytea, must text NOT NULL DEFAULT 'x',
    twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE made (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text);
CREATE TABLE places (a int, b text, note text, PRIMARY KEY (b, a));
CREATE TABLE loose (n int);
CREATE TABLE stamped (id int PRIMARY KEY, note text, by text);
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    IF new.note = 'never' THEN RETURN NULL; END IF;
    new.by := 'trigger ' || new.id; RETURN new; END$$;
CREATE TRIGGER stamp BEFORE UPDATE OF note ON stamped FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    UPDATE stamped SET by = by || '!' WHERE id = new.id AND by NOT LIKE '%!'; RETURN NULL; END$$;
CREATE TRIGGER stamped_after AFTER UPDATE OF note ON stamped FOR EACH ROW EXECUTE FUNCTION after();
"""
BEFORE_EACH = (
    "TRUNCATE owners, items, made, places, stamped RESTART IDENTITY;"
    " INSERT INTO owners VALUES (1, 'Ada'), (2, 'Bob');"
    " INSERT INTO items (id, code, n, doc, tags)"
    " SELECT i, 'c' || i, i, '{\"k\": 0}', '{a}' FROM generate_series(1, 4) i;"
    " INSERT INTO made (note) VALUES ('a'), ('b');"
    " INSERT INTO places VALUES (1, 'x', NULL), (1, 'y', NULL);"
    " INSERT INTO stamped SELECT i FROM generate_series(1, 3) i"
)


class Item(Model):
    """A model with a validation of its number, and a hook that sets the note."""

    TABLENAME = "items"

    def beforeSave(self) -> bool:
        """Set the note to the number."""
        self.alias = f"{self.code} has {self.n}"
        return bool(self.n is None or self.n < 50)


@pytest_twisted.ensureDeferred
async def test_rows_with_different_changes_are_updated_and_returned_in_order(
    db: DirectCaller, dsn: str
) -> None:
    """Columns that a row does not name are unchanged."""
    rows = [
        {"id": 3, "n": {"$add": 10}, "doc->k": 1},
        {"id": 1, "n": 5, "alias": None, "tags": {"$append": ["b"]}, "fixed": "abc"},
        {"id": 4, "price": "1.50", "day": "2026-11-29", "doc": {"$merge": {"m": [1]}}, "level": 9},
        {"id": 2, "n": {"$multiply": 3}, "one": {"a": 1, "b": "x"}, "pairs": [{"a": 2, "b": None}]},
    ]
    before = {row["id"]: row for row in (await db.call("items.find"))["rows"]}
    answer = await db.call("items.update", rows=rows)
    assert [row["id"] for row in answer] == [3, 1, 4, 2]
    changed = {
        3: {"n": 13, "twice": 26, "doc": {"k": 1}},
        1: {"n": 5, "twice": 10, "tags": ["a", "b"], "fixed": "abc"},
        4: {"price": "1.50", "day": "2026-11-29", "doc": {"k": 0, "m": [1]}, "level": 9},
        2: {"n": 6, "twice": 12, "one": {"a": 1, "b": "x"}, "pairs": [{"a": 2, "b": None}]},
    }
    assert answer == [{**before[row["id"]], **changed[row["id"]]} for row in rows]
    assert (
        sorted(answer, key=lambda row: row["id"])
        == (await db.call("items.find", order=["id"]))["rows"]
    )


@pytest_twisted.ensureDeferred
async def test_rows_are_found_by_any_unique_key(db: DirectCaller) -> None:
    """The primary key, also of several columns, or the one that `by` names."""
    rows = [{"code": "c2", "id": 20}, {"code": {"$value": "c1"}, "n": 0}]
    answer = await db.call("items.update", rows=rows, by=["code"], select=["id", "n"])
    assert answer == [{"id": 20, "n": 2}, {"id": 1, "n": 0}]
    rows = [{"a": 1, "b": "y", "note": "1"}, {"b": "x", "note": "2", "a": 1}]
    assert await db.call("places.update", rows=rows) == rows
    assert await db.call("places.update", rows=rows[:1], by=["a", "b"]) == rows[:1]
    rows = [{"id": 2, "note": "z"}]  # GENERATED ALWAYS AS IDENTITY is a key like others
    assert await db.call("made.update", rows=rows) == rows


@pytest_twisted.ensureDeferred
async def test_updated_rows_are_returned_in_every_form(db: DirectCaller) -> None:
    """Lists, JSON, embeds, an order, and no rows."""
    rows = [{"id": 2, "owner": 1}, {"id": 1, "owner": 2}]
    call = {"rows": rows, "select": ["id"]}
    assert await db.call("items.update", **call, form="lists") == {
        "columns": ["id"],
        "rows": [[2], [1]],
    }
    assert json.loads(await db.call("items.update", **call, form="json")) == [{"id": 2}, {"id": 1}]
    embed = {"owner": {"relation": "owners", "select": ["name"]}}
    answer = await db.call("items.update", **call, embed=embed)
    assert answer == [{"id": 2, "owner": {"name": "Ada"}}, {"id": 1, "owner": {"name": "Bob"}}]
    assert await db.call("items.update", **call, order=["id"]) == [{"id": 1}, {"id": 2}]
    assert await db.call("items.update", rows=rows, returning=False) == {"affected": 2}
    assert await db.call("items.update", rows=[]) == []
    assert await db.call("items.update", rows=[], returning=False) == {"affected": 0}


@pytest_twisted.ensureDeferred
async def test_updated_rows_have_the_changes_of_triggers(db: DirectCaller) -> None:
    """The rows are read again, in the order of the call."""
    rows = [{"id": 3, "note": "c"}, {"id": 1, "note": "a"}, {"id": 2, "note": "b"}]
    answer = await db.call("stamped.update", rows=rows)
    assert answer == [{**row, "by": f"trigger {row['id']}!"} for row in rows]
    refused = await failure_of(
        db.call("stamped.update", rows=[{"id": 1, "note": "z"}, {"id": 2, "note": "never"}])
    )
    assert isinstance(refused, NotChanged)
    assert (await db.call("stamped.get", 1))["note"] == "a"


@pytest.mark.parametrize("written", [(), (Item,)])
@pytest_twisted.ensureDeferred
async def test_missing_row_rolls_back_the_update_of_rows(
    dsn: str, written: tuple[type[Model], ...]
) -> None:
    """The error has the row's index; two rows with one key are refused as well."""
    execute(dsn, BEFORE_EACH)
    before = execute(dsn, "SELECT * FROM items ORDER BY id")
    async with serving(dsn, written=written) as db:
        rows = [{"id": 1, "n": 0}, {"id": 9, "n": 0}, {"id": 2, "n": 0}, {"id": 8, "n": 0}]
        refused = await failure_of(db.call("items.update", rows=rows))
        assert isinstance(refused, NotFound), refused
        assert refused.details["row"] == 1
        rows = [{"id": 1, "n": 0}, {"id": 2, "n": 0}, {"id": "01", "n": 1}]
        refused = await failure_of(db.call("items.update", rows=rows))
        assert isinstance(refused, InvalidArgument), refused
        assert refused.details["path"] == "rows.2"
        rows = [{"id": 1, "n": 0}, {"id": 2, "n": 0}]
        refused = await failure_of(db.call("items.update", rows=rows, max_affected=1))
        assert isinstance(refused, TooManyRows)
        batch = [
            {"call": "items.update", "kwargs": {"rows": rows, "returning": False}},
            {"call": "items.update", "kwargs": {"rows": [{"id": 9, "n": 0}]}},
        ]
        refused = await failure_of(db.call("transaction", batch))
        assert (refused.details["operation"], refused.details["row"]) == (1, 0)
    assert execute(dsn, "SELECT * FROM items ORDER BY id") == before


@pytest.mark.parametrize(
    ("relation", "kwargs", "error", "path"),
    [
        ("items", {"rows": {"id": 1}}, InvalidArgument, "rows"),
        ("items", {"rows": None}, InvalidArgument, "rows"),
        ("items", {"rows": [1]}, InvalidArgument, "rows.0"),
        ("items", {"rows": [{"n": 1}]}, InvalidArgument, "rows.0"),
        ("items", {"rows": [{"id": 1, "n": 1}, {"id": None, "n": 1}]}, InvalidArgument, "rows.1.id"),
        ("items", {"rows": [{"id": {"$add": 1}, "n": 1}]}, InvalidArgument, "rows.0.id"),
        ("items", {"rows": [{"id": {"$default": True}, "n": 1}]}, InvalidArgument, "rows.0.id"),
        ("items", {"rows": [{"id": 1}]}, InvalidArgument, "rows"),
        ("items", {"rows": [{"id": 1, "m": 1}]}, InvalidArgument, "rows.0.m"),
        ("items", {"rows": [{"id": 1, "twice": 1}]}, InvalidArgument, "rows.0.twice"),
        ("items", {"rows": [{"id": 1, "n": {"$ad": 1}}]}, InvalidArgument, "rows.0.n.$ad"),
        ("items", {"rows": [{"id": 1, "alias": {"$add": 1}}]}, InvalidArgument, "rows.0.alias.$add"),
        ("items", {"rows": [{"id": 1, "n": 1}], "by": ["n"]}, InvalidArgument, "by"),
        ("items", {"rows": [{"id": 1, "n": 1}], "by": ["idd"]}, InvalidArgument, "by.0"),
        ("items", {"rows": [{"id": 1, "n": 1}], "by": []}, InvalidArgument, "by"),
        ("items", {"rows": [{"id": 1, "n": 1}], "key": 1}, InvalidArgument, "key"),
        ("items", {"rows": [{"id": 1, "n": 1}], "changes": {}}, InvalidArgument, "changes"),
        ("items", {"rows": [{"id": 1, "n": 1}], "where": {}}, InvalidArgument, "where"),
        ("items", {"rows": [{"id": 1, "n": 1}], "all": True}, InvalidArgument, "all"),
        ("items", {"rows": [{"id": 1, "n": 1}], "expect": {"n": 1}}, InvalidArgument, "expect"),
        ("items", {"rows": [{"id": 1, "n": 1}], "limit": 1}, InvalidArgument, "limit"),
        ("items", {"key": 1, "changes": {}, "by": ["id"]}, InvalidArgument, "by"),
        ("items", {"rows": [{"id": 1, "n": 1}, {"id": 2, "n": {"$default": True}}]},
         InvalidArgument, "rows.1.n"),
        ("items", {"rows": [{"id": 1, "n": "x"}]}, InvalidArgument, "rows.0.n"),
        ("items", {"rows": [{"id": 1, "day": "2026-01-01"}, {"id": 2, "day": "soon"}]},
         InvalidArgument, "rows.1.day"),
        ("items", {"rows": [{"id": 1, "n": 1}, {"id": "x", "n": 1}]}, InvalidArgument, "rows.1.id"),
        ("items", {"rows": [{"id": 1, "n": 2}, {"id": 2, "n": {"$add": 2**31 - 2}}]},
         InvalidArgument, "rows"),
        ("items", {"rows": [{"id": 1, "n": 2}, {"id": 2, "must": None}]}, InvalidRow, "rows.1"),
        ("items", {"rows": [{"id": 1, "n": 2}, {"id": 2, "code": "much too long"}]},
         InvalidRow, "rows.1"),
        ("items", {"rows": [{"id": 1, "level": 1}, {"id": 2, "level": 100}]}, CheckViolation, "rows"),
        ("loose", {"rows": [{"n": 1}]}, NoSuchProcedure, None),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_invalid_update_of_rows_is_refused_with_its_path(
    db: DirectCaller,
    dsn: str,
    relation: str,
    kwargs: dict[str, Any],
    error: type[ServiceError],
    path: str | None,
) -> None:
    """Nothing is written."""
    before = execute(dsn, "SELECT * FROM items ORDER BY id")
    refused = await failure_of(db.call(f"{relation}.update", **kwargs))
    assert isinstance(refused, error), refused
    assert refused.details.get("path") == path
    if path == "by" and kwargs["by"] == ["n"]:
        assert refused.details["candidates"] == [["id"], ["code"]]
    assert execute(dsn, "SELECT * FROM items ORDER BY id") == before


@pytest_twisted.ensureDeferred
async def test_default_of_a_column_applies_to_every_row_or_none(db: DirectCaller) -> None:
    """A statement that sets the default in some rows only is refused."""
    rows = [{"id": 1, "n": {"$default": True}}, {"id": 2, "n": {"$default": True}, "alias": "x"}]
    answer = await db.call("items.update", rows=rows, select=["n", "alias"])
    assert answer == [{"n": 7, "alias": None}, {"n": 7, "alias": "x"}]


@pytest_twisted.ensureDeferred
async def test_thousand_rows_are_changed_by_one_statement(db: DirectCaller, dsn: str) -> None:
    """One more is refused."""
    execute(dsn, "INSERT INTO items (id, n) SELECT i, i FROM generate_series(5, 1001) i")
    rows = [
        {"id": at, **({"n": {"$add": 1}} if at % 2 else {"alias": f"'{at}%s"})}
        for at in range(1000, 0, -1)
    ]
    answer = await db.call("items.update", rows=rows, select=["id", "n", "alias"])
    assert answer == [
        {"id": at, "n": at + at % 2, "alias": None if at % 2 else f"'{at}%s"}
        for at in range(1000, 0, -1)
    ]
    ((transactions,),) = execute(
        dsn, "SELECT count(DISTINCT xmin::text) FROM items WHERE id < 1001"
    )
    assert transactions == 1
    with pytest.raises(InvalidArgument, match="at most 1000 rows"):
        await db.call("items.update", rows=[*rows, {"id": 1001, "n": 1}])


@pytest_twisted.ensureDeferred
async def test_lists_of_any_length_share_a_statement(db: DirectCaller, dsn: str) -> None:
    """The statement removes as many items as the longest list has, from each row."""
    lists = [["a", "b", None][: at + 1] for at in range(3)] + [[]]
    execute(dsn, "UPDATE items SET tags = '{a,b,c,NULL}'")
    rows = [{"id": at + 1, "tags": {"$remove": each}} for at, each in enumerate(lists)]
    with Relay(dsn) as relay:
        async with serving(relay.dsn) as other:
            await other.call("items.update", rows=rows, returning=False)
            (sent,) = [each for each in relay.messages if b"array_remove" in each]
    assert sent.count(b"array_remove") == 3
    assert execute(dsn, "SELECT tags FROM items ORDER BY id") == [
        (["b", "c", None],), (["c", None],), (["c"],), (["a", "b", "c", None],),
    ]  # fmt: skip


@pytest.mark.serving(written=(Item,))
@pytest_twisted.ensureDeferred
async def test_rules_see_each_row_with_its_changes(db: DirectCaller) -> None:
    """Hooks may change it; an invalid row rolls back all."""
    rows = [{"code": "c2", "n": {"$add": 40}}, {"code": "c1", "price": 1}, {"code": "c3", "n": 9}]
    answer = await db.call("items.update", rows=rows, by=["code"], select=["id", "n", "alias"])
    assert answer == [
        {"id": 2, "n": 42, "alias": "c2 has 42"},
        {"id": 1, "n": 1, "alias": "c1 has 1"},
        {"id": 3, "n": 9, "alias": "c3 has 9"},
    ]
    rows = [{"id": 1, "n": 2}, {"id": 2, "n": {"$add": 40}}]
    refused = await failure_of(db.call("items.update", rows=rows))
    assert isinstance(refused, InvalidRow), refused
    assert refused.details["path"] == "rows.1"
    assert (await db.call("items.get", 1))["n"] == 1


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "n": st.one_of(
            st.none(),
            st.integers(-9, 9),
            st.builds(lambda n: {"$add": n}, st.integers(-9, 9)),
            st.builds(lambda n: {"$multiply": n}, st.integers(-9, 9)),
        ),
        "tags": st.one_of(
            st.none(),
            st.lists(st.sampled_from("abc"), max_size=2),
            st.builds(lambda v: {"$append": v}, st.lists(st.sampled_from("abc"), max_size=2)),
            st.builds(lambda v: {"$remove": v}, st.lists(st.sampled_from("abc"), max_size=2)),
        ),
        "doc": st.one_of(
            st.just({"k": "new"}),
            st.builds(lambda v: {"$merge": {"m": v}}, st.integers(0, 3)),
            st.builds(lambda v: {"$remove": [v]}, st.sampled_from("km")),
        ),
        "raw->a": st.integers(0, 3),
        "raw->b->c": st.builds(lambda n: {"$add": n}, st.integers(0, 3)),
        "alias": st.sampled_from(["", "'", "%s", "\\", "💡", None]),
    },
)


@settings(
    max_examples=amount(5, 25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.lists(CHANGES.filter(bool), min_size=1, max_size=4), shift=st.integers(0, 3))
@pytest_twisted.ensureDeferred
async def test_update_of_rows_equals_single_updates(
    db: DirectCaller, dsn: str, changes: list[dict[str, Any]], shift: int
) -> None:
    """All kinds of changes at once give the same rows as one by one."""
    rows = [{"id": (at + shift) % 4 + 1, **each} for at, each in enumerate(changes)]
    execute(dsn, BEFORE_EACH)
    one_by_one = [
        await db.call("items.update", row["id"], {k: v for k, v in row.items() if k != "id"})
        for row in rows
    ]
    left = execute(dsn, "SELECT items::text FROM items ORDER BY id")
    execute(dsn, BEFORE_EACH)
    assert await db.call("items.update", rows=rows) == one_by_one
    assert execute(dsn, "SELECT items::text FROM items ORDER BY id") == left
