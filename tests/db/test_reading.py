"""
Reads through the dispatcher, compared with the results of SQL.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.errors import (
    InvalidArgument,
    NoSuchProcedure,
    NotFound,
    StatementTimeout,
    TooLarge,
)
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE EXTENSION hstore;
CREATE EXTENSION ltree;
CREATE TABLE shelves (id int PRIMARY KEY, place ltree);
INSERT INTO shelves VALUES (1, 'hall'), (2, 'hall.left'), (3, 'hall.left.top'), (4, 'cellar.left');
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE things (
    id int PRIMARY KEY, name text NOT NULL UNIQUE, size int, price numeric(8,2), open boolean,
    mood mood, tags text[], doc jsonb, raw json, span int4range, seen timestamptz, store hstore,
    body tsvector, secret text);
COMMENT ON COLUMN things.secret IS '@hidden';
INSERT INTO things SELECT i, 'thing ' || i, nullif(i % 7, 0), i * 1.5,
    CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END,
    (ARRAY['sad','ok','happy'])[1 + i % 3]::mood, ARRAY['t' || i % 4, 't' || i % 5],
    jsonb_build_object('n', i, 'in', jsonb_build_object('s', 'x' || i % 3), 'list', '[1,2]'::jsonb),
    json_build_object('n', i), int4range(i, i + 5), '2026-01-01Z'::timestamptz + i * '1h'::interval,
    hstore('k' || i % 2, 'v'), to_tsvector('english', 'the cats are thing ' || i), 'secret ' || i
    FROM generate_series(1, 60) i;
CREATE VIEW named AS SELECT name, size FROM things;
CREATE TABLE pairs (a int, b text, note text, PRIMARY KEY (b, a));
INSERT INTO pairs VALUES (1, 'x', 'one'), (2, 'x', 'two'), (1, 'y', 'three');
CREATE TABLE app."Odd. na%me" (id uuid PRIMARY KEY, "a.b->c" int);
INSERT INTO app."Odd. na%me" VALUES ('6b0c0e1e-0000-4000-8000-000000000001', 5);
CREATE TABLE hidden (id int PRIMARY KEY); COMMENT ON TABLE hidden IS 'Nothing. \n@hidden';
CREATE TABLE stats (id int PRIMARY KEY); INSERT INTO stats VALUES (1);
CREATE TABLE blobs (id int PRIMARY KEY, data text);
INSERT INTO blobs SELECT i, repeat('x', 10000) FROM generate_series(1, 20) i;
"""


pytestmark = pytest.mark.serving("public", "app", max_rows=100, max_bytes=100_000)


async def ids(db: DirectCaller, **kwargs: Any) -> list[int]:
    """Return the ids of the rows that `find` returns."""
    found = await db.call("things.find", select=["id"], **kwargs)
    return [row["id"] for row in found["rows"]]


@pytest_twisted.ensureDeferred
async def test_get_by_key_returns_the_row_without_hidden_columns(db: DirectCaller) -> None:
    """`get` returns the entire row or selected columns, without the hidden column."""
    row = await db.call("things.get", 3)
    assert "secret" not in row
    assert row["price"] == "4.50"
    assert row["seen"] == "2026-01-01T03:00:00Z"
    assert await db.call("things.get", {"name": "thing 3"}, select=["id"]) == {"id": 3}
    assert await db.call("things.get", key="3", select=["id"]) == {"id": 3}
    assert await db.call("pairs.get", ["x", 2], select=["note"]) == {"note": "two"}
    assert await db.call("pairs.get", {"a": 1, "b": "y"}, select=["note"]) == {"note": "three"}
    listed = await db.call("things.get", 3, select=["id", "size"], form="lists")
    assert listed == {"columns": ["id", "size"], "rows": [[3, 3]]}
    assert isinstance(await failure_of(db.call("things.get", 999)), NotFound)


