"""
A job: one function for a worker, and everything that is known of it on its way.

The token decides races: whoever takes it, a worker that sends the job's first statement or the
reactor that gives it up, has the job; `list.pop` does that in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from service.db.turns import PARTY
from service.errors import OutcomeUnknown

if TYPE_CHECKING:
    from service.db.worker import Worker


class Job:
    """
    A function that runs once in a worker thread, with that worker's connection.

    Args:
        function: Called with the connection and `args`.
        args: For the function.
        retry: Whether it may run a second time if the connection died under it.
        lane: The queue of the transaction that it serves, if it keeps its worker for one.
        commits: Whether what it does may be kept once it is done. Who stops such a job, once it
            has begun, learns what came of it, and when it has.

    Attributes:
        begun: Whether a worker has it on a session.
        party: On whose behalf it runs.
        reason: Why it was stopped, if it was.
    """

    __slots__ = (
        "args",
        "begun",
        "commits",
        "context",
        "deferred",
        "error",
        "function",
        "lane",
        "party",
        "reason",
        "result",
        "retry",
        "timer",
        "token",
        "worker",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        retry: bool = False,
        lane: SimpleQueue[Job | None] | None = None,
        commits: bool = False,
    ) -> None:
        self.function = function
        self.args = args
        self.retry = retry
        self.lane = lane
        self.commits = commits
        self.token = [None]
        self.begun = False
        self.reason: BaseException | None = None
        # Plain callbacks would lose the caller's context variables, and so its transaction.
        self.context = copy_context()
        self.party = PARTY.get()
        self.deferred: Deferred[Any] | None = None
        self.timer: IDelayedCall | None = None
        self.worker: Worker | None = None
        self.result: Any = None
        self.error: Failure | None = None

    def take(self) -> bool:
        """Take the job, to run it or to give it up; False if someone else has it."""
        try:
            self.token.pop()
        except IndexError:
            return False
        return True

    def begin(self) -> bool:
        """Begin the job, or begin it again; False if it was given up before."""
        self.begun = self.begun or self.take()
        return self.begun

    def succeed(self, result: Any) -> None:
        """Give the caller the result, unless it was given something before."""
        if self.deferred is not None and not self.deferred.called:
            self.context.run(self.deferred.callback, result)

    def rest(self) -> None:
        """Stop the clock."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()

    def fail(self, reason: Failure | BaseException) -> None:
        """Give the caller an error, unless it was given something before."""
        self.rest()
        if self.deferred is not None and not self.deferred.called:
            self.context.run(self.deferred.errback, reason)

    def leave(self, reason: Failure | BaseException) -> None:
        """Give the caller an error in place of an outcome that nobody waits for."""
        self.fail(OutcomeUnknown() if self.commits and not self.take() else reason)
