"""
Find and aggregate on the rows of functions, compared with the results of SQL.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument, NoSuchProcedure
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE TYPE pair AS (x int, y numeric);
CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, boss int REFERENCES people,
                     secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
CREATE TABLE tasks (id int PRIMARY KEY, owner int REFERENCES people, title text);
INSERT INTO people VALUES (1, 'Ada', NULL, 'a'), (2, 'Bob', 1, 'b'), (3, 'Cyd', 1, 'c');
INSERT INTO tasks VALUES (1, 1, 'x'), (2, 2, 'y'), (3, 2, 'z');
CREATE TABLE calls (n int);
CREATE FUNCTION everyone(lowest int DEFAULT 0) RETURNS SETOF people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE id >= lowest ORDER BY name DESC';
CREATE FUNCTION person(key int) RETURNS people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE id = key';
CREATE FUNCTION upper_name(people) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1.name)';
CREATE FUNCTION logged(many int) RETURNS TABLE (n int, "odd ""%s" text) LANGUAGE sql AS $$
    INSERT INTO calls VALUES (1);
    SELECT i, CASE i % 2 WHEN 0 THEN 'even' ELSE 'odd' END FROM generate_series(1, many) i$$;
CREATE FUNCTION pairs() RETURNS SETOF pair IMMUTABLE
    LANGUAGE sql AS 'SELECT i, i * 1.50 FROM generate_series(1, 3) i';
CREATE FUNCTION outs(a int, OUT b int, OUT c text) IMMUTABLE LANGUAGE sql AS $$SELECT a, 'x'$$;
CREATE FUNCTION of_json(jsonb) RETURNS TABLE (k text) IMMUTABLE
    LANGUAGE sql AS 'SELECT jsonb_object_keys($1)';
CREATE FUNCTION number() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE work(INOUT a int) LANGUAGE sql AS 'SELECT a';
CREATE SEQUENCE tries;
CREATE FUNCTION unlucky() RETURNS TABLE (n int) LANGUAGE plpgsql AS $$BEGIN
    n := nextval('tries');
    IF n = 1 THEN RAISE serialization_failure; END IF;
    RETURN NEXT;
END$$;
CREATE FUNCTION spread(v anyelement, w anyarray) RETURNS TABLE (x anyelement, y anyarray, n int)
    IMMUTABLE LANGUAGE sql AS 'SELECT i, w, 1 FROM unnest(w || v) i';
CREATE FUNCTION spot() RETURNS TABLE (at point, n int) IMMUTABLE
    LANGUAGE sql AS $$SELECT '(1,2)'::point, 1$$;
CREATE TABLE bare ();
INSERT INTO bare DEFAULT VALUES;
CREATE FUNCTION of_bare() RETURNS SETOF bare STABLE LANGUAGE sql AS 'SELECT * FROM bare';
CREATE DOMAIN person AS people CHECK ((VALUE).id > 0);
CREATE FUNCTION domained() RETURNS SETOF person STABLE
    LANGUAGE sql AS 'SELECT p::person FROM people p ORDER BY id';
CREATE FUNCTION one_domained(key int) RETURNS person STABLE
    LANGUAGE sql AS 'SELECT p::person FROM people p WHERE id = key';
CREATE FUNCTION twice() RETURNS SETOF people STABLE
    LANGUAGE sql AS 'SELECT p.* FROM people p, generate_series(1, 2) ORDER BY p.id';
"""


pytestmark = pytest.mark.serving(max_rows=4)


