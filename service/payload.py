"""
Payloads: checks that a value can be sent through autobahn, and encodes answers.

A router that cannot encode a result for its caller leaves the call unanswered, and one that cannot decode it
drops the service's connection. So each result is checked before it is sent.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONEncoder
from typing import Any

import cbor2

from service.errors import TooLarge

MAX_DEPTH = 128
"""
Maximum levels of lists and dicts in a message, sent or received, including the message itself.

The router's CBOR decoder stops at 400 levels, and JSON decoders of clients well below 1,000.
"""

ENVELOPE = 8
"""Levels of the message around its payload."""

LEVELS = MAX_DEPTH - ENVELOPE
"""Maximum levels of an answer, or of the argument of an event."""

ROOM = 64
"""Bytes of a message besides the rows of an answer."""


def _base64(value: bytes) -> str:
    """Return the form of bytea in JSON; all other wire values are JSON values."""
    return b64encode(value).decode()


wire_json = JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_base64).encode
"""Returns the JSON of a wire value, for answers in the form "json"."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A part of an answer that is CBOR already, and contains only values that every client can receive."""

    data: bytes


def write_encoded(encoder: cbor2.CBOREncoder, value: Any) -> None:
    """Write an `Encoded`; cbor2 calls this as its `default` for types that it does not know."""
    if type(value) is not Encoded:
        raise cbor2.CBOREncodeError(f"cannot encode type {type(value)}")
    encoder.write(value.data)


# Without memoryview, psycopg2's type for bytea: CBOR would encode it as a list of integers.
_PLAIN = frozenset([str, bool, bytes, type(None), Encoded])
_STR = frozenset([str])
SAFE = 2**53
"""Numbers of a smaller absolute value need no further check."""
# The range of MessagePack: with a larger integer the router would not answer a caller that uses it.
_LEAST, _MOST = -(2**63), 2**64 - 1


@dataclass(frozen=True, slots=True)
class WithReceipt:
    """
    The answer of a write, with a receipt.

    Args:
        answer: The answer without the receipt.
        tx: The id of the transaction; None if nothing was written.
    """

    answer: Any
    tx: str | None


RECEIPT_TAG = 40_500
"""
CBOR tag of the transaction's id, behind the answer; plain values have no tag.

The answer is not in the tag, because cbor2 decodes the lists in a tag as tuples.
"""


@dataclass(frozen=True, slots=True)
class Audience:
    """
    The subscribers that receive an event; all of them by default.

    Args:
        eligible: Authroles that receive it.
        excluded: Authroles that do not receive it.
    """

    eligible: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """
    An event for a topic.

    Args:
        topic: The complete URI.
        event: Its only argument.
        audience: The subscribers that receive it.
    """

    topic: str
    event: Mapping[str, Any]
    audience: Audience = Audience()


class Unserializable(Exception):
    """A value that some client's serializer cannot carry."""


class TooDeep(TooLarge, Unserializable):
    """More levels than some client's decoder supports."""

    wording = "the answer is nested deeper than {} levels"
    hint = "select a part of it by path, or cast it to text"


def check(value: Any, levels: int = LEVELS) -> None:
    """
    Check that a value can be sent to every client.

    It may consist of str, bool, None, bytes, integers of 64 bits, finite floats, and lists and str-keyed
    dicts of these. Subclasses are refused, because serializers differ in how they treat them.

    Raises:
        TooDeep: The value has more levels than `levels`.
        Unserializable: It contains another type.
    """
    _check([value], levels + 1)


def fit(answer: Any, max_bytes: int) -> int:
    """
    Check, before its transaction commits, that an answer can be sent; return its size as CBOR in bytes.

    Args:
        answer: The answer, or all of its large parts.
        max_bytes: Maximum size of a message.

    Raises:
        TooLarge: The answer is larger, or has more levels than `check` allows.
        Unserializable: It contains a value that cannot be sent.
    """
    return len(packed(answer, max_bytes))


def packed(answer: Any, max_bytes: int) -> bytes:
    """Return an answer as CBOR, with its receipt if it has one; raise as `fit` does."""
    if isinstance(answer, WithReceipt):
        check(answer.answer)
        answer = [answer.answer, cbor2.CBORTag(RECEIPT_TAG, answer.tx)]
    else:
        check(answer)
    found = cbor2.dumps(answer)
    if len(found) + ROOM > max_bytes:
        raise TooLarge(max_bytes)
    return found


def unpacked(data: bytes) -> Any:
    """Return an answer that was `packed`."""
    found = cbor2.loads(data)
    if isinstance(found, list) and found and isinstance(found[-1], cbor2.CBORTag):
        return WithReceipt(found[0], found[1].value)
    return found


def _check(items: Any, levels: int) -> None:
    if not levels:
        raise TooDeep(LEVELS)
    for item in items:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is int or kind is float:
            if not -SAFE < item < SAFE:  # neither is NaN
                _check_number(item)
        elif kind is dict:
            # An integer as a key ends the connection of a client that uses MessagePack.
            if not _STR.issuperset(map(type, item)):
                raise Unserializable("a key that is not a string")
            _check(item.values(), levels - 1)
        elif kind is list or kind is tuple:
            _check(item, levels - 1)
        else:
            raise Unserializable(f"a value of type {kind.__name__}")


def _check_number(number: float) -> None:
    if type(number) is int:
        if not _LEAST <= number <= _MOST:
            raise Unserializable("an integer beyond 64 bits")
    # Only for NaN and the infinities is this difference not 0.
    elif number - number != 0.0:
        raise Unserializable("a float that is not finite")
