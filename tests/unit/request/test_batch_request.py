"""References of a batch to the results of earlier operations."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.request.arguments import unwrap
from service.request.batch_request import parse_batch, resolve

RESULTS = [{"id": 7, "a.b": 1, "a": {"b": 2}, "rows": [{"n": None}]}, [4, 5], "text"]


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("0.id", 7),
        ("0.a.b", 1),
        ("0.rows.0.n", None),
        ("0.rows.0", {"n": None}),
        ("1.1", 5),
        ("1", [4, 5]),
        ("2", "text"),
    ],
)
def test_reference_is_replaced_by_what_it_refers_to(reference: str, found: Any) -> None:
    """A name with dots is preferred to a path."""
    assert unwrap(resolve({"$ref": reference}, RESULTS, "x")) == found
    assert unwrap(resolve([{"a": ({"$ref": reference},)}], RESULTS, "x")) == [{"a": [found]}]


@pytest.mark.parametrize("value", [{"$ref": "0.id", "more": 1}, {"ref": "0.id"}, "0.id", None, []])
def test_value_that_is_no_reference_stays(value: Any) -> None:
    assert resolve(value, RESULTS, "x") == value


@pytest.mark.parametrize("reference", ["3", "1.2", "1.x", "1.-1", "2.0", "0.rows.0.m", "", None])
def test_reference_to_nothing_is_refused_with_its_path(reference: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve({"a": [{"$ref": reference}]}, RESULTS, "operations.3.kwargs")
    assert caught.value.details["path"] == "operations.3.kwargs.a.0"


def test_parsed_batch_has_what_a_transaction_needs() -> None:
    request = parse_batch(
        [[{"call": "a.get", "args": [1]}, {"call": "fn.f", "kwargs": {"x": 1}}]],
        {"isolation": "serializable", "dry_run": True, "timeout": 2},
    )
    assert [(each.name, each.args, each.kwargs) for each in request.operations] == [
        ("a.get", [1], {}),
        ("fn.f", (), {"x": 1}),
    ]
    assert (request.isolation, request.read_only, request.dry_run) == ("serializable", False, True)
    assert (request.failures, request.timeout) == (0, 2.0)