FOUND: list[tuple[str, dict[str, Any], Any]] = [
    ("everyone", {"select": ["id"]}, [{"id": 3}, {"id": 2}, {"id": 1}]),
    ("everyone", {"args": {"lowest": 3}},
     [{"id": 3, "name": "Cyd", "boss": 1}]),
    ("everyone", {"args": {"lowest": 2}, "select": ["id"], "order": ["id"], "limit": 1},
     [{"id": 2}]),
    ("everyone", {"select": ["upper_name"], "where": {"upper_name": "ADA"}},
     [{"upper_name": "ADA"}]),
    ("everyone", {"select": ["id"], "where": {"boss.name": "Ada"}, "order": ["-upper_name"],
                  "embed": {"tasks": {"select": ["title"]}, "boss": {"select": ["upper_name"]}}},
     [{"id": 3, "tasks": [], "boss": {"upper_name": "ADA"}},
      {"id": 2, "tasks": [{"title": "y"}, {"title": "z"}], "boss": {"upper_name": "ADA"}}]),
    ("person", {"args": {"key": 2}, "select": ["name"]}, [{"name": "Bob"}]),
    ("person", {"args": {"key": 99}}, []),
    ("spread", {"args": {"v": 2, "w": [3, 10]}, "where": {"x": {"gt": 2}}, "order": ["-x"]},
     [{"x": 10, "y": [3, 10], "n": 1}, {"x": 3, "y": [3, 10], "n": 1}]),
    ("spread", {"args": {"v": "b", "w": ["a"]}, "where": {"y": {"cs": ["a"]}}, "order": ["x"],
                "select": ["x"]}, [{"x": "a"}, {"x": "b"}]),
    ("of_bare", {}, [{}]),
    ("domained", {"select": ["id", "upper_name"], "embed": {"tasks": {"select": ["title"]}}, "limit": 1,
                  "where": {"boss.name": "Ada"}},
     [{"id": 2, "upper_name": "BOB", "tasks": [{"title": "y"}, {"title": "z"}]}]),
    ("one_domained", {"args": {"key": 1}}, [{"id": 1, "name": "Ada", "boss": None}]),
    ("pairs", {"where": {"y": {"gt": "1.5"}}, "order": ["-x"]},
     [{"x": 3, "y": "4.50"}, {"x": 2, "y": "3.00"}]),
    ("outs", {"args": {"a": 5}, "select": ["c", "n:b"]}, [{"c": "x", "n": 5}]),
    ("of_json", {"args": [{"a": 1, "b": 2}], "order": ["-k"]}, [{"k": "b"}, {"k": "a"}]),
    ("logged", {"args": {"many": 3}, "where": {'"odd ""%s"': "odd"}, "select": ["n"]},
     [{"n": 1}, {"n": 3}]),
    ("logged", {"args": {"many": 9}, "distinct": ['"odd ""%s"'], "select": ["n"]},
     [{"n": 2}, {"n": 1}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "expected"), FOUND)
@pytest_twisted.ensureDeferred
async def test_find_of_a_function_selects_sorts_and_embeds(
    db: DirectCaller, name: str, kwargs: dict[str, Any], expected: Any
) -> None:
    """Without an order, the rows have the function's order."""
    if "distinct" in kwargs:
        kwargs["order"] = ["n"]
        found = await db.call(f"fn.{name}.find", **kwargs)
        assert {row["n"] for row in found["rows"]} == {1, 2}
        return
    found = await db.call(f"fn.{name}.find", **kwargs)
    assert found == {"rows": expected, "next": found["next"]}
    assert (await db.call(f"public.fn.{name}.find", **kwargs))["rows"] == expected


@pytest_twisted.ensureDeferred
async def test_rows_of_a_domain_are_returned_without_hidden_columns(db: DirectCaller) -> None:
    """Rows of a domain over a composite type are rows of that type."""
    assert await db.call("fn.one_domained", key=3) == {"id": 3, "name": "Cyd", "boss": 1}
    assert (await db.call("fn.domained"))[0] == {"id": 1, "name": "Ada", "boss": None}


@pytest_twisted.ensureDeferred
async def test_find_with_positional_args_passes_them_by_position(db: DirectCaller) -> None:
    """As in a plain call of the function."""
    assert (await db.call("fn.of_json.find", {"a": 1}))["rows"] == [{"k": "a"}]


@pytest_twisted.ensureDeferred
async def test_pages_of_a_function_have_all_rows_in_order(db: DirectCaller) -> None:
    """Also if rows repeat; a token is valid for its own query only."""
    seen: list[int] = []
    token = None
    while True:
        page = await db.call("fn.twice.find", select=["id"], limit=4, after=token)
        seen += [row["id"] for row in page["rows"]]
        token = page["next"]
        if token is None:
            break
        assert len(page["rows"]) == 4
    assert seen == [1, 1, 2, 2, 3, 3]
    first = await db.call("fn.everyone.find", args={"lowest": 1}, limit=1)
    other = db.call("fn.everyone.find", args={"lowest": 2}, limit=1, after=first["next"])
    assert isinstance(await failure_of(other), InvalidArgument)
    lists = await db.call("fn.everyone.find", limit=1, form="lists", select=["id"])
    assert (lists["columns"], lists["rows"]) == (["id"], [[3]])


@pytest.mark.parametrize("mode", ["exact", "estimated", "planned"])
@pytest_twisted.ensureDeferred
async def test_count_of_a_function_calls_it_once(db: DirectCaller, dsn: str, mode: str) -> None:
    """A function that may not be called twice is counted with the rows."""
    found = await db.call("fn.everyone.find", count=mode, limit=1, where={"id": {"gt": 1}})
    assert isinstance(found["count"], int)
    if mode != "planned":
        assert found["count"] == 2
    execute(dsn, "TRUNCATE calls")
    page = await db.call("fn.logged.find", args={"many": 9}, count=mode, limit=2, offset=4)
    assert [row["n"] for row in page["rows"]] == [5, 6]
    assert page["next"] is not None
    assert execute(dsn, "SELECT count(*) FROM calls") == [(1,)]
    beyond = await db.call("fn.logged.find", args={"many": 9}, count=mode, offset=40)
    assert (beyond["rows"], beyond["next"]) == ([], None)
    kinds = await db.call(
        "fn.logged.find", args={"many": 9}, count=mode, distinct=True, select=['"odd ""%s"']
    )
    if mode != "planned":
        assert (page["count"], beyond["count"], kinds["count"]) == (9, 9, 2)


@pytest_twisted.ensureDeferred
async def test_count_of_many_rows_takes_little_memory(db: DirectCaller) -> None:
    """The rows of other pages are counted in the server."""
    many = {"many": 300_000}
    tracemalloc.start()
    try:
        page = await db.call(
            "fn.logged.find", args=many, count="exact", offset=299_998, select=["n"]
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert page == {"rows": [{"n": 299_999}, {"n": 300_000}], "next": None, "count": 300_000}
    assert peak < 5_000_000
    none = await db.call("fn.logged.find", args={"many": 3}, count="exact", limit=0, offset=1)
    assert (none["rows"], none["next"] is None, none["count"]) == ([], False, 3)
    far = await db.call("fn.logged.find", args={"many": 3}, count="exact", offset=2**62)
    assert (far["rows"], far["count"]) == ([], 3)


@pytest_twisted.ensureDeferred
async def test_function_ending_in_a_retryable_error_is_run_again(
    db: DirectCaller, dsn: str
) -> None:
    """After a serialization failure or a deadlock."""
    assert await db.call("fn.unlucky") == [{"n": 2}]
    execute(dsn, "ALTER SEQUENCE tries RESTART")
    assert (await db.call("fn.unlucky.find"))["rows"] == [{"n": 2}]
    execute(dsn, "ALTER SEQUENCE tries RESTART")
    assert await db.call("fn.unlucky.aggregate", measures={"s": {"sum": "n"}}) == [{"s": 2}]


@pytest_twisted.ensureDeferred
async def test_aggregate_of_a_function_counts_and_sums_its_rows(db: DirectCaller) -> None:
    """As of a relation."""
    found = await db.call(
        "fn.logged.aggregate", args={"many": 5}, measures={"n": {"count": "*"}},
        group=["kind:\"odd \"\"%s\""], order=["kind"],
    )  # fmt: skip
    assert found == [{"kind": "even", "n": 2}, {"kind": "odd", "n": 3}]
    missing = await db.call("fn.person.aggregate", args={"key": 99}, measures={"n": {"count": "*"}})
    assert missing == [{"n": 0}]


@pytest.mark.parametrize(
    ("name", "kwargs", "refusal"),
    [
        ("number", {}, NoSuchProcedure),
        ("work", {"args": {"a": 1}}, NoSuchProcedure),
        ("everyone", {"lowest": 1}, InvalidArgument),
        ("everyone", {"args": {"most": 1}}, InvalidArgument),
        ("everyone", {"where": {"secret": "a"}}, InvalidArgument),
        ("everyone", {"select": ["secret"]}, InvalidArgument),
        ("pairs", {"embed": {"tasks": True}}, InvalidArgument),
        ("pairs", {"where": {'x" OR true --': 1}}, InvalidArgument),
        ("logged", {}, InvalidArgument),
    ],
)
@pytest_twisted.ensureDeferred
async def test_find_of_hidden_columns_or_without_rows_is_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any], refusal: type[Exception]
) -> None:
    """Hidden columns are unknown; a function without rows has no verbs."""
    assert isinstance(await failure_of(db.call(f"fn.{name}.find", **kwargs)), refusal)


@pytest_twisted.ensureDeferred
async def test_distinct_of_values_without_equality_is_refused(db: DirectCaller) -> None:
    for kwargs, path in (
        ({"distinct": True}, "distinct"),
        ({"distinct": True, "select": ["n", "at"]}, "select.1"),
        ({"distinct": ["at"]}, "distinct.0"),
    ):
        refused = await failure_of(db.call("fn.spot.find", **kwargs))
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_argument_outside_args_is_refused_with_its_path(db: DirectCaller) -> None:
    """The hint says that arguments of the function are in `args`."""
    refused = await failure_of(db.call("fn.everyone.find", lowest=1))
    assert refused.details["hint"] == 'arguments of the function go into "args"'  # type: ignore[attr-defined]
    refused = await failure_of(db.call("fn.everyone.aggregate", {"n": {"count": "*"}}))
    assert "those of the verb by name" in refused.details["hint"]  # type: ignore[attr-defined]
