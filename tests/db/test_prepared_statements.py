"""
Prepared statements: a session prepares the statements of calls by key and of inserts once.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from service.api.roles import Roles
from service.db import planned
from service.db.connection import PgConnection
from service.db.planned import RUNS, WAITED
from service.errors import InvalidArgument, NotFound, ServiceError, UniqueViolation
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of, pause, until

SCHEMA = """
CREATE ROLE st_clerk; CREATE ROLE st_guest;
CREATE SCHEMA inner_st; GRANT USAGE ON SCHEMA inner_st TO st_clerk;
CREATE TABLE lands (id int PRIMARY KEY, code varchar(9) UNIQUE, n int, share varchar(9) DEFAULT '100%');
INSERT INTO lands SELECT i, 'c' || i, i FROM generate_series(1, 100) i;
CREATE TABLE towns (id serial PRIMARY KEY, land int REFERENCES lands, "na%me" varchar(9));
INSERT INTO towns (land, "na%me") SELECT i % 100 + 1, 'Town ' || i FROM generate_series(1, 300) i;
CREATE TABLE waits (id serial PRIMARY KEY, hours interval hour, plain interval, fine interval(0));
CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
CREATE TABLE evens (id int PRIMARY KEY, even even, tags varchar(3)[], day date);
CREATE TABLE own (id int PRIMARY KEY, owner text);
INSERT INTO own VALUES (1, 'st_clerk'), (2, 'st_guest');
ALTER TABLE own ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON own USING (owner = current_user);
CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children () INHERITS (parents);
INSERT INTO parents VALUES (1); INSERT INTO children VALUES (1);
COMMENT ON TABLE children IS '@key id';
CREATE VIEW shown AS SELECT id, n FROM lands; COMMENT ON VIEW shown IS '@key n';
CREATE TABLE inner_st.kept (id int PRIMARY KEY); INSERT INTO inner_st.kept VALUES (1);
CREATE FUNCTION leave() RETURNS int LANGUAGE plpgsql AS
  $$BEGIN EXECUTE 'DEALLOCATE ALL; PREPARE forged AS SELECT 1'; RETURN 1; END$$;
