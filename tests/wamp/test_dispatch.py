"""
Calls reach the dispatcher unchanged, can be cancelled, and are answered when the service stops.
"""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from service.errors import Conflict, InternalError, OutcomeUnknown, Unavailable
from service.wamp import callee as dispatch
from tests.conftest import Router
from tests.deferreds import until
from tests.fakes import FakeDispatcher
from tests.wamp.callers import KINDS
from tests.wamp.conftest import Join, StartEdge
from tests.wamp.replica import Child


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_arguments_over_any_transport_arrive_as_sent(
    how: str, start_edge: StartEdge, call_from: Join
) -> None:
    """Positional and keyword arguments arrive over every transport and serializer."""
    await start_edge()
    caller = await call_from(how)
    got = await caller.call("rowcast.arguments", 1, [None, True], key={"a": b"\0\1", "é": 2.5})
    assert got == {"args": [1, [None, True]], "kwargs": {"key": {"a": b"\0\1", "é": 2.5}}}


@pytest_twisted.ensureDeferred
async def test_dispatcher_of_a_call_receives_its_caller(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The dispatcher receives the caller's session, role and realm."""
    await start_edge()
    caller = await call_from()
    got = await caller.call("rowcast.caller")
    assert got["session"] == caller._session_id
    assert got["authrole"] == "anonymous"
    assert got["realm"] == "realm1"
    assert got["authid"]


@pytest_twisted.ensureDeferred
async def test_refusal_of_a_call_has_uri_message_and_details(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A refusal arrives under its URI, with its message and details."""
    edge = await start_edge()
    caller = await call_from("websocket json")

    def give() -> Any:
        raise Conflict("it has changed", row={"id": 1, "name": "\0x"}, retry=True)

    edge.dispatcher.on("give", give)
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.give")
    assert caught.value.error == "rowcast.error.conflict"
    assert caught.value.args == ("it has changed",)
    assert caught.value.kwargs == {"row": {"id": 1, "name": "\\0x"}, "retry": True}


@pytest_twisted.ensureDeferred
async def test_exception_in_a_call_is_returned_as_an_id_only(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The caller sees nothing of the exception."""
    edge = await start_edge()
    caller = await call_from()
    edge.dispatcher.on("give", lambda: {}["secret"])
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.give")
    assert caught.value.error == InternalError.uri
    assert "secret" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_call_that_is_cancelled_is_stopped_in_the_dispatcher(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Cancelling a call cancels the dispatcher's work for it."""
    edge = await start_edge()
    caller = await call_from()
    begun, stopped = edge.dispatcher.begun(), edge.dispatcher.stopped()
    call = caller.call("rowcast.wait")
    await begun
    call.cancel()
    await stopped
    with pytest.raises(CancelledError):
        await call
    assert await caller.call("rowcast.echo", 1) == 1
    assert edge.dispatch.meter.outcomes == {"canceled": 1, "answered": 1}


@pytest_twisted.ensureDeferred
async def test_call_of_a_caller_that_left_is_stopped(
    start_edge: StartEdge, call_from: Join
) -> None:
    """When a caller leaves, its running calls are cancelled."""
    edge = await start_edge()
    caller = await call_from()
    begun, stopped = edge.dispatcher.begun(), edge.dispatcher.stopped()
    call = caller.call("rowcast.wait").addErrback(lambda failure: None)
    await begun
    caller._transport.abort()
    await stopped
    await call
    assert edge.dispatcher.cancelled == 1


@pytest_twisted.ensureDeferred
async def test_stop_during_calls_answers_them_first(start_edge: StartEdge, call_from: Join) -> None:
    """A stopping service answers running calls, and refuses new ones with a retryable error."""
    edge = await start_edge()
    caller = await call_from()
    begun = edge.dispatcher.begun()
    call = caller.call("rowcast.wait")
    await begun
    stopping = edge.client.stopService()
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.echo", 1)
    assert caught.value.error == Unavailable.uri
    assert caught.value.kwargs["retry"] is True
    assert not edge.dispatch.serving
    edge.dispatcher.release()
    assert await call == "released"
    await stopping


@pytest_twisted.ensureDeferred
async def test_stop_during_a_long_call_cancels_it(start_edge: StartEdge, call_from: Join) -> None:
    """It outlasts the drain, the log names it, and its caller receives an error."""
    edge = await start_edge(drain=0.05)
    caller = await call_from()
    begun = edge.dispatcher.begun()
    call = caller.call("rowcast.wait")
    await begun
    with capturedLogs() as events:
        await edge.client.stopService()
    said = "cancelling calls that outlast the drain: rowcast.wait"
    assert said in map(formatEvent, events)
    with pytest.raises(ApplicationError) as caught:
        await call
    assert caught.value.error == Unavailable.uri
    assert edge.dispatch.in_progress == 0


@pytest_twisted.ensureDeferred
async def test_stop_does_not_wait_for_a_call_that_ignores_its_cancellation(
    start_edge: StartEdge, call_from: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "CANCEL_TIMEOUT", 0.05)
    edge = await start_edge(drain=0.05)
    caller = await call_from()
    stubborn: Deferred[None] = Deferred()
    cancelled: Deferred[None] = Deferred(lambda _: stubborn.callback(None))
    ends: Deferred[str] = Deferred()

    async def go_on() -> str:
        with suppress(CancelledError):
            await cancelled
        return await ends

    edge.dispatcher.when("stubborn", go_on)
    call = caller.call("rowcast.stubborn").addErrback(lambda failure: failure.value.error)
    await until(lambda: edge.dispatch.in_progress == 1)
    await edge.client.stopService()
    assert stubborn.called
    assert await call == OutcomeUnknown.uri
    ends.callback("late")
    assert edge.dispatch.in_progress == 0


@pytest_twisted.ensureDeferred
async def test_stop_ends_when_the_last_call_ends_another_one(
    start_edge: StartEdge, call_from: Join, logged: list[dict[str, Any]]
) -> None:
    """Both end in the same reactor iteration, as calls of a transaction may."""
    edge = await start_edge(drain=2.0)
    caller = await call_from()
    begun = edge.dispatcher.begun()
    call = caller.call("rowcast.wait")
    await begun
    stopping = edge.client.stopService()
    edge.dispatcher.on("tx.end", edge.dispatcher.release)
    assert await caller.call("rowcast.tx.end") is None
    assert await call == "released"
    await stopping
    assert [formatEvent(each) for each in logged] == []


def test_service_without_confirmation_of_the_router_leaves_after_a_time_limit() -> None:
    """Leaving waits for the router's confirmation for a limited time."""
    clock = Clock()
    leaver = dispatch.Callee(clock, FakeDispatcher().answer, "rowcast", shared=True)
    leaver._registration = SimpleNamespace(id=1, unregister=Deferred)
    left = Deferred.fromCoroutine(leaver.leaving())
    clock.advance(dispatch.UNREGISTER_TIMEOUT)
    assert left.called
    left.addErrback(lambda failure: pytest.fail(str(failure)))


@pytest_twisted.ensureDeferred
async def test_calls_of_a_lost_connection_are_cancelled(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Without a router no result can be delivered, so the queries are cancelled."""
    edge = await start_edge()
    caller = await call_from()
    begun, stopped = edge.dispatcher.begun(), edge.dispatcher.stopped()
    call = caller.call("rowcast.wait")
    await begun
    edge.client._abort("the test")
    await stopped
    with pytest.raises(ApplicationError) as caught:
        await call
    assert caught.value.error == ApplicationError.CANCELED
    await edge.client.when_joined()
    assert await caller.call("rowcast.echo", 1) == 1


@pytest_twisted.ensureDeferred
async def test_service_restarted_beside_its_predecessor_takes_over(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A restarted service takes over its prefix although its predecessor is still registered."""
    old = await start_edge()
    caller = await call_from()
    begun = old.dispatcher.begun()
    call = caller.call("rowcast.wait")
    await begun
    new = await start_edge()
    new.dispatcher.on("who", lambda: "new")
    assert await caller.call("rowcast.who") == "new"
    assert new.dispatch.serving
    assert not old.dispatch.serving
    old.dispatcher.release("from the old")
    assert await call == "from the old"
    await old.client.stopService()
    assert await caller.call("rowcast.who") == "new"


@pytest_twisted.ensureDeferred
async def test_services_that_share_are_called_in_turn(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Two services with shared registrations are called alternately; when one stops, the other gets all calls."""
    one, two = await start_edge(shared=True), await start_edge(shared=True)
    caller = await call_from()
    for n in range(10):
        await caller.call("rowcast.echo", n)
    assert (one.dispatcher.calls, two.dispatcher.calls) == (5, 5)
    calls = [caller.call("rowcast.echo", n) for n in range(100)]
    stopping = one.client.stopService()
    calls += [caller.call("rowcast.echo", n) for n in range(100)]
    ends = [await call.addErrback(lambda failure: failure.value.error) for call in calls]
    await stopping
    assert ends == [*range(100), *range(100)]
    assert await caller.call("rowcast.echo", "alone") == "alone"


@pytest_twisted.ensureDeferred
async def test_service_registered_alone_beside_a_shared_one_receives_its_calls(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A changed setting does not prevent a new service from registering."""
    shared = await start_edge(shared=True)
    single = await start_edge(shared=False)
    caller = await call_from()
    await caller.call("rowcast.echo", 1)
    assert (shared.dispatcher.calls, single.dispatcher.calls) == (0, 1)


@pytest_twisted.ensureDeferred
async def test_service_killed_beside_another_fails_only_its_running_calls(
    router: Router, start_edge: StartEdge, call_from: Join
) -> None:
    """SIGKILL of one of two services fails its running calls at once, and no later call."""
    edge = await start_edge(shared=True)
    caller = await call_from()
    child = Child("tests.wamp.edge", f"unix:{router.socket}", router.realm, router.prefix)
    await child.ready
    waiting = [caller.call("rowcast.wait") for _ in range(8)]
    while edge.dispatcher.calls < 4:
        await edge.dispatcher.begun()
    await child.kill()
    outcomes = []
    for call in waiting:
        edge.dispatcher.release()
        outcomes.append(await call.addErrback(lambda failure: failure.value.error))
    assert sorted(outcomes) == ["released"] * 4 + ["wamp.error.canceled"] * 4
    for n in range(20):
        assert await caller.call("rowcast.echo", n) == n
