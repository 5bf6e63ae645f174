"""
What may be handed to autobahn: plain values, not too deep.

A router that cannot encode a result for its caller leaves the call unanswered, and one that
cannot decode it drops the service's connection. So a result is checked before it leaves.
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
Levels of lists and dicts in one message, both ways, the message itself counted.

The router's decoder of CBOR stops at 400, and JSON decoders of clients well below 1,000.
"""

ENVELOPE = 8
"""Levels that the message keeps for itself."""

LEVELS = MAX_DEPTH - ENVELOPE
"""Of an answer, or of the argument of an event."""

ROOM = 64
"""Bytes that a message needs besides the rows of an answer."""


def _base64(value: bytes) -> str:
    """Return the form of bytea in JSON; every other wire value has one of its own."""
    return b64encode(value).decode()


wire_json = JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_base64).encode
"""Returns the JSON of a wire value, where an answer is text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A part of an answer that is CBOR already, of values that every client can be sent."""

    data: bytes


def write_encoded(encoder: cbor2.CBOREncoder, value: Any) -> None:
    """Write what is encoded already, as cbor2 asks of a value of a type that it does not know."""
    if type(value) is not Encoded:
        raise cbor2.CBOREncodeError(f"cannot encode type {type(value)}")
    encoder.write(value.data)


# No memoryview, which psycopg2 has for bytea: CBOR would make a list of integers of it.
_PLAIN = frozenset([str, bool, bytes, type(None), Encoded])
_STR = frozenset([str])
SAFE = 2**53
"""Numbers below it, and above its negative, are fine without a closer look."""
# What MessagePack has: for a caller who speaks that, the router never answers with more.
_LEAST, _MOST = -(2**63), 2**64 - 1


@dataclass(frozen=True, slots=True)
class Receipted:
    """
    The answer of a write, with a receipt.

    Args:
        answer: As it would be without.
        tx: The id of the transaction that has it; None if nothing was written.
    """

    answer: Any
    tx: str | None


RECEIPT_TAG = 40_500
"""
Of the transaction in CBOR, behind the answer; nothing plain has a tag.

Not of both: what is in a tag is decoded as tuples.
"""


@dataclass(frozen=True, slots=True)
class Audience:
    """
    Who of the subscribers gets an event; all of them, if nothing is said.

    Args:
        eligible: The authroles that get it.
        excluded: Those that do not.
    """

    eligible: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """
    An event for a topic.

    Args:
        topic: The whole URI.
        event: The one argument.
        audience: Who gets it.
    """

    topic: str
    event: Mapping[str, Any]
    audience: Audience = Audience()


class Unsafe(Exception):
    """A value that some client's serializer cannot carry."""


class TooDeep(TooLarge, Unsafe):
    """More levels than some client's decoder takes."""

    wording = "the answer is nested deeper than {} levels"
    hint = "select a part of it by path, or cast it to text"


def check(value: Any, levels: int = LEVELS) -> None:
    """
    Check that every client can be sent a value.

    Plain are str, bool, None, bytes, integers of 64 bits, finite floats, and lists and
    str-keyed dicts of these; exactly these types, since a serializer meets a subclass
    elsewhere than its author did.

    Raises:
        TooDeep: It has more levels.
        Unsafe: It holds something else.
    """
    _check([value], levels + 1)


def fit(answer: Any, max_bytes: int) -> int:
    """
    Check that an answer can be sent, before its transaction commits; return its bytes as CBOR.

    Args:
        answer: As it will be sent, or all that is large of it.
        max_bytes: What a message may weigh.

    Raises:
        TooLarge: It is larger, or has more levels than `check` lets pass.
        Unsafe: It holds something that cannot be sent.
    """
    return len(packed(answer, max_bytes))


def packed(answer: Any, max_bytes: int) -> bytes:
    """Return an answer as CBOR, with its receipt if it has one; raises as `fit` does."""
    if isinstance(answer, Receipted):
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
        return Receipted(found[0], found[1].value)
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
            # A key that is an integer ends the connection of a client with MessagePack.
            if not _STR.issuperset(map(type, item)):
                raise Unsafe("a key that is not a string")
            _check(item.values(), levels - 1)
        elif kind is list or kind is tuple:
            _check(item, levels - 1)
        else:
            raise Unsafe(f"a value of type {kind.__name__}")


def _check_number(number: float) -> None:
    if type(number) is int:
        if not _LEAST <= number <= _MOST:
            raise Unsafe("an integer beyond 64 bits")
    # Of all floats NaN and the infinities alone do not give 0 here.
    elif number - number != 0.0:
        raise Unsafe("a float that is not finite")
