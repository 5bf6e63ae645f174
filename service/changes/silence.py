"""
Keep-alive of watches: which watches were sent nothing for so long that an `alive` message is due.

A timing wheel: each second looks at one fifteenth of the watches, in place of all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from service.changes.watchers import Watch

ALIVE, TICKS = 15.0, 15
"""Seconds without a message after which a watch is sent `alive`, and the number of slots of the wheel."""


class AliveTimers:
    """The watches, by when they are due for an `alive` message."""

    def __init__(self) -> None:
        # The watches to be checked in each of the next slots of time.
        self._parts: deque[list[Watch]] = deque([] for _ in range(TICKS))
        self._ticked = 0.0

    def add(self, watch: Watch) -> None:
        """Add a new watch."""
        self._parts[-1].append(watch)

    def due(self, now: float) -> Iterator[Watch]:
        """Yield the watches that were sent nothing for `ALIVE` seconds; drop those that have ended."""
        # After a pause of the whole process, do not make up for the turns of the wheel that it missed.
        self._ticked = max(self._ticked, now - ALIVE)
        while now - self._ticked >= ALIVE / TICKS:
            self._ticked += ALIVE / TICKS
            looked_at = self._parts.popleft()
            self._parts.append([])
            for watch in looked_at:
                if watch.ended:
                    continue
                left = watch.sent_at + ALIVE - now
                if left <= 0:
                    yield watch
                    left = ALIVE
                part = min(TICKS - 1, max(0, round(left / ALIVE * TICKS) - 1))
                self._parts[part].append(watch)
