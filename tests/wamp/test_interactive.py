"""
Interactive transactions through the router, with a second service, and by callers that disconnect.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import DeferredList, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from service.app import Serving
from tests.conftest import ROOT, Router, execute
from tests.deferreds import failure_of, until
from tests.wamp.callers import KINDS, Caller, join
from tests.wamp.conftest import Join
from tests.wamp.replica import replica
from tests.wamp.service import served

SCHEMA = """
CREATE TABLE items (id int PRIMARY KEY, name text);
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(20);
"""

HOLDER = """
import sys
from autobahn.twisted.component import Component
from twisted.internet import reactor
component = Component(transports=sys.argv[1], realm="realm1")

@component.on_join
async def joined(session, details):
    for number in range(2):
        tx = (await session.call("rowcast.transaction.begin"))["tx"]
        await session.call(tx, "items.create", [{"id": number}])
    session.call(tx, "slow.find")

component.start(reactor)
reactor.run()
"""
"""A client program that holds two transactions, with a statement running in one of them."""


@pytest.fixture(autouse=True)
def empty(dsn: str) -> None:
    execute(dsn, "TRUNCATE items")


@pytest_twisted.async_yield_fixture
async def one(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the database with a service per test; other services would displace one of the module."""
    async with served(dsn, router) as service:
        yield service


@pytest_twisted.async_yield_fixture
async def two(dsn: str, router: Router) -> AsyncIterator[list[Serving]]:
    """Serve the database with two services."""
    async with served(dsn, router, shared=True) as one, served(dsn, router, shared=True) as other:
        yield [one, other]


async def begin(caller: Caller, **kwargs: Any) -> str:
    answer = await caller.call("rowcast.transaction.begin", **kwargs)
    assert list(answer) == ["tx"]
    uri: str = answer["tx"]
    return uri


async def reason(call: Any) -> str | None:
    """Return the reason of the conflict that a call ends with."""
    error = await failure_of(call)
    assert isinstance(error, ApplicationError), error
    assert error.error == "rowcast.error.conflict", error
    found: str | None = error.kwargs.get("reason")
    return found


def kept(dsn: str) -> list[Any]:
    return [id for (id,) in execute(dsn, "SELECT id FROM items ORDER BY id")]


def transactions(dsn: str) -> int:
    ((count,),) = execute(
        dsn,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()",
    )
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_transaction_by_any_transport_is_committed(
    how: str, dsn: str, one: Serving, router: Router
) -> None:
    caller = await join(router, how)
    tx = await begin(caller, isolation="serializable")
    assert await caller.call(tx, "items.create", [{"id": 1, "name": "é"}]) == {"id": 1, "name": "é"}
    await caller.call(f"{tx}.savepoint", "s")
    await caller.call(tx, "items.update", [1], {"changes": {"name": "b"}})
    await caller.call(f"{tx}.rollback_to", name="s")
    await caller.call(f"{tx}.release", "s")
    assert (await caller.call(tx, call="items.get", args=[1]))["name"] == "é"
    assert kept(dsn) == []
    assert await caller.call(f"{tx}.commit") is None
    assert kept(dsn) == [1]
    await caller.close()


@pytest_twisted.ensureDeferred
async def test_calls_sent_ahead_arrive_in_order_at_their_process(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    """The router alternates between services for all other calls, and more calls are sent than run at once."""
    caller = await call_from()
    number = 150
    for _ in range(3):
        tx = await begin(caller)
        calls = [caller.call(tx, "items.create", [{"id": 1, "name": "0"}])]
        calls += [caller.call(tx, "items.update", [1, {"name": str(n)}]) for n in range(1, number)]
        calls += [caller.call(tx, "items.delete", [1]), caller.call(f"{tx}.commit")]
        answers = await gatherResults(calls)
        assert [each["name"] for each in answers[:number]] == [str(n) for n in range(number)]
        assert kept(dsn) == []


@pytest.mark.parametrize("how", ["rawsocket cbor", "websocket cbor"])
@pytest_twisted.ensureDeferred
async def test_consecutive_results_are_not_delayed(how: str, one: Serving, router: Router) -> None:
    """With Nagle's algorithm in the router, every second call would wait for 40 ms or more."""
    caller = await join(router, how)
    tx = await begin(caller)
    least = 1.0
    for _ in range(200):  # at least one of these is not delayed by load on the machine
        began = monotonic()
        await gatherResults([caller.call(tx, "items.count") for _ in range(3)])
        least = min(least, monotonic() - began)
        if least < 0.035:
            break
    assert least < 0.035
    await caller.close()


@pytest_twisted.ensureDeferred
async def test_callers_of_the_bridge_share_a_bound_and_its_refusal_says_so(
    one: Serving, router: Router
) -> None:
    """For the service they are all one session."""

    def asked(procedure: str) -> Any:
        body = json.dumps({"procedure": procedure}).encode()
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(router.http, body, headers), timeout=30) as answer:
            return json.load(answer)

    held = []
    for _ in range(2):
        answer = await deferToThread(asked, "rowcast.transaction.begin")
        held.append(answer["args"][0]["tx"])
    refused = await deferToThread(asked, "rowcast.transaction.begin")
    assert refused["error"] == "rowcast.error.unavailable"
    assert "HTTP bridge" in refused["kwargs"]["hint"]
    for tx in held:
        assert "error" not in await deferToThread(asked, f"{tx}.rollback")


