"""Deltas: applied to the rows of a state, they give the rows of the next state, in order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.changes.delta import (
    FoundRows,
    KeyRepeated,
    canonical,
    delta_message,
    difference,
    longest_rise,
    rows_of,
    snapshot_messages,
)
from service.changes.positions import parse_position
from service.plan.watch_plan import KeyForm
from tests.copies import Copy

PAGE = Path(__file__).parents[3] / "docs" / "live.md"
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.binary(),
    ),
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), each, max_size=3),
    ),
    max_leaves=6,
)
TABLES = st.dictionaries(st.integers(0, 12), st.integers(0, 3), max_size=8)


def found(form: KeyForm, rows: list[dict[str, Any]]) -> FoundRows:
    """Return the rows of a query result whose key is the column `id`."""
    shown = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    keys = [(row["id"],) for row in rows]
    return rows_of(form, shown if form.columns is None else rows, keys)


@given(shown=st.booleans(), data=st.data())
def test_copy_after_deltas_has_the_rows_in_their_order(shown: bool, data: st.DataObject) -> None:
    """This holds for any two states, and for the checksum."""
    form = KeyForm("column", ("id",) if shown else None, ordered=True)
    copy = Copy()
    last = None
    for at in range(4):
        table = data.draw(TABLES)
        order = data.draw(st.permutations(sorted(table)))
        now = found(form, [{"id": key, "n": table[key]} for key in order])
        if last is None:
            for message in snapshot_messages(form, now, "1"):
                copy.take(message)
        else:
            change = difference(last, now.state)
            copy.take(
                {**delta_message(form, last, now.state, change, now.rows), "position": str(at)}
            )
        last = now.state
        assert [key for key, _ in copy.rows] == order
        assert [row["n"] for _, row in copy.rows] == [table[key] for key in order]
        assert copy.checksum() == last.checksum


@given(
    first=st.lists(st.integers(0, 3), max_size=8), second=st.lists(st.integers(0, 3), max_size=8)
)
def test_rows_without_a_key_leave_once_for_each_copy(first: list[int], second: list[int]) -> None:
    """Equal rows are counted."""
    form = KeyForm("row", None, ordered=False)
    before, now = (
        rows_of(form, [{"n": n} for n in each], [()] * len(each)) for each in (first, second)
    )
    copy = Copy()
    for message in snapshot_messages(form, before, "1"):
        copy.take(message)
    change = difference(before.state, now.state)
    assert not change.update
    copy.take({**delta_message(form, before.state, now.state, change, now.rows), "position": "2"})
    assert sorted(row["n"] for _, row in copy.rows) == sorted(second)
    assert copy.checksum() == now.state.checksum


def test_row_that_moves_alone_is_the_only_one_in_the_delta() -> None:
    """The other rows keep their relative order."""
    form = KeyForm("column", ("id",), ordered=True)
    before = found(form, [{"id": n} for n in range(100)])
    now = found(form, [{"id": n} for n in [*range(1, 50), 0, *range(50, 100)]])
    change = difference(before.state, now.state)
    assert change.update == (0,)
    message = {**delta_message(form, before.state, now.state, change, now.rows), "position": "2"}
    assert message["after"] == {"enter": [], "update": [49]}


def test_rows_that_cannot_have_moved_are_not_in_the_delta() -> None:
    form = KeyForm("column", ("id",), ordered=True)
    before, now = (found(form, [{"id": n} for n in order]) for order in ((1, 2, 3), (2, 3, 1)))
    assert difference(before.state, now.state).moved == {1}
    assert difference(before.state, now.state, {1, 2}).moved == {1}
    change = difference(before.state, now.state, {2: 0, 3: 0})
    assert change.update == (2, 3)
    copy = Copy()
    for message in snapshot_messages(form, before, "1"):
        copy.take(message)
    rows = {name: now.rows[name] for name in (2, 3)}
    copy.take({**delta_message(form, before.state, now.state, change, rows), "position": "2"})
    assert copy.values == [{"id": 2}, {"id": 3}, {"id": 1}]


def test_duplicate_key_is_refused() -> None:
    """Otherwise a row would be lost."""
    with pytest.raises(KeyRepeated):
        found(KeyForm("column", ("id",), ordered=False), [{"id": 1}, {"id": 1}])


@given(st.permutations(range(9)))
def test_longest_rise_is_a_longest_increasing_subsequence(numbers: list[int]) -> None:
    rise = [numbers[at] for at in sorted(longest_rise(numbers))]
    assert rise == sorted(rise)
    best = [1] * len(numbers)
    for at, number in enumerate(numbers):
        best[at] += max((best[i] for i in range(at) if numbers[i] < number), default=0)
    assert len(rise) == max(best)


@given(VALUES)
def test_checksum_on_the_page_equals_the_services(value: Any) -> None:
    """The Python code in docs/live.md computes the same checksum as the service."""
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[1]
    made: dict[str, Any] = {}
    exec(shown, made)
    rows = rows_of(KeyForm("row", None, ordered=True), [{"v": value}, {"v": 1}], [(), ()])
    assert made["checksum"]([{"v": value}, {"v": 1}], [None, None], True) == rows.state.checksum


def test_canonical_form_of_numbers_is_that_of_every_language() -> None:
    """Integral numbers have one form, whatever their type; others have the digits of their double."""
    assert canonical([1, 1.0, -0.0, 2**53, 0.1]) == (
        '[1,1,0,"4340000000000000","3fb999999999999a"]'
    )


def test_messages_of_the_page_have_the_checksums_of_their_rows() -> None:
    """They also have the shape of the messages that are sent."""
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    messages = [json.loads(each) for each in re.split(r"\n(?={)", shown)]
    assert [message["type"] for message in messages] == ["snapshot", "delta", "alive"]
    copy = Copy()
    for message in messages:
        copy.take(message)  # compares the checksums
        assert parse_position(message["position"])
    assert copy.values == [{"id": 1, "name": "Eve"}]
