"""
A probe that tells how long the reactor was kept from its work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

INTERVAL = 0.005
WAITED = Path("/proc/thread-self/schedstat")
"""Where Linux tells for how long a thread was ready to run, and others had the processors."""


class LagProbe:
    """
    Ticks in the reactor; use it with `with`, then ask `quantile` or `own`.

    Attributes:
        lags: By how much each tick was late.
        waits: How much of that the reactor was ready to run, and others had the processors.
    """

    def __init__(self, reactor: Any) -> None:
        self._call = LoopingCall(self._tick)
        self._call.clock = reactor
        self._last = 0.0
        self._waited = 0.0
        self.lags: list[float] = []
        self.waits: list[float] = []

    def __enter__(self) -> LagProbe:
        self._last, self._waited = time.perf_counter(), waited()
        self._call.start(INTERVAL, now=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._tick()
        self._call.stop()

    def _tick(self) -> None:
        now, waits = time.perf_counter(), waited()
        self.lags.append(max(0.0, now - self._last - INTERVAL))
        self.waits.append(waits - self._waited)
        self._last, self._waited = now, waits

    def quantile(self, part: float) -> float:
        """Give the lag, in seconds, that this part of all ticks stayed below."""
        return _quantile(self.lags, part)

    def own(self, part: float) -> float:
        """Give the lag without what is the doing of others on a busy machine."""
        own = [max(0.0, lag - wait) for lag, wait in zip(self.lags, self.waits, strict=True)]
        return _quantile(own, part)


async def least_lag(measure: Callable[[], Awaitable[LagProbe]], part: float, limit: float) -> float:
    """
    Measure up to five times, until the lag of our own is below a limit; return the least.

    What holds the reactor does so each time. A worker that another process keeps from the
    processor while it has Python's lock does not, and nothing tells that lag from ours.
    """
    least = math.inf
    for _ in range(5):
        least = min(least, (await measure()).own(part))
        if least < limit:
            break
    return least


def waited() -> float:
    """Give the seconds for which this thread has waited for a processor so far, if anybody tells."""
    try:
        return int(WAITED.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _quantile(lags: list[float], part: float) -> float:
    ordered = sorted(lags)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
