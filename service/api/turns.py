"""
Turns: calls of one transaction, which are made and answered in the order in which they came.

A call need not wait for the answer to the one before it, if all that this one asks of the database is
on its way: a worker takes statements in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class Turn:
    """
    One call's.

    Attributes:
        sent: Whether all that the call asks of the database is on its way.
        work: What answers it, once that has begun.
        waiting: Fired when it comes.
        alone: Whether it comes once the calls before it are over, not when they are sent.
        over: Whether the call has ended.
        then: Called once all those before it have ended, too.
    """

    __slots__ = ("alone", "over", "sent", "then", "waiting", "work")

    def __init__(self) -> None:
        self.sent = False
        self.work: Deferred[Any] | None = None
        self.waiting: Deferred[None] | None = None
        self.alone = self.over = False
        self.then: Callable[[], None] | None = None


class Turns:
    """Those of the calls that are not over."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()
        self._sent = 0
        self._moving = False

    def take(self) -> Turn:
        """Return the turn of a call that has come."""
        turn = Turn()
        self._turns.append(turn)
        return turn

    async def comes(self, turn: Turn, alone: bool = False) -> None:
        """Wait until the calls before one have sent what they ask for; with `alone`, are over."""
        turn.alone = alone
        if not self._has_come(turn):
            turn.waiting = Deferred()
            await turn.waiting

    def sent(self, turn: Turn) -> None:
        """Record that a call has sent all that it asks of the database."""
        turn.sent = True
        self._move()

    def end(self, turn: Turn, then: Callable[[], None] | None) -> None:
        """End a call, perhaps with a function to call once those before it are over."""
        turn.over, turn.then = True, then
        self._move()

    def stop(self) -> None:
        """Cancel what runs."""
        # A copy: a call that ends at its cancel takes itself out.
        for turn in list(self._turns):
            if turn.work is not None:
                turn.work.cancel()

    def _move(self) -> None:
        # One after another, however many have waited: each within the one before it would meet the
        # limit of recursion.
        if self._moving:
            return
        self._moving = True
        try:
            while self._step():
                pass
        finally:
            self._moving = False

    def _step(self) -> bool:
        """End the first call, or begin one that waits; return whether there was one."""
        turns = self._turns
        if turns and turns[0].over:
            ended = turns.popleft()
            self._sent = max(0, self._sent - 1)
            if ended.then is not None:
                ended.then()
            return True
        for turn in (self._first(), self._unsent()):
            waiting = None if turn is None or not self._has_come(turn) else turn.waiting
            if waiting is not None and not waiting.called:
                waiting.callback(None)
                return True
        return False

    def _has_come(self, turn: Turn) -> bool:
        return turn is self._first() or (not turn.alone and turn is self._unsent())

    def _first(self) -> Turn | None:
        return self._turns[0] if self._turns else None

    def _unsent(self) -> Turn | None:
        """Return the first that has not sent all that it asks for."""
        turns = self._turns
        while self._sent < len(turns) and turns[self._sent].sent:
            self._sent += 1
        return turns[self._sent] if self._sent < len(turns) else None
