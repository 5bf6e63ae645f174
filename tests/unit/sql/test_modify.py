"""Writes, from the arguments to the SQL text."""

from __future__ import annotations

import pytest

from service.errors import InvalidArgument
from service.plan.plans import Bound, Lock
from service.plan.write_plan import plan_create, plan_current, plan_delete, plan_update
from service.request.read_request import Limits
from service.request.write_request import parse_create, parse_delete, parse_update, parse_upsert
from service.sql.modify import modify
from service.sql.select import select
from service.sql.statement import Mark, Statement
from tests.unit.samples import catalog
from tests.unit.sql.test_select import INTEGER, alike

CATALOG = catalog()
ACTIONS = CATALOG.relation("public", "actions")
IS_KEY = '"excluded"."id" OPERATOR(pg_catalog.=) CAST(%s AS integer)'
OWNER = '"t"."owner"'
BACK = {"select": ["id"]}


def created(values, **kwargs):
    """Build a create."""
    return modify(
        plan_create(CATALOG, ACTIONS, parse_create([values], {**BACK, **kwargs}, Limits()).request)
    )


def test_create_of_a_row_returns_it():
    """With the values that the database generated."""
    assert created({"action": "a", "status": {"$default": True}}).text == (
        'INSERT INTO "public"."actions" AS "t" ("action", "status") VALUES (%s, DEFAULT)'
        ' RETURNING "t"."id" AS "id"'
    )
    assert created({}).text == (
        'INSERT INTO "public"."actions" AS "t" DEFAULT VALUES RETURNING "t"."id" AS "id"'
    )


def test_create_of_defaults_alone_inserts_each_row():
    """DEFAULT VALUES inserts one row only, so several are selected from a source without columns."""
    assert created([{}, {}]).text == (
        'INSERT INTO "public"."actions" AS "t" SELECT FROM pg_catalog.generate_series(1, 2)'
        ' RETURNING "t"."id" AS "id"'
    )


def test_create_of_rows_with_other_columns_fills_in_defaults():
    """A column that one of several rows lacks gets its default."""
    statement = created([{"action": "a"}, {"status": True}])
    assert '("action", "status") VALUES (%s, DEFAULT), (DEFAULT, %s)' in statement.text
    assert [bound.path for bound in statement.bounds] == ["values.0.action", "values.1.status"]


def test_write_with_returning_false_returns_nothing():
    """The statement has no RETURNING."""
    assert "RETURNING" not in created({"action": "a"}, returning=False).text


def test_write_with_order_reads_rows_from_a_second_statement():
    """RETURNING has no order, so the rows are read again."""
    assert created([{"action": "a"}], order=["-action"]).text == (
        'WITH "w" ("v") AS (INSERT INTO "public"."actions" AS "t" ("action") VALUES (%s)'
        ' RETURNING CAST(ARRAY[CAST("t"."id" AS text)] AS text[])) SELECT FROM "w"'
        " HAVING pg_catalog.set_config('rowcast.written',"
        ' coalesce(CAST(pg_catalog.json_agg("w"."v") AS text), \'[]\'), true) IS NULL;'
        ' SELECT "t"."id" AS "id"'
        " FROM pg_catalog.json_array_elements(CAST(pg_catalog.current_setting("
        '\'rowcast.written\') AS json)) WITH ORDINALITY AS "w" ("v", "n")'
        ' JOIN "public"."actions" AS "t"'
        ' ON "t"."id" OPERATOR(pg_catalog.=) CAST("w"."v" OPERATOR(pg_catalog.->>) 0 AS integer)'
        ' ORDER BY "t"."action" DESC, "w"."n"'
    )


def test_update_by_key_compares_what_is_expected():
    """The key and the values of `expect` are conditions."""
    call = parse_update([7, {"action": "b"}], {"expect": {"owner": None}, **BACK}, Limits())
    assert modify(plan_update(CATALOG, ACTIONS, call.request)).text == (
        'UPDATE "public"."actions" AS "t" SET "action" = %s'
        ' WHERE ("t"."id" OPERATOR(pg_catalog.=) CAST(%s AS integer)'
        f" AND {alike(OWNER, INTEGER)})"
        ' RETURNING "t"."id" AS "id"'
    )


def test_delete_by_filter_returns_the_rows():
    """The filter is the condition, and RETURNING has the rows."""
    call = parse_delete([], {"where": {"status": True}, "returning": False}, Limits())
    assert modify(plan_delete(CATALOG, ACTIONS, call.request)).text == (
        'DELETE FROM "public"."actions" AS "t" WHERE "t"."status" OPERATOR(pg_catalog.=) CAST(%s AS boolean)'
    )


def test_current_row_is_read_and_locked():
    """The stored row is read with a row lock before the write."""
    call = parse_update([7, {}], {"expect": {"raw": 1}, **BACK}, Limits())
    request = call.request
    plan = plan_current(CATALOG, ACTIONS, request.target, request.returning, lock=Lock())
    same = alike('CAST("t"."raw" AS jsonb)', "CAST(%s AS jsonb)")
    assert select(plan).text.endswith(f' AND {same}) FOR UPDATE OF "t"')


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"nope": 1}, "values.nope"),
        ({"made": "now"}, "values.made"),
        ([{}, {"x": 1}], "values.1.x"),
    ],
)
def test_column_that_cannot_be_written_is_refused(values, path):
    """Unknown and generated columns."""
    with pytest.raises(InvalidArgument) as refused:
        created(values)
    assert refused.value.details["path"] == path


