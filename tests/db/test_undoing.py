"""
Writes of a failed or cancelled scope are never committed, whenever its task is cancelled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, TRANSACTION_STATUS_INTRANS
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from service.db.connection import PgConnection
from service.db.database import Database
from service.db.transaction import TransactionAborted, commit_txn, rollback_txn, undo_txn
from service.errors import StatementTimeout, Unavailable
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import database_at
from tests.deferreds import failure_of, pause, until


@pytest.fixture(autouse=True)
def table(dsn: str) -> None:
    execute(dsn, "DROP TABLE IF EXISTS kept; CREATE TABLE kept (id int PRIMARY KEY)")


def kept(dsn: str) -> list[object]:
    return [row[0] for row in execute(dsn, "SELECT id FROM kept ORDER BY id")]


async def insert(database: Database, number: int) -> None:
    await database.statement("INSERT INTO kept VALUES (%s)", [number])


async def sleeping(dsn: str) -> None:
    """Wait until the server runs pg_sleep."""
    asleep = "query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    await until(lambda: execute(dsn, f"SELECT 1 FROM pg_stat_activity WHERE {asleep}"))


def slow(database: Database) -> Deferred[Any]:
    """Keep the transaction's worker busy for a while."""
    return database.statement("SELECT pg_sleep(0.5)")


async def given_up(database: Database) -> None:
    async with database.transaction():
        await insert(database, 1)
        slow(database)
        raise ValueError


async def ended(database: Database) -> None:
    async with database.transaction():
        await insert(database, 1)
        slow(database)


@pytest.mark.parametrize("inner", [given_up, ended])
@pytest_twisted.ensureDeferred
async def test_savepoint_cancelled_at_its_end_is_rolled_back(
    dsn: str, inner: Callable[[Database], Awaitable[None]]
) -> None:
    """The cancellation is raised and the savepoint rolled back, whatever the outer scope does next."""
    async with database_at(dsn) as database:
        caught: list[BaseException] = []

        async def outer() -> None:
            async with database.transaction():
                await insert(database, 0)
                try:
                    await inner(database)
                except BaseException as error:
                    caught.append(error)
                await insert(database, 2)

        task = ensureDeferred(outer())
        await sleeping(dsn)
        task.cancel()
        await task
    assert [type(error) for error in caught] == [CancelledError]
    assert kept(dsn) == [0, 2]


@pytest_twisted.ensureDeferred
async def test_savepoint_over_its_time_limit_at_its_end_is_rolled_back(dsn: str) -> None:
    async with database_at(dsn) as database, database.transaction():
        with pytest.raises(StatementTimeout):
            await database.within(0.2, ended(database))
        await insert(database, 2)
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_transaction_cancelled_during_its_rollback_is_cancelled(dsn: str) -> None:
    """The cancellation is raised, too."""
    async with database_at(dsn) as database:
        task = ensureDeferred(given_up(database))
        await sleeping(dsn)
        task.cancel()
        assert isinstance(await failure_of(task), CancelledError)
        await insert(database, 3)
    assert kept(dsn) == [3]


@pytest_twisted.ensureDeferred
async def test_savepoint_that_cannot_be_rolled_back_fails_its_transaction(dsn: str) -> None:
    """The entire transaction is rolled back, even if its scope continues."""
    async with database_at(dsn) as database:

        async def lost() -> None:
            async with database.transaction():
                await insert(database, 1)
                await database.statement("RELEASE SAVEPOINT scope_1")
                raise ValueError

        async def outer() -> None:
            async with database.transaction():
                with contextlib.suppress(ValueError):
                    await lost()
                await insert(database, 2)

        assert isinstance(await failure_of(outer()), (psycopg2.Error, Unavailable))
        await insert(database, 3)
    assert kept(dsn) == [3]


def test_session_whose_savepoint_cannot_be_rolled_back_is_closed(dsn: str) -> None:
    """Closing it rolls back the transaction, so that no later job can commit the rest."""
    connection = psycopg2.connect(dsn, connection_factory=PgConnection)
    connection.command("BEGIN; INSERT INTO kept VALUES (7)")
    with pytest.raises(psycopg2.Error):
        undo_txn(connection, "never_set")
    assert connection.closed
    assert 7 not in kept(dsn)


@pytest_twisted.ensureDeferred
async def test_savepoint_whose_body_swallowed_an_error_is_rolled_back(dsn: str) -> None:
    """It fails and is rolled back; the outer scope may continue."""
    async with database_at(dsn) as database:

        async def inner() -> None:
            async with database.transaction():
                await insert(database, 1)
                await failure_of(insert(database, 1))

        async with database.transaction():
            assert isinstance(await failure_of(inner()), psycopg2.Error)
            await insert(database, 2)
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_savepoint_of_a_dropped_task_is_rolled_back(dsn: str) -> None:
    """The savepoint of a garbage-collected task is rolled back in a transaction that continues."""
    async with database_at(dsn) as database:
        at: list[bool] = []

        async def inner() -> None:
            async with database.transaction():
                await insert(database, 1)
                at.append(True)
                await Deferred()

        async with database.transaction():
            dropped = inner()
            ensureDeferred(dropped)
            await until(lambda: at)
            dropped.close()
            await insert(database, 2)
            await pause(0)
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_rollback_of_a_failed_function_is_sent_before_the_reset(dsn: str) -> None:
    """The function itself rolls back, not only the worker's clean-up after it."""

    def undone_txn(connection: PgConnection) -> tuple[int, int]:
        connection.begin("BEGIN")
        connection.command("INSERT INTO kept VALUES (1)")
        began = connection.get_transaction_status()
        rollback_txn(connection)
        return began, connection.get_transaction_status()

    async with database_at(dsn) as database:
        began, ended = await database.run(undone_txn)
        assert (began, ended) == (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_IDLE)
    assert kept(dsn) == []


@pytest_twisted.ensureDeferred
async def test_rollback_of_a_transaction_that_never_began_sends_nothing(dsn: str) -> None:
    """A deferred BEGIN is discarded; a closed session has nothing to roll back."""

    def never_txn(connection: PgConnection) -> None:
        connection.begin("BEGIN")
        rollback_txn(connection)
        assert connection.opening is None
        connection.command("INSERT INTO kept VALUES (2)")

    def closed_txn(connection: PgConnection) -> None:
        connection.close()
        rollback_txn(connection)

    with Relay(dsn) as relay:
        async with database_at(relay.dsn) as database:
            await database.run(never_txn)
            await database.run(closed_txn)
        assert [message for message in relay.messages if b"ROLLBACK" in message] == []
    assert kept(dsn) == [2]


@pytest_twisted.ensureDeferred
async def test_commit_of_a_failed_transaction_is_an_error(dsn: str) -> None:
    """A COMMIT answered by ROLLBACK raises; the COMMIT of a transaction that never began is not sent."""

    def swallowed_txn(connection: PgConnection) -> None:
        connection.begin("BEGIN")
        connection.command("INSERT INTO kept VALUES (3)")
        with contextlib.suppress(psycopg2.Error):
            connection.command("SELECT 1 / 0")
        commit_txn(connection)

    def empty_txn(connection: PgConnection) -> None:
        connection.begin("BEGIN")
        commit_txn(connection)

    with Relay(dsn) as relay:
        async with database_at(relay.dsn) as database:
            assert isinstance(await failure_of(database.run(swallowed_txn)), TransactionAborted)
            sent = len(relay.messages)
            await database.run(empty_txn)
            assert relay.messages[sent:] == []
    assert kept(dsn) == []
