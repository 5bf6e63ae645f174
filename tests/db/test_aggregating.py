"""
Aggregates through the dispatcher, compared with the results of SQL.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import InvalidArgument, TooLarge
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN euro AS numeric(10,2);
CREATE TABLE people (id int PRIMARY KEY, name text, boss int REFERENCES people);
INSERT INTO people VALUES (1, 'Ada', NULL), (2, 'Bob', 1), (3, 'Cyd', 2);
CREATE TABLE sales (
    id int PRIMARY KEY, seller int CONSTRAINT sold REFERENCES people, amount int, big bigint,
    price euro, weight real, paid boolean, mood mood, day date, took interval, code uuid, data bytea,
    tags text[], doc jsonb, raw json, spot point, secret text, "n%""x" int);
COMMENT ON COLUMN sales.secret IS '@hidden';
INSERT INTO sales SELECT i, nullif(i % 4, 0), nullif(i % 7, 0), i * 1000000000000, i * 1.25, i / 2.0,
    CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END, (ARRAY['sad','ok'])[1 + i % 2]::mood,
    '2026-01-01'::date + i % 5, i * '1h'::interval, gen_random_uuid(), decode('0' || i % 9, 'hex'),
    ARRAY['t' || i % 2], jsonb_build_object('k', 'k' || i % 3, 'n', i), json_build_object('k', i % 2),
    point(i, i), 'secret', i FROM generate_series(1, 40) i;
CREATE FUNCTION sold(lowest int) RETURNS SETOF sales STABLE LANGUAGE sql
    AS 'SELECT * FROM sales WHERE amount >= lowest';
CREATE VIEW many AS SELECT generate_series(1, 5001) AS n;
CREATE FUNCTION many() RETURNS SETOF many STABLE LANGUAGE sql AS 'SELECT * FROM many';
CREATE VIEW paid AS SELECT seller, amount FROM sales WHERE paid;
"""


pytestmark = pytest.mark.serving(max_rows=30, max_bytes=20_000)


