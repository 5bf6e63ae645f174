"""
Functions that may block, in daemon threads that do not delay a shutdown.
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
