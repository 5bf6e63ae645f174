"""
Rows sorted and filtered by measures of their related rows, compared with plain SQL.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import InvalidArgument
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_roles import caller
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE ms_clerk;
CREATE TABLE regions (id int PRIMARY KEY, name text);
CREATE TABLE shops (id int PRIMARY KEY, name text, region int REFERENCES regions, goal int);
CREATE TABLE sales (id int PRIMARY KEY, shop int REFERENCES shops, amount numeric, at date, secret int,
    doc jsonb);
COMMENT ON COLUMN sales.secret IS '@hidden';
CREATE FUNCTION above(low numeric) RETURNS SETOF sales STABLE LANGUAGE sql
    AS 'SELECT * FROM sales WHERE amount > low';
CREATE FUNCTION wrote() RETURNS SETOF sales LANGUAGE sql AS 'SELECT * FROM sales';
CREATE FUNCTION lucky(shops) RETURNS boolean LANGUAGE sql AS 'SELECT random() < 0.5';
CREATE TABLE tags (id int PRIMARY KEY, name text);
CREATE TABLE tagged (shop int REFERENCES shops, tag int REFERENCES tags, PRIMARY KEY (shop, tag));
INSERT INTO regions SELECT i, 'R' || i FROM generate_series(1, 3) i;
INSERT INTO shops SELECT i, 'S' || i, nullif(i % 4, 0), i % 3 FROM generate_series(1, 12) i;
INSERT INTO sales SELECT i, i % 11 + 1, i % 7 * 1.5, '2026-01-01'::date + i % 5, i,
    jsonb_build_object('n', i % 3) FROM generate_series(1, 40) i;
INSERT INTO tags SELECT i, 't' || i FROM generate_series(1, 4) i;
INSERT INTO tagged SELECT i, j FROM generate_series(1, 12) i, generate_series(1, 4) j WHERE (i + j) % 3 = 0;
ALTER TABLE sales ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON sales TO ms_clerk USING (id < 15);
GRANT SELECT ON shops TO ms_clerk; GRANT SELECT (id, shop, amount) ON sales TO ms_clerk;
"""
CLERK = caller("clerk")
MEASURES = {
    "n": {"count": "*"},
    "total": {"sum": "amount"},
    "last": {"max": "at"},
    "few": {"count": "*", "where": {"amount": {"gt": 3}}},
    "docs": {"array_agg": "id"},
    "text": {"sum": "amount", "cast": "text"},
}
SALES = {"sales": {"measures": MEASURES}}
RECENT = {"sales": {"measures": MEASURES, "where": {"at": {"gt": "2026-01-02"}}}}
TAGS = {
    "t": {
        "relation": "tags",
        "via": "tagged",
        "measures": {"n": {"count": "*"}, "top": {"max": "name"}},
    }
}
REGION = {"region": {"embed": {"shops": {"measures": {"n": {"count": "*"}}}}}}


def of(what: str, more: str = "") -> str:
    """Return the SQL of an aggregate of the sales of a shop."""
    return f"(SELECT {what} FROM sales s WHERE s.shop = shops.id{more})"


N, TOTAL = of("count(*)"), of("sum(amount)")
LATE = " AND at > '2026-01-02'"
TAGGED = "(SELECT {} FROM tags JOIN tagged ON tag = tags.id WHERE shop = shops.id)"
ORDERS: list[tuple[dict[str, Any], list[Any], str]] = [
    (SALES, ["-sales.n"], f"{N} DESC"),
    (SALES, ["sales.total", "-sales.n"], f"{TOTAL}, {N} DESC"),
    (SALES, [{"by": "sales.total", "desc": True, "nulls": "last"}], f"{TOTAL} DESC NULLS LAST"),
    (SALES, ["sales.few", "name"], f"{of('count(*) FILTER (WHERE amount > 3)')}, name"),
    (SALES, ["-sales.last"], f"{of('max(at)')} DESC"),
    (SALES, ["sales.n::text"], f"{N}::text"),
    (RECENT, ["-sales.n"], f"{of('count(*)', LATE)} DESC"),
    (TAGS, ["-t.n", "-t.top"], f"{TAGGED.format('count(*)')} DESC, {TAGGED.format('max(name)')} DESC"),
    ({"sales": {**SALES["sales"], "spread": True}}, ["-sales.n"], f"{N} DESC"),
    (REGION, ["-region.shops.n"],
     "(SELECT count(*) FROM shops s JOIN regions r ON s.region = r.id WHERE r.id = shops.region)"
     " * CASE WHEN region IS NULL THEN NULL ELSE 1 END DESC"),
]  # fmt: skip


