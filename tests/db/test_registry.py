"""A model for each relation, and twistar's configuration."""

from __future__ import annotations

import uuid

import pytest
import pytest_twisted
from twistar.registry import Registry
from twistar.utils import transaction  # noqa: TID251 - to show that it does no harm

from service.db.codec import Codec
from service.db.introspect import catalog_txn
from service.models.model import Model
from service.models.served import Models
from tests.conftest import execute
from tests.db.served import database_at, load, model, registry, served
from tests.deferreds import failure_of

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS app CASCADE;
CREATE SCHEMA app;
CREATE TABLE drivers (id serial PRIMARY KEY, name text);
CREATE TABLE app.drivers (id serial PRIMARY KEY, name text);
CREATE VIEW seen AS SELECT name FROM drivers;
"""


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, TABLES)


@pytest_twisted.ensureDeferred
async def test_relation_has_one_model_in_a_catalog(dsn: str) -> None:
    """A hand-written model is used for the first schema; others are generated, once per catalog."""
    Drivers = model("drivers")
    with registry():
        async with database_at(dsn) as database:
            catalog = await database.run(catalog_txn, ("public", "app"), 1)
            models = Models(database, (Drivers,)).load(catalog, Codec(catalog))
            assert models.of(catalog.relation("public", "drivers")) is Drivers
            other = models.of(catalog.relation("app", "drivers"))
            assert other is models.of(catalog.relation("app", "drivers"))
            assert issubclass(other, Model)
            assert not other.has_rules(creating=True)
            await other(name="Ada").save()
            assert execute(dsn, "SELECT name FROM app.drivers") == [("Ada",)]
            assert await models.of(catalog.relation("public", "seen")).count() == 0
            execute(dsn, "DROP VIEW seen; DROP TABLE drivers")
            await load(database, (Drivers,))
            assert Drivers.META is None


@pytest_twisted.ensureDeferred
async def test_twistars_own_transaction_is_refused(dsn: str) -> None:
    """It fails at once, and leaves no transaction open."""
    async with served(dsn, model("drivers")):
        error = await failure_of(transaction(lambda txn: None)())
        assert isinstance(error, AttributeError)
        assert await Registry.getConfig().execute("SELECT 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_configuration_runs_in_the_callers_transaction(dsn: str) -> None:
    """Methods of twistar's configuration run in the caller's transaction."""
    Drivers = model("drivers")
    async with served(dsn, Drivers) as database:
        config = Registry.getConfig()
        async with database.transaction() as level:
            key = await config.insert("drivers", {"name": "Ada"})
            assert await config.count("drivers", ["id = ?", key]) == 1
            assert await config.delete("drivers", ["id = ?", key]) == 1
            assert await config.insert("drivers", {}) == key + 1
            ada = Drivers(name="Bea")
            await config.insertObj(ada)
            ada.name = "Cleo"
            await config.updateObj(ada)
            await config.refreshObj(ada)
            assert ada.toHash(["name", "none"], includeBlank=True) == {"name": "Cleo", "none": None}
            with pytest.raises(ValueError, match="grouped"):
                config.select("drivers", group="name")
            await level.rollback()
        assert execute(dsn, "SELECT count(*) FROM drivers") == [(0,)]
        rows = await config.execute("SELECT %s", [uuid.UUID(int=1)])
        assert rows == [(str(uuid.UUID(int=1)),)]
