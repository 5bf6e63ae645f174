"""Rows by several keys, select lists with "-column", and names that have to be quoted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from service.api.call import CallState
from service.api.roles import Roles
from service.errors import InvalidArgument, NoSuchProcedure, NotAuthorized, ServiceError
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.db.test_roles import caller
from tests.deferreds import failure_of

SCHEMA = '''
CREATE ROLE gt_clerk;
CREATE EXTENSION citext;
CREATE DOMAIN code AS text;
CREATE TABLE lands (id int PRIMARY KEY, name citext UNIQUE, secret text DEFAULT 'x', price numeric UNIQUE);
COMMENT ON COLUMN lands.secret IS '@hidden';
INSERT INTO lands (id, name, price) SELECT i, 'Land ' || i, i * 1.5 FROM generate_series(1, 6) i;
CREATE TABLE towns (land int REFERENCES lands, at date, name text, note text, PRIMARY KEY (land, at));
INSERT INTO towns SELECT i % 4 + 1, '2026-01-01'::date + i, 'Town ' || i, 'n' FROM generate_series(1, 9) i;
CREATE TABLE paths (way text[] PRIMARY KEY, code code UNIQUE);
INSERT INTO paths VALUES ('{a,b}', 'ab'), ('{}', 'none'), ('{a,NULL}', NULL);
CREATE TABLE odd ("-id" int PRIMARY KEY, "a:b" text, "a.b" text, "a->b" text, "a::b" text, "*" int,
    "say ""hi""" text);
INSERT INTO odd VALUES (1, 'x', 'y', 'z', 'w', 5, 'q'), (2, 'X', 'Y', 'Z', 'W', 6, 'Q');
CREATE DOMAIN doc AS jsonb;
CREATE TABLE docs (id int PRIMARY KEY, doc doc);
CREATE TABLE slots (id int PRIMARY KEY, a int, b int, up_id int REFERENCES slots,
    UNIQUE NULLS NOT DISTINCT (a, b));
