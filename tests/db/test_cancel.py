"""
Cancelling queries: on the server, quickly, and never another session's query.
"""

from __future__ import annotations

import random
import time
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults

from service.db import worker
from service.db.connection import PgConnection
from service.errors import StatementTimeout
from tests.conftest import execute
from tests.db.lag import LagProbe
from tests.db.relay import Relay
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until


def running(dsn: str, part: str) -> bool:
    """Return whether the server runs a statement that contains a text."""
    sql = (
        "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'active'"
        f" AND query LIKE '%{part}%'"
    )
    return bool(execute(dsn, sql))


@pytest_twisted.ensureDeferred
async def test_query_that_is_cancelled_stops_on_the_server(dsn: str) -> None:
    """The caller continues at once, and the connection is released at once."""
    async with database_at(dsn, most=1) as database:
        call = database.statement("SELECT pg_sleep(11)")
        await until(lambda: running(dsn, "pg_sleep(11)"))
        call.cancel()
        assert isinstance(await failure_of(call), CancelledError)
        assert await database.statement("SELECT 1", timeout=2) == [(1,)]
        assert not running(dsn, "pg_sleep(11)")


@pytest_twisted.ensureDeferred
async def test_cancelled_callers_leave_the_queue(dsn: str) -> None:
    async with database_at(dsn, most=2) as database:
        calls = [database.statement("SELECT pg_sleep(20)") for _ in range(20)]
        await until(lambda: running(dsn, "pg_sleep(20)"))
        outcomes = [ensureDeferred(failure_of(call)) for call in calls]
        started = time.monotonic()
        for call in calls:
            call.cancel()
        await database.statement("SELECT 1")
        assert time.monotonic() - started < 10
        await gatherResults(outcomes)


@pytest_twisted.ensureDeferred
async def test_function_that_is_cancelled_commits_nothing(dsn: str) -> None:
    """A function cancelled between two statements is stopped at the next one and rolled back."""

    def slow_txn(connection: PgConnection) -> None:
        connection.command("INSERT INTO half VALUES (1)")
        time.sleep(0.3)
        connection.command("INSERT INTO half VALUES (2)")

    async with database_at(dsn) as database:
        await database.statement("CREATE TABLE half (id int)")
        call = database.atomic(slow_txn)
        await pause(0.1)
        call.cancel()
        assert isinstance(await failure_of(call), CancelledError)
        await until(lambda: database.pool.stats().busy == 0)
        assert await database.statement("SELECT count(*) FROM half") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_transaction_that_is_cancelled_is_rolled_back(dsn: str) -> None:
    """A task cancelled inside a transaction rolls it back."""
    async with database_at(dsn) as database:
        await database.statement("CREATE TABLE undone (id int)")

        async def work() -> None:
            async with database.transaction():
                await database.statement("INSERT INTO undone VALUES (1)")
                await database.statement("SELECT pg_sleep(12)")

        task = ensureDeferred(work())
        await until(lambda: running(dsn, "pg_sleep(12)"))
        task.cancel()
        assert isinstance(await failure_of(task), CancelledError)
        assert await database.statement("SELECT count(*) FROM undone") == [(0,)]
        await until(lambda: database.pool.stats().busy == 0)


@pytest_twisted.ensureDeferred
async def test_query_beside_many_cancelled_ones_gets_its_own_answer(dsn: str) -> None:
    """During thousands of cancellations at random times, each other query gets its own result."""
    random.seed(4)
    cancelled = right = 0
    async with database_at(dsn, most=4) as database:
        end = reactor.seconds() + 3

        async def cancel_at_random() -> None:
            nonlocal cancelled
            while reactor.seconds() < end:
                call = database.statement("SELECT pg_sleep(%s)", [random.random() * 0.002])
                call.addErrback(lambda reason: reason.trap(CancelledError) and None)
                await pause(random.random() * 0.002)
                cancelled += not call.called
                call.cancel()

        async def uncancelled(number: int) -> None:
            nonlocal right
            while reactor.seconds() < end:
                assert await database.statement("SELECT %s", [number]) == [(number,)]
                right += 1

        tasks = [cancel_at_random() for _ in range(6)] + [
            uncancelled(number) for number in range(6)
        ]
        await gatherResults([ensureDeferred(task) for task in tasks])
    assert cancelled > 300
    assert right > 300