def upserted(values, name="actions", **kwargs):
    """Return the ON CONFLICT clause of an upsert."""
    relation = CATALOG.relation("public", name)
    call = parse_upsert([values], {"returning": False, **kwargs}, Limits())
    return modify(plan_create(CATALOG, relation, call.request)).text.partition(" ON CONFLICT ")[2]


@pytest.mark.parametrize(
    ("values", "kwargs", "sql"),
    [
        (
            {"id": 1, "action": "a", "status": {"$default": True}},
            {},
            '("id") DO UPDATE SET "action" = "excluded"."action", "status" = "excluded"."status"',
        ),
        ({"id": 1}, {}, '("id") DO UPDATE SET "id" = "excluded"."id"'),
        ({}, {}, '("id") DO UPDATE SET "id" = "excluded"."id"'),
        ({"id": 1, "action": "a"}, {"update": []}, '("id") DO NOTHING'),
        (
            {"id": 1, "action": "a"},
            {"update": ["owner"]},
            '("id") DO UPDATE SET "owner" = "excluded"."owner"',
        ),
        (
            {"action": "a", "owner": 1, "doc": None},
            {"on_conflict": ["owner", "action"]},
            '("owner", "action") DO UPDATE SET "doc" = "excluded"."doc"',
        ),
        (
            {"action": "a", "owner": 1},
            {"on_conflict": "actions_ao"},
            '("action", "owner") DO UPDATE SET "action" = "excluded"."action"',
        ),
        ({"id": 1, "owner": 2}, {"on_conflict": "id"}, '("id") DO UPDATE SET "owner" = "excluded"."owner"'),
        (
            [{"id": 1, "owner": 2}, {"id": 3}, {"id": "4"}, {"action": "new"}],
            {"max_affected": 9, "update": None},
            '("id") DO UPDATE SET "owner" = CASE WHEN'
            f" {' OR '.join([IS_KEY] * 2)}"
            ' THEN "t"."owner" ELSE "excluded"."owner" END,'
            ' "action" = CASE WHEN'
            f" {' OR '.join([IS_KEY] * 3)}"
            ' THEN "t"."action" ELSE "excluded"."action" END',
        ),
    ],
)  # fmt: skip
def test_upsert_updates_the_given_columns(values, kwargs, sql):
    """Given columns are updated, except those of the key."""
    assert upserted(values, **kwargs) == sql


def test_upsert_into_a_view_accepts_any_columns_as_key():
    """Only PostgreSQL knows which columns of a view are unique."""
    sql = '("note") DO UPDATE SET "note" = "excluded"."note"'
    assert upserted({"note": "x"}, "notes", on_conflict=["note"]) == sql


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"on_conflict": ["action"]}, "on_conflict"),
        ({"on_conflict": ["nope"]}, "on_conflict.0"),
        ({"on_conflict": "nope"}, "on_conflict"),
        ({"on_conflict": "action"}, "on_conflict"),
        ({"on_conflict": []}, "on_conflict"),
        ({"on_conflict": [1]}, "on_conflict.0"),
        ({"on_conflict": 1}, "on_conflict"),
        ({"update": ["nope"]}, "update.0"),
        ({"update": ["id", "made"]}, "update.1"),
        ({"update": [None]}, "update.0"),
        ({"update": True}, "update"),
        ({"name": "notes"}, "on_conflict"),
        ({"expect": {}}, "expect"),
    ],
)
def test_upsert_without_a_unique_key_is_refused(kwargs, path):
    """An upsert needs a unique key, and columns that can be written."""
    with pytest.raises(InvalidArgument) as refused:
        upserted({"note": "x"} if "name" in kwargs else {"id": 1}, **kwargs)
    assert refused.value.details["path"] == path


def test_prefixed_statement_keeps_marks_and_parameters():
    """Each part keeps its own parameters in their positions."""
    text, behind = "SELECT a%%, %s; ", "SELECT b, %s"
    marks = (Mark("a", "a", behind=len(text + behind) - 7), Mark("b", "b", behind=5))
    bounds = tuple(Bound(at, CATALOG.type(23), f"{at}") for at in range(2))
    statement = Statement(text + behind, bounds, "x", marks=marks, head=len(text))
    prefixed = statement.prefixed("SET x; ")
    assert prefixed.text == "SELECT a%%, %s; SET x; SELECT b, %s"
    assert [prefixed.text[len(prefixed.text) - mark.behind] for mark in prefixed.marks] == [
        "a",
        "b",
    ]
    first, second = statement.parts()
    assert (first.text, first.bounds) == (text, bounds[:1])
    assert (second.text, second.bounds, second.marks) == (behind, bounds[1:], marks[1:])
