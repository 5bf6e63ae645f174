"""Aggregates, from the arguments to the SQL text."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.plan.read_plan import plan_aggregate, plan_find
from service.request.read_request import Limits, parse_aggregate, parse_find
from service.sql.select import aggregate, select
from tests.unit.samples import catalog

CATALOG = catalog()
ACTIONS = CATALOG.relation("public", "actions")
FROM = ' FROM "public"."actions" AS "t"'
LIMIT = " LIMIT CAST(%s AS bigint)"
COUNT = {"n": {"count": "*"}}


def build_statement(measures, **kwargs):
    """Build an aggregate."""
    call = parse_aggregate([measures], kwargs, Limits())
    return aggregate(plan_aggregate(CATALOG, ACTIONS, call.request))


def within(measures, **kwargs):
    """Return the SQL of the groups, inside of a statement."""
    text = build_statement(measures, **kwargs).text
    return text.partition(" FROM (")[2].partition(') AS "t"')[0]


def test_aggregate_without_groups_is_one_row():
    """The statement has no GROUP BY."""
    statement = build_statement(COUNT)
    assert statement.text == (
        f'SELECT "t"."n" AS "n" FROM (SELECT pg_catalog.count(*) AS "n"{FROM}) AS "t"{LIMIT}'
    )
    assert statement.columns == ("n",)


def test_groups_stand_by_position_and_order_the_answer():
    """GROUP BY has positions, because a path in a group contains parameters."""
    statement = build_statement(
        COUNT, group=["status", "a:doc->>a"], where={"id": {"gt": 1}}, offset=2
    )
    assert statement.text == (
        'SELECT "t"."status" AS "status", "t"."a" AS "a", "t"."n" AS "n" FROM (SELECT'
        ' "t"."status" AS "status", ("t"."doc" OPERATOR(pg_catalog.->>) CAST(%s AS text)) AS "a", pg_catalog.count(*) AS "n"'
        f'{FROM} WHERE "t"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer) GROUP BY 1, 2) AS "t"'
        f' ORDER BY "t"."status", "t"."a"{LIMIT} OFFSET CAST(%s AS bigint)'
    )


@pytest.mark.parametrize(
    ("measure", "sql"),
    [
        ({"count": "owner", "distinct": True}, 'pg_catalog.count(DISTINCT "t"."owner")'),
        ({"sum": "owner"}, 'pg_catalog.sum("t"."owner")'),
        ({"avg": "action::int"}, 'pg_catalog.avg(CAST("t"."action" AS integer))'),
        ({"max": {"column": "made", "cast": "text"}}, 'pg_catalog.max(CAST("t"."made" AS text))'),
        (
            {"min": "doc->>a"},
            'pg_catalog.min(("t"."doc" OPERATOR(pg_catalog.->>) CAST(%s AS text)))',
        ),
        ({"bool_and": "status"}, 'pg_catalog.bool_and("t"."status")'),
        ({"array_agg": "raw"}, 'pg_catalog.array_agg("t"."raw")'),
        (
            {"array_agg": "raw", "distinct": True},
            'pg_catalog.array_agg(DISTINCT CAST("t"."raw" AS jsonb))',
        ),
        (
            {"string_agg": "action", "separator": "; "},
            'pg_catalog.string_agg("t"."action", CAST(%s AS text))',
        ),
        (
            {"sum": "owner", "where": {"status": True}, "cast": "text"},
            'CAST(pg_catalog.sum("t"."owner") FILTER (WHERE "t"."status" OPERATOR(pg_catalog.=) CAST(%s AS boolean)) AS text)',
        ),
        (
            {"max": "actions_owner_fkey.action"},
            'pg_catalog.max((SELECT "t1"."action" FROM "public"."actions" AS "t1"'
            ' WHERE "t"."owner" OPERATOR(pg_catalog.=) "t1"."id" LIMIT 1))',
        ),
    ],
)
def test_measure_is_a_function_of_an_operand(measure, sql):
    """Functions, operands, filters and casts."""
    assert within({"m": measure}) == f'SELECT {sql} AS "m"{FROM}'


@pytest.mark.parametrize(
    ("measure", "type"),
    [
        ({"count": "action"}, "bigint"),
        ({"sum": "owner"}, "bigint"),
        ({"avg": "owner"}, "numeric"),
        ({"max": "mood"}, "public.mood"),
        ({"array_agg": "action"}, "character varying[]"),
        ({"string_agg": "action"}, "text"),
        ({"bool_or": "status"}, "boolean"),
        ({"sum": "owner", "cast": "text"}, "text"),
    ],
)
def test_having_compares_with_the_type_of_a_measure(measure, type):
    """Operands of `having` have the result types of measures."""
    statement = build_statement({"m": measure}, having={"m": {"neq": "x"}})
    assert f'AS "t" WHERE "t"."m" OPERATOR(pg_catalog.<>) CAST(%s AS {type})' in statement.text
    assert [bound.path for bound in statement.bounds][-2:] == ["having.m.neq", "limit"]


@pytest.mark.parametrize(
    ("order", "sql"),
    [
        (["-n"], '"t"."n" DESC, "t"."status"'),
        (["-status", "n"], '"t"."status" DESC, "t"."n"'),
        ([{"by": "n", "nulls": "first"}], '"t"."n" NULLS FIRST, "t"."status"'),
    ],
)
def test_order_of_groups_ends_with_the_groups(order, sql):
    """So that the order is total."""
    assert f" ORDER BY {sql} LIMIT" in build_statement(COUNT, group=["status"], order=order).text


def test_order_by_the_column_of_a_group_is_by_the_group():
    """A group is also named by its column."""
    text = build_statement(
        COUNT,
        group=["s:status", "actions_owner_fkey.action", "doc->>a"],
        order=["-status", "actions_owner_fkey.action", "-doc->>a"],
    ).text
    assert ' ORDER BY "t"."s" DESC, "t"."action", "t"."a" DESC LIMIT' in text


@pytest.mark.parametrize(
    ("measures", "kwargs", "path"),
    [
        ({}, {}, "measures"),
        ([], {}, "measures"),
        ({"n": "count"}, {}, "measures.n"),
        ({"n": {}}, {}, "measures.n"),
        ({"n": {"count": "*", "sum": "id"}}, {}, "measures.n"),
        ({"n": {"median": "id"}}, {}, "measures.n.median"),
        ({"n": {"pg_sleep": "id"}}, {}, "measures.n.pg_sleep"),
        ({"n": {"count(*); --": "id"}}, {}, "measures.n.count(*); --"),
        ({"n": {"sum": "*"}}, {}, "measures.n.sum"),
        ({"n": {"count": "owner.*"}}, {}, "measures.n.count"),
        ({"n": {"sum": "nope"}}, {}, "measures.n.sum"),
        ({"n": {"sum": "a:id"}}, {}, "measures.n.sum"),
        ({"n": {"sum": 1}}, {}, "measures.n.sum"),
        ({"n": {"sum": "id", "cast": "nope"}}, {}, "measures.n.cast"),
        ({"n": {"sum": "id", "cast": 1}}, {}, "measures.n.cast"),
        ({"n": {"sum": "id", "distinct": "yes"}}, {}, "measures.n.distinct"),
        ({"n": {"count": "*", "distinct": True}}, {}, "measures.n.distinct"),
        ({"n": {"sum": "id", "separator": ","}}, {}, "measures.n.separator"),
        ({"n": {"string_agg": "id", "separator": 1}}, {}, "measures.n.separator"),
        ({"n": {"sum": "id", "where": {"nope": 1}}}, {}, "measures.n.where.nope"),
        ({"": {"count": "*"}}, {}, "measures"),
        ({1: {"count": "*"}}, {}, "measures"),
        ({str(at): {"count": "*"} for at in range(201)}, {}, "measures"),
        ({"id": {"count": "*"}}, {"group": ["id"]}, "measures"),
        ({"x" * 70: {"count": "*"}, "x" * 71: {"count": "*"}}, {}, "measures"),
        (
            {str(at): {"count": "*", "where": {"or": [{"id": 1}] * 10}} for at in range(99)},
            {},
            "where",
        ),
        (COUNT, {"group": ["nope"]}, "group.0"),
        (COUNT, {"group": ["id", "id:status"]}, "group.1"),
        (COUNT, {"having": {"id": 1}}, "having.id"),
        (COUNT, {"having": {"n": {"is": True}}}, "having.n"),
        (COUNT, {"order": ["id"]}, "order.0"),
        (COUNT, {"limit": -1}, "limit"),
        (COUNT, {"embed": {}}, "embed"),
    ],
)
def test_malformed_aggregate_is_refused_with_its_path(measures, kwargs, path):
    """The error has the path."""
    with pytest.raises(InvalidArgument) as refused:
        build_statement(measures, **kwargs)
    assert refused.value.details["path"] == path


def test_misspelled_name_is_refused_with_the_nearest():
    """The hint has the nearest known name."""
    with pytest.raises(InvalidArgument) as refused:
        build_statement({"total": {"summ": "id"}})
    assert refused.value.details["hint"] == 'did you mean "sum"?'
    with pytest.raises(InvalidArgument) as refused:
        build_statement({"total": {"sum": "id"}}, order=["-totl"])
    assert refused.value.details["hint"] == 'did you mean "total"?'


def embedding(embed):
    """Return the SQL of a find of nothing but embeds."""
    call = parse_find([], {"select": [], "embed": embed}, Limits(), "actions")
    return select(plan_find(CATALOG, ACTIONS, call.request)).text


def test_embed_of_groups_selects_from_them():
    """The groups are a subselect within the embed."""
    embed = {
        "actions": {
            "direction": "many",
            "measures": {"n": {"count": "*"}, "mean": {"avg": "owner"}},
            "group": ["status"],
            "where": {"id": {"gt": 1}},
            "order": ["-n"],
            "limit": 2,
        }
    }
    assert (
        'LEFT JOIN LATERAL (SELECT pg_catalog.json_agg("r".*) AS "v" FROM ('
        'SELECT "gt1"."status" AS "status", "gt1"."n" AS "n", CAST("gt1"."mean" AS text) AS "mean"'
        ' FROM (SELECT "t1"."status" AS "status", pg_catalog.count(*) AS "n", pg_catalog.avg("t1"."owner") AS "mean"'
        ' FROM "public"."actions" AS "t1" WHERE "t"."id" OPERATOR(pg_catalog.=) "t1"."owner"'
        ' AND "t1"."id" OPERATOR(pg_catalog.>) CAST(%s AS integer) GROUP BY 1) AS "gt1"'
        ' ORDER BY "gt1"."n" DESC, "gt1"."status" LIMIT CAST(%s AS bigint)'
        ') AS "r") AS "et1" ON true'
    ) in embedding(embed)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"measures": {}}, "embed.actions.measures"),
        ({"measures": {"n": {"summ": "id"}}}, "embed.actions.measures.n.summ"),
        ({"measures": {"n": {"sum": "nope"}}}, "embed.actions.measures.n.sum"),
        ({"measures": {"id": {"sum": "id"}}, "group": ["id"]}, "embed.actions.measures"),
        ({"measures": COUNT, "select": ["id"]}, "embed.actions.select"),
        ({"measures": COUNT, "embed": {}}, "embed.actions.embed"),
        ({"measures": COUNT, "order": ["id"]}, "embed.actions.order.0"),
        ({"group": ["nope"]}, "embed.actions.group.0"),
    ],
)
def test_malformed_embed_of_groups_is_refused_with_its_path(options, path):
    """The error has the path."""
    with pytest.raises(InvalidArgument) as refused:
        embedding({"actions": {"direction": "many", **options}})
    assert refused.value.details["path"] == path