@pytest.mark.parametrize(("embed", "order", "by"), ORDERS)
@pytest_twisted.ensureDeferred
async def test_order_by_a_measure_equals_its_sql(
    db: DirectCaller, dsn: str, embed: Any, order: list[Any], by: str
) -> None:
    """Rows come in the order of their SQL, at once, page by page and as a stream."""
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM shops ORDER BY {by}, id")]
    query: dict[str, Any] = {"select": ["id"], "embed": embed, "order": order}
    found = await db.call("shops.find", **query)
    assert [row["id"] for row in found["rows"]] == expected
    paged: list[int] = []
    page: dict[str, Any] = {"next": None}
    while not paged or page["next"]:
        page = await db.call("shops.find", **query, limit=5, after=page["next"])
        paged += [row["id"] for row in page["rows"]]
    assert paged == expected
    back = await db.call("shops.find", **query, limit=5, before=page["prev"])
    assert [row["id"] for row in back["rows"]] == expected[5:10]


FILTERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (SALES, {"sales.n": {"gt": 3}}, f"{N} > 3"),
    (SALES, {"sales.n": [0, 4]}, f"{N} IN (0, 4)"),
    (SALES, {"sales.n": 0}, f"{N} = 0"),
    (SALES, {"sales.total": None}, f"{TOTAL} IS NULL"),
    (SALES, {"sales.total": {"is": "not null"}}, f"{TOTAL} IS NOT NULL"),
    (SALES, {"sales.total": {"between": [5, "12.5"]}}, f"{TOTAL} BETWEEN 5 AND 12.5"),
    (SALES, {"sales": {"n": {"gt": 2}, "total": {"gt": 9}}}, f"{N} > 2 AND {TOTAL} > 9"),
    (SALES, {"sales": {"or": [{"n": 0}, {"total": {"lt": 8}}]}}, f"{N} = 0 OR {TOTAL} < 8"),
    (SALES, {"not": {"sales.n": {"gt": 3}}}, f"NOT {N} > 3"),
    (SALES, {"sales.few": {"lt": {"$column": "n"}}}, f"{of('count(*) FILTER (WHERE amount > 3)')} < {N}"),
    (SALES, {"sales.last::text": {"ends": "05"}}, f"{of('max(at)')} = '2026-01-05'"),
    (SALES, {"sales.docs": {"length": {"gt": 3}, "cs": [11]}}, f"{N} > 3 AND {of('array_agg(id)')} @> '{{11}}'"),
    (SALES, {"sales.docs->0": 11}, f"to_jsonb({of('array_agg(id)')})->0 = '11'"),
    (SALES, {"sales.amount": {"gt": 7}}, f"EXISTS {of('', ' AND amount > 7')}"),
    (SALES, {"sales": None}, f"NOT EXISTS {of('')}"),
    (RECENT, {"sales.n": {"lte": 1}}, f"{of('count(*)', LATE)} <= 1"),
    (RECENT, {"or": [{"sales.n": 2}, {"sales.total": {"gt": 9}}]},
     f"{of('count(*)', LATE)} = 2 OR {of('sum(amount)', LATE)} > 9"),
    (TAGS, {"t.n": 2, "t.top": "t4"}, f"{TAGGED.format('count(*)')} = 2 AND {TAGGED.format('max(name)')} = 't4'"),
    (REGION, {"region.shops.n": {"gte": 3}}, "region IS NOT NULL"),
    ({**SALES, **TAGS}, {"sales.n": {"gt": 3}, "t.n": 1}, f"{N} > 3 AND {TAGGED.format('count(*)')} = 1"),
]  # fmt: skip


@pytest.mark.parametrize(("embed", "where", "condition"), FILTERS)
@pytest_twisted.ensureDeferred
async def test_filter_by_a_measure_matches_the_rows_of_its_sql(
    db: DirectCaller, dsn: str, embed: Any, where: Any, condition: str
) -> None:
    """The same rows match in reads and writes."""
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM shops WHERE {condition} ORDER BY id")]
    query: dict[str, Any] = {"where": where, "embed": embed, "select": ["id"]}
    found = await db.call("shops.find", **query, count="exact")
    assert [row["id"] for row in found["rows"]] == expected
    assert found["count"] == len(expected)
    written = await db.call("shops.update", **query, changes={"goal": 1}, all=False)
    assert sorted(row["id"] for row in written["rows"]) == expected
    inside = {"shops": {"select": ["id"], "where": where, "embed": embed, "order": ["id"]}}
    regions = await db.call("regions.find", select=[], embed=inside)
    found_inside = sorted(each["id"] for row in regions["rows"] for each in row["shops"])
    served = {id for (id,) in execute(dsn, "SELECT id FROM shops WHERE region IS NOT NULL")}
    assert found_inside == [id for id in expected if id in served]


