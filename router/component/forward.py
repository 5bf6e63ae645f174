"""
Results of the service that are forwarded as they are.

Crossbar decodes each result and encodes it again for the caller, which takes most of its CPU time per call if
the result has many rows. If the caller uses CBOR too, the bytes are the same. So the argument of a YIELD is
kept as bytes, and decoded only for callers with another serializer.

The bytes are not checked. Only those of the service's role are forwarded, which checks its results itself.
"""

from functools import partial

import cbor2
from autobahn.wamp import serializer
from autobahn.wamp.exception import ProtocolError
from crossbar.router.dealer import Dealer

HEAD = b"\x84\x18\x46"
"""The beginning of a list of four items, the first of which is 70, the type of a YIELD."""
SIZES = {24: 1, 25: 2, 26: 4, 27: 8}
"""Numbers of bytes of an unsigned integer, by its first byte; below 24, that is the integer."""
FINAL, PART = b"\xa0\x81", b"\xa1\x68progress\xf5\x81"
"""The options of a result and of a part of one, and the beginning of a list of one item."""


class Encoded:
    """
    A value that has not been decoded.

    Args:
        data: The value as CBOR.
    """

    __slots__ = ("data",)

    def __init__(self, data):
        self.data = data


def install():
    """Replace functions of autobahn and Crossbar, for all realms of this process."""
    serializer._cbor_loads = loads
    serializer._cbor_dumps = partial(cbor2.dumps, default=write)
    Dealer.processYield = decoded_for(Dealer.processYield)


def trust(dealer, role):
    """Forward results of sessions with a role as they are."""
    dealer.forwarded_role = role


def loads(payload):
    """Decode a message, except for the argument of a YIELD that has one argument."""
    if payload[:3] == HEAD and payload[3] <= max(SIZES):
        size = SIZES.get(payload[3], 0)
        begin = 4 + size
        for options, said in ((FINAL, {}), (PART, {"progress": True})):
            if payload.startswith(options, begin):
                request = int.from_bytes(payload[4:begin], "big") if size else payload[3]
                return [70, request, said, [Encoded(payload[begin + len(options) :])]]
    return cbor2.loads(payload)


def write(encoder, value):
    """Write a value that has not been decoded; cbor2 calls this for types that it does not know."""
    if type(value) is not Encoded:
        raise cbor2.CBOREncodeError(f"cannot encode type {type(value)}")
    encoder.write(value.data)


def decoded_for(process):
    """Return a method that handles a YIELD, and decodes its argument if it cannot be forwarded."""

    def take(self, session, answer):
        args = answer.args
        if args and type(args[0]) is Encoded and not forwards(self, session, answer):
            try:
                answer.args = [cbor2.loads(args[0].data)]
            except Exception as error:
                raise ProtocolError(f"invalid serialization of WAMP message: {error}") from error
        process(self, session, answer)

    return take


def forwards(dealer, session, answer):
    """Return whether the argument of a YIELD may be sent to the caller as it is."""
    invocation = dealer._invocations.get(answer.request)
    if invocation is None or session._authrole != getattr(dealer, "forwarded_role", None):
        return False
    used = getattr(invocation.caller._transport, "_serializer", None)
    # A schema for results is checked with their values.
    return isinstance(used, serializer.CBORSerializer) and not invocation.authorization.get(
        "validate"
    )
