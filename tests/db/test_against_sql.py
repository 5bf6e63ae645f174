"""Filters and sort keys, compared with SQL."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import InvalidArgument, NotAuthorized, UnknownName
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_roles import caller
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE as_clerk;
CREATE EXTENSION citext; CREATE EXTENSION hstore;
CREATE DOMAIN word AS text;
CREATE TABLE firms (id int PRIMARY KEY, name text NOT NULL, least int, founded date);
CREATE TABLE people (
    id int PRIMARY KEY, firm int REFERENCES firms, name text NOT NULL, nick word, mail citext, low int,
    high bigint, pay numeric, started date, ended timestamp, tags text[], other varchar[], doc jsonb,
    raw json, old json, span int4range, secret int, pair hstore);
COMMENT ON COLUMN people.secret IS '@hidden';
INSERT INTO firms SELECT i, 'Firm ' || i, i * 2, '2020-01-01'::date + i FROM generate_series(1, 4) i;
INSERT INTO people SELECT
    i, nullif(i % 5, 0), (ARRAY['n1', 'N1', 'a_b', 'a%', 'x\\y', ''])[i % 6 + 1],
    (ARRAY['n1', 'n%', NULL, 'a', '%'])[i % 5 + 1], (ARRAY['N1', 'A', NULL])[i % 3 + 1],
    nullif(i % 7, 0), nullif(i % 4, 0), i % 4 * 1.25, '2026-01-01'::date + i % 3,
    '2026-01-01'::timestamp + (i % 5 - 1) * '1d'::interval,
    (ARRAY['{a}', '{a,b}', NULL, '{}'])[i % 4 + 1]::text[], (ARRAY['{b}', '{a}', '{}'])[i % 3 + 1]::varchar[],
    CASE WHEN i % 5 > 0 THEN jsonb_build_object('n', i % 4, 'on', i % 2 = 0, 's', 'n' || i % 3, 'z', NULL,
                                                'at', '2026-01-0' || i % 3 + 1) END,
    CASE WHEN i % 3 > 0 THEN json_build_object('n', i % 2) END,
    CASE WHEN i % 2 > 0 THEN '{"n":  1}'::json END,
    CASE WHEN i % 6 > 0 THEN int4range(i % 4, i % 4 + i % 6) END, i,
    CASE WHEN i % 4 > 0 THEN hstore('n' || i % 3, 'x') END
    FROM generate_series(1, 24) i;
GRANT SELECT (id, name, low, doc), UPDATE (low) ON people TO as_clerk;
"""
CLERK = caller("clerk")

COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"low": {"eq": {"$column": "high"}}}, "low = high"),
    ({"low": {"neq": {"$column": "high"}}}, "low <> high"),
    ({"low": {"gt": {"$column": "high"}}}, "low > high"),
    ({"high": {"lte": {"$column": "pay"}}}, "high <= pay"),
    ({"low": {"not": {"lt": {"$column": "high"}}}}, "NOT low < high"),
    ({"low": {"isdistinct": {"$column": "high"}}}, "low IS DISTINCT FROM high"),
    ({"low": {"not": {"isdistinct": {"$column": "high"}}}}, "low IS NOT DISTINCT FROM high"),
    ({"id": {"between": [{"$column": "low"}, {"$column": "high"}]}}, "id BETWEEN low AND high"),
    ({"low": {"between": [2, {"$column": "high"}]}}, "low BETWEEN 2 AND high"),
    ({"low": {"gte": {"$column": "high"}, "lt": 6}}, "low >= high AND low < 6"),
    ({"started": {"lt": {"$column": "ended"}}}, "started < ended"),
    ({"name": {"eq": {"$column": "nick"}}}, "name = nick"),
    ({"nick": {"eq": {"$column": "name"}}}, "nick = name"),
    ({"mail": {"eq": {"$column": "mail"}}}, "mail = mail"),
    ({"mail": {"eq": {"$column": "name::citext"}}}, "mail = name::citext"),
    ({"name": {"like": {"$column": "nick"}}}, "name LIKE nick"),
    ({"name": {"ilike": {"$column": "nick"}}}, "name ILIKE nick"),
    ({"id": {"like": {"$column": "low"}}}, "id::text LIKE low::text"),
    ({"tags": {"cs": {"$column": "other::text[]"}}}, "tags @> other::text[]"),
    ({"tags": {"ov": {"$column": "other::text[]"}}}, "tags && other::text[]"),
    ({"span": {"cs": {"$column": "low"}}}, "span @> low"),
    ({"span": {"cd": {"$column": "span"}}}, "span <@ span"),
    ({"pair": {"has_key": {"$column": "name"}}}, "pair ? name"),
    ({"doc": {"has_key": {"$column": "name"}}}, "doc ? name"),
    ({"raw": {"eq": {"$column": "old"}}}, "raw::jsonb = old::jsonb"),
    ({"doc->n": {"eq": {"$column": "raw->n"}}}, "doc->'n' = (raw->'n')::jsonb"),
    ({"doc->>s": {"eq": {"$column": "name"}}}, "doc->>'s' = name"),
    ({"name": {"neq": {"$column": "doc->>s"}}}, "name <> doc->>'s'"),
    ({"doc": {"eq": {"any": [{"$column": "name"}]}}}, "doc = '{\"$column\": \"name\"}'"),
    ({"firm": {"least": {"gt": {"$column": "id"}}}},
     "EXISTS (SELECT FROM firms f WHERE f.id = firm AND f.least > f.id)"),
    ({"or": [{"low": {"gt": {"$column": "high"}}}, {"high": None}]}, "low > high OR high IS NULL"),
]  # fmt: skip
CASTS: list[tuple[dict[str, Any], str]] = [
    ({"doc->>n::int": {"gt": 1}}, "(doc->>'n')::int > 1"),
    ({"doc->n::int": [1, 2]}, "(doc->'n')::int IN (1, 2)"),
    ({"doc->>n::int": {"not": [1, None]}}, "NOT ((doc->>'n')::int = 1 OR doc->>'n' IS NULL)"),
    ({"doc->on::boolean": {"is": True}}, "(doc->'on')::boolean IS TRUE"),
    ({"doc->z::int": None}, "(doc->'z')::int IS NULL"),
    ({"doc->>at::date": {"lte": "2026-01-02"}}, "(doc->>'at')::date <= '2026-01-02'"),
    ({"doc->>n::int": {"eq": {"$column": "low"}}}, "(doc->>'n')::int = low"),
    ({"low::text": {"like": "%"}}, "low::text LIKE '%'"),
    ({"pay::int": {"match": "^1$"}}, "pay::int::text ~ '^1$'"),
    ({"pay::int": 2}, "pay::int = 2"),
    ({"firm.least::text": {"like": "2%"}},
     "EXISTS (SELECT FROM firms f WHERE f.id = firm AND f.least::text LIKE '2%')"),
    ({"nick::varchar": "n1"}, "nick::varchar = 'n1'"),
    ({"name::word": {"gt": "a"}}, "name::word > 'a'"),
    ({"raw->n::jsonb": 1}, "(raw->'n')::jsonb = '1'"),
    ({"doc->>n::numeric": {"between": ["0.5", 2]}}, "(doc->>'n')::numeric BETWEEN 0.5 AND 2"),
]  # fmt: skip
TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"name": {"starts": "a%"}}, "starts_with(name, 'a%')"),
    ({"name": {"starts": "a_"}}, "starts_with(name, 'a_')"),
    ({"name": {"starts": "n"}}, "starts_with(name, 'n')"),
    ({"name": {"istarts": "N"}}, "starts_with(lower(name), 'n')"),
    ({"name": {"ends": "\\y"}}, "right(name, 2) = '\\y'"),
    ({"name": {"ends": "%"}}, "right(name, 1) = '%'"),
    ({"name": {"iends": "_B"}}, "right(lower(name), 2) = '_b'"),
    ({"name": {"contains": "\\"}}, "position('\\' in name) > 0"),
    ({"name": {"contains": ""}}, "true"),
    ({"name": {"icontains": "A"}}, "position('a' in lower(name)) > 0"),
    ({"name": {"not": {"contains": "n"}}}, "position('n' in name) = 0"),
    ({"name": {"starts": {"any": ["a%", "N"]}}}, "name ^@ 'a%' OR name ^@ 'N'"),
    ({"name": {"contains": {"all": ["_", "a"]}}}, "position('_' in name) > 0 AND position('a' in name) > 0"),
    ({"name": {"starts": {"any": []}}}, "false"),
    ({"nick": {"starts": "n%"}}, "nick ^@ 'n%'"),
    ({"mail": {"starts": "n"}}, "mail LIKE 'n%'"),
    ({"id": {"starts": "1"}, "doc->>s": {"ends": "1"}}, "id::text ^@ '1' AND right(doc->>'s', 1) = '1'"),
    ({"firm.name": {"iends": "M 2"}}, "firm = 2"),
    ({"name": {"length": 2}}, "length(name) = 2"),
    ({"name": {"length": {"gt": 2}}}, "length(name) > 2"),
    ({"name": {"length": {"between": [1, 2]}}}, "length(name) BETWEEN 1 AND 2"),
    ({"name": {"length": [0, 3, None]}}, "length(name) IN (0, 3)"),
    ({"nick": {"length": None}}, "nick IS NULL"),
    ({"nick": {"not": {"length": {"lt": 2}}}}, "length(nick) >= 2"),
    ({"nick": {"length": {"not": {"lt": 2}}}}, "length(nick) >= 2"),
    ({"mail": {"length": 1}}, "length(mail) = 1"),
    ({"tags": {"length": 0}}, "cardinality(tags) = 0"),
    ({"tags": {"length": {"gte": 1}, "cs": ["b"]}}, "cardinality(tags) >= 1 AND tags @> '{b}'"),
    ({"tags": {"length": {"lt": {"$column": "low"}}}}, "cardinality(tags) < low"),
    ({"id::text": {"length": 2}}, "id > 9"),
    ({"firm.name": {"length": {"gt": 9}}}, "false"),
    ({"doc": {"jsonpath": "$.n ? (@ > 1)"}}, "(doc->>'n')::int > 1"),
    ({"doc": {"jsonpath": "$.nothing"}}, "doc IS NOT NULL AND doc ? 'nothing'"),
    ({"doc": {"jsonpath_match": "$.n == 1 || $.on == true"}}, "doc->'n' = '1' OR doc->'on' = 'true'"),
    ({"doc": {"not": {"jsonpath_match": "$.n == 1"}}}, "doc->'n' <> '1'"),
    ({"raw": {"jsonpath": "$ ? (@.n == 0)"}}, "raw->>'n' = '0'"),
    ({"doc->s": {"jsonpath": '$ ? (@ starts with "n1")'}}, "doc->>'s' = 'n1'"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "condition"), [*COLUMNS, *CASTS, *TEXTS])