@pytest_twisted.ensureDeferred
async def test_measure_in_select_is_returned_with_the_row(db: DirectCaller, dsn: str) -> None:
    found = await db.call(
        "shops.find", select=["id", "n:sales.n", "sum:sales.total::text"], embed=SALES, order=["id"]
    )
    expected = execute(dsn, f"SELECT id, {N}, {TOTAL}::text FROM shops ORDER BY id")
    assert [(row["id"], row["n"], row["sum"]) for row in found["rows"]] == expected
    rows = await db.call("regions.find", select=["id"], order=["-shops.n"], embed={
        "shops": {"measures": {"n": {"count": "*", "where": {"goal": 1}}}}})  # fmt: skip
    assert len(rows["rows"]) == 3


@pytest.mark.parametrize("order", [["-sales.n"], ["name", "sales.n"], ["-sales.n", "-goal"]])
@pytest_twisted.ensureDeferred
async def test_pages_sorted_by_a_selected_measure_have_each_row_once(
    db: DirectCaller, order: list[str]
) -> None:
    query: dict[str, Any] = {"select": ["name", "n:sales.n"], "embed": SALES, "order": order}
    expected = (await db.call("shops.find", **query))["rows"]
    paged: list[Any] = []
    page: dict[str, Any] = {"next": None}
    while not paged or (page["next"] and len(paged) < len(expected)):
        page = await db.call("shops.find", **query, limit=5, after=page["next"])
        paged += page["rows"]
    assert paged == expected
    back = await db.call("shops.find", **query, limit=5, before=page["prev"])
    assert back["rows"] == expected[5:10]


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"order": ["-sales.nope"], "embed": SALES}, "order.0"),
        ({"order": ["-sales.n"]}, "order.0"),
        ({"order": ["-sales.n"], "embed": {"sales": {"measures": {"n": {"count": "*"}}, "group": ["at"]}}},
         "order.0"),
        ({"order": ["sales.secret"], "embed": SALES}, "order.0"),
        ({"where": {"sales.n": "x"}, "embed": SALES}, "where.sales.n"),
        ({"where": {"sales": {"n": 1, "amount": 2}}, "embed": SALES}, "where.sales.amount"),
        ({"where": {"sales.nope": 1}, "embed": SALES}, "where.sales.nope"),
        ({"where": {"sales.n": 1}}, "where.sales.n"),
        ({"order": ["sales.s"], "embed": {"sales": {"measures": {"s": {"sum": "secret"}}}}},
         "embed.sales.measures.s.sum"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_invalid_measure_is_refused_with_its_path(
    db: DirectCaller, kwargs: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call("shops.find", **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest.mark.serving(roles=Roles({"clerk": "ms_clerk"}))
@pytest_twisted.ensureDeferred
async def test_measure_includes_only_rows_that_the_role_may_read(
    db: DirectCaller, dsn: str
) -> None:
    """The order does not depend on hidden rows."""
    few = of("count(*)", " AND id < 15")
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM shops ORDER BY {few} DESC, id")]
    embed = {"sales": {"measures": {"n": {"count": "*"}}}}
    found = await db.call_as(CLERK, "shops.find", select=["id"], embed=embed, order=["-sales.n"])
    assert [row["id"] for row in found["rows"]] == expected


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"stddev": "amount"}, "stddev(amount)"),
    ({"stddev": "id"}, "stddev(id)"),
    ({"variance": "amount", "where": {"id": {"gt": 9}}}, "variance(amount) FILTER (WHERE id > 9)"),
    ({"variance": "doc->>n::float8"}, "variance((doc->>'n')::float8)"),
    ({"stddev": "amount", "distinct": True}, "stddev(DISTINCT amount)"),
    ({"stddev": "amount", "cast": "int"}, "stddev(amount)::int"),
    ({"percentile": "amount", "fraction": 0.5}, "percentile_cont(0.5) WITHIN GROUP (ORDER BY amount)"),
    ({"percentile": "id", "fraction": 1}, "percentile_cont(1) WITHIN GROUP (ORDER BY id)"),
    ({"percentile": "amount", "fraction": 0.25, "discrete": True},
     "percentile_disc(0.25) WITHIN GROUP (ORDER BY amount)"),
    ({"percentile": "at", "fraction": 0.9, "discrete": True}, "percentile_disc(0.9) WITHIN GROUP (ORDER BY at)"),
    ({"percentile": "amount", "fraction": 0, "where": {"shop": 2}},
     "percentile_cont(0) WITHIN GROUP (ORDER BY amount) FILTER (WHERE shop = 2)"),
    ({"mode": "amount"}, "mode() WITHIN GROUP (ORDER BY amount)"),
    ({"mode": "doc->n"}, "mode() WITHIN GROUP (ORDER BY doc->'n')"),
    ({"mode": "shop.name"}, "mode() WITHIN GROUP (ORDER BY (SELECT name FROM shops WHERE shops.id = shop))"),
    ({"array_agg": "id", "order": ["-amount", "id"]}, "array_agg(id ORDER BY amount DESC, id)"),
    ({"array_agg": "id", "order": "-id", "where": {"amount": {"gt": 6}}},
     "array_agg(id ORDER BY id DESC) FILTER (WHERE amount > 6)"),
    ({"array_agg": "amount", "distinct": True, "order": ["-amount"]},
     "array_agg(DISTINCT amount ORDER BY amount DESC)"),
    ({"array_agg": "doc->>n::int", "distinct": True, "order": ["-doc->>n::int"]},
     "array_agg(DISTINCT (doc->>'n')::int ORDER BY (doc->>'n')::int DESC)"),
    ({"string_agg": "id::text", "order": [{"by": "doc->>n", "nulls": "first"}, "-id"], "separator": "; "},
     "string_agg(id::text, '; ' ORDER BY doc->>'n' NULLS FIRST, id DESC)"),
    ({"string_agg": "shop.name", "order": ["-shop.name", "id"]},
     "string_agg((SELECT name FROM shops WHERE shops.id = shop), ',' ORDER BY"
     " (SELECT name FROM shops WHERE shops.id = shop) DESC, id)"),
]  # fmt: skip


