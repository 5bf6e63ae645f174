"""
The Python kit's copy of the rows equals that of the service after each message.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.amounts import amount
from tests.kits import FORMS, kit, steps, steps_of_other_keys

SEEDS = range(amount(10, 60))


def texts(rows: Any, ordered: bool) -> list[str]:
    found = [kit().canonical(row) for row in rows]
    return found if ordered else sorted(found)


@pytest.mark.parametrize("name", FORMS)
def test_copy_is_the_state_after_each_step(name: str) -> None:
    """Each message has a checksum here."""
    for seed in SEEDS:
        copy = kit().Copy(FORMS[name][1])
        for step in steps(name, Random(seed), 8):
            for message in step.messages:
                copy.take(message)
            assert texts(copy.rows.values(), step.ordered) == texts(step.rows, step.ordered)
            assert copy.position == step.messages[-1]["position"]


def test_copy_of_a_table_whose_key_changes_is_the_state_after_each_step() -> None:
    for seed in SEEDS:
        copy = kit().Copy({})
        for step in steps_of_other_keys(Random(seed)):
            for message in step.messages:
                copy.take(message)
            assert texts(copy.rows.values(), False) == texts(step.rows, False)


@pytest.mark.parametrize("name", FORMS)
def test_changes_are_the_difference_of_two_states(name: str) -> None:
    """Applied to the rows before, they give the rows after."""
    for seed in SEEDS:
        copy, before = kit().Copy(FORMS[name][1]), []
        for step in steps(name, Random(seed), 8):
            changes = [copy.take(message) for message in step.messages]
            found, after = [each for each in changes if each], texts(copy.rows.values(), False)
            left = list(before)
            for change in found:
                for row in change.leave:
                    left.remove(kit().canonical(row))
                entered = texts(change.enter, False)
                assert len(left) + len(entered) == len(after)
            before = after


def test_copy_that_differs_is_a_mismatch() -> None:
    copy = kit().Copy({})
    row = {"a": 1, "n": 1}
    message = {"type": "snapshot", "rows": [row], "key": ["a"], "complete": True, "position": "1"}
    copy.take(message)
    copy.take({"type": "alive", "position": "2", "checksum": copy.checksum})
    with pytest.raises(kit().Mismatch):
        copy.take({"type": "alive", "position": "3", "checksum": copy.checksum + 1})


def test_incomplete_snapshot_does_not_change_the_rows() -> None:
    copy = kit().Copy({})
    whole = {
        "type": "snapshot",
        "rows": [{"a": 1}],
        "key": ["a"],
        "complete": True,
        "position": "1",
    }
    copy.take(whole)
    assert copy.take({**whole, "rows": [{"a": 2}], "complete": False, "position": "2"}) is None
    assert list(copy.rows.values()) == [{"a": 1}]
    copy.cut()
    copy.take({**whole, "rows": [{"a": 3}], "position": "3"})
    assert list(copy.rows.values()) == [{"a": 3}]


def test_resumed_copy_accepts_changes_of_unknown_rows() -> None:
    """After `since`, an update or a delete may concern a row that the copy does not have."""
    copy = kit().Copy({})
    copy.take(
        {"type": "snapshot", "rows": [{"a": 1}], "key": ["a"], "complete": True, "position": "1"}
    )
    change = copy.take(
        {"type": "delta", "enter": [], "update": [{"a": 2}], "leave": [3], "position": "2"}
    )
    assert list(copy.rows.values()) == [{"a": 1}, {"a": 2}]
    assert change.leave == []
