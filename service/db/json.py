"""
JSON text ↔ values that every WAMP serializer can encode.

A number that neither a 64-bit integer nor a double holds exactly is decoded as `{"$number": "0.1…"}`,
and encoded as that number. An object that itself has this form is decoded as `{"$value": …}`, and so is
one of that form: every decoded document can be encoded, and is the same document then.

A document that is deeper than `MAX_DEPTH`, as stored or as decoded, is decoded as its text, a string. NUL and
lone surrogates, which the type json accepts as escapes although PostgreSQL's text cannot hold them, are
decoded as U+FFFD.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from service.errors import InvalidArgument, clip
from service.request.arguments import UNSTORABLE
from service.request.row_values import NUMBER, VALUE, stands_for

MAX_DEPTH = 100
"""Maximum depth of a JSON value; decoders of clients have limits above this."""

LEAST, MOST = -(2**63), 2**63 - 1
"""The range of a signed 64-bit integer."""

# All digits and signs become 0, so that long numbers and exponents are found by substring searches in C,
# and only texts that have any are parsed number by number.
_DIGITS = bytes.maketrans(b"123456789+-E", b"00000000000e")
_MARKED = re.compile(r'"\\u0000([^"]*)"')
"""A `$number`, encoded as a string that begins with NUL, which no caller's string contains."""
_HARMLESS = frozenset([bool, int, type(None)])
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_json(text: str, levels: int = MAX_DEPTH) -> Any:
    """
    Decode a JSON text of PostgreSQL; return the text itself if it is deeper than `levels`.

    The slower decoder with hooks is used only for the few texts that may need it.
    """
    # A shorter text cannot be too deep, because each level has two brackets.
    if len(text) > 2 * levels and _too_deep(text, levels):
        return text
    escapes = "\\u" in text
    careful = escapes or '"$' in text or _has_wide_number(text)
    # raw_decode() rather than loads(): a small document takes 1.0 µs, and 2.1 with loads() and a count
    # of its brackets.
    value, _ = (_SCAN_CAREFULLY if careful else _SCAN)(text.strip(), 0)
    # Each `$value` around an object that has this form is a level that the text does not have.
    if careful and len(text) > 2 * levels and _deeper(value, levels):
        return text
    return _sendable(value) if escapes else value


def sendable_document(value: Any, levels: int = MAX_DEPTH) -> Any:
    """
    Return a document whose numbers were parsed as int and Decimal as `read_json` would return it.

    The text of a `{"$number": …}` may differ from that of `read_json`, but has the same value.

    Raises:
        ValueError: It is deeper than `MAX_DEPTH`, or has a NaN or infinity.
    """
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, (list, dict)):
        if not levels:
            raise ValueError(f"JSON deeper than {MAX_DEPTH} levels")
        if isinstance(value, list):
            return [sendable_document(item, levels - 1) for item in value]
        found = {
            UNSTORABLE.sub("\ufffd", key): sendable_document(item, levels - 1)
            for key, item in value.items()
        }
        wrapped = _wrapped(found)
        if wrapped is not found and _deeper(wrapped, levels):
            raise ValueError(f"JSON deeper than {MAX_DEPTH} levels")
        return wrapped
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("not a number")
        # str(), not format(): 1e999999999 would get that many digits.
        text = str(value)
        return _number(text) if value.as_tuple().exponent else _integer(text)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if LEAST <= value <= MOST else {NUMBER: str(value)}
    return value


def repeated_key(text: str) -> str | None:
    """Return the first duplicate key of a JSON object's top level, or None."""
    pairs, _ = _SCAN_PAIRS(text, 0)
    keys = [key for key, _ in pairs]
    return next((key for at, key in enumerate(keys) if key in keys[:at]), None)


def write_json(value: Any) -> str:
    """
    Encode a caller's value as JSON.

    Raises:
        InvalidArgument: PostgreSQL cannot store it; `path` is the path inside the value.
    """
    _check(value, MAX_DEPTH)
    try:
        text = _ENCODER.encode(value)
        if f'"{NUMBER}"' in text:
            text = _MARKED.sub(r"\1", _ENCODER.encode(_unwrapped(value)))
    except ValueError:
        hint = 'send it as {"$number": "…"}'
        raise InvalidArgument("an integer with too many digits", hint=hint) from None
    return text


def bare_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a decoded row without a `$value` around it: a row is no document, whatever its columns."""
    inner = row.get(VALUE)
    return inner if len(row) == 1 and isinstance(inner, dict) and stands_for(inner) else row


def _wrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object of a document as it is sent; used as the hook of a decoder, innermost first."""
    return {VALUE: value} if len(value) == 1 and stands_for(value) else value


