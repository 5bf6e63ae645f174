"""
Procedures written by hand, from a call to its answer.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.db.introspect import catalog_txn
from service.db.scope import Database
from service.db.values import Codec
from service.errors import InvalidArgument, InvalidRow, NotFound, StatementTimeout
from service.models.action import Action
from service.models.registry import Models
from service.procedures.registry import REGISTERED, procedure, procedures
from service.request.caller import Caller
from tests.conftest import execute
from tests.db.rooms import database_at, failure_of
from tests.db.served import registry

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
    """Give procedures by name, over this database."""
    catalog = await database.run(catalog_txn, ("public",), 1)
    codec = Codec(catalog)
    models = Models(database)
    models.load(catalog, codec)
    return procedures(database, models, lambda: codec, functions or REGISTERED)


@pytest_twisted.ensureDeferred
async def test_complete(dsn: str) -> None:
    """The action is done, and answered as any row is."""
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
    ("args", "kwargs", "error"),
    [
        ([2], {}, NotFound),
        ([None], {}, NotFound),
        ([], {}, InvalidArgument),
        ([1, 2], {}, InvalidArgument),
        ([1], {"other": 1}, InvalidArgument),
        (["one"], {}, InvalidArgument),
        ([[1, 2]], {}, InvalidArgument),
        ([{"no": 1}], {}, InvalidArgument),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refusals(
    dsn: str, args: list[Any], kwargs: dict[str, Any], error: type[Exception]
) -> None:
    """What cannot be done is refused in the caller's terms."""
    with registry():
        async with database_at(dsn) as database:
            complete = (await served(database))["actions.complete"]
            assert isinstance(await failure_of(complete(CALLER, args, kwargs)), error)


@pytest_twisted.ensureDeferred
async def test_a_rule_holds_in_procedures_too(dsn: str) -> None:
    """A model's validation refuses the whole transaction."""

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


def test_names_are_taken_once() -> None:
    """Two procedures of one name are a mistake that shows at import."""
    with pytest.raises(ValueError, match=r"actions\.complete"):
        procedure("actions.complete")(lambda call: None)


@pytest_twisted.ensureDeferred
async def test_time_limit(dsn: str) -> None:
    """A procedure takes a time limit like any other; its transaction is undone."""

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
