"""
Calls while PostgreSQL's processes are suspended, or a relay stalls the connections to it.

No connection is closed then, and no query answered. Each call must be answered within a bound, and the
service must recover without intervention when the server resumes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from autobahn.wamp.types import CallOptions
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from schema.database_url import Place
from service.app import Serving
from service.errors import Canceled, OutcomeUnknown, StatementTimeout, Unavailable
from service.waiting import in_thread
from tests.conftest import Router, execute
from tests.db.relay import Relay
from tests.deferreds import pause, until
from tests.wamp.callers import Caller, end_of, join
from tests.wamp.service import served
from tests.wamp.test_cancelling import kill

LIMIT = 1.0
"""The statement timeout in seconds."""
BOUND = 20.0
"""Seconds in which a call is answered: twice the sum of connect timeout, statement timeout and two graces."""
GIVEN_UP = {StatementTimeout.uri, Unavailable.uri}
SCHEMA = """
CREATE TABLE kept (id int PRIMARY KEY);
CREATE TABLE lines (id int PRIMARY KEY, body text);
INSERT INTO lines SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i;
CREATE VIEW naps AS SELECT 1 AS id, pg_sleep(0.3)::text AS nap;
CREATE FUNCTION keep_slowly(n int) RETURNS void LANGUAGE sql AS
    'INSERT INTO kept SELECT n FROM pg_sleep(0.3)';
"""


class Server:
    """
    A PostgreSQL whose processes a test can suspend.

    Args:
        dsn: DSN of the server.
        data: Its data directory.
    """

    def __init__(self, dsn: str, data: Path) -> None:
        self.dsn = dsn
        self._data = data

    @property
    def postmaster(self) -> int:
        """The process id of the postmaster."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def backends(self) -> list[int]:
        """Return the process ids of all other client backends."""
        sql = (
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        return [int(str(row[0])) for row in execute(self.dsn, sql)]

    @contextmanager
    def stopped(self, *pids: int) -> Iterator[None]:
        """Suspend processes for the length of the body."""
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a PostgreSQL for this module alone."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-stopped-"))
    with Place(state=home).running() as dsn:
        execute(dsn, SCHEMA)
        yield Server(dsn, home / "pg")
    shutil.rmtree(home)


@pytest_twisted.async_yield_fixture
async def service(server: Server, router: Router) -> AsyncIterator[Serving]:
    """Serve that server's database."""
    async with served(server.dsn, router, statement_timeout=LIMIT, pool_max=3) as serving:
        await until(lambda: serving.listener.listening)
        yield serving


@pytest_twisted.async_yield_fixture
async def caller(service: Serving, router: Router) -> AsyncIterator[Caller]:
    """Join a client of the service."""
    session = await join(router, "rawsocket cbor")
    yield session
    await session.close()


async def ends_of(calls: list[Any]) -> list[str]:
    """Return how calls end; fail if one is not answered within the bound."""
    ends = gatherResults([ensureDeferred(end_of(call)) for call in calls])
    return list(await ends.addTimeout(BOUND, reactor))


async def well(caller: Caller) -> bool:
    """Return whether `health` reports that the database answers."""
    return bool((await caller.call("rowcast.health"))["checks"]["postgres"])


async def recovers(caller: Caller) -> None:
    """Check that concurrent calls succeed again without intervention."""
    end = time.monotonic() + BOUND
    while not await well(caller):
        assert time.monotonic() < end
        await pause(0.1)
    calls = [caller.call("rowcast.lines.get", 1) for _ in range(6)]
    assert await ends_of(calls) == ["result"] * 6


async def freed(service: Serving) -> None:
    """Wait until no call holds a connection; the reload of the catalog may still be trying one."""
    await until(lambda: service.pool.stats().busy <= 1, BOUND)