def _deeper(value: Any, levels: int) -> bool:
    """Return whether a decoded value has more levels, not counting those of `$number`."""
    if isinstance(value, list):
        items: Iterable[Any] = value
    elif isinstance(value, dict) and not (len(value) == 1 and NUMBER in value):
        items = value.values()
    else:
        return False
    return not levels or any(_deeper(item, levels - 1) for item in items)


def _unwrapped(value: Any) -> Any:
    """Return the value that `$number` and `$value` stand for, numbers as strings for `_MARKED`."""
    if isinstance(value, (list, tuple)):
        return [_unwrapped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and stands_for(value):
        if NUMBER in value:
            return f"\0{value[NUMBER]}"
        value = value[VALUE]
    return {key: _unwrapped(item) for key, item in value.items()}


KINDS: Mapping[Any, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    bytes: "binary",
    list: "a list",
    dict: "a dict",
}
"""Names of the types of wire values, for error messages."""


def kind_of(value: object) -> str:
    """Return the name of the type of a wire value, for error messages."""
    return KINDS.get(type(value), f"a {type(value).__name__[:40]}")


def check_text(value: str) -> str:
    """
    Check that PostgreSQL can store a string, and return it.

    Raises:
        InvalidArgument: It contains NUL or a lone surrogate.
    """
    if "\0" in value:
        raise InvalidArgument("PostgreSQL's text cannot hold the character NUL")
    if not value.isascii() and UNSTORABLE.search(value):
        raise InvalidArgument("not a valid Unicode text: a surrogate stands alone")
    return value


def within(refusal: InvalidArgument, step: object) -> InvalidArgument:
    """Put a step in front of the path of an error, and return the error."""
    return under_path(refusal, shown(step))


def under_path(refusal: InvalidArgument, path: str) -> InvalidArgument:
    """Put a path in front of the path of an error, and return the error."""
    tail = refusal.details.get("path")
    refusal.details["path"] = f"{path}.{tail}" if tail else path
    return refusal


def shown(name: object) -> str:
    """Return a name from a caller for an error message: clipped, and without invalid characters."""
    return UNSTORABLE.sub("\ufffd", clip(name))


def _has_wide_number(text: str) -> bool:
    """Return whether there may be a number of more than 15 digits, or with a long exponent."""
    digits = text.encode().translate(_DIGITS, b".")
    return b"0" * 16 in digits or b"0e000" in digits


def _integer(text: str) -> int | dict[str, str]:
    # A 64-bit integer has a sign and 19 digits at most; int() is slow for long texts, and raises beyond
    # 4,300 digits.
    if len(text) > 20:
        return {NUMBER: text}
    value = int(text)
    return value if LEAST <= value <= MOST else {NUMBER: text}


def _number(text: str) -> float | dict[str, str]:
    value = float(text)
    exact = math.isfinite(value) and Decimal(repr(value)) == Decimal(text)
    return value if exact else {NUMBER: text}


_SCAN = json.JSONDecoder().raw_decode
_SCAN_CAREFULLY = json.JSONDecoder(
    object_hook=_wrapped, parse_int=_integer, parse_float=_number
).raw_decode

_SCAN_PAIRS = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str).raw_decode


def _too_deep(text: str, levels: int) -> bool:
    """Return whether a text is deeper than `levels`; the parser would exceed the recursion limit."""
    if text.count("[") + text.count("{") <= levels:
        return False
    depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > levels:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_sendable(item) for item in value]
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    return value


def _check(value: Any, levels: int) -> None:
    if value is None or isinstance(value, int):
        return
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidArgument("JSON has no NaN and no infinity")
    elif isinstance(value, dict):
        if len(value) == 1 and stands_for(value):  # does not count as a level of the document
            if NUMBER in value:
                return
            value = value[VALUE]
        _check_items(value.items(), True, levels)
    elif isinstance(value, (list, tuple)):
        _check_items(enumerate(value), False, levels)
    else:
        raise InvalidArgument(f"JSON has no form for {kind_of(value)}")


def _check_items(items: Iterable[tuple[Any, Any]], keyed: bool, levels: int) -> None:
    if not levels:
        raise InvalidArgument(f"JSON deeper than {MAX_DEPTH} levels")
    for step, item in items:
        try:
            if keyed:
                _check_key(step)
            if type(item) not in _HARMLESS:
                _check(item, levels - 1)
        except InvalidArgument as refusal:
            raise within(refusal, step) from None


def _check_key(key: Any) -> None:
    if not isinstance(key, str):
        raise InvalidArgument("a key of a JSON object is a string")
    check_text(key)
