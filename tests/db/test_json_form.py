"""Results as one JSON text, written by PostgreSQL."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted

from service.errors import Conflict, InvalidArgument, TooLarge
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

LONG = "n" * 70
SCHEMA = """
CREATE TYPE pair AS (a int, b text);
CREATE TABLE boxes (id int PRIMARY KEY, name text);
CREATE TABLE things (id int PRIMARY KEY, box int REFERENCES boxes, price numeric, bytes bytea,
    at timestamptz, ats timestamptz[], day date, span interval, doc jsonb, raw json, "50% 'q'" text,
    tags text[], pair pair, ok bool, far float8, big int8, ref oid, refs oid[], secret text);
COMMENT ON COLUMN things.secret IS '@hidden';
INSERT INTO boxes VALUES (1, 'one'), (2, 'two');
INSERT INTO things SELECT i, 1, 12.50 + i, decode(repeat('ff00', 60), 'hex'), '2026-11-21 14:03:00.25+02',
    '{2026-11-21 14:03:00+00,infinity}', '2026-11-21', '1 day 2s', '{"n": 0.12345678901234567890123}',
    '{"$number":   "5"}', 'a "b" % é', '{x,NULL}', '(1,"y z")', true, 'NaN', 9007199254740993,
    4294967295, '{1,NULL}', 'hush'
    FROM generate_series(1, 3) i;
INSERT INTO things (id) VALUES (4);
CREATE FUNCTION all_things() RETURNS SETOF things LANGUAGE sql STABLE AS 'SELECT * FROM things';
CREATE FUNCTION pairs() RETURNS TABLE (n numeric, bytes bytea) LANGUAGE sql STABLE
    AS $$SELECT 1.50, '\\xff'::bytea UNION ALL SELECT NULL, NULL$$;
CREATE FUNCTION one() RETURNS numeric LANGUAGE sql STABLE AS 'SELECT 1.50';
CREATE FUNCTION many() RETURNS SETOF numeric LANGUAGE sql STABLE AS 'VALUES (1.50), (NULL)';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION outs(OUT a numeric, OUT b text) LANGUAGE sql STABLE AS $$SELECT 1.50, 'x'$$;
CREATE FUNCTION paired() RETURNS pair LANGUAGE sql STABLE AS $$SELECT (1, 'x')::pair$$;
CREATE FUNCTION untyped() RETURNS record LANGUAGE sql STABLE AS 'SELECT 1, 2.50';
CREATE PROCEDURE proc(INOUT a int) LANGUAGE sql AS 'SELECT 1';
"""


NUMBERS = {"price", "n", "a", "sum", LONG}
"""Columns of type numeric, whose text is a number in JSON."""


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(each) for each in value]
    return Decimal(value) if isinstance(value, str) else _plain(value)


def _plain(value: Any) -> Any:
    """Return a default result in the form of its JSON."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"$number"}:
            return Decimal(value["$number"])
        if set(value) == {"$value"}:
            return value["$value"]
        return {
            key: _number(item) if key in NUMBERS else _plain(item) for key, item in value.items()
        }
    return value


