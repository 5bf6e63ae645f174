"""
Retries of transactions that PostgreSQL asks to retry: their turns and their queue.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from service.db.transaction import PAUSE, RETRIES, TURN, Retries, retryable
from service.errors import Conflict, OutcomeUnknown
from tests.deferreds import result_of


class Refused(Conflict):
    """A serialization failure."""

    pgcode = "40001"


class Transactions:
    """Transactions that a test commits or refuses."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.retries = Retries(self.clock)
        self.running: list[tuple[str, Deferred[Any]]] = []
        self.done: list[str] = []

    @property
    def names(self) -> list[str]:
        """Return the running transactions, in the order of their start."""
        return [name for name, _ in self.running]

    def start(self, name: str, kind: Any = "transfer") -> Deferred[Any]:
        """Start a transaction."""

        def attempt() -> Deferred[Any]:
            end: Deferred[Any] = Deferred()
            self.running.append((name, end))
            return end.addBoth(self._ended, name, end)

        work = Deferred.fromCoroutine(self.retries.run(attempt, kind=kind))
        return work.addCallback(lambda _: self.done.append(name))

    def _ended(self, result: Any, name: str, end: Deferred[Any]) -> Any:
        self.running.remove((name, end))
        return result

    def commit(self, name: str) -> None:
        """Commit a transaction."""
        dict(self.running)[name].callback(None)

    def refuse(self, name: str) -> None:
        """End a transaction with a serialization failure."""
        dict(self.running)[name].errback(Refused("again", retry=True))

    def pause(self) -> None:
        """Advance the clock beyond the longest pause."""
        self.clock.advance(PAUSE * 2**RETRIES)


def test_retried_transactions_take_turns_and_new_ones_wait_behind_them() -> None:
    known = Transactions()
    for name in "abc":
        known.start(name)
    assert known.names == ["a", "b", "c"]
    known.commit("a")
    known.refuse("b")
    known.refuse("c")
    known.start("new")
    known.start("other", kind="another")
    assert known.names == ["b", "other"]
    known.refuse("b")  # it keeps its turn
    known.pause()
    assert known.names == ["other", "b"]
    known.commit("b")
    assert known.names == ["other", "c"]
    known.commit("c")
    assert known.names == ["other", "new"]
    known.start("newer")
    assert known.names == ["other", "new", "newer"]


def test_turn_that_does_not_come_is_not_waited_for() -> None:
    """The transaction that has the turn may be waiting for the one that wants it."""
    known = Transactions()
    known.start("a")
    known.refuse("a")
    known.start("inner")
    known.clock.advance(TURN)
    assert known.names == ["a", "inner"]
    known.commit("inner")
    known.commit("a")
    assert known.done == ["inner", "a"]


def test_caller_who_leaves_the_queue_delays_no_other() -> None:
    known = Transactions()
    known.start("a")
    known.start("b")
    known.refuse("a")
    known.refuse("b")
    gone, last = known.start("gone"), known.start("last")
    gone.cancel()
    with pytest.raises(CancelledError):
        result_of(gone)
    known.commit("a")
    known.commit("b")
    known.commit("last")
    result_of(last)
    assert known.done == ["a", "b", "last"]
    known.start("next")
    assert known.names == ["next"]


def test_attempts_end_and_are_counted() -> None:
    known = Transactions()
    work = known.start("a")
    for _ in range(RETRIES + 1):
        known.refuse("a")
        known.pause()
    with pytest.raises(Refused) as caught:
        result_of(work)
    assert caught.value.details["attempts"] == RETRIES + 1
    known.start("b")
    assert known.names == ["b"]


def test_unknown_outcome_is_not_retried_whatever_its_cause() -> None:
    known = Transactions()
    work = known.start("a")
    error = OutcomeUnknown()
    error.__cause__ = Refused("again")
    dict(known.running)["a"].errback(error)
    with pytest.raises(OutcomeUnknown):
        result_of(work)


@pytest.mark.parametrize("asked", [False, True])
def test_error_that_is_its_own_cause_is_inspected_once(asked: bool) -> None:
    """`raise error from error` creates one, and a loop over its causes would never end."""
    error: Exception = Refused("no") if asked else ValueError("no")
    first = KeyError("first")
    first.__cause__, error.__cause__ = error, first
    assert retryable(first) is asked
    error.__cause__ = error
    assert retryable(error) is asked
