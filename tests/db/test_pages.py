"""Pages forwards and backwards, while rows are inserted and deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument
from service.request.read_request import write_token
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_streaming import Taker
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE things (id int PRIMARY KEY, name text NOT NULL, rank int, at date);
CREATE TABLE loose (name text, rank int);
CREATE TYPE pair AS (x int, y text);
CREATE DOMAIN paired AS pair;
CREATE TABLE pairs (id int PRIMARY KEY, pair pair, paired paired);
CREATE TABLE holders (id int PRIMARY KEY, held int REFERENCES pairs);
INSERT INTO pairs (id, pair) VALUES (1, NULL), (2, ROW(1, NULL)), (3, ROW(NULL, NULL)), (4, ROW(1, 'a')),
    (5, ROW(2, NULL)), (6, ROW(NULL, NULL)), (7, NULL), (8, ROW(NULL, 'b'));
UPDATE pairs SET paired = pair;
INSERT INTO holders SELECT id, id FROM pairs;
CREATE FUNCTION ranked(low int) RETURNS SETOF things LANGUAGE sql STABLE
    AS 'SELECT * FROM things WHERE rank >= low';
CREATE FUNCTION counted(low int) RETURNS SETOF things LANGUAGE sql VOLATILE
    AS 'SELECT * FROM things WHERE rank >= low';
"""
BEFORE_EACH = """
TRUNCATE things, loose;
INSERT INTO things SELECT i, 'n' || i % 4, nullif(i % 5, 0), '2026-01-01'::date + i % 3
    FROM generate_series(1, 23) i;
INSERT INTO loose SELECT name, rank FROM things;
"""

ORDERS: list[tuple[list[Any], str]] = [
    ([], "id"),
    (["-id"], "id DESC"),
    (["name"], "name, id"),
    (["-name", "id"], "name DESC, id"),
    (["rank"], "rank, id"),
    (["-rank"], "rank DESC, id"),
    ([{"by": "rank", "nulls": "first"}, "-at"], "rank NULLS FIRST, at DESC, id"),
    ([{"by": "rank", "desc": True, "nulls": "last"}, "name"], "rank DESC NULLS LAST, name, id"),
    (["-rank::text", "at"], "rank::text DESC, at, id"),
]
QUERIES: list[tuple[str, dict[str, Any], str]] = [
    *(("things", {"order": order}, f"SELECT id FROM things ORDER BY {by}") for order, by in ORDERS),
    # a composite of nulls IS NULL, but is sorted as a value
    *(("pairs", {"order": [order]}, f"SELECT id FROM pairs ORDER BY {by}, id") for order, by in (
        ("pair", "pair"), ("-pair", "pair DESC"), ("paired", "paired"), ("-paired", "paired DESC"))),
    ("holders", {"order": ["pairs.pair"]},
     "SELECT h.id FROM holders h JOIN pairs p ON p.id = held ORDER BY pair, h.id"),
    ("things", {"where": {"rank": {"gt": 2}}, "order": ["at"]},
     "SELECT id FROM things WHERE rank > 2 ORDER BY at, id"),
    ("things", {"where": {"id": 99}}, "SELECT id FROM things WHERE false"),
    ("things", {"distinct": ["name"], "order": ["name"]},
     "SELECT DISTINCT ON (name) id FROM things ORDER BY name, id"),
    ("fn.ranked", {"args": {"low": 2}, "order": ["id"]},
     "SELECT id FROM things WHERE rank >= 2 ORDER BY id"),
    ("fn.counted", {"args": {"low": 2}, "order": ["id"], "count": "exact"},
     "SELECT id FROM things WHERE rank >= 2 ORDER BY id"),
]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 4, 23, 30])
@pytest.mark.parametrize(("relation", "query", "sql"), QUERIES)
@pytest_twisted.ensureDeferred
async def test_pages_forward_and_backward_equal_their_sql(
    db: DirectCaller, dsn: str, relation: str, query: dict[str, Any], sql: str, limit: int
) -> None:
    """Pages back have the rows of the pages forward, in the same order."""
    expected = [id for (id,) in execute(dsn, sql)]
    query = {**query, "select": ["id"], "limit": limit}
    page = await db.call(f"{relation}.find", **query)
    assert "prev" not in page
    pages = [page]
    while pages[-1]["next"]:
        pages.append(await db.call(f"{relation}.find", **query, after=pages[-1]["next"]))
        assert pages[-1]["prev"]
    assert [row["id"] for each in pages for row in each["rows"]] == expected
    behind = pages.pop()
    for earlier in reversed(pages):
        page = await db.call(f"{relation}.find", **query, before=behind["prev"])
        assert page["rows"] == earlier["rows"]
        assert page.get("count") == earlier.get("count")
        again = await db.call(f"{relation}.find", **query, after=page["next"])
        assert again["rows"] == behind["rows"]
        behind = page
    assert behind.get("prev") is None