GRANT SELECT ON ALL TABLES IN SCHEMA public, inner_st TO st_clerk, st_guest;
"""
BEFORE_EACH = """
DROP TABLE IF EXISTS changing, other;
CREATE TABLE changing (id int PRIMARY KEY, v int, w text); INSERT INTO changing VALUES (1, 2, 'x');
"""
CLERK, GUEST = (Caller(1, "p", each, "realm1") for each in ("clerk", "guest"))
ROLES = Roles({"clerk": "st_clerk", "guest": "st_guest"}, "postgres")


def _prepared_txn(connection: PgConnection) -> list[tuple[str, int]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT statement, generic_plans + custom_plans FROM pg_prepared_statements"
            " ORDER BY prepare_time",
            clean=True,
        )
        return cursor.fetchall()


async def prepared(db: DirectCaller) -> list[tuple[str, int]]:
    """Return the prepared statements of the only session, and how often each has run."""
    found: list[tuple[str, int]] = await db.database.run(_prepared_txn, retry=True)
    return found


SETTLED: list[tuple[str, dict[str, Any]]] = [
    ("lands.get", {"key": 3}),
    ("lands.get", {"key": {"code": "c3"}, "form": "json"}),
    ("towns.get", {"key": 5, "embed": {"lands": True}}),
    ("lands.get", {"key": 3, "embed": {"towns": {"order": ["id"]}}}),
    ("lands.find", {"where": {"id": 3, "n": {"gt": 1}}, "order": ["n"]}),
    ("lands.update", {"key": 3, "changes": {"n": 4, "share": "50%"}, "select": ["id"]}),
    ("lands.update", {"key": 3, "changes": {"n": {"$add": 1}}, "expect": {"code": "c3"}, "select": ["id"]}),
    ("towns.create", {"values": {"land": 3, "na%me": "%s '"}, "returning": False}),
    ("evens.create", {"values": {"id": 1, "even": 2, "tags": ["a", None], "day": "2026-01-02"},
                      "returning": False}),
    ("lands.delete", {"key": 3, "select": ["id"]}),
]  # fmt: skip

UNSETTLED: list[tuple[str, dict[str, Any]]] = [
    ("lands.find", {"where": {"n": 3}}),
    ("lands.find", {"where": {"or": [{"id": 3}, {"n": 1}]}}),
    ("lands.find", {"where": {"id": {"in": [3, 4]}}}),
    ("lands.find", {"where": {"id": 3, "towns": {"na%me": "x"}}}),
    ("lands.get", {"keys": [3, 4]}),
    ("lands.get", {"key": 3, "embed": {"towns": {"where": {"na%me": "x"}}}}),
    ("lands.get", {"key": 3, "embed": {"towns": {"limit": 1}}}),
    ("lands.count", {"where": {"n": 3}}),
    ("parents.find", {"where": {"id": 1}}),
    ("shown.get", {"key": 3}),
    ("lands.update", {"where": {"n": 3}, "changes": {"n": 3}, "returning": False}),
    ("towns.create", {"values": [{"land": 3}, {"land": 4}], "returning": False}),
    ("waits.create", {"values": {"hours": "2"}, "returning": False}),
    ("waits.update", {"key": 1, "changes": {"hours": "2"}, "returning": False}),
]  # fmt: skip


async def outcome(db: DirectCaller, name: str, kwargs: dict[str, Any]) -> Any:
    """Return the result of a call, or its error."""
    try:
        return await db.call(name, **kwargs)
    except ServiceError as error:
        return error.uri, {**error.details, "id": None}


@pytest.mark.parametrize(("name", "kwargs"), SETTLED)
@pytest_twisted.ensureDeferred
async def test_stable_statement_is_prepared_once(
    db: DirectCaller, name: str, kwargs: dict[str, Any]
) -> None:
    """It is prepared after a few runs, and the results stay the same."""
    once = name.endswith(("create", "delete"))
    for _ in range(RUNS):
        await outcome(db, name, kwargs)
        assert await prepared(db) == []
    first = await outcome(db, name, kwargs)
    ((statement, runs),) = await prepared(db)
    assert "%s" not in statement.replace("na%me", "")
    # Rows that already exist or no longer exist: the statement runs and the call is refused.
    assert await outcome(db, name, kwargs) == first
    assert await prepared(db) == [(statement, runs + 1)] or once


@pytest.mark.parametrize(("name", "kwargs"), UNSETTLED)
@pytest_twisted.ensureDeferred
async def test_statement_whose_plan_depends_on_values_is_not_prepared(
    db: DirectCaller, name: str, kwargs: dict[str, Any]
) -> None:
    for _ in range(RUNS + 2):
        await outcome(db, name, kwargs)
    assert await prepared(db) == []


@pytest_twisted.ensureDeferred
async def test_intervals_are_read_in_the_unit_of_their_column(db: DirectCaller) -> None:
    for _ in range(RUNS + 2):
        row = await db.call("waits.create", {"hours": "2", "plain": "3", "fine": "4.4"})
        assert (row["hours"], row["plain"], row["fine"]) == ("PT2H", "PT3S", "PT4S")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("lands.get", {"key": 3}, {"key": "x"}),
        ("lands.get", {"key": 3}, {"key": 99999999999}),
        ("lands.get", {"key": {"code": "c3"}}, {"key": {"code": "none"}}),
        ("lands.update", {"key": 4, "changes": {"n": 1}}, {"key": 4, "changes": {"n": "y"}}),
        ("lands.update", {"key": 4, "changes": {"n": 1}}, {"key": 777, "changes": {"n": 1}}),
        ("lands.update", {"key": 4, "changes": {"code": "z"}}, {"key": 4, "changes": {"code": "c5"}}),
        ("lands.update", {"key": 4, "changes": {"n": {"$add": 0}}},
         {"key": 4, "changes": {"n": {"$add": 2**31 - 1}}}),
        ("evens.update", {"key": 1, "changes": {"even": 2}, "select": ["id"]},
         {"key": 1, "changes": {"even": 3}, "select": ["id"]}),
        ("evens.update", {"key": 1, "changes": {"day": "2026-01-02"}, "select": ["id"]},
         {"key": 1, "changes": {"day": "2026-02-31"}, "select": ["id"]}),
        ("evens.update", {"key": 1, "changes": {"tags": ["abc"]}, "select": ["id"]},
         {"key": 1, "changes": {"tags": ["abcd"]}, "select": ["id"]}),
        ("towns.create", {"values": {"land": 5}}, {"values": {"land": 5555}}),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_refusal_of_a_prepared_statement_equals_that_of_an_unprepared_one(
    db: DirectCaller, name: str, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    """The error has the path of the value, and the session remains usable."""
    await outcome(db, "evens.create", {"values": {"id": 1}})
    before = await outcome(db, name, bad)
    assert isinstance(before, tuple)
    for _ in range(RUNS + 2):
        fine = await outcome(db, name, good)
    assert await prepared(db)
    assert await outcome(db, name, bad) == before
    again = await outcome(db, name, good)
    assert again.keys() == fine.keys()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE changing ALTER v TYPE bigint",
        "ALTER TABLE changing ALTER w TYPE varchar(50)",
        "ALTER TABLE changing RENAME TO other; CREATE TABLE changing AS SELECT * FROM other",
        "ALTER TABLE changing DROP CONSTRAINT changing_pkey",
        "DROP TABLE changing; CREATE TABLE changing (id int PRIMARY KEY, v int, w text);"
        " INSERT INTO changing VALUES (1, 2, 'x')",
    ],
)
@pytest_twisted.ensureDeferred
async def test_changed_table_is_read_by_the_statement_prepared_before(
    db: DirectCaller, dsn: str, change: str
) -> None:
    """As without preparing: the plan is discarded, or the statement is sent again."""
    for _ in range(RUNS + 2):
        row = await db.call("changing.get", 1)
        await db.call("changing.update", 1, {"v": 2}, select=["id"])
    assert len(await prepared(db)) == 2
    execute(dsn, change)
    assert await db.call("changing.get", 1) == row
    assert await db.call("changing.update", 1, {"v": 2}, select=["id"]) == {"id": 1}


@pytest.mark.parametrize("table", ["lands", "towns"])
@pytest.mark.serving(most=1)
@pytest_twisted.ensureDeferred
async def test_read_that_waits_while_a_table_is_rewritten_finds_its_rows(
    db: DirectCaller, dsn: str, table: str
) -> None:
    """The rewritten table is empty to a snapshot that was taken before."""
    call = "lands.get", {"key": 3, "embed": {"towns": {"order": ["id"]}}}
    for _ in range(RUNS + 1):
        before = await db.call(call[0], **call[1])
    assert len(await prepared(db)) == 1
    with closing(psycopg2.connect(dsn)) as other, other.cursor() as cursor:
        cursor.execute(
            f"ALTER TABLE {table} ADD more float DEFAULT random(); ALTER TABLE {table} DROP more"
        )
        answer = ensureDeferred(db.call(call[0], **call[1]))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: len(execute(dsn, waiting)) == 1)
        await pause(2 * WAITED)
        other.commit()
    assert await answer == before


@pytest.mark.serving(roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_policies_of_a_prepared_statement_are_those_of_each_caller(db: DirectCaller) -> None:
    for _ in range(2 * RUNS + 5):
        assert (await db.call_as(CLERK, "own.get", 1))["owner"] == "st_clerk"
        assert (await db.call_as(GUEST, "own.get", 2))["owner"] == "st_guest"
        for who, key in ((CLERK, 2), (GUEST, 1)):
            assert isinstance(await failure_of(db.call_as(who, "own.get", key)), NotFound)
    assert len(await prepared(db)) == 2


@pytest.mark.serving(roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_prepared_statement_does_not_contain_claims(db: DirectCaller) -> None:
    """Code that runs for another caller could read it in pg_prepared_statements."""
    for _ in range(RUNS + 2):
        await db.call_as(CLERK, "own.get", 1)
    ((text, _),) = await prepared(db)
    assert text.startswith("PREPARE rowcast_")
    assert isinstance(await failure_of(db.call_as(GUEST, "own.get", 1)), NotFound)


@pytest.mark.serving("public", "inner_st", roles=ROLES)
@pytest_twisted.ensureDeferred
async def test_schema_is_refused_after_usage_is_revoked(db: DirectCaller, dsn: str) -> None:
    """The session has a prepared statement, and the service has not yet noticed the REVOKE."""
    for _ in range(RUNS + 2):
        assert await db.call_as(CLERK, "inner_st.kept.get", 1) == {"id": 1}
    assert len(await prepared(db)) == 1
    execute(dsn, "REVOKE USAGE ON SCHEMA inner_st FROM st_clerk")
    try:
        error = await failure_of(db.call_as(CLERK, "inner_st.kept.get", 1))
        assert isinstance(error, ServiceError)
    finally:
        execute(dsn, "GRANT USAGE ON SCHEMA inner_st TO st_clerk")


@pytest_twisted.ensureDeferred
async def test_session_after_a_function_call_prepares_again(db: DirectCaller) -> None:
    for _ in range(RUNS + 2):
        await db.call("lands.get", 1)
    assert len(await prepared(db)) == 1
    assert await db.call("fn.leave") == 1
    assert await prepared(db) == []
    for _ in range(RUNS + 2):
        assert (await db.call("lands.get", 1))["id"] == 1
    assert len(await prepared(db)) == 1


@pytest_twisted.ensureDeferred
async def test_deallocated_statement_is_sent_unprepared(db: DirectCaller) -> None:
    for _ in range(RUNS + 1):
        await db.call("lands.get", 1)

    def deallocate_txn(connection: PgConnection) -> None:
        connection.command("DEALLOCATE ALL")

    await db.database.run(deallocate_txn, retry=True)
    for _ in range(2):
        assert (await db.call("lands.get", 1))["id"] == 1


@pytest_twisted.ensureDeferred
async def test_prepared_statements_of_a_session_are_bounded(
    db: DirectCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statements that ran last are kept."""
    monkeypatch.setattr(planned, "KEPT", 2)
    for columns in (["id"], ["n"], ["id"], ["code"], ["id", "n"]):
        for _ in range(RUNS + 1):
            await db.call("lands.get", 1, select=columns)
            await db.call("lands.get", 1, select=["id"])
    texts = [text for text, _ in await prepared(db)]
    assert len(texts) == 2
    assert 'AS SELECT "t"."id" AS "id" FROM' in texts[0]
    assert '"n"' in texts[1]


@pytest_twisted.ensureDeferred
async def test_statement_in_a_transaction_is_not_prepared(db: DirectCaller) -> None:
    for _ in range(RUNS + 2):
        await db.call("transaction", [{"call": "lands.get", "args": [1]}])
    assert await prepared(db) == []


@pytest_twisted.ensureDeferred
async def test_prepared_insert_of_an_existing_key_is_conflict(db: DirectCaller) -> None:
    """The error is the same for a prepared insert, and no other row is written."""
    for at in range(RUNS + 3):
        await db.call("lands.create", {"id": 500 + at}, returning=False)
    error = await failure_of(db.call("lands.create", {"id": 500}, returning=False))
    assert isinstance(error, UniqueViolation)
    assert await db.call("lands.count", where={"id": {"gte": 500}}) == RUNS + 3
    with pytest.raises(InvalidArgument):
        await db.call("lands.create", {"id": "x"}, returning=False)