MEASURES: list[tuple[dict[str, Any], str]] = [
    ({"count": "*"}, "count(*)"),
    ({"count": "amount"}, "count(amount)"),
    ({"count": "seller", "distinct": True}, "count(DISTINCT seller)"),
    ({"count": "raw->>k", "distinct": True}, "count(DISTINCT raw->>'k')"),
    ({"count": "raw", "distinct": True}, "count(DISTINCT raw::jsonb)"),
    ({"sum": "amount"}, "sum(amount)"),
    ({"sum": "big"}, "sum(big)::text"),
    ({"sum": "price"}, "sum(price)::text"),
    ({"sum": "weight"}, "sum(weight)"),
    ({"sum": "amount", "distinct": True}, "sum(DISTINCT amount)"),
    ({"sum": "doc->n::int"}, "sum((doc->'n')::int)"),
    ({"sum": "amount", "cast": "text"}, "sum(amount)::text"),
    ({"sum": '"n%""x"'}, 'sum("n%""x")'),
    ({"avg": "amount"}, "avg(amount)::text"),
    ({"avg": "weight"}, "avg(weight)"),
    ({"avg": "amount", "cast": "int"}, "avg(amount)::int"),
    ({"min": "day"}, "min(day)::text"),
    ({"max": "price"}, "max(price)::text"),
    ({"max": "mood"}, "max(mood)::text"),
    ({"max": "mood::text"}, "max(mood::text)"),
    ({"min": "doc->>k"}, "min(doc->>'k')"),
    ({"max": "tags"}, "max(tags)"),
    ({"bool_and": "paid"}, "bool_and(paid)"),
    ({"bool_or": "paid", "where": {"amount": {"gt": 3}}}, "bool_or(paid) FILTER (WHERE amount > 3)"),
    ({"array_agg": "mood", "distinct": True}, "array_agg(DISTINCT mood)::text[]"),
    ({"array_agg": "doc->>k", "distinct": True}, "array_agg(DISTINCT doc->>'k')"),
    ({"string_agg": "mood::text", "distinct": True}, "string_agg(DISTINCT mood::text, ',')"),
    (
        {"string_agg": "doc->>k", "distinct": True, "separator": "%s'"},
        "string_agg(DISTINCT doc->>'k', '%s''')",
    ),
    ({"count": "*", "where": {"sold.name": "Ada"}}, "count(*) FILTER (WHERE seller = 1)"),
    ({"count": "*", "where": {"amount": None}}, "count(*) FILTER (WHERE amount IS NULL)"),
    (
        {"count": "sold.name", "distinct": True},
        "count(DISTINCT (SELECT name FROM people p WHERE p.id = seller))",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("measure", "sql"), MEASURES)
@pytest_twisted.ensureDeferred
async def test_measure_over_any_groups_equals_its_sql(
    db: DirectCaller, dsn: str, measure: dict[str, Any], sql: str
) -> None:
    """A measure equals the aggregate in SQL over all rows, over groups, and over no rows."""
    for condition, where in (("true", None), ("amount > 2", {"amount": {"gt": 2}}), ("false", {"id": 0})):  # fmt: skip
        rows = execute(dsn, f"SELECT {sql} FROM sales WHERE {condition}")
        assert await db.call("sales.aggregate", {"m": measure}, where=where) == [{"m": rows[0][0]}]
        rows = execute(
            dsn, f"SELECT paid, {sql} FROM sales WHERE {condition} GROUP BY 1 ORDER BY 1"
        )
        found = await db.call("sales.aggregate", {"m": measure}, where=where, group=["paid"])
        assert found == [{"paid": paid, "m": value} for paid, value in rows]


GROUPS: list[tuple[Any, str]] = [
    ("seller", "seller"),
    (["doc->>k", "paid"], "doc->>'k', paid"),
    (["d:day", "m:amount::text"], "day::text, amount::text"),
    (["sold.name"], "(SELECT name FROM people p WHERE p.id = seller)"),
    (
        ["sold.boss.name", "paid"],
        "(SELECT b.name FROM people p JOIN people b ON b.id = p.boss WHERE p.id = seller), paid",
    ),
    (["raw"], "raw::jsonb"),
    (["tags", "doc->k"], "tags, doc->'k'"),
    ([{"column": "amount", "as": "big", "cast": "bigint"}], "amount::bigint"),
    (['"n%""x"'], '"n%""x"'),
]


@pytest.mark.parametrize(("group", "sql"), GROUPS)
@pytest_twisted.ensureDeferred
async def test_groups_and_their_order_equal_those_of_sql(
    db: DirectCaller, dsn: str, group: Any, sql: str
) -> None:
    """Groups equal those of SQL, and the same call returns them in the same order."""
    width = 1 if isinstance(group, str) else len(group)
    places = ", ".join(str(at) for at in range(1, width + 1))
    rows = execute(dsn, f"SELECT {sql}, count(*) FROM sales GROUP BY {places} ORDER BY {places}")
    found = await db.call("sales.aggregate", {"n": {"count": "*"}}, group=group, form="lists")
    assert [tuple(row) for row in found["rows"]] == rows
    assert found["columns"][-1] == "n"


COUNT = {"n": {"count": "*"}}
TOTALS = {**COUNT, "total": {"sum": "amount"}, "mean": {"avg": "amount"}}
QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"order": ["-n"]}, "ORDER BY n DESC, seller"),
    ({"order": ["-total", "n"]}, "ORDER BY total DESC, n, seller"),
    ({"order": [{"by": "seller", "nulls": "first"}]}, "ORDER BY seller NULLS FIRST"),
    ({"order": ["-seller"], "limit": 2, "offset": 1}, "ORDER BY seller DESC LIMIT 2 OFFSET 1"),
    ({"limit": 0}, "LIMIT 0"),
    ({"having": {"total": {"gt": 20}}}, "HAVING sum(amount) > 20 ORDER BY seller"),
    ({"having": {"mean": {"lte": "3.4"}}}, "HAVING avg(amount) <= 3.4 ORDER BY seller"),
    (
        {"having": {"or": [{"n": 0}, {"not": {"total": {"between": [1, 30]}}}]}},
        "HAVING NOT sum(amount) BETWEEN 1 AND 30 ORDER BY seller",
    ),
    ({"having": {"seller": None}}, "HAVING seller IS NULL"),
    ({"having": {"n": [10, 11]}, "order": "-seller"}, "HAVING count(*) IN (10, 11) ORDER BY 1 DESC"),
    ({"having": {"n": {"gt": {"any": [10, 99]}}}}, "HAVING count(*) > 10 ORDER BY seller"),
    ({"where": {"sold.name": {"like": "%b"}}}, "WHERE"),
]  # fmt: skip


