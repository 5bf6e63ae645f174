"""
Waiting without blocking the reactor: Deferreds for work and events, pauses, and functions in daemon threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure


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
        # A time that has passed since it was compared is negative, which callLater refuses.
        timer = None if seconds is None else self._reactor.callLater(max(0.0, seconds), self.end)
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


Result = TypeVar("Result")

LINGER = 5.0
"""Seconds that an idle thread waits for another function: starting a thread takes 50 to 100 µs."""


class _Thread(threading.Thread):
    """A thread that runs one function after another."""

    def __init__(self) -> None:
        # Not a thread of the reactor's pool, for which the reactor waits when it stops.
        super().__init__(daemon=True)
        self.functions: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                function = self.functions.get(timeout=LINGER)
            except Empty:
                try:
                    _idle.remove(self)
                    return
                except ValueError:  # `in_thread` has just taken it, and will put a function
                    function = self.functions.get()
            function()
            del function  # or it would stay in memory, with its result, until the next one
            _idle.append(self)


_idle: deque[_Thread] = deque()


def in_thread(
    reactor: Any, name: str, function: Callable[..., Result], *args: Any
) -> Deferred[Result]:
    """Run a function that may block in a thread; the Deferred fires in the reactor thread."""
    done: Deferred[Result] = Deferred()

    def finish(outcome: Any) -> None:
        # Cancelling the Deferred has fired it already.
        if not done.called:
            done.callback(outcome)

    def run() -> None:
        try:
            outcome: Any = function(*args)
        except BaseException:
            outcome = Failure()
        reactor.callFromThread(finish, outcome)

    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
        thread.start()
    thread.name = name
    thread.functions.put(run)
    return done
