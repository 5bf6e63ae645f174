"""
Idempotency keys through a real router: calls that are repeated after failures.
"""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from twisted.internet.defer import Deferred, gatherResults

from schema.own import MAKE
from service.app import Serving
from tests.conftest import Router, execute
from tests.db.relay import Relay
from tests.deferreds import failure_of, until
from tests.wamp.callers import KINDS, join
from tests.wamp.conftest import Join
from tests.wamp.replica import replica
from tests.wamp.service import served

SCHEMA = (
    MAKE
    + """;
CREATE TABLE notes (id serial PRIMARY KEY, note text, raw bytea, n numeric, lot float DEFAULT random());
CREATE FUNCTION slow(seconds float) RETURNS float LANGUAGE sql AS $$
    INSERT INTO notes (note) VALUES ('slow'); SELECT random() FROM pg_sleep(seconds) $$;
"""
)
SLEEPING = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
)
NAMED = "service cbor"
"""The way of a caller that is not anonymous."""


@pytest.fixture(autouse=True)
def empty(dsn: str) -> None:
    execute(dsn, "TRUNCATE notes, rowcast.idempotency_keys RESTART IDENTITY")


def count(dsn: str) -> Any:
    return execute(dsn, "SELECT count(*) FROM notes")[0][0]


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_anonymous_caller_is_refused(
    dsn: str, service: Serving, router: Router, how: str
) -> None:
    """At the development router all callers are anonymous, with a new authid in each session."""
    caller = await join(router, how)
    try:
        call = caller.call("rowcast.notes.create", {"note": "x"}, idempotency_key="k")
        error = await failure_of(call)
        assert isinstance(error, ApplicationError)
        assert error.error == "wamp.error.not_authorized"
        assert count(dsn) == 0
    finally:
        await caller.close()


@pytest_twisted.ensureDeferred
async def test_second_call_with_a_key_returns_the_first_result_through_a_router(
    dsn: str, service: Serving, call_from: Join
) -> None:
    caller = await call_from(NAMED)
    row = {"note": "x", "raw": b"\0\xff", "n": "12.50"}
    for form in ("dicts", "lists", "json"):
        one, two = [
            await caller.call("rowcast.notes.create", row, form=form, idempotency_key=form)
            for _ in range(2)
        ]
        assert one == two
    assert count(dsn) == 3


@pytest.mark.parametrize("batch", [False, True])
@pytest_twisted.ensureDeferred
async def test_call_repeated_after_a_commit_lost_its_connection_is_written_once(
    dsn: str, router: Router, call_from: Join, batch: bool
) -> None:
    """Whether COMMIT has arrived or not, the row is written once, and the repeated call has its result."""
    caller = await call_from(NAMED)
    call = [{"call": "notes.create", "args": [{"note": "x"}], "kwargs": {"select": ["note"]}}]
    with Relay(dsn) as relay:
        # PostgreSQL ends a transaction without COMMIT after its idle time; the repeated call waits for that.
        async with served(relay.dsn, router, pool_max=1, tx_idle_timeout=3) as serving:
            for arrives in (False, True):

                def make(key: str) -> Deferred[Any]:
                    if batch:
                        return caller.call("rowcast.transaction", call, idempotency_key=key)
                    args = {"note": "x"}
                    name = "rowcast.notes.create"
                    return caller.call(name, args, select=["note"], idempotency_key=key)

                key, before = f"{arrives}", count(dsn)
                # The stored result identifies the query, because the statement may be prepared.
                relay.lose(cbor2.dumps({"note": "x"}).hex().encode(), arrives)
                error = await failure_of(make(key))
                assert isinstance(error, ApplicationError)
                assert error.error == "rowcast.error.outcome_unknown"
                await until(lambda: relay.lost)
                assert count(dsn) == before + arrives
                await until(lambda: serving.dispatcher.ready)
                found = await make(key)
                assert found == ([{"note": "x"}] if batch else {"note": "x"})
                assert count(dsn) == before + 1


@pytest_twisted.ensureDeferred
async def test_call_repeated_after_its_service_was_killed_is_written_once(
    dsn: str, router: Router, call_from: Join
) -> None:
    """The other service runs the interrupted call, and no completed call again."""
    caller = await call_from(NAMED)
    first = replica(dsn, router)
    await first.ready
    done = await caller.call("rowcast.notes.create", {"note": "x"}, idempotency_key="done")
    running = caller.call("rowcast.fn.slow", seconds=60.0, idempotency_key="running")
    await until(lambda: execute(dsn, SLEEPING))
    await first.kill()
    assert isinstance(await failure_of(running), ApplicationError)
    second = replica(dsn, router)
    await second.ready
    try:
        assert (
            await caller.call("rowcast.notes.create", {"note": "x"}, idempotency_key="done") == done
        )
        assert count(dsn) == 1
        await until(lambda: not execute(dsn, SLEEPING))
        found = await gatherResults(
            [
                caller.call("rowcast.fn.slow", seconds=0.1, idempotency_key="running")
                for _ in range(4)
            ]
        )
        assert len(set(found)) == 1
        assert count(dsn) == 2
    finally:
        await second.kill()


@pytest_twisted.ensureDeferred
async def test_duplicates_at_two_services_are_one_call(
    dsn: str, router: Router, call_from: Join
) -> None:
    caller = await call_from(NAMED)
    async with served(dsn, router, shared=True), served(dsn, router, shared=True):
        found = await gatherResults(
            [caller.call("rowcast.fn.slow", seconds=0.3, idempotency_key="k") for _ in range(8)]
        )
    assert len(set(found)) == 1
    assert count(dsn) == 1
