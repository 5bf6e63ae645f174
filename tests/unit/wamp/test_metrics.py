"""Calls are counted by outcome and time."""

from __future__ import annotations

import pytest

from service.wamp.metrics import Meter


def test_nothing_yet() -> None:
    """A service that was never called says so."""
    latency = {"p50": None, "p90": None, "p99": None}
    assert Meter().snapshot() == {"in_progress": 0, "outcomes": {}, "latency": latency}


def test_quantiles() -> None:
    """Quantiles are within a fifth of the truth, over six orders of magnitude."""
    meter = Meter()
    for n in range(1, 1001):
        meter.begin()
        meter.end("answered", n / 1000)
    assert meter.quantile(0.5) == pytest.approx(0.5, rel=0.2)
    assert meter.quantile(0.99) == pytest.approx(0.99, rel=0.2)
    meter.begin()
    meter.end("refused", 1e6)
    assert meter.quantile(1) == pytest.approx(105, rel=0.01)


def test_counts() -> None:
    """Outcomes and calls in progress are counted."""
    meter = Meter()
    for outcome in ("answered", "refused", "answered"):
        meter.begin()
        meter.begin()
        meter.end(outcome, 0.001)
    assert meter.in_progress == 3
    assert meter.snapshot()["outcomes"] == {"answered": 2, "refused": 1}
