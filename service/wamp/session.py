"""
A WAMP session, with its CBOR serializer, that no single message can end or hang.

Stock autobahn closes the connection when it cannot decode a message, and never answers a call when it cannot
encode the result: one anonymous client could take the service down. This session answers the one call with an
error in both cases. `tests/wamp/test_session.py` shows for each kind of message what stock autobahn does, and
what this session does.
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

from service.errors import (
    InvalidArgument,
    NotAuthorized,
    ServiceError,
    TooLarge,
    TooLargePart,
    in_line,
)
from service.payload import MAX_DEPTH, write_encoded
from service.waiting import CooperativeDeferred
from service.wamp.application_errors import CANNOT_AUTHENTICATE, INVALID_PAYLOAD, application_error
from service.wamp.auth import Login
from service.wamp.backpressure import Outflow

log = Logger()

Full = Callable[[int | None, int], ServiceError | None]
"""Called with the caller's session id and the size of the call in bytes; returns a refusal, or None."""

DETAILS = "details"
"""Keyword under which an endpoint gets the details of a call, after `args` and `kwargs`."""

RAWSOCKET_MAX = 2**24
"""Maximum size of a RawSocket message in bytes."""

_UNTYPED_BINARY = 64
"""CBOR tag of a JavaScript Uint8Array (RFC 8746)."""

Refuse = Callable[[Exception, str], Exception]
"""Converts an exception to a WAMP error; the string says, for the log, during what it happened."""


class Undecodable:
    """
    An INVOCATION whose arguments cannot be decoded.

    Args:
        request: Request id of the invocation.
        reason: What is wrong with the arguments.
    """

    def __init__(self, request: int, reason: str) -> None:
        self.request = request
        self.reason = reason


@dataclass(slots=True)
class Invocation:
    """
    A plain INVOCATION: without progressive results, a timeout, or forwarding by another router.

    It replaces both autobahn's message and its CallDetails. Together with `Answer` in place of autobahn's
    Yield it saves 10 µs per call (`bench/walk.py`).

    Args:
        request: Request id.
        registration: Id of the registration that is called.
        procedure: Full URI of the procedure.
        args: Positional arguments.
        kwargs: Keyword arguments.
        caller, caller_authid, caller_authrole: The caller, as disclosed by the router.
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
"""The keys of the details of a plain INVOCATION, no more and no less."""

Details = CallDetails | Invocation
"""What an endpoint gets as the details of a call."""


@dataclass(slots=True)
class Answer:
    """
    A YIELD with the complete answer to an `Invocation`.

    Args:
        request: Request id of the invocation.
        parts: The WAMP message as a list.
    """

    request: int
    parts: list[Any]


class MessageSizes:
    """
    Sizes of the messages of one connection, in bytes.

    autobahn copies the serializer for each connection; the copies share this object.

    Attributes:
        received: Size of the last message received.
        weigh: Called with the size of each answer, and of each part of an answer, when it is sent.
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
    """Decode a message if it is a plain INVOCATION; return None if not."""
    if payload[1:3] != b"\x18\x44":  # the message type 68 in CBOR, after the head of the list
        return None
    _, request, registration, details, *given = _decoded(payload)
    if type(details) is not dict or details.keys() != PLAIN:
        return None
    args: list[Any] = given[0] if given else []
    kwargs: dict[str, Any] = given[1] if len(given) > 1 else {}
    if type(args) is not list or type(kwargs) is not dict:
        return None
    return Invocation(request, registration, args=args, kwargs=kwargs, **details)


