"""Plans of aggregates: types of measures, and names that groups, `having` and `order` accept."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.plan.plans import AggregatePlan
from service.plan.read_plan import plan_aggregate
from service.request.read_request import Limits, parse_aggregate
from tests.unit.samples import catalog

SAMPLE = catalog()
ACTIONS = SAMPLE.relation("public", "actions")


def planned(measures: Any, **kwargs: Any) -> AggregatePlan:
    """Plan an aggregate."""
    return plan_aggregate(SAMPLE, ACTIONS, parse_aggregate([measures], kwargs, Limits()).request)


@pytest.mark.parametrize(
    ("measure", "type"),
    [
        ({"count": "*"}, "bigint"),
        ({"sum": "id"}, "bigint"),
        ({"sum": "id::bigint"}, "numeric"),
        ({"sum": "id::numeric"}, "numeric"),
        ({"avg": "id"}, "numeric"),
        ({"max": "action"}, "character varying"),
        ({"min": "mood"}, "public.mood"),
        ({"bool_or": "status"}, "boolean"),
        ({"array_agg": "id"}, "integer[]"),
        ({"array_agg": "tags"}, "text[]"),
        ({"string_agg": "action"}, "text"),
        ({"sum": "id", "cast": "text"}, "text"),
    ],
)
def test_measure_has_the_type_of_its_result(measure: Any, type: str) -> None:
    """It is the type that PostgreSQL returns, so that `having` compares with the right operator."""
    assert planned({"m": measure}).grouped.measures[0].type.sql == type


def test_having_and_order_accept_names_and_columns_of_groups() -> None:
    """Groups are named by their names or by their columns."""
    plan = planned(
        {"n": {"count": "*"}},
        group=["s:status", "doc->>a"],
        having={"n": {"gt": 1}},
        order=["-n", "status"],
    )
    names = [key.expression.column.name for key in plan.grouped.order]
    assert names == ["n", "s", "a"]
    assert plan.having is not None
    assert [output.name for output in plan.grouped.outputs] == ["s", "a", "n"]


def test_group_of_json_is_of_jsonb() -> None:
    """The type json has no equality."""
    (group,) = planned({"n": {"count": "*"}}, group=["raw"]).grouped.groups
    assert group.expression.type.sql == "jsonb"


@pytest.mark.parametrize(
    ("kwargs", "path"),
    [
        ({"having": {"status": True}}, "having.status"),
        ({"order": ["status"]}, "order.0"),
        ({"group": ["n:status"]}, "measures"),
    ],
)
def test_name_that_no_group_has_is_refused(kwargs: Any, path: str) -> None:
    """Columns that are not grouped cannot be used; two groups cannot have the same name."""
    with pytest.raises(InvalidArgument) as refused:
        planned({"n": {"count": "*"}}, **kwargs)
    assert refused.value.details["path"] == path
