"""
Rights in each form of reading: column grants, row-level security and hidden columns.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import InvalidArgument, NotAuthorized
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_roles import caller
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE rr_clerk;
CREATE TABLE shops (id int PRIMARY KEY, name text, spot point, wage int, keyword text);
COMMENT ON COLUMN shops.keyword IS '@hidden';
CREATE TABLE sales (id int PRIMARY KEY, shop int REFERENCES shops, owner text, amount numeric, fee numeric,
    at timestamptz, body text, doc jsonb, papers jsonb, place point, code text);
COMMENT ON COLUMN sales.code IS '@hidden';
INSERT INTO shops SELECT i, 'S' || i, point(i, i), i * 100, 'k' FROM generate_series(1, 5) i;
INSERT INTO sales SELECT i, i % 5 + 1, 'p' || i % 2, i % 7, i % 3, '2026-01-01Z'::timestamptz + i * '7h'::interval,
    repeat('fish ', i % 4) || 'x', jsonb_build_object('n', i % 4), '{"n": 1}', point(i % 6, 1), 'c'
    FROM generate_series(1, 60) i;
ALTER TABLE sales ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON sales TO rr_clerk USING (owner = current_setting('rowcast.authid', true));
GRANT SELECT (id, name, spot) ON shops TO rr_clerk;
GRANT SELECT (id, shop, amount, at, body, doc, place) ON sales TO rr_clerk;
"""
CLERK = caller("clerk", "p1")
OWN = "owner = 'p1'"
pytestmark = pytest.mark.serving(roles=Roles({"clerk": "rr_clerk"}))

SHOP_SALES = {"sales": {"measures": {"n": {"count": "*"}, "top": {"max": "amount"}}}}
SEEN: list[tuple[str, dict[str, Any], str]] = [
    ("sales", {"where": {"amount": {"gt": {"$column": "shop"}}}, "order": ["id"]},
     f"SELECT id FROM sales WHERE {OWN} AND amount > shop ORDER BY id"),
    ("sales", {"where": {"at::date": "2026-01-05"}, "order": ["-amount::int", "id"]},
     f"SELECT id FROM sales WHERE {OWN} AND at::date = '2026-01-05' ORDER BY amount::int DESC, id"),
    ("sales", {"where": {"doc": {"jsonpath": "$.n ? (@ > 1)"}}, "order": ["id"]},
     f"SELECT id FROM sales WHERE {OWN} AND doc @? '$.n ? (@ > 1)' ORDER BY id"),
    ("sales", {"order": [{"by": "body", "rank": "fish", "desc": True}]},
     f"SELECT id FROM sales WHERE {OWN} ORDER BY ts_rank(to_tsvector(body), websearch_to_tsquery('fish')) DESC, id"),
    ("sales", {"order": [{"by": "place", "near": "(2,1)"}]},
     f"SELECT id FROM sales WHERE {OWN} ORDER BY place <-> '(2,1)', id"),
    ("sales", {"order": [{"by": "at", "trunc": "day", "zone": "Asia/Tokyo", "desc": True}]},
     f"SELECT id FROM sales WHERE {OWN} ORDER BY date_trunc('day', at, 'Asia/Tokyo') DESC, id"),
    ("shops", {"embed": SHOP_SALES, "order": ["-sales.n", "sales.top"]},
     f"SELECT id FROM shops s ORDER BY (SELECT count(*) FROM sales WHERE shop = s.id AND {OWN}) DESC,"
     f" (SELECT max(amount) FROM sales WHERE shop = s.id AND {OWN}), id"),
    ("shops", {"embed": SHOP_SALES, "where": {"sales.n": {"gt": 5}}, "order": ["sales.top", "id"]},
     f"SELECT id FROM shops s WHERE (SELECT count(*) FROM sales WHERE shop = s.id AND {OWN}) > 5"
     f" ORDER BY (SELECT max(amount) FROM sales WHERE shop = s.id AND {OWN}), id"),
    ("shops", {"where": {"sales": {"amount": {"gt": {"$column": "shop"}}}}, "order": ["id"]},
     f"SELECT id FROM shops s WHERE EXISTS (SELECT FROM sales WHERE shop = s.id AND {OWN} AND amount > shop)"
     " ORDER BY id"),
]  # fmt: skip


@pytest.mark.parametrize(("relation", "query", "sql"), SEEN)
@pytest_twisted.ensureDeferred
async def test_read_of_any_form_returns_only_rows_of_the_role(
    db: DirectCaller, dsn: str, relation: str, query: dict[str, Any], sql: str
) -> None:
    """As one result, page by page, backwards, and in totals."""
    expected = [id for (id,) in execute(dsn, sql)]
    assert expected
    query = {**query, "select": ["id"]}
    found = await db.call_as(
        CLERK, f"{relation}.find", **query, count="exact", measures={"n": {"count": "*"}}
    )
    assert [row["id"] for row in found["rows"]] == expected
    assert found["count"] == found["totals"]["n"] == len(expected)
    paged: list[Any] = []
    page: dict[str, Any] = {"next": None}
    while not paged or page["next"]:
        page = await db.call_as(CLERK, f"{relation}.find", **query, limit=4, after=page["next"])
        paged = [*paged, page["rows"]]
    assert [row["id"] for rows in paged for row in rows] == expected
    for rows in reversed(paged[:-1]):
        page = await db.call_as(CLERK, f"{relation}.find", **query, limit=4, before=page["prev"])
        assert page["rows"] == rows
    nobody = await db.call_as(caller("clerk", "none"), f"{relation}.find", **query)
    assert relation == "shops" or not nobody["rows"]


