"""
The pool: one round trip per statement, limits, timeouts, dead connections, graceful close.
"""

from __future__ import annotations

import gc
import threading
import time
from contextvars import copy_context
from typing import Any
from weakref import ref

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, FirstError, ensureDeferred, gatherResults

from service.db.connection import PgConnection
from service.db.database import Database
from service.db.pool import AHEAD, READY, PgPool
from service.db.session_settings import SessionSettings, open_session
from service.db.worker import JOB_OWNER, PoolLimits
from service.errors import OutcomeUnknown, StatementTimeout, Unavailable
from service.waiting import in_thread
from tests.conftest import execute
from tests.db.lag import LagProbe, least_lag
from tests.db.relay import CLEANING, Relay
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until

SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Given:
    """An argument."""


def kill_sessions(dsn: str) -> None:
    execute(dsn, f"SELECT pg_terminate_backend(pid) {SESSIONS}")


def begun(dsn: str, part: str) -> bool:
    """Return whether the server runs a statement that contains a text."""
    return bool(execute(dsn, f"SELECT 1 {SESSIONS} AND state = 'active' AND query LIKE '%{part}%'"))


@pytest_twisted.ensureDeferred
async def test_statement_in_autocommit_is_one_message(dsn: str) -> None:
    """A single statement is sent without BEGIN and COMMIT, and the session is reset."""
    with Relay(dsn) as relay:
        async with database_at(relay.dsn, most=1) as database:
            await database.statement("SELECT 1")
            before = len(relay.messages)
            await database.statement("SELECT 2")
            await database.statement("SELECT 3")
        sent = relay.messages[before:]
        assert sent[::2] == [b"SELECT 2", b"SELECT 3"]
        assert [each.startswith(CLEANING) for each in sent] == [False, True] * 2


@pytest.mark.parametrize("inside", [False, True])
@pytest_twisted.ensureDeferred
async def test_worker_without_a_job_keeps_no_result(dsn: str, inside: bool) -> None:
    """A large result would occupy memory until the next call, or while a transaction is idle."""

    class Result:
        pass

    async def answered(database: Database) -> Any:
        return ref(await database.run(lambda connection: Result()))

    async with database_at(dsn, most=2) as database:
        if not inside:
            found = await answered(database)
            await until(lambda: found() is None)
            return
        async with database.transaction():
            found = await answered(database)
            await until(lambda: found() is None)


@pytest_twisted.ensureDeferred
async def test_job_that_is_done_is_freed_without_a_collection(dsn: str) -> None:
    """The job is freed with its arguments by reference counts: a full garbage collection blocks for longer."""
    async with database_at(dsn, most=1) as database:
        given = Given()
        seen = ref(given)
        gc.collect()
        gc.disable()
        try:
            await database.run(lambda connection, given: None, given)
            del given
            await until(lambda: seen() is None)
        finally:
            gc.enable()


@pytest_twisted.ensureDeferred
async def test_session_of_any_age_has_the_settings(dsn: str) -> None:
    """Limits and formats are set in each session, and the user's own options are kept."""
    given = psycopg2.extensions.make_dsn(
        dsn, options="-c timezone=Asia/Tokyo -c work_mem=7MB", application_name="mine"
    )
    async with database_at(given, SessionSettings(3, 2, 1)) as database:
        rows = await database.statement(
            "SELECT name, setting FROM pg_settings WHERE name IN ('TimeZone', 'work_mem',"
            "'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',"
            "'IntervalStyle', 'application_name', 'bytea_output', 'extra_float_digits')"
        )
    assert dict(rows) == {
        "TimeZone": "UTC",
        "work_mem": "7168",
        "statement_timeout": "3000",
        "lock_timeout": "2000",
        "idle_in_transaction_session_timeout": "1000",
        "IntervalStyle": "iso_8601",
        "application_name": "mine",
        "bytea_output": "hex",
        "extra_float_digits": "1",
    }


