"""
No single call, result, event or login may take the service down or leave a call unanswered.

Each test sends a message that would do so with unmodified autobahn.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
import pytest_twisted
from autobahn.wamp import message
from autobahn.wamp.exception import ApplicationError, SerializationError
from autobahn.wamp.request import CallRequest
from autobahn.wamp.types import CallOptions, EncodedPayload, PublishOptions, SubscribeOptions
from twisted.internet.defer import Deferred

from service.errors import InternalError, TooLarge
from service.wamp.session import DETAILS, SafeSession
from tests.fakes import fire
from tests.wamp.callers import KINDS, Caller, refusal_of
from tests.wamp.conftest import Edge, Join, StartEdge

MEBIBYTE = 2**20


def nested(levels: int) -> Any:
    """Return a list nested to a depth."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def refused(caller: Caller, name: str, *args: Any, **kwargs: Any) -> ApplicationError:
    """Make a call that must fail; return its error."""
    return await refusal_of(caller.call(f"rowcast.{name}", *args, **kwargs))


async def unharmed(edge: Edge, caller: Caller, session: object) -> None:
    """Check that the service still has the same session, and answers."""
    assert await caller.call("rowcast.echo", "still here") == "still here"
    assert session_of(edge) is session


def session_of(edge: Edge) -> object:
    """Return an object that changes when the service joins again."""
    return edge.dispatch._registration


UNSAFE: dict[str, Callable[[], Any]] = {
    "datetime": lambda: datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC),
    "naive": lambda: datetime.datetime(2026, 11, 21),
    "date": lambda: datetime.date(2026, 11, 21),
    "interval": lambda: datetime.timedelta(1),
    "uuid": uuid.uuid4,
    "decimal": lambda: decimal.Decimal("1.50"),
    "set": lambda: {1},
    "memoryview": lambda: memoryview(b"x"),
    "object": object,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("-inf"),
    "long": lambda: 2**64,
    "int keys": lambda: {1: "a"},
    "in a row": lambda: {"rows": [{"at": datetime.date(2026, 11, 21)}]},
    "half a surrogate": lambda: "\ud800",
}


@pytest.mark.parametrize("how", ["rawsocket cbor", "rawsocket json", "websocket msgpack"])
@pytest_twisted.ensureDeferred
async def test_result_of_a_wrong_type_is_internal_with_an_id(
    how: str, start_edge: StartEdge, call_from: Join
) -> None:
    """A result of a wrong type is an internal error with an id, not silence."""
    edge = await start_edge()
    caller = await call_from(how)
    session = session_of(edge)
    for name, give in UNSAFE.items():
        edge.dispatcher.on("give", give)
        error = await refused(caller, "give")
        assert error.error == InternalError.uri, name
        assert set(error.kwargs) == {"id"}, name
    await unharmed(edge, caller, session)


@pytest.mark.parametrize("size", [9 * MEBIBYTE, 17 * MEBIBYTE])
@pytest_twisted.ensureDeferred
async def test_result_over_the_limit_is_refused_with_a_hint(
    size: int, start_edge: StartEdge, call_from: Join
) -> None:
    """A result over the limit is refused with a short error that says what to do."""
    edge = await start_edge()
    caller = await call_from()
    session = session_of(edge)
    edge.dispatcher.on("give", lambda: "x" * size)
    error = await refused(caller, "give")
    assert error.error == TooLarge.uri
    assert "limit" in error.kwargs["hint"]
    assert len(str(error)) < 1000
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_result_nested_too_deep_is_refused(start_edge: StartEdge, call_from: Join) -> None:
    """A result too deep for the router's decoder is refused; one at the limit passes."""
    edge = await start_edge()
    caller = await call_from("rawsocket json")
    session = session_of(edge)
    edge.dispatcher.on("give", lambda: nested(100))
    assert await caller.call("rowcast.give") == nested(100)
    for levels in (121, 500, 5000):
        edge.dispatcher.on("give", lambda levels=levels: nested(levels))
        error = await refused(caller, "give")
        assert error.error == TooLarge.uri
    await unharmed(edge, caller, session)


