"""
How many calls, how they ended, how long they took.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import Any

_BOUNDS = [0.0001 * 2 ** (step / 4) for step in range(81)]
"""Seconds, four buckets to a doubling, from 0.1 ms to 105 s: a quantile is within 19 %."""

QUANTILES = (0.5, 0.9, 0.99)


class Meter:
    """Counts the calls of one service since its start."""

    def __init__(self) -> None:
        self.in_progress = 0
        self.outcomes: Counter[str] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)

    def begin(self) -> None:
        """Count a call that begins."""
        self.in_progress += 1

    def end(self, outcome: str, seconds: float) -> None:
        """Count its end."""
        self.in_progress -= 1
        self.outcomes[outcome] += 1
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1

    def refused(self) -> None:
        """Count a call that was refused before it began."""
        self.outcomes["refused"] += 1

    def quantile(self, part: float) -> float | None:
        """Return the seconds within which this part of the calls ended; None without any."""
        wanted = part * sum(self._buckets)
        if not wanted:
            return None
        reached = list(accumulate(self._buckets))
        return _BOUNDS[min(bisect_left(reached, wanted), len(_BOUNDS) - 1)]

    def snapshot(self) -> dict[str, Any]:
        """Return the figures as `stats` answers them, latencies in seconds."""
        return {
            "in_progress": self.in_progress,
            "outcomes": dict(self.outcomes),
            "latency": {f"p{part * 100:g}": self.quantile(part) for part in QUANTILES},
        }