SPREAD = {"boxes": {"spread": True, "select": ["name"]}}
CALLS: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("things.get", [1], {}),
    ("things.get", [4], {"embed": {"boxes": True}}),
    ("things.get", [1], {"select": [f"{LONG}:price"]}),
    ("things.find", [], {}),
    ("things.find", [], {"limit": 2, "count": "exact", "order": ["-price"]}),
    ("things.find", [], {"where": {"id": 99}}),
    ("things.find", [], {"embed": {"boxes": True}, "select": ["id", "50% 'q'"]}),
    ("things.find", [], {"embed": SPREAD, "select": ["id"]}),
    ("things.find", [], {"select": ["price", "raw", "day", "at"], "distinct": True}),
    ("things.find", [], {"distinct": ["box"], "select": ["id"]}),
    ("boxes.find", [], {"embed": {"things": {"order": ["id"]}}}),
    ("boxes.find", [], {"embed": {"things": {"spread": True, "select": ["bytes", "price"]}}}),
    ("boxes.find", [], {"embed": {"things": {"measures": {"sum": {"sum": "price"}}}}}),
    ("boxes.find", [], {"embed": {"things": {"embed": SPREAD, "select": ["at", "ats"]}}}),
    ("things.aggregate", [], {"measures": {"sum": {"sum": "price"}}, "group": ["box"]}),
    ("things.create", [{"id": 5, "price": 1.5}], {}),
    ("things.create", [[{"id": 6}, {"id": 7}]], {"embed": {"boxes": True}, "order": ["-id"]}),
    ("things.create", [[]], {}),
    ("things.create", [{"id": 8}], {"returning": False}),
    ("things.upsert", [{"id": 1, "price": "2.50"}], {}),
    ("things.upsert", [{"id": 1}], {"update": []}),
    ("things.update", [1, {"price": "3.50"}], {}),
    ("things.update", [1, {}], {"embed": {"boxes": True}}),
    ("things.update", [], {"where": {"id": {"lt": 3}}, "changes": {"price": 2}, "order": ["id"]}),
    ("things.delete", [2], {}),
    ("things.delete", [], {"where": {"id": {"lt": 3}}}),
    ("fn.all_things", [], {}),
    ("fn.all_things.find", [], {"count": "exact", "limit": 1}),
    ("fn.all_things.aggregate", [], {"measures": {"sum": {"sum": "price"}}}),
    ("fn.pairs", [], {}),
    ("fn.nothing", [], {}),
    ("fn.outs", [], {}),
    ("fn.paired", [], {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS)
@pytest_twisted.ensureDeferred
async def test_result_as_json_text_equals_the_default_result(
    db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    answers = []
    for form in ({}, {"form": "json"}):
        try:
            async with db.database.transaction():
                answers.append(await db.call(name, *args, **kwargs, **form))
                raise _Undone
        except _Undone:
            pass
    usual, text = answers
    assert isinstance(text, str)
    found = json.loads(text, parse_float=Decimal)
    assert found == _plain(usual)
    assert list(found) == list(usual or ()) if isinstance(usual, dict) and "id" in usual else True
    assert "hush" not in text


class _Undone(Exception):
    """Raised to roll a write back."""


@pytest_twisted.ensureDeferred
async def test_digits_of_numbers_in_json_text_are_those_stored(db: DirectCaller) -> None:
    row = await db.call("things.get", 3, form="json")
    for part in (
        '"price":15.50',
        "0.12345678901234567890123",
        '{"$number":   "5"}',
        "9007199254740993",
    ):
        assert part in row
    assert await db.call("fn.one", form="json") == "1.50"
    assert await db.call("fn.many", form="json") == "[1.50,null]"


@pytest_twisted.ensureDeferred
async def test_pages_as_json_text_have_all_rows_in_order(db: DirectCaller) -> None:
    seen, after = [], None
    while True:
        page = json.loads(await db.call("things.find", form="json", limit=1, after=after))
        seen += [row["id"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
    assert seen == [1, 2, 3, 4]


@pytest_twisted.ensureDeferred
async def test_json_text_of_an_unsupported_or_invalid_call_is_refused(
    db: DirectCaller, dsn: str
) -> None:
    for name, kwargs in (
        ("things.stream", {}),
        ("fn.proc", {"a": 1}),
        ("things.find", {"select": ["nope"]}),
        ("things.find", {"form": "jsonb"}),
    ):
        error = await failure_of(db.call(name, **{"form": "json"} | kwargs))
        assert isinstance(error, InvalidArgument), (name, error)
    error = await failure_of(
        db.call("things.update", 3, {"price": 1}, expect={"price": 99}, form="json")
    )
    assert isinstance(error, Conflict)
    assert error.details["row"]["price"] == "15.50"
    async with serving(dsn, max_bytes=300) as small:
        assert isinstance(await failure_of(small.call("things.find", form="json")), TooLarge)


@pytest_twisted.ensureDeferred
async def test_json_text_of_a_composite_with_hidden_fields_is_refused(dsn: str) -> None:
    execute(
        dsn,
        "CREATE TABLE holders (id int PRIMARY KEY, held things);"
        "CREATE FUNCTION first_thing() RETURNS things LANGUAGE sql STABLE"
        " AS 'SELECT * FROM things ORDER BY id LIMIT 1'",
    )
    async with serving(dsn) as db:
        for name in ("holders.find", "fn.untyped", "fn.first_thing"):
            assert isinstance(await failure_of(db.call(name, form="json")), InvalidArgument)
