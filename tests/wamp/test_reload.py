"""
A changed schema is served without a restart, and running calls are not affected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
import pytest_twisted
from alembic import command
from alembic.config import Config
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred, gatherResults

from schema.database_url import Place
from service.api import reload as catalogs
from service.app import Serving
from service.catalog import Relation
from service.waiting import in_thread
from tests.conftest import ROOT, Router, execute
from tests.deferreds import until
from tests.wamp.callers import Caller, refusal_of
from tests.wamp.service import served

GATE = 61
"""Key of an advisory lock; while it is held, calls of the view `gated` wait."""

TABLES = f"""
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE steady (id int PRIMARY KEY, name text);
INSERT INTO steady SELECT i, 'n' || i FROM generate_series(1, 10) i;
CREATE TABLE shifting (id int PRIMARY KEY, name text, size int);
INSERT INTO shifting VALUES (1, 'one', 1);
CREATE VIEW gated AS SELECT id, name FROM steady
    WHERE (SELECT pg_advisory_xact_lock_shared({GATE})) IS NOT NULL;
"""


@pytest.fixture(autouse=True)
def tables(dsn: str) -> None:
    execute(dsn, TABLES)


@pytest_twisted.async_yield_fixture
async def service(dsn: str, router: Router, tables: None) -> AsyncIterator[Serving]:
    async with served(dsn, router, app=("app",)) as serving:
        await until(lambda: serving.listener.listening)
        yield serving


@contextmanager
def shut(dsn: str) -> Iterator[None]:
    """Hold the lock for the length of the body."""
    keeper = psycopg2.connect(dsn)
    try:
        with keeper.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [GATE])
        yield
    finally:
        keeper.close()


def waiting(dsn: str) -> bool:
    """Return whether a call waits for the lock."""
    return bool(execute(dsn, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


def relations(service: Serving) -> dict[str, Relation]:
    """Return the relations served now, by name."""
    return {name: each for (_, name), each in service.dispatcher.served.catalog.relations.items()}


async def change(service: Serving, dsn: str, sql: str) -> None:
    """Change the schema and notify the service, in one transaction; return after it has reloaded."""
    mark = uuid4().hex
    execute(
        dsn, f"BEGIN; {sql}; COMMENT ON TABLE steady IS '{mark}'; NOTIFY rowcast_schema; COMMIT"
    )
    await until(lambda: relations(service)["steady"].comment == mark)


@pytest_twisted.ensureDeferred
async def test_table_created_and_dropped_is_served_meanwhile(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A table can be called after CREATE, and no longer after DROP."""
    error = await refusal_of(caller.call("rowcast.fresh.find"))
    assert error.error == "wamp.error.no_such_procedure"
    await change(service, dsn, "CREATE TABLE fresh (id int PRIMARY KEY, name text)")
    assert await caller.call("rowcast.fresh.create", {"id": 1, "name": "a"}) == {
        "id": 1,
        "name": "a",
    }
    assert "fresh" in (await caller.call("rowcast.describe"))["relations"]
    await change(service, dsn, "DROP TABLE fresh")
    error = await refusal_of(caller.call("rowcast.fresh.find"))
    assert error.error == "wamp.error.no_such_procedure"
    assert "fresh" not in (await caller.call("rowcast.describe"))["relations"]


