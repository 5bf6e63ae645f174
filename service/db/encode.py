"""
Wire arguments and Python values → PostgreSQL's input text, by type.

Values that PostgreSQL would silently store in another form, such as a boolean for a text, are refused
here; strings are passed on for PostgreSQL to check. All functions raise only `InvalidArgument`, whose
`path` is relative to the value.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
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
from service.db.json import check_text, kind_of, shown, within, write_json
from service.db.literals import MAX_DIMENSIONS, write_array, write_composite, write_hstore
from service.errors import InvalidArgument, UnknownName
from service.sql.statement import quoted

Write = Callable[[Any], str]
"""Encodes a value, which is not None, as PostgreSQL's text."""

Convert = Callable[[Any], Any]
"""Converts a value, which is not None."""

_DIGITS = re.compile(r"\s*([+-]?)0*([0-9]+)\s*", re.ASCII)
# Hexadecimal, octal and binary integers and underscores: PostgreSQL accepts them from version 16 on.
_OTHER_FORM = re.compile(
    r"\s*[+-]?(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9]+(?:_[0-9]+)+)\s*", re.ASCII
)

_BOOLEANS = frozenset(
    [
        *("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"),
        *("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"),
    ]
)
"""The strings that PostgreSQL's parse_bool accepts."""


MAX_EXPONENT = 131072
"""Maximum number of digits of PostgreSQL's numeric before the decimal point."""


def wrong_type(value: object, wanted: str) -> InvalidArgument:
    """Return the error for a value of the wrong type."""
    return InvalidArgument(f"expected {wanted}, got {kind_of(value)}")


def integer_text(least: int, most: int) -> Write:
    """Build the encoder of an integer type with a range."""

    def write(value: Any) -> str:
        if isinstance(value, str):
            return _integer_string(value, least, most)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        # True is an int to Python, and would be stored as 1.
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(value, "an integer")
        if not least <= value <= most:
            raise InvalidArgument(f"not between {least} and {most}")
        # int(), because a subclass may override __str__.
        return str(int(value))

    return write


def _integer_string(word: str, least: int, most: int) -> str:
    check_text(word)
    found = _DIGITS.fullmatch(word)
    if found is None:
        if _OTHER_FORM.fullmatch(word):
            return word
        raise InvalidArgument("expected an integer, got a string that is not one")
    sign, digits = found.groups()
    # No integer type holds more digits; int() takes quadratic time for them, and raises beyond 4,300.
    value = int(sign + digits) if len(digits) < 20 else None
    if value is None or not least <= value <= most:
        raise InvalidArgument(f"not between {least} and {most}")
    return word


def number_text(value: Any) -> str:
    """Encode a numeric, float or money."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise wrong_type(value, "a number or a string")
    return _digits(value)


def _digits(value: int | float | Decimal) -> str:
    try:
        return repr(float(value)) if isinstance(value, float) else str(value)
    except ValueError:  # Python converts integers of at most 4,300 digits to strings
        raise InvalidArgument("an integer with too many digits; send it as a string") from None


def boolean_text(value: Any) -> str:
    """Encode a boolean, or a string that PostgreSQL accepts for one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return value
    raise wrong_type(value, "true or false")


def string_text(value: Any) -> str:
    """Encode a string, or a number as its digits."""
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidArgument("expected a string, got a number that is not finite")
        return _digits(value)
    return plain_text(value)


def plain_text(value: Any) -> str:
    """Encode a type whose wire form is a string, such as dates, uuids, ranges and addresses."""
    if isinstance(value, str):
        return check_text(value)
    text = python_text(value)
    if text is None:
        raise wrong_type(value, "a string")
    return text


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


