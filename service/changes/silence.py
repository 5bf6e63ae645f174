"""
How long watchers have heard nothing: each is to hear now and then that nothing has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from service.changes.watchers import Watch

ALIVE, TICKS = 15.0, 15
"""Seconds after which a watcher hears that nothing has changed, and the parts that they are counted in."""


class Silence:
    """Keeps watches until they have heard nothing for `ALIVE`."""

    def __init__(self) -> None:
        # Those that are looked at in each of the next parts.
        self._parts: deque[list[Watch]] = deque([] for _ in range(TICKS))
        self._ticked = 0.0

    def add(self, watch: Watch) -> None:
        """Add a watch, which has just begun."""
        self._parts[-1].append(watch)

    def due(self, now: float) -> Iterator[Watch]:
        """Return those that have heard of nothing for long, each once in `ALIVE`, but those that ended."""
        # A service that stood still has not been silent to each for as many times as it missed.
        self._ticked = max(self._ticked, now - ALIVE)
        while now - self._ticked >= ALIVE / TICKS:
            self._ticked += ALIVE / TICKS
            looked_at = self._parts.popleft()
            self._parts.append([])
            for watch in looked_at:
                if watch.ended:
                    continue
                left = watch.told + ALIVE - now
                if left <= 0:
                    yield watch
                    left = ALIVE
                part = min(TICKS - 1, max(0, round(left / ALIVE * TICKS) - 1))
                self._parts[part].append(watch)
