"""
Python values of models ↔ wire values.

Dates become dates, numerics Decimals, binary bytes. Values that Python's types cannot represent (infinity,
years before 1, months in an interval) stay PostgreSQL's text. In the other direction, a value gets the
text that PostgreSQL writes for it with the session settings of `db/session_settings`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any
from uuid import UUID

from service.datatypes import FormName
from service.db.json import LEAST, MOST

MAX_EXPONENT = 131072
"""Maximum number of digits of PostgreSQL's numeric before the decimal point."""


def wire(value: Any) -> Any:
    """
    Return the wire form of a Python value; lists and dicts are converted recursively.

    Raises:
        TypeError: The value has no wire form.
    """
    if value is None or type(value) in _AS_IS:
        return value
    if isinstance(value, dict):
        return {_key(key): wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [wire(item) for item in value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    text = python_text(value)
    if text is not None:
        return text
    if isinstance(value, int) and not isinstance(value, Enum):
        return int(value) if LEAST <= value <= MOST else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _not_finite(value)
    if isinstance(value, Enum):
        return wire(value.value)
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    raise TypeError(f"no wire form for a value of type {type(value).__name__}")


def python_text(value: Any) -> str | None:
    """Return PostgreSQL's text of a date, number, address or the like; None for other values."""
    for kind in type(value).__mro__:
        # In the order of the MRO, because a datetime is also a date.
        write = _TEXTS.get(kind)
        if write is not None:
            return write(value)
    return None


def duration_text(value: timedelta) -> str:
    """Format an interval as PostgreSQL does with intervalstyle iso_8601."""
    sign = "-" if value < timedelta(0) else ""
    # Python's -1 s is -1 day and 86,399 s; PostgreSQL writes a sign for each part.
    value = abs(value)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days = f"{sign}{value.days}D" if value.days else ""
    parts = [f"{sign}{hours}H"] if hours else []
    if minutes:
        parts.append(f"{sign}{minutes}M")
    if seconds or value.microseconds:
        parts.append(_trimmed(f"{sign}{seconds}.{value.microseconds:06}") + "S")
    if not days and not parts:
        return "PT0S"
    return f"P{days}" + ("T" + "".join(parts) if parts else "")


def moment_text(value: datetime) -> str:
    """Format a timestamp, an aware one in UTC."""
    if value.tzinfo is None:
        return _trimmed(value.isoformat())
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # UTC is outside of Python's years 1 to 9999
        return value.isoformat()
    return _trimmed(value.replace(tzinfo=None).isoformat()) + "Z"


def time_text(value: time) -> str:
    """Format a time, with its offset if it has one."""
    if value.tzinfo is None:
        return _trimmed(value.isoformat())
    return value.isoformat()


def decimal_text(value: Decimal) -> str:
    """Format a numeric without an exponent, as PostgreSQL does."""
    # Without the limit, the text of 1E+999999999 would take a gigabyte.
    if value.is_finite() and abs(value.adjusted()) <= MAX_EXPONENT:
        return format(value, "f")
    return "NaN" if value.is_nan() else str(value)


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"no wire form for a dict with a key of type {type(key).__name__}")
    return str(key)


_AS_IS = frozenset([str, bool, bytes])
_TEXTS: Mapping[type, Callable[[Any], str]] = {
    datetime: moment_text,
    date: date.isoformat,
    time: time_text,
    timedelta: duration_text,
    Decimal: decimal_text,
    UUID: str,
    **dict.fromkeys(
        (IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface), str
    ),
}

_DURATION = re.compile(
    r"P(?:(?P<days>-?\d+)D)?"
    r"(?:T(?:(?P<hours>-?\d+)H)?(?:(?P<minutes>-?\d+)M)?(?:(?P<seconds>-?\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


def to_integer(text: str) -> int:
    """Parse an integer in any form that PostgreSQL accepts."""
    try:
        return int(text)
    except ValueError:
        # Only as a second attempt, because base 0 refuses a leading zero, as in "010".
        return int(text, 0)


def to_boolean(text: str) -> bool:
    """Parse a boolean in any form that PostgreSQL accepts."""
    word = text.strip().lower()
    return word == "on" or word[0] in "ty1"


def to_timestamp(text: str) -> datetime:
    """Parse a timestamp without time zone; an offset is ignored, as by PostgreSQL."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


def to_timestamptz(text: str) -> datetime:
    """Parse a timestamptz; without an offset it is in UTC."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def to_interval(text: str) -> timedelta:
    """
    Parse an interval of days and smaller units.

    Raises:
        ValueError: It has years or months, which a timedelta cannot represent.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{unit: float(n) for unit, n in found.groupdict("0").items()})


def or_text(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Build a parser that returns the text itself if Python's type cannot represent its value."""

    def read_or_keep(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, OverflowError):
            return text

    return read_or_keep


BY_TEXT: Mapping[FormName, Callable[[str], Any]] = {
    "integer": to_integer,
    "float": float,
    "boolean": to_boolean,
    "date": or_text(date.fromisoformat),
    "decimal": Decimal,
    "interval": or_text(to_interval),
    "time": or_text(time.fromisoformat),
    "timestamp": or_text(to_timestamp),
    "timestamptz": or_text(to_timestamptz),
}
"""By form (service/datatypes), the parser of PostgreSQL's input text."""
