"""What follows from the relations, functions and types that a plan uses: `is_pure` and its like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Argument, Catalog, Function
from service.errors import InvalidArgument
from service.plan.call_plan import plan_called
from service.plan.plans import (
    ReadPlan,
    is_pure,
    refuse_estimate,
)
from service.plan.read_plan import plan_all
from service.plan.write_plan import plan_create
from service.request.call_request import parse_called
from service.request.read_request import Limits, parse_find
from service.request.write_request import parse_create
from tests.unit.samples import demo_catalog

DEMO = demo_catalog()
PURE = {"pure_reads": True, "pure_writes": True}


def catalog(**of: dict[str, Any]) -> Catalog:
    """Return the demo's catalog in which reads have no side effects, with changes of some relations."""
    relations = {
        key: replace(each, **{**PURE, **of.get(each.name, {})})
        for key, each in DEMO.relations.items()
    }
    label = Function("public", "label", (Argument("", 9100),), 25, volatility="stable")
    return replace(
        DEMO,
        relations=relations,
        types={oid: replace(each, pure=True) for oid, each in DEMO.types.items()},
        functions={**DEMO.functions, ("public", "label"): (label,)},
    )


def found(known: Catalog, **kwargs: Any) -> ReadPlan:
    """Plan all rows of a find."""
    request = parse_find([], kwargs, Limits(), "vehicles").request
    return plan_all(known, known.relation("public", "vehicles"), request)


EVERYWHERE = [
    {"where": {"drivers.name": "Ada"}},
    {"where": {"not": {"or": [{"id": 1}, {"drivers": None}]}}},
    {"embed": {"drivers": {"inner": True}}},
    {"select": ["drivers.name"], "distinct": True},
    {"distinct": ["drivers.name"]},
]


def test_plan_of_pure_parts_is_pure() -> None:
    """Relations and types without side effects; a function might have some."""
    assert is_pure(found(catalog(), where={"seats": 4}))
    assert not is_pure(found(catalog(), where={"label": "x"}))
    assert not is_pure(found(replace(catalog(), types=DEMO.types), where={"seats": 4}))


@pytest.mark.parametrize("kwargs", EVERYWHERE)
def test_plan_with_an_impure_relation_is_not_pure(kwargs: Any) -> None:
    """At any place in the plan."""
    assert is_pure(found(catalog(), **kwargs))
    assert not is_pure(found(catalog(drivers={"pure_reads": False}), **kwargs))


def test_write_is_as_pure_as_writes_of_its_relation() -> None:
    """A column's default may call a function, although reads of the table have no side effects."""
    for changes, pure in (
        ({}, True),
        ({"pure_writes": False}, False),
        ({"pure_reads": False}, True),
    ):
        known = catalog(vehicles=changes)
        request = parse_create(
            [{"plate": "B", "model": "bus"}], {"returning": False}, Limits()
        ).request
        relation = known.relation("public", "vehicles")
        assert is_pure(plan_create(known, relation, request), relation) is pure


@pytest.mark.parametrize("kwargs", EVERYWHERE)
def test_estimate_of_guarded_rows_is_refused(kwargs: Any) -> None:
    """Statistics include rows that policies hide."""
    refuse_estimate(DEMO, found(catalog(), **kwargs))
    with pytest.raises(InvalidArgument, match="policies hide"):
        refuse_estimate(DEMO, found(catalog(drivers={"estimable": False}), **kwargs))


def test_estimate_with_a_function_is_refused_under_policies() -> None:
    """The tables that a function reads are unknown."""
    guarded = replace(catalog(vehicles={"estimable": False}), policies=True)
    for known in (catalog(vehicles={"estimable": False}), guarded):
        functions = known.function("public", "with_seats")
        call = parse_called(
            functions, [], {"args": {"least": 4}}, known,
            lambda rest, rows: parse_find([], rest, Limits(), rows),
        )  # fmt: skip
        plan = plan_called(known, call.request, plan_all)
        if known.policies:
            with pytest.raises(InvalidArgument, match="policies hide"):
                refuse_estimate(known, plan)
        else:
            refuse_estimate(known, plan)
