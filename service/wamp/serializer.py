"""
CBOR that neither a caller's argument nor a result of ours can break.

autobahn closes the connection over a message that it cannot decode, and leaves a call
unanswered over a result that it cannot encode. Here the first becomes an answer to the one
call it concerns, and so does the second.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cbor2
from autobahn.wamp import message
from autobahn.wamp.serializer import CBORObjectSerializer, CBORSerializer, Serializer
from twisted.logger import Logger

from service.errors import TooLarge, in_line
from service.payload import MAX_DEPTH
from service.wamp.errors import INVALID_PAYLOAD

log = Logger()

RAWSOCKET_MAX = 2**24
"""The largest message of a RawSocket connection, in bytes."""

_UNTYPED_BINARY = 64
"""CBOR tag of a JavaScript Uint8Array (RFC 8746)."""

Refuse = Callable[[Exception, str], Exception]
"""Turns an exception into the WAMP error that may leave, with what it happened in."""


class Undecodable:
    """
    An invocation whose arguments cannot be decoded.

    Args:
        request: Which invocation.
        reason: What is wrong with it.
    """

    def __init__(self, request: int, reason: str) -> None:
        self.request = request
        self.reason = reason


class MessageSizes:
    """
    What the messages of one connection weigh; autobahn copies serializers, copies share it.

    Attributes:
        received: What the last message weighed that came.
        weigh: Called with what each answer weighs, and each part of one.
    """

    def __init__(self) -> None:
        self.received = 0
        self.weigh: Callable[[int], None] = lambda size: None


class _Objects(CBORObjectSerializer):
    def unserialize(self, payload: bytes) -> list[Any]:
        return [cbor2.loads(payload, max_depth=MAX_DEPTH, tag_hook=_untag)]


class SafeSerializer(CBORSerializer):
    """
    The serializer of one connection.

    Args:
        refuse: Turns what could not be sent into a WAMP error.
        max_bytes: A larger answer is refused.
    """

    def __init__(self, refuse: Refuse, max_bytes: int) -> None:
        # Past CBORSerializer's, which makes an object serializer without a limit to the depth.
        Serializer.__init__(self, _Objects())
        self._refuse = refuse
        self._max_bytes = min(max_bytes, RAWSOCKET_MAX)
        self.sizes = MessageSizes()

    def serialize(self, msg: Any) -> tuple[bytes, bool]:
        """
        Encode a message; a last answer that cannot be sent becomes one that says so.

        Raises:
            TooLarge: A part of an answer is too large; the procedure should stop.
            Exception: Another message, or a part of an answer, cannot be encoded.
        """
        try:
            payload, binary = super().serialize(msg)
            if len(payload) > self._max_bytes and isinstance(msg, (message.Yield, message.Error)):
                raise TooLarge(self._max_bytes)
        except Exception as error:
            if not _is_last_answer(msg):
                raise
            # autobahn's own error would quote the whole result, be too large in turn, and so never
            # be sent: the caller would wait for ever.
            refusal = self._refuse(error, "encoding an answer")
            payload, binary = super().serialize(error_of(msg.request, refusal))
        if isinstance(msg, (message.Yield, message.Error)):
            self.sizes.weigh(len(payload))
        return payload, binary

    def unserialize(self, payload: bytes, isBinary: bool | None = None) -> list[Any]:
        """
        Decode a message.

        Raises:
            Exception: One that the session cannot go on without.
        """
        self.sizes.received = len(payload)
        try:
            return super().unserialize(payload, isBinary)
        except Exception as error:
            return _salvage(payload, error)


def error_of(request: int, refusal: Any) -> Any:
    """Return the message that answers an invocation with a WAMP error."""
    return message.Error(
        message.Invocation.MESSAGE_TYPE,
        request,
        refusal.error,
        args=list(refusal.args),
        kwargs=refusal.kwargs,
    )


def _is_last_answer(msg: Any) -> bool:
    return isinstance(msg, message.Error) or (isinstance(msg, message.Yield) and not msg.progress)


def _untag(tag: Any, immutable: bool) -> Any:
    return tag.value if tag.tag == _UNTYPED_BINARY else tag


def _salvage(payload: bytes, error: Exception) -> list[Any]:
    """Keep of an undecodable message what the session needs; re-raise if that is all of it."""
    decoder = cbor2.CBORDecoder(io.BytesIO(payload[1:]))  # the head of the message is one byte
    # WAMP puts ids before arguments, so the ids can be read even if what follows cannot.
    kind = decoder.decode()
    if kind == message.Invocation.MESSAGE_TYPE:
        return [Undecodable(decoder.decode(), _reason(error))]
    if kind == message.Event.MESSAGE_TYPE:
        log.warn("dropped an undecodable event: {reason}", reason=in_line(_reason(error)))
        return []
    if kind == message.Result.MESSAGE_TYPE:
        call = message.Call.MESSAGE_TYPE
        return [message.Error(call, decoder.decode(), INVALID_PAYLOAD, args=[_reason(error)])]
    if kind == message.Error.MESSAGE_TYPE:
        request_type, request = decoder.decode(), decoder.decode()
        return [message.Error(request_type, request, INVALID_PAYLOAD, args=[_reason(error)])]
    raise error


def _reason(error: Exception) -> str:
    """Return what is wrong with a message, in our own words where its sender can mend it."""
    text = str(error)
    if "nesting depth" in text:
        return f"nested deeper than {MAX_DEPTH} levels"
    return text.rpartition("invalid serialization of WAMP message: ")[2][:300]