def on(column: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the calls that read a column in each way."""
    return [
        ("find", {"where": {"amount": {"gt": {"$column": column}}}}),
        ("find", {"where": {f"{column}::text": "1"}}),
        ("find", {"where": {column: {"length": 3}}}),
        ("find", {"where": {column: {"starts": "c"}}}),
        ("find", {"where": {column: {"jsonpath": "$"}}}),
        ("find", {"order": [f"-{column}::text"]}),
        ("find", {"order": [{"by": column, "rank": "x"}]}),
        ("find", {"order": [{"by": column, "near": "1"}]}),
        ("find", {"order": [{"by": column, "trunc": "day"}]}),
        ("find", {"select": [{"column": column, "trunc": "day", "zone": "Asia/Tokyo"}]}),
        ("find", {"select": ["*", f"-{column}"]}),
        ("find", {"measures": {"x": {"max": column}}}),
        ("find", {"measures": {"x": {"count": "*", "where": {column: {"is": "not null"}}}}}),
        ("find", {"measures": {"x": {"array_agg": "id", "order": [column]}}}),
        ("aggregate", {"measures": {"x": {"mode": column}}}),
        ("aggregate", {"measures": {"x": {"percentile": column, "fraction": 0.5}}}),
        ("aggregate", {"measures": {"n": {"count": "*"}}, "group": [column]}),
        ("get", {"keys": [1], "select": [column]}),
        ("get", {"keys": [{column: "c"}]}),
    ]


@pytest.mark.parametrize("column", ["fee", "owner", "papers", "code"])
@pytest_twisted.ensureDeferred
async def test_hidden_or_ungranted_column_is_refused_in_each_form(
    db: DirectCaller, column: str
) -> None:
    """Of the row and of related rows; the error reveals no values."""
    for verb, kwargs in on(column):
        refused = await failure_of(db.call_as(CLERK, f"sales.{verb}", **kwargs))
        assert isinstance(refused, NotAuthorized | InvalidArgument), (kwargs, refused)
        explained = {"call": f"sales.{verb}", "kwargs": kwargs}
        refused = await failure_of(db.call_as(CLERK, "explain", explained))
        assert isinstance(refused, NotAuthorized | InvalidArgument), (kwargs, refused)
    measured = {"sales": {"measures": {"x": {"max": column}}}}
    for kwargs in (
        {"embed": measured, "order": ["-sales.x"]},
        {"embed": measured, "where": {"sales.x": {"is": "not null"}}},
        {"embed": {"sales": {"measures": {"n": {"count": "*", "where": {column: {"is": "not null"}}}}}},
         "order": ["sales.n"]},
        {"where": {"sales": {column: {"is": "not null"}}}},
    ):  # fmt: skip
        refused = await failure_of(db.call_as(CLERK, "shops.find", **kwargs))
        assert isinstance(refused, NotAuthorized | InvalidArgument), (kwargs, refused)


@pytest.mark.parametrize("column", ["wage", "keyword"])
@pytest_twisted.ensureDeferred
async def test_hidden_or_ungranted_column_of_a_related_row_is_refused_in_each_form(
    db: DirectCaller, column: str
) -> None:
    for kwargs in (
        {"order": [f"shop.{column}"]},
        {"order": [{"by": f"shop.{column}", "rank": "x"}]},
        {"order": [{"by": f"shop.{column}", "near": "1"}]},
        {"select": [f"shop.{column}"]},
        {"where": {f"shop.{column}": {"is": "not null"}}},
        {"where": {"shop": {"id": {"lt": {"$column": column}}}}},
        {"measures": {"x": {"max": f"shop.{column}"}}},
    ):
        refused = await failure_of(db.call_as(CLERK, "sales.find", **kwargs))
        assert isinstance(refused, NotAuthorized | InvalidArgument), (kwargs, refused)


@pytest_twisted.ensureDeferred
async def test_page_token_of_another_caller_shows_only_own_rows(db: DirectCaller) -> None:
    """The page continues after the token's keys, in the rows that its caller may see."""
    other = caller("clerk", "p0")
    query: dict[str, Any] = {"select": ["id"], "order": ["-amount"], "limit": 4}
    theirs = await db.call_as(other, "sales.find", **query)
    every = await db.call_as(CLERK, "sales.find", **{**query, "limit": 100})
    mine = {row["id"] for row in every["rows"]}
    after = await db.call_as(CLERK, "sales.find", **query, after=theirs["next"])
    assert after["rows"]
    back = await db.call_as(CLERK, "sales.find", **query, before=after["prev"])
    assert {row["id"] for row in (*after["rows"], *back["rows"])} <= mine
