"""
A server that goes silent while its host still acknowledges, as behind a proxy that hangs.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extras import DictCursor, NamedTupleCursor
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults

from service.db import listener as listening
from service.db.connection import PgConnection
from service.db.copy import CopyBlocks, CopySource, import_txn
from service.db.database import Database
from service.db.listener import Listener
from service.db.session_settings import SessionSettings, open_session
from service.db.sqlstate import refusal
from service.errors import OutcomeUnknown, StatementTimeout, Unavailable
from service.sql.modify import CopyIn
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until

SCHEMA = "CREATE TABLE kept (id int, note text)"
QUICK = SessionSettings(statement_timeout=0.6, grace=0.3)
BOUND = 8.0
"""Seconds in which each call ends: statement timeout, two graces, two seconds for connect and for cancel."""


@pytest.fixture
def relay(dsn: str) -> Any:
    """Run a relay to the server."""
    with Relay(dsn) as made:
        made.dsn = psycopg2.extensions.make_dsn(made.dsn, connect_timeout=2)
        yield made


async def recovers(database: Database, relay: Relay, threads: int) -> None:
    """Check that each worker is free again, and works when the server answers again."""
    await until(lambda: not database.pool.stats().busy, BOUND)
    assert len(workers()) <= threads
    relay.flows.set()
    assert (
        await gatherResults([database.statement("SELECT 1", retry=True) for _ in range(4)])
        == [[(1,)]] * 4
    )


def workers() -> list[str]:
    """Return the names of the pool's threads."""
    return [each.name for each in threading.enumerate() if each.name.startswith("pg-")]


async def read(database: Database) -> Any:
    """Run a read."""
    return await database.statement("SELECT pg_sleep(0.2)", retry=True)


async def write(database: Database) -> Any:
    """Write a row."""
    return await database.statement("INSERT INTO kept SELECT 1 FROM pg_sleep(0.2)", fetch=False)


async def several(database: Database) -> Any:
    """Write in two statements of one function."""

    def twice_txn(connection: PgConnection) -> None:
        connection.command("INSERT INTO kept VALUES (2)")
        connection.command("INSERT INTO kept SELECT 2 FROM pg_sleep(0.2)")

    return await database.atomic(twice_txn)


async def scope(database: Database) -> Any:
    """Write in a transaction."""
    async with database.transaction():
        await database.statement("INSERT INTO kept VALUES (3)")
        await database.statement("INSERT INTO kept SELECT 3 FROM pg_sleep(0.2)")


async def savepoint(database: Database) -> Any:
    """Write in a savepoint."""
    async with database.transaction(), database.transaction():
        await database.statement("INSERT INTO kept SELECT 3 FROM pg_sleep(0.2)")


async def procedure(database: Database) -> Any:
    """Call a procedure that may commit."""
    sql = "DO $$BEGIN INSERT INTO kept VALUES (4); COMMIT; PERFORM pg_sleep(0.2); END$$"
    return await database.run(PgConnection.command, sql, ending=True)


@pytest.mark.parametrize(
    ("how", "work", "end"),
    [
        ("waits", read, Unavailable),
        ("waits", write, OutcomeUnknown),
        ("waits", several, Unavailable),
        ("waits", scope, Unavailable),
        ("waits", savepoint, Unavailable),
        ("waits", procedure, OutcomeUnknown),
        ("cancelled", read, CancelledError),
        ("cancelled", write, OutcomeUnknown),
        ("cancelled", several, CancelledError),
        ("cancelled", scope, CancelledError),
        ("cancelled", savepoint, CancelledError),
        ("cancelled", procedure, OutcomeUnknown),
        ("timeout", read, StatementTimeout),
        ("timeout", write, OutcomeUnknown),
    ],
)
@pytest_twisted.ensureDeferred
async def test_worker_of_a_silent_server_is_released(
    how: str,
    work: Callable[[Database], Any],
    end: type[BaseException],
    dsn: str,
    relay: Relay,
) -> None:
    """Callers receive an error in time that says what is known, and the sessions are given up."""
    async with database_at(relay.dsn, QUICK, most=4, connect_wait=0.1) as database:
        await gatherResults([database.statement("SELECT pg_sleep(0.1)") for _ in range(4)])
        threads = len(workers())
        began = time.monotonic()
        limit = 0.4 if how == "timeout" else None
        jobs = [ensureDeferred(database.within(limit, work(database))) for _ in range(3)]
        outcomes = [ensureDeferred(failure_of(job)) for job in jobs]
        await pause(0.1)
        relay.flows.clear()
        if how == "cancelled":
            for job in jobs:
                job.cancel()
        found = await gatherResults(outcomes)
        assert time.monotonic() - began < BOUND
        for error in found:
            seen = error if isinstance(error, CancelledError) else refusal(error)
            assert isinstance(seen, end), seen
            if end is Unavailable:
                assert seen.details["retry"] is True
        await recovers(database, relay, threads + 4)  # four threads send the cancel requests


