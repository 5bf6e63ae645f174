"""
A probe that tells how long the reactor was kept from its work.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.task import LoopingCall

INTERVAL = 0.005


class LagProbe:
    """Ticks in the reactor; use it with `with`, then ask `quantile`."""

    def __init__(self, reactor: Any) -> None:
        self._call = LoopingCall(self._tick)
        self._call.clock = reactor
        self._last = 0.0
        self.lags: list[float] = []

    def __enter__(self) -> LagProbe:
        self._last = time.perf_counter()
        self._call.start(INTERVAL, now=False)
        return self

    def __exit__(self, *exception: object) -> None:
        self._tick()
        self._call.stop()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.lags.append(max(0.0, now - self._last - INTERVAL))
        self._last = now

    def quantile(self, part: float) -> float:
        """Give the lag, in seconds, that this part of all ticks stayed below."""
        ordered = sorted(self.lags)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