@pytest_twisted.ensureDeferred
async def test_dropped_column_is_refused_and_added_one_is_returned(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A dropped column disappears from results and arguments; a new one appears."""
    assert await caller.call("rowcast.shifting.get", 1) == {"id": 1, "name": "one", "size": 1}
    await change(service, dsn, "ALTER TABLE shifting DROP COLUMN size")
    assert await caller.call("rowcast.shifting.get", 1) == {"id": 1, "name": "one"}
    for kwargs in ({"where": {"size": 1}}, {"select": ["size"]}, {"order": ["size"]}):
        error = await refusal_of(caller.call("rowcast.shifting.find", **kwargs))
        assert error.error == "wamp.error.invalid_argument"
    error = await refusal_of(caller.call("rowcast.shifting.update", 1, {"size": 2}))
    assert error.error == "wamp.error.invalid_argument"
    await change(
        service,
        dsn,
        "ALTER TABLE shifting ADD COLUMN size text DEFAULT 'big', ALTER name SET NOT NULL;"
        "COMMENT ON COLUMN shifting.id IS '@hidden'",
    )
    page = await caller.call("rowcast.shifting.find", where={"size": {"like": "b%"}})
    assert page["rows"] == [{"name": "one", "size": "big"}]
    error = await refusal_of(caller.call("rowcast.shifting.create", {"size": "small"}))
    assert error.error == "rowcast.error.invalid_row"


@pytest_twisted.ensureDeferred
async def test_running_call_is_answered_by_the_catalog_it_began_with(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A call keeps the catalog that it began with, even if its relation is dropped meanwhile."""
    with shut(dsn):
        call = caller.call("rowcast.gated.find", limit=1)
        await until(lambda: waiting(dsn))
        await change(service, dsn, "COMMENT ON VIEW gated IS '@hidden'")
        error = await refusal_of(caller.call("rowcast.gated.find"))
        assert error.error == "wamp.error.no_such_procedure"
        assert not call.called
    assert (await call)["rows"] == [{"id": 1, "name": "n1"}]


@pytest_twisted.ensureDeferred
async def test_calls_of_other_tables_during_changes_are_answered(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """Calls of other tables are not affected by twenty changes, one of which fails."""
    done = False
    answered = 0

    async def work(number: int) -> None:
        nonlocal answered
        while not done:
            row = await caller.call("rowcast.steady.update", number, {"name": f"m{number}"})
            assert row == await caller.call("rowcast.steady.get", number)
            answered += 1

    workers = [ensureDeferred(work(number)) for number in range(1, 5)]
    for number in range(20):
        await change(service, dsn, f"CREATE TABLE more_{number} AS SELECT {number} AS id")
        assert (await caller.call(f"rowcast.more_{number}.find"))["rows"] == [{"id": number}]
    done = True
    await gatherResults(workers)
    assert answered > len(workers)


@pytest_twisted.ensureDeferred
async def test_notifications_in_a_burst_cause_few_reloads(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A burst of notifications causes few reloads, and the last change is not missed."""
    await change(service, dsn, "SELECT 1")
    before = service.dispatcher.served.catalog.version
    for number in range(100):
        execute(dsn, f"COMMENT ON TABLE steady IS 'c{number}'; NOTIFY rowcast_schema")
    await until(lambda: relations(service)["steady"].comment == "c99")
    assert service.dispatcher.served.catalog.version - before < 10


@pytest_twisted.ensureDeferred
async def test_unannounced_change_is_found_by_a_call(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """A change without a notification is found by a call that fails because of it, and by polling."""
    await change(service, dsn, "SELECT 1")
    execute(dsn, "ALTER TABLE shifting DROP COLUMN size")
    assert (await caller.call("rowcast.shifting.find"))["rows"] == [{"id": 1, "name": "one"}]
    execute(dsn, "CREATE TABLE fresh (id int)")
    assert "fresh" in (await caller.call("rowcast.describe", relations=["fresh"]))["relations"]
    execute(dsn, "COMMENT ON TABLE shifting IS '@hidden'")
    await until(lambda: "shifting" not in relations(service), 10)
    error = await refusal_of(caller.call("rowcast.shifting.find"))
    assert error.error == "wamp.error.no_such_procedure"


@pytest_twisted.ensureDeferred
async def test_catalog_that_failed_to_load_is_read_again(
    service: Serving, caller: Caller, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If building a snapshot from a catalog fails, the catalog is read again."""
    monkeypatch.setattr(catalogs, "LONG_PAUSE", 0.05)
    failures = [ValueError("on purpose"), ValueError("again")]
    load = service.catalogs._models.load

    def fail_first(*read: Any) -> Any:
        if failures:
            raise failures.pop()
        return load(*read)

    monkeypatch.setattr(service.catalogs._models, "load", fail_first)
    await change(service, dsn, "CREATE TABLE late (id int PRIMARY KEY)")
    assert await caller.call("rowcast.late.count") == 0
    assert failures == []


@pytest_twisted.ensureDeferred
async def test_change_without_a_listener_is_read_when_it_is_back(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """Changes while the listener was disconnected are read when it reconnects."""
    await change(service, dsn, "SELECT 1")
    execute(
        dsn,
        "CREATE TABLE missed (id int PRIMARY KEY);"
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query ILIKE '%LISTEN%'"
        " AND pid <> pg_backend_pid()",
    )
    await until(lambda: "missed" in relations(service), 10)
    assert await caller.call("rowcast.missed.count") == 0


@pytest_twisted.ensureDeferred
async def test_migration_up_and_down_notifies_services(
    service: Serving, caller: Caller, dsn: str
) -> None:
    """Both `alembic upgrade` and `downgrade` notify running services."""
    config = Config(
        ROOT / "alembic.ini", attributes={"place": Place(url=dsn), "configure_logging": False}
    )
    await in_thread(reactor, "alembic", command.upgrade, config, "head")
    await until(lambda: {"actions", "drivers", "vehicles"} <= relations(service).keys())
    row = await caller.call("rowcast.actions.create", {"action": "deploy", "path": "/srv"})
    done = await caller.call("rowcast.actions.complete", row["id"])
    assert (row["status"], done["status"]) == (False, True)
    error = await refusal_of(caller.call("rowcast.actions.create", {"action": " ", "path": "/srv"}))
    assert error.error == "rowcast.error.invalid_row", "the rules of the model hold at once"
    await in_thread(reactor, "alembic", command.downgrade, config, "base")
    await until(lambda: "actions" not in relations(service))
    error = await refusal_of(caller.call("rowcast.actions.find"))
    assert error.error == "wamp.error.no_such_procedure"
    assert await caller.call("rowcast.steady.count") == 10
