"""
The role and the claims of each operation in a transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg2
import pytest_twisted

from service.db.connection import PgConnection
from service.db.database import Database
from service.db.session_settings import OWN_IDENTITY, Identity, identity_of
from tests.conftest import execute
from tests.db.relay import Relay
from tests.db.served import database_at
from tests.deferreds import failure_of

SCHEMA = """
DO $$ BEGIN CREATE ROLE act_one; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DO $$ BEGIN CREATE ROLE act_two; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
CREATE FUNCTION become(who text) RETURNS text LANGUAGE sql
    AS $$ SELECT set_config('rowcast.authid', who, true) $$;
"""

ONE = identity_of("act_one", {"authid": "ann"})
TWO = identity_of("act_two", {"authid": "bob", "realm": "r"}, "odd")
WHO = (
    "SELECT current_user::text, current_setting('rowcast.authid', true),"
    " coalesce(current_setting('rowcast.realm', true), ''), current_setting('search_path')"
)
OF_ONE = [("act_one", "ann", "", '"$user", public')]
OF_TWO = [("act_two", "bob", "r", '"odd", "$user", public')]
OF_SERVICE = [("postgres", "", "", '"$user", public')]


@asynccontextmanager
async def relayed(dsn: str) -> AsyncIterator[tuple[Database, Relay]]:
    with Relay(dsn) as relay:
        async with database_at(relay.dsn, most=1) as database:
            await database.statement("SELECT 1")
            yield database, relay


async def who(database: Database, identity: Identity) -> Any:
    with database.identity(identity):
        return await database.statement(WHO)


def read_txn(connection: PgConnection, params: Any = None) -> Any:
    """Run a statement without side effects on the session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1" if params is None else "SELECT %s", params, clean=True)
        return cursor.fetchall()


@pytest_twisted.ensureDeferred
async def test_operation_after_others_has_its_own_role_claims_and_path(dsn: str) -> None:
    """Nothing of earlier operations remains; the next transaction sets all again."""
    async with database_at(dsn, most=1) as database:
        for _ in range(2):
            async with database.transaction():
                for identity, found in (
                    (ONE, OF_ONE), (TWO, OF_TWO), (ONE, OF_ONE), (OWN_IDENTITY, OF_SERVICE),
                    (TWO, OF_TWO), (OWN_IDENTITY, OF_SERVICE),
                ):  # fmt: skip
                    assert await who(database, identity) == found
        assert await who(database, ONE) == OF_ONE
        assert (await database.statement(WHO))[0][0] == "postgres"


@pytest_twisted.ensureDeferred
async def test_identity_is_sent_with_the_statement_only_when_it_differs(dsn: str) -> None:
    async with relayed(dsn) as (database, relay):
        before = len(relay.messages)
        async with database.transaction():
            for identity in (ONE, identity_of("act_one", {"authid": "ann"}), TWO):
                with database.identity(identity):
                    await database.run(read_txn, retry=True)
                    await database.run(read_txn, retry=True)
        *sent, _ = relay.messages[before:]
    assert sent == [
        b"BEGIN;" + ONE.local.encode() + b"SELECT 1",
        *[b"SELECT 1"] * 3,
        b"SELECT pg_catalog.set_config('search_path','\"$user\", public',true);"
        + ONE.undo.encode() + TWO.local.encode() + b"SELECT 1",
        b"SELECT 1",
    ]  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_identity_is_set_again_after_a_savepoint_is_rolled_back(dsn: str) -> None:
    """PostgreSQL undoes SET LOCAL with the savepoint; the next operation sets its own again."""
    async with database_at(dsn) as database, database.transaction():
        assert await who(database, ONE) == OF_ONE
        with database.identity(TWO):

            async def fails() -> None:
                async with database.transaction():
                    assert await database.statement(WHO) == OF_TWO
                    await database.statement("SELECT 1/0")

            await failure_of(fails())
            assert await database.statement(WHO) == OF_TWO
        assert await who(database, ONE) == OF_ONE


@pytest_twisted.ensureDeferred
async def test_claims_set_by_a_function_end_with_its_operation(dsn: str) -> None:
    async with database_at(dsn) as database, database.transaction():
        with database.identity(ONE):
            await database.statement("SELECT become('eve')")
            assert (await database.statement(WHO))[0][1] == "eve"
        assert await who(database, ONE) == OF_ONE


@pytest_twisted.ensureDeferred
async def test_identity_of_an_unsent_statement_is_set_by_the_next(dsn: str) -> None:
    """psycopg2 raises for a value that it cannot adapt, and the transaction continues."""
    async with database_at(dsn) as database, database.transaction():
        assert await who(database, ONE) == OF_ONE
        with database.identity(TWO):
            error = await failure_of(database.run(read_txn, [object()]))
            assert isinstance(error, psycopg2.ProgrammingError)
        assert await who(database, TWO) == OF_TWO


@pytest_twisted.ensureDeferred
async def test_operation_that_sent_nothing_does_not_prevent_the_commit(dsn: str) -> None:
    execute(dsn, "CREATE TABLE kept (id int)")
    async with database_at(dsn) as database, database.transaction():
        await database.statement("INSERT INTO kept VALUES (1)")
        with database.identity(TWO):
            await database.run(lambda connection: None)
    assert execute(dsn, "SELECT id FROM kept") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_cursor_of_the_server_is_declared_under_the_identity(dsn: str) -> None:
    """psycopg2 puts DECLARE before the text, so no other statement can share the message."""

    def named_txn(connection: PgConnection) -> Any:
        with connection.cursor("rows", withhold=True) as cursor:
            cursor.execute(WHO)
            return cursor.fetchall()

    async with database_at(dsn) as database, database.transaction():
        for identity, found in ((ONE, OF_ONE), (TWO, OF_TWO)):
            with database.identity(identity):
                assert await database.run(named_txn) == found