@pytest_twisted.ensureDeferred
async def test_stopped_backend_costs_its_call_alone(
    server: Server, service: Serving, caller: Caller
) -> None:
    """Calls on other connections continue; the call on the suspended backend is given up."""
    await gatherResults([caller.call("rowcast.naps.find") for _ in range(3)])
    slow = caller.call("rowcast.fn.keep_slowly", n=1)
    end = ensureDeferred(end_of(slow))
    asleep = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%keep_slowly%' AND pid <> pg_backend_pid() AND state = 'active'"
    await until(lambda: execute(server.dsn, asleep))
    ((pid,),) = execute(server.dsn, asleep)
    with server.stopped(int(str(pid))):
        others = [caller.call("rowcast.lines.get", 1) for _ in range(20)]
        assert await ends_of(others) == ["result"] * 20
        assert await well(caller)
        assert await end.addTimeout(BOUND, reactor) in GIVEN_UP | {OutcomeUnknown.uri}
        await freed(service)
    await recovers(caller)


@pytest_twisted.ensureDeferred
async def test_stopped_postmaster_leaves_open_sessions_working(
    server: Server, service: Serving, caller: Caller
) -> None:
    """Calls with an open connection are answered; calls that need a new one are refused."""
    await gatherResults([caller.call("rowcast.naps.find") for _ in range(3)])
    backends = server.backends()
    with server.stopped(server.postmaster):
        calls = [caller.call("rowcast.lines.get", 1) for _ in range(6)]
        assert await ends_of(calls) == ["result"] * 6
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        await pause(0.5)
        calls = [caller.call("rowcast.lines.get", 1) for _ in range(6)]
        assert set(await ends_of(calls)) == {Unavailable.uri}
        assert not await well(caller)
    await recovers(caller)
    await until(lambda: service.listener.listening, BOUND)


@pytest_twisted.ensureDeferred
async def test_stopped_server_answers_within_the_bound(
    server: Server, service: Serving, caller: Caller
) -> None:
    """Reads are given up, writes have an unknown outcome, and waiting calls are refused."""
    await gatherResults([caller.call("rowcast.naps.find") for _ in range(3)])
    stopped = [server.postmaster, *server.backends()]
    calls = [
        caller.call("rowcast.naps.find"),
        caller.call("rowcast.kept.create", {"id": 2}),
        caller.call("rowcast.fn.keep_slowly", n=3),
        *(caller.call("rowcast.lines.get", 1) for _ in range(6)),
    ]
    with server.stopped(*stopped):
        ends = await ends_of(calls)
        assert not await well(caller)
        await freed(service)
    assert set(ends) <= GIVEN_UP | {OutcomeUnknown.uri, "result"}
    assert set(ends) & GIVEN_UP, ends
    await recovers(caller)
    there = {row[0] for row in execute(server.dsn, "SELECT id FROM kept")}
    for id, end in ((2, ends[1]), (3, ends[2])):
        assert (id in there) == (end == "result") or end == OutcomeUnknown.uri


@pytest_twisted.async_yield_fixture
async def relay(server: Server) -> AsyncIterator[Relay]:
    """Run a relay to the server."""
    with Relay(server.dsn) as made:
        made.dsn = psycopg2.extensions.make_dsn(made.dsn, connect_timeout=2)
        yield made


@pytest_twisted.async_yield_fixture
async def behind(relay: Relay, router: Router) -> AsyncIterator[Serving]:
    """Serve the database through the relay."""
    async with served(relay.dsn, router, statement_timeout=LIMIT, pool_max=3) as serving:
        await until(lambda: serving.listener.listening)
        yield serving
        relay.flows.set()


@pytest_twisted.async_yield_fixture
async def client(behind: Serving, router: Router) -> AsyncIterator[Caller]:
    """Join a client of that service."""
    session = await join(router, "rawsocket cbor")
    yield session
    await session.close()


