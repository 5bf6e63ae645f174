"""Calls are counted by outcome, verb, error and time."""

from __future__ import annotations

from typing import Any

import pytest

from service.wamp.callee import Meter

NOT_FOUND = "rowcast.error.not_found"


def taken(*calls: Any) -> Meter:
    """Return a meter after calls that are given as `Meter.end` takes them."""
    meter = Meter()
    meter.verbs, meter.procedures = {"get", "find"}, {"stats", "actions.complete", "fn.odd"}
    for call in calls:
        meter.end(*call)
    return meter


def test_service_without_calls_reports_no_latency() -> None:
    latency = {"p50": None, "p90": None, "p95": None, "p99": None}
    expected = {"outcomes": {}, "latency": latency, "verbs": {}}
    assert Meter().snapshot() == expected


def test_quantiles_are_within_a_fifth() -> None:
    """Over six orders of magnitude, for all verbs together and for each."""
    meter = taken(*[("a.get", "answered", n / 1000) for n in range(1, 1001)])
    for found in (meter.snapshot(), meter.snapshot()["verbs"]["get"]):
        assert found["latency"]["p50"] == pytest.approx(0.5, rel=0.2)
        assert found["latency"]["p99"] == pytest.approx(0.99, rel=0.2)
    for _ in range(100):
        meter.end("a.find", "refused", 1e6)
    assert meter.snapshot()["latency"]["p95"] == pytest.approx(105, rel=0.01)
    assert meter.snapshot()["verbs"]["get"]["latency"]["p99"] == pytest.approx(0.99, rel=0.2)


def test_outcomes_are_counted() -> None:
    meter = taken(*[("a.get", outcome, 0.001) for outcome in ("answered", "refused", "answered")])
    meter.refused()
    assert meter.snapshot()["outcomes"] == {"answered": 2, "refused": 2}


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("actions.get", "get"),
        ("app.actions.find", "find"),
        ("stats", "stats"),
        ("actions.complete", "actions.complete"),
        ("fn.report", "fn"),
        ("app.fn.report.find", "fn"),
        ("fn.odd", "fn.odd"),
        ("tx.0123456789abcdef", "forwarded"),
        ("tx.0123456789abcdef.id", "tx"),
        ("tx.0123456789abcdef.id.commit", "tx"),
        ("actions.gets", "unknown"),
        ("", "unknown"),
        ("get", "get"),
    ],
)
def test_call_counts_for_its_verb(name: str, verb: str) -> None:
    """Names that callers invent create no row."""
    meter = taken((name, "refused", 0.001, NOT_FOUND), (name, "answered", 0.001))
    ((found, figures),) = meter.snapshot()["verbs"].items()
    assert found == verb
    assert (figures["calls"], figures["errors"]) == (2, {NOT_FOUND: 1})
