"""
Wire arguments and Python values → PostgreSQL's input text, by type.

Strict where a mistake would be stored in silence (a boolean for a text, a list for a
number), and otherwise open to whatever text PostgreSQL takes for the type. Nothing here
raises anything but `InvalidArgument`, whose `path` is relative to the value.

The values of models are Python's: their text is that which PostgreSQL itself writes for the same
value in a session of ours.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
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

from service.catalog import Catalog, Type
from service.datatypes import FormName
from service.db.json import LEAST, MOST, check_text, shown, within, write_json
from service.db.literals import MAX_DIMENSIONS, write_array, write_composite, write_hstore
from service.errors import InvalidArgument, UnknownName
from service.plan.hidden import has_hidden_field
from service.sql.statement import quoted

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
        write = _TEXTS.get(kind)
        if write is not None:
            return write(value)
    return None


def duration_text(value: timedelta) -> str:
    """Write an interval as PostgreSQL does with intervalstyle iso_8601."""
    sign = "-" if value < timedelta(0) else ""
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

Write = Callable[[Any], str]
"""Writes a value, which is not None, as PostgreSQL's text."""

Texts = list[Any]
"""Nested lists of texts and None."""

_DIGITS = re.compile(r"\s*([+-]?)0*([0-9]+)\s*", re.ASCII)
_OTHER_FORM = re.compile(
    r"\s*[+-]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9]+(?:_[0-9]+)+)\s*", re.ASCII
)

_BOOLEANS = frozenset(
    [
        *("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"),
        *("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"),
    ]
)
"""The words of PostgreSQL's parse_bool."""


def kind_of(value: object) -> str:
    """Return the name of the type of what a caller sent, as the caller would say it."""
    names: Mapping[type, str] = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        bytes: "binary",
        list: "a list",
        dict: "a dict",
    }
    return names.get(type(value), f"a {type(value).__name__[:40]}")


def unfit(value: object, wanted: str) -> InvalidArgument:
    """Return the error for a value of the wrong type."""
    return InvalidArgument(f"expected {wanted}, got {kind_of(value)}")


def integer_text(least: int, most: int) -> Write:
    """Build the writer of integers of a range."""

    def write(value: Any) -> str:
        if isinstance(value, str):
            return _integer_word(value, least, most)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise unfit(value, "an integer")
        if not least <= value <= most:
            raise InvalidArgument(f"not between {least} and {most}")
        return str(int(value))

    return write


def _integer_word(word: str, least: int, most: int) -> str:
    check_text(word)
    found = _DIGITS.fullmatch(word)
    if found is None:
        if _OTHER_FORM.fullmatch(word):
            return word
        raise InvalidArgument("expected an integer, got a string that is none")
    sign, digits = found.groups()
    value = int(sign + digits) if len(digits) < 20 else None
    if value is None or not least <= value <= most:
        raise InvalidArgument(f"not between {least} and {most}")
    return word


def number_text(value: Any) -> str:
    """Write a numeric, float or money."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise unfit(value, "a number or a string")
    return _digits(value)


def _digits(value: int | float | Decimal) -> str:
    try:
        return repr(float(value)) if isinstance(value, float) else str(value)
    except ValueError:  # Python writes integers of at most 4,300 digits
        raise InvalidArgument("an integer with too many digits; send it as a string") from None


def boolean_text(value: Any) -> str:
    """Write a boolean; the words are those of PostgreSQL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return value
    raise unfit(value, "true or false")


