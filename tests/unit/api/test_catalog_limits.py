"""Errors of a row that the catalog alone shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.api.rules import catalog_faults
from tests.unit.samples import catalog

CATALOG = catalog()
ACTIONS = CATALOG.relation("public", "actions")


@pytest.mark.parametrize(
    ("values", "creating", "faults"),
    [
        ({"action": "a"}, True, {}),
        ({}, True, {"action": ["is required"]}),
        ({}, False, {}),
        ({"action": None}, False, {"action": ["may not be null"]}),
        ({"action": "a", "status": None}, True, {"status": ["may not be null"]}),
        ({"action": "x" * 8}, True, {}),
        ({"action": "x" * 8 + "  "}, True, {}),
        ({"action": "x" * 9}, True, {"action": ["is longer than 8 characters"]}),
        ({"mood": "ok"}, False, {}),
        ({"mood": None}, False, {}),
        ({"mood": "glad"}, False, {"mood": ["is none of sad, ok"]}),
        ({"action": 5, "mood": "glad", "status": None}, False, None),
    ],
)
def test_row_with_faults_names_every_failing_column(
    values: dict[str, Any], creating: bool, faults: dict[str, list[str]] | None
) -> None:
    """Valid columns are not named."""
    found = catalog_faults(ACTIONS, CATALOG, values, creating)
    assert found == faults if faults is not None else found.keys() == {"mood", "status"}


def test_default_of_a_column_without_one_is_a_fault() -> None:
    found = catalog_faults(ACTIONS, CATALOG, {}, False, defaulted=("action", "status"))
    assert found == {"action": ["has no default"]}


def test_column_that_a_trigger_may_fill_is_no_fault() -> None:
    """With a BEFORE trigger, only PostgreSQL knows which values are missing."""
    filled = replace(ACTIONS, before_triggers=frozenset({"insert"}))
    assert catalog_faults(filled, CATALOG, {"status": None}, True) == {}
    assert catalog_faults(filled, CATALOG, {"action": "x" * 9}, True).keys() == {"action"}
    assert catalog_faults(filled, CATALOG, {"action": None}, False).keys() == {"action"}
