"""
How many calls, how they ended, how long they took: of all of them, and of each verb.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Container, Sequence
from itertools import accumulate
from typing import Any

from service.request.names import FN

_BOUNDS = [0.0001 * 2 ** (step / 4) for step in range(81)]
"""Seconds, four buckets to a doubling, from 0.1 ms to 105 s: a quantile is within 19 %."""

QUANTILES = (0.5, 0.9, 0.95, 0.99)

UNKNOWN = "unknown"
"""The verb of names that are none of ours: a caller may think of any, so they share one."""

TX = "tx"
"""The verb of calls in transactions, whose URIs are their own."""

FORWARDED = "forwarded"
"""The verb of calls that another process has passed on, which has counted them for theirs."""


class Meter:
    """
    Counts the calls of one service since its start.

    Attributes:
        verbs: Of relations.
        procedures: Names of the procedures of the service and of its application.
    """

    verbs: Container[str] = ()
    procedures: Container[str] = ()

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._errors: dict[str, Counter[str]] = {}

    def end(self, name: str, outcome: str, seconds: float, error: str = "") -> None:
        """
        Count a call that has ended.

        Args:
            name: Of the procedure, less the prefix.
            outcome: How it ended: "answered", "refused" and so on.
            seconds: What it took.
            error: The URI of its error.
        """
        self.outcomes[outcome] += 1
        verb = name.rpartition(".")[2]
        if name in self.procedures:
            verb = name
        elif f".{FN}." in f".{name}":
            verb = FN
        elif name.startswith(f"{TX}."):
            verb = TX if name.count(".") > 1 else FORWARDED
        elif verb not in self.verbs:
            verb = UNKNOWN
        buckets = self._buckets.get(verb)
        if buckets is None:
            # One more than bounds, for what took longer than the last.
            buckets = self._buckets[verb] = [0] * (len(_BOUNDS) + 1)
            self._errors[verb] = Counter()
        buckets[bisect_left(_BOUNDS, seconds)] += 1
        if error:
            self._errors[verb][error] += 1

    def refused(self) -> None:
        """Count a call that was refused before it began."""
        self.outcomes["refused"] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the figures, latencies in seconds."""
        every = [sum(counts) for counts in zip(*self._buckets.values(), strict=True)]
        return {
            "outcomes": dict(self.outcomes),
            "latency": _latency(every),
            "verbs": {
                verb: {
                    "calls": sum(buckets),
                    "errors": dict(self._errors[verb]),
                    "latency": _latency(buckets),
                }
                for verb, buckets in sorted(self._buckets.items())
            },
        }


def _latency(buckets: Sequence[int]) -> dict[str, float | None]:
    return {f"p{part * 100:g}": quantile(buckets, part) for part in QUANTILES}


def quantile(buckets: Sequence[int], part: float) -> float | None:
    """Return the seconds within which this part of the calls ended; None without any."""
    wanted = part * sum(buckets)
    if not wanted:
        return None
    # The last bucket has no upper bound: what lies in it is told as the longest that there is.
    return _BOUNDS[min(bisect_left(list(accumulate(buckets)), wanted), len(_BOUNDS) - 1)]