def string_text(value: Any) -> str:
    """Write text; a number is taken as its digits."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument("expected a string, got a number that is not finite")
        return _digits(value)
    return word_text(value)


def word_text(value: Any) -> str:
    """Write what has its own form as a string: dates, uuids, ranges, addresses, …"""
    if isinstance(value, str):
        return check_text(value)
    text = python_text(value)
    if text is None:
        raise unfit(value, "a string")
    return text


def bytes_of(value: Any) -> bytes:
    """Return the bytes of any form of binary that a serializer leaves."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if type(value).__name__ == "CBORTag" and getattr(value, "tag", None) == 64:
        return bytes_of(value.value)
    if isinstance(value, str):
        try:
            if value.startswith("\\x"):
                return bytes.fromhex(value[2:])
            if value.startswith("\0"):
                return base64.b64decode(value[1:].encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            pass
        raise InvalidArgument(
            "expected binary, got a string that is none",
            hint='send bytes, "\\x" and hexadecimal digits, or "\\0" and base64',
        )
    raise unfit(value, "binary")


def bytes_text(value: Any) -> str:
    """Write bytea."""
    return "\\x" + bytes_of(value).hex()


def array_text(write: Write, delimiter: str = ",", dimensions: int = MAX_DIMENSIONS) -> Write:
    """
    Build the writer of arrays.

    Args:
        write: For an element.
        delimiter: Between elements of this type.
        dimensions: How deep lists are dimensions; below, they are elements.
    """

    def write_list(value: Any) -> str:
        if isinstance(value, str):
            return _literal(value, "[{", "a list")
        if not isinstance(value, (list, tuple)):
            raise InvalidArgument("expected a list")
        if dimensions == 1 or not any(isinstance(item, (list, tuple)) for item in value):
            try:
                return write_array(
                    [None if item is None else write(item) for item in value], delimiter
                )
            except InvalidArgument:
                pass  # to be refused below, with its place
        texts, shape = _texts(value, write, dimensions)
        # PostgreSQL has one empty array, without dimensions
        return write_array(texts, delimiter) if 0 not in shape else "{}"

    return write_list


def _texts(items: Sequence[Any], write: Write, dimensions: int) -> tuple[Texts, tuple[int, ...]]:
    """Write the elements of a list, and return its shape as well, which must be a box."""
    found: Texts = []
    below: tuple[int, ...] | None = None
    for place, item in enumerate(items):
        shape: tuple[int, ...] = ()
        try:
            if item is None:
                found.append(None)
            elif dimensions > 1 and isinstance(item, (list, tuple)):
                texts, shape = _texts(item, write, dimensions - 1)
                found.append(texts)
            else:
                found.append(write(item))
            if below is not None and shape != below:
                raise InvalidArgument("the lists of an array must all be of one length and depth")
        except InvalidArgument as refusal:
            raise within(refusal, place) from None
        below = shape
    return found, (len(items), *(below or ()))


def composite_text(
    fields: Sequence[tuple[str, Write]], of: str, withheld: Set[str] = frozenset()
) -> Write:
    """
    Build the writer of rows.

    Args:
        fields: Names and what writes them, in order; one without a name cannot be set.
        of: What it is, for refusals.
        withheld: Names that no refusal gives.
    """
    names = [name for name, _ in fields if name]

    def write_row(value: Any) -> str:
        if isinstance(value, str):
            return _literal(value, "(", "a dict")
        given = row_of(value, names, of, withheld)
        texts: list[str | None] = []
        for at, (name, write) in enumerate(fields):
            item = given.get(name) if name else None
            try:
                texts.append(None if item is None else write(item))
            except InvalidArgument as refusal:
                raise within(refusal, at if name in withheld else name) from None
        return write_composite(texts)

    return write_row


def by_parts(write: Write, why: str) -> Write:
    """Build a writer that writes values by their parts alone, and refuses a string."""

    def write_parts(value: Any) -> str:
        if isinstance(value, str):
            raise InvalidArgument(f"expected a dict or a list, not a text: {why}")
        return write(value)

    return write_parts


def row_of(
    value: Any, names: Sequence[str], of: str, withheld: Set[str] = frozenset()
) -> dict[str, Any]:
    """
    Return a row as a dict, given one, or a list in the order of the fields.

    Raises:
        InvalidArgument: It is neither, or does not fit the fields.
    """
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise InvalidArgument(f"expected {len(names)} fields, got {len(value)}")
        return dict(zip(names, value, strict=True))
    if not isinstance(value, dict):
        raise InvalidArgument("expected a dict")
    for name in value:
        if name not in names:
            known = [each for each in names if each not in withheld]
            raise within(UnknownName("field", shown(name), known, of), name)
    return value


def hstore_text(value: Any) -> str:
    """Write an hstore from a dict of strings and nulls."""
    if isinstance(value, str):
        return check_text(value)
    return write_hstore(hstore_of(value))


def hstore_of(value: Any) -> dict[str, str | None]:
    """
    Return a dict of strings and nulls, as it is.

    Raises:
        InvalidArgument: It is something else.
    """
    if not isinstance(value, dict):
        raise InvalidArgument("expected a dict")
    for key, item in value.items():
        try:
            if not isinstance(key, str) or not isinstance(item, (str, type(None))):
                raise InvalidArgument("an hstore holds strings and nulls, by strings")
            check_text(key)
            check_text(item or "")
        except InvalidArgument as refusal:
            raise within(refusal, key) from None
    return value


def _literal(value: str, opening: str, wanted: str) -> str:
    check_text(value)
    if not value.lstrip().startswith(tuple(opening)):
        raise InvalidArgument(f"expected {wanted}, got a string")
    return value


class Encoders:
    """
    What writes values, by type, made when first needed.

    Args:
        catalog: Whose types are met.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._writers: dict[int, Write] = {}

    def writer(self, type: Type) -> Write:
        """Return the writer of values of a type; they are not None."""
        found = self._writers.get(type.oid)
        if found is None:
            found = self._writers[type.oid] = self._made(self._catalog.plain(type))
        return found

    def _made(self, type: Type) -> Write:
        write = self._written(type)
        if has_hidden_field(self._catalog, type.oid):
            return by_parts(write, "it has hidden fields")
        if type.kind != "base" and self._catalog.looks_up(type):
            return by_parts(write, "its text would have PostgreSQL look names up")
        return write

    def _written(self, type: Type) -> Write:
        if type.kind == "array":
            element = self._catalog.type(type.element)
            under = self._catalog.plain(element)
            lists_are_elements = under.kind == "array" or under.form == "json"
            return array_text(
                self.writer(element), element.delimiter, 1 if lists_are_elements else 6
            )
        if type.kind == "composite":
            fields = [(name, self.writer(self._catalog.type(oid))) for name, oid in type.fields]
            return composite_text(fields, f"type {type.name}", type.unreadable_fields)
        if self._catalog.looks_up(type):
            return self._name_text(type)
        limits = type.data_type.limits
        return integer_text(*limits) if limits else WRITERS.get(type.form, word_text)

    def _name_text(self, type: Type) -> Write:
        """Build the writer of names that PostgreSQL looks up: it would find hidden ones, too."""
        catalog = self._catalog
        if type.name in ("regconfig", "regdictionary", "regcollation"):
            return word_text
        known = {"-": "-"}
        if type.name == "regtype":
            known |= {word: each.sql for word, each in catalog.castable.items()}
        elif type.name == "regnamespace":
            known |= {schema: quoted(schema) for schema in catalog.schemas}
        elif type.name in ("regclass", "regproc"):
            homes = catalog.relations if type.name == "regclass" else catalog.functions
            for schema, name in homes:
                spelled = f"{quoted(schema)}.{quoted(name)}"
                known |= {f"{schema}.{name}": spelled, spelled: spelled}
                if schema == next(home for home in catalog.schemas if (home, name) in homes):
                    known |= {name: spelled, quoted(name): spelled}

        def write(value: Any) -> str:
            word = word_text(value)
            if word not in known:
                raise InvalidArgument(f"nothing served has this name, as {type.sql} has it")
            return known[word]

        return write


WRITERS: Mapping[FormName, Write] = {
    "binary": bytes_text,
    "boolean": boolean_text,
    "decimal": number_text,
    "float": number_text,
    "hstore": hstore_text,
    "json": write_json,
    "number": number_text,
    "string": string_text,
}
"""By form (service/datatypes), where there is more than one to write."""
