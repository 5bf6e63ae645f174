"""
What one caller may have under way, and that others are served meanwhile.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import CancelledError, gatherResults
from twisted.python.failure import Failure

from service.wamp.accounts import Bounds
from tests.conftest import Router
from tests.deferreds import pause, until
from tests.wamp.callers import Caller, join
from tests.wamp.conftest import Edge, Join, StartEdge
from tests.wamp.service import served

MIB = 2**20
SCHEMA = """
CREATE TABLE wide AS SELECT i AS id, repeat('x', 4000) AS body FROM generate_series(1, 1000) i;
CREATE TABLE small AS SELECT i AS id FROM generate_series(1, 10) i;
ALTER TABLE small ADD PRIMARY KEY (id);
CREATE VIEW slow AS SELECT 1 AS id FROM pg_sleep(0.01);
"""


class Calls:
    """Calls of one caller, and how they end."""

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
        """Wait until so many have begun with the dispatcher, and so many were refused."""
        await until(lambda: (len(edge.dispatcher.waiting), len(self.refused)) == (running, refused))


@pytest_twisted.ensureDeferred
async def test_calls_of_a_session_beyond_the_bound_are_refused(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The first five run, the next two are refused before any work; others are served."""
    edge = await start_edge(bounds=Bounds(session_calls=5))
    caller, other = await call_from(), await call_from()
    calls = Calls(caller, 7, "rowcast.wait")
    await calls.seen(edge, 5, 2)
    assert edge.dispatcher.calls == 5
    assert calls.refused[0].args == ("as many calls are under way as may be (5 of this session)",)
    assert await other.call("rowcast.echo", 1) == 1
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert calls.answered == 5
    assert await caller.call("rowcast.echo", 2) == 2
    assert edge.dispatch.meter.outcomes == {"answered": 7, "refused": 2}


