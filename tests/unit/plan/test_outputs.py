"""Names and sort keys of results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog import Column, Relation, UniqueKey
from service.errors import InvalidArgument
from service.plan.clauses import refuse_repeated, row_key
from service.plan.plans import NAME_BYTES, ReadPlan, truncated
from service.plan.read_plan import plan_columns, plan_find
from service.plan.scope import Scope
from service.request.read_request import Limits, digest_of, parse_find, write_token
from tests.unit.samples import demo_catalog

DEMO = demo_catalog()
DRIVERS, VEHICLES = DEMO.relation("public", "drivers"), DEMO.relation("public", "vehicles")


def found(relation: Relation = VEHICLES, **kwargs: Any) -> ReadPlan:
    """Plan a find."""
    return plan_find(DEMO, relation, parse_find([], kwargs, Limits(), "x").request)


def sorted_by(plan: ReadPlan) -> list[str]:
    """Return the columns that a plan sorts by."""
    return [key.expression.column.name for key in plan.order]


@given(st.text())
def test_truncated_name_is_what_postgresql_keeps(name: str) -> None:
    """At most 63 bytes, in entire characters."""
    kept = truncated(name)
    assert name.startswith(kept)
    assert len(kept.encode()) <= NAME_BYTES
    assert truncated(kept) == kept
    if kept != name:
        assert len(name[: len(kept) + 1].encode()) > NAME_BYTES


def test_names_that_postgresql_truncates_to_the_same_are_refused() -> None:
    """One of the two columns would be lost."""
    long = "é" * 40
    assert refuse_repeated(["a", long], "select", "") == {"a", "é" * 31}
    with pytest.raises(InvalidArgument, match="stands twice"):
        refuse_repeated([long, f"{long}x"], "select", "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("id",)),
        ({"unique_keys": VEHICLES.unique_keys[1:]}, ("plate",)),
        ({"unique_keys": (UniqueKey("k", ("driver_id",)),)}, ()),
        ({"unique_keys": ()}, ()),
    ],
)
def test_row_key_is_the_first_unique_key_without_nulls(changes: Any, expected: Any) -> None:
    """Rows with a null in a unique key are not unique."""
    assert row_key(DEMO, replace(VEHICLES, **changes)) == expected


def test_row_key_of_columns_that_may_not_be_read_is_none() -> None:
    """The same holds for columns whose type has no order."""
    secret = replace(VEHICLES.columns["id"], selectable=False)
    columns = {**VEHICLES.columns, "id": secret, "plate": Column("plate", 114, "json")}
    assert row_key(DEMO, replace(VEHICLES, columns=columns)) == ()


def test_rows_are_sorted_by_their_key_last() -> None:
    """The token of a page needs the key; it is not added twice."""
    plan = found(order=["-seats", "model"])
    assert sorted_by(plan) == ["seats", "model", "id"]
    assert plan.keyset
    assert sorted_by(found(order=["-id"])) == ["id"]


def test_rows_without_a_key_are_sorted_by_all_columns() -> None:
    """Only if an order is given; their pages use an offset."""
    bare = replace(VEHICLES, primary_key=(), unique_keys=())
    plan = found(bare, order=["-seats"])
    assert sorted_by(plan) == ["seats", "id", "plate", "model", "driver_id"]
    assert not plan.keyset
    assert found(bare).order == ()


@pytest.mark.parametrize(
    ("order", "nulls"),
    [
        ("seats", "last"),
        ("-seats", "first"),
        ({"by": "seats", "nulls": "first"}, "first"),
        ({"by": "seats", "desc": True, "nulls": "last"}, "last"),
    ],
)
def test_nulls_are_sorted_as_in_postgresql(order: Any, nulls: str) -> None:
    """Last in ascending order, first in descending order."""
    assert found(order=[order]).order[0].nulls == nulls


def test_distinct_rows_are_sorted_by_position() -> None:
    """PostgreSQL requires each sort key to be in the select list."""
    plan = found(distinct=True, select=["model", "seats"], order=["-seats"])
    assert [(key.position, key.descending) for key in plan.order] == [(2, True), (1, False)]


@pytest.mark.parametrize("keys", [["4"], ["4", "1", "1"]])
def test_token_of_other_sort_keys_is_refused(keys: list[str]) -> None:
    """The token may be forged."""
    query = parse_find([], {"order": ["seats"]}, Limits(), "x").query
    with pytest.raises(InvalidArgument, match="not a token of these sort keys"):
        found(order=["seats"], after=write_token(digest_of(*query), keys))


def test_embed_replaces_a_column_of_its_name_that_is_not_selected() -> None:
    """If the column is selected, the name would be repeated, which is refused."""
    scope = Scope(
        DEMO,
        replace(VEHICLES, columns={**VEHICLES.columns, "drivers": Column("drivers", 25, "text")}),
    )
    embeds = parse_find([], {"embed": {"drivers": True}}, Limits(), "x").request.embeds
    outputs, planned = plan_columns(scope, None, embeds, "embed")
    assert "drivers" not in [each.name for each in outputs]
    assert [each.name for each in planned] == ["drivers"]
    select = parse_find([], {"select": ["drivers"]}, Limits(), "x").request.select
    with pytest.raises(InvalidArgument, match="stands twice"):
        plan_columns(scope, select, embeds, "embed")


def test_spread_embed_gets_a_key_that_no_column_has() -> None:
    """A column may have the name of the embed."""
    plan = found(
        DRIVERS,
        select=["vehicles:name"],
        embed={"vehicles": {"spread": True, "select": ["plate"]}},
    )
    assert [each.name for each in plan.outputs] == ["vehicles"]
    assert [(each.key, each.columns) for each in plan.embeds] == [("e0", ("plate",))]


def test_value_in_an_embed_is_text_if_json_would_change_it() -> None:
    """JSON would lose digits of a numeric, but not of an integer."""
    embed = {"vehicles": {"select": ["seats", "big:seats::numeric", "at:plate::timestamptz"]}}
    plan = found(DRIVERS, embed=embed)
    assert [each.text for each in plan.embeds[0].outputs] == [False, True, True]
