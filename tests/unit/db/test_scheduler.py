"""Jobs of several owners are taken in turn."""

from __future__ import annotations

from contextvars import copy_context

import pytest

from service.db.scheduler import FairQueue
from service.db.worker import JOB_OWNER, Job, JobOwner


class Someone:
    """An owner that says whether it is blocked."""

    def __init__(self, blocked: str = "") -> None:
        self.blocked = blocked
        self.given = 0


def job_of(owner: JobOwner | None) -> Job:
    """Build a job in the context of an owner."""

    def build() -> Job:
        JOB_OWNER.set(owner)
        return Job(print)

    return copy_context().run(build)


def taken(queue: FairQueue, blocked_too: bool = False) -> list[Job]:
    """Return all jobs in the order in which they are taken."""
    found: list[Job] = []
    while (job := queue.next(blocked_too)) is not None:
        found.append(job)
    return found


def test_owners_are_served_in_turn() -> None:
    """One job of each, in the order in which they came; each owner's own in order."""
    queue, owners = FairQueue(), [Someone(), None, Someone()]
    jobs = [job_of(owners[at]) for at in (0, 0, 0, 1, 2, 2)]
    for job in jobs:
        queue.add(job)
    assert taken(queue) == [jobs[at] for at in (0, 3, 4, 1, 5, 2)]


@pytest.mark.parametrize("blocked_too", [False, True])
def test_blocked_owner_is_passed_over(blocked_too: bool) -> None:
    """Its jobs wait until it is not blocked any more, or the end has come."""
    queue, full, other = FairQueue(), Someone("full"), Someone()
    jobs = [job_of(owner) for owner in (full, other, other)]
    for job in jobs:
        queue.add(job)
    expected = [0, 1, 2] if blocked_too else [1, 2]
    assert taken(queue, blocked_too) == [jobs[at] for at in expected]
    full.blocked = ""
    assert taken(queue) == ([] if blocked_too else [jobs[0]])