class SafeSerializer(CBORSerializer):
    """
    The serializer of one connection.

    Args:
        refuse: Makes a WAMP error of the exception why an answer could not be sent.
        max_bytes: Maximum size of an answer in bytes.
    """

    def __init__(self, refuse: Refuse, max_bytes: int) -> None:
        # Skips CBORSerializer.__init__, whose object serializer has no limit on nesting.
        Serializer.__init__(self, _Objects())
        self._refuse = refuse
        # A message above autobahn's own limit is never sent over RawSocket, and over WebSocket it closes the
        # connection, with all calls in flight.
        self._max_bytes = min(max_bytes, RAWSOCKET_MAX)
        self.sizes = MessageSizes()

    def serialize(self, msg: Any) -> tuple[bytes, bool]:
        """
        Encode a message; replace a final answer that cannot be sent by an error.

        Raises:
            TooLarge: A progressive result is too large; the procedure should stop.
            Exception: A progressive result, or a message that is not an answer, cannot be encoded.
        """
        try:
            if isinstance(msg, Answer):
                payload, binary = _Objects.serialize(msg.parts), True
            else:
                payload, binary = super().serialize(msg)
            if len(payload) > self._max_bytes and isinstance(msg, ANSWERS):
                raise (TooLarge if _is_last_answer(msg) else TooLargePart)(self._max_bytes)
        except Exception as error:
            if not _is_last_answer(msg):
                raise
            # autobahn's own error message would quote the entire result, be too large itself, and never
            # be sent: the call would hang.
            refusal = self._refuse(error, "encoding an answer")
            payload, binary = super().serialize(error_of(msg.request, refusal))
        if isinstance(msg, ANSWERS):
            self.sizes.weigh(len(payload))
        return payload, binary

    def unserialize(self, payload: bytes, isBinary: bool | None = None) -> list[Any]:
        """
        Decode a message.

        Raises:
            Exception: A message cannot be decoded that the session cannot do without.
        """
        self.sizes.received = len(payload)
        try:
            plain = _plain(payload)
            return super().unserialize(payload, isBinary) if plain is None else [plain]
        except Exception as error:
            return _substitute(payload, error)


ANSWERS = (Answer, message.Yield, message.Error)


def error_of(request: int, refusal: Any) -> Any:
    """Return the ERROR message that answers an invocation."""
    return message.Error(
        message.Invocation.MESSAGE_TYPE,
        request,
        refusal.error,
        args=list(refusal.args),
        kwargs=refusal.kwargs,
    )


def _is_last_answer(msg: Any) -> bool:
    return isinstance(msg, ANSWERS) and not getattr(msg, "progress", False)


def _substitute(payload: bytes, error: Exception) -> list[Any]:
    """Return a substitute for a message with undecodable arguments; re-raise for other messages."""
    decoder = cbor2.CBORDecoder(io.BytesIO(payload[1:]))  # the head of the list is one byte
    # In WAMP messages ids come before arguments, so the ids can be read.
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
    """Return what is wrong with a message, in plain words if its sender can mend it."""
    text = str(error)
    if "nesting depth" in text:
        return f"nested deeper than {MAX_DEPTH} levels"
    return text.rpartition("invalid serialization of WAMP message: ")[2][:300]