@pytest.mark.parametrize(("measure", "sql"), VALUES)
@pytest_twisted.ensureDeferred
async def test_measure_equals_its_sql(
    db: DirectCaller, dsn: str, measure: dict[str, Any], sql: str
) -> None:
    """Of all rows, of groups, and of the related rows of each."""
    ((text,),) = execute(dsn, f"SELECT to_jsonb({sql})::text FROM sales")
    (found,) = await db.call("sales.aggregate", {"m": measure})
    assert alike(found["m"], json.loads(text)), text
    groups = await db.call("sales.aggregate", {"m": measure}, group=["shop"])
    expected = execute(dsn, f"SELECT shop, to_jsonb({sql})::text FROM sales GROUP BY 1 ORDER BY 1")
    assert [each["shop"] for each in groups] == [shop for shop, _ in expected]
    for each, (_, text) in zip(groups, expected, strict=True):
        assert alike(each["m"], None if text is None else json.loads(text)), (each, text)
    embed = {"sales": {"measures": {"m": measure}, "spread": True}}
    found = await db.call("shops.find", select=["id"], embed=embed)
    by_shop = {each["shop"]: each["m"] for each in groups}
    for row in found["rows"]:
        assert row["m"] == by_shop.get(row["id"]) or row["id"] not in by_shop


def alike(found: Any, expected: Any) -> bool:
    """Return whether two values are equal; compare numeric strings as numbers."""
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(expected, int | float) and not isinstance(expected, bool):
        return found is not None and abs(float(found) - expected) < 1e-9
    return bool(found == expected)


