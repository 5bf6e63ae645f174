"""
Arguments of writes, to the letter.
"""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidArgument
from service.request.read import Limits
from service.request.write import parse_create, parse_upsert

LIMITS = Limits()


@pytest.mark.parametrize("key", [[], ()])
def test_upsert_by_no_columns_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match="a key has columns") as refused:
        parse_upsert([{"id": 1}], {"on_conflict": key}, LIMITS)
    assert refused.value.details["path"] == "on_conflict"


@pytest.mark.parametrize(
    ("value", "default"),
    [
        ({"$default": True}, True),
        ({"$default": 1}, False),
        ({"$default": "yes"}, False),
        ({"$default": False}, False),
        ({"$default": True, "other": 1}, False),
    ],
)
def test_default_is_meant_by_true_alone(value: Any, default: bool) -> None:
    """Any other dict is a document to be stored."""
    parsed = parse_create([{"doc": value}], {}, LIMITS)
    ((assignment,),) = parsed.request.rows
    assert (assignment.operand is None) is default
