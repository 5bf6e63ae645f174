"""
The steps and messages of nested creates, as the docstring of `service/plan/nested_rows.py` has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.plan.nested_rows import Messages, NewRows, Tree, plan_messages, plan_tree
from service.request.arguments import Values
from service.request.read_request import Limits
from service.request.write_request import parse_create
from tests.unit.samples import demo_catalog

CATALOG = replace(demo_catalog(), merge_returns=True)
EVE = {"name": "Eve", "vehicles": [{"plate": "B-RC 1", "model": "bus"}]}


def planned(values: Any) -> tuple[Tree, Messages]:
    """Return the tree and the messages of a create of drivers, as `api/nested.py` plans them."""
    parsed = parse_create([values], {}, Limits())
    request, slots = parsed.request, Values(parsed.values)
    rows = [(path or "values", row) for path, row in zip(request.paths, request.rows, strict=True)]
    slots.add(None)
    relation = CATALOG.relation("public", "drivers")
    tree = plan_tree(CATALOG, relation, rows, slots, 8, ("id",), by_key=not request.many)
    return tree, plan_messages(CATALOG, tree)


def test_key_of_one_row_is_passed_within_a_message() -> None:
    """It is used by the foreign key of the nested row and by the statement that reads the result."""
    tree, messages = planned(EVE)
    drivers, vehicles = tree.steps
    assert isinstance(drivers, NewRows)
    assert isinstance(vehicles, NewRows)
    assert (drivers.columns, drivers.filled, tree.key) == (("id",), ((5,),), (5,))
    assert [(each.column, each.operand) for each in vehicles.related] == [
        ("driver_id", (5, "values.vehicles.0"))
    ]
    assert messages == Messages((tree.steps,), frozenset([5]), frozenset())


def test_keys_of_several_rows_are_returned_before_the_next_message() -> None:
    """PostgreSQL passes no values of several rows; the result is read by the keys as text."""
    fay = {"name": "Fay", "vehicles": [{"plate": "B-RC 2", "model": "van"}]}
    tree, messages = planned([EVE, fay])
    drivers, vehicles = tree.steps
    assert messages.steps == ((drivers,), (vehicles,))
    assert messages.passed == frozenset()
    assert messages.returned == {slot for slots in drivers.filled for slot in slots}
