"""Jobs of several owners are taken in turn."""

from __future__ import annotations

from contextvars import copy_context

import pytest

from service.db.pool import FairQueue
from service.db.worker import JOB_OWNER, Job, JobOwner


class Someone:
    """An owner that may be blocked, and whose results may be large."""

    def __init__(self, blocked: str = "", light: bool = True) -> None:
        self.blocked = blocked
        self.light = light
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
    """One job of each owner, each owner's jobs in order."""
    queue, owners = FairQueue(), [Someone(), None, Someone()]
    jobs = [job_of(owners[at]) for at in (0, 0, 0, 1, 2, 2)]
    for job in jobs:
        queue.add(job)
    assert taken(queue) == [jobs[at] for at in (0, 3, 4, 1, 5, 2)]


@pytest.mark.parametrize("blocked_too", [False, True])
def test_blocked_owner_is_passed_over(blocked_too: bool) -> None:
    """Its jobs wait until it is no longer blocked, or the scheduler stops."""
    queue, full, other = FairQueue(), Someone("full"), Someone()
    jobs = [job_of(owner) for owner in (full, other, other)]
    for job in jobs:
        queue.add(job)
    expected = [0, 1, 2] if blocked_too else [1, 2]
    assert taken(queue, blocked_too) == [jobs[at] for at in expected]
    full.blocked = ""
    assert taken(queue) == ([] if blocked_too else [jobs[0]])


def test_owner_that_has_enough_is_passed_over() -> None:
    """It has the maximum number of running jobs."""
    queue, greedy, other = FairQueue(), Someone(), Someone()
    for owner in (greedy, other):
        queue.add(job_of(owner))
    greedy.given = 3
    job = queue.next(most=3)
    assert job is not None
    assert job.owner is other
    assert queue.next(most=3) is None
    assert queue.next(most=4) is not None


def test_owner_of_large_answers_is_not_overtaken_in_its_turn() -> None:
    """Otherwise owners with small results would always come first."""
    queue, light, heavy = FairQueue(), Someone(), Someone(light=False)
    jobs = [job_of(owner) for owner in (light, heavy, light, None)]
    for job in jobs:
        queue.add(job)
    assert queue.next(light=True) is jobs[0]
    assert queue.next(light=True) is None
    assert taken(queue) == [jobs[1], jobs[3], jobs[2]]