@pytest.mark.parametrize("how", ["rawsocket json", "websocket json", "rawsocket msgpack"])
@pytest_twisted.ensureDeferred
async def test_argument_nested_too_deep_is_refused_to_its_sender(
    how: str, start_edge: StartEdge, call_from: Join
) -> None:
    """The caller that sent a deep argument receives an error."""
    edge = await start_edge()
    caller = await call_from(how)
    session = session_of(edge)
    for levels in (130, 450):
        error = await refused(caller, "echo", nested(levels))
        assert error.error == ApplicationError.INVALID_ARGUMENT
        error = await refused(caller, "echo", where=nested(levels))
        assert error.error == ApplicationError.INVALID_ARGUMENT
        assert error.args == ("undecodable arguments: nested deeper than 128 levels",)
    assert await caller.call("rowcast.echo", nested(100)) == nested(100)
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_keyword_named_as_one_of_autobahns_arrives(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A keyword may have any name, including names of autobahn's own parameters."""
    edge = await start_edge()
    caller = await call_from()
    session = session_of(edge)
    kwargs = dict.fromkeys(["self", "fun", "f", "args", "kwargs", "details", "session", ""], 1)
    request = raw_call(caller, "rowcast.arguments", [1], kwargs)
    assert await request == {"args": [1], "kwargs": kwargs}
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_maps_with_integer_keys_are_refused(start_edge: StartEdge, call_from: Join) -> None:
    """Map keys other than strings, at any depth, end in an error for the caller."""
    edge = await start_edge()
    caller = await call_from()
    session = session_of(edge)
    with pytest.raises(ApplicationError):
        await caller.call("rowcast.echo", {1: {2: 3}})
    rude = await call_from()
    rude._transport.sendString(cbor2.dumps([48, 1, {}, "rowcast.arguments", [], {1: 2}]))
    await rude.gone  # the router closes this connection
    await unharmed(edge, caller, session)


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_arguments_of_odd_values_leave_the_session_joined(
    how: str, start_edge: StartEdge, call_from: Join
) -> None:
    """Strings with NUL, NaN and long integers do not end the session."""
    edge = await start_edge()
    caller = await call_from(how)
    session = session_of(edge)
    odd: list[Any] = ["a\0bc", float("nan"), float("inf"), 2**63, -(2**63), b"\0\1", "\u2028"]
    if "json" not in how:
        odd.append("\0abc")  # WAMP's JSON would decode it as binary
    for value in odd:
        edge.dispatcher.calls = 0
        await raw_call(caller, "rowcast.caller", [value], {"key": value})
        assert edge.dispatcher.calls == 1, value
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_uri_at_the_edge_of_the_grammar_is_refused_with_a_hint(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Names of any script and length reach the dispatcher, which refuses them with a hint."""
    edge = await start_edge()
    caller = await call_from()
    session = session_of(edge)
    for name in ["ehco", "日本.get", "a%2Eb.get", "'; drop", "\0", "\x7f", "%", "x" * 70_000, "é"]:
        if " " in name:
            continue  # the router closes the connection of a caller that sends whitespace in a URI
        error = await refused(caller, name)
        assert error.error == ApplicationError.NO_SUCH_PROCEDURE, name
    assert (await refused(caller, "ehco")).kwargs == {"hint": 'did you mean "echo"?'}
    await unharmed(edge, caller, session)


class Cipher:
    """A payload codec, so that autobahn sends opaque arguments."""

    def encode(self, is_originating: bool, uri: str, args: Any = None, kwargs: Any = None) -> Any:
        """Return opaque bytes."""
        return EncodedPayload(b"opaque", "cryptobox", "json", None)

    def decode(self, is_originating: bool, uri: str, encoded_payload: Any) -> Any:
        """Return nothing."""
        return uri, [], {}


@pytest_twisted.ensureDeferred
async def test_arguments_that_are_encrypted_are_refused(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Encrypted payloads are refused by the service, not by autobahn."""
    edge = await start_edge()
    caller = await call_from()
    session = session_of(edge)
    caller.set_payload_codec(Cipher())
    error = await refused(caller, "echo", 1)
    assert error.error == ApplicationError.INVALID_ARGUMENT
    caller.set_payload_codec(None)
    await unharmed(edge, caller, session)


class RecordingSubscriber:
    """An observer that subscribes, as the publisher does."""

    def __init__(self, *topics: str) -> None:
        self.topics = topics
        self.events: list[tuple[Any, Any]] = []
        self.waiting: list[Deferred[None]] = []
        self.session: SafeSession | None = None
        self.displacements: list[int] = []

    async def joined(self, session: SafeSession, details: Any) -> None:
        """Subscribe."""
        self.session = session
        for topic in self.topics:
            await session.subscribe(self.hear, topic, SubscribeOptions(details_arg=DETAILS))

    def hear(self, args: Any, kwargs: Any, details: Any) -> None:
        """Record an event."""
        self.events.append((args, kwargs))
        fire(self.waiting)

    def next(self) -> Deferred[None]:
        """Return a Deferred that fires at the next event."""
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def displaced(self, registration: int) -> None:
        """Record the registration."""
        self.displacements.append(registration)

    async def leaving(self) -> None:
        """Do nothing."""

    def left(self) -> None:
        """Do nothing."""


@pytest_twisted.ensureDeferred
async def test_event_nested_too_deep_is_dropped_and_the_session_stays(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A too deep event is dropped, one with odd keywords is received, and the session continues."""
    observer = RecordingSubscriber("rowcast.test.topic")
    edge = await start_edge(observers=[observer])
    publisher = await call_from("service cbor")
    caller = await call_from()
    session = session_of(edge)
    options = PublishOptions(acknowledge=True)
    await publisher.publish("rowcast.test.topic", nested(200), options=options)
    waiting = observer.next()
    odd = {"self": 1, "fun": 2}
    request = publisher._request_id_gen.next()
    publisher._transport.send(message.Publish(request, "rowcast.test.topic", args=[], kwargs=odd))
    await waiting
    assert observer.events == [([], {"self": 1, "fun": 2})]
    publisher.set_payload_codec(Cipher())
    await publisher.publish("rowcast.test.topic", 1, options=options)
    publisher.set_payload_codec(None)
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_login_with_deep_details_leaves_the_session_joined(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A HELLO with a deep `authextra` reaches all subscribers of logins; the service stays joined."""
    observer = RecordingSubscriber("wamp.session.on_join")
    edge = await start_edge(observers=[observer])
    session = session_of(edge)
    await call_from("rawsocket json", authextra={"deep": nested(450)})
    waiting = observer.next()
    caller = await call_from()
    await waiting
    assert len(observer.events) == 1
    await unharmed(edge, caller, session)


@pytest_twisted.ensureDeferred
async def test_own_calls_end_with_the_connection(start_edge: StartEdge) -> None:
    """Pending calls of the service itself fail when the connection is lost."""
    observer = RecordingSubscriber()
    edge = await start_edge(observers=[observer])
    session = observer.session
    assert session is not None
    pending = session.call("rowcast.wait")
    await edge.dispatcher.begun()
    edge.client._abort("the test")
    with pytest.raises(ApplicationError) as caught:
        await pending
    assert caught.value.error == "wamp.close.transport_lost"
    assert session.lost


@pytest_twisted.ensureDeferred
async def test_own_call_with_a_result_too_deep_fails(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A too deep result or error fails its call."""
    observer = RecordingSubscriber()
    edge = await start_edge(observers=[observer])
    session = observer.session
    assert session is not None
    callee = await call_from("service cbor")

    def fail() -> None:
        raise ApplicationError("test.error", nested(200))

    await callee.register(lambda: nested(200), "test.deep")
    await callee.register(fail, "test.fail")
    for name in ("test.deep", "test.fail"):
        with pytest.raises(SerializationError):
            await session.call(name)
    await unharmed(edge, callee, session_of(edge))


def raw_call(caller: Caller, uri: str, args: list[Any], kwargs: dict[Any, Any]) -> Any:
    """Call with keyword arguments that Python's call syntax does not allow."""
    request = caller._request_id_gen.next()
    reply: Deferred[Any] = Deferred()
    caller._call_reqs[request] = CallRequest(request, uri, reply, CallOptions())
    caller._transport.send(message.Call(request, uri, args=args, kwargs=kwargs))
    return reply
