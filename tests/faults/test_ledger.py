"""
The ledger reports each kind of wrong events, and no correct ones.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from service.changes.log import PgSnapshot
from tests.faults.deployment import ACCOUNTS, BALANCE
from tests.faults.ledger import RELATIONS, Ledger, State


class Made(State):
    """A state without a database."""

    def __init__(self) -> None:
        self.snapshot = PgSnapshot(1, 1, ())
        self.position = "1.1:1:"
        self.tables = {name: {} for name in RELATIONS}
        self.tables["accounts"] = {
            number: {"id": number, "balance": BALANCE} for number in range(1, ACCOUNTS + 1)
        }
        self.tokens = Counter[str]()


def event(
    at: int, relation: str, op: str, key: Any, row: Any, old: Any, last: bool = True
) -> dict[str, Any]:
    """Return an event at a position; its transaction id is the position divided by ten."""
    return {
        **{"relation": relation, "op": op, "key": {RELATIONS[relation]: key}, "row": row},
        **{"old": old, "position": f"1.2.{at}", "tx": str(at // 10), "last": last},
    }


EVENTS = [
    event(10, "accounts", "update", 1, {"id": 1, "balance": 900}, {"balance": 1000}, last=False),
    event(11, "accounts", "update", 2, {"id": 2, "balance": 1100}, {"balance": 1000}, last=False),
    event(12, "moves", "insert", 1, {"id": 1, "token": "a"}, None),
    event(20, "slots", "insert", 1, {"id": 1, "token": "b"}, None),
    event(30, "slots", "update", 1, {"id": 1, "token": "c"}, {"token": "b"}),
    event(40, "pledges", "insert", "d", {"token": "d"}, None),
    event(50, "pledges", "delete", "d", None, {"token": "d"}),
]


def after() -> State:
    """Return the state after all of `EVENTS`."""
    state = Made()
    state.tables["accounts"] |= {1: {"id": 1, "balance": 900}, 2: {"id": 2, "balance": 1100}}
    state.tables["moves"] = {1: {"id": 1, "token": "a"}}
    state.tables["slots"] = {1: {"id": 1, "token": "c"}}
    state.tokens = Counter("abcd")
    return state


def found(events: list[dict[str, Any]]) -> set[str]:
    """Return the kinds of errors that the ledger reports for events."""
    ledger = Ledger(Made())
    for each in events:
        ledger.take(each)
    return {kind for kind, wrong in ledger.wrong(after()).items() if wrong}


@pytest.mark.parametrize("again", [0, 3, 6])
def test_repeated_events_are_accepted(again: int) -> None:
    assert found(EVENTS) == set()
    assert found([*EVENTS, *EVENTS[again:]]) == set()


def test_event_older_than_the_initial_state_counts_as_repeated() -> None:
    state = after()
    state.snapshot = PgSnapshot(4, 6, (4,))
    ledger = Ledger(state)
    for each in EVENTS:
        ledger.take(each)
    assert (ledger.again, list(ledger.seen)) == (6, ["1.2.40"])


@pytest.mark.parametrize("at", range(len(EVENTS)))
def test_lost_event_is_found(at: int) -> None:
    assert "lost" in found(EVENTS[:at] + EVENTS[at + 1 :]) or at == 5
    assert found(EVENTS[:at] + EVENTS[at + 1 :])


@pytest.mark.parametrize("at", [2, 3, 4, 6])
def test_event_under_two_positions_is_found(at: int) -> None:
    second = {**EVENTS[at], "position": "1.3.1", "tx": "9"}
    assert {"doubled", "in another order"} & found([*EVENTS[: at + 1], second, *EVENTS[at + 1 :]])


def test_other_content_at_a_position_is_found() -> None:
    assert found([*EVENTS, {**EVENTS[3], "row": {"id": 1, "token": "x"}}]) == {"doubled"}


def test_events_of_a_row_in_another_order_are_found() -> None:
    assert "in another order" in found([*EVENTS[:3], EVENTS[4], EVENTS[3], *EVENTS[5:]])


def test_torn_transaction_is_found() -> None:
    assert "torn" in found([EVENTS[0], EVENTS[3], *EVENTS[1:3], *EVENTS[4:]])
    assert "torn" in found([EVENTS[0], {**EVENTS[1], "last": True}, *EVENTS[2:]])
    assert "torn" in found([{**EVENTS[0], "last": True}, *EVENTS[1:]])
