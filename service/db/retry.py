"""
Transactions that PostgreSQL asks to be run again (40001, 40P01): how often, and in which order.

Pauses alone do not bring contending transactions to an end: of eight serializable writers of the same
rows, one in ten was still refused after six attempts, since a new one comes for each that is done. So
those of one kind that are run again take turns, in their order, and new ones wait for the turns that
were taken before them. What only looks alike is held up by that for the length of a transaction.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Hashable
from itertools import takewhile
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.task import deferLater

from service.errors import OutcomeUnknown, ServiceError, causes

RETRIES = 5
"""Further attempts at a transaction that PostgreSQL asks to be run again."""
PAUSE = 0.01
"""Seconds; the pause after n attempts is up to 2ⁿ times as long, or as long as the last of them."""
TURN = 2.0
"""Seconds for which a turn is waited for: whoever has it may be waiting for this very transaction."""


class Retries:
    """
    Args:
        reactor: For the pauses between attempts.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._turns: dict[Hashable, DeferredLock] = {}

    async def run(
        self,
        attempt: Callable[[], Awaitable[Any]],
        retries: int = RETRIES,
        kind: Hashable = None,
    ) -> Any:
        """
        Run an attempt, and again after 40001 and 40P01: in its turn, then after pauses that grow.

        The error of the last one says how many there were, as `attempts`.

        Args:
            attempt: One transaction, or one statement.
            retries: How often again.
            kind: Equal for transactions that may meet in the same rows; None takes no turns.
        """
        tried = 0
        turn = self._turns.get(kind)
        # Waited for, and given back at once: those before are done, and this one blocks nobody.
        if turn is not None and await self._taken(turn):
            self._end(kind, turn)
        turn = None
        try:
            while True:
                began = self._reactor.seconds()
                try:
                    return await attempt()
                except Exception as error:
                    tried += 1
                    if not retryable(error):
                        raise
                    if tried > retries:
                        _count(error, tried)
                        raise
                if kind is not None and turn is None:  # the others of its kind are in its way
                    wanted = self._turns.setdefault(kind, DeferredLock())
                    turn = wanted if await self._taken(wanted) else None
                else:  # at least until those are done which began with this one
                    most = max(PAUSE * 2**tried, self._reactor.seconds() - began)
                    await deferLater(self._reactor, random.uniform(0.5, 1) * most)
        finally:
            if turn is not None:
                self._end(kind, turn)

    async def _taken(self, turn: DeferredLock) -> bool:
        try:
            await turn.acquire().addTimeout(TURN, self._reactor)
        except Late:
            return False
        return True

    def _end(self, kind: Hashable, turn: DeferredLock) -> None:
        turn.release()
        # One that others wait for stays; kept for ever, there would be one for each kind ever met.
        if not turn.locked and self._turns.get(kind) is turn:
            del self._turns[kind]


def retryable(error: BaseException) -> bool:
    """
    Return whether PostgreSQL asks for the transaction to be run again (40001, 40P01).

    Not so if something may be kept of it, whatever that was caused by: half of a CALL, say, that
    ended in a serialization failure after it had committed.
    """
    return any(
        getattr(each, "pgcode", None) in ("40001", "40P01")
        for each in takewhile(lambda each: not isinstance(each, OutcomeUnknown), causes(error))
    )


def _count(error: Exception, attempts: int) -> None:
    if isinstance(error, ServiceError):
        error.details["attempts"] = attempts
    else:  # `refusal` makes the details of it
        error.attempts = attempts  # type: ignore[attr-defined]