def bytes_of(value: Any) -> bytes:
    """Return the bytes of a binary value in any form that a serializer returns."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    # CBOR tag 64 is a typed array of octets (RFC 8746): JavaScript's Uint8Array is encoded so.
    if type(value).__name__ == "CBORTag" and getattr(value, "tag", None) == 64:
        return bytes_of(value.value)
    if isinstance(value, str):
        try:
            if value.startswith("\\x"):
                return bytes.fromhex(value[2:])
            # WAMP's representation of binary in JSON.
            if value.startswith("\0"):
                return base64.b64decode(value[1:].encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            pass
        raise InvalidArgument(
            "expected binary, got a string in another form",
            hint='send bytes, "\\x" and hexadecimal digits, or "\\0" and base64',
        )
    raise wrong_type(value, "binary")


def bytes_text(value: Any) -> str:
    """Encode a bytea."""
    return "\\x" + bytes_of(value).hex()


def array_text(write: Write, delimiter: str = ",", dimensions: int = MAX_DIMENSIONS) -> Write:
    """
    Build the encoder of an array type.

    Args:
        write: Encodes an element.
        delimiter: Delimiter between elements.
        dimensions: Maximum number of dimensions; lists nested deeper are elements.
    """

    def write_list(value: Any) -> str:
        if isinstance(value, str):
            return literal(value, "[{", "a list")
        if isinstance(value, (list, tuple)) and not any(
            isinstance(item, (list, tuple)) for item in value
        ):
            try:  # fast path: nearly every list is flat and valid
                return write_array(
                    [None if item is None else write(item) for item in value], delimiter
                )
            except InvalidArgument:
                pass  # raised again below, with the path of the element
        texts, shape = each_element(value, write, dimensions)
        # PostgreSQL has only one empty array, which has no dimensions.
        return write_array(texts, delimiter) if 0 not in shape else "{}"

    return write_list


def each_element(
    items: Any, convert: Convert, dimensions: int
) -> tuple[list[Any], tuple[int, ...]]:
    """
    Convert the elements of nested lists; return the lists, and their lengths by dimension.

    Raises:
        InvalidArgument: It is no list, lists of one dimension differ in length, or an element is invalid.
    """
    if not isinstance(items, (list, tuple)):
        raise wrong_type(items, "a list")
    found: list[Any] = []
    below: tuple[int, ...] | None = None
    for place, item in enumerate(items):
        shape: tuple[int, ...] = ()
        try:
            if dimensions > 1 and isinstance(item, (list, tuple)):
                lists, shape = each_element(item, convert, dimensions - 1)
                found.append(lists)
            else:
                found.append(None if item is None else convert(item))
            if below is not None and shape != below:
                raise InvalidArgument("the lists of an array must all be of one length and depth")
        except InvalidArgument as refusal:
            raise within(refusal, place) from None
        below = shape
    return found, (len(items), *(below or ()))


def each_field(type: Type, converts: Sequence[Convert]) -> Callable[[Any], list[Any]]:
    """
    Build the conversion of a row's fields, given as a dict, or as a list in their order.

    A hidden field has no name and cannot be set; the name of an unreadable field is in no error.
    """
    names = [name for name, _ in type.fields if name]
    readable = [name for name in names if name not in type.unreadable_fields]
    settable = frozenset(names)
    steps = [
        (name, at if name in type.unreadable_fields else name, convert)
        for at, ((name, _), convert) in enumerate(zip(type.fields, converts, strict=True))
    ]

    def convert_row(value: Any) -> list[Any]:
        given = value
        if isinstance(value, (list, tuple)):
            if len(value) != len(names):
                raise InvalidArgument(f"expected {len(names)} fields, got {len(value)}")
            given = dict(zip(names, value, strict=True))
        elif not isinstance(value, dict):
            raise wrong_type(value, "a dict")
        if not settable.issuperset(given):
            name = next(name for name in given if name not in settable)
            raise within(UnknownName("field", shown(name), readable, f"type {type.name}"), name)
        found: list[Any] = []
        for name, place, convert in steps:
            item = given.get(name) if name else None
            try:
                found.append(None if item is None else convert(item))
            except InvalidArgument as refusal:
                raise within(refusal, place) from None
        return found

    return convert_row


def composite_text(texts: Callable[[Any], list[Any]]) -> Write:
    """Build the encoder of a composite type from the function that encodes its fields."""

    def write_row(value: Any) -> str:
        if isinstance(value, str):
            return literal(value, "(", "a dict")
        return write_composite(texts(value))

    return write_row


def by_parts(convert: Convert, why: str) -> Convert:
    """Build a conversion that accepts a dict or a list, but refuses PostgreSQL's text of the value."""

    def convert_parts(value: Any) -> Any:
        if isinstance(value, str):
            raise InvalidArgument(f"expected a dict or a list, not a text: {why}")
        return convert(value)

    return convert_parts


def hstore_text(value: Any) -> str:
    """Encode an hstore, given as a dict of strings and nulls, or as text."""
    if isinstance(value, str):
        return check_text(value)
    return write_hstore(hstore_of(value))


def hstore_of(value: Any) -> dict[str, str | None]:
    """
    Check that a value is a dict of strings and nulls, and return it.

    Raises:
        InvalidArgument: It is something else.
    """
    if not isinstance(value, dict):
        raise wrong_type(value, "a dict")
    for key, item in value.items():
        try:
            if not isinstance(key, str) or not isinstance(item, (str, type(None))):
                raise InvalidArgument("an hstore holds strings and nulls, by strings")
            check_text(key)
            check_text(item or "")
        except InvalidArgument as refusal:
            raise within(refusal, key) from None
    return value


def literal(value: str, opening: str, wanted: str) -> str:
    """Check that a string begins like PostgreSQL's text of an array or a row, and return it."""
    check_text(value)
    if not value.lstrip().startswith(tuple(opening)):
        raise InvalidArgument(f"expected {wanted}, got a string")
    return value


def name_text(catalog: Catalog, type: Type) -> Write:
    """Build the encoder of names of served objects: PostgreSQL would look up hidden ones as well."""
    if type.name in ("regconfig", "regdictionary", "regcollation"):
        return plain_text
    known = {"-": "-"}
    if type.name == "regtype":
        known |= _type_names(catalog)
    elif type.name == "regnamespace":
        known |= {schema: quoted(schema) for schema in catalog.schemas}
    elif type.name in ("regclass", "regproc"):
        homes = catalog.relations if type.name == "regclass" else catalog.functions
        for schema, name in homes:
            qualified = f"{quoted(schema)}.{quoted(name)}"
            known |= {f"{schema}.{name}": qualified, qualified: qualified}
            # An unqualified name means the object of the first served schema that has one.
            if schema == next(home for home in catalog.schemas if (home, name) in homes):
                known |= {name: qualified, quoted(name): qualified}

    def write(value: Any) -> str:
        word = plain_text(value)
        if word not in known:
            raise InvalidArgument(f"nothing served has this name, as {type.sql} has it")
        return known[word]

    return write


def _type_names(catalog: Catalog) -> dict[str, str]:
    """Return the names of types by each form in which callers and PostgreSQL write them."""
    types = dict(catalog.castable)
    for each in catalog.castable.values():
        if each.schema in catalog.schemas:
            types.setdefault(quoted(each.name), each)
    arrays = {f"{word}[]": catalog.array_of(each) for word, each in types.items()}
    return {word: each.sql for word, each in (types | arrays).items() if each is not None}


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
"""By form (service/datatypes); forms not listed are encoded by `plain_text`."""
