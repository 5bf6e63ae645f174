"""
A guard for all sessions: it ends the wait for a server that is silent for too long.

libpq waits for ever for a server whose host acknowledges TCP segments but which never answers, as
behind a proxy that hangs. If another thread shuts the socket down, the wait ends.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

INTERVAL = 0.25
"""Seconds between two checks of the sessions."""


class GuardedSession(Protocol):
    """The part of a session that the guard uses."""

    def overdue(self, now: float) -> bool:
        """Return whether its server has been silent for too long."""

    def shut(self) -> None:
        """Shut down the session's socket."""


class SessionGuard:
    """A thread that checks sessions; it runs as long as there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: set[GuardedSession] = set()
        self._thread: threading.Thread | None = None

    def add(self, session: GuardedSession) -> None:
        """Start to watch a session."""
        with self._lock:
            self._sessions.add(session)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pg-guard", daemon=True)
                self._thread.start()

    def remove(self, session: GuardedSession) -> None:
        """Stop watching a session; after this returns, the guard does not touch its socket."""
        with self._lock:
            self._sessions.discard(session)

    def give_up(self, session: GuardedSession) -> None:
        """Shut the socket of a session down, if it is still watched."""
        with self._lock:
            if session in self._sessions:
                session.shut()

    def _watch(self) -> None:
        while True:
            time.sleep(INTERVAL)
            now = time.monotonic()
            with self._lock:
                # Under the lock, so that a concurrent `add` starts the next thread.
                if not self._sessions:
                    self._thread = None
                    return
                for session in self._sessions:
                    if session.overdue(now):
                        session.shut()


GUARD = SessionGuard()
"""The guard of all sessions of the process."""
