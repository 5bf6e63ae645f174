"""
Verbs agree with each other about any valid query.

Queries are generated from the grammar of filters, select lists, orders and embeds, on all kinds of columns
and relationships. None may be refused. (Writes are in `test_laws_of_writes.py`.)
"""

from __future__ import annotations

import json
from typing import Any

import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.amounts import amount
from tests.db.dispatchers import DirectCaller
from tests.db.test_streaming import Taker

ROWS = 30

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'so, so', 'ok');
CREATE TABLE cities (id int PRIMARY KEY, name text NOT NULL, spot point);
CREATE TABLE people (
    id int PRIMARY KEY, boss_id int REFERENCES people, city_id int REFERENCES cities,
    name text NOT NULL, born date, pay numeric(8,2), open boolean, mood mood, tags text[],
    doc jsonb, raw json, span int4range, seen timestamptz, ratio double precision, code uuid);
CREATE TABLE visits (
    person_id int REFERENCES people, city_id int REFERENCES cities, year int, note text,
    PRIMARY KEY (person_id, city_id));
CREATE VIEW adults AS SELECT id, name, city_id, pay FROM people WHERE born < '2000-01-01';
CREATE FUNCTION shout(people) RETURNS text STABLE LANGUAGE sql AS 'SELECT upper($1.name)';
CREATE FUNCTION raised(people, rate numeric, base numeric DEFAULT 0) RETURNS numeric IMMUTABLE
    LANGUAGE sql AS 'SELECT $1.pay * $2 + $3';
INSERT INTO cities SELECT i, 'City ' || i, point(i, i) FROM generate_series(1, 5) i;
INSERT INTO people SELECT
    i, nullif(i / 4, 0), nullif(i % 6, 0), 'n' || i % 9,
    CASE WHEN i % 4 > 0 THEN '1990-01-01'::date + i * 200 END,
    CASE WHEN i % 3 > 0 THEN i * 1.25 END,
    (ARRAY[true, false, NULL])[i % 3 + 1],
    (ARRAY['sad', 'so, so', 'ok', NULL]::mood[])[i % 4 + 1],
    CASE WHEN i % 5 > 0 THEN ARRAY['a', 'b,c', NULL, 'x' || i % 3] END,
    CASE WHEN i % 5 > 1 THEN jsonb_build_object('a', i % 4, 'b', jsonb_build_array(i, NULL)) END,
    CASE WHEN i % 5 > 2 THEN '{"a": 1}'::json END,
    CASE WHEN i % 4 > 1 THEN int4range(i, i + i % 7) END,
    CASE WHEN i % 7 > 1 THEN '2026-01-01Z'::timestamptz + i * '1h'::interval END,
    (ARRAY['NaN', 'Infinity', '0.5', NULL, '-3']::float8[])[i % 5 + 1],
    CASE WHEN i % 2 > 0 THEN ('00000000-0000-0000-0000-0000000000' || 10 + i)::uuid END
    FROM generate_series(1, 30) i;
INSERT INTO visits SELECT i, 1 + i * j % 5, 2000 + i, nullif(repeat('z', j), 'z')
    FROM generate_series(1, 20) i, generate_series(1, 3) j ON CONFLICT DO NOTHING;