@pytest_twisted.ensureDeferred
async def test_relation_of_any_name_but_hidden_is_served(db: DirectCaller) -> None:
    """Relations of any name are served; those with reserved names only with their schema; hidden ones never."""
    key = "6b0c0e1e-0000-4000-8000-000000000001"
    row = await db.call("app.Odd%2E%20na%25me.get", key)
    assert row == {"id": key, "a.b->c": 5}
    found = await db.call("app.Odd%2E%20na%25me.find", where={'"a.b->c"': {"gt": 4}})
    assert found["rows"] == [row]
    assert await db.call("public.stats.count") == 1
    for name in ("hidden.find", "stats.find", "app.things.find", "nope.find", "things.nope"):
        assert isinstance(await failure_of(db.call(name)), NoSuchProcedure)
    refused = await failure_of(db.call("thing.find"))
    assert isinstance(refused, NoSuchProcedure)
    assert refused.details["hint"] == 'did you mean "things"?'


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"id": 5}, "id = 5"),
    ({"id": [1, 5, 99]}, "id IN (1, 5)"),
    ({"id": []}, "false"),
    ({"size": None}, "size IS NULL"),
    ({"size": {"is": "not null"}}, "size IS NOT NULL"),
    ({"size": {"neq": 3}}, "size <> 3"),
    ({"size": {"isdistinct": 3}}, "size IS DISTINCT FROM 3"),
    ({"size": {"isdistinct": None}}, "size IS NOT NULL"),
    ({"size": {"not": {"gt": 3}}}, "NOT size > 3"),
    ({"size": {"gte": 2, "lt": 5}}, "size >= 2 AND size < 5"),
    ({"price": {"lte": "7.50"}}, "price <= 7.5"),
    ({"price": 7.5}, "price = 7.5"),
    ({"size": {"between": [2, 4]}}, "size BETWEEN 2 AND 4"),
    ({"size": {"in": [1, None]}}, "size = 1 OR size IS NULL"),
    ({"open": True}, "open"),
    ({"open": {"is": "unknown"}}, "open IS UNKNOWN"),
    ({"open": {"is": False}}, "open IS FALSE"),
    ({"mood": "ok"}, "mood = 'ok'"),
    ({"mood": {"gt": "sad"}}, "mood > 'sad'"),
    ({"name": {"like": "thing 1%"}}, "name LIKE 'thing 1%'"),
    ({"name": {"ilike": "THING _"}}, "name ILIKE 'THING _'"),
    ({"id": {"like": "1%"}}, "id::text LIKE '1%'"),
    ({"name": {"match": "1$"}}, "name ~ '1$'"),
    ({"name": {"imatch": "THING 1"}}, "name ~* 'THING 1'"),
    ({"name": {"like": {"any": ["%1", "%2"]}}}, "name LIKE ANY (ARRAY['%1', '%2'])"),
    ({"name": {"like": {"all": ["%1", "t%"]}}}, "name LIKE '%1' AND name LIKE 't%'"),
    ({"size": {"gt": {"all": [1, 4]}}}, "size > 4"),
    ({"size": {"eq": {"any": [1, 4]}}}, "size IN (1, 4)"),
    ({"tags": {"cs": ["t1"]}}, "tags @> ARRAY['t1']"),
    ({"tags": {"cd": ["t1", "t2", "t3"]}}, "tags <@ ARRAY['t1','t2','t3']"),
    ({"tags": {"ov": ["t1", "t2"]}}, "tags && ARRAY['t1','t2']"),
    ({"tags": {"eq": ["t1", "t1"]}}, "tags = ARRAY['t1','t1']"),
    ({"tags": [["t1", "t1"], ["t2", "t2"], None]}, "tags IN ('{t1,t1}', '{t2,t2}')"),
    ({"tags": {"not": {"in": ["{t1,t1}", []]}}}, "tags <> '{t1,t1}' AND tags <> '{}'"),
    ({"tags": []}, "false"),
    ({"tags": {"gt": {"all": [["t1", 'a,"%s'], ["t2"]]}}}, "tags > ARRAY['t2']"),
    ({"span": {"cs": 7}}, "span @> 7"),
    ({"span": {"cs": "[7,8]"}}, "span @> '[7,8]'::int4range"),
    ({"span": {"cd": "[3,20)"}}, "span <@ '[3,20)'::int4range"),
    ({"span": {"ov": "[3,5)"}}, "span && '[3,5)'::int4range"),
    ({"span": {"sl": "[9,10)"}}, "span << '[9,10)'::int4range"),
    ({"span": {"sr": "[50,55)"}}, "span >> '[50,55)'::int4range"),
    ({"span": {"nxr": "[9,12)"}}, "span &< '[9,12)'::int4range"),
    ({"span": {"nxl": "[50,55)"}}, "span &> '[50,55)'::int4range"),
    ({"span": {"adj": "[20,25)"}}, "span -|- '[20,25)'::int4range"),
    ({"doc": {"cs": {"in": {"s": "x1"}}}}, """doc @> '{"in": {"s": "x1"}}'"""),
    ({"doc": {"has_key": "n"}}, "doc ? 'n'"),
    ({"doc": {"has_any": ["q", "n"]}}, "doc ?| ARRAY['q','n']"),
    ({"doc": {"has_all": ["q", "n"]}}, "doc ?& ARRAY['q','n']"),
    ({"store": {"has_key": "k1"}}, "store ? 'k1'"),
    ({"raw": {"cs": {"n": 5}}}, """raw::jsonb @> '{"n": 5}'"""),
    ({"doc->n": 5}, "doc->'n' = '5'"),
    ({"doc->in->>s": "x1"}, "doc->'in'->>'s' = 'x1'"),
    ({"doc->>n": {"in": [5, "6"]}}, "doc->>'n' IN ('5', '6')"),
    ({"raw->>n": "7"}, "raw->>'n' = '7'"),
    ({"tags->>0": "t1"}, "tags[1] = 't1'"),
    ({"body": {"fts": "cat & thing"}}, "body @@ to_tsquery('cat & thing')"),
    ({"body": {"plfts": {"query": "cats", "config": "english"}}}, "true"),
    ({"name": {"phfts": {"query": "thing 5", "config": "simple"}}}, "id = 5"),
    ({"name": {"wfts": {"query": "thing -5", "config": "simple"}}}, "id <> 5"),
    ({"seen": {"lt": "2026-01-01T05:00:00Z"}}, "seen < '2026-01-01T05:00:00Z'"),
    ({"or": [{"id": 1}, {"id": 2, "size": 9}]}, "id = 1"),
    ({"and": [{"id": {"gt": 5}}, {"not": {"or": [{"size": 1}, {"open": True}]}}]},
     "id > 5 AND NOT (size = 1 OR open)"),
    ({"not": {"size": 1}}, "NOT size = 1"),
    ({"or": []}, "false"),
    ({"and": []}, "true"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "sql"), FILTERS)
