"""
Transactions as scopes: which tasks belong to them, when they commit, roll back and retry.
"""

from __future__ import annotations

import contextvars
from contextlib import AsyncExitStack
from io import StringIO
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extras import DictCursor
from psycopg2.sql import SQL, Identifier
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    ensureDeferred,
    gatherResults,
)

from service.db.connection import PgConnection
from service.db.database import Database
from service.db.session_settings import SessionSettings
from service.db.sqlstate import refusal
from service.db.transaction import TransactionAborted, TransactionClosed, statement_txn
from service.errors import Conflict, InvalidArgument, OutcomeUnknown, StatementTimeout, Unavailable
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until

DIE = """
CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER die AFTER INSERT ON kept DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION die();
"""
"""Loses the connection during COMMIT."""
SLEEPING = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    " AND query LIKE 'SELECT pg_sleep%'"
)


class Boom(Exception):
    """Raised on purpose."""


@pytest.fixture(autouse=True)
def table(dsn: str) -> None:
    execute(
        dsn,
        "DROP TABLE IF EXISTS kept; CREATE TABLE kept (id int PRIMARY KEY, note text,"
        " later int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    )


async def insert(database: Database, number: int) -> None:
    await database.statement("INSERT INTO kept VALUES (%s)", [number])


def kept(dsn: str) -> list[object]:
    return [row[0] for row in execute(dsn, "SELECT id FROM kept ORDER BY id")]


@pytest_twisted.ensureDeferred
async def test_transaction_commits_or_rolls_back_at_its_end(dsn: str) -> None:
    """The end of the body commits; an exception in it rolls back and propagates."""
    async with database_at(dsn) as database:
        async with database.transaction():
            await insert(database, 1)
            await insert(database, 2)
            assert kept(dsn) == []

        async def body() -> None:
            async with database.transaction():
                await insert(database, 3)
                raise Boom

        with pytest.raises(Boom):
            await body()
    assert kept(dsn) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_begin_before_a_statement_costs_no_message(dsn: str) -> None:
    """BEGIN is sent with the first statement, the reset with COMMIT; an empty transaction sends nothing."""
    with Relay(dsn) as relay:
        async with database_at(relay.dsn, most=1) as database:
            await database.statement("SELECT 1")
            before = len(relay.messages)
            async with database.transaction(isolation="serializable", read_only=True):
                await database.statement("SELECT 2")
                await database.statement("SELECT 3")
            async with database.transaction():
                pass
            *sent, last = relay.messages[before:]
            assert sent == [b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;SELECT 2", b"SELECT 3"]
            assert last.endswith(b";COMMIT")


@pytest_twisted.ensureDeferred
async def test_last_function_of_a_transaction_commits_with_it(dsn: str) -> None:
    """No statement may follow it; if it fails, all is rolled back. After one in a savepoint, more may follow."""

    def insert_txn(connection: PgConnection, number: int) -> None:
        connection.command(f"INSERT INTO kept VALUES ({number})")

    def failing_txn(connection: PgConnection) -> None:
        insert_txn(connection, 9)
        raise Boom

    async def failing() -> None:
        async with database.transaction():
            await insert(database, 8)
            await database.run(failing_txn, last=True)

    async with database_at(dsn, most=2) as database:
        async with database.transaction():
            await insert(database, 1)
            await database.run(insert_txn, 2, last=True)
            assert kept(dsn) == [1, 2]
            assert isinstance(await failure_of(insert(database, 3)), TransactionClosed)
        with pytest.raises(Boom):
            await failing()
        async with database.transaction():
            async with database.transaction():
                await database.run(insert_txn, 4, last=True)
                assert kept(dsn) == [1, 2]
                await insert(database, 5)
            with pytest.raises(Boom):
                await failing()
            await database.run(insert_txn, 6, last=True)
        async with database.transaction():
            await database.run(insert_txn, 7, last=True)
    assert kept(dsn) == [1, 2, 4, 5, 6, 7]


@pytest_twisted.ensureDeferred
async def test_task_beside_a_transaction_stays_outside(dsn: str) -> None:
    """Concurrent unrelated work neither joins the transaction nor is rolled back with it."""
    async with database_at(dsn) as database:

        async def unrelated() -> None:
            await pause(0.05)
            await insert(database, 10)

        other = ensureDeferred(unrelated())

        async def body() -> None:
            async with database.transaction():
                await insert(database, 11)
                await pause(0.15)
                raise Boom

        with pytest.raises(Boom):
            await body()
        await other
    assert kept(dsn) == [10]


@pytest_twisted.ensureDeferred
async def test_transactions_at_once_end_on_their_own(dsn: str) -> None:
    """Each of two overlapping transactions commits or rolls back independently."""
    async with database_at(dsn) as database:

        async def first() -> None:
            async with database.transaction():
                await insert(database, 1)
                await pause(0.05)

        async def second() -> None:
            async with database.transaction():
                await insert(database, 2)
                await pause(0.1)
                await insert(database, 3)
                raise Boom

        outcomes = await DeferredList(
            [ensureDeferred(first()), ensureDeferred(second())], consumeErrors=True
        )
    assert [success for success, _ in outcomes] == [True, False]
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_plain_callbacks_stay_in_the_transaction(dsn: str) -> None:
    """Callbacks added with addCallback, as twistar uses them, run in the transaction of their task."""
    async with database_at(dsn) as database:

        async def body() -> None:
            async with database.transaction():
                chain: Deferred[Any] = database.statement("SELECT 1")
                chain.addCallback(lambda _: ensureDeferred(insert(database, 1)))
                chain.addCallback(
                    lambda _: database.statement("INSERT INTO kept VALUES (2)", fetch=False)
                )
                await chain
                raise Boom

        with pytest.raises(Boom):
            await body()
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_transaction_inside_a_transaction_is_a_savepoint(dsn: str) -> None:
    """An inner failure rolls back to the savepoint only."""
    async with database_at(dsn) as database, database.transaction():
        await insert(database, 1)

        async def body() -> None:
            async with database.transaction():
                await insert(database, 2)
                await insert(database, 1)

        with pytest.raises(psycopg2.errors.UniqueViolation):
            await body()
        await insert(database, 3)
        async with database.transaction():
            await insert(database, 4)
    assert kept(dsn) == [1, 3, 4]


@pytest_twisted.ensureDeferred
async def test_concurrent_savepoints_are_serialized(dsn: str) -> None:
    """Concurrent savepoints of one transaction do not interleave, even three levels deep."""
    async with database_at(dsn) as database:

        async def third(number: int) -> None:
            async with database.transaction():
                await insert(database, number + 200)
                raise Boom

        async def second(number: int) -> None:
            async with database.transaction():
                await insert(database, number)
                with pytest.raises(Boom):
                    await third(number)
                await insert(database, number + 100)

        async with database.transaction():
            tasks = [ensureDeferred(second(number)) for number in range(3)]
            tasks.append(ensureDeferred(insert(database, 50)))
            await gatherResults(tasks)
    assert kept(dsn) == [0, 1, 2, 50, 100, 101, 102]


@pytest_twisted.ensureDeferred
async def test_task_that_outlives_its_transaction_is_refused(dsn: str) -> None:
    """It is refused, instead of writing outside the transaction; with a clean context it may write."""
    async with database_at(dsn) as database:

        async def late() -> None:
            await pause(0.05)
            await insert(database, 1)

        async with database.transaction():
            await database.statement("SELECT 1")
            task = ensureDeferred(late())
            free = contextvars.Context().run(ensureDeferred, late())
        assert isinstance(await failure_of(task), TransactionClosed)
        await free
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_transaction_with_a_swallowed_error_does_not_commit(dsn: str) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and the service raises."""
    async with database_at(dsn) as database:

        async def body() -> None:
            async with database.transaction():
                await insert(database, 1)
                await failure_of(insert(database, 1))

        with pytest.raises(TransactionAborted):
            await body()
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_statement_after_a_first_one_that_does_not_parse_has_a_begin(dsn: str) -> None:
    """A syntax error prevents the BEGIN in the same message; the next statement sends BEGIN again."""
    async with database_at(dsn) as database:

        async def body() -> None:
            async with database.transaction():
                await failure_of(database.statement("SELEKT 1"))
                await insert(database, 1)
                raise Boom

        with pytest.raises(Boom):
            await body()
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_serialization_failures_are_retried(dsn: str) -> None:
    """Eight concurrent writers of one row all succeed within the usual number of attempts."""
    async with database_at(dsn, most=10) as database:
        await insert(database, 0)
        await database.statement("UPDATE kept SET note = '0'")

        async def increment() -> None:
            rows = await database.statement("SELECT note FROM kept WHERE id = 0")
            await pause(0.002)
            await database.statement("UPDATE kept SET note = %s", [str(int(rows[0][0]) + 1)])

        async def writer() -> None:
            for _ in range(10):
                await database.transact(increment, isolation="serializable")

        await gatherResults([ensureDeferred(writer()) for _ in range(8)])
    assert execute(dsn, "SELECT note FROM kept") == [("80",)]


@pytest_twisted.ensureDeferred
async def test_transactions_in_a_deadlock_are_retried(dsn: str) -> None:
    """Two transactions that lock the same rows in opposite order both succeed."""
    execute(dsn, "INSERT INTO kept VALUES (1, '0'), (2, '0')")
    async with database_at(dsn) as database:

        async def both(*numbers: int) -> None:
            for number in numbers:
                await database.statement(
                    "UPDATE kept SET note = (note::int + 1)::text WHERE id = %s", [number]
                )
                await pause(0.05)

        await gatherResults([database.transact(both, 1, 2), database.transact(both, 2, 1)])
    assert execute(dsn, "SELECT note FROM kept") == [("2",), ("2",)]


@pytest_twisted.ensureDeferred
async def test_transaction_that_wraps_a_serialization_failure_is_retried(dsn: str) -> None:
    """A retryable error is recognized by the exception's cause, whatever exception wraps it."""
    attempts = []
    async with database_at(dsn) as database:

        async def worded() -> None:
            attempts.append(1)
            try:
                await database.statement("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
            except psycopg2.Error as error:
                try:
                    raise KeyError("once") from error
                except KeyError as again:
                    raise ValueError("it was somebody else's turn") from again

        with pytest.raises(ValueError, match="somebody else's turn"):
            await database.transact(worded, retries=2)
    assert len(attempts) == 3


@pytest_twisted.ensureDeferred
async def test_transaction_that_always_fails_ends_as_conflict(dsn: str) -> None:
    """It raises PostgreSQL's last error as a conflict."""
    attempts = []
    async with database_at(dsn) as database:

        async def never() -> None:
            attempts.append(1)
            await database.statement("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

        with pytest.raises(psycopg2.errors.SerializationFailure) as caught:
            await database.transact(never, retries=2)
    assert len(attempts) == 3
    refused = refusal(caught.value)
    assert isinstance(refused, Conflict)
    assert refused.details["attempts"] == 3


@pytest_twisted.ensureDeferred
async def test_transaction_of_unknown_outcome_is_not_retried(dsn: str) -> None:
    """Even if a serialization failure is the cause: a CALL may have committed a part."""
    execute(
        dsn,
        "CREATE PROCEDURE half() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO kept VALUES (1);"
        " COMMIT; RAISE SQLSTATE '40001'; END $$",
    )
    async with database_at(dsn) as database:
        with pytest.raises(OutcomeUnknown):
            await database.again(lambda: database.run(statement_txn, "CALL half()", ending=True))
        assert kept(dsn) == [1]
        execute(dsn, DIE)
        attempts = []

        async def lost() -> None:
            attempts.append(1)
            await insert(database, 2)

        with pytest.raises(OutcomeUnknown):
            await database.transact(lost)
    assert len(attempts) == 1


@pytest_twisted.ensureDeferred
async def test_transaction_over_its_time_limit_is_rolled_back(dsn: str) -> None:
    """The limit covers all attempts together, and cancels the running statement at the server."""
    async with database_at(dsn) as database:

        async def slow() -> None:
            await insert(database, 1)
            await database.statement("SELECT pg_sleep(20)")

        async def never() -> None:
            await insert(database, 2)
            await database.statement("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

        with pytest.raises(StatementTimeout):
            await database.transact(slow, timeout=0.2)
        with pytest.raises(StatementTimeout):
            await database.transact(never, retries=1000, timeout=0.2)
        await until(lambda: database.pool.stats().busy == 0)
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_cancelled_transaction_is_rolled_back_and_not_run_again(dsn: str) -> None:
    attempts = []
    async with database_at(dsn) as database:

        async def slow() -> None:
            attempts.append(1)
            await insert(database, 1)
            await database.statement("SELECT pg_sleep(20)")

        work = database.transact(slow)
        await until(lambda: bool(execute(dsn, SLEEPING)))
        work.cancel()
        assert isinstance(await failure_of(work), CancelledError)
        await until(lambda: database.pool.stats().busy == 0)
        assert execute(dsn, SLEEPING) == []
    assert (kept(dsn), attempts) == ([], [1])


@pytest_twisted.ensureDeferred
async def test_savepoint_that_is_read_only_refuses_writes_until_its_end(dsn: str) -> None:
    """The end is a release or a rollback. The same holds for a function in a worker."""

    def insert_txn(connection: PgConnection) -> None:
        connection.command("INSERT INTO kept VALUES (9)")

    async with database_at(dsn) as database, database.transaction():
        await insert(database, 1)
        async with database.transaction(read_only=True):
            assert await database.statement("SELECT id FROM kept") == [(1,)]
        await insert(database, 2)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            async with database.transaction(read_only=True):
                await insert(database, 3)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            await database.atomic(insert_txn, read_only=True)
        await insert(database, 4)
    assert kept(dsn) == [1, 2, 4]


@pytest_twisted.ensureDeferred
async def test_savepoint_of_stronger_isolation_than_its_transaction_is_refused(dsn: str) -> None:
    """PostgreSQL cannot change the isolation of a running transaction; an equal or stronger one is accepted."""
    async with database_at(dsn) as database, database.transaction(isolation="repeatable read"):
        await insert(database, 1)
        with pytest.raises(InvalidArgument, match="run serializable") as caught:
            async with database.transaction(isolation="serializable"):
                await insert(database, 2)
        assert (
            caught.value.details["hint"] == 'begin that transaction with isolation "serializable"'
        )
        with pytest.raises(InvalidArgument):
            await database.atomic(lambda _: None, isolation="serializable")
        for isolation in ("read committed", "repeatable read"):
            async with database.transaction(isolation=isolation):
                await insert(database, 3 + isolation.count("able"))
    assert kept(dsn) == [1, 3, 4]


@pytest_twisted.ensureDeferred
async def test_transactions_beyond_the_workers_all_end(dsn: str) -> None:
    """Twenty transactions on three workers all end, and single statements run in between."""
    async with database_at(dsn, most=3) as database:

        async def hold(number: int) -> None:
            async with database.transaction():
                await insert(database, number)
                # needs a second worker while it holds one
                await contextvars.Context().run(database.statement, "SELECT 1")
                await pause(0.01)

        await gatherResults([ensureDeferred(hold(number)) for number in range(20)])
    assert len(kept(dsn)) == 20


@pytest_twisted.ensureDeferred
async def test_function_by_atomic_is_one_transaction(dsn: str) -> None:
    """A function in a worker commits or rolls back atomically; inside a transaction, as a savepoint."""

    def two_txn(connection: PgConnection, first: int, second: int) -> str:
        connection.command(f"INSERT INTO kept VALUES ({first})")
        connection.command(f"INSERT INTO kept VALUES ({second})")
        return "done"

    async with database_at(dsn) as database:
        assert await database.atomic(two_txn, 1, 2) == "done"
        with pytest.raises(psycopg2.errors.UniqueViolation):
            await database.atomic(two_txn, 3, 2)
        async with database.transaction():
            with pytest.raises(psycopg2.errors.UniqueViolation):
                await database.atomic(two_txn, 4, 1)
            await database.atomic(two_txn, 5, 6)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            await database.atomic(two_txn, 7, 8, read_only=True)
        with pytest.raises(ValueError, match="not an isolation level"):
            database.atomic(two_txn, 7, 8, isolation="chaos")
    assert kept(dsn) == [1, 2, 5, 6]


@pytest_twisted.ensureDeferred
async def test_constraint_that_is_deferred_fails_the_commit(dsn: str) -> None:
    """An error raised by COMMIT is raised by the transaction."""
    async with database_at(dsn) as database:
        with pytest.raises(psycopg2.errors.UniqueViolation):
            async with database.transaction():
                await database.statement("INSERT INTO kept VALUES (1, '', 1), (2, '', 1)")
        await insert(database, 3)
    assert kept(dsn) == [3]


@pytest_twisted.ensureDeferred
async def test_connection_lost_in_commit_is_outcome_unknown(dsn: str) -> None:
    """It is unknown whether the transaction committed."""
    execute(dsn, DIE)
    async with database_at(dsn) as database:
        with pytest.raises(OutcomeUnknown):
            async with database.transaction():
                await insert(database, 1)


@pytest_twisted.ensureDeferred
async def test_connection_lost_before_commit_is_unavailable(dsn: str) -> None:
    """The connection ends before COMMIT is sent, so nothing was committed and a retry is possible."""
    limits = SessionSettings(idle_in_transaction_session_timeout=0.1)
    async with database_at(dsn, limits) as database:

        async def body() -> None:
            async with database.transaction():
                await insert(database, 1)
                await pause(0.3)

        with pytest.raises(Unavailable):
            await body()
        await insert(database, 2)
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_transaction_without_a_worker_in_time_fails(dsn: str) -> None:
    """Its first statement fails, and the transaction ends."""
    async with database_at(dsn, most=1, acquire_timeout=0.1) as database:
        slow = database.statement("SELECT pg_sleep(0.7)")
        with pytest.raises(Unavailable):
            async with database.transaction():
                await insert(database, 1)
        await slow
        assert kept(dsn) == []
        await insert(database, 2)


@pytest.mark.parametrize("nested", [False, True])
@pytest_twisted.ensureDeferred
async def test_dropped_task_releases_its_worker(dsn: str, nested: bool) -> None:
    """A task that was garbage-collected does not keep a connection."""
    async with database_at(dsn, most=2) as database:

        async def forgotten() -> None:
            async with database.transaction(), AsyncExitStack() as stack:
                if nested:
                    await stack.enter_async_context(database.transaction())
                await insert(database, 1)
                await Deferred()

        task = forgotten()
        ensureDeferred(task)
        await until(
            lambda: database.pool.stats().busy and not database.pool.scheduler.queue.qsize()
        )
        await pause(0.05)
        task.close()
        await until(lambda: database.pool.stats().busy == 0)
    assert kept(dsn) == []


@pytest.mark.parametrize("form", ["text", "bytes", "composed", "many", "copy", "foreign"])
@pytest_twisted.ensureDeferred
async def test_statement_of_any_form_that_comes_first_is_inside(dsn: str, form: str) -> None:
    """Each kind of first statement is sent with BEGIN."""

    def first_txn(connection: PgConnection) -> None:
        factory = DictCursor if form == "foreign" else None
        with connection.cursor(cursor_factory=factory) as cursor:
            if form in ("text", "foreign"):
                cursor.execute("INSERT INTO kept VALUES (%s)", [1])
            elif form == "bytes":
                cursor.execute(b"INSERT INTO kept VALUES (1)")
            elif form == "composed":
                cursor.execute(SQL("INSERT INTO {} VALUES (1)").format(Identifier("kept")))
            elif form == "many":
                cursor.executemany("INSERT INTO kept (id) VALUES (%s)", [[1], [2]])
            else:
                cursor.copy_expert("COPY kept (id) FROM STDIN", StringIO("1\n2\n"))

    async with database_at(dsn) as database:

        async def body() -> None:
            async with database.transaction():
                await database.run(first_txn)
                raise Boom

        with pytest.raises(Boom):
            await body()
        assert kept(dsn) == []
        await database.atomic(first_txn)
        assert 1 in kept(dsn)


@pytest_twisted.ensureDeferred
async def test_retry_inside_a_transaction_is_left_to_the_outermost(dsn: str) -> None:
    """A statement inside a transaction is not retried: only the entire transaction can be."""
    attempts = []
    async with database_at(dsn) as database:

        async def inner() -> None:
            attempts.append("inner")
            if len(attempts) < 4:
                await database.statement("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$")
            await insert(database, 1)

        async def outer() -> None:
            attempts.append("outer")
            await database.transact(inner)

        await database.transact(outer)
    assert attempts == ["outer", "inner"] * 2
    assert kept(dsn) == [1]


@pytest_twisted.ensureDeferred
async def test_savepoint_on_a_dead_connection_raises_the_first_error(dsn: str) -> None:
    """Later errors of the dead connection do not replace it."""
    async with database_at(dsn) as database:

        async def body() -> None:
            async with database.transaction():
                await database.statement("SELECT 1")
                async with database.transaction():
                    await database.statement("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(psycopg2.OperationalError):
            await body()
        assert await database.statement("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_savepoint_without_a_worker_in_time_fails(dsn: str) -> None:
    """The transaction does not wait for a savepoint that cannot be set."""
    async with database_at(dsn, most=1, acquire_timeout=0.1) as database:
        slow = database.statement("SELECT pg_sleep(0.7)")

        async def body() -> None:
            async with database.transaction(), database.transaction():
                await insert(database, 1)

        with pytest.raises(Unavailable):
            await body()
        await slow
        assert database.level is None
        await insert(database, 2)
    assert kept(dsn) == [2]
