"""
Functions with the rights of the caller's role.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted

from service.answer.describing import describe
from service.answer.roles import Roles
from service.errors import InvalidArgument, NoSuchProcedure, NotAuthorized
from service.request.caller import Caller
from tests.conftest import execute
from tests.db.hubs import Callee, serving
from tests.db.rooms import failure_of

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
"""


@pytest.fixture(scope="module", autouse=True)
def schema(dsn: str) -> Iterator[None]:
    """Make roles and functions, and drop the roles again, which belong to the whole server."""
    execute(dsn, SCHEMA)
    yield
    execute(dsn, "DROP OWNED BY fn_clerk, fn_anyone; DROP ROLE fn_clerk, fn_anyone")


@pytest_twisted.async_yield_fixture
async def db(dsn: str) -> AsyncIterator[Callee]:
    """Serve them."""
    async with serving(dsn, roles=ROLES) as callee:
        yield callee


@pytest_twisted.ensureDeferred
async def test_rights(db: Callee, dsn: str) -> None:
    """A function runs as the role, sees what the role sees, and is there if it may be called."""
    answer = db.hub.answer
    assert await answer("fn.whoami", (), {}, CLERK) == "fn_clerk"
    assert await answer("fn.whoami", (), {}, STRANGER) == "fn_anyone"
    assert [row["id"] for row in await answer("fn.mine", (), {}, CLERK)] == [1, 4]
    found = await answer("fn.mine.find", (), {"count": "exact", "select": ["twice"]}, CLERK)
    assert (found["rows"], found["count"]) == ([{"twice": 2}, {"twice": 8}], 2)
    assert isinstance(await failure_of(answer("fn.secret", (), {}, CLERK)), NoSuchProcedure)
    assert isinstance(await failure_of(answer("fn.mine", (), {}, STRANGER)), NotAuthorized)
    assert await answer("fn.note", (), {"who": "x"}, CLERK) == {"who": "fn_clerk"}
    assert execute(dsn, "SELECT who FROM log") == [("xfn_clerk",)]


@pytest_twisted.ensureDeferred
async def test_computed_columns(db: Callee) -> None:
    """A function of a row is there for a role that may read the whole row."""
    answer = db.hub.answer
    found = await answer("notes.find", (), {"select": ["twice"], "order": ["-twice"]}, CLERK)
    assert found["rows"] == [{"twice": 8}, {"twice": 2}]
    for kwargs in ({"select": ["raised"]}, {"select": ["id"], "where": {"raised": 6}},
                   {"select": ["id"], "order": ["raised"]}):  # fmt: skip
        assert isinstance(
            await failure_of(answer("wages.find", (), kwargs, CLERK)), InvalidArgument
        ), kwargs


@pytest_twisted.ensureDeferred
async def test_described(db: Callee) -> None:
    """A role is told of the functions that it may call."""
    catalog = db.hub.served_to(CLERK).catalog
    document = describe(catalog, "rowcast", "0", db.hub.verbs, [])
    functions = document["functions"]
    assert document["relations"]["notes"]["computed"].keys() == {"twice"}
    assert document["relations"]["wages"]["computed"] == {}
    assert functions.keys() == {"fn.mine", "fn.whoami", "fn.twice", "fn.raised", "fn.note"}
