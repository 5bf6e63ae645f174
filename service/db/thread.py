"""
One function in a thread of its own, which does not hold up a shutdown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

Result = TypeVar("Result")


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

    # Not deferToThread: a reactor that stops waits for the threads of its pool.
    threading.Thread(target=run, name=name, daemon=True).start()
    return done
