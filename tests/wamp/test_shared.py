"""
Two services with shared registrations: state of one service can be reached through both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList

from schema.changes import track_table
from service.api.leases import new_process
from service.app import Serving
from tests.conftest import Router, crossbar_running, execute
from tests.deferreds import failure_of, until
from tests.wamp.callers import Caller, join, refusal_of
from tests.wamp.conftest import Join
from tests.wamp.replica import replica
from tests.wamp.service import served

IMPORT = "rowcast.copies.import"


@pytest.fixture(autouse=True)
def table(dsn: str) -> None:
    execute(dsn, "DROP TABLE IF EXISTS copies; CREATE TABLE copies (id int PRIMARY KEY, name text)")


@pytest_twisted.async_yield_fixture
async def two(dsn: str, router: Router, table: None) -> AsyncIterator[list[Serving]]:
    """Serve the database with two services."""
    async with served(dsn, router, shared=True) as one, served(dsn, router, shared=True) as other:
        yield [one, other]


def uploads(services: list[Serving]) -> list[int]:
    """Return the number of open uploads of each service."""
    return [len(each.dispatcher._importing.uploads) for each in services]


def kept(dsn: str) -> list[Any]:
    return [id for (id,) in execute(dsn, "SELECT id FROM copies ORDER BY id")]


@pytest_twisted.ensureDeferred
async def test_upload_continues_through_each_service(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    """Whichever service receives a call, its rows reach the one COPY; two uploads run at the same time."""
    caller: Caller = await call_from()
    begun = [
        await caller.call(IMPORT, [{"id": n * 100, "name": None}], done=False) for n in range(2)
    ]
    assert sorted(uploads(two)) == [1, 1]
    for n in range(1, 11):
        for at, upload in enumerate(begun):
            answer = await caller.call(IMPORT, [{"id": at * 100 + n, "name": "é"}], **upload)
            assert answer == upload
        await caller.call("rowcast.copies.count")  # so that each call reaches each service in turn
        if n == 5:
            assert kept(dsn) == []
    for at, upload in enumerate(begun):
        answer = await caller.call(
            IMPORT, [{"id": at * 100 + 99, "name": "z"}], done=True, **upload
        )
        assert answer == {"rows": 12}
    assert kept(dsn) == [*range(11), 99, *range(100, 111), 199]
    assert uploads(two) == [0, 0]


@pytest_twisted.ensureDeferred
async def test_errors_are_relayed_completely(dsn: str, two: list[Serving], call_from: Join) -> None:
    """Through each service: the error that ends an upload, and the refusal of calls after it."""
    caller = await call_from()
    for _ in range(2):
        begun = await caller.call(IMPORT, [{"id": 1}, {"id": 2}], done=False)
        await caller.call("rowcast.copies.count")
        error = await refusal_of(caller.call(IMPORT, [{"id": "x"}], **begun))
        assert error.error == "wamp.error.invalid_argument"
        assert error.kwargs["path"] == "rows.0.id"
        assert error.kwargs["line"] == 3
        gone = [await refusal_of(caller.call(IMPORT, [], **begun)) for _ in range(2)]
        assert {each.error for each in gone} == {"wamp.error.invalid_argument"}
        assert {each.kwargs["path"] for each in gone} == {"upload"}
        await caller.call("rowcast.copies.count")
    assert uploads(two) == [0, 0]
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_upload_belongs_to_its_session_at_each_service(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    owner, other = await call_from(), await call_from()
    begun = await owner.call(IMPORT, [{"id": 1}], done=False)
    for _ in range(3):
        error = await refusal_of(other.call(IMPORT, [{"id": 2}], **begun))
        assert error.error == "wamp.error.not_authorized"
    assert await owner.call(IMPORT, done=True, **begun) == {"rows": 1}


@pytest.mark.parametrize("how", ["leaves", "vanishes"])
@pytest_twisted.ensureDeferred
async def test_uploads_of_a_lost_caller_end_at_the_service_that_has_them(
    how: str, two: list[Serving], router: Router
) -> None:
    caller = await join(router, "rawsocket cbor")
    for n in range(2):
        await caller.call(IMPORT, [{"id": n}], done=False)
    assert uploads(two) == [1, 1]
    caller._transport.abort() if how == "vanishes" else caller.leave()
    await until(lambda: uploads(two) == [0, 0])
    await until(lambda: not any(each.pool.stats().busy for each in two))
    await caller.close()


@pytest_twisted.ensureDeferred
async def test_calls_that_may_overtake_each_other_are_refused(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    """The router alternates between services, so a part could arrive before its predecessor."""
    caller = await call_from()
    begun = await caller.call(IMPORT, csv="id\n1\n", done=False)
    calls = [caller.call(IMPORT, csv=f"{n}\n", **begun) for n in range(2, 12)]
    outcomes = await DeferredList(calls, consumeErrors=True)
    assert not all(success for success, _ in outcomes)
    error = await refusal_of(caller.call(IMPORT, done=True, **begun))
    assert error.error == "wamp.error.invalid_argument"
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_cancelled_call_ends_the_upload_through_each_service(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    """The rows wait for a lock; cancelling the call cancels the upload at the service that has it."""
    caller = await call_from()
    for _ in range(2):
        begun = await caller.call(IMPORT, [{"id": 1}], done=False)
        await caller.call("rowcast.copies.count")
        lock = inserted(dsn)
        call = caller.call(IMPORT, [{"id": 7}] * 5000, done=True, **begun)
        await until(lambda: len(waiting(dsn)) == 1)
        call.cancel()
        assert isinstance(await failure_of(call), BaseException)
        await until(lambda: uploads(two) == [0, 0])
        await until(lambda: not waiting(dsn))
        lock.close()
        await caller.call("rowcast.copies.count")
    assert kept(dsn) == []


def inserted(dsn: str) -> Any:
    """Insert a row without committing it, so that an insert of the same key waits."""
    connection = psycopg2.connect(dsn)
    connection.cursor().execute("INSERT INTO copies VALUES (7)")
    return connection


def waiting(dsn: str) -> list[Any]:
    return execute(
        dsn,
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()",
    )


@pytest_twisted.ensureDeferred
async def test_call_passed_on_by_a_client_is_not_authorized(
    dsn: str, two: list[Serving], call_from: Join
) -> None:
    """A client that knows an upload, its process and its session cannot use it."""
    owner, thief = await call_from(), await call_from()
    begun = await owner.call(IMPORT, [{"id": 1}], done=False)
    process = begun["upload"].partition(".")[0]
    for caller in (thief, owner):
        error = await refusal_of(
            caller.call(
                f"rowcast.tx.{process}",
                "copies.import",
                [[{"id": 2}]],
                {"done": True, **begun},
                owner._session_id,
            )
        )
        assert error.error == "wamp.error.not_authorized"
    service = await join_as_service(call_from)
    for name, session in (("copies.count", owner._session_id), ("copies.import", 1)):
        error = await refusal_of(
            service.call(f"rowcast.tx.{process}", name, [], {"done": True, **begun}, session)
        )
        assert error.error == "wamp.error.not_authorized"
    assert await owner.call(IMPORT, done=True, **begun) == {"rows": 1}


async def join_as_service(call_from: Join) -> Caller:
    """Join through the private socket, with the service's role."""
    caller: Caller = await call_from("service cbor")
    return caller


