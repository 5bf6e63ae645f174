"""
Running and waiting calls of sessions, with a fake clock.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from service.errors import Unavailable
from service.wamp.backpressure import SLICE, Accounts, Bounds

WAITING = 500


TAKES = 0.001
"""Seconds that a refusal takes."""


async def nothing_held(session: int | None) -> int:
    return 0


def test_many_calls_that_time_out_together_are_refused_in_slices() -> None:
    """Other work runs between two slices."""
    clock = Clock()
    accounts = Accounts(clock, Bounds(running=1, wait=1), nothing_held, lambda: None)
    account = accounts.of(1)
    refused: list[Failure] = []
    seen = [0]

    def refuse(why: Failure) -> None:
        refused.append(why)
        clock.rightNow += TAKES

    def look() -> None:
        seen.append(len(refused))
        clock.callLater(TAKES, look)

    for _ in range(1 + WAITING):
        turn = accounts.begin(account)
        if turn is not None:
            turn.addErrback(refuse)
    look()
    while len(refused) < WAITING:
        clock.advance(TAKES)
        assert clock.rightNow < 10
    clock.advance(TAKES)
    assert all(each.check(Unavailable) for each in refused)
    assert seen[-1] == WAITING
    assert max(after - before for before, after in pairwise(seen)) <= 2 * (SLICE / TAKES + 1)
