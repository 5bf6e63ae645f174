"""
The thread that watches sessions.
"""

from __future__ import annotations

import threading
import time

from service.db.connection import INTERVAL, SessionGuard


class Session:
    """A session that is overdue if `late`."""

    def __init__(self, late: bool = False) -> None:
        self.late = late
        self.shuts = 0

    def overdue(self, now: float) -> bool:
        """Return `late`."""
        return self.late

    def shut(self) -> None:
        """Count the call."""
        self.shuts += 1


def watching() -> set[threading.Thread]:
    """Return the threads of guards."""
    return {each for each in threading.enumerate() if each.name == "pg-guard"}


def wait_for(condition: object) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 20 * INTERVAL
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_session_that_is_overdue_is_shut() -> None:
    """One that is not stays open; one that is no longer watched, too."""
    guard, late, other = SessionGuard(), Session(late=True), Session()
    guard.add(other)
    guard.add(late)
    wait_for(lambda: late.shuts)
    guard.remove(late)
    shuts = late.shuts
    time.sleep(3 * INTERVAL)
    assert (late.shuts, other.shuts) == (shuts, 0)
    guard.remove(other)


def test_session_is_given_up_while_it_is_watched() -> None:
    """Its socket is another's afterwards."""
    guard, session = SessionGuard(), Session()
    guard.give_up(session)
    assert session.shuts == 0
    guard.add(session)
    guard.give_up(session)
    assert session.shuts == 1
    guard.remove(session)
    guard.give_up(session)
    assert session.shuts == 1


def test_thread_lives_as_long_as_there_are_sessions() -> None:
    """There is one for all of them, and none for none."""
    before = watching()
    guard, sessions = SessionGuard(), [Session(), Session()]
    for session in sessions:
        guard.add(session)
    assert len(watching() - before) == 1
    for session in sessions:
        guard.remove(session)
    wait_for(lambda: not watching() - before)
    guard.add(sessions[0])
    assert len(watching() - before) == 1
    guard.remove(sessions[0])