@pytest.mark.parametrize(("kwargs", "sql"), QUESTIONS)
@pytest_twisted.ensureDeferred
async def test_aggregate_with_filter_and_order_equals_its_sql(
    db: DirectCaller, dsn: str, kwargs: dict[str, Any], sql: str
) -> None:
    """The groups and their order are those of SQL."""
    where, rest = ("WHERE seller = 2", "") if sql == "WHERE" else ("", sql)
    rows = execute(
        dsn,
        "SELECT seller, count(*) AS n, sum(amount) AS total, avg(amount)::text AS mean"
        f" FROM sales {where} GROUP BY seller {rest}",
    )
    found = await db.call("sales.aggregate", TOTALS, group=["seller"], form="lists", **kwargs)
    assert [tuple(row) for row in found["rows"]] == rows


@pytest_twisted.ensureDeferred
async def test_string_agg_of_bytes_joins_by_the_bytes_of_the_separator(db: DirectCaller) -> None:
    """The separator of bytea values is its UTF-8 bytes."""
    measure = {"string_agg": "data", "distinct": True, "separator": "é"}
    measures = {"m": measure, "text": {**measure, "cast": "text"}}
    found = await db.call("sales.aggregate", measures, where={"id": [1, 2]})
    assert found == [{"m": b"\x01\xc3\xa9\x02", "text": "\\x01c3a902"}]


@pytest_twisted.ensureDeferred
async def test_aggregate_of_a_view_gives_its_distinct_groups(db: DirectCaller) -> None:
    """Any relation can be aggregated, and groups without measures are its distinct rows."""
    found = await db.call("paid.aggregate", {}, group=["seller"])
    assert found == [{"seller": 1}, {"seller": 2}, {"seller": 3}, {"seller": None}]
    assert await db.call("paid.aggregate", measures=COUNT, having={"n": 0}) == []


@pytest_twisted.ensureDeferred
async def test_aggregate_over_the_limit_is_too_large(db: DirectCaller) -> None:
    """The limit is on the size of the result in bytes."""
    refused = await failure_of(
        db.call("sales.aggregate", {str(at): {"array_agg": "doc"} for at in range(100)})
    )
    assert isinstance(refused, TooLarge)