@pytest.mark.parametrize(
    ("measure", "path"),
    [
        ({"percentile": "amount"}, "fraction"),
        ({"percentile": "amount", "fraction": 2}, "fraction"),
        ({"percentile": "amount", "fraction": -0.1}, "fraction"),
        ({"percentile": "amount", "fraction": float("nan")}, "fraction"),
        ({"percentile": "amount", "fraction": True}, "fraction"),
        ({"percentile": "amount", "fraction": "0.5"}, "fraction"),
        ({"percentile": "amount", "fraction": [0.5]}, "fraction"),
        ({"percentile": "at", "fraction": 0.5}, "percentile"),
        ({"percentile": "amount", "fraction": 0.5, "discrete": 1}, "discrete"),
        ({"percentile": "amount", "fraction": 0.5, "distinct": True}, "distinct"),
        ({"percentile": "secret", "fraction": 0.5}, "percentile"),
        ({"mode": "*"}, "mode"),
        ({"mode": "amount", "fraction": 0.5}, "fraction"),
        ({"sum": "amount", "discrete": True}, "discrete"),
        ({"sum": "amount", "order": ["id"]}, "order"),
        ({"stddev": "at"}, "stddev"),
        ({"array_agg": "id", "order": ["secret"]}, "order.0"),
        ({"array_agg": "id", "order": ["nope::text"]}, "order.0"),
        ({"array_agg": "id", "order": [5]}, "order.0"),
        ({"array_agg": "id", "order": ["-id) FROM sales; --"]}, "order.0"),
        ({"array_agg": "id", "distinct": True, "order": ["amount"]}, "order.0"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_measure_without_a_column_is_refused_with_its_path(
    db: DirectCaller, measure: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call("sales.aggregate", {"m": measure}))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == f"measures.m.{path}"


BY_TWO: dict[str, Any] = {
    "n": {"count": "*"},
    "total": {"sum": "amount"},
    "ids": {"array_agg": "id", "order": ["id"]},
}


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({}, "sales"),
        ({"limit": 2, "order": ["-amount"]}, "sales"),
        ({"limit": 0}, "sales"),
        ({"limit": 3, "offset": 7, "count": "exact"}, "sales"),
        ({"where": {"amount": {"gt": 3}}, "limit": 1}, "sales WHERE amount > 3"),
        ({"where": {"id": 99}}, "sales WHERE false"),
        ({"embed": {"shop": {"where": {"name": "S2"}, "inner": True}}},
         "sales WHERE shop IN (SELECT id FROM shops WHERE name = 'S2')"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_totals_of_a_page_include_all_matching_rows(
    db: DirectCaller, dsn: str, query: dict[str, Any], rows: str
) -> None:
    """In each form, on each page, with and without a count."""
    sql = f"SELECT count(*), sum(amount)::text, array_agg(id ORDER BY id) FROM {rows}"
    ((n, total, ids),) = execute(dsn, sql)
    expected = {"n": n, "total": total, "ids": ids}
    query = {"select": ["id"], **query}
    found = await db.call("sales.find", measures=BY_TWO, **query)
    assert found["totals"] == expected
    assert found.get("count", n) == n
    plain = await db.call("sales.find", **query)
    assert {**found, "totals": None} == {**plain, "totals": None}
    assert (await db.call("sales.find", measures=BY_TWO, form="lists", **query))[
        "totals"
    ] == expected
    text = json.loads(await db.call("sales.find", measures=BY_TWO, form="json", **query))
    assert alike([*text["totals"].values()], [n, total and float(total), ids])
    if plain["next"]:
        page = await db.call("sales.find", measures=BY_TWO, **query, after=plain["next"])
        assert page["totals"] == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "path"),
    [
        ("sales.find", {"measures": {"n": {"nope": "id"}}}, "measures.n.nope"),
        ("sales.find", {"measures": {"n": {"sum": "secret"}}}, "measures.n.sum"),
        ("sales.find", {"measures": 5}, "measures"),
        ("sales.find", {"measures": {"n": {"count": "*"}}, "distinct": True}, "measures"),
        ("fn.wrote.find", {"measures": {"n": {"count": "*"}}}, "measures"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_totals_of_nothing_are_refused(
    db: DirectCaller, name: str, kwargs: dict[str, Any], path: str
) -> None:
    refused = await failure_of(db.call(name, **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_totals_of_a_function_include_all_its_rows(db: DirectCaller) -> None:
    found = await db.call("fn.above.find", args={"low": 3}, limit=1, measures=BY_TWO)
    own = await db.call("sales.find", where={"amount": {"gt": 3}}, measures=BY_TWO, limit=1)
    assert found["totals"] == own["totals"]


@pytest_twisted.ensureDeferred
async def test_rows_claimed_in_the_order_of_a_measure_are_the_first(
    db: DirectCaller, dsn: str
) -> None:
    """The claimed rows are locked, and not the related rows."""
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM shops ORDER BY {N} DESC, id LIMIT 3")]
    claimed = await db.call(
        "shops.update",
        where={"id": {"gt": 0}},
        embed=SALES,
        order=["-sales.n", "id"],
        limit=3,
        skip_locked=True,
        changes={"goal": 9},
        select=["id"],
    )
    assert sorted(row["id"] for row in claimed["rows"]) == sorted(expected)


@pytest_twisted.ensureDeferred
async def test_rows_that_match_a_volatile_filter_are_sorted_by_all_their_related_rows(
    db: DirectCaller,
) -> None:
    """The filter is evaluated once for each row, and not again for the measure."""
    query = {"select": ["id", "n:sales.n"], "embed": SALES, "order": ["-sales.n"]}
    every = {row["id"]: row["n"] for row in (await db.call("shops.find", **query))["rows"]}
    for _ in range(10):
        found = (await db.call("shops.find", **query, where={"lucky": True}))["rows"]
        numbers = [every[row["id"]] for row in found]
        assert numbers == sorted(numbers, reverse=True)
