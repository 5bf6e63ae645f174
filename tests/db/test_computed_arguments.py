"""
Computed columns that take more than the row, against plain SQL.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schema import changes
from service.api.roles import Roles
from service.errors import InvalidArgument, NotAuthorized, ServiceError
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_describing_functions import described
from tests.db.test_measuring import alike
from tests.db.test_roles import caller
from tests.db.watched import living
from tests.deferreds import failure_of

SCHEMA = (
    changes.install()
    + """
CREATE ROLE ca_clerk;
CREATE TABLE towns (id int PRIMARY KEY, name text, x float, y float, args int);
CREATE TABLE shops (id int PRIMARY KEY, name text, town int REFERENCES towns, secret text);
COMMENT ON COLUMN shops.secret IS '@hidden';
INSERT INTO towns SELECT i, 'T' || i, i * 7 % 10, i * 3 % 10, i FROM generate_series(1, 12) i;
INSERT INTO shops SELECT i, 'S' || i, i % 12 + 1, 'x' FROM generate_series(1, 30) i;
CREATE FUNCTION distance(t towns, x float, y float DEFAULT 0) RETURNS float STABLE LANGUAGE sql
    AS 'SELECT abs(t.x - $2) + abs(t.y - $3)';
CREATE FUNCTION distance(towns) RETURNS float STABLE LANGUAGE sql AS 'SELECT $1.x + $1.y';
CREATE FUNCTION named(t towns, "in ""A%s" text) RETURNS text IMMUTABLE LANGUAGE sql
    AS $$ SELECT t.name || $2 $$;
CREATE FUNCTION doc(t towns, at jsonb, tags text[] DEFAULT '{}') RETURNS jsonb IMMUTABLE LANGUAGE sql
    AS $$ SELECT jsonb_build_object('id', t.id, 'at', $2, 'tags', $3) $$;
CREATE FUNCTION later(t towns, days int) RETURNS timestamptz IMMUTABLE LANGUAGE sql
    AS $$ SELECT '2026-01-30 22:30Z'::timestamptz + make_interval(days => $2 * t.id) $$;
CREATE FUNCTION plain(t towns, more int DEFAULT 1) RETURNS int IMMUTABLE LANGUAGE sql
    AS 'SELECT t.id + $2';