"""

COMPARISONS = ["eq", "neq", "gt", "gte", "lt", "lte", "isdistinct"]
OPERANDS: dict[str, Any] = {
    "id": st.integers(-1, 35) | st.sampled_from(["7", 3.0]),
    "boss_id": st.integers(0, 9),
    "name": st.sampled_from(["n1", "N1", "", "n%", "'"]),
    "born": st.sampled_from(["1991-05-05", "infinity", "1990-07-20"]),
    "pay": st.sampled_from(["1.25", 10, 2.5, "NaN", "1e2"]),
    "mood": st.sampled_from(["sad", "so, so", "ok"]),
    "seen": st.sampled_from(["2026-01-01T05:00:00Z", "2026-01-01 06:00+01", "-infinity"]),
    "ratio": st.sampled_from([0.5, "NaN", "Infinity", -3, "0.5"]),
    "code": st.sampled_from(["00000000-0000-0000-0000-000000000011"]),
    "doc->a": st.sampled_from([1, {"x": [1]}, "text", [1]]),
    "doc->>a": st.sampled_from(["1", "2", ""]),
    "shout": st.sampled_from(["N1", "n1"]),
    "city_id": st.integers(0, 6),
    "city_id.name": st.sampled_from(["City 1", "x"]),
    "boss_id.pay": st.sampled_from(["1.25", 30]),
    "visits.year": st.integers(2000, 2020),
    "visits.cities.name": st.sampled_from(["City 2"]),
    "doc->>a::int": st.integers(-1, 4),
    "raw->a::numeric": st.sampled_from(["1", 0.5]),
    "boss_id.pay::text": st.sampled_from(["1.25", "x"]),
}
COLUMNS: dict[str, list[str]] = {
    "id": ["id", "boss_id", "city_id", "pay", "doc->>a::int", "ratio"],
    "pay": ["ratio", "id", "pay"],
    "name": ["shout", "doc->>a", "name::varchar", "mood::text"],
    "born": ["seen", "born"],
    "mood": ["mood"],
    "doc": ["raw", "doc", "doc->a"],
    "doc->>a": ["name", "raw->>a"],
    "visits.year": ["city_id"],
    "visits.cities.name": ["name"],
}
PATTERNS = st.sampled_from(["n%", "N_", "%", "", "%'%", "n\\%"])
SPECIAL = st.sampled_from(
    [
        {"open": {"is": "unknown"}},
        {"open": {"is": True}},
        {"born": {"is": "not null"}},
        {"mood": None},
        {"tags": {"cs": ["a"]}},
        {"tags": {"ov": ["x1", "b,c"]}},
        {"tags": {"cd": ["a", "b,c", "x1", "x2"]}},
        {"tags": {"eq": ["a", "b,c", None, "x1"]}},
        {"doc": {"cs": {"a": 1}}},
        {"doc": {"has_key": "a"}},
        {"doc": {"has_any": ["a", "z"]}},
        {"doc": {"not": {"has_all": ["a", "b"]}}},
        {"span": {"cs": 5}},
        {"span": {"sl": "[10,20)"}},
        {"span": {"adj": "[7,9)"}},
        {"name": {"fts": "n1"}},
        {"name": {"plfts": {"query": "n1", "config": "english"}}},
        {"name": {"match": "^n[12]$"}},
        {"visits": None},
        {"visits": {"is": "not null"}},
        {"visits.note": {"is": "not null"}},
        {"id": [1, 2, 3, None]},
        {"city_id": {"not": [1, 2, None]}},
        {"tags": [["a"], None]},
        {"doc->a": {"eq": {"any": [1, None]}}},
        {"visits": {"year": {"gt": 2005}, "note": None}},
        {"visits": {"or": [{"year": 2003}, {"cities": {"name": "City 2"}}]}},
        {'people!"id=boss_id"': {"pay": {"gt": 2}}},
        {"cities!visits": {"not": {"name": "City 1"}}},
        {"mood": []},
        {"name": {"like": {"any": ["n1", "%2"]}}},
        {"id": {"gt": {"all": [3, 4]}}},
        {"id": {"between": [3, 12]}},
        {"name": {"starts": "n"}},
        {"name": {"not": {"iends": {"any": ["1", "%"]}}}},
        {"id": {"contains": "1"}},
        {"visits.note": {"icontains": "Z"}},
        {"tags": {"length": {"gt": 2}}},
        {"name": {"length": {"lt": {"$column": "id"}}}},
        {"visits.note": {"not": {"length": [1, None]}}},
        {"doc": {"jsonpath": "$.b[*] ? (@ > 9)"}},
        {"raw": {"not": {"jsonpath_match": "$.a == 2"}}},
        {"raised": {"args": {"rate": 2}, "gt": "20"}},
        {"raised": {"args": {"rate": "0.5", "base": 3}, "not": {"lte": {"$column": "id"}}}},
        {"boss_id.raised": {"args": {"rate": None}, "is": None}},
    ]
)


def _conditions(column: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a condition on a column."""
    operand = OPERANDS[column]
    compared = st.tuples(st.sampled_from(COMPARISONS), operand).map(lambda pair: dict([pair]))
    listed = st.lists(operand | st.none(), max_size=3).map(lambda values: {"in": values})
    condition = compared | listed
    return (condition | condition.map(lambda c: {"not": c})).map(lambda c: {column: c})