@pytest_twisted.ensureDeferred
async def test_filter_in_any_verb_matches_the_rows_of_its_sql(
    db: DirectCaller, dsn: str, where: Any, condition: str
) -> None:
    """Also in verbs that write."""
    expected = [
        id for (id,) in execute(dsn, f"SELECT id FROM people WHERE {condition} ORDER BY id")
    ]
    found = await db.call("people.find", where=where, select=["id"])
    assert [row["id"] for row in found["rows"]] == expected
    assert await db.call("people.count", where=where) == len(expected)
    assert await db.call("people.count", where={"and": [where]}) == len(expected)
    measures = {"n": {"count": "*", "where": where}}
    assert await db.call("people.aggregate", measures) == [{"n": len(expected)}]
    changed = await db.call("people.update", where=where, changes={"pair": None}, all=False)
    assert changed["affected"] == len(expected)
    execute(
        dsn, "UPDATE people SET pair = CASE WHEN id % 4 > 0 THEN hstore('n' || id % 3, 'x') END"
    )


@pytest.mark.parametrize("where", [each for each, _ in COLUMNS + CASTS + TEXTS][::3])
@pytest_twisted.ensureDeferred
async def test_filter_of_related_rows_matches_the_rows_of_its_sql(
    db: DirectCaller, where: Any
) -> None:
    """An embed with the filter has the rows of a find with it."""
    found = await db.call("people.find", where=where, select=["id", "firm"])
    expected = sorted(row["id"] for row in found["rows"] if row["firm"])
    embed = {"people": {"select": ["id"], "where": where}}
    firms = await db.call("firms.find", embed=embed)
    assert sorted(each["id"] for row in firms["rows"] for each in row["people"]) == expected