@pytest_twisted.ensureDeferred
async def test_silence_at_commit_is_outcome_unknown(dsn: str, relay: Relay) -> None:
    """It is unknown whether the server has committed."""
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:

        async def work() -> None:
            async with database.transaction():
                await database.statement("INSERT INTO kept VALUES (5)")
                relay.flows.clear()

        assert isinstance(await failure_of(work()), OutcomeUnknown)
        await recovers(database, relay, 9)


@pytest_twisted.ensureDeferred
async def test_silence_at_rollback_ends_the_scope(dsn: str, relay: Relay) -> None:
    """The body's error is raised, and nothing is committed."""
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:

        async def work() -> None:
            async with database.transaction():
                await database.statement("INSERT INTO kept VALUES (6)")
                relay.flows.clear()
                raise KeyError

        assert isinstance(await failure_of(work()), KeyError)
        await recovers(database, relay, 9)
        assert execute(dsn, "SELECT id FROM kept WHERE id = 6") == []


@pytest_twisted.ensureDeferred
async def test_connect_to_a_silent_server_is_given_up(dsn: str, relay: Relay) -> None:
    """A server that accepts connections but sends nothing is given up; the next attempt succeeds."""
    relay.flows.clear()
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:
        began = time.monotonic()
        errors = await gatherResults(
            [ensureDeferred(failure_of(work(database))) for work in (read, write, scope)]
        )
        assert time.monotonic() - began < BOUND
        assert all(isinstance(error, Unavailable) for error in errors)
        await recovers(database, relay, 9)


@pytest.mark.parametrize("moment", ["first", "between", "end"])
@pytest_twisted.ensureDeferred
async def test_silence_during_an_import_ends_it_and_keeps_nothing(
    moment: str, dsn: str, relay: Relay
) -> None:
    """It ends, is rolled back and releases its worker; a slow caller alone does not end it."""
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:
        feed = CopySource(reactor, lambda rows, _: iter([rows]))
        spelled = CopyIn(None, "COPY kept (id, note) FROM STDIN", None)

        async def work() -> Any:
            async with database.transaction():
                return await database.run(import_txn, spelled, feed, True)

        if moment == "first":
            await database.statement("SELECT 1")
            relay.flows.clear()
        running = ensureDeferred(work())
        running.addBoth(feed.over)
        end = ensureDeferred(failure_of(running))
        row = b"7\t" + b"x" * 1000 + b"\n"
        first = feed.put(row).addErrback(lambda _: None)
        if moment != "first":
            await first
            if moment == "between":
                await pause(2.5)  # more than all limits
            assert not end.called
            relay.flows.clear()
            if moment == "between":
                for _ in range(100):
                    feed.put(row * 500).addErrback(lambda _: None)
            else:
                feed.end()
        error = await end
        assert isinstance(refusal(error), Unavailable | StatementTimeout)
        await recovers(database, relay, 9)
        await until(lambda: execute(dsn, "SELECT id FROM kept WHERE id = 7") == [])


@pytest_twisted.ensureDeferred
async def test_silence_during_an_export_ends_it(dsn: str, relay: Relay) -> None:
    """A COPY whose blocks do not arrive ends, too, but not one whose caller requests no blocks."""
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:
        blocks = CopyBlocks(reactor)

        def copy_txn(connection: PgConnection) -> None:
            blocks.attach(connection)
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = 0")
                sql = "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 20000)) TO STDOUT"
                cursor.copy_expert(sql, blocks)

        async def work() -> Any:
            async with database.transaction():
                return await database.run(copy_txn)

        end = ensureDeferred(failure_of(ensureDeferred(work()).addBoth(blocks.ended)))
        assert await blocks.next()
        await pause(2.5)
        assert not end.called
        relay.flows.clear()

        async def rest() -> None:
            while await blocks.next():
                pass

        taken = ensureDeferred(failure_of(rest()))
        assert isinstance(refusal(await end), Unavailable | StatementTimeout)
        await taken
        await recovers(database, relay, 9)


@pytest_twisted.ensureDeferred
async def test_close_of_a_pool_in_silence_ends_within_the_bound(dsn: str, relay: Relay) -> None:
    """It takes no longer than a call, reports the known outcome, and leaves no thread behind."""
    before = set(workers())
    async with database_at(relay.dsn, connect_wait=0.1, most=3) as database:
        await database.statement("SELECT 1")
        outcomes = [ensureDeferred(failure_of(work(database))) for work in (read, write)]
        await pause(0.1)
        relay.flows.clear()
        began = time.monotonic()
        await database.pool.close()
        assert time.monotonic() - began < BOUND
    kinds = [type(error) for error in await gatherResults(outcomes)]
    assert kinds == [Unavailable, OutcomeUnknown]
    await until(lambda: set(workers()) <= before, BOUND)


