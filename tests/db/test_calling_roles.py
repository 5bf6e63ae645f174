"""
Functions with the rights of the caller's role.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.api.roles import Roles
from service.db.connection import PgConnection
from service.db.session_settings import Identity
from service.db.transaction import statement_txn
from service.describe.document import describe
from service.errors import (
    DatabaseRefused,
    InvalidArgument,
    NoSuchProcedure,
    NotAuthorized,
    OutcomeUnknown,
    Raised,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of, until

ROLES = Roles({"clerk": "fn_clerk"}, "fn_anyone")
CLERK = Caller(7, "p1", "clerk", "realm1")
STRANGER = Caller(8, None, "guest", "realm1")

SCHEMA = """
CREATE ROLE fn_clerk; CREATE ROLE fn_anyone;
CREATE TABLE notes (id int PRIMARY KEY, owner text, pay int);
INSERT INTO notes SELECT i, 'p' || i % 3, i FROM generate_series(1, 6) i;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON notes TO fn_clerk USING (owner = current_setting('rowcast.authid', true));
GRANT SELECT ON notes TO fn_clerk;
CREATE TABLE wages (id int PRIMARY KEY, pay int);
INSERT INTO wages VALUES (1, 5);
GRANT SELECT (id) ON wages TO fn_clerk;
CREATE TABLE log (who text);
GRANT INSERT ON log TO fn_clerk;
CREATE FUNCTION mine() RETURNS SETOF notes STABLE LANGUAGE sql AS 'SELECT * FROM notes ORDER BY id';
CREATE FUNCTION whoami() RETURNS text STABLE LANGUAGE sql AS 'SELECT current_user::text';
CREATE FUNCTION secret() RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE EXECUTE ON FUNCTION secret() FROM public;
CREATE FUNCTION twice(notes) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1.pay * 2';
CREATE FUNCTION raised(wages) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1.pay + 1';
CREATE PROCEDURE note(INOUT who text) LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO log VALUES (who || current_user); who := current_user; END$$;
CREATE TABLE steps (who text, claim text, at int);
GRANT ALL ON steps TO fn_clerk, fn_anyone;
CREATE PROCEDURE stepwise(many int, nap float DEFAULT 0, INOUT who text DEFAULT '') LANGUAGE plpgsql
AS $$BEGIN
    FOR i IN 1 .. many LOOP
        INSERT INTO steps VALUES (current_user, current_setting('rowcast.authid', true), i);
        COMMIT;
        PERFORM pg_sleep(nap);
        IF i = 3 THEN RAISE 'three'; END IF;
    END LOOP;
    who := current_user || ' ' || (SELECT count(*) FROM steps);
END$$;
CREATE SCHEMA fn_other;
GRANT USAGE ON SCHEMA fn_other TO fn_clerk;
CREATE TABLE fn_other.steps (at int);
GRANT ALL ON fn_other.steps TO fn_clerk;
CREATE PROCEDURE fn_other.stepwise(INOUT n int) LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO steps VALUES (n); COMMIT; n := (SELECT count(*) FROM steps);
END$$;
"""


pytestmark = pytest.mark.serving("public", "fn_other", roles=ROLES)


@pytest_twisted.ensureDeferred
async def test_function_called_by_a_role_runs_with_its_rights(db: DirectCaller, dsn: str) -> None:
    """A function runs as the role, sees what the role may read, and exists if the role may execute it."""
    answer = db.dispatcher.answer
    assert await answer("fn.whoami", (), {}, CLERK) == "fn_clerk"
    assert await answer("fn.whoami", (), {}, STRANGER) == "fn_anyone"
    assert [row["id"] for row in await answer("fn.mine", (), {}, CLERK)] == [1, 4]
    found = await answer("fn.mine.find", (), {"count": "exact", "select": ["twice"]}, CLERK)
    assert (found["rows"], found["count"]) == ([{"twice": 2}, {"twice": 8}], 2)
    assert isinstance(await failure_of(answer("fn.secret", (), {}, CLERK)), NoSuchProcedure)
    assert isinstance(await failure_of(answer("fn.mine", (), {}, STRANGER)), NotAuthorized)
    assert await answer("fn.note", (), {"who": "x"}, CLERK) == {"who": "fn_clerk"}
    assert execute(dsn, "SELECT who FROM log") == [("xfn_clerk",)]


async def roles_of_sessions(db: DirectCaller) -> set[tuple[str, str, str]]:
    """Return the roles of all sessions of the pool."""
    sql = (
        "SELECT current_user::text, coalesce(current_setting('rowcast.authid', true), ''),"
        " current_setting('search_path')"
    )
    return {row for rows in await query_each_session(db, sql) for row in rows}


async def query_each_session(db: DirectCaller, sql: str) -> list[list[Any]]:
    """Run a query in each session of the pool once: a barrier keeps each session busy until all have run it."""
    many = db.pool.scheduler.limits.most
    barrier = threading.Barrier(many)

    def asked_txn(connection: PgConnection) -> list[Any]:
        barrier.wait(20)
        found: list[Any] = statement_txn(connection, sql)
        return found

    return await gatherResults([db.database.run(asked_txn) for _ in range(many)])


@pytest_twisted.ensureDeferred
async def test_procedure_that_commits_runs_as_its_caller_alone(db: DirectCaller, dsn: str) -> None:
    """It runs as the caller; however it ends, the session's role is reset."""
    own = {("postgres", "", '"public", "fn_other", "$user", public')}
    answer = db.dispatcher.answer
    assert await answer("fn.stepwise", (), {"many": 2}, CLERK) == {"who": "fn_clerk 2"}
    assert await roles_of_sessions(db) == own
    assert await answer("fn_other.fn.stepwise", (), {"n": 7}, CLERK) == {"n": 1}
    assert await roles_of_sessions(db) == own
    raised = await failure_of(answer("fn.stepwise", (), {"many": 5}, STRANGER))
    assert isinstance(raised, Raised)
    assert await roles_of_sessions(db) == own
    late = await failure_of(answer("fn.stepwise", (), {"many": 9, "nap": 9, "timeout": 0.2}, CLERK))
    assert isinstance(late, OutcomeUnknown)
    assert await roles_of_sessions(db) == own
    call = ensureDeferred(answer("fn.stepwise", (), {"many": 9, "nap": 9}, CLERK))
    await until(lambda: execute(dsn, "SELECT count(*) FROM steps") == [(7,)])
    call.cancel()
    await failure_of(call)
    await until(lambda: db.pool.stats().busy == 0)
    assert await roles_of_sessions(db) == own
    assert execute(dsn, "SELECT * FROM steps ORDER BY who, claim, at") == [
        ("fn_anyone", "", 1), ("fn_anyone", "", 2), ("fn_anyone", "", 3),
        ("fn_clerk", "p1", 1), ("fn_clerk", "p1", 1), ("fn_clerk", "p1", 1), ("fn_clerk", "p1", 2),
    ]  # fmt: skip


