"""
A fair queue: jobs wait in a queue for each party, and parties are served in turn.

So a caller with thousands of calls delays another by one of them, not by all.
"""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from service.db.worker import Job


class Party(Protocol):
    """
    Whoever has jobs run.

    Attributes:
        given: Jobs of its own that workers have, transactions left aside.
    """

    given: int

    @property
    def blocked(self) -> str:
        """Why none of them may begin now; empty if they may."""


PARTY: ContextVar[Party | None] = ContextVar("rowcast_party", default=None)
"""On whose behalf jobs are made; None for the service itself."""


class FairQueue:
    """
    Jobs that wait.

    Attributes:
        queues: By party, in the order in which they are served; of no party without jobs.
    """

    def __init__(self) -> None:
        self.queues: dict[Party | None, deque[Job]] = {}

    def add(self, job: Job) -> None:
        """Add a job at the end of its party's queue."""
        self.queues.setdefault(job.party, deque()).append(job)

    def next(self, blocked_too: bool = False) -> Job | None:
        """Remove and return the job whose turn it is; None if none may begin."""
        for party, queue in self.queues.items():
            if blocked_too or party is None or not party.blocked:
                job = queue.popleft()
                del self.queues[party]
                if queue:  # at the end of the line
                    self.queues[party] = queue
                return job
        return None