class SafeSession(ApplicationSession):
    """
    The service's side of one session.

    Endpoints and event handlers are called as `f(args, kwargs, details)`. If they were called with a
    caller's keyword arguments, `{"self": 1}`, `{"fun": 1}` or `{1: 2}` would break autobahn's calls, and with
    them the connection.

    Args:
        realm: Realm to join.
        login: Authentication method and credentials.
        joined: Called when the session has joined; its result is not awaited.
        displaced: Called with the id of a registration that another session has taken over.
        links: Authroles of sessions that may call on behalf of others.
        sizes: Sizes of the connection's messages.

    Attributes:
        full: Called for each call before it begins; may return a refusal.
        refused: Called with the session id of each caller that was refused by `full`.
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
        self.log.set_log_level("error")  # WampClient logs the life of a session
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
        """Return whether the connection is closed, or will be after a GOODBYE: no answer will arrive."""
        return self._open is None or self.closing is not None

    @property
    def can_restrict(self) -> bool:
        """Return whether the router can restrict an event to some of its subscribers."""
        broker = self._router.get("broker")
        return bool(getattr(broker, "subscriber_blackwhite_listing", False))

    def outflow(self) -> Outflow:
        """Return the connection's producer, for back-pressure on large answers."""
        if self._outflow is None:
            self._outflow = Outflow(self._open.transport)
        return self._outflow

    def call_through(self, uri: str, *args: Any) -> Deferred[Any]:
        """
        Call a procedure, and wait for its answer even if the call is cancelled: CANCEL with mode "kill".

        autobahn sends CANCEL without a mode, and its Deferred fails at once.
        """
        self.sizes.weigh = lambda size: None  # a call is not an answer, and counts for no caller
        asked = self.call(uri, *args)
        # autobahn does not return the id of the request; it is the last one in its table.
        requests = [next(reversed(self._call_reqs))]

        def cancel() -> None:
            if requests and self._open is not None:  # once, however often it is asked for
                self._open.send(message.Cancel(requests.pop(), message.Cancel.KILL))

        answer = CooperativeDeferred()
        answer.request = cancel
        asked.addCallbacks(answer.callback, answer.errback)
        return answer

    def onOpen(self, transport: Any) -> None:
        """Keep the transport, to send messages without autobahn."""
        self._open = transport
        super().onOpen(transport)

    def onConnect(self) -> None:
        """Send HELLO; disconnect if the credentials cannot be used."""
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
        """Keep the features that the router announces."""
        self._router = welcome.roles
        return super().onWelcome(welcome)

    def onJoin(self, details: SessionDetails) -> Any:
        """Call `joined` with the session."""
        return Deferred.fromCoroutine(self._joined(self, details))  # type: ignore[arg-type]

    def onMessage(self, msg: Any) -> None:
        """Handle a message; invocations that are plain or refused do not reach autobahn."""
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
        """Call an endpoint in place of autobahn, unless `full` refuses the call."""
        problem = self.full(msg.caller, self.sizes.received)
        if problem is not None:
            self.refused(msg.caller)
            self._refuse(msg.request, problem)
            return
        registration = self._registrations.get(msg.registration)
        if registration is None or msg.request in self._invocations:
            raise ProtocolError(f"INVOCATION {msg.request} of {msg.registration} is not ours")
        running = maybeDeferred(registration.endpoint.fn, msg.args, msg.kwargs, msg)
        # autobahn handles INTERRUPT by cancelling the Deferred that it finds in this table.
        self._invocations[msg.request] = InvocationRequest(msg.request, running)
        running.addBoth(self._reply, msg.request)

    def _reply(self, result: Any, request: int) -> None:
        """Send the result of an endpoint, or its exception, as the answer to an invocation."""
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
        except PayloadExceededError as error:  # larger than the router accepts
            excess = ApplicationError(ApplicationError.PAYLOAD_SIZE_EXCEEDED, str(error))
            self._open.send(error_of(request, excess))
        except TransportLost:
            pass

    def onLeave(self, details: CloseDetails) -> Any:
        """Keep the reason of the GOODBYE or ABORT; autobahn fails pending requests, and disconnects."""
        self.closing = details
        return super().onLeave(details)

    def onClose(self, wasClean: bool) -> None:
        """Forget the transport first, so that nothing is sent by it any more."""
        self._open = None
        super().onClose(wasClean)

    def onUserError(self, fail: Any, msg: str) -> None:
        """Log exceptions that are not WAMP errors; those were logged, if need be, where they were made."""
        if not isinstance(fail.value, ApplicationError):
            log.failure("in a session: {text}", fail, text=msg)

    def _problem(self, msg: Any) -> ServiceError | None:
        # Any client can send a CALL with `forward_for`. The router takes its first entry as the caller,
        # and appends the real session. So all entries after the first have to be router links.
        hops = msg.forward_for
        if hops and any(hop.get("authrole") not in self._links for hop in hops[1:] or [{}]):
            return NotAuthorized(
                "this session may not call for others",
                hint="leave forward_for out; ROWCAST_ROUTER_LINKS names the roles that may",
            )
        return None if msg.payload is None else InvalidArgument("opaque arguments are not served")

    def _refuse(self, request: int, problem: ServiceError) -> None:
        self._open.send(error_of(request, application_error(problem, "decoding")))
