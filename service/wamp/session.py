"""
A WAMP session, and its CBOR, that no single message can end: no caller's argument, no result of ours.

autobahn closes the connection over a message that it cannot decode, and leaves a call
unanswered over a result that it cannot encode. Here the first becomes an answer to the one
call it concerns, and so does the second. What stock autobahn does with each message, and what
this session does, is tested one by one in `tests/wamp/test_session.py`.
"""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import cbor2
from autobahn.exception import PayloadExceededError
from autobahn.twisted.wamp import ApplicationSession
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError, ProtocolError, TransportLost
from autobahn.wamp.request import InvocationRequest
from autobahn.wamp.serializer import CBORObjectSerializer, CBORSerializer, Serializer
from autobahn.wamp.types import (
    CallDetails,
    CallResult,
    Challenge,
    CloseDetails,
    ComponentConfig,
    SessionDetails,
)
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from service.cancellation import CooperativeDeferred
from service.errors import InvalidArgument, NotAuthorized, ServiceError, TooLarge, in_line
from service.payload import MAX_DEPTH, write_encoded
from service.wamp.application_errors import CANNOT_AUTHENTICATE, INVALID_PAYLOAD, application_error
from service.wamp.auth import Login
from service.wamp.backpressure import Outflow

log = Logger()

Full = Callable[[int | None, int], ServiceError | None]
"""Called with a caller's session and the bytes of its call."""

DETAILS = "details"
"""The keyword under which an endpoint gets the call's details, after `args` and `kwargs`."""

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


@dataclass(slots=True)
class Invocation:
    """
    An INVOCATION without anything rare: no parts are asked for, and no router has forwarded it.

    It stands for autobahn's message and for its details of a call. With `Answer` in place of a YIELD it
    takes 10 µs less of what a call costs (`bench/walk.py`).

    Args:
        request: Which one.
        registration: Whose endpoint is called.
        procedure: By its whole name.
        args: As they came.
        kwargs: As they came.
        caller, caller_authid, caller_authrole: Who calls, as the router says.
    """

    request: int
    registration: int
    procedure: str
    args: list[Any]
    kwargs: dict[str, Any]
    caller: int
    caller_authid: str
    caller_authrole: str

    progress: ClassVar[Callable[..., None] | None] = None


PLAIN = {"procedure", "caller", "caller_authid", "caller_authrole"}
"""What the router says of an `Invocation`."""

Details = CallDetails | Invocation
"""What an endpoint gets of a call beside the arguments."""


@dataclass(slots=True)
class Answer:
    """
    A YIELD: the whole answer to an `Invocation`.

    Args:
        request: Which one.
        parts: What is sent.
    """

    request: int
    parts: list[Any]


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
    serialize = staticmethod(partial(cbor2.dumps, default=write_encoded))

    def unserialize(self, payload: bytes) -> list[Any]:
        return [_decoded(payload)]


def _untag(tag: Any, immutable: bool) -> Any:
    return tag.value if tag.tag == _UNTYPED_BINARY else tag


_decoded = partial(cbor2.loads, max_depth=MAX_DEPTH, tag_hook=_untag)


def _plain(payload: bytes) -> Invocation | None:
    """Return a message as an invocation if it is one without anything rare."""
    if payload[1:3] != b"\x18\x44":  # 68, behind the length of the list
        return None
    _, request, registration, said, *given = _decoded(payload)
    if type(said) is not dict or said.keys() != PLAIN:
        return None
    args: list[Any] = given[0] if given else []
    kwargs: dict[str, Any] = given[1] if len(given) > 1 else {}
    if type(args) is not list or type(kwargs) is not dict:
        return None
    return Invocation(request, registration, args=args, kwargs=kwargs, **said)


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
            if isinstance(msg, Answer):
                payload, binary = _Objects.serialize(msg.parts), True
            else:
                payload, binary = super().serialize(msg)
            if len(payload) > self._max_bytes and isinstance(msg, ANSWERS):
                raise TooLarge(self._max_bytes)
        except Exception as error:
            if not _is_last_answer(msg):
                raise
            # autobahn's own error would quote the whole result, be too large in turn, and so never
            # be sent: the caller would wait for ever.
            refusal = self._refuse(error, "encoding an answer")
            payload, binary = super().serialize(error_of(msg.request, refusal))
        if isinstance(msg, ANSWERS):
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
            plain = _plain(payload)
            return super().unserialize(payload, isBinary) if plain is None else [plain]
        except Exception as error:
            return _salvage(payload, error)


