"""Only plain values may leave."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest

from service.payload import ENVELOPE, MAX_DEPTH, TooDeep, Unserializable, check


class Color(IntEnum):
    """An integer that is not exactly one."""

    RED = 1


def nested(levels: int) -> Any:
    """Give a list in a list in a list."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 2**64 - 1, -(2**63), 1.5, "", "é", b"\0", [], {}, (1,), {"a": [{"b": None}]}],
)
def test_value_that_serializers_carry_passes(value: object) -> None:
    """What every serializer carries passes."""
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
    """What some serializer does not carry is found, at the top and within."""
    for holding in (value, [1, value], {"a": {"b": [value]}}):
        with pytest.raises(Unserializable):
            check(holding)


def test_value_nested_deeper_than_promised_is_too_deep() -> None:
    """As deep as promised and no deeper; a value that holds itself is too deep."""
    check(nested(MAX_DEPTH - ENVELOPE))
    with pytest.raises(TooDeep):
        check(nested(MAX_DEPTH - ENVELOPE + 1))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TooDeep):
        check(endless)
