"""Errors of calls while no service is connected: to be retried, instead of "no such procedure"."""

from __future__ import annotations

import sys

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions

from tests.conftest import ROOT, Router
from tests.wamp.callers import KINDS, Caller, refusal_of
from tests.wamp.conftest import Join, StartEdge
from tests.wamp.programs import program


async def unavailable(caller: Caller, uri: str = "rowcast.echo") -> bool:
    """Return whether a call is refused as unavailable."""
    error = await refusal_of(caller.call(uri, 1, fun=1, details=2))
    assert error.error == "rowcast.error.unavailable"
    return error.kwargs == {"retry": True, "retry_after": 1.0}


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_call_without_a_service_is_unavailable(how: str, call_from: Join) -> None:
    """Any URI below the prefix may exist once a service has joined."""
    caller = await call_from(how)
    for uri in (
        "rowcast.actions.find",
        "rowcast.fn.x",
        "rowcast.router.nothing",
        "rowcast.a.b.c.d",
    ):
        assert await unavailable(caller, uri)
    options = CallOptions(on_progress=lambda _: None, timeout=5)
    assert (await refusal_of(caller.call("rowcast.a.stream", options=options))).kwargs["retry"]


@pytest.mark.parametrize("uri", ["rowcast", "rowcasts.find", "rowcast_2", "rowcas", "other.find"])
@pytest_twisted.ensureDeferred
async def test_call_outside_the_prefix_of_the_service_is_no_such_procedure(
    uri: str, call_from: Join
) -> None:
    """URIs outside of the prefix are not registered."""
    caller = await call_from("service cbor")
    error = await refusal_of(caller.call(uri))
    assert error.error == "wamp.error.no_such_procedure"
    assert error.args == (f"no callee registered for procedure <{uri}>",)


@pytest.mark.parametrize("shared", [False, True])
@pytest_twisted.ensureDeferred
async def test_call_after_the_service_has_joined_is_answered(
    shared: bool, start_edge: StartEdge, call_from: Join
) -> None:
    """The service's registration takes precedence, and the substitute answers again after it has left."""
    caller = await call_from()
    assert await unavailable(caller)
    for _ in range(2):
        edge = await start_edge(shared=shared)
        assert await caller.call("rowcast.echo", 1) == 1
        assert (
            await refusal_of(caller.call("rowcast.nothing"))
        ).error == "wamp.error.no_such_procedure"
        assert await (await call_from("service cbor")).call("rowcast.router.backlog", 1) == 0
        await edge.client.stopService()
        assert await unavailable(caller)


@pytest_twisted.ensureDeferred
async def test_call_that_runs_when_the_service_is_killed_is_canceled(
    router: Router, call_from: Join
) -> None:
    """The router ends the running call; the next one is unavailable."""
    caller = await call_from()
    environ = {"HOME": "/", "PYTHONPATH": str(ROOT)}
    where = (f"unix:{router.socket}", router.realm, router.prefix, "single")
    with program(environ, sys.executable, "-m", "tests.wamp.edge", *where) as service:
        service.says("joined")
        call = caller.call("rowcast.wait")
        assert await caller.call("rowcast.echo", 1) == 1
        service.close()
        with pytest.raises(ApplicationError) as caught:
            await call
        assert caught.value.error == "wamp.error.canceled"
        assert caught.value.args == ("callee disconnected from in-flight request",)
        assert await unavailable(caller)
