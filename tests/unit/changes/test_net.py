"""Net changes of a transaction, whatever the order in which its triggers wrote to the log."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.changes.log import LogRow, PgSnapshot, Tick, TrackedTable
from service.changes.net import Change, net_changes, parse_image
from service.changes.positions import TickPosition

AT = "2026-11-29T12:30:00.25Z"
TICK = Tick(3, 7, PgSnapshot(5, 5, ()), PgSnapshot(50, 50, ()), 0)
ITEMS = TrackedTable(1, 100, "public", "items", "full", 5, None, ("id",))
PAIRS = TrackedTable(2, 200, "public", "pairs", "full", 5, None, ("a", "b"))
KEYLESS = TrackedTable(3, 300, "public", "keyless", "full", 5, None)
KEYS = TrackedTable(4, 400, "public", "keyed", "keys", 5, None, ("id",))
TOUCHED = TrackedTable(5, 500, "public", "touched", "touch", 5, None, ("id",))
TRACKED = {each.id: each for each in (ITEMS, PAIRS, KEYLESS, KEYS, TOUCHED)}


class Log:
    """A generator of log rows."""

    def __init__(self) -> None:
        self.rows: list[LogRow] = []

    def add(
        self,
        op: Any,
        old: dict[str, Any] | str | None = None,
        new: dict[str, Any] | str | None = None,
        relation: int = 1,
        xid: int = 10,
    ) -> Log:
        """Add a log row with the next sequence number."""
        texts = [json.dumps(each) if isinstance(each, dict) else each for each in (old, new)]
        self.rows.append(LogRow(len(self.rows) + 1, str(xid), AT, relation, op, *texts))
        return self

    @property
    def net(self) -> list[Change]:
        """Return the net changes."""
        return list(net_changes(self.rows, TRACKED, TICK))

    @property
    def changes(self) -> list[tuple[Any, ...]]:
        """Return the net changes without positions."""
        return [(change.op, change.key, change.old, change.new) for change in self.net]


def row(id: int, **columns: Any) -> dict[str, Any]:
    return {"id": id, **columns}


A, B, C = row(1, v=1), row(1, v=2), row(1, v=3)


def test_insert_then_update_is_one_insert() -> None:
    assert Log().add("I", new=A).add("U", A, B).changes == [("insert", (1,), None, B)]


def test_insert_logged_after_its_update_is_one_insert() -> None:
    assert Log().add("U", A, B).add("I", new=A).changes == [("insert", (1,), None, B)]


def test_insert_then_delete_is_no_change() -> None:
    assert Log().add("I", new=A).add("U", A, B).add("D", B).changes == []


def test_updates_are_one_update_from_first_to_last() -> None:
    assert Log().add("U", A, B).add("U", B, C).changes == [("update", (1,), A, C)]


def test_update_back_to_the_first_value_is_no_change() -> None:
    assert Log().add("U", A, B).add("U", B, A).changes == []


def test_delete_then_insert_of_the_same_key_is_an_update() -> None:
    assert Log().add("D", A).add("I", new=B).changes == [("update", (1,), A, B)]
    assert Log().add("D", A).add("I", new=A).changes == []


def test_changed_key_is_a_delete_and_an_insert() -> None:
    moved = row(2, v=1)
    assert Log().add("U", A, moved).changes == [
        ("delete", (1,), A, None),
        ("insert", (2,), None, moved),
    ]


def test_keys_that_change_places_are_updates() -> None:
    one, two = row(1, v="a"), row(2, v="b")
    log = Log().add("U", one, row(3, v="a")).add("U", two, row(1, v="b"))
    assert log.add("U", row(3, v="a"), row(2, v="a")).changes == [
        ("update", (1,), one, row(1, v="b")),
        ("update", (2,), two, row(2, v="a")),
    ]


def test_key_of_several_columns_is_in_its_order() -> None:
    assert Log().add("I", new={"b": 2, "x": 0, "a": 1}, relation=2).net[0].key == (1, 2)


def test_unhashable_key_is_a_key() -> None:
    log = Log().add("U", '{"id": [1, 2], "v": 1}', '{"id": [1, 2], "v": 2}')
    assert log.changes[0][:2] == ("update", ([1, 2],))


def test_keys_that_are_equal_numbers_in_other_digits_are_two() -> None:
    log = Log().add("U", '{"id": 1.0}', '{"id": 1.00}')
    assert [(change.op, str(change.key)) for change in log.net] == [
        ("delete", "(Decimal('1.0'),)"),
        ("insert", "(Decimal('1.00'),)"),
    ]


def test_number_in_other_digits_is_an_update() -> None:
    assert Log().add("U", '{"id": 1, "v": 1.0}', '{"id": 1, "v": 1.00}').changes
    assert Log().add("U", '{"id": 1, "v": 1.00}', '{"id": 1, "v":"1.0"}').changes


def test_row_whose_columns_are_in_another_order_is_the_same() -> None:
    """A row that moves to another partition and back is logged as D and I each time."""
    here, there = '{"id": 1, "v": 1.0}', '{"v": 1.0, "id": 1}'
    assert Log().add("D", here).add("I", None, there).changes == []
    log = Log().add("U", A, here).add("D", here).add("I", None, there).add("U", there, B)
    assert log.changes == [("update", (1,), A, B)]


def test_truncate_discards_earlier_changes_and_precedes_later_ones() -> None:
    log = Log().add("U", A, B).add("D", row(2)).add("T").add("I", new=C).add("I", new=row(5))
    assert log.changes == [
        ("truncate", None, None, None),
        ("insert", (1,), None, C),
        ("insert", (5,), None, row(5)),
    ]


def test_rows_inserted_before_truncate_are_a_reset() -> None:
    """A trigger of the TRUNCATE may have inserted them after it, but before it was logged."""
    assert Log().add("I", new=A).add("T").changes == [("reset", None, None, None)]
    assert Log().add("U", A, B).add("I", new=C).add("T").changes == [("reset", None, None, None)]


def test_row_replaced_after_truncate_that_was_never_inserted_is_a_reset() -> None:
    assert Log().add("T").add("U", A, B).changes == [("reset", None, None, None)]


def test_last_truncate_counts() -> None:
    log = Log().add("T").add("U", A, B).add("T").add("I", new=C)
    assert log.changes == [("truncate", None, None, None), ("insert", (1,), None, C)]


def test_reset_replaces_all_changes_of_its_relation() -> None:
    log = Log().add("U", A, B).add("R").add("I", new={"a": 1, "b": 2}, relation=2)
    assert log.changes == [
        ("reset", None, None, None),
        ("insert", (1, 2), None, {"a": 1, "b": 2}),
    ]


def test_relation_altered_between_two_updates_is_a_reset() -> None:
    wider = row(1, v=2, w=0)
    assert Log().add("U", A, B).add("U", wider, row(1, v=3, w=0)).changes == [
        ("reset", None, None, None)
    ]


def test_key_column_that_images_lack_is_a_reset() -> None:
    assert Log().add("I", new={"v": 1}).changes == [("reset", None, None, None)]


def test_statements_at_level_touch_are_one_touch() -> None:
    assert Log().add("C", relation=5).add("C", relation=5).changes == [("touch", None, None, None)]
    log = Log().add("C", relation=5).add("T", relation=5).add("C", relation=5)
    assert log.changes == [("truncate", None, None, None), ("touch", None, None, None)]


def test_level_keys_gives_the_net_change_of_each_key() -> None:
    one, two = row(1), row(2)
    log = Log().add("U", one, one, 4).add("U", one, one, 4)
    assert log.changes == [("update", (1,), one, one)]
    assert Log().add("U", one, two, 4).changes == [
        ("delete", (1,), one, None),
        ("insert", (2,), None, two),
    ]
    log = Log().add("U", one, one, 4).add("I", None, one, 4)
    assert log.changes == [("insert", (1,), None, one)]


def test_relation_without_a_key_counts_copies() -> None:
    x, y = {"v": "x"}, {"v": "y"}
    log = Log().add("I", new=x, relation=3).add("I", new=x, relation=3)
    assert log.changes == [("insert", None, None, x)] * 2
    assert log.add("D", x, relation=3).changes == [("insert", None, None, x)]
    assert Log().add("U", x, y, 3).changes == [("update", None, x, y)]
    assert Log().add("U", x, y, 3).add("U", y, x, 3).changes == []
    assert Log().add("D", x, relation=3).add("I", new=y, relation=3).changes == [
        ("delete", None, x, None),
        ("insert", None, None, y),
    ]


def test_relation_that_is_no_longer_tracked_has_no_changes() -> None:
    assert Log().add("I", new=A, relation=99).changes == []


def test_transactions_are_contiguous_in_the_order_of_their_last_sequence_numbers() -> None:
    log = Log().add("I", new=row(1), xid=20).add("I", new=row(2), xid=10)
    log.add("U", row(2), row(2, v=1), xid=10).add("I", new=row(3), xid=20)
    assert [(each.xid, each.key, each.last) for each in log.net] == [
        ("10", (2,), True),
        ("20", (1,), False),
        ("20", (3,), True),
    ]


def test_positions_continue_after_transactions_without_net_changes() -> None:
    log = Log().add("I", new=row(1)).add("I", new=row(2), xid=11).add("D", row(2), xid=11)
    log.add("I", new=row(3), xid=12)
    assert [each.position for each in log.net] == [TickPosition(3, 7, 2), TickPosition(3, 7, 8)]
    paged = list(net_changes(log.rows, TRACKED, TICK, 40))
    assert [each.position.index for each in paged] == [82, 88]


def test_positions_are_the_same_once_another_relation_is_not_tracked_or_has_another_key() -> None:
    log = Log().add("U", row(1), row(2), 1).add("I", new=row(3), relation=2).add("I", new=row(4))
    log.add("I", new=row(5), xid=11, relation=2).add("U", row(6), row(7), xid=11)

    def places(tracked: dict[int, TrackedTable], relation: int) -> list[int]:
        found = net_changes(log.rows, tracked, TICK)
        return [each.place for each in found if each.relation == relation]

    both = {number: replace(TRACKED[1], id=number) for number in (1, 2)}
    assert places(both, 1) == [2, 3, 4, 9, 10]
    assert places(both, 2) == [6, 8]
    for other in ({}, {1: replace(both[1], key=("renamed",))}):
        assert places({**other, 2: both[2]}, 2) == [6, 8]
    renamed = {**both, 1: replace(both[1], key=("renamed",))}
    assert places(renamed, 1) == [4, 10], "resets come after all that they are in place of"


def test_image_has_exact_numbers() -> None:
    image = parse_image('{"a": 0.1000, "b": 123456789012345678901234567890, "c": [1e400]}')
    assert str(image["a"]) == "0.1000"
    assert image["b"] == 123456789012345678901234567890
    assert image["c"] == [Decimal("1e400")]


def test_exponent_that_no_decimal_has_is_not_a_number() -> None:
    image = parse_image('{"a": 1e99999999999999999999, "b": [1.50]}')
    assert image["a"].is_nan()
    assert image["b"] == [Decimal("1.50")]


def test_image_with_more_digits_than_an_int_takes_is_read() -> None:
    assert parse_image(f'{{"id": 1, "n": {"9" * 5000}}}')["n"] == Decimal("9" * 5000)


@pytest.mark.parametrize("spaces", ["", " "])
def test_image_nested_too_deep_keeps_the_text_of_that_value(spaces: str) -> None:
    deep = "[" * 5000 + '"]}\\","' + "]" * 5000
    text = f'{{{spaces}"id"{spaces}:{spaces}1,"a,\\"}}": "x:,}}", "deep": {deep}, "n": {{"b": [1.50]}}}}'
    image = parse_image(text)
    assert {name: image[name] for name in image if name != "n"} == {
        "id": 1,
        'a,"}': "x:,}",
        "deep": deep,
    }
    assert str(image["n"]["b"][0]) == "1.50"


Step = tuple[str, int, int]
steps = st.lists(
    st.tuples(st.sampled_from(["put", "move", "drop"]), st.integers(0, 4), st.integers(0, 4)),
    max_size=14,
)


def written(state: dict[int, dict[str, Any]], todo: Iterable[Step], log: Log) -> None:
    """Apply random writes, and return them as triggers would log them."""
    for what, id, other in todo:
        old = state.get(id)
        if what == "put":
            state[id] = row(id, v=other)
            log.add("U" if old else "I", old, state[id])
        elif old and what == "drop":
            log.add("D", state.pop(id))
        elif old and other not in state:
            state[other] = {**state.pop(id), "id": other}
            log.add("U", old, state[other])


@given(st.dictionaries(st.integers(0, 4), st.integers(0, 4)), steps, st.randoms())
def test_net_changes_lead_to_the_final_state_in_any_order_of_the_log(
    start: dict[int, int], todo: list[Step], dice: random.Random
) -> None:
    before = {id: row(id, v=v) for id, v in start.items()}
    state, log = dict(before), Log()
    written(state, todo, log)
    dice.shuffle(log.rows)
    log.rows = [
        LogRow(number, each.xid, each.at, each.relation, each.op, each.old, each.new)
        for number, each in enumerate(log.rows, 1)
    ]
    copy = dict(before)
    changes = log.changes
    for _, (id,), old, new in changes:
        assert copy.get(id) == old
        assert old != new
        copy.pop(id, None)
        if new is not None:
            copy[id] = new
    assert copy == state
    assert len(changes) == len({key for _, key, *_ in changes})


@given(st.lists(st.integers(0, 3), max_size=6), steps, st.randoms())
def test_counts_of_rows_without_a_key_are_right_in_any_order_of_the_log(
    start: list[int], todo: list[Step], dice: random.Random
) -> None:
    state, log = list(start), Log()
    for what, one, other in todo:
        if what == "put":
            state.append(one)
            log.add("I", None, {"v": one}, 3)
        elif one in state:
            state.remove(one)
            if what == "drop":
                log.add("D", {"v": one}, None, 3)
            else:
                state.append(other)
                log.add("U", {"v": one}, {"v": other}, 3)
    dice.shuffle(log.rows)
    copy = list(start)
    for _, _, old, new in log.changes:
        if old is not None:
            copy.remove(old["v"])
        if new is not None:
            copy.append(new["v"])
    assert sorted(copy) == sorted(state)
