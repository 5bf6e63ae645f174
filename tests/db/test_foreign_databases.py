"""
Foreign databases: tables with the names of the demo's tables, and catalogs that change.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import globalLogPublisher

from service.api.roles import Roles
from service.api.status import StatusProcedures
from service.errors import InvalidRow, NoSuchProcedure
from service.models.model import Model
from service.models.served import Models
from service.procedures.registry import Declared, ProcedureCall, load_application, procedures
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.served import model, registry
from tests.deferreds import failure_of, until

STRANGE = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE vehicles (vin text PRIMARY KEY, color text);
CREATE TABLE drivers (id serial PRIMARY KEY, callsign text);
CREATE TABLE actions (id serial PRIMARY KEY, title text);
CREATE TABLE things (id serial PRIMARY KEY, note text);
INSERT INTO things (note) VALUES ('a'), ('b');
"""


DEMO = load_application(["app"])


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, STRANGE)


@asynccontextmanager
async def serving_with_procedures(
    dsn: str, *written: type[Model], **more: Any
) -> AsyncIterator[DirectCaller]:
    """Serve a database, with hand-written procedures and `describe`."""
    with registry():
        async with serving(dsn, written=written or DEMO.models) as db:
            dispatcher, database = db.dispatcher, db.database
            declared = {**DEMO.procedures, **{name: Declared(each) for name, each in more.items()}}
            by_hand = procedures(
                database, Models(database), lambda: dispatcher.served.codec, declared
            )
            written = lambda: {n: d.function for n, d in declared.items() if d.available}  # noqa: E731
            status = StatusProcedures(dispatcher, "1", {}, {}, written)
            dispatcher.add(status.procedures())
            dispatcher.add(by_hand)
            yield db


async def reloaded(db: DirectCaller) -> None:
    """Read the catalog again."""
    version = db.dispatcher.served.catalog.version
    db.catalogs.reload()
    await until(lambda: db.dispatcher.served.catalog.version > version)


@pytest_twisted.ensureDeferred
async def test_foreign_table_named_like_a_demo_table_is_served_without_its_model(dsn: str) -> None:
    """Its columns are not those of the model."""
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        async with serving_with_procedures(dsn) as db:
            assert await db.call("vehicles.create", {"vin": "1", "color": "red"})
            assert await db.call("vehicles.update", "1", {"color": None})
            assert await db.call("vehicles.delete", "1")
            assert await db.call("drivers.create", {"callsign": ""})
            assert await db.call("actions.create", {"title": "go"})
            await reloaded(db)
    finally:
        globalLogPublisher.removeObserver(events.append)
    warned = [event for event in events if "without the rules" in event.get("log_format", "")]
    assert sorted((event["relation"], event["columns"]) for event in warned) == [
        ("public.actions", "action, path, status"),
        ("public.drivers", "name"),
        ("public.vehicles", "plate, driver_id"),
    ]


@pytest.mark.parametrize("without", ["columns", "table"])
@pytest_twisted.ensureDeferred
async def test_procedure_without_its_relation_is_unknown_until_it_exists(
    dsn: str, without: str
) -> None:
    """The procedure does not exist until its relation does."""
    if without == "table":
        execute(dsn, "DROP TABLE actions")
    async with serving_with_procedures(dsn) as db:
        assert isinstance(await failure_of(db.call("actions.complete", 1)), NoSuchProcedure)
        assert "actions.complete" not in (await db.call("describe"))["procedures"]
        execute(
            dsn,
            "DROP TABLE IF EXISTS actions; CREATE TABLE actions (id serial PRIMARY KEY,"
            " action text, path text, status boolean);"
            "INSERT INTO actions (action, path) VALUES ('go', '/')",
        )
        await reloaded(db)
        assert "actions.complete" in (await db.call("describe"))["procedures"]
        assert (await db.call("actions.complete", 1))["status"] is True
        assert isinstance(await failure_of(db.call("actions.create", {})), InvalidRow)


@pytest_twisted.ensureDeferred
async def test_procedure_of_a_relation_that_no_role_may_use_is_not_served(dsn: str) -> None:
    """The database has the relation, so a generated procedure and this one say that it is not served."""
    execute(dsn, "DROP ROLE IF EXISTS rc_barred; CREATE ROLE rc_barred; DROP TABLE actions")
    execute(dsn, "CREATE TABLE actions (id int PRIMARY KEY, action text, path text, status bool)")
    roles = Roles({"barred": "rc_barred"})
    with registry():
        async with serving(dsn, roles=roles, written=DEMO.models) as db:
            dispatcher = db.dispatcher
            how = db.database, Models(db.database), lambda: dispatcher.served.codec
            dispatcher.add(procedures(*how, DEMO.procedures))
            caller = Caller(1, "ada", "barred", "realm1")
            messages = []
            for name in ("actions.delete", "actions.complete"):
                error = await failure_of(dispatcher.answer(name, [1], {}, caller))
                assert isinstance(error, NoSuchProcedure)
                messages.append(error.message)
            assert messages == [
                'no relation "actions" is served',
                '"actions.complete" needs a relation that is not served',
            ]


@pytest_twisted.ensureDeferred
async def test_procedure_of_a_missing_relation_is_no_such_procedure(dsn: str) -> None:
    """Other errors of the procedure are still internal errors."""
    Missing = model("missing")

    async def count(call: ProcedureCall) -> int:
        found: int = await Missing.count()
        return found

    async with serving_with_procedures(dsn, Missing, count=count) as db:
        assert isinstance(await failure_of(db.call("count")), NoSuchProcedure)


@pytest_twisted.ensureDeferred
async def test_running_call_uses_the_catalog_it_began_with(dsn: str) -> None:
    """A catalog that is loaded while a model validates is used by later calls."""
    seen: list[Any] = []

    async def look(self: Any) -> None:
        if not seen:
            await reloaded(db)
        seen.append(self.columns())

    Things = model("things", beforeUpdate=look)
    async with serving_with_procedures(dsn, Things) as db:
        execute(dsn, "ALTER TABLE things ADD extra text DEFAULT 'new'")
        await db.call("things.update", changes={"note": "c"}, all=True)
        assert seen == [{"id": 1, "note": "c"}, {"id": 2, "note": "c"}]
        await db.call("things.update", 1, {"note": "d"})
        assert seen[2] == {"id": 1, "note": "d", "extra": "new"}


@pytest_twisted.ensureDeferred
async def test_relation_of_an_older_catalog_has_its_own_model(dsn: str) -> None:
    """Models are bound to the relations of one catalog."""
    async with serving_with_procedures(dsn) as db:
        before = db.dispatcher.served
        old = before.catalog.relation("public", "things")
        execute(dsn, "ALTER TABLE things ADD extra text")
        await reloaded(db)
        assert db.dispatcher.served.model(old).meta.columns == ("id", "note", "extra")
        assert before.model(old).meta.columns == ("id", "note")
        execute(dsn, "DROP TABLE things")
        await reloaded(db)
        with pytest.raises(NoSuchProcedure):
            db.dispatcher.served.model(old)