def _compared(column: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a comparison of two columns."""
    pair = st.tuples(st.sampled_from(COMPARISONS), st.sampled_from(COLUMNS[column]))
    condition = pair.map(lambda each: {each[0]: {"$column": each[1]}})
    return (condition | condition.map(lambda c: {"not": c})).map(lambda c: {column: c})


TERMS = st.one_of(
    *[_conditions(column) for column in OPERANDS],
    *[_compared(column) for column in COLUMNS],
    PATTERNS.map(lambda pattern: {"name": {"ilike": pattern}}),
    SPECIAL,
)
WHERE = st.recursive(
    st.lists(TERMS, max_size=2).map(
        lambda terms: {k: v for each in terms for k, v in each.items()}
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda each: {"and": each}),
        st.lists(inner, max_size=3).map(lambda each: {"or": each}),
        inner.map(lambda each: {"not": each}),
    ),
    max_leaves=5,
)
ORDERS = st.lists(
    st.sampled_from(
        [
            *["id", "-name", "born", "-pay", "open", "-mood", "seen", "ratio", "doc->a", "shout"],
            *["-doc->>a", "city_id.name", "-boss_id.pay", "tags", "-span", "code"],
            *["doc->>a::int", "-born::text", "raw->a::numeric", "-boss_id.pay::int"],
            {"by": "pay", "desc": True, "nulls": "last"},
            {"by": "ratio", "nulls": "first"},
            {"by": "seen", "trunc": "day", "zone": "Asia/Tokyo", "desc": True},
            {"by": "born", "trunc": "year"},
            {"by": "name", "rank": "n1 or n2", "desc": True},
            {"by": "city_id.name", "desc": True, "nulls": "last"},
            {"by": "city_id.spot", "near": "(3,1)"},
            {"by": "raised", "args": {"rate": -1}, "nulls": "first"},
            {"by": "boss_id.raised", "args": {"base": 1, "rate": 2}, "desc": True},
        ]
    ),
    max_size=3,
    unique_by=lambda key: str(key if isinstance(key, str) else key["by"]).lstrip("-"),
)
SELECTS = st.lists(
    st.sampled_from(
        ["*", "name", "x:pay", "pay::float8", "doc->a", "leaf:doc->b->>0", "shout", "born::text",
         "-tags", "-id", {"column": "raised", "args": {"rate": 3}},
         {"column": "seen", "trunc": "day", "zone": "Asia/Tokyo", "as": "day"}]
    ),
    unique_by=str,
    max_size=4,
).filter(lambda items: not any("*" in items and each in items for each in ("name", "born::text", "pay::float8"))
         and ("*" in items or not any(each in items for each in ("-tags", "-id"))))  # fmt: skip
EMBEDS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "cities": st.sampled_from([{"via": "city_id"}, {"via": "city_id", "select": ["name"]}, {"via": "city_id", "spread": True, "select": ["c:name"]}]),
        "visits": st.sampled_from(
            [
                True,
                {"order": ["-year"], "limit": 1, "embed": {"cities": {"select": ["name"]}}},
                {"where": {"year": {"gt": 2005}}, "inner": True},
                {"measures": {"n": {"count": "*"}}},
                {"spread": True, "select": ["years:year"], "order": ["year"]},
            ]
        ),
        "boss": st.just({"relation": "people", "via": "boss_id", "direction": "one", "select": ["id"]}),
        "staff": st.sampled_from(
            [
                {"relation": "people", "via": "boss_id", "direction": "many", "select": ["id"]},
                {"relation": "people", "via": "boss_id", "direction": "many",
                 "measures": {"pay": {"sum": "pay"}}, "group": ["open"]},
            ]
        ),
        "visited": st.just({"relation": "cities", "via": "visits", "order": ["-name"], "offset": 1}),
    },
)  # fmt: skip


MEASURED: dict[str, Any] = {
    "staff": {"relation": "people", "via": "boss_id", "direction": "many", "measures": {
        "n": {"count": "*"}, "pay": {"sum": "pay"}, "born": {"max": "born", "where": {"open": True}}}},
    "visits": {"where": {"year": {"gt": 2004}}, "measures": {"n": {"count": "*"}, "last": {"max": "year"}}},
}  # fmt: skip
MEASURED_WHERE = st.sampled_from(
    [
        {"staff.n": {"gt": 1}},
        {"staff.pay": None},
        {"staff": {"or": [{"n": 0}, {"pay": {"gt": "20"}}]}},
        {"visits.last": {"gt": {"$column": "n"}}},
        {"visits": {"n": [0, 2], "last": {"not": 2010}}},
        {"staff.born::text": {"starts": "19"}},
    ]
)


def lawful(examples: int) -> Any:
    """Return hypothesis settings for tests that call a database; a quick run draws a tenth of the examples."""
    return settings(
        max_examples=amount(max(examples // 10, 5), examples),
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


async def whole(db: DirectCaller, relation: str, **query: Any) -> list[Any]:
    """Stream all rows of a query."""
    taker = Taker(db)
    final = await taker.call(f"{relation}.stream", chunk=7, **query)
    rows = [row for part in taker.parts for row in part]
    assert final["rows"] == len(rows)
    return rows


@pytest_twisted.ensureDeferred
@lawful(200)
@given(where=WHERE)
async def test_filter_in_any_verb_matches_the_same_rows(db: DirectCaller, where: Any) -> None:
    """Its negation matches the other rows."""
    rows = await whole(db, "people", where=where, select=["id"])
    n = len(rows)
    assert await db.call("people.count", where=where) == n
    assert await db.call("people.exists", where=where) is (n > 0)
    counted = await db.call("people.aggregate", {"n": {"count": "*"}}, where=where)
    assert counted == [{"n": n}]
    found = await db.call("people.find", where=where, select=["id"], count="exact", limit=2)
    assert (found["rows"], found["count"]) == (rows[:2], n)
    assert (found["next"] is None) is (n <= 2)
    assert await db.call("people.count", where={"and": [where, {"not": where}]}) == 0
    assert await db.call("people.count", where={"or": [where, {"not": where}]}) <= ROWS
    assert await db.call("people.count", where={"not": {"not": where}}) == n
    changed = await db.call("people.update", where=where, all=True, changes={}, returning=False)
    assert changed == {"affected": 0}
    again = [{"id": at, "name": "new"} for at in range(1, ROWS + 1)]
    upsert = {
        "call": "people.upsert",
        "args": [again],
        "kwargs": {"where": where, "select": ["id"]},
    }
    assert await db.call("transaction", [upsert], dry_run=True) == [rows]


@pytest_twisted.ensureDeferred
@lawful(200)
@given(where=WHERE, order=ORDERS, limit=st.integers(1, 12))
async def test_pages_in_any_order_equal_the_stream(
    db: DirectCaller, where: Any, order: Any, limit: int
) -> None:
    """By token and by offset."""
    rows = await whole(db, "people", where=where, order=order, select=["id"])
    paged: list[Any] = []
    after = None
    while True:
        page = await db.call(
            "people.find", where=where, order=order, select=["id"], limit=limit, after=after
        )
        assert len(page["rows"]) <= limit
        paged += page["rows"]
        after = page["next"]
        if after is None:
            break
    assert paged == rows
    back, before = page["rows"], page.get("prev")
    while before is not None:
        page = await db.call(
            "people.find", where=where, order=order, select=["id"], limit=limit, before=before
        )
        assert len(page["rows"]) <= limit
        assert page["next"] is not None
        back, before = page["rows"] + back, page["prev"]
    assert back == rows
    skipped = await db.call("people.find", where=where, order=order, select=["id"], offset=3)
    assert skipped["rows"] == rows[3:]


@pytest_twisted.ensureDeferred
@lawful(200)
@given(where=WHERE, select=SELECTS, embed=EMBEDS, order=ORDERS)
async def test_rows_in_any_form_are_the_same(
    db: DirectCaller, where: Any, select: Any, embed: Any, order: Any
) -> None:
    """As dicts, as lists, streamed, exported, and one by one."""
    query = {"where": where, "select": [*select, "key:id"], "embed": embed, "order": order}
    found = (await db.call("people.find", **query))["rows"]
    assert found == await whole(db, "people", **query)
    listed = await db.call("people.find", form="lists", **query)
    assert [dict(zip(listed["columns"], row, strict=True)) for row in listed["rows"]] == found
    taker = Taker(db)
    await taker.call("people.export", format="ndjson", **query)
    exported = [json.loads(line) for part in taker.parts for line in part.splitlines()]
    assert len(exported) == len(found)
    assert [list(row) for row in exported] == [list(row) for row in found]
    for row in found[:2]:
        alone = await db.call("people.get", row["key"], select=[*select, "key:id"], embed=embed)
        assert alone == row
    keys = [row["key"] for row in reversed(found)]
    got = await db.call("people.get", keys=[*keys, 99], select=[*select, "key:id"], embed=embed)
    assert got == [*reversed(found), None]


@pytest_twisted.ensureDeferred
@lawful(60)
@given(
    where=WHERE,
    measured=MEASURED_WHERE,
    order=st.lists(
        st.sampled_from(["-staff.n", "staff.pay", "-visits.last", "visits.n", "-staff.born"]),
        max_size=2, unique_by=lambda key: key.lstrip("-"),
    ),
)  # fmt: skip
async def test_rows_sorted_and_filtered_by_a_measure_agree_with_its_values(
    db: DirectCaller, where: Any, measured: Any, order: Any
) -> None:
    """Filters and sort keys agree with the values of the measure."""
    query = {"select": ["id"], "embed": MEASURED, "order": order}
    rows = await whole(db, "people", where=where, **query)
    some = await whole(db, "people", where={"and": [where, measured]}, **query)
    others = await whole(db, "people", where={"and": [where, {"not": measured}]}, **query)
    assert [row for row in rows if row in some] == some
    assert [row for row in rows if row in others] == others
    assert not [row for row in some if row in others]
    for key in order:
        name, measure = key.lstrip("-").split(".")
        if key == order[0]:
            values = [row[name][0][measure] for row in rows if row[name][0][measure] is not None]
            values = [float(each) if measure == "pay" else each for each in values]
            assert values == sorted(values, reverse=key.startswith("-"))


@pytest_twisted.ensureDeferred
@lawful(100)
@given(where=WHERE, related=st.sampled_from([{}, {"year": {"gt": 2007}}, {"note": None}]))
async def test_embeds_counted_listed_or_filtered_are_the_same_rows(
    db: DirectCaller, where: Any, related: Any
) -> None:
    by = {"relation": "visits", "where": related}
    rows = await whole(
        db, "people", where=where, select=["id"],
        embed={"visits": by, "n": {**by, "measures": {"n": {"count": "*"}}}},
    )  # fmt: skip
    for row in rows:
        assert row["n"] == [{"n": len(row["visits"])}] or row["n"] == {"n": len(row["visits"])}
        assert all(visit["person_id"] == row["id"] for visit in row["visits"])
    inner = await whole(
        db,
        "people",
        where=where,
        select=["id"],
        embed={"visits": {"where": related, "inner": True}},
    )
    assert [row["id"] for row in inner] == [row["id"] for row in rows if row["visits"]]


@pytest_twisted.ensureDeferred
@lawful(100)
@given(
    where=WHERE,
    group=st.lists(
        st.sampled_from(
            ["open", "mood", "place:city_id.name", "name", "doc->>a", "born", "k:doc->>a::int",
             {"column": "seen", "trunc": "hour", "zone": "Asia/Kathmandu"},
             {"column": "born", "trunc": "decade", "as": "age"},
             {"column": "raised", "args": {"rate": 2}, "cast": "int"}]
        ),
        unique_by=str, max_size=2,
    ).filter(lambda group: len({str(each)[:18] for each in group}) == len(group)),
)  # fmt: skip
async def test_groups_under_any_filter_add_up_to_the_total(
    db: DirectCaller, where: Any, group: Any
) -> None:
    """`having` removes some of the groups."""
    measures = {
        "n": {"count": "*"}, "pays": {"count": "pay"}, "few": {"count": "*", "where": {"id": {"lt": 9}}},
        "ids": {"array_agg": "id", "order": ["-name", "id"]}, "usual": {"mode": "name"},
        "middle": {"percentile": "id", "fraction": 0.5, "discrete": True}, "spread": {"stddev": "ratio"},
        "high": {"max": {"column": "raised", "args": {"rate": 2}}},
    }  # fmt: skip
    groups = await db.call("people.aggregate", measures, where=where, group=group)
    n = await db.call("people.count", where=where)
    assert sum(each["n"] for each in groups) == n
    for each in groups:
        assert len(each["ids"] or []) == each["n"]
        assert each["n"] == 0 or each["middle"] == sorted(each["ids"])[(each["n"] - 1) // 2]
    paid = {"and": [where, {"pay": {"is": "not null"}}]}
    assert sum(each["pays"] for each in groups) == await db.call("people.count", where=paid)
    few = {"and": [where, {"id": {"lt": 9}}]}
    assert sum(each["few"] for each in groups) == await db.call("people.count", where=few)
    large = await db.call("people.aggregate", measures, where=where, group=group, having={"n": {"gt": 2}})  # fmt: skip
    assert large == [each for each in groups if each["n"] > 2]
    (whole,) = await db.call("people.aggregate", measures, where=where)
    page = await db.call("people.find", select=["id"], where=where, limit=1, measures=measures)
    assert page["totals"] == whole
    assert len(page["rows"]) == min(n, 1)


@pytest_twisted.ensureDeferred
@lawful(100)
@given(where=WHERE, select=SELECTS, embed=EMBEDS, order=ORDERS, limit=st.integers(0, 40))
async def test_plan_of_any_query_has_the_number_of_rows_of_its_result(
    db: DirectCaller, where: Any, select: Any, embed: Any, order: Any, limit: int
) -> None:
    """EXPLAIN of a page, which reads one row more, and of its count."""
    query = {
        "where": where,
        "select": [*select, "key:id"],
        "embed": embed,
        "order": order,
        "limit": limit,
        "count": "exact",
    }
    found = await db.call("people.find", **query)
    page, counting = await db.call(
        "explain", {"call": "people.find", "kwargs": query, "analyze": True}
    )
    more = found["next"] is not None or (limit == 0 and found["count"] > 0)
    assert page["Plan"]["Actual Rows"] == len(found["rows"]) + more
    assert counting["Plan"]["Actual Rows"] == 1