ORDERS: list[tuple[list[Any], str]] = [
    (["doc->>n::int"], "(doc->>'n')::int"),
    (["-doc->>n::int"], "(doc->>'n')::int DESC"),
    ([{"by": "doc->>at::date", "nulls": "first"}, "-pay::int"], "(doc->>'at')::date NULLS FIRST, pay::int DESC"),
    (["id::text"], "id::text"),
    (["firm.least::text", "-name::word"], "(SELECT least::text FROM firms f WHERE f.id = firm), name::word DESC"),
]  # fmt: skip


@pytest.mark.parametrize(("order", "by"), ORDERS)
@pytest_twisted.ensureDeferred
async def test_order_is_that_of_its_sql(
    db: DirectCaller, dsn: str, order: list[Any], by: str
) -> None:
    """In one result and page by page."""
    expected = [id for (id,) in execute(dsn, f"SELECT id FROM people ORDER BY {by}, id")]
    found = await db.call("people.find", order=order, select=["id"])
    assert [row["id"] for row in found["rows"]] == expected
    paged: list[int] = []
    after = None
    while len(paged) < 100:
        page = await db.call("people.find", order=order, select=["id"], limit=5, after=after)
        paged += [row["id"] for row in page["rows"]]
        after = page["next"]
        if after is None:
            break
    assert paged == expected


