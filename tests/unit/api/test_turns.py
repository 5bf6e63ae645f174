"""
Calls of one transaction are sent and answered in order, though each need not wait for the one before it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from service.api.interactive import Turn, Turns


class Calls:
    """Calls that end when the test ends them."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[int] = []
        self.over: list[int] = []

    def call(self, number: int, alone: bool = False) -> tuple[Turn, Deferred[Any]]:
        """Make a call; return its turn, and the Deferred that waits for it."""
        turn = self.turns.add()

        async def begin() -> None:
            await self.turns.wait(turn, alone)
            self.begun.append(number)

        return turn, Deferred.fromCoroutine(begin())

    def end(self, turn: Turn, number: int) -> None:
        """End a call."""
        self.turns.end(turn, partial(self.over.append, number))


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_call_begins_once_those_before_it_are_sent(calls: Calls) -> None:
    (one, _), (two, _), _ = (calls.call(n) for n in range(3))
    assert calls.begun == [0]
    calls.turns.sent(one)
    assert calls.begun == [0, 1]
    calls.end(one, 0)
    assert calls.begun == [0, 1]
    calls.turns.sent(two)
    assert (calls.begun, calls.over) == ([0, 1, 2], [0])


def test_call_alone_begins_once_those_before_it_are_over(calls: Calls) -> None:
    (one, _), (two, _), _ = calls.call(0), calls.call(1, alone=True), calls.call(2)
    calls.turns.sent(one)
    assert calls.begun == [0]
    calls.end(one, 0)
    assert calls.begun == [0, 1]
    calls.end(two, 1)
    assert calls.begun == [0, 1, 2]


def test_calls_are_over_in_their_order(calls: Calls) -> None:
    turns = [calls.call(n)[0] for n in range(3)]
    for turn in turns:
        calls.turns.sent(turn)
    for number in (2, 1):
        calls.end(turns[number], number)
        assert calls.over == []
    calls.end(turns[0], 0)
    assert calls.over == [0, 1, 2]


def test_call_that_is_refused_unsent_keeps_those_behind_it_waiting(calls: Calls) -> None:
    """It is not known whether it is the first failed call until all earlier ones have ended."""
    (one, _), (two, _), _ = (calls.call(n) for n in range(3))
    calls.turns.sent(one)
    calls.end(two, 1)
    assert (calls.begun, calls.over) == ([0, 1], [])
    calls.end(one, 0)
    assert (calls.begun, calls.over) == ([0, 1, 2], [0, 1])


def test_cancelled_waiting_call_passes_on_its_turn(calls: Calls) -> None:
    (one, _), (two, waiting), _ = (calls.call(n) for n in range(3))
    failed: list[Any] = []
    waiting.addErrback(failed.append)
    waiting.cancel()
    assert failed[0].check(CancelledError)
    calls.end(two, 1)
    calls.end(one, 0)
    assert (calls.begun, calls.over) == ([0, 2], [0, 1])


def test_thousands_of_waiting_calls_run_without_recursion(calls: Calls) -> None:
    """Not recursively, which would exceed Python's recursion limit."""
    first, _ = calls.call(0)

    async def refused(number: int) -> None:
        turn = calls.turns.add()
        await calls.turns.wait(turn)
        calls.end(turn, number)

    for number in range(1, 3001):
        Deferred.fromCoroutine(refused(number))
    calls.end(first, 0)
    assert calls.over == list(range(3001))