CREATE FUNCTION unclear(t towns, a int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION unclear(t towns, a text) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2';
CREATE FUNCTION anything(t towns, a anyelement) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION listed(t towns, VARIADIC a int[]) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION hushed(t towns, a int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
COMMENT ON FUNCTION hushed IS '@hidden';
CREATE FUNCTION barred(t towns, a int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
REVOKE ALL ON FUNCTION barred FROM public;
CREATE FUNCTION near(t towns, far int) RETURNS SETOF shops STABLE LANGUAGE sql
    AS 'SELECT * FROM shops WHERE town = t.id';
CREATE FUNCTION shops_of(t towns, lowest int) RETURNS bigint STABLE LANGUAGE sql
    BEGIN ATOMIC SELECT count(*) FROM shops s WHERE s.town = t.id AND s.id >= lowest; END;
GRANT SELECT ON shops, towns TO ca_clerk;
SELECT rowcast.track(t) FROM unnest('{towns,shops}'::regclass[]) t;
"""
)

FAR = {"args": {"x": 3, "y": 4}}
SELECTS: list[tuple[dict[str, Any], str]] = [
    ({"column": "distance", **FAR}, "distance(t, 3, 4)"),
    ({"column": "distance", "args": {"x": "1e1"}}, "distance(t, 10)"),
    ({"column": "distance", "args": {}}, "distance(t)"),
    ({"column": "distance", "args": None}, "distance(t)"),
    ({"column": "distance", "args": {"y": None, "x": 1}}, "distance(t, 1, NULL)"),
    ({"column": "distance", "as": "far", "cast": "numeric", **FAR}, "distance(t, 3, 4)::numeric"),
    ({"column": "distance::int::text", **FAR} | {"column": "distance::int"}, "distance(t, 3, 4)::int"),
    ({"column": "named", "args": {'in "A%s': "'; --%s"}}, "named(t, '''; --%s')"),
    ({"column": "doc->at->>b", "args": {"at": {"b": [1]}}}, "doc(t, '{\"b\": [1]}')->'at'->>'b'"),
    ({"column": "doc", "args": {"at": "s", "tags": ["a", 'b"']}}, "doc(t, '\"s\"', '{a,\"b\\\"\"}')"),
    ({"column": "later", "args": {"days": 1}, "trunc": "month", "zone": "Europe/Berlin"},
     "date_trunc('month', later(t, 1), 'Europe/Berlin')"),
    ({"column": "plain"}, "plain(t)"),
    ({"column": "plain", "args": {"more": 5}}, "plain(t, 5)"),
    ({"column": "shops_of", "args": {"lowest": 15}}, "shops_of(t, 15)"),
]  # fmt: skip


@pytest.mark.parametrize(("item", "sql"), SELECTS)
@pytest_twisted.ensureDeferred
async def test_computed_column_with_arguments_has_the_value_of_its_function(
    db: DirectCaller, dsn: str, item: dict[str, Any], sql: str
) -> None:
    """Selected, sorted by, page by page, grouped, measured, and of one related row."""
    name = item.get("as") or item["column"].split("::")[0].split(">")[-1]
    words = f"SELECT id, to_jsonb({sql})::text FROM towns t ORDER BY {sql} DESC, id"
    expected = [(id, None if v is None else json.loads(v)) for id, v in execute(dsn, words)]
    key = {"by" if k == "column" else k: v for k, v in item.items() if k not in ("as", "cast")}
    if "cast" in item:
        key["by"] += f"::{item['cast']}"
    query: dict[str, Any] = {"select": ["id", item], "order": [{**key, "desc": True}]}
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"next": None}
    while not found or page["next"]:
        page = await db.call("towns.find", **query, limit=5, after=page["next"])
        found += page["rows"]
    assert [row["id"] for row in found] == [id for id, _ in expected]
    assert all(same(row[name], value) for row, (_, value) in zip(found, expected, strict=True))
    of_one = {**item, "column": f"town.{item['column']}", "as": "v"}
    shops = await db.call("shops.find", select=["town", of_one], order=["id"])
    by_town = dict(expected)
    assert all(same(row["v"], by_town[row["town"]]) for row in shops["rows"])
    groups = await db.call("towns.aggregate", {"n": {"count": "*"}}, group=[item])
    assert sum(each["n"] for each in groups) == 12
    (counted,) = await db.call(
        "towns.aggregate", {"n": {"count": {**item, "as": None}, "distinct": True}}
    )
    assert execute(dsn, f"SELECT count(DISTINCT {sql}) FROM towns t") == [(counted["n"],)]


def same(found: Any, expected: Any) -> bool:
    """Return whether two values are equal; compare timestamps as instants."""
    if isinstance(found, str) and found.endswith("Z"):
        return bool(expected.replace("+00:00", "Z") == found)
    return alike(found, expected)


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"distance": {"lt": 5, **FAR}}, "distance(t, 3, 4) < 5"),
    ({"distance": {**FAR, "not": {"between": [3, 9]}}}, "NOT distance(t, 3, 4) BETWEEN 3 AND 9"),
    ({"distance": {"gt": 5}}, "distance(t) > 5"),
    ({"distance::int": {"in": [5, 6], **FAR}}, "distance(t, 3, 4)::int IN (5, 6)"),
    ({"named": {"args": {'in "A%s': "!"}, "ends": "1!"}}, "named(t, '!') LIKE '%1!'"),
    ({"named": {"args": {'in "A%s': "!"}, "length": 3}}, "length(named(t, '!')) = 3"),
    ({"named": {"args": {'in "A%s': None}, "is": None}}, "named(t, NULL) IS NULL"),
    ({"doc->at": {"args": {"at": 7}, "eq": 7}}, "doc(t, '7')->'at' = '7'"),
    ({"or": [{"distance": {"lt": 3, **FAR}}, {"distance": {"lt": 3, "args": {"x": 9}}}]},
     "distance(t, 3, 4) < 3 OR distance(t, 9) < 3"),
    ({"plain": {"args": {"more": 2}, "eq": {"$column": "id"}}}, "plain(t, 2) = id"),
    ({"args": {"gt": 3, "lt": 6}}, "args > 3 AND args < 6"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "condition"), FILTERS)
@pytest_twisted.ensureDeferred
async def test_filter_by_a_computed_column_with_arguments_matches_its_sql(
    db: DirectCaller, dsn: str, where: dict[str, Any], condition: str
) -> None:
    expected = [
        id for (id,) in execute(dsn, f"SELECT id FROM towns t WHERE {condition} ORDER BY id")
    ]
    found = await db.call("towns.find", where=where, select=["id"], count="exact")
    assert [row["id"] for row in found["rows"]] == expected
    assert found["count"] == len(expected)
    written = await db.call(
        "towns.update", where=where, changes={"name": "N"}, select=["id"], order=["id"]
    )
    assert [row["id"] for row in written["rows"]] == expected
    inside = {f"town.{name}": value for name, value in where.items()}
    if "or" not in where and "$column" not in str(where):
        shops = await db.call("shops.count", where=inside)
        listed = (
            f"SELECT count(*) FROM shops WHERE town IN (SELECT id FROM towns t WHERE {condition})"
        )
        assert execute(dsn, listed) == [(shops,)]


@pytest_twisted.ensureDeferred
async def test_filter_of_a_related_column_named_args_is_not_an_argument_list(
    db: DirectCaller,
) -> None:
    """A dict that is no condition of a computed column is one of related rows."""
    some = await db.call("shops.count", where={"town": {"args": {"lt": 3}}})
    assert some == await db.call("shops.count", where={"town.args": {"lt": 3}}) > 0
    other = {"town": {"args": {"lt": 3}, "name": {"is": "not null"}}}
    assert await db.call("shops.count", where=other) == some


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"select": [{"column": "named"}]}, "select.0.column", "named(t public.towns"),
    ({"select": [{"column": "named", "args": {"inn": 1}}]}, "select.0.args.inn", "named(t public.towns"),
    ({"select": [{"column": "distance", "args": {"xx": 1}}]}, "select.0.args.xx", 'did you mean "x"?'),
    ({"select": [{"column": "distance", "args": {"y": 1}}]}, "select.0.column", ""),
    ({"select": [{"column": "unclear", "args": {"a": 1}}]}, "select.0.column", ""),
    ({"select": [{"column": "name", "args": {"a": 1}}]}, "select.0.args.a", ""),
    ({"select": [{"column": "distance", "args": {"t": 1, "x": 2}}]}, "select.0.args.t", ""),
    ({"select": [{"column": "distance", "args": [1, 2]}]}, "select.0.args", ""),
    ({"select": [{"column": "distance", "args": {1: 2}}]}, "select.0.args", ""),
    ({"select": [{"column": "distance", "args": {"": 2}}]}, "select.0.args", ""),
    ({"select": [{"column": "distance", "args": {"x": "far"}}]}, "select.0.args.x", ""),
    ({"select": [{"column": "distance", "args": {"x": {}}}]}, "select.0.args.x", ""),
    ({"select": [{"column": "anything", "args": {"a": 1}}]}, "select.0.column", ""),
    ({"select": [{"column": "listed", "args": {"a": [1]}}]}, "select.0.column", ""),
    ({"select": [{"column": "hushed", "args": {"a": 1}}]}, "select.0.column", ""),
    ({"select": [{"column": "near", "args": {"far": 1}}]}, "select.0.column", ""),
    ({"order": [{"by": "plain", "args": {"n": 1}}]}, "order.0.args.n", "plain(t public.towns"),
    ({"order": [{"by": "plain", "args": 5}]}, "order.0.args", ""),
    ({"where": {"plain": {"args": {"n": 1}, "gt": 1}}}, "where.plain.args.n", ""),
    ({"where": {"plain": {"args": {"more": "x"}, "gt": 1}}}, "where.plain.args.more", ""),
    ({"where": {"id": {"args": {"more": 1}, "gt": 1}}}, "where.id.args.more", ""),
    ({"select": [{"column": "distance", **FAR}, {"column": "distance", "args": {"x": 9}}]},
     "select.1.column", 'write "other_name:column"'),
]  # fmt: skip


@pytest.mark.parametrize(("kwargs", "path", "hint"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_arguments_that_no_function_of_a_row_takes_are_refused_with_their_path(
    db: DirectCaller, kwargs: dict[str, Any], path: str, hint: str
) -> None:
    refused = await failure_of(db.call("towns.find", **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    assert refused.details["path"] == path, refused.details
    assert hint in str(refused.details.get("hint", "")), refused.details


@pytest.mark.serving(roles=Roles({"clerk": "ca_clerk"}))
@pytest_twisted.ensureDeferred
async def test_function_that_a_role_may_not_execute_is_refused_as_column(db: DirectCaller) -> None:
    clerk = caller("clerk")
    one = {"column": "plain", "args": {"more": 1}}
    assert (await db.call_as(clerk, "towns.find", select=[one], limit=1))["rows"] == [{"plain": 2}]
    barred = {"column": "barred", "args": {"a": 1}}
    refused = await failure_of(db.call_as(clerk, "towns.find", select=[barred]))
    assert isinstance(refused, InvalidArgument | NotAuthorized), refused


@pytest_twisted.ensureDeferred
async def test_computed_columns_are_described_with_their_arguments(db: DirectCaller) -> None:
    computed = described(db)["relations"]["towns"]["computed"]
    assert "hushed" not in computed
    assert computed["named"]["parameters"][0]["name"] == 'in "A%s'
    overloads = [computed["distance"], *computed["distance"]["overloads"]]
    assert sorted([each["name"] for each in one["parameters"]] for one in overloads) == [
        [],
        ["x", "y"],
    ]


@pytest_twisted.ensureDeferred
async def test_live_query_by_a_computed_column_with_arguments_equals_its_find(dsn: str) -> None:
    """Its function reads another table, whose changes run the query again."""
    query: dict[str, Any] = {
        "select": ["id", {"column": "shops_of", "args": {"lowest": 15}}],
        "where": {"distance": {"args": {"x": 3}, "lt": 9}},
        "order": [{"by": "shops_of", "args": {"lowest": 15}, "desc": True}],
    }
    async with living(dsn) as live:
        watcher = live.watch("towns", **query)
        for change in (
            "UPDATE shops SET town = 3 WHERE id > 20",
            "UPDATE towns SET x = 3, y = 0 WHERE id % 3 = 0",
            "DELETE FROM shops WHERE id = 25",
        ):
            before = await watcher.find()
            execute(dsn, change)
            assert await watcher.find() != before, change
            await watcher.same()


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text())
GIVEN = st.dictionaries(
    st.sampled_from(["x", "y", "more", "at", "tags", "t", "", "days"]) | st.text(), ANYTHING
)


@settings(max_examples=amount(15, 150), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["distance", "plain", "doc", "named", "later", "id"]),
    args=GIVEN,
    more=ANYTHING,
)
@pytest_twisted.ensureDeferred
async def test_hostile_arguments_get_rows_or_a_refusal(
    db: DirectCaller, name: str, args: dict[str, Any], more: Any
) -> None:
    for kwargs in (
        {"select": [{"column": name, "args": args}]},
        {"order": [{"by": name, "args": args, "desc": True}], "limit": 2},
        {"where": {name: {"args": args, "eq": more}}},
        {"select": [{"column": name, "args": more}]},
    ):
        try:
            await db.call("towns.find", **kwargs)
        except ServiceError as error:
            assert error.uri != "rowcast.error.internal", error
