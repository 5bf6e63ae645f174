"""
Limits of what one caller may have in flight, while others are served.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import psutil
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from service.app import Serving
from service.wamp.backpressure import Accounts, Bounds
from service.wamp.callee import Callee
from tests.conftest import Router
from tests.deferreds import pause, until
from tests.wamp.callers import Caller, join
from tests.wamp.conftest import Edge, Join, StartEdge
from tests.wamp.raw import CALL, Raw
from tests.wamp.service import served

MIB = 2**20
UNDER_WAY = 32
"""Number of calls per session that the router forwards at a time, as in router/component/pace.py."""
SCHEMA = """
CREATE TABLE wide AS SELECT i AS id, repeat('x', 4000) AS body FROM generate_series(1, 1000) i;
CREATE TABLE small AS SELECT i AS id FROM generate_series(1, 10) i;
ALTER TABLE small ADD PRIMARY KEY (id);
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(0.01);
"""


class Calls:
    """Calls of one caller, and their outcomes."""

    def __init__(self, caller: Caller, number: int, uri: str, *args: Any) -> None:
        self.answered = 0
        self.refused: list[ApplicationError] = []
        self.all = [caller.call(uri, *args) for _ in range(number)]
        for call in self.all:
            call.addCallbacks(self._answer, self._refuse)

    def _answer(self, result: Any) -> None:
        self.answered += 1

    def _refuse(self, why: Failure) -> None:
        why.trap(ApplicationError)
        assert isinstance(why.value, ApplicationError)
        assert why.value.error == "rowcast.error.unavailable"
        assert why.value.kwargs["retry"] is True
        assert why.value.kwargs["retry_after"] == 1.0
        self.refused.append(why.value)

    async def seen(self, edge: Edge, running: int, refused: int) -> None:
        """Wait until that many calls have reached the dispatcher, and that many were refused."""
        await until(lambda: (len(edge.dispatcher.waiting), len(self.refused)) == (running, refused))


@pytest_twisted.ensureDeferred
async def test_calls_of_a_session_beyond_the_bound_are_refused(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The first five run, the next two are refused without work; other sessions are served."""
    edge = await start_edge(bounds=Bounds(session_calls=5))
    caller, other = await call_from(), await call_from()
    calls = Calls(caller, 7, "rowcast.wait")
    await calls.seen(edge, 5, 2)
    assert edge.dispatcher.calls == 5
    assert calls.refused[0].args == ("too many calls are in progress (5 of this session)",)
    assert await other.call("rowcast.echo", 1) == 1
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert calls.answered == 5
    assert await caller.call("rowcast.echo", 2) == 2
    assert edge.dispatch.meter.outcomes == {"answered": 7, "refused": 2}