@pytest_twisted.ensureDeferred
async def test_unknown_process_is_a_conflict(two: list[Serving], call_from: Join) -> None:
    """This holds for processes that have existed and others, and for each call."""
    caller = await call_from()
    process = new_process()
    for _ in range(2):
        error = await refusal_of(caller.call(IMPORT, upload=f"{process}.{'x' * 24}", done=True))
        assert (error.error, error.kwargs["reason"]) == ("rowcast.error.conflict", "stopped")
        error = await refusal_of(caller.call(f"rowcast.tx.{process}.{'x' * 24}.commit"))
        assert (error.error, error.kwargs["reason"]) == ("rowcast.error.conflict", "stopped")


@pytest.fixture
def other_router() -> Iterator[Router]:
    """Run another router, without a link to the first one."""
    with crossbar_running() as found:
        yield found


@pytest_twisted.ensureDeferred
async def test_why_says_whether_the_leader_is_at_this_router(
    dsn: str, router: Router, other_router: Router
) -> None:
    """The leader publishes events only at its own router."""
    track_table(dsn, "copies", "full", True)

    async def leader_check(at: Router) -> tuple[bool | None, str]:
        caller = await join(at, "websocket cbor")
        found = await caller.call("rowcast.why", "copies")
        await caller.leave()
        last = found["checks"][-1]
        return last["ok"], last["text"]

    async with served(dsn, router, shared=True) as leader:
        await until(lambda: leader.feed.leading)
        process = leader.dispatcher._importing.uploads.process
        assert (await leader_check(router))[1].startswith("this service leads")
        async with served(dsn, other_router, shared=True):
            elsewhere = (
                f"process {process} leads, at another router: no event is published at this one"
            )
            assert await leader_check(other_router) == (False, elsewhere)
    # A leader is found here by its registration, at this router or at a linked one.
    async with (
        served(dsn, router, shared=True) as leader,
        served(dsn, router, shared=True) as follower,
    ):
        await until(lambda: leader.feed.leading or follower.feed.leading)
        texts = set()
        while len(texts) < 2:  # shared calls alternate between the services
            ok, text = await leader_check(router)
            assert ok
            texts.add(text.partition(":")[0])
        led = (leader if leader.feed.leading else follower).dispatcher._importing.uploads.process
        there = f"process {led} leads, at this router or one that is linked with it"
        assert texts == {"this service leads", there}


@pytest_twisted.ensureDeferred
async def test_uploads_of_a_killed_service_end(dsn: str, router: Router, call_from: Join) -> None:
    """The remaining service reports it to the caller, both between calls and during one."""
    async with served(dsn, router, shared=True) as here:
        remote = replica(dsn, router)
        await remote.ready
        caller, other = await call_from(), await call_from()
        begun = [await caller.call(IMPORT, [{"id": n}], done=False) for n in range(4)]
        own = here.dispatcher._importing.uploads.process
        ours, theirs = begun[::2], begun[1::2]
        if theirs[0]["upload"].startswith(own):
            ours, theirs = theirs, ours
        idle = [await other.call(IMPORT, [{"id": n}], done=False) for n in (5, 6)]
        if begun[0] in theirs:
            await caller.call("rowcast.copies.count")
        lock = inserted(dsn)
        calls = [caller.call(IMPORT, [{"id": 7}], done=True, **each) for each in theirs]
        await until(lambda: len(waiting(dsn)) == 2)
        await remote.kill()
        outcomes = [(await refusal_of(call)).error for call in calls]
        assert outcomes == ["rowcast.error.outcome_unknown", "wamp.error.canceled"]
        lock.close()
        (gone,) = [each for each in idle if not each["upload"].startswith(own)]
        error = await refusal_of(other.call(IMPORT, [{"id": 8}], **gone))
        assert (error.error, error.kwargs["reason"]) == ("rowcast.error.conflict", "stopped")
        for each in ours:
            assert await caller.call(IMPORT, done=True, **each) == {"rows": 1}
        assert len(kept(dsn)) == 2