@pytest.mark.parametrize("form", ["lists", "json"])
@pytest_twisted.ensureDeferred
async def test_page_before_in_any_form_is_the_same(db: DirectCaller, form: str) -> None:
    query: dict[str, Any] = {"select": ["id"], "limit": 2, "form": form}

    async def page(**token: Any) -> Any:
        found = await db.call("things.find", **query, **token)
        return json.loads(found) if form == "json" else found

    first = await page()
    second = await page(after=first["next"])
    back = await page(before=second["prev"])
    assert back["rows"] == first["rows"]
    assert back["prev"] is None


@pytest_twisted.ensureDeferred
async def test_rows_are_neither_repeated_nor_skipped_while_others_change(
    db: DirectCaller, dsn: str
) -> None:
    """Pages depend on the keys at their ends, whether these rows still exist or not."""
    query: dict[str, Any] = {"select": ["id"], "limit": 3}
    first = await db.call("things.find", **query)
    second = await db.call("things.find", **query, after=first["next"])
    execute(dsn, "DELETE FROM things WHERE id IN (2, 4); INSERT INTO things VALUES (0, 'new')")
    back = await db.call("things.find", **query, before=second["prev"])
    assert [row["id"] for row in back["rows"]] == [0, 1, 3]
    assert back["prev"] is None
    forth = await db.call("things.find", **query, after=back["next"])
    assert [row["id"] for row in forth["rows"]] == [5, 6, 7]


@pytest_twisted.ensureDeferred
async def test_empty_page_leads_back_to_the_rows(db: DirectCaller, dsn: str) -> None:
    """If all rows after or before it were deleted, no remaining row is skipped."""
    query: dict[str, Any] = {"select": ["id"], "limit": 3}
    first = await db.call("things.find", **query)
    second = await db.call("things.find", **query, after=first["next"])
    execute(dsn, "DELETE FROM things WHERE id > 3")
    empty = await db.call("things.find", **query, after=first["next"])
    assert (empty["rows"], empty["next"]) == ([], None)
    assert (await db.call("things.find", **query, before=empty["prev"]))["rows"] == first["rows"]
    execute(dsn, "DELETE FROM things; INSERT INTO things VALUES (4, 'x'), (5, 'y')")
    empty = await db.call("things.find", **query, before=second["prev"])
    assert (empty["rows"], empty["prev"]) == ([], None)
    left = await db.call("things.find", **query, after=empty["next"])
    assert [row["id"] for row in left["rows"]] == [4, 5]


@pytest_twisted.ensureDeferred
async def test_page_with_limit_zero_keeps_its_position(db: DirectCaller) -> None:
    """With a limit of 0, the tokens are those of the same position."""
    first = await db.call("things.find", select=["id"], limit=3)
    none = await db.call("things.find", select=["id"], limit=0, after=first["next"])
    assert none["next"] == first["next"]
    second = await db.call("things.find", select=["id"], limit=3, after=first["next"])
    none = await db.call("things.find", select=["id"], limit=0, before=second["prev"])
    assert none["prev"] == second["prev"]


@pytest.mark.parametrize(
    ("relation", "kwargs", "path"),
    [
        ("things", {"before": "x"}, "before"),
        ("things", {"before": 5}, "before"),
        ("things", {"before": write_token("x", ["1"])}, "before"),
        ("things", {"before": "T", "after": "T"}, "before"),
        ("things", {"before": "T", "offset": 0}, "before"),
        ("things", {"before": "T", "where": {"id": 1}}, "before"),
        ("things", {"before": "T", "order": ["name"]}, "before"),
        ("loose", {"before": "T"}, "before"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_token_of_another_query_is_refused_in_before_and_after(
    db: DirectCaller, relation: str, kwargs: dict[str, Any], path: str
) -> None:
    first = await db.call("things.find", limit=3)
    second = await db.call("things.find", limit=3, after=first["next"])
    kwargs = {name: second["prev"] if value == "T" else value for name, value in kwargs.items()}
    refused = await failure_of(db.call(f"{relation}.find", **kwargs))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path


@pytest.mark.parametrize("name", ["things.stream", "things.export"])
@pytest_twisted.ensureDeferred
async def test_stream_with_before_is_refused(db: DirectCaller, name: str) -> None:
    refused = await failure_of(Taker(db).call(name, before="x"))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "before"
