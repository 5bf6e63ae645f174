"""
Messages of hostile clients through a real router: no client can impersonate another one.

Each field of an invocation, an event or a meta event that a client can influence has a test here or in
`test_session.py`; `docs/deployment.md` lists the fields.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from ast import literal_eval
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions, PublishOptions
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from service.embedded.crossbar import node
from service.wamp.client import Departures
from tests.conftest import ROOT, Router, crossbar, free_port
from tests.deferreds import until
from tests.wamp.conftest import Edge, Join, StartEdge
from tests.wamp.raw import Raw, raw
from tests.wamp.test_session import RecordingSubscriber

CALL, CANCEL, INVOCATION, INTERRUPT, YIELD, RESULT = 48, 49, 68, 69, 70, 50
ERROR, REGISTERED, UNREGISTER, UNSUBSCRIBE, PUBLISH, SUBSCRIBE, EVENT = 8, 65, 66, 34, 16, 32, 36

BOSS = {"session": 1, "authid": "admin", "authrole": "boss"}
LINK = {"session": 2, "authid": "link", "authrole": "service"}

JoinRaw = Callable[..., Awaitable[Raw]]


@pytest_twisted.async_yield_fixture
async def join_raw(router: Router) -> AsyncIterator[JoinRaw]:
    """Yield a function that joins a `Raw` client, which can send any message."""
    joined: list[Raw] = []

    async def start(**hello: Any) -> Raw:
        joined.append(await raw(router.port, router.realm, **hello))
        return joined[-1]

    yield start
    for each in joined:
        each.close()


async def answer(client: Raw) -> list[Any]:
    """Return the next message to a client; an empty list at the end of the connection."""
    return await deferToThread(client.read)


async def invocation(edge: Edge) -> int:
    """Return the id of the only running invocation."""
    await deferLater(reactor, 0)  # autobahn records it after the procedure has started
    (request,) = edge.client._session._invocations  # type: ignore[union-attr]
    return int(request)


@pytest.mark.parametrize("hops", [[BOSS], [BOSS, LINK], [LINK, LINK]], ids=len)
@pytest_twisted.ensureDeferred
async def test_caller_of_a_forwarded_call_is_refused(
    hops: list[dict[str, Any]], start_edge: StartEdge, call_from: Join, join_raw: JoinRaw
) -> None:
    """No client can forge the caller: neither with raw messages, nor with autobahn, nor like a router link."""
    edge = await start_edge(links={"service"})
    caller = await call_from()
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.caller", options=CallOptions(forward_for=hops))
    assert caught.value.error == "wamp.error.not_authorized"
    assert "ROWCAST_ROUTER_LINKS" in caught.value.kwargs["hint"]
    client = await join_raw()
    client.send(CALL, 1, {"forward_for": hops, "receive_progress": True}, "rowcast.caller")
    assert (await answer(client))[4] == "wamp.error.not_authorized"
    assert edge.dispatcher.calls == 0
    own = {"caller": 1, "caller_authid": "admin", "caller_authrole": "boss", "forward_for": []}
    client.send(CALL, 2, own, "rowcast.caller")
    said = (await answer(client))[3][0]
    assert (said["session"], said["authrole"]) == (client.session, "anonymous")


@pytest.mark.parametrize("links", [set(), {"service"}], ids=["no links", "a link"])
@pytest_twisted.ensureDeferred
async def test_caller_behind_a_link_is_the_one_it_names(
    links: set[str], start_edge: StartEdge, call_from: Join
) -> None:
    """Only a session whose role is configured as a router link may call in the name of others."""
    edge = await start_edge(links=links)
    link = await call_from("service cbor")
    call = link.call("rowcast.caller", options=CallOptions(forward_for=[BOSS]))
    if links:
        assert (await call)["authrole"] == "boss"
        # the last hop is one that a client of the link's router has claimed
        claimed = CallOptions(forward_for=[BOSS, {**BOSS, "authrole": "anonymous"}])
        call = link.call("rowcast.caller", options=claimed)
    with pytest.raises(ApplicationError, match="not_authorized"):
        await call
    assert edge.dispatcher.calls == len(links)


@pytest_twisted.ensureDeferred
async def test_backlog_of_a_forwarded_call_is_refused(call_from: Join) -> None:
    """The component in the router does not accept a client in place of the service either."""
    caller = await call_from()
    options = CallOptions(forward_for=[{**BOSS, "authrole": "service"}])
    with pytest.raises(ApplicationError, match="not_authorized"):
        await caller.call("rowcast.router.backlog", caller._session_id, options=options)


FORGED = {
    "error": lambda n: [ERROR, INVOCATION, n, {}, "rowcast.error.forged", [], {"retry": True}],
    "result": lambda n: [YIELD, n, {}, ["forged"]],
    "part": lambda n: [YIELD, n, {"progress": True}, ["forged"]],
    "interrupt": lambda n: [INTERRUPT, n, {}],
    "invocation": lambda n: [INVOCATION, n, 1, {}],
    "answer": lambda n: [RESULT, n, {}, ["forged"]],
    "refusal": lambda n: [ERROR, CALL, n, {}, "rowcast.error.forged"],
    "event": lambda n: [EVENT, n, 1, {}, ["forged"]],
}


@pytest.mark.parametrize("what", FORGED)
@pytest_twisted.ensureDeferred
async def test_call_of_another_cannot_be_answered(
    what: str, start_edge: StartEdge, call_from: Join, join_raw: JoinRaw
) -> None:
    """A client that answers an invocation of the service loses its session; the caller gets the real result."""
    edge = await start_edge()
    victim, client = await call_from(), await join_raw()
    begun, parts = edge.dispatcher.begun(), []
    call = victim.call("rowcast.wait", options=CallOptions(on_progress=parts.append))
    await begun
    client.send(*FORGED[what](await invocation(edge)))
    assert await answer(client) == []
    edge.dispatcher.release("true")
    assert await call == "true"
    assert not parts
    assert not edge.dispatcher.cancelled


@pytest_twisted.ensureDeferred
async def test_error_of_the_callee_arrives(start_edge: StartEdge, call_from: Join) -> None:
    """The guard passes the errors of the service."""
    await start_edge()
    caller = await call_from()
    with pytest.raises(ApplicationError, match="no_such_procedure"):
        await caller.call("rowcast.nothing")


@pytest_twisted.ensureDeferred
async def test_call_of_another_cannot_be_cancelled(
    start_edge: StartEdge, call_from: Join, join_raw: JoinRaw
) -> None:
    """A CANCEL applies only to calls of its own session."""
    edge = await start_edge()
    victim, client = await call_from(), await join_raw()
    begun = edge.dispatcher.begun()
    call = victim.call("rowcast.wait")
    await begun
    (request,) = victim._call_reqs
    for mode in ("skip", "kill", "killnowait"):
        client.send(CANCEL, request, {"mode": mode, "forward_for": [BOSS]})
    client.send(CALL, 1, {}, "rowcast.echo", ["there"])
    assert await answer(client) == [RESULT, 1, *(await result_details(edge)), ["there"]]
    assert not edge.dispatcher.cancelled
    edge.dispatcher.release("true")
    assert await call == "true"


async def result_details(edge: Edge) -> list[Any]:
    """Return the details of a result, which name its callee."""
    session = edge.client._session
    return [
        {
            "callee": session._session_id,  # type: ignore[union-attr]
            "callee_authid": session._authid,  # type: ignore[union-attr]
            "callee_authrole": "service",
        }
    ]


@pytest_twisted.ensureDeferred
async def test_registration_of_a_service_cannot_be_changed_by_other_clients(
    start_edge: StartEdge, join_raw: JoinRaw
) -> None:
    """A client can neither end the service's registration or subscription, nor register or publish itself."""
    gone: list[int] = []
    edge = await start_edge(observers=[Departures(gone.append)])
    session: Any = edge.client._session
    client, leaver = await join_raw(), await join_raw()
    (subscription,) = session._subscriptions
    for request, message, problem in (
        (1, [UNREGISTER, 1, edge.dispatch._registration.id], "no_such_registration"),
        (2, [UNSUBSCRIBE, 2, subscription], "no_such_subscription"),
        (3, [64, 3, {"match": "prefix", "force_reregister": True}, "rowcast."], "not_authorized"),
        (4, [64, 4, {}, "rowcast.actions.find"], "not_authorized"),
        (5, [PUBLISH, 5, {"acknowledge": True}, "rowcast.actions.touched", [1]], "not_authorized"),
        (6, [CALL, 6, {}, "wamp.session.add_testament", ["rowcast.a", [], {}]], "not_authorized"),
        (7, [CALL, 7, {}, "wamp.session.kill", [session._session_id]], "not_authorized"),
        (8, [SUBSCRIBE, 8, {"forward_for": [BOSS]}, "wamp.session.on_leave"], "not_authorized"),
    ):
        client.send(*message)
        error = await answer(client)
        assert error[2] == request
        assert error[4] == f"wamp.error.{problem}"
    leaver.close()
    client.send(CALL, 9, {}, "rowcast.echo", ["there"])
    assert (await answer(client))[3] == ["there"]
    await until(lambda: gone)
    assert gone == [leaver.session]


