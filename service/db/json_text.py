"""
JSON text ↔ values that every serializer carries.

What no serializer carries comes as text, a string: an integer beyond 64 bits, a number
beyond a double, a value deeper than `MAX_DEPTH`. The characters that PostgreSQL's own text
cannot hold, NUL and lone surrogates, which the type json lets pass as escapes, come as
U+FFFD.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from service.errors import InvalidArgument, clip

MAX_DEPTH = 100
"""Levels of one JSON value; decoders of clients stop somewhere above."""

LEAST, MOST = -(2**63), 2**63 - 1
"""What a signed integer of 64 bits holds."""

_DIGITS = bytes.maketrans(b"123456789+E", b"0000000000e")
_HARMLESS = frozenset([bool, int, type(None)])
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_json(text: str) -> Any:
    """
    Read JSON that PostgreSQL holds.

    Careful reading costs time, so it is kept for texts that may need it: nearly none.
    """
    if len(text) > 2 * MAX_DEPTH and _too_deep(text):
        return text
    scan = _SCAN_CAREFULLY if _has_wide_number(text) else _SCAN
    value, _ = scan(text.strip(), 0)
    return _sendable(value) if "\\u" in text else value


def write_json(value: Any) -> str:
    """
    Write a caller's value as JSON.

    Raises:
        InvalidArgument: PostgreSQL cannot hold it; `path` tells where in the value.
    """
    _check(value, MAX_DEPTH)
    try:
        return _ENCODER.encode(value)
    except ValueError:
        raise InvalidArgument("an integer with too many digits") from None


def check_text(value: str) -> str:
    """
    Make sure that PostgreSQL can hold a text; gives it back.

    Raises:
        InvalidArgument: It has a NUL or a lone surrogate.
    """
    if "\0" in value:
        raise InvalidArgument("PostgreSQL's text cannot hold the character NUL")
    if not value.isascii() and _UNSENDABLE.search(value):
        raise InvalidArgument("not a valid Unicode text: a surrogate stands alone")
    return value


def within(refusal: InvalidArgument, step: object) -> InvalidArgument:
    """Note that what was refused stood one step deeper; gives the refusal back."""
    tail = refusal.details.get("path")
    word = shown(step)
    refusal.details["path"] = f"{word}.{tail}" if tail else word
    return refusal


def shown(word: object) -> str:
    """Give a caller's word back at a bounded length, in characters that can be sent."""
    return _UNSENDABLE.sub("\ufffd", clip(word))


def _has_wide_number(text: str) -> bool:
    digits = text.encode().translate(_DIGITS)
    return b"0" * 19 in digits or b"0e000" in digits


def _integer(text: str) -> int | str:
    if len(text) > 20:
        return text
    value = int(text)
    return value if LEAST <= value <= MOST else text


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


_SCAN = json.JSONDecoder().raw_decode
_SCAN_CAREFULLY = json.JSONDecoder(parse_int=_integer, parse_float=_number).raw_decode


def _too_deep(text: str) -> bool:
    """Count levels without recursion, since the parser has none to spare."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
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
            if depth > MAX_DEPTH:
                return True
        elif character in "]}":
            depth -= 1
    return False


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSENDABLE.sub("\ufffd", value)
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
        _check_items(value.items(), True, levels)
    elif isinstance(value, (list, tuple)):
        _check_items(enumerate(value), False, levels)
    else:
        raise InvalidArgument(f"JSON has no form for a value of type {type(value).__name__}")


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