@pytest_twisted.ensureDeferred
async def test_filter_by_any_operator_matches_the_rows_of_its_sql(
    db: DirectCaller, dsn: str, where: dict[str, Any], sql: str
) -> None:
    """Each operator finds the same rows as SQL, and `count` and `exists` agree."""
    expected = [row[0] for row in execute(dsn, f"SELECT id FROM things WHERE {sql} ORDER BY id")]
    assert await ids(db, where=where) == expected
    assert await db.call("things.count", where=where) == len(expected)
    assert await db.call("things.exists", where=where) is bool(expected)


ORDERS: list[tuple[list[Any], str]] = [
    ([], "id"),
    (["-id"], "id DESC"),
    (["size"], "size, id"),
    (["-size"], "size DESC, id"),
    ([{"by": "size", "nulls": "first"}], "size NULLS FIRST, id"),
    ([{"by": "size", "desc": True, "nulls": "last"}], "size DESC NULLS LAST, id"),
    (["open", "-size", "price"], "open, size DESC, price, id"),
    (["mood", "-name"], "mood, name DESC"),
    (["doc->in->>s", "-seen"], "doc->'in'->>'s', seen DESC"),
    (["doc->in"], "doc->'in', id"),
    (["tags", "span"], "tags, span, id"),
    (["store", "-id"], "store, id DESC"),
    ([{"by": "store", "desc": True, "nulls": "last"}], "store DESC NULLS LAST, id"),
]