@pytest_twisted.ensureDeferred
async def test_cancel_over_a_slow_network_does_not_stop_the_reactor(dsn: str) -> None:
    """While a cancel request is in flight, the reactor is not blocked."""
    with Relay(dsn, slow_cancel=2) as relay:
        async with database_at(relay.dsn) as database:
            call = database.statement("SELECT pg_sleep(13)")
            await until(lambda: running(dsn, "pg_sleep(13)"))
            with LagProbe(reactor) as probe:
                call.cancel()
                assert isinstance(await failure_of(call), CancelledError)
                await pause(0.3)
                assert await database.statement("SELECT 1") == [(1,)]
            assert probe.own(1) < 1
            await until(lambda: not running(dsn, "pg_sleep(13)"))


@pytest_twisted.ensureDeferred
async def test_read_that_is_cancelled_is_not_run_again(dsn: str) -> None:
    async with database_at(dsn) as database:
        call = database.statement("SELECT pg_sleep(14)", retry=True)
        await until(lambda: running(dsn, "pg_sleep(14)"))
        call.cancel()
        assert not isinstance(await failure_of(call), psycopg2.Error)
        await until(lambda: database.pool.stats().busy == 0)


@pytest_twisted.ensureDeferred
async def test_job_stopped_while_it_connects_never_runs(dsn: str) -> None:
    """A write whose caller has received a timeout does not run afterwards."""
    execute(dsn, "CREATE TABLE too_late (id int)")

    def slowly() -> str:
        time.sleep(0.3)
        return dsn

    async with database_at(slowly, most=1) as database:
        call = database.statement("INSERT INTO too_late VALUES (1)", timeout=0.1)
        assert isinstance(await failure_of(call), StatementTimeout)
        assert await database.statement("SELECT count(*) FROM too_late") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_cancel_without_libpq_stops_the_query(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If psycopg2's libpq cannot be loaded, its own `cancel` is used."""
    monkeypatch.setattr(worker, "_LIBPQ", None)
    async with database_at(dsn, most=1) as database:
        call = database.statement("SELECT pg_sleep(15)")
        await until(lambda: running(dsn, "pg_sleep(15)"))
        call.cancel()
        await failure_of(call)
        assert await database.statement("SELECT 1", timeout=2) == [(1,)]


@pytest.mark.parametrize("libpq", [True, False])
@pytest_twisted.ensureDeferred
async def test_cancel_that_cannot_be_sent_does_not_block_the_next(
    libpq: bool, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancelled job ends with its connection, and a thread is free for the next cancel request."""
    if not libpq:
        monkeypatch.setattr(worker, "_LIBPQ", None)
    where = [dsn]
    async with database_at(lambda: where[0], most=1) as database:

        async def stop_in_time(call: Deferred[Any]) -> None:
            call.cancel()
            await failure_of(call)
            await until(lambda: not database.pool.stats().busy, 8)

        with Relay(dsn) as relay:
            where[0] = relay.dsn
            call = database.statement("SELECT pg_sleep(16)")
            await until(lambda: running(dsn, "pg_sleep(16)"))
        where[0] = dsn  # the relay no longer listens
        await stop_in_time(call)
        call = database.statement("SELECT pg_sleep(17)")
        await until(lambda: running(dsn, "pg_sleep(17)"))
        await stop_in_time(call)


@pytest_twisted.ensureDeferred
async def test_transaction_cancelled_before_it_began_is_free_at_once(dsn: str) -> None:
    """A task cancelled while its transaction waits for a worker ends at once."""
    async with database_at(dsn, most=1) as database:
        slow = database.statement("SELECT pg_sleep(2)")

        async def work() -> None:
            async with database.transaction():
                await database.statement("CREATE TABLE never (id int)")

        task = ensureDeferred(work())
        await pause(0.1)
        task.cancel()
        assert isinstance(await failure_of(task), CancelledError)
        assert not slow.called
        await slow
        assert await database.statement("SELECT to_regclass('never')") == [(None,)]