@pytest_twisted.ensureDeferred
async def test_cast_in_group_distinct_and_measures_is_that_of_its_sql(
    db: DirectCaller, dsn: str
) -> None:
    groups = await db.call(
        "people.aggregate", {"n": {"count": "*"}}, group=["k:doc->>n::int"], order=["-k"]
    )
    expected = execute(
        dsn, "SELECT (doc->>'n')::int, count(*) FROM people GROUP BY 1 ORDER BY 1 DESC"
    )
    assert [(each["k"], each["n"]) for each in groups] == expected
    found = await db.call(
        "people.find", distinct=["doc->>n::int"], order=["-doc->>n::int"], select=["k:doc->>n::int"]
    )
    assert [row["k"] for row in found["rows"]] == [k for k, _ in expected]


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ({"low": {"gt": {"$column": "secret"}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": "nope"}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": "secret::text"}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": "firm.least"}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": ""}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": "name"}}}, "where.low.gt.$column"),
        ({"low": {"isdistinct": {"$column": "tags"}}}, "where.low.isdistinct.$column"),
        ({"low": {"gt": {"$column": "high::regclass"}}}, "where.low.gt.$column"),
        ({"low": {"gt": {"$column": 5}}}, "where.low.gt"),
        ({"low": {"$column": "high"}}, "where.low.$column"),
        ({"low": {"in": {"$column": "tags"}}}, "where.low.in"),
        ({"name": {"fts": {"$column": "nick"}}}, "where.name.fts"),
        ({"name": {"has_key": {"$column": "nick"}}}, "where.name.has_key.$column"),
        ({"low": {"between": [{"$column": "nope"}, 1]}}, "where.low.between.0.$column"),
        ({"low::nope": 1}, "where.low::nope"),
        ({"low::": 1}, "where.low::"),
        ({"low::int::int": 1}, "where.low::int::int"),
        ({"name::regclass": "people"}, "where.name::regclass"),
        ({"secret::text": "1"}, "where.secret::text"),
        ({"doc->>s::int": 1}, "where.doc->>s::int"),
        ({"name::int": {"gt": 1}}, "where.name::int"),
        ({"low::text": {}}, "where.low::text"),
        ({"low::text": {"lik": 1}}, "where.low::text.lik"),
        ({"name": {"starts": 1}}, "where.name.starts"),
        ({"name": {"starts": None}}, "where.name.starts"),
        ({"name": {"ends": ["a"]}}, "where.name.ends"),
        ({"name": {"contains": {"any": ["a", 1]}}}, "where.name.contains.any.1"),
        ({"name": {"contains": {"$column": "nick"}}}, "where.name.contains"),
        ({"name": {"contains": "a\0"}}, "where.name.contains"),
        ({"tags": {"contains": "a"}}, "where.tags.contains"),
        ({"doc": {"starts": "{"}}, "where.doc.starts"),
        ({"low": {"length": 1}}, "where.low"),
        ({"name": {"length": "x"}}, "where.name.length"),
        ({"name": {"length": {"length": 1}}}, "where.name.length.length"),
        ({"name": {"length": {"like": "%"}, "nope": 1}}, "where.name.nope"),
        ({"name": {"length": {}}}, "where.name.length"),
        ({"firm": {"length": 1}}, "where.firm"),
        ({"doc": {"jsonpath": "$["}}, "where.doc.jsonpath"),
        ({"doc": {"jsonpath": 1}}, "where.doc.jsonpath"),
        ({"doc": {"jsonpath": {"any": ["$"]}}}, "where.doc.jsonpath"),
        ({"name": {"jsonpath": "$"}}, "where.name.jsonpath"),
        ({"doc": {"jsonpath_match": "'; DROP TABLE people; --"}}, "where.doc.jsonpath_match"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_invalid_operand_is_refused_with_its_path(
    db: DirectCaller, where: Any, path: str
) -> None:
    """A hidden column is refused as an unknown one."""
    refused = await failure_of(db.call("people.count", where=where))
    assert isinstance(refused, InvalidArgument | UnknownName), refused
    assert refused.details["path"] == path
    assert await db.call("people.count") == 24


@pytest.mark.serving(roles=Roles({"clerk": "as_clerk"}))
@pytest_twisted.ensureDeferred
async def test_column_unreadable_to_the_role_is_refused_as_operand(db: DirectCaller) -> None:
    assert await db.call_as(CLERK, "people.count", where={"low": {"lt": {"$column": "id"}}}) > 0
    for where in ({"low": {"gt": {"$column": "high"}}}, {"high::text": {"like": "%"}}):
        refused = await failure_of(db.call_as(CLERK, "people.count", where=where))
        assert isinstance(refused, NotAuthorized | InvalidArgument), refused
    refused = await failure_of(
        db.call_as(CLERK, "people.find", order=["high::text"], select=["id"])
    )
    assert isinstance(refused, NotAuthorized | InvalidArgument), refused


@pytest_twisted.ensureDeferred
async def test_column_compared_with_itself_does_not_count_as_filter(db: DirectCaller) -> None:
    """It holds for every row, so a write needs `all`."""
    own = {"low": {"eq": {"$column": "low"}}}
    for where in (
        {"or": [own, {"low": None}]},
        {"not": {"low": {"isdistinct": {"$column": "low"}}}},
    ):
        refused = await failure_of(db.call("people.update", where=where, changes={"low": 1}))
        assert isinstance(refused, InvalidArgument)
        assert "all" in str(refused.details["hint"])
