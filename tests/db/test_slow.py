"""
Slow statements, from the server to the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from psycopg2.sql import SQL, Literal
from twisted.internet.defer import gatherResults
from twisted.logger import globalLogPublisher

from service.db.connection import PgConnection
from service.db.planned import PreparedStatement
from service.db.session_settings import SessionSettings
from service.db.worker import ORIGIN, Origin
from service.errors import StatementTimeout
from tests.db.served import database_at
from tests.deferreds import failure_of, until

LOGGED = SessionSettings(slow_statement=0.05)
SLEEP = "SELECT pg_sleep(0.1), %s AS given, 'secret' AS told"
SHAPE = "SELECT pg_sleep(?), %s AS given, ? AS told"


@contextmanager
def slow() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged of slow statements."""
    found: list[dict[str, Any]] = []

    def observe(event: Any) -> None:
        if str(event.get("log_format")).startswith("slow statement"):
            found.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        yield found
    finally:
        globalLogPublisher.removeObserver(observe)


@pytest_twisted.ensureDeferred
async def test_slow_statement_is_logged_with_its_origin(dsn: str) -> None:
    """And a quick one is not."""
    with slow() as found:
        async with database_at(dsn, LOGGED) as database:
            token = ORIGIN.set(Origin("c0ffee", "actions.find", "clerk"))
            await database.statement(SLEEP, ["secret"])
            await database.statement("SELECT 1")
            ORIGIN.reset(token)
            await database.statement(SLEEP, ["secret"])
            await until(lambda: len(found) == 2)
            assert database.pool.stats().slow == 2
    first, second = found
    assert first["origin"] == Origin("c0ffee", "actions.find", "clerk")
    assert first["statement"] == second["statement"] == SHAPE
    assert 0.1 <= first["seconds"] < 5
    assert (second["procedure"], second["role"]) == ("the service", "the service")
    assert "secret" not in f"{first} {second}"


@pytest_twisted.ensureDeferred
async def test_slow_prepared_statement_is_logged_with_its_text(dsn: str) -> None:
    planned = PreparedStatement("SELECT pg_sleep(0.1), %(given)s, 'secret'", given="text")

    def run_txn(connection: PgConnection) -> None:
        with connection.cursor() as cursor:
            planned.run(cursor, {"given": "secret"})

    with slow() as found:
        async with database_at(dsn, LOGGED) as database:
            await database.run(run_txn)
            await until(lambda: len(found) == 1)
    assert found[0]["statement"] == "SELECT pg_sleep(?), %(given)s, ?"


@pytest_twisted.ensureDeferred
async def test_slow_statement_in_named_transaction_is_logged_with_the_name(dsn: str) -> None:
    """The innermost name counts, to the end of its scope, in that task alone."""

    async def named() -> None:
        async with database.transaction(name="outer"):
            async with database.transaction(name="inner"):
                await database.statement(SLEEP, [1])
            async with database.transaction():
                await database.statement(SLEEP, [2])
        await database.statement(SLEEP, [3])

    with slow() as found:
        async with database_at(dsn, LOGGED) as database:
            await named()
            await database.transact(named, name="retried", retries=0)
            assert [each["origin"].transaction for each in found] == [
                *("inner", "outer", ""),
                *("inner", "outer", "retried"),
            ]
            assert ORIGIN.get() is None


@pytest_twisted.ensureDeferred
async def test_name_ends_with_failed_transaction(dsn: str) -> None:
    async with database_at(dsn, LOGGED) as database:
        with pytest.raises(KeyError):
            async with database.transaction(name="outer"):
                raise KeyError
        assert ORIGIN.get() is None


@pytest_twisted.ensureDeferred
async def test_statement_that_was_stopped_is_logged(dsn: str) -> None:
    """It is the slowest of all."""
    with slow() as found:
        async with database_at(dsn, LOGGED) as database:
            call = database.statement("SELECT pg_sleep(30)", retry=True, timeout=0.2)
            assert isinstance(await failure_of(call), StatementTimeout)
            await until(lambda: found)
    assert found[0]["statement"] == "SELECT pg_sleep(?)"


@pytest_twisted.ensureDeferred
async def test_statement_sent_in_any_way_is_timed(dsn: str) -> None:
    """Composed ones, functions, cursors of the server, many at once; not what waits for a caller."""

    def ways_txn(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(SQL("SELECT pg_sleep(0.1), {}").format(Literal("secret")))
            cursor.callproc("pg_sleep", [0.1])
            cursor.executemany("SELECT pg_sleep(%s)", [[0.1]])
        with connection.cursor("rows", withhold=True) as cursor:
            cursor.execute("SELECT pg_sleep(0.1), %s", ["secret"])
            cursor.fetchmany(1)

    with slow() as found:
        async with database_at(dsn, LOGGED) as database:
            await database.atomic(ways_txn)
            await gatherResults([database.statement("SELECT 1") for _ in range(5)])
    # On a busy machine the others are slow at times, too.
    assert [each["statement"] for each in found if "sleep" in each["statement"]] == [
        "SELECT pg_sleep(?), ?",
        "pg_sleep",
        "SELECT pg_sleep(%s)",
        'DECLARE "rows" CURSOR WITH HOLD FOR SELECT pg_sleep(?), ?',
    ]


@pytest_twisted.ensureDeferred
async def test_nothing_is_logged_unless_asked_for(dsn: str) -> None:
    with slow() as found:
        async with database_at(dsn) as database:
            await database.statement(SLEEP, [1])
    assert found == []