@pytest_twisted.ensureDeferred
async def test_catalog_is_read_once_the_server_answers(
    server: Server, relay: Relay, behind: Serving, client: Caller
) -> None:
    """A stalled read of the catalog is given up and retried, and then new relations are served."""
    execute(server.dsn, "CREATE TABLE newer (id int PRIMARY KEY)")
    reading = len(relay.messages)
    behind.catalogs.reload()
    await until(lambda: len(relay.messages) > reading)
    relay.flows.clear()
    ends = await ends_of([client.call("rowcast.lines.get", 1) for _ in range(4)])
    assert set(ends) <= GIVEN_UP | {"result"}
    assert not await well(client)
    relay.flows.set()
    await recovers(client)
    end = time.monotonic() + BOUND
    while await end_of(client.call("rowcast.newer.find")) != "result":
        assert time.monotonic() < end
        await pause(0.2)
    execute(server.dsn, "DROP TABLE newer")


STREAMS: dict[str, Callable[[Caller, CallOptions], Any]] = {
    "stream": lambda on, options: on.call("rowcast.lines.stream", options=options),
    "export": lambda on, options: on.call("rowcast.lines.export", options=options),
}


@pytest.mark.parametrize("how", STREAMS)
@pytest_twisted.ensureDeferred
async def test_stream_from_a_stalled_server_ends_within_the_bound(
    how: str, relay: Relay, behind: Serving, client: Caller
) -> None:
    """A stream that has already sent rows is given up."""
    begun: Deferred[None] = Deferred()

    def taken(_: Any) -> None:
        if not begun.called:
            relay.flows.clear()
            begun.callback(None)

    call = STREAMS[how](client, CallOptions(on_progress=taken))
    end = ensureDeferred(ends_of([call]))
    await begun.addTimeout(BOUND, reactor)
    assert set(await end) <= GIVEN_UP
    await freed(behind)
    relay.flows.set()
    await recovers(client)


@pytest.mark.parametrize("how", ["cancelled", "left", "alone"])
@pytest_twisted.ensureDeferred
async def test_import_into_a_stalled_server_keeps_nothing(
    how: str, server: Server, relay: Relay, behind: Serving, client: Caller, router: Router
) -> None:
    """Whether its caller cancels, leaves or waits, it ends and releases its connection."""
    importer = await join(router, "rawsocket cbor")
    begun = await importer.call("rowcast.kept.import", csv="id\n1000\n", done=False)
    relay.flows.clear()
    call = importer.call("rowcast.kept.import", csv="1001\n", done=True, **begun)
    end = ensureDeferred(ends_of([call]))
    await pause(0.2)
    if how == "cancelled":
        kill(importer)
    if how == "left":
        await importer.close()
    ends = set() if how == "left" else set(await end)
    assert ends <= GIVEN_UP | {Canceled.uri, OutcomeUnknown.uri}, ends
    await freed(behind)
    relay.flows.set()
    await recovers(client)
    if ends != {OutcomeUnknown.uri}:
        await until(lambda: not execute(server.dsn, "SELECT 1 FROM kept WHERE id >= 1000"))
    if how != "left":
        await importer.close()


@pytest_twisted.ensureDeferred
async def test_server_restarted_while_suspended_is_used(router: Router) -> None:
    """The service connects to the new server, although the old one never closed its connections."""
    home = Path(tempfile.mkdtemp(prefix="rowcast-stopped-"))
    place = Place(state=home)
    running = place.running()
    dsn = running.__enter__()
    try:
        execute(dsn, SCHEMA)
        async with served(dsn, router, statement_timeout=LIMIT, pool_max=3) as service:
            client = await join(router, "rawsocket cbor")
            await gatherResults([client.call("rowcast.naps.find") for _ in range(3)])
            server = Server(dsn, home / "pg")
            pids = [server.postmaster, *server.backends()]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            calls = [client.call("rowcast.lines.get", 1) for _ in range(6)]
            assert set(await ends_of(calls)) <= GIVEN_UP
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await in_thread(reactor, "end", running.__exit__, None, None, None)
            running = place.running()
            running.__enter__()
            await recovers(client)
            await until(lambda: service.listener.listening, BOUND)
            await client.close()
    finally:
        running.__exit__(None, None, None)
        shutil.rmtree(home, ignore_errors=True)
