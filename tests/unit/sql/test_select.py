"""Reads, from the arguments to the SQL text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.catalog import Type
from service.errors import InvalidArgument, NoSuchProcedure
from service.plan.read_plan import plan_count, plan_find, plan_get
from service.request.read_request import (
    Limits,
    digest_of,
    parse_count,
    parse_find,
    parse_get,
    write_token,
)
from service.sql.select import count, estimate, exists, select
from tests.unit.samples import catalog

CATALOG = catalog()
FROM = ' FROM "public"."actions" AS "t"'


def relation(name="actions", schema="public"):
    """Return a sample relation."""
    return CATALOG.relation(schema, name)


ID, INTEGER = '"t"."id"', "CAST(%s AS integer)"


def found(name="actions", **kwargs):
    """Return the statement of a find, and its call."""
    call = parse_find([], {"select": ["id"], **kwargs}, Limits(), name)
    return select(plan_find(CATALOG, relation(name), call.request)), call


def alike(left, right):
    """Return the condition that two values are equal, or both null."""
    nulls = f"pg_catalog.num_nulls({left}, {right}) OPERATOR(pg_catalog.=) 2"
    return f"coalesce({left} OPERATOR(pg_catalog.=) {right}, {nulls})"


def where_of(condition):
    """Return the WHERE clause of a filter, and its parameters."""
    call = parse_count([], {"where": condition}, Limits())
    statement = count(plan_count(CATALOG, relation(), call.request))
    text = statement.text.removeprefix(f"SELECT pg_catalog.count(*) FROM (SELECT {FROM} WHERE ")
    return text.removesuffix(") AS counted"), [call.values[each.slot] for each in statement.bounds]


def test_get_by_key_is_one_comparison():
    """The select list names the readable columns."""
    call = parse_get([5], {"select": ["id", "n:action"]}, Limits())
    statement = select(plan_get(CATALOG, relation(), call.request))
    assert statement.text == (
        f'SELECT "t"."id" AS "id", "t"."action" AS "n"{FROM} WHERE "t"."id" OPERATOR(pg_catalog.=) CAST(%s AS integer)'
    )
    assert statement.columns == ("id", "n")
    assert [bound.path for bound in statement.bounds] == ["key"]


@pytest.mark.parametrize(
    ("given", "columns", "keys"),
    [
        ({"select": ["id"]}, 'CAST("t"."status" AS text)', (1, 0)),
        ({"select": ["action"]}, 'CAST("t"."status" AS text), CAST("t"."id" AS text)', (1, 2)),
        ({"select": ["s:status", "n:id"]}, 'CAST("t"."status" AS text)', (2, 1)),
        ({"select": ["n:id::text"]}, 'CAST("t"."status" AS text), CAST("t"."id" AS text)', (1, 2)),
        (
            {"select": ["id"], "form": "json"},
            'CAST("t"."status" AS text), CAST("t"."id" AS text)',
            (1, 2),
        ),
    ],
)
def test_find_sorts_by_the_primary_key_last_and_returns_sort_keys_as_text(given, columns, keys):
    """A token needs them; an integer that the row shows is not returned twice."""
    statement, _ = found(order=["-status"], **given)
    assert statement.text.startswith("SELECT ")
    assert statement.text.endswith(
        f', {columns}{FROM} ORDER BY "t"."status" DESC, "t"."id" LIMIT CAST(%s AS bigint)'
    )
    assert statement.keys == keys


def test_column_twice_in_order_counts_once():
    """Only the first sort key of a column is used."""
    statement, _ = found(order=["id", "-id", "id"])
    assert statement.text.endswith(' ORDER BY "t"."id" LIMIT CAST(%s AS bigint)')


def test_odd_names_are_quoted():
    """Quotes and percent signs in names are doubled."""
    call = parse_get([5], {}, Limits())
    statement = select(plan_get(CATALOG, relation('odd %."name', "app"), call.request))
    assert statement.text == (
        'SELECT "t"."a""%%s" AS "a""%%s" FROM "app"."odd %%.""name" AS "t"'
        ' WHERE "t"."a""%%s" OPERATOR(pg_catalog.=) CAST(%s AS integer)'
    )


@pytest.mark.parametrize(
    ("order", "keys", "text"),
    [
        ([], ["7"], '("t"."id") OPERATOR(pg_catalog.>) (CAST(%s AS integer))'),
        (["-id"], ["7"], '("t"."id") OPERATOR(pg_catalog.<) (CAST(%s AS integer))'),
        (
            ["-status"],
            ["t", "7"],
            '((("t"."status" OPERATOR(pg_catalog.<) CAST(%s AS boolean))) OR ("t"."status" OPERATOR(pg_catalog.=) CAST(%s AS boolean)'
            ' AND ("t"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer))))',
        ),
        (
            ["owner"],
            [None, "7"],
            '((false) OR ("t"."owner" IS NULL AND ("t"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer))))',
        ),
        (
            ["-owner"],
            [None, "7"],
            '(("t"."owner" IS NOT NULL) OR ("t"."owner" IS NULL'
            ' AND ("t"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer))))',
        ),
        (
            ["owner"],
            ["3", "7"],
            '((("t"."owner" OPERATOR(pg_catalog.>) CAST(%s AS integer) OR "t"."owner" IS NULL))'
            ' OR ("t"."owner" OPERATOR(pg_catalog.=) CAST(%s AS integer) AND ("t"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer))))',
        ),
    ],
)
def test_page_after_a_token_begins_behind_its_row(order, keys, text):
    """The condition compares the sort keys with those in the token."""
    call = parse_find([], {"order": order}, Limits(), "public.actions")
    token = write_token(digest_of(*call.query), keys)
    call = parse_find([], {"order": order, "after": token}, Limits(), "public.actions")
    statement = select(plan_find(CATALOG, relation(), call.request))
    assert f" WHERE {text} ORDER BY" in statement.text
    assert all(bound.raw for bound in statement.bounds if bound.path == "after")


def test_page_without_a_key_uses_offset():
    """Rows without a key cannot use keyset pagination."""
    call = parse_find([], {"select": ["note"]}, Limits(), "notes")
    token = write_token(digest_of(*call.query), 40)
    again = parse_find([], {"select": ["note"], "offset": 2, "after": token}, Limits(), "notes")
    statement = select(plan_find(CATALOG, relation("notes"), again.request))
    assert statement.text.endswith(" LIMIT CAST(%s AS bigint) OFFSET CAST(%s AS bigint)")
    assert again.offset == 42


def test_token_of_other_sort_keys_is_refused():
    """The token is forged."""
    token = write_token(digest_of(*parse_find([], {}, Limits(), "actions").query), ["1", "2"])
    with pytest.raises(InvalidArgument):
        found(after=token)


def test_distinct_rows_are_sorted_by_what_is_selected():
    """Columns of DISTINCT ON are the first sort keys."""
    statement, _ = found(distinct=True, select=["status", "action"], order=["-action"])
    assert statement.text.startswith('SELECT DISTINCT "t"."status" AS "status"')
    assert " ORDER BY 2 DESC, 1 LIMIT" in statement.text
    statement, _ = found(distinct=["owner"], order=["-id"])
    assert 'DISTINCT ON ("t"."owner")' in statement.text
    assert ' ORDER BY "t"."owner", "t"."id" DESC LIMIT' in statement.text
    with pytest.raises(InvalidArgument, match="selected"):
        found(distinct=True, select=["status"], order=["id"])


def test_select_list_has_aliases_casts_and_paths():
    """Each becomes a column of the result."""
    statement, _ = found(select=["*"])
    assert statement.columns == tuple(relation().columns)
    statement, _ = found(select=["n:id::text", "doc->a->>0", "raw->x", {"column": "tags->1"}])
    assert statement.columns == ("n", "0", "x", "1")
    assert statement.text.startswith('SELECT CAST("t"."id" AS text) AS "n",')
    assert (
        '("t"."doc" OPERATOR(pg_catalog.->) CAST(%s AS text) OPERATOR(pg_catalog.->>) CAST(%s AS integer))'
        in statement.text
    )
    assert (
        '(pg_catalog.to_jsonb("t"."raw") OPERATOR(pg_catalog.->) CAST(%s AS text))'
        in statement.text
    )
    statement, _ = found(select=["status", "*", "id", "id"])
    assert statement.columns == (
        "status",
        *(name for name in relation().columns if name != "status"),
    )
    assert found(select=[])[0].columns == tuple(relation().columns)


def test_star_of_related_rows_is_refused():
    """An embed without `select` returns all columns."""
    with pytest.raises(InvalidArgument, match="of the row itself") as caught:
        found(select=["id", "owner.*"])
    assert caught.value.details["path"] == "select.1"
    assert caught.value.details["hint"].startswith('embed={"owner": true}')


def test_cast_to_a_type_of_the_same_letters_is_to_the_one_named():
    """Names of two types may differ in case only."""
    other = Type(9001, "public", "Mood", 'public."Mood"', "enum", "E", labels=("up",))
    both = replace(CATALOG, types={9001: other, **CATALOG.types})
    assert both.type_named('public."Mood"').oid == 9001
    assert both.type_named("public.mood").oid == 9000
    assert both.type_named("PUBLIC.MOOD").oid == 9000


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"select": ["nope"]}, "select.0"),
        ({"select": ["id", "id:action"]}, "select.1"),
        ({"select": ["doc->0", 'doc->"0"']}, "select.1"),
        ({"select": ["id::nope"]}, "select.0"),
        ({"select": ["id->a"]}, "select.0"),
        ({"select": ["x:*"]}, "select.0"),
        ({"order": ["nope"]}, "order.0"),
        ({"order": ["raw"]}, "order.0"),
        ({"where": {"nope": 1}}, "where.nope"),
        ({"where": {"status": {"is": "unknown"}, "action": {"is": True}}}, "where.action"),
        ({"where": {"action": {"has_key": "a"}}}, "where.action.has_key"),
        ({"where": {"driver.name": "a"}}, "where.driver.name"),
    ],
)
def test_invalid_find_is_refused_with_its_path(kwargs, path):
    """Names that the catalog does not have, and operators that a type does not have."""
    with pytest.raises(InvalidArgument) as refused:
        found(**kwargs)
    assert refused.value.details["path"] == path


@pytest.mark.parametrize(
    ("where", "text", "values"),
    [
        ({"id": 1}, '"t"."id" OPERATOR(pg_catalog.=) CAST(%s AS integer)', [1]),
        ({"id": [1, 2]}, '"t"."id" OPERATOR(pg_catalog.=) ANY (CAST(%s AS integer[]))', [[1, 2]]),
        ({"id": None}, '"t"."id" IS NULL', []),
        ({"status": {"is": True}}, '"t"."status" IS TRUE', []),
        (
            {"id": {"isdistinct": None}},
            f"NOT ({alike(ID, INTEGER)})",
            [None, None],
        ),
        (
            {"action": {"like": "a%"}},
            '"t"."action" OPERATOR(pg_catalog.~~) CAST(%s AS text)',
            ["a%"],
        ),
        (
            {"id": {"ilike": {"any": ["1%"]}}},
            'CAST("t"."id" AS text) OPERATOR(pg_catalog.~~*) ANY (CAST(%s AS text[]))',
            [["1%"]],
        ),
        ({"tags": {"cs": ["a"]}}, '"t"."tags" OPERATOR(pg_catalog.@>) CAST(%s AS text[])', [["a"]]),
        ({"span": {"cs": 3}}, '"t"."span" OPERATOR(pg_catalog.@>) CAST(%s AS integer)', [3]),
        (
            {"span": {"cs": "[1,2)"}},
            '"t"."span" OPERATOR(pg_catalog.@>) CAST(%s AS int4range)',
            ["[1,2)"],
        ),
        (
            {"span": {"adj": "[1,2)"}},
            '"t"."span" OPERATOR(pg_catalog.-|-) CAST(%s AS int4range)',
            ["[1,2)"],
        ),
        (
            {"doc": {"has_any": ["a"]}},
            '"t"."doc" OPERATOR(pg_catalog.?|) CAST(%s AS text[])',
            [["a"]],
        ),
        (
            {"raw": {"cs": {"a": 1}}},
            'CAST("t"."raw" AS jsonb) OPERATOR(pg_catalog.@>) CAST(%s AS jsonb)',
            [{"a": 1}],
        ),
        (
            {"doc->>a": {"gt": "x"}},
            '("t"."doc" OPERATOR(pg_catalog.->>) CAST(%s AS text)) OPERATOR(pg_catalog.>) CAST(%s AS text)',
            ["a", "x"],
        ),
        (
            {"action": {"wfts": {"query": "q", "config": "english"}}},
            'pg_catalog.to_tsvector(CAST(%s AS regconfig), "t"."action") OPERATOR(pg_catalog.@@)'
            " pg_catalog.websearch_to_tsquery(CAST(%s AS regconfig), CAST(%s AS text))",
            ["english", "english", "q"],
        ),
        (
            {"or": [{"id": 1}, {"not": {"status": {"is": None}}}]},
            '("t"."id" OPERATOR(pg_catalog.=) CAST(%s AS integer) OR NOT ("t"."status" IS NULL))',
            [1],
        ),
        ({"or": []}, "false", []),
        ({"not": {}}, "NOT (true)", []),
    ],
)
def test_condition_is_sql_with_bound_values(where, text, values):
    """Each operator has the SQL of its PostgREST counterpart."""
    assert where_of(where) == (text, values)


def test_count_exists_and_estimate_are_queries_about_a_read():
    """Each is built around the query of the rows."""
    call = parse_count([], {}, Limits())
    plan = plan_count(CATALOG, relation(), call.request)
    assert count(plan).text == f"SELECT pg_catalog.count(*) FROM (SELECT {FROM}) AS counted"
    assert (
        count(plan, 5).text == f"SELECT pg_catalog.count(*) FROM (SELECT {FROM} LIMIT 5) AS counted"
    )
    assert estimate(plan).text == f"EXPLAIN (FORMAT JSON) SELECT {FROM}"
    assert exists(plan).text == f"SELECT EXISTS (SELECT {FROM})"


@pytest.mark.parametrize("key", [[1, 2], {"status": True}, {"nope": 1}, {"id": 1, "status": True}])
def test_get_by_no_unique_key_is_refused(key):
    """The columns of a key have to be those of a unique key."""
    with pytest.raises(InvalidArgument):
        plan_get(CATALOG, relation(), parse_get([key], {}, Limits()).request)


def test_get_by_any_unique_key_is_a_comparison():
    """A dict with the columns of any unique key is a key."""
    call = parse_get([{"owner": 3, "action": "x"}], {"select": ["id"]}, Limits())
    statement = select(plan_get(CATALOG, relation(), call.request))
    assert '("t"."action" OPERATOR(pg_catalog.=) ' in statement.text
    with pytest.raises(NoSuchProcedure):
        plan_get(CATALOG, relation("notes"), parse_get([1], {}, Limits()).request)
