"""
Procedures written by hand, from a call to its answer.
"""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
import pytest_twisted

from app.actions import Action
from service.db.codec import Codec
from service.db.database import Database
from service.db.introspect import catalog_txn
from service.db.sqlstate import refusal
from service.db.transaction import statement_txn
from service.errors import (
    DatabaseRefused,
    InvalidArgument,
    InvalidRow,
    NotFound,
    StatementTimeout,
    Unavailable,
)
from service.models.served import Models
from service.procedures.registry import Declared, ProcedureCall, load_application, procedures
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.served import database_at, registry
from tests.deferreds import failure_of

DEMO = load_application(["app"])
CALLER = Caller(1, "ada", "anonymous", "realm1")


@pytest.fixture(autouse=True)
def table(dsn: str) -> None:
    execute(
        dsn,
        "DROP TABLE IF EXISTS actions; CREATE TABLE actions (id bigserial PRIMARY KEY,"
        " action text NOT NULL, path text NOT NULL, status boolean NOT NULL DEFAULT false,"
        " created_at timestamptz NOT NULL DEFAULT '2026-01-01');"
        "INSERT INTO actions (action, path) VALUES ('go', '/home')",
    )


async def served(database: Database, functions: Any = None) -> Any:
    """Return a dispatcher with hand-written procedures on this database."""
    catalog = await database.run(catalog_txn, ("public",), 1)
    codec = Codec(catalog)
    models = Models(database, DEMO.models)
    models.load(catalog, codec)
    declared = {name: Declared(each) for name, each in (functions or {}).items()}
    return procedures(database, models, lambda: codec, declared or DEMO.procedures)


@pytest_twisted.ensureDeferred
async def test_wire_of_an_object_is_its_row_and_of_several_their_list(dsn: str) -> None:
    execute(dsn, "INSERT INTO actions (action, path) VALUES ('run', '/')")

    async def look(call: ProcedureCall) -> Any:
        one = await Action.find(1)
        return call.wire(one), call.wire(await Action.find(orderby="id")), call.wire([])

    with registry():
        async with database_at(dsn) as database:
            served_by = await served(database, {"look": look})
            one, several, none = await served_by["look"](CALLER, [], {})
    assert (one["id"], one["action"], one["created_at"][:10]) == (1, "go", "2026-01-01")
    assert several[0] == one
    assert [each["action"] for each in several] == ["go", "run"]
    assert none == []


@pytest_twisted.ensureDeferred
async def test_complete_of_an_action_returns_its_row(dsn: str) -> None:
    """The action is done, and its row is returned as by generated procedures."""
    with registry():
        async with database_at(dsn) as database:
            complete = (await served(database))["actions.complete"]
            assert await complete(CALLER, [1], {}) == {
                "id": 1,
                "action": "go",
                "path": "/home",
                "status": True,
                "created_at": "2026-01-01T00:00:00Z",
            }
            assert execute(dsn, "SELECT status FROM actions") == [(True,)]
            assert (await complete(CALLER, [], {"key": "1"}))["status"] is True