@pytest_twisted.ensureDeferred
async def test_transactions_of_two_services_are_independent(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    caller, other = await call_from(), await call_from()
    first, second = await begin(caller), await begin(caller)
    assert first.split(".")[2] != second.split(".")[2]
    await caller.call(first, "items.create", [{"id": 1}])
    await caller.call(second, "items.create", [{"id": 2}])
    error = await failure_of(other.call(first, "items.count"))
    assert isinstance(error, ApplicationError)
    assert error.error == "wamp.error.not_authorized"
    await caller.call(f"{first}.commit")
    await caller.call(f"{second}.rollback")
    assert [await reason(caller.call(f"{tx}.commit")) for tx in (first, second)] == [
        "committed",
        "rolled_back",
    ]
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_bug_in_a_transaction_is_logged_without_its_secret(
    one: Serving, call_from: Join
) -> None:
    """Behind an HTTP bridge, a reader of the log could otherwise commit the transaction of another caller."""

    async def wrong(*args: Any) -> None:
        raise KeyError("wrong")

    one.dispatcher.add({"wrong": wrong})
    caller = await call_from()
    tx = await begin(caller)
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        error = await failure_of(caller.call(tx, "wrong"))
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert isinstance(error, ApplicationError)
    assert error.error == "rowcast.error.internal"
    (entry,) = [event for event in logged if event.get("id") == error.kwargs["id"]]
    assert entry["doing"] == "rowcast.tx"
    assert not any(tx.rpartition(".")[2] in str(event) for event in logged)


@pytest_twisted.ensureDeferred
async def test_error_of_an_operation_fails_those_sent_after_it(
    dsn: str, one: Serving, call_from: Join
) -> None:
    caller = await call_from()
    tx = await begin(caller)
    calls = [caller.call(tx, "items.create", [{"id": n}]) for n in (1, 1, 2)]
    calls.append(caller.call(f"{tx}.commit"))
    outcomes = [error for _, error in await DeferredList(calls, consumeErrors=True)]
    assert outcomes[0] == {"id": 1, "name": None}
    assert [each.value.error.rpartition(".")[2] for each in outcomes[1:]] == [
        "unique_violation",
        "conflict",
        "conflict",
    ]
    for each in outcomes[2:]:
        assert each.value.kwargs["reason"] == "failed"
        assert each.value.kwargs["detail"].startswith("rowcast.error.unique_violation: ")
    assert kept(dsn) == []


@pytest.mark.parametrize("how", ["leaves", "vanishes"])
@pytest_twisted.ensureDeferred
async def test_transactions_of_a_session_that_leaves_are_rolled_back(
    how: str, dsn: str, two: list[Serving], router: Router
) -> None:
    """This holds at each service and with a running statement; its connections are released at once."""
    caller = await join(router, "rawsocket cbor")
    held = [await begin(caller) for _ in range(4)]
    for n, tx in enumerate(held):
        await caller.call(tx, "items.create", [{"id": n}])
    for tx in held[:2]:
        caller.call(tx, "slow.find").addErrback(lambda _: None)
    await until(lambda: running(dsn) == 2)
    assert transactions(dsn) == 4
    caller._transport.abort() if how == "vanishes" else caller.leave()
    await until(lambda: transactions(dsn) == 0)
    await until(lambda: not any(each.pool.stats().busy for each in two))
    assert kept(dsn) == []
    await caller.close()


def running(dsn: str) -> int:
    ((count,),) = execute(
        dsn,
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%slow%'"
        " AND datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert isinstance(count, int)
    return count


@pytest_twisted.ensureDeferred
async def test_connections_of_a_killed_client_are_released(
    dsn: str, one: Serving, router: Router
) -> None:
    """The connections were free 11 to 24 ms after SIGKILL of the client, on a loaded machine."""
    command = [sys.executable, "-c", HOLDER, router.websocket]
    client = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        await until(lambda: running(dsn) == 1, 30)
        assert transactions(dsn) == 2
        client.kill()
        killed = monotonic()
        await until(lambda: not one.pool.stats().busy, 10)
        assert monotonic() - killed < 2  # less than the idle timeout of 10 seconds
        assert transactions(dsn) == 0
    finally:
        client.kill()
        client.wait()
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_stopped_service_rolls_back_and_the_other_one_reports_it(
    dsn: str, router: Router, call_from: Join
) -> None:
    """One service is killed or stopped; a transaction of the other service continues."""
    caller = await call_from()
    async with served(dsn, router, shared=True) as stays:
        other = replica(dsn, router)
        await other.ready
        held = [await begin(caller) for _ in range(4)]
        own = stays.dispatcher._importing.uploads.process
        here = next(tx for tx in held if own in tx)
        there = [tx for tx in held if own not in tx]
        for n, tx in enumerate(held):
            await caller.call(tx, "items.create", [{"id": n}])
        running = caller.call(there[0], "slow.find")
        await other.kill()
        error = await failure_of(running)
        assert isinstance(error, ApplicationError)
        assert error.error == "wamp.error.canceled"
        for tx in there:
            for command in ("", ".commit", ".rollback"):
                assert await reason(caller.call(f"{tx}{command}")) == "stopped"
        await caller.call(f"{here}.commit")
        assert len(kept(dsn)) == 1
        await until(lambda: transactions(dsn) <= 1)
        async with served(dsn, router, shared=True) as leaves:
            held = [await begin(caller) for _ in range(2)]
            gone = next(tx for tx in held if leaves.dispatcher._importing.uploads.process in tx)
            await caller.call(gone, "items.create", [{"id": 9}])
        assert await reason(caller.call(f"{gone}.commit")) == "stopped"
    assert len(kept(dsn)) == 1
