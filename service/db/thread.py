"""
One function in a thread of its own, which does not hold up a shutdown.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Result = TypeVar("Result")

LINGER = 5.0
"""Seconds that a thread waits for another function: to start one takes longer than to wake one."""


class _Thread(threading.Thread):
    """A thread that runs one function after another."""

    def __init__(self) -> None:
        # Not of the reactor's pool: a reactor that stops waits for the threads of that.
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
                except ValueError:  # it was taken in this very moment
                    function = self.functions.get()
            function()
            del function  # or it would be kept, and all that it has, until the next
            _idle.append(self)


_idle: deque[_Thread] = deque()


def in_thread(
    reactor: Any, name: str, function: Callable[..., Result], *args: Any
) -> Deferred[Result]:
    """Run a function that may block; its result comes in the reactor thread."""
    done: Deferred[Result] = Deferred()

    def finish(outcome: Any) -> None:
        # Whoever waited may have cancelled it, and that has fired it.
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
