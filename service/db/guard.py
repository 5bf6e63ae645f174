"""
A watchdog over all sessions: it ends the wait for a server that is silent for too long.

libpq waits for as long as a server is silent and yet acknowledges what it is sent, as one does
behind a proxy that hangs. A shutdown of the socket, by another thread, ends the wait.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

INTERVAL = 0.25
"""Seconds between two looks at the sessions."""


class Guarded(Protocol):
    """What may have to be given up."""

    def overdue(self, now: float) -> bool:
        """Return whether its server has been silent for too long."""

    def shut(self) -> None:
        """Shut its socket down."""


class Guard:
    """One thread, for as long as there are sessions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: set[Guarded] = set()
        self._thread: threading.Thread | None = None

    def add(self, session: Guarded) -> None:
        """Begin to watch a session."""
        with self._lock:
            self._sessions.add(session)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="pg-guard", daemon=True)
                self._thread.start()

    def remove(self, session: Guarded) -> None:
        """Watch a session no more; once this returns, its socket is not touched."""
        with self._lock:
            self._sessions.discard(session)

    def give_up(self, session: Guarded) -> None:
        """Shut the socket of a session down, if it is still watched."""
        with self._lock:
            if session in self._sessions:
                session.shut()

    def _watch(self) -> None:
        while True:
            time.sleep(INTERVAL)
            now = time.monotonic()
            with self._lock:
                # Under the lock, so that an `add` that comes now starts the next thread.
                if not self._sessions:
                    self._thread = None
                    return
                for session in self._sessions:
                    if session.overdue(now):
                        session.shut()


GUARD = Guard()
"""Over every session of the process."""