@pytest.mark.parametrize(("order", "sql"), ORDERS)
@pytest.mark.parametrize("limit", [1, 7, 60])
@pytest_twisted.ensureDeferred
async def test_pages_in_any_order_have_all_rows_in_order(
    db: DirectCaller, dsn: str, order: list[Any], sql: str, limit: int
) -> None:
    """Pages have no gaps and no duplicates, whatever the order and its nulls."""
    expected = [row[0] for row in execute(dsn, f"SELECT id FROM things ORDER BY {sql}")]
    found: list[int] = []
    after = None
    while True:
        page = await db.call("things.find", select=["id"], order=order, limit=limit, after=after)
        found += [row["id"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
        assert len(page["rows"]) == limit
    assert found == expected


@pytest_twisted.ensureDeferred
async def test_page_after_an_insert_before_it_is_the_same(db: DirectCaller, dsn: str) -> None:
    first = await db.call("pairs.find", limit=2, select=["a", "b"])
    execute(dsn, "INSERT INTO pairs VALUES (0, 'a')")
    second = await db.call("pairs.find", limit=2, select=["a", "b"], after=first["next"])
    execute(dsn, "DELETE FROM pairs WHERE b = 'a'")
    assert second["rows"] == [{"a": 1, "b": "y"}]
    assert second["next"] is None


@pytest_twisted.ensureDeferred
async def test_token_of_another_query_is_refused(db: DirectCaller) -> None:
    first = await db.call("things.find", limit=1, where={"size": 1})
    for other in ({"where": {"size": 2}}, {"where": {"size": 1}, "order": ["name"]}, {}):
        refused = await failure_of(db.call("things.find", after=first["next"], **other))
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "after"


@pytest_twisted.ensureDeferred
async def test_limit_and_offset_at_their_bounds_are_accepted(db: DirectCaller) -> None:
    """A limit of zero, offsets past the end, and the maximum limit work."""
    empty = await db.call("things.find", limit=0)
    assert empty["rows"] == []
    assert await ids(db, limit=1, after=(await db.call("things.find", limit=0))["next"]) == [1]
    assert await ids(db, offset=58) == [59, 60]
    assert await db.call("things.find", offset=1000) == {"rows": [], "next": None}
    assert (await db.call("things.find", limit=0, where={"id": -1}))["next"] is None
    page = await db.call("named.find", limit=50, order=["name"])
    rest = await db.call("named.find", limit=50, order=["name"], after=page["next"])
    assert len({row["name"] for row in page["rows"] + rest["rows"]}) == 60
    assert rest["next"] is None


@pytest_twisted.ensureDeferred
async def test_pages_of_rows_without_a_key_have_each_row_once(db: DirectCaller) -> None:
    """Rows with equal sort keys are neither repeated nor lost between pages."""
    for key in ("size", "-size"):
        seen: list[str] = []
        page: dict[str, Any] = {"next": None}
        while not seen or page["next"]:
            page = await db.call("named.find", order=[key], limit=7, after=page["next"])
            seen += [row["name"] for row in page["rows"]]
        assert sorted(seen) == sorted(f"thing {i}" for i in range(1, 61))


@pytest_twisted.ensureDeferred
async def test_count_of_each_mode_is_returned_with_the_page(db: DirectCaller) -> None:
    """The modes are exact, planned and estimated; the last is exact for few rows."""
    where = {"size": {"gt": 3}}
    exact = await db.call("things.find", where=where, limit=1, count="exact")
    assert exact["count"] == await db.call("things.count", where=where)
    estimated = await db.call("things.find", where=where, limit=1, count="estimated")
    assert estimated["count"] == exact["count"]
    planned = await db.call("things.find", where=where, limit=1, count="planned")
    assert isinstance(planned["count"], int)
    distinct = await db.call("things.find", distinct=True, select=["size"], count="exact")
    assert distinct["count"] == 7


@pytest_twisted.ensureDeferred
async def test_estimate_below_the_counted_rows_is_not_returned(dsn: str) -> None:
    """The planner's estimate may be below the number of rows that were already counted."""
    execute(
        dsn,
        """
        CREATE FUNCTION few() RETURNS SETOF int LANGUAGE plpgsql STABLE ROWS 1
            AS 'BEGIN RETURN QUERY SELECT generate_series(1, 9); END';
        CREATE VIEW fewer AS SELECT n FROM few() n;
        CREATE FUNCTION fewest() RETURNS SETOF fewer LANGUAGE plpgsql STABLE ROWS 1
            AS 'BEGIN RETURN QUERY SELECT n FROM few() n; END';
        """,
    )
    async with serving(dsn, max_rows=4) as small:
        for name in ("fewer.find", "fn.fewest.find"):
            assert (await small.call(name, count="planned"))["count"] == 1
            assert (await small.call(name, count="estimated"))["count"] == 5


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"match": "*.left"}, [2, 4]),
        ({"match": {"any": ["hall", "*.top"]}}, [1, 3]),
        ({"not": {"match": "*.left.*"}}, [1]),
        ({"imatch": "LEFT$"}, [2, 4]),
        ({"like": "hall%"}, [1, 2, 3]),
        ({"cd": "hall.left"}, [2, 3]),
        ({"cs": "hall.left"}, [1, 2]),
        ({"in": ["hall", "cellar.left"]}, [1, 4]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_match_on_a_type_with_its_own_operator_uses_it(
    db: DirectCaller, condition: dict[str, Any], found: list[int]
) -> None:
    """`match` uses the type's own operator if there is one; other patterns use the text form."""
    page = await db.call("shelves.find", where={"place": condition}, select=["id"])
    assert [row["id"] for row in page["rows"]] == found


@pytest_twisted.ensureDeferred
async def test_distinct_in_a_find_equals_its_sql(db: DirectCaller, dsn: str) -> None:
    found = await db.call("things.find", distinct=True, select=["open", "mood"], order=["-mood"])
    rows = execute(dsn, "SELECT DISTINCT open, mood FROM things ORDER BY mood DESC, open")
    assert [(row["open"], row["mood"]) for row in found["rows"]] == rows
    found = await db.call("things.find", distinct=["mood"], order=["mood", "-id"], select=["id"])
    rows = execute(dsn, "SELECT DISTINCT ON (mood) id FROM things ORDER BY mood, id DESC")
    assert [row["id"] for row in found["rows"]] == [row[0] for row in rows]
    pages = await db.call("things.find", distinct=["mood"], select=["id"], limit=2)
    rest = await db.call(
        "things.find", distinct=["mood"], select=["id"], limit=2, after=pages["next"]
    )
    assert len(pages["rows"]) + len(rest["rows"]) == 3
    for select in (["raw"], ["x:raw", "doc->n"]):
        found = await db.call("things.find", distinct=True, select=select, count="exact")
        assert found["count"] == len(found["rows"]) == 60
    found = await db.call("things.find", distinct=["raw"], select=["id"])
    assert sorted(row["id"] for row in found["rows"]) == list(range(1, 61))
    execute(dsn, "CREATE TABLE IF NOT EXISTS spots (at point)")
    async with serving(dsn) as other:
        for more in ({"distinct": True}, {"distinct": ["at"]}):
            refused = await failure_of(other.call("spots.find", **more))
            assert isinstance(refused, InvalidArgument)
            assert refused.details["column"] == "at"


@pytest_twisted.ensureDeferred
async def test_select_with_casts_aliases_and_paths_has_their_values(db: DirectCaller) -> None:
    select = [
        "id",
        "n:name",
        "id::text",
        "doc->in->>s",
        "first:doc->list->0",
        "t:tags->>1",
        "price_as_int:price::int",
        'when:seen::"date"',
        {"column": "raw->n", "as": "raw_n", "cast": "text"},
        "many:doc->list::text[]",
    ][:-1]
    with pytest.raises(InvalidArgument, match="stands twice"):
        await db.call("things.get", 5, select=select)
    select[2] = "i:id::text"
    assert await db.call("things.get", 5, select=select) == {
        "id": 5,
        "n": "thing 5",
        "i": "5",
        "s": "x2",
        "first": 1,
        "t": "t0",
        "price_as_int": 8,
        "when": "2026-01-01",
        "raw_n": "5",
    }
    assert await db.call("things.get", 5, select=[]) == await db.call("things.get", 5)


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"where": {"id": "five"}}, "where.id"),
        ({"where": {"id": 2**31}}, "where.id"),
        ({"where": {"id": [1, "x"]}}, "where.id.1"),
        ({"where": {"id": True}}, "where.id"),
        ({"where": {"mood": "angry"}}, "where.mood"),
        ({"where": {"seen": {"lt": "yesterdayish"}}}, "where.seen.lt"),
        ({"where": {"span": {"ov": "[5,1]"}}}, "where.span.ov"),
        ({"where": {"name": {"match": "["}}}, "where.name.match"),
        ({"where": {"body": {"fts": "a &"}}}, "where.body.fts"),
        ({"where": {"name": {"fts": {"query": "a", "config": "klingon"}}}}, "where.name.fts.config"),
        ({"where": {"name": "a\0b"}}, "where.name"),
        ({"where": {"tags": {"cs": "x"}}}, "where.tags.cs"),
        ({"where": {"tags": ["t1"]}}, "where.tags.0"),
        ({"where": {"tags": {"eq": {"any": [["t1"], "t1"]}}}}, "where.tags.eq.any.1"),
        ({"where": {"secret": "x"}}, "where.secret"),
        ({"order": ["secret"]}, "order.0"),
        ({"select": ["secret"]}, "select.0"),
        ({"order": ["raw"]}, "order.0"),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_invalid_operand_of_a_find_is_refused_with_its_path(
    db: DirectCaller, kwargs: dict[str, Any], path: str
) -> None:
    """An invalid operand is refused with its path, whether the service or PostgreSQL refuses it."""
    refused = await failure_of(db.call("things.find", **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_sql_in_the_names_and_values_of_a_find_is_not_run(db: DirectCaller, dsn: str) -> None:
    """SQL in place of a name or a value is treated as a name or a value."""
    evil = 'id"; DROP TABLE things; --'
    for kwargs in (
        {"where": {evil: 1}},
        {"where": {"name": evil}},
        {"where": {"name": {"like": "'; DROP TABLE things; --"}}},
        {"order": [evil]},
        {"select": [evil]},
        {"select": [f"id::{evil}"]},
        {"select": [f'"x{evil}":id']},
        {"where": {f"doc->'{evil}": 1}},
    ):
        error = None
        try:
            await db.call("things.find", **kwargs)
        except Exception as raised:
            error = raised
        assert error is None or isinstance(error, InvalidArgument), error
    assert execute(dsn, "SELECT count(*) FROM things") == [(60,)]


@pytest_twisted.ensureDeferred
async def test_result_over_the_limit_is_too_large(db: DirectCaller) -> None:
    """The error says that the result is too large, and what to do."""
    refused = await failure_of(db.call("blobs.find"))
    assert isinstance(refused, TooLarge)
    assert "limit" in refused.details["hint"]
    assert len((await db.call("blobs.find", limit=5))["rows"]) == 5


@pytest_twisted.ensureDeferred
async def test_find_that_exceeds_its_timeout_is_cancelled_on_the_server(
    db: DirectCaller, dsn: str
) -> None:
    execute(
        dsn,
        "CREATE OR REPLACE VIEW slow AS SELECT pg_sleep(10)::text AS waited; NOTIFY rowcast_schema",
    )
    db.catalogs.reload()
    await until(lambda: ("public", "slow") in db.dispatcher.served.catalog.relations)
    refused = await failure_of(db.call("slow.find", timeout=0.1))
    assert isinstance(refused, StatementTimeout)
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%slow%' AND state = 'active'"
    await until(lambda: execute(dsn, f"{running} AND pid <> pg_backend_pid()") == [(0,)])


@pytest_twisted.ensureDeferred
async def test_get_after_a_dropped_column_returns_the_row_without_it(
    db: DirectCaller, dsn: str
) -> None:
    """A call that fails because of a dropped column is retried without it."""
    execute(dsn, "CREATE TABLE fleeting (id int PRIMARY KEY, a int, b int)")
    db.catalogs.reload()
    await until(lambda: ("public", "fleeting") in db.dispatcher.served.catalog.relations)
    execute(dsn, "INSERT INTO fleeting VALUES (1, 2, 3); ALTER TABLE fleeting DROP COLUMN b")
    assert await db.dispatcher.answer("fleeting.get", [1], {}, ANYONE) == {"id": 1, "a": 2}
    assert "b" not in db.dispatcher.served.catalog.relations["public", "fleeting"].columns
