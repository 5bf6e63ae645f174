"""Upserts with a condition on rows that a policy or a view hides: the result reveals nothing of them."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from service.api.roles import Roles
from service.errors import Conflict, InvalidArgument, NotAuthorized
from service.request.arguments import Caller
from tests.conftest import execute, wait_for_lock
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE ROLE hu_guest;
CREATE TABLE teams (id int PRIMARY KEY, name text);
CREATE TABLE rl (id int PRIMARY KEY, owner text, a text, k text UNIQUE, team int REFERENCES teams,
    n int UNIQUE NULLS NOT DISTINCT);
CREATE UNIQUE INDEX rl_lower ON rl (lower(k));
CREATE FUNCTION loud(rl, mark text) RETURNS text LANGUAGE sql STABLE
    AS $$ SELECT upper($1.a) || mark $$;
ALTER TABLE rl ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON rl TO hu_guest USING (owner = 'guest') WITH CHECK (owner = 'guest');
CREATE VIEW rlv AS SELECT id, owner, a FROM rl WHERE owner = 'guest';
GRANT ALL ON rl, rlv, teams TO hu_guest;
CREATE TABLE codes (code text PRIMARY KEY, val int);
GRANT INSERT, SELECT (code), UPDATE (val) ON codes TO hu_guest;
"""

BEFORE_EACH = (
    "TRUNCATE rl, teams; INSERT INTO teams VALUES (1, 'red'), (2, 'blue');"
    " INSERT INTO rl VALUES (1, 'guest', 's3en', 'k1', 1, 1), (2, 'boss', 's3cret', 'k2', 1, NULL)"
)

ROLES = Roles({"guest": "hu_guest"}, None)

pytestmark = pytest.mark.serving(roles=ROLES)

GUEST = Caller(7, "g", "guest", "realm1")

CONDITIONS: list[tuple[Any, Any]] = [
    ({"a": {"starts": "s3"}}, {"a": {"starts": "z"}}),
    ({"team.name": "red"}, {"team.name": "blue"}),
    ({"team": {"name": "red"}}, {"team": {"name": "blue"}}),
    ({"loud": {"args": {"mark": "!"}, "starts": "S3"}}, {"loud": {"args": {"mark": "!"}, "is": "null"}}),
    ({"a::int": 1}, {"a": "x"}),
]  # fmt: skip
KEYS: list[Any] = [None, ["k"], "rl_lower", ["n"]]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
@pytest_twisted.ensureDeferred
async def test_upsert_with_where_is_refused_for_any_hidden_row(
    db: DirectCaller, dsn: str, conditions: tuple[Any, Any], key: Any
) -> None:
    """As without a condition: by any key, on columns, related rows and computed columns."""
    row = {"id": 2, "owner": "guest", "a": "x", "k": "k2", "n": None}
    plain = await failure_of(db.call_as(GUEST, "rl.upsert", row, on_conflict=key))
    for where in conditions:
        call = db.call_as(GUEST, "rl.upsert", row, on_conflict=key, where=where)
        refused = await failure_of(call)
        assert isinstance(refused, NotAuthorized)
        assert (str(refused), refused.details) == (str(plain), plain.details)
    assert execute(dsn, "SELECT a FROM rl WHERE id = 2") == [("s3cret",)]


@pytest.mark.parametrize("key", KEYS[:3], ids=str)
@pytest.mark.parametrize("conditions", CONDITIONS[:4], ids=str)
@pytest_twisted.ensureDeferred
async def test_upsert_with_where_changes_a_visible_row_that_matches(
    db: DirectCaller, conditions: tuple[Any, Any], key: Any
) -> None:
    """A visible row is changed if and only if the condition holds."""
    row = {"id": 1, "owner": "guest", "a": "x", "k": "k1", "n": 1}
    holds, misses = conditions
    kwargs = {"on_conflict": key, "select": ["id", "a"]}
    assert await db.call_as(GUEST, "rl.upsert", row, where=misses, **kwargs) is None
    found = await db.call_as(GUEST, "rl.upsert", row, where=holds, **kwargs)
    assert found == {"id": 1, "a": "x"}


@pytest.mark.parametrize("start", ["s3", "z"])
@pytest_twisted.ensureDeferred
async def test_upsert_with_where_into_a_view_does_not_change_rows_outside_it(
    db: DirectCaller, dsn: str, start: str
) -> None:
    """PostgreSQL itself would write them, with the rights of the view's owner."""
    where = {"a": {"starts": start}}
    row = {"id": 2, "owner": "guest", "a": "x"}
    refused = await failure_of(
        db.call_as(GUEST, "rlv.upsert", row, on_conflict=["id"], where=where)
    )
    assert isinstance(refused, Conflict)
    assert refused.details["path"] == "where"
    assert "s3cret" not in f"{refused} {refused.details}"
    assert execute(dsn, "SELECT owner, a FROM rl WHERE id = 2") == [("boss", "s3cret")]
    found = await db.call_as(
        GUEST, "rlv.upsert", {**row, "id": 1}, on_conflict=["id"], where=where, select=["a"]
    )
    assert found == ({"a": "x"} if start == "s3" else None)


@pytest.mark.parametrize(("start", "expected"), [("new", "x"), ("z", "new")])
@pytest_twisted.ensureDeferred
async def test_upsert_with_where_applies_to_a_concurrently_inserted_row(
    db: DirectCaller, dsn: str, start: str, expected: str
) -> None:
    """It waits for the other writer, does not see the new row yet, and runs again."""
    with psycopg2.connect(dsn) as other, other.cursor() as cursor:
        cursor.execute("INSERT INTO rl VALUES (3, 'guest', 'new', 'k3', 1, 3)")
        row = {"id": 3, "owner": "guest", "a": "x"}
        where = {"a": {"starts": start}}
        answer = ensureDeferred(db.call_as(GUEST, "rl.upsert", row, where=where, select=["a"]))
        await deferToThread(wait_for_lock, dsn)
        other.commit()
        assert await answer == ({"a": "x"} if expected == "x" else None)
    assert execute(dsn, "SELECT a FROM rl WHERE id = 3") == [(expected,)]


@pytest_twisted.ensureDeferred
async def test_upsert_with_where_by_an_index_without_a_readable_key_is_refused(
    dsn: str,
) -> None:
    """The columns of an index on expressions do not identify the row."""
    execute(dsn, "ALTER TABLE rl DROP CONSTRAINT rl_pkey")
    try:
        async with serving(dsn, roles=ROLES) as db:
            row = {"id": 2, "owner": "guest", "a": "x", "k": "K2"}
            call = db.call_as(GUEST, "rl.upsert", row, on_conflict="rl_lower", where={"a": "x"})
            refused = await failure_of(call)
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "where"
    finally:
        execute(dsn, "ALTER TABLE rl ADD PRIMARY KEY (id)")


@pytest_twisted.ensureDeferred
async def test_upsert_without_select_on_the_updated_columns_is_refused(
    db: DirectCaller, dsn: str
) -> None:
    """As docs/roles.md says; with SELECT it is accepted."""
    call = ("codes.upsert", {"code": "a", "val": 1})
    refused = await failure_of(db.call_as(GUEST, *call, returning=False))
    assert isinstance(refused, NotAuthorized)
    execute(dsn, "GRANT SELECT (val) ON codes TO hu_guest")
    try:
        assert await db.call_as(GUEST, *call, returning=False) == {"affected": 1}
    finally:
        execute(dsn, "REVOKE SELECT (val) ON codes FROM hu_guest")