@pytest_twisted.ensureDeferred
async def test_listener_at_a_silent_server_is_replaced(
    dsn: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener queries the server from time to time, and reconnects if no answer comes."""
    monkeypatch.setattr(listening, "PULSE", 0.2)
    monkeypatch.setattr(listening, "PULSE_TIMEOUT", 0.3)
    heard: list[str] = []
    resyncs: list[int] = []
    listener = Listener(reactor, relay.dsn, QUICK)
    listener.subscribe("c", heard.append, lambda: resyncs.append(1))
    listener.startService()
    await until(lambda: len(resyncs) == 1)
    await pause(1)
    execute(dsn, "NOTIFY c, 'a'")
    await until(lambda: heard == ["a"])
    assert len(resyncs) == 1
    relay.flows.clear()
    await until(lambda: not listener.listening, BOUND)
    relay.flows.set()
    await until(lambda: len(resyncs) == 2, 2 * BOUND)
    execute(dsn, "NOTIFY c, 'b'")
    await until(lambda: heard == ["a", "b"])
    relay.flows.clear()
    await pause(0.4)
    listener.stopService()


def dictionaries(connection: PgConnection) -> Any:
    """Read through a cursor of another class."""
    with connection.cursor(cursor_factory=DictCursor) as cursor:
        cursor.execute("SELECT pg_sleep(0.3)")


def called(connection: PgConnection) -> Any:
    """Call a function."""
    with connection.cursor() as cursor:
        cursor.callproc("pg_sleep", [0.3])


def called_by_name(connection: PgConnection) -> Any:
    """Call a function through a cursor of another class."""
    with connection.cursor(None, NamedTupleCursor) as cursor:
        cursor.callproc("pg_sleep", [0.3])


def many(connection: PgConnection) -> Any:
    """Send a statement many times."""
    with connection.cursor(cursor_factory=DictCursor) as cursor:
        cursor.executemany("SELECT pg_sleep(%s)", [[0.3], [0.3]])


def fetched(connection: PgConnection) -> Any:
    """Fetch through a cursor of the server's."""
    with connection.cursor("held", withhold=True) as cursor:
        cursor.itersize = 1
        cursor.execute("SELECT 1 FROM generate_series(1, 300)")
        for _ in cursor:
            time.sleep(0.001)


def copied_out(connection: PgConnection) -> Any:
    """Copy a table out."""
    connection.cursor().copy_to(io.StringIO(), "naps")


def copied_in(connection: PgConnection) -> Any:
    """Copy a table in."""
    connection.cursor().copy_from(io.StringIO("1\n"), "napping", columns=["id"])


@pytest.fixture(scope="module")
def naps(dsn: str) -> None:
    """Create a table, and one whose trigger sleeps."""
    execute(
        dsn,
        "CREATE TABLE napping (id int); CREATE TABLE naps (id int);"
        "INSERT INTO naps VALUES (1); CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END';"
        "CREATE TRIGGER nap BEFORE INSERT ON napping FOR EACH ROW EXECUTE FUNCTION nap()",
    )


@pytest.mark.parametrize(
    "work", [dictionaries, called, called_by_name, many, fetched, copied_out, copied_in]
)
@pytest_twisted.ensureDeferred
async def test_statement_sent_by_any_method_ends_if_the_server_is_silent(
    work: Callable[[PgConnection], Any], dsn: str, naps: None, relay: Relay
) -> None:
    """Each statement has a time limit, whatever cursor and method sends it."""
    async with database_at(relay.dsn, QUICK, connect_wait=0.1) as database:
        await database.statement("SELECT 1")
        if work is copied_out:
            relay.flows.clear()
        end = ensureDeferred(failure_of(database.run(work)))
        await pause(0.1)
        relay.flows.clear()
        assert isinstance(await end, psycopg2.Error | OutcomeUnknown | StatementTimeout)
        await recovers(database, relay, 9)


@pytest.mark.parametrize("work", [dictionaries, called, many, copied_out, copied_in])
@pytest_twisted.ensureDeferred
async def test_statement_sent_by_any_method_is_part_of_its_transaction(
    work: Callable[[PgConnection], Any], dsn: str, naps: None
) -> None:
    """The first statement is sent with BEGIN, and nothing is sent for a cancelled job."""

    def both_txn(connection: PgConnection) -> str:
        work(connection)
        status = connection.get_transaction_status()
        connection.stopped = time.monotonic()
        try:
            work(connection)
        except psycopg2.extensions.QueryCanceledError:
            return str(status)
        finally:
            connection.stopped = 0.0
        return "not refused"

    async with database_at(dsn) as database, database.transaction():
        in_transaction = str(psycopg2.extensions.TRANSACTION_STATUS_INTRANS)
        assert await database.run(both_txn) == in_transaction


@pytest.mark.parametrize("why", ["silent server", "server without a limit"])
@pytest_twisted.ensureDeferred
async def test_worker_of_an_idle_transaction_is_released(why: str, dsn: str, relay: Relay) -> None:
    """A task that waits for something else inside it finds the transaction ended; its worker is released."""
    settings = SessionSettings(0.6, idle_in_transaction_session_timeout=0.5, grace=0.3)
    async with database_at(relay.dsn, settings, connect_wait=0.1) as database:

        async def work() -> None:
            async with database.transaction():
                await database.statement("INSERT INTO kept VALUES (8)", fetch=False)
                if why == "silent server":
                    relay.flows.clear()
                else:
                    await database.statement("SET LOCAL idle_in_transaction_session_timeout = 0")
                assert database.pool.stats().busy
                await until(lambda: not database.pool.stats().busy, BOUND)
                relay.flows.set()
                await database.statement("INSERT INTO kept VALUES (8)", fetch=False)

        error = refusal(await failure_of(work()))
        assert isinstance(error, Unavailable)
        assert error.message == "the transaction lay idle for too long and was rolled back"
        await recovers(database, relay, 9)
        await until(lambda: execute(dsn, "SELECT id FROM kept WHERE id = 8") == [])


@pytest.mark.parametrize("where", ["options", "role"])
@pytest.mark.parametrize(("given", "limit"), [("0", "300ms"), ("1h", "300ms"), ("200", "200ms")])
@pytest_twisted.ensureDeferred
async def test_statement_timeout_of_the_service_overrides_url_and_role(
    where: str, given: str, limit: str, dsn: str
) -> None:
    """Neither the URL nor the role can raise statement_timeout; the URL may lower it."""
    if where == "options":
        dsn = psycopg2.extensions.make_dsn(dsn, options=f"-c statement_timeout={given}")
    else:
        execute(dsn, f"ALTER ROLE CURRENT_USER SET statement_timeout = '{given}'")
        limit = "300ms"
    try:
        settings = SessionSettings(statement_timeout=0.3, schemas=("public",))
        async with database_at(dsn, settings) as database:
            for _ in range(2):
                shown = await database.statement("SHOW statement_timeout", retry=True)
                assert shown == [(limit,)]
                error = await failure_of(database.statement("SELECT pg_sleep(5)", retry=True))
                assert isinstance(refusal(error), StatementTimeout)
                patience = await database.run(lambda connection: connection.time_limit, retry=True)
                assert patience == float(limit.removesuffix("ms")) / 1000
    finally:
        execute(dsn, "ALTER ROLE CURRENT_USER RESET statement_timeout")


def test_host_that_answers_after_silent_ones_is_reached(relay: Relay) -> None:
    """The connect timeout is for all hosts together, and the third host is reached within it."""
    with socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        given = psycopg2.extensions.parse_dsn(relay.dsn)
        del given["connect_timeout"]
        given |= {"host": "127.0.0.1,127.0.0.1", "port": f"{port},{given['port']}"}
        began = time.monotonic()
        connection = open_session(psycopg2.extensions.make_dsn(**given), QUICK)
        assert 1.5 < time.monotonic() - began < 5
        connection.close()


def test_silence_while_a_session_is_set_up_ends_the_connect(relay: Relay) -> None:
    """The statements that psycopg2 sends on its own after connecting have a time limit."""

    class Seen(list[bytes]):
        def append(self, message: bytes) -> None:
            super().append(message)
            relay.flows.clear()

    relay.messages = Seen()
    dsn = psycopg2.extensions.make_dsn(relay.dsn, options="-c datestyle=SQL")
    began = time.monotonic()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(dsn, connection_factory=PgConnection)
    assert relay.messages == [b"SET datestyle TO 'ISO'"]
    assert time.monotonic() - began < 2 * PgConnection.grace + 5


@pytest_twisted.ensureDeferred
async def test_statement_cancelled_late_has_timed_out(dsn: str) -> None:
    """The server has cancelled it, so the error is not retryable: a retry would take as long."""

    def longer_txn(connection: PgConnection) -> None:
        connection.command("SET statement_timeout = 0")
        connection.command("SELECT pg_sleep(20)")

    settings = SessionSettings(statement_timeout=0.3, grace=0.5)
    async with database_at(dsn, settings) as database:
        error = await failure_of(database.run(longer_txn, retry=True))
        assert isinstance(refusal(error), StatementTimeout)