ANSWERS = (Answer, message.Yield, message.Error)


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
    return isinstance(msg, ANSWERS) and not getattr(msg, "progress", False)


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


class SafeSession(ApplicationSession):
    """
    Our side of one session.

    Endpoints and handlers are called as `f(args, kwargs, details)`: spread into keyword
    arguments, a caller's `{"self": 1}`, `{"fun": 1}` or `{1: 2}` would break autobahn's own
    calls and with them the connection.

    Args:
        realm: Which to join.
        login: How to say who we are.
        joined: Called when the session stands; what it returns is not waited for.
        displaced: Called with the id of a registration that the router gave to another.
        links: Authroles of the sessions that may say for whom they call.
        sizes: What the messages of its connection weigh.

    Attributes:
        full: Asked whether a call may come in; what it returns is the refusal.
        refused: Called with the session whose call was refused so.
    """

    def __init__(
        self,
        realm: str,
        login: Login,
        joined: Callable[[SafeSession, SessionDetails], Awaitable[None]],
        displaced: Callable[[int], None],
        links: Container[str] = (),
        sizes: MessageSizes | None = None,
    ) -> None:
        super().__init__(ComponentConfig(realm))
        self.log.set_log_level("error")  # what a session goes through is logged by its client
        self._login = login
        self._joined = joined
        self._displaced = displaced
        self.sizes = sizes or MessageSizes()
        self.full: Full = lambda caller, size: None
        self.refused: Callable[[int | None], None] = lambda caller: None
        self._links = links
        self._open: Any = None
        self._outflow: Outflow | None = None
        self.closing: CloseDetails | None = None
        self._router: Mapping[str, Any] = {}

    @property
    def lost(self) -> bool:
        """Return whether the connection is gone, or about to be closed, and answers with it."""
        return self._open is None or self.closing is not None

    @property
    def can_restrict(self) -> bool:
        """Return whether the router can be told who of the subscribers gets an event."""
        broker = self._router.get("broker")
        return bool(getattr(broker, "subscriber_blackwhite_listing", False))

    def outflow(self) -> Outflow:
        """Return the producer of the connection, for calls that send much."""
        if self._outflow is None:
            self._outflow = Outflow(self._open.transport)
        return self._outflow

    def call_through(self, uri: str, *args: Any) -> Deferred[Any]:
        """
        Call, and be answered as the call ended even if it is cancelled: CANCEL in mode "kill".

        autobahn sends none of a mode, and takes the call for cancelled at once.
        """
        self.sizes.weigh = lambda size: None  # no answer of ours to anybody
        asked = self.call(uri, *args)
        # autobahn does not return the id that it gave the request: it is the last in its table.
        requests = [next(reversed(self._call_reqs))]

        def cancel() -> None:
            if requests and self._open is not None:  # once, however often it is asked for
                self._open.send(message.Cancel(requests.pop(), message.Cancel.KILL))

        answer = CooperativeDeferred()
        answer.request = cancel
        asked.addCallbacks(answer.callback, answer.errback)
        return answer

    def onOpen(self, transport: Any) -> None:
        """Keep the transport, to answer by it what autobahn would not."""
        self._open = transport
        super().onOpen(transport)

    def onConnect(self) -> None:
        """Send HELLO, or close if there are no usable credentials."""
        login = self._login
        try:
            extra = login.extra()
        except Exception as error:
            self.closing = CloseDetails(CANNOT_AUTHENTICATE, f"{login.method}: {error}")
            self.disconnect()
            return
        self.join(
            self.config.realm, authmethods=[login.method], authid=login.authid, authextra=extra
        )

    def onChallenge(self, challenge: Challenge) -> str:
        """Answer the router's challenge."""
        return self._login.answer(challenge)

    def onWelcome(self, welcome: Any) -> Any:
        """Keep what the router can do."""
        self._router = welcome.roles
        return super().onWelcome(welcome)

    def onJoin(self, details: SessionDetails) -> Any:
        """Call `joined` with the session."""
        return Deferred.fromCoroutine(self._joined(self, details))  # type: ignore[arg-type]

    def onMessage(self, msg: Any) -> None:
        """Handle a message, or answer it in autobahn's place."""
        if isinstance(msg, Invocation):
            self._invoke(msg)
            return
        if isinstance(msg, Undecodable):
            self._refuse(msg.request, InvalidArgument(f"undecodable arguments: {msg.reason}"))
            return
        if isinstance(msg, (message.Invocation, message.Event)):
            problem = self._problem(msg) if msg.forward_for or msg.payload is not None else None
            if problem is None and isinstance(msg, message.Invocation):
                problem = self.full(msg.caller, self.sizes.received)
                if problem is not None:
                    self.refused(msg.caller)
            if problem is not None:
                if isinstance(msg, message.Invocation):
                    self._refuse(msg.request, problem)
                return
            msg.args = [msg.args or [], msg.kwargs or {}]
            msg.kwargs = None
        elif isinstance(msg, message.Unregistered) and not msg.request:
            self._displaced(msg.registration)
        super().onMessage(msg)
        if isinstance(msg, message.Invocation):
            msg.args = None  # autobahn keeps the message until the call has ended

    def _invoke(self, msg: Invocation) -> None:
        """Call an endpoint in autobahn's place, where there is room."""
        problem = self.full(msg.caller, self.sizes.received)
        if problem is not None:
            self.refused(msg.caller)
            self._refuse(msg.request, problem)
            return
        registration = self._registrations.get(msg.registration)
        if registration is None or msg.request in self._invocations:
            raise ProtocolError(f"INVOCATION {msg.request} of {msg.registration} is not ours")
        running = maybeDeferred(registration.endpoint.fn, msg.args, msg.kwargs, msg)
        # An INTERRUPT finds it there, and cancels it.
        self._invocations[msg.request] = InvocationRequest(msg.request, running)
        running.addBoth(self._reply, msg.request)

    def _reply(self, result: Any, request: int) -> None:
        """Answer an invocation with what its endpoint has returned or raised."""
        del self._invocations[request]
        if self._open is None or self.closing is not None:
            return
        msg: Any = None
        if isinstance(result, Failure):
            self.onUserError(result, result.getErrorMessage())
            kind = message.Invocation.MESSAGE_TYPE
            msg = self._message_from_exception(kind, request, result.value)
        elif isinstance(result, CallResult):
            parts = [result.results, result.kwresults]
            msg = Answer(request, [message.Yield.MESSAGE_TYPE, request, {}, *parts])
        else:
            msg = Answer(request, [message.Yield.MESSAGE_TYPE, request, {}, [result]])
        try:
            self._open.send(msg)
        except PayloadExceededError as error:  # more than the router takes
            excess = ApplicationError(ApplicationError.PAYLOAD_SIZE_EXCEEDED, str(error))
            self._open.send(error_of(request, excess))
        except TransportLost:
            pass

    def onLeave(self, details: CloseDetails) -> Any:
        """Keep the reason; pending requests fail and the transport closes."""
        self.closing = details
        return super().onLeave(details)

    def onClose(self, wasClean: bool) -> None:
        """Forget the transport first, so that nothing answers by it any more."""
        self._open = None
        super().onClose(wasClean)

    def onUserError(self, fail: Any, msg: str) -> None:
        """Log what is not a refusal; those are logged, or need no log, where they are made."""
        if not isinstance(fail.value, ApplicationError):
            log.failure("in a session: {text}", fail, text=msg)

    def _problem(self, msg: Any) -> ServiceError | None:
        # A CALL's `forward_for` is its sender's own word; the router takes the first entry for the
        # caller, and adds the true session at the end. So all that follow the first must be links.
        hops = msg.forward_for
        if hops and any(hop.get("authrole") not in self._links for hop in hops[1:] or [{}]):
            return NotAuthorized(
                "this session may not call for others",
                hint="leave forward_for out; ROWCAST_ROUTER_LINKS names the roles that may",
            )
        return None if msg.payload is None else InvalidArgument("opaque arguments are not served")

    def _refuse(self, request: int, problem: ServiceError) -> None:
        self._open.send(error_of(request, application_error(problem, "decoding")))
