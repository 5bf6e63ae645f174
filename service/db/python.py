"""
Python's values: what models see of the wire's, and the form that the wire gives them.

Dates become dates, numerics Decimals, binary bytes. What Python's types cannot hold
(infinity, years before 1, months in an interval) stays PostgreSQL's text. The other way a value has
the text that PostgreSQL itself writes for it in a session of ours.
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
"""PostgreSQL's numeric has at most so many digits before the point."""


def wire(value: Any) -> Any:
    """
    Return the wire form of a Python value, lists and dicts with all that they hold.

    Raises:
        TypeError: There is no wire form for such a value.
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
        return float(value) if math.isfinite(value) else _words(value)
    if isinstance(value, Enum):
        return wire(value.value)
    if isinstance(value, (str, bytes)):
        return str(value) if isinstance(value, str) else bytes(value)
    raise TypeError(f"no wire form for a value of type {type(value).__name__}")


def python_text(value: Any) -> str | None:
    """Return PostgreSQL's text of a date, number, address or the like; None for other values."""
    for kind in type(value).__mro__:
        # From the class itself on: a datetime is a date, too.
        write = _TEXTS.get(kind)
        if write is not None:
            return write(value)
    return None


def duration_text(value: timedelta) -> str:
    """Write an interval as PostgreSQL does with intervalstyle iso_8601."""
    sign = "-" if value < timedelta(0) else ""
    # Python has -1 s as -1 day and 86,399 s; PostgreSQL gives each part its sign.
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
    """Write a timestamp, an aware one in UTC."""
    if value.tzinfo is None:
        return _trimmed(value.isoformat())
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # within a day of the calendar's ends
        return value.isoformat()
    return _trimmed(value.replace(tzinfo=None).isoformat()) + "Z"


def time_text(value: time) -> str:
    """Write a time, with its offset if it has one."""
    if value.tzinfo is None:
        return _trimmed(value.isoformat())
    return value.isoformat()


def decimal_text(value: Decimal) -> str:
    """Write a numeric without an exponent, as PostgreSQL does."""
    # Without the limit, 1E+999999999 would become a text of a gigabyte.
    if value.is_finite() and abs(value.adjusted()) <= MAX_EXPONENT:
        return format(value, "f")
    return "NaN" if value.is_nan() else str(value)


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _words(value: float) -> str:
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
    """Read an integer in any form that PostgreSQL takes."""
    try:
        return int(text)
    except ValueError:
        # Second, since with base 0 a leading zero is refused: "010".
        return int(text, 0)


def to_boolean(text: str) -> bool:
    """Read one of PostgreSQL's words for true and false."""
    word = text.strip().lower()
    return word == "on" or word[0] in "ty1"


def to_timestamp(text: str) -> datetime:
    """Read a moment without a zone; PostgreSQL drops one that is given, and so do we."""
    return datetime.fromisoformat(text).replace(tzinfo=None)


def to_timestamptz(text: str) -> datetime:
    """Read a moment, in UTC unless it says otherwise."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def to_interval(text: str) -> timedelta:
    """Read a duration of days and less; a month has no length to Python."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(text)
    return timedelta(**{unit: float(n) for unit, n in found.groupdict("0").items()})


def or_text(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Build the reader that returns the text itself where it stands for no value of Python's."""

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
"""By form (service/datatypes): from PostgreSQL's input text."""