@pytest_twisted.ensureDeferred
async def test_served_schemas_are_searched_first(dsn: str) -> None:
    """Unqualified names are resolved in the served schemas, then in the database's own search_path."""
    given = psycopg2.extensions.make_dsn(dsn, options="-c search_path=own")
    async with database_at(given, SessionSettings(schemas=("app", "o'dd \"%s"))) as database:
        assert await database.statement("SHOW search_path") == [('"app", "o\'dd ""%s", own',)]
    async with database_at(given) as database:
        assert await database.statement("SHOW search_path") == [("own",)]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("SET timezone = 'Asia/Tokyo'", "timezone"),
        ("SELECT set_config('datestyle', 'SQL', false)", "datestyle"),
        ("SET search_path = elsewhere", "search_path"),
        ("SET default_transaction_read_only = on", "default_transaction_read_only"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_changed_session_is_reset(dsn: str, words: str, name: str) -> None:
    """Session settings changed by a function do not affect the next caller."""
    async with database_at(dsn, SessionSettings(schemas=("app",)), most=1) as database:
        before = await database.statement(f"SHOW {name}")
        (backend,) = await database.statement("SELECT pg_backend_pid()")
        await database.statement(words)
        assert await database.statement(f"SHOW {name}") == before
        assert await database.statement("SELECT pg_backend_pid()") == [backend]


@pytest_twisted.ensureDeferred
async def test_parameters_of_a_connection_string_are_kept(dsn: str) -> None:
    """A libpq parameter in the connection string is never overridden."""
    given = psycopg2.extensions.make_dsn(dsn, connect_timeout=9, keepalives_idle=7)
    async with database_at(given) as database:
        used = await database.run(lambda connection: connection.get_dsn_parameters())
    assert (used["connect_timeout"], used["keepalives_idle"]) == ("9", "7")
    assert used["tcp_user_timeout"] == "20000"


@pytest_twisted.ensureDeferred
async def test_statement_timeout_is_enforced_by_the_server(dsn: str) -> None:
    """The server cancels a statement that exceeds the session's statement_timeout."""
    async with database_at(dsn, SessionSettings(statement_timeout=0.1)) as database:
        with pytest.raises(psycopg2.errors.QueryCanceled):
            await database.statement("SELECT pg_sleep(5)")


@pytest_twisted.ensureDeferred
async def test_slow_queries_do_not_block_the_reactor(dsn: str) -> None:
    """With 16 slow queries running, the loop lag stays below 10 ms (p99)."""
    async with database_at(dsn, most=16) as database:
        await gatherResults([database.statement("SELECT pg_sleep(0.1)") for _ in range(16)])

        async def measure() -> LagProbe:
            with LagProbe(reactor) as probe:
                await gatherResults([database.statement("SELECT pg_sleep(1)") for _ in range(16)])
            return probe

        assert await least_lag(measure, 0.99, 0.01) < 0.01


@pytest_twisted.ensureDeferred
async def test_statement_of_any_kind_runs_in_a_worker(dsn: str) -> None:
    """A function for the database runs in a worker."""
    async with database_at(dsn) as database:
        name = await database.run(lambda connection: threading.current_thread().name)
    assert name.startswith("pg-")


class Owner:
    """A caller's session, as the scheduler sees it."""

    blocked = ""

    def __init__(self, light: bool) -> None:
        self.light = light
        self.given = 0


@pytest.mark.parametrize("light", [True, False])
@pytest_twisted.ensureDeferred
async def test_jobs_are_prepared_for_many_owners_of_small_results(dsn: str, light: bool) -> None:
    """Jobs of a greedy owner do not run before later jobs of others, except those already ready."""
    came: list[str] = []
    async with database_at(dsn, most=1) as database:
        scheduler, gate = database.pool.scheduler, threading.Event()

        def submit(owner: Owner, name: str) -> Any:
            def note(_: PgConnection) -> None:
                came.append(name)

            def owned() -> Any:
                JOB_OWNER.set(owner)
                return database.run(note)

            return copy_context().run(owned)

        first = database.run(lambda connection: gate.wait())
        await until(lambda: scheduler.queue.empty())
        greedy = Owner(light)
        done = [submit(greedy, f"greedy {at}") for at in range(30)]
        others = [f"other {at}" for at in range(2 * AHEAD)]
        done += [submit(Owner(light), name) for name in others]
        lie = READY + AHEAD if light else READY
        assert scheduler.queue.qsize() == lie
        gate.set()
        await gatherResults([first, *done])
    had = came.index(others[0])
    assert came[:had] == [f"greedy {at}" for at in range(had)]
    assert had <= 1 + READY  # those that were ready before the others came
    assert [name for name in came if name in others] == others
    assert len(came) == len(done)


@pytest_twisted.ensureDeferred
async def test_caller_without_a_connection_is_refused_after_acquire_timeout(dsn: str) -> None:
    """A full pool refuses after `acquire_timeout`, and counts the refusal."""
    async with database_at(dsn, most=1, acquire_timeout=0.2) as database:
        slow = database.statement("SELECT pg_sleep(2)")
        error = await failure_of(database.statement("SELECT 1"))
        assert isinstance(error, Unavailable)
        assert not slow.called
        stats = database.pool.stats()
        assert (stats.size, stats.busy, stats.waiting, stats.timeouts) == (1, 1, 1, 1)
        await slow
        assert await database.statement("SELECT 1") == [(1,)]
        assert database.pool.stats().waiting == 0


@pytest_twisted.ensureDeferred
async def test_call_over_its_own_time_limit_is_stopped(dsn: str) -> None:
    """A call that exceeds its own limit fails at once, and its query is cancelled on the server."""
    async with database_at(dsn) as database:
        call = database.statement("SELECT pg_sleep(7)", timeout=0.2)
        assert isinstance(await failure_of(call), StatementTimeout)
        await until(lambda: not begun(dsn, "pg_sleep(7)"))


@pytest_twisted.ensureDeferred
async def test_dead_idle_connections_are_noticed(dsn: str) -> None:
    """After every idle session was terminated, no query fails, not even a write."""
    async with database_at(dsn, most=4) as database:
        await database.statement("CREATE TABLE lively (id int)")
        await gatherResults([database.statement("SELECT pg_sleep(0.1)") for _ in range(4)])
        kill_sessions(dsn)
        await pause(0.1)
        await gatherResults([database.statement("INSERT INTO lively VALUES (1)") for _ in range(8)])
        assert await database.statement("SELECT count(*) FROM lively") == [(8,)]


@pytest.mark.parametrize("retry", [True, False], ids=["read", "write"])
@pytest_twisted.ensureDeferred
async def test_session_lost_right_after_a_check_fails_no_query(dsn: str, retry: bool) -> None:
    """Before a read, a session is not checked again if it was just checked; before a write, always."""
    async with database_at(dsn, most=1) as database:
        for _ in range(5):
            before = [
                await database.statement("SELECT pg_backend_pid()", retry=True) for _ in "abc"
            ]
            assert before[0] == before[2]
            kill_sessions(dsn)
            await until(lambda: not execute(dsn, f"SELECT 1 {SESSIONS}"))
            query = "SELECT pg_backend_pid()"
            assert await database.statement(query, retry=retry) != before[0]


@pytest_twisted.ensureDeferred
async def test_read_whose_connection_dies_is_run_again(dsn: str) -> None:
    """A read is retried if its connection dies; a write is not."""
    async with database_at(dsn, most=2) as database:
        read = database.statement("SELECT pg_sleep(0.5), 'read'", retry=True)
        write = database.statement("SELECT pg_sleep(0.5), 'write'")
        await until(lambda: begun(dsn, "read") and begun(dsn, "write"))
        kill_sessions(dsn)
        assert isinstance(await failure_of(write), OutcomeUnknown)
        assert (await read)[0][1] == "read"


@pytest_twisted.ensureDeferred
async def test_missing_database_is_unavailable(dsn: str) -> None:
    """Calls are refused after `connect_wait`, without PostgreSQL's reason."""
    nowhere = psycopg2.extensions.make_dsn(dsn, dbname="no_such_database")
    async with database_at(nowhere, connect_wait=0.2) as database:
        error = await failure_of(database.statement("SELECT 1"))
        assert isinstance(error, Unavailable)
        assert "no_such_database" not in error.message


@pytest_twisted.ensureDeferred
async def test_session_older_than_its_age_is_replaced(dsn: str) -> None:
    """A session older than `max_age` is replaced before its next use, a younger one is kept."""
    pid = "SELECT pg_backend_pid()"
    async with database_at(dsn, most=1) as database:
        assert await database.statement(pid) == await database.statement(pid)
        assert database.pool.stats().connects == 1
    async with database_at(dsn, most=1, max_age=0.0) as database:
        assert await database.statement(pid) != await database.statement(pid)


@pytest_twisted.ensureDeferred
async def test_read_that_fails_in_a_session_of_one_use_runs_once(dsn: str) -> None:
    """Closing such a session after its job does not count as a lost connection."""
    runs = []

    def read_txn(connection: PgConnection) -> None:
        runs.append(connection.closed)
        connection.command("DO $$BEGIN PERFORM pg_sleep(10); END$$")

    execute(dsn, "CREATE EXTENSION dblink")
    try:
        async with database_at(dsn, SessionSettings(statement_timeout=0.1)) as database:
            error = await failure_of(database.run(read_txn, retry=True))
        assert isinstance(error, psycopg2.extensions.QueryCanceledError)
        assert runs == [0]
    finally:
        execute(dsn, "DROP EXTENSION dblink")


@pytest_twisted.ensureDeferred
async def test_read_stopped_while_its_connection_is_replaced_does_not_run_again(dsn: str) -> None:
    """At that time there is no query to cancel, so the query must not start."""
    runs, connecting, go = [], threading.Event(), threading.Event()

    def read_txn(connection: PgConnection) -> None:
        runs.append(connection.closed)
        connection.command("SELECT pg_terminate_backend(pg_backend_pid())")

    def address() -> str:
        if runs:
            connecting.set()
            go.wait(10)
        return dsn

    async with database_at(address, most=1) as database:
        read = database.run(read_txn, retry=True)
        await until(connecting.is_set)
        read.cancel()
        assert isinstance(await failure_of(read), CancelledError)
        await pause(0.1)  # for the canceler, which finds no query
        go.set()
        assert await database.statement("SELECT 1") == [(1,)]
    assert runs == [0]


def test_close_waits_for_the_canceler(dsn: str) -> None:
    """The canceler reads the connection object that closing frees."""
    connection = open_session(dsn, SessionSettings())
    thread = threading.Thread(target=connection.close)
    with connection.lock:
        thread.start()
        thread.join(0.1)
        assert not connection.closed
    thread.join(5)
    assert connection.closed


@pytest_twisted.ensureDeferred
async def test_close_during_a_query_stops_it(dsn: str) -> None:
    """With a 30 s query and an open transaction, close finishes in 2 s and never blocks the reactor."""
    pool = PgPool(dsn, reactor, limits=PoolLimits(most=3))
    pool.start()
    slow = pool.runQuery("SELECT pg_sleep(30)")
    queued = [pool.runQuery("SELECT pg_sleep(30)") for _ in range(4)]
    outcomes = [ensureDeferred(failure_of(each)) for each in (slow, *queued)]
    await until(lambda: begun(dsn, "pg_sleep(30)"))
    started = time.monotonic()
    with LagProbe(reactor) as probe:
        await pool.close()
    assert time.monotonic() - started < 10
    assert probe.own(1) < 1
    assert not any(worker.thread.is_alive() for worker in pool.scheduler.workers)
    errors = await gatherResults(outcomes)
    assert [type(error) for error in errors] == [Unavailable] * 5
    assert isinstance(await failure_of(pool.runQuery("SELECT 1")), Unavailable)
    await until(lambda: execute(dsn, f"SELECT count(*) {SESSIONS}") == [(0,)])


@pytest.mark.parametrize("inside", [False, True])
@pytest_twisted.ensureDeferred
async def test_close_does_not_wait_for_a_job_that_cannot_be_stopped(dsn: str, inside: bool) -> None:
    """A job that cannot be cancelled is abandoned, and its caller receives an error."""
    stuck, go = threading.Event(), threading.Event()
    pool = PgPool(dsn, reactor)
    pool.start()
    database = Database(pool, reactor)

    def stuck_txn(connection: PgConnection) -> None:
        connection.command("SELECT 1")
        stuck.set()
        go.wait(20)

    async def work() -> None:
        if not inside:
            await database.run(stuck_txn, timeout=60)
        async with database.transaction(), database.transaction():
            running = database.run(stuck_txn, timeout=60)
            await gatherResults([running, database.statement("SELECT 2")], consumeErrors=True)

    try:
        outcome = ensureDeferred(failure_of(work()))
        await until(stuck.is_set)
        await pool.close(0)
        outcome.addTimeout(2, reactor)
        error = await outcome
        error = error.subFailure.value if isinstance(error, FirstError) else error
        assert isinstance(error, Unavailable if inside else OutcomeUnknown)
    finally:
        go.set()
    for worker in pool.scheduler.workers:
        await in_thread(reactor, "join", worker.thread.join, 5)
        assert not worker.thread.is_alive()


@pytest_twisted.ensureDeferred
async def test_close_ends_an_open_transaction(dsn: str) -> None:
    """close() rolls back an idle transaction."""
    async with database_at(dsn) as database:
        await database.statement("CREATE TABLE left_open (id int)")
        context = database.transaction()
        await context.__aenter__()
        await database.statement("INSERT INTO left_open VALUES (1)")
    assert execute(dsn, "SELECT count(*) FROM left_open") == [(0,)]
    await failure_of(context.__aexit__(None, None, None))


@pytest_twisted.ensureDeferred
async def test_pool_has_the_methods_of_adbapi(dsn: str) -> None:
    """The pool has the methods of adbapi; an interaction is one transaction."""
    async with database_at(dsn) as database:
        pool = database.pool
        assert await pool.runOperation("CREATE TABLE face (id int)") is None

        def fails(cursor: psycopg2.extensions.cursor) -> None:
            cursor.execute("INSERT INTO face VALUES (1)")
            raise KeyError("on purpose")

        assert isinstance(await failure_of(pool.runInteraction(fails)), KeyError)
        assert await pool.runQuery("SELECT count(*) FROM face") == [(0,)]
        await pool.runInteraction(lambda cursor: cursor.execute("INSERT INTO face VALUES (2)"))
        found = await pool.runWithConnection(
            lambda connection, words: connection.command(words), words="SELECT 1"
        )
        assert found == "SELECT 1"
        assert await pool.runQuery("SELECT id FROM face WHERE id = %s", [2]) == [(2,)]
        with pytest.raises(TypeError):
            pool.connect()
