"""Only values that each serializer supports are sent."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest

from service.payload import ENVELOPE, MAX_DEPTH, TooDeep, Unserializable, check


class Color(IntEnum):
    """A subclass of int."""

    RED = 1


def nested(levels: int) -> Any:
    """Return a list nested to a depth."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 2**64 - 1, -(2**63), 1.5, "", "é", b"\0", [], {}, (1,), {"a": [{"b": None}]}],
)
def test_value_that_serializers_carry_passes(value: object) -> None:
    check(value)


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2026, 11, 21),
        float("nan"),
        float("inf"),
        2**64,
        -(2**63) - 1,
        {1: 2},
        {None: 2},
        memoryview(b""),
        bytearray(b""),
        {1},
        Color.RED,
        OrderedDict(),
        object(),
    ],
)
def test_value_that_some_serializer_does_not_carry_is_unsafe(value: object) -> None:
    """It is found at any depth."""
    for holding in (value, [1, value], {"a": {"b": [value]}}):
        with pytest.raises(Unserializable):
            check(holding)


def test_value_nested_deeper_than_promised_is_too_deep() -> None:
    """The maximum depth is accepted; a cyclic value is too deep."""
    check(nested(MAX_DEPTH - ENVELOPE))
    with pytest.raises(TooDeep):
        check(nested(MAX_DEPTH - ENVELOPE + 1))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TooDeep):
        check(endless)
