"""When written rows are read by a second statement, and by which key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Relation
from service.plan.plans import PlannedReturning
from service.plan.write_plan import plan_create, plan_delete, plan_update
from service.request.read_request import Limits
from service.request.write_request import parse_create, parse_delete, parse_update
from tests.unit.samples import demo_catalog

DEMO = demo_catalog()
VEHICLES = DEMO.relation("public", "vehicles")
DRIVER = {"drivers": {"select": ["name"]}}


def vehicles(**changes: Any) -> Relation:
    """Return the relation of the vehicles, with changes."""
    return replace(VEHICLES, **changes)


def created(relation: Relation, **kwargs: Any) -> PlannedReturning:
    """Plan a create."""
    values = kwargs.pop("values", {"plate": "B", "model": "bus"})
    return plan_create(DEMO, relation, parse_create([values], kwargs, Limits()).request).returning


def updated(relation: Relation, changes: dict[str, Any], **kwargs: Any) -> PlannedReturning:
    """Plan an update by key."""
    request = parse_update([1, changes], kwargs, Limits()).request
    return plan_update(DEMO, relation, request).returning


def deleted(relation: Relation, **kwargs: Any) -> PlannedReturning:
    """Plan a delete by key."""
    return plan_delete(DEMO, relation, parse_delete([1], kwargs, Limits()).request).returning


def test_rows_of_a_plain_table_are_returned_by_the_write() -> None:
    """Nothing changes them after RETURNING."""
    for returning in (created(VEHICLES), updated(VEHICLES, {"seats": 4}), deleted(VEHICLES)):
        assert returning.reread is None
        assert not returning.must_write
        assert len(returning.outputs) == 5


@pytest.mark.parametrize(
    "kwargs",
    [
        {"embed": DRIVER},
        {"embed": {"drivers": {"inner": True}}},
        {"select": ["drivers.name"]},
        {"order": ["plate"]},
    ],
)
def test_related_rows_of_a_written_row_are_read_afterwards(kwargs: Any) -> None:
    """Only the key of the row is passed to the second statement."""
    reread = created(VEHICLES, **kwargs).reread
    assert reread is not None
    assert [each.name for each in reread.saved] == ["id"]
    assert not reread.fallback
    assert [each.name for each in reread.equal] == ["="]


def test_deleted_row_is_taken_as_it_was() -> None:
    """It cannot be read afterwards, so all columns that are needed are passed on."""
    reread = deleted(VEHICLES, select=["plate"], embed=DRIVER).reread
    assert reread is not None
    assert reread.fallback
    assert reread.equal == ()
    assert {each.name for each in reread.saved} == {"plate", "driver_id"}
    types = {each.name: each.type for each in reread.saved}
    assert types["plate"] == "character varying(16)"


@pytest.mark.parametrize(
    ("changes", "create", "update"),
    [
        ({"changed_by_triggers": frozenset({"insert"})}, True, False),
        ({"changed_by_triggers": frozenset({"update"})}, False, True),
        ({"cascading_columns": frozenset({"seats"})}, False, True),
        ({"cascading_columns": frozenset({"plate"})}, False, False),
        ({"cascading_columns": frozenset({"plate"}), "side_effects": True}, False, True),
        ({"before_triggers": frozenset({"insert"})}, False, False),
    ],
)
def test_row_that_triggers_change_is_read_again(changes: Any, create: bool, update: bool) -> None:
    """AFTER triggers of the same kind of write, and foreign keys with CASCADE or SET NULL, may change it."""
    relation = vehicles(**changes)
    assert (created(relation, select=["id"]).reread is not None) is create
    assert (updated(relation, {"seats": 6}, select=["id"]).reread is not None) is update


def test_row_without_a_key_to_find_it_is_taken_as_written() -> None:
    """In a view with INSTEAD OF triggers, several rows may have the key."""
    view = vehicles(kind="view", auto_updatable=False)
    reread = created(view, embed=DRIVER).reread
    assert reread is not None
    assert reread.fallback
    assert reread.equal == ()


def test_write_that_a_trigger_may_suppress_is_checked() -> None:
    """If the row is not written, the statement fails; a table with rules cannot be written in WITH."""
    touchy = vehicles(side_effects=True)
    assert created(touchy).must_write
    assert updated(touchy, {"seats": 1}).must_write
    assert deleted(touchy).must_write
    assert not created(touchy, values=[{"plate": "B", "model": "bus"}]).must_write
    assert not created(vehicles(side_effects=True, has_rules=True)).must_write


def test_write_that_returns_nothing_reads_nothing() -> None:
    """This holds whatever triggers do."""
    relation = vehicles(changed_by_triggers=frozenset({"insert"}))
    assert created(relation, returning=False) == PlannedReturning()