CREATE VIEW keyless AS SELECT name FROM lands;
ALTER TABLE lands ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON lands TO gt_clerk USING (id < 3);
GRANT SELECT (id, name) ON lands TO gt_clerk;
'''
CLERK = caller("clerk")
LAND = {"id": 2, "name": "Land 2", "price": "3.0"}

GOT: list[tuple[str, list[Any], dict[str, Any], list[Any]]] = [
    ("lands", [3, 1, 99, 3], {"select": ["id"]}, [{"id": 3}, {"id": 1}, None, {"id": 3}]),
    ("lands", ["2"], {}, [LAND]),
    ("lands", [[2], [5]], {"select": ["id"]}, [{"id": 2}, {"id": 5}]),
    ("lands", [{"id": 2}], {"select": ["*"]}, [LAND]),
    ("lands", [{"name": "LAND 2"}, {"name": "?"}], {"select": ["id"]}, [{"id": 2}, None]),
    ("lands", [{"price": "3.0"}, {"price": 4.5}], {"select": ["id"]}, [{"id": 2}, {"id": 3}]),
    ("lands", [], {}, []),
    ("lands", [1, 2], {"form": "lists", "select": ["id"]}, {"columns": ["id"], "rows": [[1], [2]]}),
    ("lands", [9, 2], {"form": "lists", "select": ["id"]}, {"columns": ["id"], "rows": [None, [2]]}),
    ("towns", [[2, "2026-01-02"], [2, "2026-01-03"]], {"select": ["name"]}, [{"name": "Town 1"}, None]),
    ("towns", [{"at": "2026-01-03", "land": 3}, {"land": 2, "at": "2026-01-06"}], {"select": ["name"]},
     [{"name": "Town 2"}, {"name": "Town 5"}]),
    ("paths", [[["a", "b"]], [[]], [["a", None]]], {"select": ["code"]},
     [{"code": "ab"}, {"code": "none"}, {"code": None}]),
    ("paths", [{"code": "ab"}], {"select": ["way"]}, [{"way": ["a", "b"]}]),
    ("lands", [2, 6], {"select": ["id"], "embed": {"towns": {"select": ["name"]}}},
     [{"id": 2, "towns": [{"name": "Town 1"}, {"name": "Town 5"}, {"name": "Town 9"}]},
      {"id": 6, "towns": []}]),
    ("lands", [6, 2], {"select": ["id"], "embed": {"towns": {"select": [], "inner": True}}},
     [None, {"id": 2}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("relation", "options", "plain"),
    [
        ("lands", {}, True),
        ("lands", {"form": "json"}, True),
        ("lands", {"embed": {"towns": {}}}, False),
        ("paths", {}, False),
        ("paths", {"select": ["code"]}, True),  # a domain over text
        ("docs", {}, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_result_of_single_values_is_marked_as_needing_no_check(
    db: DirectCaller, relation: str, options: dict[str, Any], plain: bool
) -> None:
    """Other tests call `DirectCaller.call_as`, which compares the mark with the result."""
    state = CallState()
    name = f"{relation}.find"
    await db.dispatcher.answer(name, [], {"order": [], **options}, ANYONE, state)
    assert state.plain is plain


@pytest.mark.parametrize(("relation", "keys", "options", "expected"), GOT)
@pytest_twisted.ensureDeferred
async def test_rows_by_keys_have_the_order_of_the_keys(
    db: DirectCaller, relation: str, keys: list[Any], options: dict[str, Any], expected: Any
) -> None:
    """A key given twice returns its row twice, a key without a row null."""
    got = await db.call(f"{relation}.get", keys=keys, **options)
    assert got == expected
    if "form" not in options:
        text = await db.call(f"{relation}.get", keys=keys, form="json", **options)
        assert len(json.loads(text)) == len(expected)
        assert [row is None for row in json.loads(text)] == [row is None for row in expected]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("lands", {"keys": 1}, "keys"),
    ("lands", {"keys": None}, "keys"),
    ("lands", {"keys": {"id": 1}}, "keys"),
    ("lands", {"keys": [1], "key": 1}, "keys"),
    ("lands", {"keys": [1, None]}, "keys.1"),
    ("lands", {"keys": [1, {"name": "x"}]}, "keys.1"),
    ("lands", {"keys": [1, [1, 2]]}, "keys.1"),
    ("lands", {"keys": [{}]}, "keys.0"),
    ("lands", {"keys": [1, "x"]}, "keys.1"),
    ("lands", {"keys": [1, 2**40]}, "keys.1"),
    ("lands", {"keys": [{"secret": "x"}]}, "keys.secret"),
    ("lands", {"keys": [{"nope": "x"}]}, "keys.nope"),
    ("lands", {"keys": [{"id": 1, "name": "x"}]}, "keys"),
    ("towns", {"keys": [1]}, "keys"),
    ("towns", {"keys": [[1, "no date"]]}, "keys"),
    ("lands", {"keys": list(range(1001))}, "keys"),
    ("lands", {"key": 1, "select": ["*", "-nope"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-secret"]}, "select.1"),
    ("lands", {"key": 1, "select": ["-id"]}, "select.0"),
    ("lands", {"key": 1, "select": ["id", "-name"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-id", "-name", "-price"]}, "select.0"),
    ("lands", {"key": 1, "select": ["*", "-name::text"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-x:name"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-towns.name"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "--id"]}, "select.1"),
    ("lands", {"key": 1, "select": ["*", "-*"]}, "select.1"),
]


@pytest.mark.parametrize(("relation", "kwargs", "path"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_invalid_keys_and_columns_are_refused_with_their_path(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call(f"{relation}.get", **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_get_by_keys_of_a_relation_without_a_key_does_not_exist(db: DirectCaller) -> None:
    assert isinstance(await failure_of(db.call("keyless.get", keys=[1])), NoSuchProcedure)


@pytest.mark.serving(max_bytes=2000)
@pytest_twisted.ensureDeferred
async def test_rows_by_keys_above_the_size_limit_are_refused(db: DirectCaller) -> None:
    """A row that is returned twice counts twice."""
    assert len(await db.call("lands.get", keys=[1] * 3)) == 3
    refused = await failure_of(db.call("lands.get", keys=[1] * 900))
    assert isinstance(refused, ServiceError)
    assert refused.uri == "rowcast.error.too_large"


@pytest.mark.serving(roles=Roles({"clerk": "gt_clerk"}))
@pytest_twisted.ensureDeferred
async def test_rows_by_keys_are_those_that_the_role_may_read(db: DirectCaller) -> None:
    """Rows that policies hide are null, and the columns are the readable ones."""
    got = await db.call_as(CLERK, "lands.get", keys=[1, 5, 2], select=["id"])
    assert got == [{"id": 1}, None, {"id": 2}]
    assert await db.call_as(CLERK, "lands.get", keys=[1], select=["*", "-name"]) == [{"id": 1}]
    assert await db.call_as(CLERK, "lands.get", keys=[]) == []
    refused = await failure_of(db.call_as(CLERK, "lands.get", keys=[{"price": 1}]))
    assert isinstance(refused, InvalidArgument | NotAuthorized)


LEFT_OUT: list[tuple[list[str], list[str]]] = [
    (["*", "-price"], ["id", "name"]),
    (["-price", "*"], ["id", "name"]),
    (["*", "-price", "-id"], ["name"]),
    (["*", "-price", "price::text"], ["id", "name", "price"]),
    (["*", "-price", "p:price"], ["id", "name", "p"]),
    (["n:name", "*", "-name"], ["n", "id", "price"]),
    (["*", '-"price"'], ["id", "name"]),
]


@pytest.mark.parametrize(("select", "columns"), LEFT_OUT)
@pytest_twisted.ensureDeferred
async def test_excluded_column_is_not_returned(
    db: DirectCaller, select: list[str], columns: list[str]
) -> None:
    """In each kind of select list, and beside other items."""
    assert list(await db.call("lands.get", 1, select=select)) == columns
    lists = await db.call("lands.find", select=select, form="lists")
    assert lists["columns"] == columns
    embed = {"land": {"relation": "lands", "select": select}}
    (town,) = (await db.call("towns.find", limit=1, select=["name"], embed=embed))["rows"]
    assert list(town["land"]) == columns
    made = await db.call("lands.upsert", LAND, select=select)
    assert list(made) == columns


ODD = ["-id", "a:b", "a.b", "a->b", "a::b", "*", 'say "hi"']


@pytest.mark.parametrize("name", ODD)
@pytest_twisted.ensureDeferred
async def test_quoted_name_is_accepted_wherever_a_column_is(db: DirectCaller, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    rows = (await db.call("odd.find", select=[f"c:{quoted}"], order=[quoted]))["rows"]
    assert len(rows) == 2
    by_value = await db.call("odd.find", where={quoted: rows[1]["c"]}, select=[f"c:{quoted}"])
    assert by_value["rows"] == [rows[1]]
    turned = await db.call("odd.find", select=[f"c:{quoted}"], order=[f"-{quoted}"])
    assert turned["rows"] == rows[::-1]
    turned = await db.call("odd.find", select=[quoted], order=[{"by": quoted, "desc": True}])
    assert turned["rows"] == [{name: row["c"]} for row in rows[::-1]]
    assert await db.call("odd.count", where={quoted: {"eq": {"$column": quoted}}}) == 2
    groups = await db.call("odd.aggregate", {"n": {"count": "*"}}, group=[quoted])
    assert [each["n"] for each in groups] == [1, 1]


NULL = {"a": 1, "b": None}
WITH_NULL: list[tuple[str, dict[str, Any], str]] = [
    ("get", {"key": NULL}, "key.b"),
    ("get", {"keys": [{"a": 1, "b": 1}, NULL]}, "keys.1.b"),
    ("update", {"key": NULL, "changes": {"id": 5}}, "key.b"),
    ("delete", {"key": NULL}, "key.b"),
    ("update", {"rows": [{**NULL, "id": 5}], "by": ["a", "b"]}, "rows.0.b"),
    ("create", {"values": {"id": 5, "up_id": {"$link": NULL}}}, "values.up_id.$link.b"),
    (
        "upsert",
        {"values": {"id": 5, **NULL}, "on_conflict": ["a", "b"], "returning": "both"},
        "values.b",
    ),
    (
        "upsert",
        {"values": [{"id": 5, "a": 1}], "on_conflict": ["a", "b"], "returning": "old"},
        "values.0.b",
    ),
]


@pytest.mark.parametrize(("verb", "kwargs", "path"), WITH_NULL, ids=str)
@pytest_twisted.ensureDeferred
async def test_null_in_a_key_is_refused_with_a_filter_as_hint(
    db: DirectCaller, verb: str, kwargs: dict[str, Any], path: str
) -> None:
    """Also for a unique key with NULLS NOT DISTINCT: a filter can compare with null."""
    refused = await failure_of(db.call(f"slots.{verb}", **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert str(refused) == "a key has a value for each of its columns"
    hint = '"find", "update" and "delete" take a filter, as in where={"b": null}'
    assert (refused.details["path"], refused.details["hint"]) == (path, hint)
