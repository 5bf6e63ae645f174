"""Values with hidden fields: they can be selected, but not compared, sorted or used as keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Catalog, Column, Relation, Type, UniqueKey
from service.errors import InvalidArgument, UnknownName
from service.plan.plans import ReadPlan
from service.plan.read_plan import plan_aggregate, plan_count, plan_find, plan_get
from service.plan.scope import has_hidden_field
from service.plan.write_plan import plan_import, plan_update
from service.request.read_request import Limits, parse_aggregate, parse_count, parse_find, parse_get
from service.request.write_request import parse_update
from tests.unit.samples import types

PERSON = Type(
    9200,
    "app",
    "person",
    "app.person",
    "composite",
    "C",
    fields=(("id", 23), ("name", 25), ("", 25)),
)
DERIVED = (
    Type(9201, "app", "_person", "app.person[]", "array", "A", element=9200),
    Type(9202, "app", "somebody", "app.somebody", "domain", "C", base=9200),
    Type(9203, "app", "pair", "app.pair", "composite", "C", fields=(("who", 9200), ("n", 23))),
    Type(9205, "app", "_pair", "app.pair[]", "array", "A", element=9203),
    Type(9206, "app", "_somebody", "app.somebody[]", "array", "A", element=9202),
    Type(9204, "app", "open", "app.open", "composite", "C", fields=(("a", 23), ("b", 25))),
)
COLUMNS = {"who": 9200, "friends": 9201, "anyone": 9202, "duo": 9203}
VISITS = Relation(
    "app",
    "visits",
    "table",
    {
        "id": Column("id", 23, "integer", nullable=False),
        **{name: Column(name, oid, "x") for name, oid in COLUMNS.items()},
        "open": Column("open", 9204, "app.open"),
    },
    ("id",),
    (UniqueKey("visits_pkey", ("id",)), UniqueKey("visits_who", ("who",))),
)
CATALOG = Catalog(
    1,
    ("app",),
    {("app", "visits"): VISITS},
    {**types(), PERSON.oid: PERSON, **{each.oid: each for each in DERIVED}},
)


def find(**kwargs: Any) -> ReadPlan:
    """Plan a find."""
    return plan_find(CATALOG, VISITS, parse_find([], kwargs, Limits(), "visits").request)


def count(where: Any) -> ReadPlan:
    """Plan a count."""
    return plan_count(CATALOG, VISITS, parse_count([], {"where": where}, Limits()).request)


def aggregate(measures: Any, **kwargs: Any) -> Any:
    """Plan an aggregate."""
    request = parse_aggregate([measures], kwargs, Limits()).request
    return plan_aggregate(CATALOG, VISITS, request)


def update(**kwargs: Any) -> Any:
    """Plan an update."""
    return plan_update(CATALOG, VISITS, parse_update([], kwargs, Limits()).request)


@pytest.mark.parametrize(
    ("oid", "hidden"),
    [(9200, True), (9201, True), (9202, True), (9203, True), (9204, False), (23, False)],
)
def test_hidden_field_is_found_at_any_depth(oid: int, hidden: bool) -> None:
    """In arrays, in domains, and in fields of fields."""
    assert has_hidden_field(CATALOG, oid) is hidden


@pytest.mark.parametrize("column", COLUMNS)
def test_value_with_a_hidden_field_can_be_selected(column: str) -> None:
    """It can be selected, counted, collected and tested for null."""
    assert find(select=[column]).outputs[0].name == column
    assert count({column: {"is": "not null"}}).where is not None
    assert aggregate({"n": {"count": column}, "all": {"array_agg": column}})


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "use",
    [
        lambda column: find(select=[f"{column}::text"]),
        lambda column: find(order=[column]),
        lambda column: find(select=[column], distinct=True),
        lambda column: find(distinct=[column]),
        lambda column: find(select=[column], form="json"),
        lambda column: count({column: "x"}),
        lambda column: count({column: {"in": ["x"]}}),
        lambda column: count({column: {"isdistinct": "x"}}),
        lambda column: count({column: {"like": "x"}}),
        lambda column: count({column: {"fts": "x"}}),
        lambda column: count({column: {"cs": ["x"]}}),
        lambda column: aggregate({"n": {"count": "*"}}, group=[column]),
        lambda column: aggregate({"n": {"max": column}}),
        lambda column: aggregate({"n": {"count": column, "distinct": True}}),
        lambda column: aggregate({"n": {"array_agg": column, "cast": "text"}}),
        lambda column: aggregate({"n": {"array_agg": column}}, form="json"),
        lambda column: update(key=1, changes={"open": None}, expect={column: "x"}),
        lambda column: update(key=1, changes={"open": None}, select=[column], form="json"),
        lambda column: plan_import(CATALOG, VISITS, [(column, "csv")], True, False, None),
    ],
)
def test_value_with_a_hidden_field_has_no_other_use(use: Callable[[str], Any], column: str) -> None:
    """Whatever depends on the entire value, or bypasses the codec, is refused."""
    with pytest.raises(InvalidArgument, match="hidden"):
        use(column)
    use("open")


def test_value_with_a_hidden_field_is_no_key() -> None:
    """It is not a key of `get`, nor a sort key of pages."""
    request = parse_get([{"who": "x"}], {}, Limits()).request
    with pytest.raises(InvalidArgument, match="hidden"):
        plan_get(CATALOG, VISITS, request)
    keyed = replace(VISITS, primary_key=("who",), unique_keys=VISITS.unique_keys[1:])
    plan = plan_find(CATALOG, keyed, parse_find([], {}, Limits(), "visits").request)
    assert not plan.keyset


@pytest.mark.parametrize(
    "path", ["who->name", "friends->0->>name", "anyone->id", "duo->who->>name", "duo->n", "open->a"]
)
def test_path_to_a_visible_field_is_accepted_everywhere(path: str) -> None:
    """A visible field can be used like a column."""
    assert find(select=[path], order=[path], where={path: {"is": "not null"}})


@pytest.mark.parametrize(
    "path", ["who->secret", "friends->0->secret", "duo->who->secret", "who->0"]
)
def test_path_to_an_unknown_field_is_refused_with_the_known_ones(path: str) -> None:
    """A hidden field is unknown, too, and not among the candidates."""
    with pytest.raises(UnknownName) as refused:
        find(select=[path])
    assert refused.value.details["path"] == "select.0"


@pytest.mark.parametrize("path", ["friends->0", "duo->who", "duo->>who"])
def test_path_that_ends_at_a_hidden_field_is_refused(path: str) -> None:
    """The value would be JSON, which the codec does not filter."""
    with pytest.raises(InvalidArgument, match="hidden"):
        find(select=[path])
