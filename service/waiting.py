"""
Waiting for Deferreds: one that is cancelled by request, those of several who wait for one event, and a pause
that can be cut short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall


class CooperativeDeferred(Deferred[Any]):
    """
    A Deferred that `cancel` does not fire, unlike any other Deferred: the work's own result is its outcome.

    Attributes:
        request: Called by each `cancel`; requests that the work ends.
    """

    request: Callable[[], None]

    def cancel(self) -> None:
        """Request that the work ends."""
        if self.called:
            super().cancel()
        else:
            self.request()


class Waiters:
    """Those who wait for an event, each with a Deferred of its own, which can be cancelled."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires at the next `fire`."""
        waiting: Deferred[None] = Deferred(self._forget)
        self._waiting.append(waiting)
        return waiting

    def fire(self) -> None:
        """Fire the Deferreds of all who wait."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:  # the callback of another one may have cancelled it
                each.callback(None)

    def _forget(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)


class Pause:
    """
    A pause of a loop, which can be cut short.

    Args:
        reactor: Runs the timer.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: Deferred[None] | None = None

    async def wait(self, seconds: float | None) -> None:
        """Wait for some seconds, or until `end` is called; None: only for that."""
        waiting = self._waiting = Deferred()
        timer = None if seconds is None else self._reactor.callLater(seconds, self.end)
        try:
            await waiting
        finally:
            self._waiting = None
            cancel_timer(timer)

    def end(self) -> None:
        """End the pause, if there is one."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


def cancel_timer(timer: IDelayedCall | None) -> None:
    """Cancel a timer, unless it has run or was cancelled."""
    if timer is not None and timer.active():
        timer.cancel()