@pytest.mark.parametrize("name", ["many.aggregate", "fn.many.aggregate"])
@pytest_twisted.ensureDeferred
async def test_groups_beyond_a_page_are_all_returned(name: str, dsn: str) -> None:
    """All groups are returned, whatever the limit of rows per page; too many are refused, or streamed."""
    async with serving(dsn, max_rows=30) as db:
        groups = {"measures": {}, "group": ["n"]}
        refused = await failure_of(db.call(name, **groups))
        assert isinstance(refused, TooLarge)
        assert "more than 5000 groups" in str(refused)
        some = await db.call(name, **groups, limit=5000, offset=1, form="lists")
        assert some["rows"] == [[n] for n in range(2, 5002)]
        assert len(await db.call(name, **groups, where={"n": {"lte": 5000}})) == 5000
        assert await db.call(name, **groups, limit=2) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("measures", "kwargs", "path"),
    [
        ({"m": {"sum": "mood"}}, {}, "measures.m.sum"),
        ({"n": {"count": "*"}, "m": {"bool_and": "amount"}}, {}, "measures.m.bool_and"),
        ({"m": {"string_agg": "amount"}}, {}, "measures.m.string_agg"),
        ({"m": {"min": "spot"}}, {}, "measures.m.min"),
        ({"m": {"avg": "price", "cast": "uuid"}}, {}, "measures.m.cast"),
        ({"m": {"count": "spot", "distinct": True}}, {}, "measures.m.count"),
        ({"m": {"sum": "secret"}}, {}, "measures.m.sum"),
        (COUNT, {"group": ["secret"]}, "group.0"),
        (COUNT, {"group": ["spot"]}, "group.0"),
        (COUNT, {"having": {"n": "many"}}, "having.n"),
        (COUNT, {"having": {"secret": "x"}}, "having.secret"),
        (COUNT, {"where": {"secret": "x"}}, "where.secret"),
        (COUNT, {"group": ["sold.nope"]}, "group.0"),
        ({"m": {"count": "*", "where": {"amount": "x"}}}, {}, "measures.m.where.amount"),
        ({"m": {"count": "sales.id"}}, {}, "measures.m.count"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_measure_that_does_not_fit_its_type_is_refused(
    db: DirectCaller, measures: dict[str, Any], kwargs: dict[str, Any], path: str
) -> None:
    """Operations that a type lacks and hidden columns are refused with their path."""
    refused = await failure_of(db.call("sales.aggregate", measures, **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest.mark.parametrize(
    ("name", "kwargs", "path"),
    [
        ("people.find", {"embed": {"sales": {"measures": {"m": {"sum": "mood"}}}}},
         "embed.sales.measures.m.sum"),
        ("people.get", {"key": 1, "embed": {"sales": {"embed": {"sold": {
            "embed": {"sales": {"measures": {"m": {"avg": "price", "cast": "uuid"}}}}}}}}},
         "embed.sales.embed.sold.embed.sales.measures.m.cast"),
        ("people.update", {"key": 1, "changes": {"name": "Ada"},
                           "embed": {"sales": {"measures": {"m": {"bool_or": "id"}}}}},
         "embed.sales.measures.m.bool_or"),
        ("fn.sold.aggregate", {"args": {"lowest": 1}, "measures": {"%s": {"sum": "mood"}}},
         "measures.%s.sum"),
        ("sales.find", {"select": ["id", "x:amount::uuid"], "where": {"mood": "ok"}}, "select.1"),
        ("sales.aggregate", {"measures": {"n": {"count": "*"}}, "group": ["amount::uuid"]},
         "group.0"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_function_that_a_type_lacks_is_refused_with_its_path(
    db: DirectCaller, name: str, kwargs: dict[str, Any], path: str
) -> None:
    """The error for a function or cast that a type lacks has a path, wherever in the call it is."""
    refused = await failure_of(db.call(name, **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path
    assert refused.details["column"] in {"mood", "price", "id", "amount"}
    assert ("hint" in refused.details) == (path.endswith(("sum", "bool_or")))


@pytest.mark.parametrize(
    ("kwargs", "name", "hint"),
    [
        ({"having": {"m": 1}}, "m", "one of mood, total"),
        ({"having": {"totl": 1}}, "totl", 'did you mean "total"?'),
        ({"order": ["amount"]}, "amount", "one of mood, total"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unknown_name_in_having_or_order_is_a_measure_or_group(
    db: DirectCaller, kwargs: dict[str, Any], name: str, hint: str
) -> None:
    measures = {"total": {"count": "*"}}
    refused = await failure_of(db.call("sales.aggregate", measures, group=["mood"], **kwargs))
    assert refused.message == f'no measure or group "{name}" in the aggregate of "sales"'
    assert refused.details["hint"] == hint


@pytest_twisted.ensureDeferred
async def test_sql_in_the_names_of_an_aggregate_is_not_run(db: DirectCaller, dsn: str) -> None:
    """SQL in place of a name, function or separator is quoted or refused."""
    evil = 'n"; DROP TABLE sales; --'
    good = {"string_agg": "mood::text", "distinct": True}
    (found,) = await db.call("sales.aggregate", {evil: {**good, "separator": "'; DROP"}})
    assert found == {evil: "ok'; DROPsad"}
    for measures, kwargs in (
        ({"m": {evil: "id"}}, {}),
        ({"m": {"sum": evil}}, {}),
        ({"m": {"sum": "id", "cast": evil}}, {}),
        (COUNT, {"group": [evil]}),
        (COUNT, {"having": {evil: 1}}),
        (COUNT, {"order": [evil]}),
        ({"a\0": {"count": "*"}}, {}),
        ({"\ud800": {"count": "*"}}, {}),
    ):
        refused = await failure_of(db.call("sales.aggregate", measures, **kwargs))
        assert isinstance(refused, InvalidArgument), refused
    assert execute(dsn, "SELECT count(*) FROM sales") == [(40,)]


@pytest_twisted.ensureDeferred
async def test_embed_with_measures_has_those_of_the_related_rows(
    db: DirectCaller, dsn: str
) -> None:
    """An embed may have measures of the related rows, with or without groups."""
    measures = {"n": {"count": "*"}, "worth": {"sum": "price"}, "mean": {"avg": "amount"}}
    found = await db.call("people.find", select=["id"], embed={"sales": {"measures": measures}})
    rows = execute(
        dsn,
        "SELECT p.id, count(s), sum(s.price)::text, avg(s.amount)::text FROM people p"
        " LEFT JOIN sales s ON s.seller = p.id GROUP BY 1 ORDER BY 1",
    )
    assert found["rows"] == [
        {"id": id, "sales": [{"n": n, "worth": worth, "mean": mean}]} for id, n, worth, mean in rows
    ]
    options = {
        "measures": {"n": {"count": "*"}, "days": {"array_agg": "day", "distinct": True}},
        "group": ["doc->>k", "boss:sold.boss.name"],
        "where": {"amount": {"gt": 1}},
        "order": ["-doc->>k"],
        "limit": 2,
    }
    row = await db.call("people.get", 2, select=["name"], embed={"sales": options})
    rows = execute(
        dsn,
        "SELECT doc->>'k', 'Ada', count(*), array_agg(DISTINCT day)::text[] FROM sales"
        " WHERE seller = 2 AND amount > 1 GROUP BY 1 ORDER BY 1 DESC LIMIT 2",
    )
    assert row["sales"] == [
        dict(zip(("k", "boss", "n", "days"), each, strict=True)) for each in rows
    ]


@pytest_twisted.ensureDeferred
async def test_embed_with_measures_is_accepted_wherever_an_embed_is(db: DirectCaller) -> None:
    """Besides rows of the same relation, spread, nested deeper, for one row, for no row."""
    row = await db.call(
        "people.get",
        3,
        select=["id"],
        embed={
            "sales": {"select": ["id"], "limit": 1},
            "sums": {"relation": "sales", "measures": COUNT, "spread": True},
            "days": {
                "relation": "sales",
                "measures": {"each": {"count": "*"}},
                "group": ["seller"],
                "spread": True,
            },
            "boss": {"select": ["name"], "embed": {"sales": {"measures": COUNT}}},
        },
    )
    assert row == {
        "id": 3,
        "sales": [{"id": 3}],
        "n": 10,
        "seller": [3],
        "each": [10],
        "boss": {"name": "Bob", "sales": [{"n": 10}]},
    }
    embed = {"seller": {"measures": {"name": {"max": "name"}}, "group": ["boss"]}}
    found = await db.call("sales.find", select=["id"], embed=embed, where={"id": [4, 5]})
    assert found["rows"] == [
        {"id": 4, "seller": None},
        {"id": 5, "seller": {"boss": None, "name": "Ada"}},
    ]
    many = {"people": {"direction": "many", "measures": COUNT, "group": ["name"]}}
    assert (await db.call("people.get", 3, select=[], embed=many)) == {"people": []}