@pytest.mark.parametrize(
    ("args", "kwargs", "message", "path"),
    [
        ([], {}, 'the argument "key" is missing', "key"),
        ([1, 2], {}, "takes 1 positional argument, got 2", None),
        ([1], {"other": 1}, 'no argument "other"', "other"),
        ([1], {"call": 1}, 'no argument "call"', "call"),
        ([1], {"key": 1}, '"key" is given twice', "key"),
        (["one"], {}, "expected an integer, got a string that is not one", "key"),
        ([[1, 2]], {}, 'the key of "actions" is id: 1 value, got 2', "key"),
        ([["one"]], {}, "expected an integer, got a string that is not one", "key.0"),
        ([{"no": 1}], {}, 'no column "no" in relation "actions"', "key.no"),
        ([{"action": "go"}], {}, 'the key of "actions" is id: 1 value, got 0', "key"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_wrong_arguments_are_refused_like_those_of_generated_procedures(
    dsn: str, args: list[Any], kwargs: dict[str, Any], message: str, path: str | None
) -> None:
    with registry():
        async with database_at(dsn) as database:
            complete = (await served(database))["actions.complete"]
            error = await failure_of(complete(CALLER, args, kwargs))
            assert isinstance(error, InvalidArgument)
            assert (error.message, error.details.get("path")) == (message, path)
            if "argument" in message and "other" not in kwargs and "call" not in kwargs:
                assert error.details["hint"] == "it is actions.complete(key)"


@pytest.mark.parametrize("key", [2, None])
@pytest_twisted.ensureDeferred
async def test_missing_row_is_not_found(dsn: str, key: Any) -> None:
    with registry():
        async with database_at(dsn) as database:
            complete = (await served(database))["actions.complete"]
            assert isinstance(await failure_of(complete(CALLER, [key], {})), NotFound)


@pytest_twisted.ensureDeferred
async def test_write_in_a_read_only_transaction_is_an_error_of_the_caller(dsn: str) -> None:
    """In any read-only transaction; if the server is read-only, a retry may help."""
    insert = "INSERT INTO actions (action, path) VALUES ('go', '/x')"

    async def write(database: Database) -> None:
        await database.statement(insert, fetch=False)

    async def scope(database: Database) -> None:
        async with database.transaction(read_only=True):
            await write(database)

    async def nested(database: Database) -> None:
        async with database.transaction(), database.transaction(read_only=True):
            await database.transact(write, database)

    ways = (
        scope,
        nested,
        lambda database: database.transact(write, database, read_only=True),
        lambda database: database.atomic(statement_txn, insert, read_only=True),
    )
    async with database_at(dsn) as database:
        for way in ways:
            error = await failure_of(way(database))
            assert error is not None
            found = refusal(error)
            assert isinstance(found, DatabaseRefused)
            assert found.details == {"sqlstate": "25006"}
        async with database.transaction():
            await database.statement("SET TRANSACTION READ ONLY", fetch=False)
            error = await failure_of(write(database))
            assert isinstance(error, psycopg2.Error)
            assert isinstance(refusal(error), Unavailable)
            await database.statement("ROLLBACK", fetch=False)
    assert execute(dsn, "SELECT count(*) FROM actions") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_get_of_a_table_without_a_key_is_refused(dsn: str) -> None:
    """The error names the table and what it lacks."""
    execute(dsn, "ALTER TABLE actions DROP CONSTRAINT actions_pkey")
    with registry():
        async with database_at(dsn) as database:
            complete = (await served(database))["actions.complete"]
            error = await failure_of(complete(CALLER, [1], {}))
            assert isinstance(error, InvalidArgument)
            assert error.message == '"actions" has no primary key, and so no row by key'


async def everything(
    call: Any,
    day: str,
    n: int = 1,
    *rest: Any,
    half: float | None = None,
    rows: list[Any] = [],  # noqa: B006 - it is not changed
    **others: Any,
) -> Any:
    """Return the arguments."""
    return [day, n, list(rest), half, rows, others]


@pytest.mark.parametrize(
    ("args", "kwargs", "answer"),
    [
        (["mon"], {}, ["mon", 1, [], None, [], {}]),
        ([], {"day": "mon", "n": "2"}, ["mon", 2, [], None, [], {}]),
        (["mon", 3.0, 4, 5], {"half": 1}, ["mon", 3, [4, 5], 1.0, [], {}]),
        (["mon"], {"half": None, "more": 1, "timeout": 9}, ["mon", 1, [], None, [], {"more": 1}]),
    ],
)
@pytest_twisted.ensureDeferred
async def test_arguments_are_converted_to_their_annotations(
    dsn: str, args: list[Any], kwargs: dict[str, Any], answer: list[Any]
) -> None:
    async with database_at(dsn) as database:
        serve = (await served(database, {"everything": everything}))["everything"]
        found = await serve(CALLER, args, kwargs)
        assert found == answer
        assert [type(each) for each in found] == [type(each) for each in answer]


@pytest.mark.parametrize(
    ("args", "kwargs", "message", "path"),
    [
        ([1], {}, "expected a string, got an integer", "day"),
        (["mon", True], {}, "expected an integer, got a boolean", "n"),
        (["mon", "x"], {}, "expected an integer, got a string that is not one", "n"),
        (["mon"], {"half": "x"}, "expected a number, got a string", "half"),
        (["mon"], {"half": True}, "expected a number, got a boolean", "half"),
        (["mon"], {"rows": {}}, "expected a list, got a dict", "rows"),
        (["mon"], {"rows": None}, "expected a list, got null", "rows"),
        ([None], {}, "expected a string, got null", "day"),
        (["mon"], {"day": "tue"}, '"day" is given twice', "day"),
        ([], {"n": 1}, 'the argument "day" is missing', "day"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_argument_of_another_type_than_annotated_is_refused(
    dsn: str, args: list[Any], kwargs: dict[str, Any], message: str, path: str
) -> None:
    async with database_at(dsn) as database:
        serve = (await served(database, {"everything": everything}))["everything"]
        error = await failure_of(serve(CALLER, args, kwargs))
        assert isinstance(error, InvalidArgument)
        assert (error.message, error.details.get("path")) == (message, path)


@pytest_twisted.ensureDeferred
async def test_rule_of_a_model_holds_in_procedures(dsn: str) -> None:
    """An error of a model's validation rolls the transaction back."""

    async def spoil(call: Any) -> None:
        async with call.database.transaction():
            action = await Action.find(1)
            action.path = "/elsewhere"
            await action.save()
            action.action = " "
            await action.save()

    with registry():
        async with database_at(dsn) as database:
            answer = (await served(database, {"spoil": spoil}))["spoil"]
            error = await failure_of(answer(CALLER, [], {}))
            assert isinstance(error, InvalidRow)
            assert error.details["fields"] == {"action": ["cannot be blank"]}
            assert execute(dsn, "SELECT path FROM actions") == [("/home",)]


@pytest_twisted.ensureDeferred
async def test_procedure_that_exceeds_its_timeout_is_rolled_back(dsn: str) -> None:
    """A timeout rolls the procedure's transaction back."""

    async def slow(call: Any) -> None:
        async with call.database.transaction():
            await call.database.statement("UPDATE actions SET status = true")
            await call.database.statement("SELECT pg_sleep(20)")

    async with database_at(dsn) as database:
        served_slow = (await served(database, {"slow": slow}))["slow"]
        assert isinstance(
            await failure_of(served_slow(CALLER, [], {"timeout": 0.1})), StatementTimeout
        )
        assert execute(dsn, "SELECT status FROM actions") == [(False,)]
        assert isinstance(
            await failure_of(served_slow(CALLER, [], {"timeout": -1})), InvalidArgument
        )