@pytest_twisted.ensureDeferred
async def test_client_with_very_many_calls_has_few_of_them_forwarded(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The router holds back further calls, and forwards them as earlier ones are answered."""
    edge = await start_edge(bounds=Bounds(running=5_000, wait=60.0))
    caller, other = await call_from(), await call_from("websocket json")
    calls = Calls(caller, 3_000, "rowcast.wait")
    await until(lambda: len(edge.dispatcher.waiting) == UNDER_WAY)
    for n in range(50):
        assert await other.call("rowcast.echo", n) == n
    while calls.answered < 3_000:
        assert len(edge.dispatcher.waiting) <= UNDER_WAY
        edge.dispatcher.release()
        await pause(0.002)
    assert not calls.refused


@pytest_twisted.ensureDeferred
async def test_cancel_of_a_call_that_the_router_holds_back_ends_it(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A session with very many calls can cancel running and held back ones."""
    edge = await start_edge(bounds=Bounds(wait=60.0))
    caller = await call_from()
    calls = [caller.call("rowcast.wait") for _ in range(2 * UNDER_WAY)]
    await until(lambda: len(edge.dispatcher.waiting) == UNDER_WAY)
    for call in (calls[0], *calls[UNDER_WAY + 1 :]):
        call.cancel()
        with pytest.raises(CancelledError):
            await call
    await until(lambda: edge.dispatcher.cancelled == 1)
    # The remaining call is forwarded, and the cancelled ones never are.
    await until(lambda: edge.dispatcher.calls == UNDER_WAY + 1)
    edge.dispatcher.release()
    await gatherResults(calls[1 : UNDER_WAY + 1])
    assert await caller.call("rowcast.echo", 1) == 1
    assert edge.dispatcher.calls == UNDER_WAY + 2


@pytest_twisted.ensureDeferred
async def test_calls_held_back_for_a_lost_service_go_to_the_next(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Calls of a lost service no longer count, so the calls held back after them are answered."""
    first, caller = await start_edge(shared=True, bounds=Bounds(wait=60.0)), await call_from()
    calls = [caller.call("rowcast.wait") for _ in range(3 * UNDER_WAY)]
    await until(lambda: len(first.dispatcher.waiting) == UNDER_WAY)
    second = await start_edge(shared=True, bounds=Bounds(wait=60.0))
    first.client._transport.abortConnection()
    ends = gatherResults([call.addErrback(lambda why: why.value.error) for call in calls])
    while not ends.called:
        first.dispatcher.release()
        second.dispatcher.release()
        await pause(0.002)
    ended = Counter(await ends)
    assert ended == {"wamp.error.canceled": UNDER_WAY, "released": 2 * UNDER_WAY}


@pytest.mark.parametrize("how", ["calls with progress", "a session that others call"])
@pytest_twisted.ensureDeferred
async def test_calls_that_do_not_count_are_all_forwarded(
    start_edge: StartEdge, call_from: Join, router: Router, how: str
) -> None:
    """Calls that last until cancelled do not count, nor do calls that a callee makes for others."""
    edge = await start_edge(bounds=Bounds(running=5_000, session_calls=5_000, wait=60.0))
    progress, caller = CallOptions(on_progress=lambda _: None), await call_from()
    if how != "calls with progress":
        progress, caller = None, await join(router, "service cbor")
        await caller.register(lambda: None, "rowcast.of.another.service")
    options = {"options": progress} if progress else {}
    calls = [caller.call("rowcast.wait", **options) for _ in range(400)]
    await until(lambda: len(edge.dispatcher.waiting) == 400)
    assert await caller.call("rowcast.echo", 1) == 1
    edge.dispatcher.release()
    await gatherResults(calls)
    if progress is None:
        await caller.close()


@pytest_twisted.ensureDeferred
async def test_large_result_costs_the_router_no_more_than_small_ones(
    start_edge: StartEdge, router: Router
) -> None:
    """The router copies a message once, however many segments it arrives in."""
    edge = await start_edge()
    edge.dispatcher.on("large", lambda: "x" * 7 * MIB)
    edge.dispatcher.on("small", lambda: "x" * (MIB // 2))

    process = router_process(router)

    def cost(count: int, uri: str) -> float:
        client = Raw(router.port, router.realm)
        before = process.cpu_times()
        for n in range(count):
            client.send(CALL, n + 1, {}, uri)
            client.read()
        after = process.cpu_times()
        client.close()
        return float(after.user + after.system - before.user - before.system)

    large = await deferToThread(cost, 10, "rowcast.large")
    small = await deferToThread(cost, 140, "rowcast.small")
    # With a copy per segment, the cost was 13 to 20 times as high.
    assert large < 5 * small


def router_process(router: Router) -> psutil.Process:
    """Return the Crossbar worker that listens on the port for clients."""
    for child in psutil.Process().children(recursive=True):
        for each in child.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == router.port:
                return child
    raise LookupError(router.port)


@pytest_twisted.ensureDeferred
async def test_calls_of_many_sessions_leave_room_for_another_one(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A session may use half of the remaining capacity, so some is left for each further session."""
    edge = await start_edge(bounds=Bounds(total_calls=8))
    running, all_calls = 0, []
    for more in (4, 2, 1, 1, 0):
        calls = Calls(await call_from(), 6, "rowcast.wait")
        running += more
        await calls.seen(edge, running, 6 - more)
        all_calls.append(calls)
    edge.dispatcher.release()
    for calls in all_calls:
        await gatherResults(calls.all)
    last = await call_from()
    assert await last.call("rowcast.echo", 1) == 1


@pytest_twisted.ensureDeferred
async def test_calls_beyond_the_running_ones_wait_in_order(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Two calls run and the others wait; a cancelled one never starts, the rest follow in order."""
    edge = await start_edge(bounds=Bounds(running=2))
    caller = await call_from()
    calls = Calls(caller, 2, "rowcast.wait")
    given_up = caller.call("rowcast.wait")
    ends: list[int] = []
    rest = [caller.call("rowcast.echo", n).addCallback(ends.append) for n in range(20)]
    await until(lambda: edge.dispatch.in_progress == 23)
    assert edge.dispatcher.calls == 2
    given_up.cancel()
    with pytest.raises(CancelledError):
        await given_up
    await until(lambda: edge.dispatch.in_progress == 22)
    assert not ends
    edge.dispatcher.release()
    await gatherResults([*calls.all, *rest])
    assert ends == [*range(20)]
    assert edge.dispatcher.calls == 22


@pytest_twisted.ensureDeferred
async def test_call_that_waits_too_long_is_refused(start_edge: StartEdge, call_from: Join) -> None:
    """A call that has not started in time is refused without work; running calls continue."""
    edge = await start_edge(bounds=Bounds(running=2, wait=0.3))
    calls = Calls(await call_from(), 5, "rowcast.wait")
    await calls.seen(edge, 2, 3)
    assert edge.dispatcher.calls == 2
    assert calls.refused[0].args == (
        "2 calls of this session are running; this call has waited too long",
    )
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert calls.answered == 2


@pytest_twisted.ensureDeferred
async def test_arguments_beyond_the_bound_are_refused(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The size of arguments counts while their calls run; a single call may have any size."""
    edge = await start_edge(bounds=Bounds(session_bytes=MIB, total_bytes=4 * MIB))
    caller, other = await call_from(), await call_from()
    calls = Calls(caller, 3, "rowcast.wait", "x" * 700_000)
    await calls.seen(edge, 1, 2)
    assert calls.refused[0].args == (
        "the arguments of the calls in progress are too large together",
    )
    assert len(await other.call("rowcast.echo", "x" * 3 * MIB)) == 3 * MIB
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert len(await caller.call("rowcast.echo", "x" * 3 * MIB)) == 3 * MIB


def stop_reading(caller: Caller) -> None:
    """Stop reading from the connection."""
    caller._transport.transport.pauseProducing()


def resume_reading(caller: Caller) -> None:
    """Resume reading from the connection."""
    caller._transport.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_caller_that_reads_nothing_receives_no_more_results(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Its calls wait and are then refused, while others are served; when it reads again, it is served."""
    edge = await start_edge(bounds=Bounds(session_bytes=4 * MIB, wait=1.0))
    edge.dispatcher.on("give", lambda: "x" * MIB)
    caller, other = await call_from(), await call_from()
    stop_reading(caller)
    calls = Calls(caller, 100, "rowcast.give")
    await until(lambda: edge.dispatch.meter.outcomes["refused"] > 0, 10)
    assert await other.call("rowcast.echo", 1) == 1
    assert len(await other.call("rowcast.give")) == MIB
    await until(lambda: not edge.dispatch.in_progress)
    resume_reading(caller)
    await gatherResults(calls.all)
    # The kernel's socket buffers take some results, too.
    assert 4 <= calls.answered <= 40
    assert calls.answered + len(calls.refused) == 100
    assert "bytes of unread answers" in calls.refused[0].args[0]
    assert len(await caller.call("rowcast.give")) == MIB


@pytest_twisted.ensureDeferred
async def test_callers_that_read_nothing_leave_room_for_another_session(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The total limit holds for any number of sessions, and a session that reads is served."""
    edge = await start_edge(bounds=Bounds(total_bytes=16 * MIB, wait=1.0))
    edge.dispatcher.on("give", lambda: "x" * (MIB // 4))
    idle = [await call_from() for _ in range(3)]
    other = await call_from()
    for caller in idle:
        stop_reading(caller)
    crowd = [Calls(caller, 200, "rowcast.give") for caller in idle]
    await until(lambda: edge.dispatch.meter.outcomes["refused"] > 0, 10)
    for _ in range(10):
        assert len(await other.call("rowcast.give")) == MIB // 4
    await until(lambda: not edge.dispatch.in_progress)
    for caller in idle:
        resume_reading(caller)
    for calls in crowd:
        await gatherResults(calls.all)
    assert sum(calls.answered for calls in crowd) <= 200


@pytest_twisted.ensureDeferred
async def test_reader_of_large_results_receives_all_of_them(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A caller that reads its results waits only briefly, and no call is refused."""
    await start_edge(bounds=Bounds(session_bytes=4 * MIB, total_bytes=16 * MIB))
    caller = await call_from()
    calls = Calls(caller, 60, "rowcast.echo", "x" * 60_000)
    await gatherResults(calls.all)
    assert calls.answered == 60


def stuck(service: Serving) -> bool:
    """Return whether calls wait for a worker, but only of callers that read nothing."""
    owners = {job.owner for job in service.pool.scheduler._jobs}
    return bool(owners) and all(
        owner is not None and owner.blocked and not owner.given for owner in owners
    )


def end_waiting(service: Serving) -> None:
    """Let the time end for which calls wait, as if `pool_timeout` were over."""
    jobs = service.pool.scheduler._jobs
    jobs |= dict.fromkeys((job for job in jobs if job.owner is not None), 0.0)
    for account in accounts_of(service)._of.values():
        account.waiting |= dict.fromkeys(account.waiting, 0.0)


def accounts_of(service: Serving) -> Accounts:
    """Return the accounts of the callers."""
    (callee,) = [each for each in service.client._observers if isinstance(each, Callee)]
    return callee._accounts


@pytest_twisted.ensureDeferred
async def test_rows_are_not_read_for_a_caller_that_takes_none(dsn: str, router: Router) -> None:
    """Most of its concurrent calls never reach a worker; others are served."""
    bounds = {"session_bytes": 8 * MIB, "total_bytes": 64 * MIB, "pool_timeout": 120}
    async with served(dsn, router, **bounds) as service:
        caller, other = [await join(router, "rawsocket cbor") for _ in range(2)]
        stop_reading(caller)
        calls = Calls(caller, UNDER_WAY, "rowcast.wide.find")
        await until(lambda: stuck(service))
        for _ in range(20):
            assert await other.call("rowcast.small.get", 1) == {"id": 1}
        end_waiting(service)
        while (await other.call("rowcast.stats"))["calls"]["in_progress"] > 1:
            pass
        resume_reading(caller)
        await gatherResults(calls.all)
        assert 2 <= calls.answered <= 25
        assert "bytes of unread answers" in calls.refused[-1].args[0]
        assert len((await caller.call("rowcast.wide.find"))["rows"]) == 1000
        await until(lambda: not service.pool.stats().waiting)
        await caller.close()
        await other.close()


@pytest_twisted.ensureDeferred
async def test_unread_results_of_a_session_that_leaves_are_freed(dsn: str, router: Router) -> None:
    """Unread results count until their callers are gone; a caller that reads is always served."""
    # Half of the total, and what seven jobs that have begun may still add to it, which is 28 MiB.
    bounds = {"session_bytes": 8 * MIB, "total_bytes": 64 * MIB, "pool_timeout": 120}
    async with served(dsn, router, **bounds) as service:
        idle = [await join(router, "rawsocket cbor") for _ in range(4)]
        other = await join(router, "rawsocket cbor")
        for caller in idle:
            stop_reading(caller)
            calls = Calls(caller, 20, "rowcast.wide.find")
            for call in calls.all:
                call.addErrback(lambda _: None)
        await until(lambda: stuck(service))
        for _ in range(20):
            assert await other.call("rowcast.small.get", 1) == {"id": 1}
        while (await other.call("rowcast.stats"))["calls"]["in_progress"] > 1:
            end_waiting(service)
            assert await other.call("rowcast.small.get", 1) == {"id": 1}
        for caller in idle:
            caller._transport.transport.abortConnection()
            await caller.gone
        await until(lambda: not accounts_of(service).unread)
        answers = [other.call("rowcast.wide.find") for _ in range(4)]
        assert [len(answer["rows"]) for answer in await gatherResults(answers)] == [1000] * 4
        await other.close()


@pytest_twisted.ensureDeferred
async def test_sessions_share_workers_fairly(dsn: str, router: Router) -> None:
    """A call is served after a few of the 400 earlier calls of another session, not after all of them."""
    async with served(dsn, router, pool_max=2, pool_timeout=60) as service:
        caller, other = [await join(router, "rawsocket cbor") for _ in range(2)]
        await other.call("rowcast.small.get", 1)
        calls = Calls(caller, 400, "rowcast.slow.find")
        await until(lambda: service.pool.stats().waiting > 20)
        before = calls.answered
        assert await other.call("rowcast.small.get", 1) == {"id": 1}
        assert calls.answered - before < 40
        await gatherResults(calls.all)
        assert calls.answered == 400
        await caller.close()
        await other.close()