@pytest_twisted.ensureDeferred
async def test_procedure_that_commits_in_a_transaction_is_refused(db: DirectCaller) -> None:
    """The error says when a procedure may commit."""
    async with db.database.transaction() as level:
        refused = await failure_of(db.dispatcher.answer("fn.stepwise", (), {"many": 1}, CLERK))
        assert isinstance(refused, DatabaseRefused)
        assert refused.details["sqlstate"] == "2D000"
        assert "alone" in refused.details["hint"]
        await level.rollback()


@pytest_twisted.ensureDeferred
async def test_session_whose_role_cannot_be_reset_is_closed(db: DirectCaller) -> None:
    """A session whose role cannot be reset is never used again."""

    async def pids() -> set[int]:
        return {pid for ((pid,),) in await query_each_session(db, "SELECT pg_backend_pid()")}

    before = await pids()

    def broken_txn(connection: PgConnection) -> None:
        connection.own_settings = "SELEKT;"

    with db.database.identity(Identity("", "SELECT set_config('role', 'fn_clerk', false);")):
        await db.database.run(broken_txn, ending=True)
    assert len(before - await pids()) == 1
    assert {who for who, _, _ in await roles_of_sessions(db)} == {"postgres"}


@pytest_twisted.ensureDeferred
async def test_computed_column_without_select_on_all_columns_is_refused(db: DirectCaller) -> None:
    """A computed column exists for roles that may read all columns of the row."""
    answer = db.dispatcher.answer
    found = await answer("notes.find", (), {"select": ["twice"], "order": ["-twice"]}, CLERK)
    assert found["rows"] == [{"twice": 8}, {"twice": 2}]
    for kwargs in ({"select": ["raised"]}, {"select": ["id"], "where": {"raised": 6}},
                   {"select": ["id"], "order": ["raised"]}):  # fmt: skip
        assert isinstance(
            await failure_of(answer("wages.find", (), kwargs, CLERK)), InvalidArgument
        ), kwargs


@pytest_twisted.ensureDeferred
async def test_functions_described_to_a_role_are_those_it_may_call(db: DirectCaller) -> None:
    """The description contains the functions that the role may execute."""
    catalog = db.dispatcher.served_to(CLERK).catalog
    document = describe(catalog, "rowcast", "0", db.dispatcher.verbs, {})
    functions = document["functions"]
    assert document["relations"]["notes"]["computed"].keys() == {"twice"}
    assert document["relations"]["wages"]["computed"] == {}
    assert functions.keys() == {"fn.mine", "fn.whoami", "fn.twice", "fn.raised", "fn.note",
                                "fn.stepwise", "fn_other.fn.stepwise"}  # fmt: skip