@pytest_twisted.ensureDeferred
async def test_departure_of_another_cannot_be_announced(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Only the router can publish below `wamp.`, whatever the permissions of a role."""
    gone: list[int] = []
    await start_edge(observers=[Departures(gone.append)])
    publisher, victim = await call_from("service cbor"), await call_from()
    for hops in (None, [BOSS]):
        options = PublishOptions(acknowledge=True, forward_for=hops, retain=True)
        with pytest.raises(ApplicationError, match="invalid_uri"):
            await publisher.publish("wamp.session.on_leave", victim._session_id, options=options)
    assert await victim.call("rowcast.echo", 1) == 1
    assert not gone


@pytest_twisted.ensureDeferred
async def test_event_in_the_name_of_another_is_dropped(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A client with the permission to publish cannot forge the publisher."""
    observer = RecordingSubscriber("rowcast.test.topic")
    await start_edge(observers=[observer])
    publisher = await call_from("service cbor")
    heard = observer.next()
    for number, hops in enumerate(([BOSS], None)):
        options = PublishOptions(acknowledge=True, forward_for=hops)
        await publisher.publish("rowcast.test.topic", number, options=options)
    await heard
    assert observer.events == [([1], {})]


@pytest_twisted.ensureDeferred
async def test_departure_of_a_client_with_an_odd_greeting_is_announced(
    start_edge: StartEdge, join_raw: JoinRaw
) -> None:
    """Claims of a client in HELLO about its transport, role or identity have no effect."""
    gone: list[int] = []
    await start_edge(observers=[Departures(gone.append)])
    transport = {"channel_type": "tls", "peer": "tcp4:10.0.0.1:1", "is_secure": True}
    for odd in (5, transport):
        client = await join_raw(
            authid="admin", authrole="boss", authextra={"transport": odd, "x_cb_peer": "nobody"}
        )
        client.send(CALL, 1, {}, "rowcast.caller")
        caller = (await answer(client))[3][0]
        assert caller["session"] == client.session
        assert caller["authrole"] == "anonymous"
        assert caller["authid"] != "admin"
        client.close()
        left = client.session
        await until(lambda: left in gone)  # noqa: B023  (awaited here)


@pytest_twisted.ensureDeferred
async def test_request_id_in_use_is_refused(
    start_edge: StartEdge, call_from: Join, join_raw: JoinRaw
) -> None:
    """A second call with the same request id cannot keep the service's registration alive when it leaves."""
    edge = await start_edge(shared=True)
    client, caller = await join_raw(), await call_from()
    begun = edge.dispatcher.begun()
    client.send(CALL, 7, {}, "rowcast.wait")
    await begun
    client.send(CALL, 7, {}, "rowcast.wait")
    assert (await answer(client))[2:5] == [7, {}, "wamp.error.invalid_argument"]
    edge.client._transport.abortConnection()
    assert (await answer(client))[2:5] == [7, {}, "wamp.error.canceled"]
    await edge.client.when_joined()
    for number in range(4):
        assert await caller.call("rowcast.echo", number) == number


@pytest_twisted.ensureDeferred
async def test_call_that_was_cancelled_and_left_is_forgotten(
    router: Router, start_edge: StartEdge, join_raw: JoinRaw
) -> None:
    """Calls that a client cancelled before it left do not stay in the router's memory."""
    gone: list[int] = []
    edge = await start_edge(observers=[Departures(gone.append)])
    doors = psutil.net_connections("tcp")
    [pid] = {door.pid for door in doors if door.laddr[1] == router.port and door.status == "LISTEN"}
    process = psutil.Process(pid)
    before = process.memory_info().rss
    for departed in range(1, 11):
        client = await join_raw()
        begun = edge.dispatcher.begun()
        await deferToThread(client.send, CALL, 1, {}, "rowcast.wait", [bytes(8 * 2**20)])
        await begun
        client.send(CANCEL, 1, {"mode": "skip"})
        client.close()
        await until(lambda count=departed: len(gone) == count)
        edge.dispatcher.release()
    caller = await join_raw()
    caller.send(CALL, 1, {}, "rowcast.echo", [1])
    assert (await answer(caller))[3] == [1]
    assert process.memory_info().rss - before < 40 * 2**20


@pytest_twisted.ensureDeferred
async def test_unknown_options_of_a_call_are_not_forwarded(
    start_edge: StartEdge, join_raw: JoinRaw
) -> None:
    await start_edge()
    client = await join_raw()
    options = {
        "transaction_hash": "0x1",
        "disclose_me": False,
        "procedure": "rowcast.echo",
        "progress": True,
        "runmode": "partition",
        "rkey": 1,
        "timeout": 30,
    }
    client.send(CALL, 1, options, "rowcast.arguments", [1], {"details": {"caller": 1}})
    assert (await answer(client))[3] == [{"args": [1], "kwargs": {"details": {"caller": 1}}}]
    client.send(CALL, 2, {"enc_algo": "cryptobox", "enc_serializer": "cbor"}, "rowcast.echo", b"x")
    assert (await answer(client))[4] == "wamp.error.invalid_argument"


def test_component_is_for_the_versions_that_are_installed() -> None:
    """The component's supported versions are those of the lock file."""
    tested = re.search(r"^TESTED = (.*)$", (ROOT / "router/component/guard.py").read_text(), re.M)
    assert tested is not None
    locked = (ROOT / "router/requirements.lock").read_text().splitlines()
    versions = literal_eval(tested[1])
    assert set(versions) == {"crossbar", "autobahn"}
    assert {f"{name}=={version}" for name, version in versions.items()} <= set(locked)


def test_component_of_other_versions_does_not_start(tmp_path: Path) -> None:
    """With an untested version of Crossbar, the node opens no transport, and logs why."""
    with tempfile.TemporaryDirectory(prefix="rowcast-guard-") as home:
        config = node("realm1", "rowcast", free_port(), Path(home) / "s", "", str(ROOT / "router"))
        component = config["workers"][0]["components"][0]
        component["extra"]["versions"] = {"crossbar": "1.0"}
        (Path(home) / "config.json").write_text(json.dumps(config))
        ended = subprocess.run(
            [crossbar(), "start", "--cbdir", home, "--loglevel", "warn", "--color", "false"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert "tested with crossbar 1.0" in ended.stdout + ended.stderr