@pytest_twisted.ensureDeferred
async def test_client_with_very_many_calls_is_read_no_further(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The router leaves in its socket what would stand before others' calls, and reads on as it is answered."""
    edge = await start_edge(bounds=Bounds(running=5_000, wait=60.0))
    caller, other = await call_from(), await call_from("websocket json")
    calls = Calls(caller, 2_000, "rowcast.wait")
    await until(lambda: len(edge.dispatcher.waiting) >= 256)
    for n in range(50):
        assert await other.call("rowcast.echo", n) == n
    assert len(edge.dispatcher.waiting) < 500
    while calls.answered < 2_000:
        assert len(edge.dispatcher.waiting) < 500
        edge.dispatcher.release()
        await pause(0.005)
    assert not calls.refused


@pytest.mark.parametrize("how", ["calls with progress", "a session that others call"])
@pytest_twisted.ensureDeferred
async def test_session_that_has_to_be_heard_is_read_on(
    start_edge: StartEdge, call_from: Join, router: Router, how: str
) -> None:
    """Who watches has to be able to cancel, and who is called to answer, however many calls it has."""
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
async def test_large_answer_costs_no_more_than_small_ones_of_its_size(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The router reads large answers in large pieces: it copies what it has of one with each."""
    from twisted.internet import reactor

    edge, caller = await start_edge(), await call_from()
    edge.dispatcher.on("large", lambda: "x" * 7 * MIB)
    edge.dispatcher.on("small", lambda: "x" * (MIB // 2))

    async def fastest(count: int, uri: str) -> float:
        times = []
        for _ in range(5):
            began = reactor.seconds()  # type: ignore[attr-defined]
            for _ in range(count):
                await caller.call(uri)
            times.append(reactor.seconds() - began)  # type: ignore[attr-defined]
        return min(times)

    # In pieces of 4 KiB it was 13 to 20 times as much, and is 2.5 to 5 times.
    assert await fastest(1, "rowcast.large") < 10 * await fastest(14, "rowcast.small")


@pytest_twisted.ensureDeferred
async def test_calls_of_all_leave_room_for_another_session(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A session may have half of what is left: there is something for the next, to the last."""
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
async def test_calls_beyond_those_that_run_wait_in_order(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Two run, the others wait: one is cancelled and never begins, the rest follow."""
    edge = await start_edge(bounds=Bounds(running=2))
    caller = await call_from()
    calls = Calls(caller, 2, "rowcast.wait")
    given_up = caller.call("rowcast.wait")
    ends: list[int] = []
    rest = [caller.call("rowcast.echo", n).addCallback(ends.append) for n in range(100)]
    await until(lambda: edge.dispatch.in_progress == 103)
    assert edge.dispatcher.calls == 2
    given_up.cancel()
    with pytest.raises(CancelledError):
        await given_up
    await until(lambda: edge.dispatch.in_progress == 102)
    assert not ends
    edge.dispatcher.release()
    await gatherResults([*calls.all, *rest])
    assert ends == [*range(100)]
    assert edge.dispatcher.calls == 102


@pytest_twisted.ensureDeferred
async def test_call_that_waits_too_long_is_refused(start_edge: StartEdge, call_from: Join) -> None:
    """What has not begun in time is refused without any work; what runs goes on."""
    edge = await start_edge(bounds=Bounds(running=2, wait=0.3))
    calls = Calls(await call_from(), 5, "rowcast.wait")
    await calls.seen(edge, 2, 3)
    assert edge.dispatcher.calls == 2
    assert calls.refused[0].args == (
        "2 calls of this session are running; this one has waited too long",
    )
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert calls.answered == 2


@pytest_twisted.ensureDeferred
async def test_arguments_beyond_the_bound_are_refused(
    start_edge: StartEdge, call_from: Join
) -> None:
    """What arguments weigh counts while their calls run; one call alone may be of any size."""
    edge = await start_edge(bounds=Bounds(session_bytes=MIB, total_bytes=4 * MIB))
    caller, other = await call_from(), await call_from()
    calls = Calls(caller, 3, "rowcast.wait", "x" * 700_000)
    await calls.seen(edge, 1, 2)
    assert calls.refused[0].args == ("the arguments of calls under way weigh as much as may be",)
    assert len(await other.call("rowcast.echo", "x" * 3 * MIB)) == 3 * MIB
    edge.dispatcher.release()
    await gatherResults(calls.all)
    assert len(await caller.call("rowcast.echo", "x" * 3 * MIB)) == 3 * MIB


def stop_reading(caller: Caller) -> None:
    """Take nothing any more."""
    caller._transport.transport.pauseProducing()


def read_on(caller: Caller) -> None:
    """Take what there is."""
    caller._transport.transport.resumeProducing()


@pytest_twisted.ensureDeferred
async def test_caller_that_reads_nothing_is_sent_no_more(
    start_edge: StartEdge, call_from: Join
) -> None:
    """Its calls wait, then are refused, while others are served; when it reads, it is served."""
    edge = await start_edge(bounds=Bounds(session_bytes=4 * MIB, wait=1.0))
    edge.dispatcher.on("give", lambda: "x" * MIB)
    caller, other = await call_from(), await call_from()
    stop_reading(caller)
    calls = Calls(caller, 100, "rowcast.give")
    await until(lambda: edge.dispatch.meter.outcomes["refused"] > 0, 10)
    assert await other.call("rowcast.echo", 1) == 1
    assert len(await other.call("rowcast.give")) == MIB
    await until(lambda: not edge.dispatch.in_progress, 10)
    read_on(caller)
    await gatherResults(calls.all)
    # The kernel's buffers take some, too.
    assert 4 <= calls.answered <= 40
    assert calls.answered + len(calls.refused) == 100
    assert "answers to take before it gets more" in calls.refused[0].args[0]
    assert len(await caller.call("rowcast.give")) == MIB


@pytest_twisted.ensureDeferred
async def test_callers_that_read_nothing_leave_room_for_another_session(
    start_edge: StartEdge, call_from: Join
) -> None:
    """The bound of all holds for any number of sessions, and one that reads is served."""
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
    await until(lambda: not edge.dispatch.in_progress, 10)
    for caller in idle:
        read_on(caller)
    for calls in crowd:
        await gatherResults(calls.all)
    assert sum(calls.answered for calls in crowd) <= 200


@pytest_twisted.ensureDeferred
async def test_reader_of_large_answers_gets_them_all(
    start_edge: StartEdge, call_from: Join
) -> None:
    """A caller that takes what it is sent waits a little at most, and is refused nothing."""
    await start_edge(bounds=Bounds(session_bytes=4 * MIB, total_bytes=16 * MIB))
    caller = await call_from()
    calls = Calls(caller, 60, "rowcast.echo", "x" * 60_000)
    await gatherResults(calls.all)
    assert calls.answered == 60


@pytest_twisted.ensureDeferred
async def test_rows_are_not_read_for_a_caller_that_takes_none(dsn: str, router: Router) -> None:
    """Of 60 calls that were begun at once most never reach a worker; others are served."""
    bounds = {"session_bytes": 8 * MIB, "total_bytes": 64 * MIB, "pool_timeout": 1}
    async with served(dsn, router, **bounds) as service:
        caller, other = [await join(router, "rawsocket cbor") for _ in range(2)]
        stop_reading(caller)
        calls = Calls(caller, 60, "rowcast.wide.find")
        stats: dict[str, Any] = {}
        for _ in range(20):
            assert await other.call("rowcast.small.get", 1) == {"id": 1}
        while not stats.get("outcomes", {}).get("refused"):
            stats = (await other.call("rowcast.stats"))["calls"]
        while stats["in_progress"] > 1:
            stats = (await other.call("rowcast.stats"))["calls"]
        read_on(caller)
        await gatherResults(calls.all)
        assert 2 <= calls.answered <= 25
        assert "answers to take" in calls.refused[-1].args[0]
        assert len((await caller.call("rowcast.wide.find"))["rows"]) == 1000
        assert not service.pool.stats().waiting
        await caller.close()
        await other.close()


@pytest_twisted.ensureDeferred
async def test_sessions_that_leave_free_what_they_have_not_taken(dsn: str, router: Router) -> None:
    """What lies for callers counts until they are gone; one that reads is served all the time."""
    bounds = {"session_bytes": 8 * MIB, "total_bytes": 32 * MIB, "pool_timeout": 1}
    async with served(dsn, router, **bounds):
        idle = [await join(router, "rawsocket cbor") for _ in range(4)]
        other = await join(router, "rawsocket cbor")
        for caller in idle:
            stop_reading(caller)
            calls = Calls(caller, 20, "rowcast.wide.find")
            for call in calls.all:
                call.addErrback(lambda _: None)
        while (await other.call("rowcast.stats"))["calls"]["in_progress"] > 1:
            assert await other.call("rowcast.small.get", 1) == {"id": 1}
        for caller in idle:
            caller._transport.transport.abortConnection()
            await caller.gone
        answers = [other.call("rowcast.wide.find") for _ in range(4)]
        assert [len(answer["rows"]) for answer in await gatherResults(answers)] == [1000] * 4
        await other.close()


@pytest_twisted.ensureDeferred
async def test_sessions_have_workers_in_turn(dsn: str, router: Router) -> None:
    """A call is served after a few of another's 400 that came before, not after all of them."""
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
