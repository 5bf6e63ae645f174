"""
Python's values have the form that PostgreSQL gives them.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import ip_address, ip_network
from typing import Any
from uuid import UUID

import pytest

from service.db.codec import wire


class Color(Enum):
    """An enumeration of words."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    LOW = 1


class Word(str):
    """A subclass of a wire type."""


EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("value", "form"),
    [
        *((value, value) for value in (None, True, 5, 1.5, "a", b"a", 2**63 - 1, [], {})),
        (2**63, str(2**63)),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (datetime(2026, 11, 21, 14, 3, 0, 250000), "2026-11-21T14:03:00.25"),
        (datetime(2026, 11, 21, 14, 3, tzinfo=UTC), "2026-11-21T14:03:00Z"),
        (datetime(2026, 11, 21, 14, 3, tzinfo=EAST), "2026-11-21T12:03:00Z"),
        (datetime(1, 1, 1, tzinfo=EAST), "0001-01-01T00:00:00+02:00"),
        (date(2026, 11, 21), "2026-11-21"),
        (time(14, 3, 0, 250000), "14:03:00.25"),
        (time(14, 3, tzinfo=EAST), "14:03:00+02:00"),
        (timedelta(days=1, seconds=2), "P1DT2S"),
        (timedelta(0), "PT0S"),
        (timedelta(hours=-1, minutes=-30), "PT-1H-30M"),
        (timedelta(days=-1, microseconds=-500000), "P-1DT-0.5S"),
        (timedelta(days=2), "P2D"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+5"), "100000"),
        (Decimal("NaN"), "NaN"),
        (Decimal("sNaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (Decimal("1E+999999"), "1E+999999"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ip_address("::1"), "::1"),
        (ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (Color.RED, "red"),
        (Level.LOW, 1),
        (Word("a"), "a"),
        ((1, date(2026, 1, 1)), [1, "2026-01-01"]),
        ({Word("a"): [Decimal(1)]}, {"a": ["1"]}),
    ],
)
def test_value_on_the_wire_has_a_type_serializers_know(value: Any, form: Any) -> None:
    """A value has the form of the wire, in exactly the types that serializers know."""
    found = wire(value)
    assert found == form
    assert type(found) is type(form)


@pytest.mark.parametrize("value", [object(), {1: 2}, {1}, [1j], {"a": range(3)}])
def test_value_without_a_wire_form_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="no wire form"):
        wire(value)
