"""
A probe that measures for how long the reactor was blocked.
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
"""Linux's file with the time that a thread was runnable but waited for a processor."""


class LagProbe:
    """
    A timer in the reactor that measures its delays during a `with` statement.

    Attributes:
        lags: The delay of each tick, in seconds.
        waits: The part of each delay for which the reactor's thread waited for a processor.
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
        """Return a quantile of the lags, in seconds."""
        return _quantile(self.lags, part)

    def own(self, part: float) -> float:
        """Return a quantile of the lags without the time that the thread waited for a processor."""
        own = [max(0.0, lag - wait) for lag, wait in zip(self.lags, self.waits, strict=True)]
        return _quantile(own, part)


async def least_lag(measure: Callable[[], Awaitable[LagProbe]], part: float, limit: float) -> float:
    """
    Measure up to five times, until the lag of this process is below a limit; return the lowest.

    Code that blocks the reactor does so in each measurement. A worker thread that is descheduled while it
    holds the GIL also delays the reactor, but rarely, and the two delays cannot be distinguished.
    """
    least = math.inf
    for _ in range(5):
        least = min(least, (await measure()).own(part))
        if least < limit:
            break
    return least


def waited() -> float:
    """Return the seconds for which this thread has waited for a processor; 0 without `WAITED`."""
    try:
        return int(WAITED.read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _quantile(lags: list[float], part: float) -> float:
    ordered = sorted(lags)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
