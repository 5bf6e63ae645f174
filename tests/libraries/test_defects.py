"""
Defects of twistar 2.0 and adbapi that our classes work around.

Each test proves a defect of docs/twistar.md, by its number. If one fails, a new release has fixed the defect,
and our remedy may be removed.
"""

from __future__ import annotations

import contextvars
import re
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from BermiInflector.Inflector import Inflector
from twistar import utils
from twistar.dbconfig.base import InteractionBase
from twistar.dbobject import DBObject
from twistar.exceptions import ImaginaryTableError, TransactionError
from twistar.registry import Registry
from twisted.enterprise import adbapi
from twisted.internet import reactor
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    ensureDeferred,
    inlineCallbacks,
)

from tests.conftest import execute
from tests.db.lag import LagProbe
from tests.db.relay import Relay
from tests.db.served import registry
from tests.deferreds import failure_of, pause, until

transaction = utils.transaction  # noqa: TID251 - it is what is shown
Defect = Callable[[str], Awaitable[None]]
DEFECTS: dict[int, Defect] = {}

TABLES = """
DROP SCHEMA public CASCADE; CREATE SCHEMA public;
CREATE TABLE things (id serial PRIMARY KEY, name text, amount int DEFAULT 0);
CREATE TABLE others (id serial PRIMARY KEY, name text);
CREATE TABLE keys (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text);
CREATE TABLE codes (code text PRIMARY KEY, name text);
CREATE TABLE filled (id serial PRIMARY KEY, name text, state text NOT NULL DEFAULT 'new',
    upper_name text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE TABLE pairs (a int, b int);
CREATE TABLE "order" (id serial PRIMARY KEY, name text);
CREATE TABLE documents (id serial PRIMARY KEY, doc jsonb, words text, at timestamptz, data bytea,
    span interval);
CREATE TABLE clashes (id serial PRIMARY KEY, errors text);
CREATE TABLE parents (id text PRIMARY KEY);
CREATE TABLE children (id serial PRIMARY KEY, parent_id text REFERENCES parents);
CREATE TABLE tags (id text PRIMARY KEY);
CREATE TABLE marks (parent_id text, tag_id text);
"""


def shows(*numbers: int) -> Callable[[Defect], Defect]:
    """Register a function as the proof of some defects."""

    def note(function: Defect) -> Defect:
        DEFECTS.update(dict.fromkeys(numbers, function))
        return function

    return note


@asynccontextmanager
async def stock(dsn: str, **options: Any) -> AsyncIterator[adbapi.ConnectionPool]:
    """Run twistar on adbapi, as their documentation says."""
    with registry():
        options = {"cp_min": 3, "cp_max": 3, **options}
        pool = adbapi.ConnectionPool("psycopg2", dsn, cp_reactor=reactor, **options)
        Registry.DBPOOL, Registry.IMPL = pool, None
        Registry.SCHEMAS.clear()
        try:
            yield pool
        finally:
            if pool.running:
                pool.close()


def old(table: str, **declared: Any) -> type[DBObject]:
    """Return a class that inherits from twistar's DBObject."""
    made = type(table.capitalize(), (DBObject,), {"TABLENAME": table, **declared})
    Registry.register(made)
    return made


def count(dsn: str, table: str) -> object:
    return execute(dsn, f'SELECT count(*) FROM "{table}"')[0][0]


@shows(1, 2)
async def the_inflector_is_broken(dsn: str) -> None:
    """On Python 3.11 table names cannot be derived, and some class names are derived wrong."""
    with pytest.raises(re.error):
        Inflector().tableize("User")
    assert Inflector().classify("status") == "Statu"


@shows(3)
async def logging_breaks_queries(dsn: str) -> None:
    """With LOG, which is documented, every query with a number fails."""
    async with stock(dsn):
        InteractionBase.LOG = True
        try:
            error = await failure_of(Registry.getConfig().executeOperation("SELECT %s", [1]))
        except TypeError as raised:
            error = raised
        finally:
            InteractionBase.LOG = False
        assert isinstance(error, TypeError)


@shows(6)
async def transactions_run_in_the_reactor_thread(dsn: str) -> None:
    """SQL inside a transaction blocks the reactor."""
    async with stock(dsn):
        Things = old("things")
        await Things(name="x").save()
        threads: list[str] = []
        config = Registry.getConfig()
        execute_txn = config.executeTxn

        def spy(*args: Any) -> Any:
            threads.append(threading.current_thread().name)
            return execute_txn(*args)

        config.executeTxn = spy
        await transaction(lambda txn: Things.find(limit=1))()
        assert set(threads) == {threading.current_thread().name}
        with LagProbe(reactor) as probe:
            await transaction(lambda txn: Things.find(where=["pg_sleep(0.3) IS NOT NULL"]))()
        assert probe.quantile(1) > 0.25


@shows(7, 8)
async def unrelated_work_joins_a_transaction(dsn: str) -> None:
    """What another task saves at that time is reported as saved, and rolled back."""
    async with stock(dsn):
        Things, Others = old("things"), old("others")
        await Others.find(limit=1)

        @transaction
        @inlineCallbacks
        def work(txn: Any) -> Any:
            yield Things(name="inside").save()
            yield pause_deferred(0.3)
            raise ValueError

        task = work()
        await pause(0.1)
        assert (await Others(name="unrelated").save()).id == 1
        await failure_of(task)
        assert count(dsn, "others") == 0


@shows(9, 13)
async def deletes_are_committed_outside_the_transaction(dsn: str) -> None:
    """They are committed although it is rolled back, and the error has lost its SQLSTATE."""
    async with stock(dsn):
        Things = old("things")
        await Things(name="victim").save()

        @transaction
        @inlineCallbacks
        def work(txn: Any) -> Any:
            yield Things.deleteAll(where=["name = ?", "victim"])
            txn.execute("SELECT 1/0")

        error = await failure_of(work())
        assert isinstance(error, TransactionError)
        assert not hasattr(error, "pgcode")
        assert count(dsn, "things") == 0


@shows(11)
async def find_or_create_ends_the_outer_transaction(dsn: str) -> None:
    """Later statements of the transaction are committed one by one."""
    async with stock(dsn):
        Things, Others = old("things"), old("others")

        @transaction
        @inlineCallbacks
        def work(txn: Any) -> Any:
            yield Others.findOrCreate(name="inner")
            yield Things(name="outer").save()
            raise ValueError

        await failure_of(work())
        assert (count(dsn, "others"), count(dsn, "things")) == (1, 1)


@shows(14)
async def context_is_lost_in_callbacks(dsn: str) -> None:
    """A context variable does not reach a plain callback on adbapi's Deferreds."""
    variable = contextvars.ContextVar("variable", default="lost")
    async with stock(dsn) as pool:

        async def work() -> str:
            variable.set("kept")
            done: Deferred[str] = Deferred()
            query = pool.runQuery("SELECT pg_sleep(0.02)")
            query.addCallback(lambda _: done.callback(variable.get()))
            return await done

        assert await ensureDeferred(work()) == "lost"


@shows(15)
async def commit_of_a_failed_transaction_reports_success(dsn: str) -> None:
    """COMMIT after a swallowed error reports success."""
    async with stock(dsn) as pool:

        def swallow(cursor: Any) -> str:
            cursor.execute("INSERT INTO things (name) VALUES ('x')")
            with pytest.raises(psycopg2.Error):
                cursor.execute("SELECT 1/0")
            return "fine"

        assert await pool.runInteraction(swallow) == "fine"
        assert count(dsn, "things") == 0


@shows(18, 19, 20)
async def ids_are_integers_from_a_sequence(dsn: str) -> None:
    """With other keys, rows are not found or not stored, or get the id of another table's row."""
    async with stock(dsn, cp_min=1, cp_max=1):
        Codes, Keys, Things = old("codes"), old("keys"), old("things")
        assert isinstance(await failure_of(Codes.find("x")), psycopg2.errors.UndefinedColumn)
        thing = await Things(name="x").save()
        assert (await Keys(name="y").save()).id == thing.id
        await Keys(id=str(uuid.uuid4()), name="mine").save()
        assert execute(dsn, "SELECT 1 FROM keys WHERE name = 'mine'") == []


@shows(21, 54)
async def a_statement_takes_several_messages(dsn: str) -> None:
    """One insert takes five messages, and one query three."""
    with Relay(dsn) as relay:
        async with stock(relay.dsn, cp_min=1, cp_max=1) as pool:
            Things = old("things")
            await Things(name="x").save()
            before = len(relay.messages)
            await Things(name="y").save()
            assert len(relay.messages) - before == 5
            before = len(relay.messages)
            await pool.runQuery("SELECT 1")
            assert len(relay.messages) - before == 3


@shows(22, 23)
async def defaults_are_overwritten(dsn: str) -> None:
    """The save after an insert writes NULL over defaults, and over generated columns."""
    async with stock(dsn):
        Filled = old("filled")
        made = await Filled(name="x").save()
        assert getattr(made, "state", None) is None
        made.name = "y"
        assert isinstance(await failure_of(made.save()), psycopg2.Error)
        found = await Filled.find(made.id)
        assert isinstance(await failure_of(found.save()), psycopg2.errors.GeneratedAlways)


@shows(24, 25, 30)
async def updates_are_lost(dsn: str) -> None:
    """A save writes all columns, and succeeds although the row has been deleted."""
    async with stock(dsn):
        Things = old("things")
        key = (await Things(name="first").save()).id
        one, two = await Things.find(key), await Things.find(key)
        one.name = "changed"
        await one.save()
        two.amount = 9
        await two.save()
        assert execute(dsn, "SELECT name FROM things") == [("first",)]
        execute(dsn, "DELETE FROM things")
        assert await two.save() is two
        assert isinstance(await failure_of(two.refresh()), AttributeError)


@shows(26, 44)
async def a_failed_delete_removes_junction_rows(dsn: str) -> None:
    """Junction rows are deleted, and the object has lost its id; text ids are pasted into SQL."""
    execute(
        dsn,
        "INSERT INTO parents VALUES ('p'); INSERT INTO children (parent_id) VALUES ('p');"
        "INSERT INTO tags VALUES ('t'), ('u'); INSERT INTO marks VALUES ('p', '''t'') OR (1=1')",
    )
    async with stock(dsn):
        old("tags", __qualname__="Tag")
        Registry.REGISTRATION["Tag"] = Registry.getClass("Tags")
        Parents = old(
            "parents",
            HABTM=[{"name": "tags", "join_table": "marks", "foreign_key": "parent_id"}],
        )
        parent = await Parents.find("p")
        assert len(await parent.tags.get()) == 2
        assert isinstance(await failure_of(parent.delete()), psycopg2.Error)
        assert parent.id is None
        assert count(dsn, "marks") == 0


@shows(27)
async def insert_many_swaps_columns(dsn: str) -> None:
    """Values are inserted in the order of each dict."""
    async with stock(dsn):
        await Registry.getConfig().insertMany("pairs", [{"a": 1, "b": 2}, {"b": 30, "a": 40}])
        assert (30, 40) in execute(dsn, "SELECT a, b FROM pairs")


@shows(28, 35)
async def invalid_arguments_are_ignored(dsn: str) -> None:
    """An unknown keyword is ignored, and find with None returns all rows."""
    async with stock(dsn):
        Things = old("things")
        await Things(nmae="x").save()
        assert execute(dsn, "SELECT name FROM things") == [(None,)]
        await Things(name="y").save()
        assert len(await Things.find(None)) == 2


@shows(31, 32, 33, 36, 37)
async def special_characters_break_statements(dsn: str) -> None:
    """Question marks, percent signs, reserved words and empty lists break statements."""
    async with stock(dsn):
        Documents, Order = old("documents"), old("order")
        for where in (
            ["doc ? 'a'"],
            ["words <> 'what?' AND id > ?", 0],
            ["words LIKE '5%'"],
            ["id % 2 = ?", 1],
        ):
            assert isinstance(
                await failure_of(Documents.find(where=where)), (IndexError, TypeError, ValueError)
            )
        error = await failure_of(Documents.find(where=["id IN ?", ()]))
        assert isinstance(error, psycopg2.errors.SyntaxError)
        assert isinstance(await failure_of(Order.find()), psycopg2.errors.SyntaxError)
        config = Registry.getConfig()
        error = await failure_of(config.update("things", {"name": "x"}, limit=1))
        assert isinstance(error, psycopg2.errors.SyntaxError)


@shows(34)
async def order_by_is_run_as_sql(dsn: str) -> None:
    """The text of orderby is run as SQL."""
    async with stock(dsn):
        await old("things").find(orderby="id; DROP TABLE others; SELECT 1 AS id")
        assert execute(dsn, "SELECT to_regclass('others')") == [(None,)]


@shows(38, 39)
async def the_schema_is_cached_until_a_restart(dsn: str) -> None:
    """A new column is ignored until a restart; any error is reported as a missing table."""
    async with stock(dsn):
        Things = old("things")
        await Things(name="x").save()
        execute(dsn, "ALTER TABLE things ADD extra text")
        await Things(name="y", extra="lost").save()
        assert execute(dsn, "SELECT extra FROM things WHERE name = 'y'") == [(None,)]
        Registry.SCHEMAS.clear()
        execute(dsn, "ALTER TABLE things RENAME TO elsewhere")
        assert isinstance(await failure_of(Things(name="z").save()), ImaginaryTableError)


@shows(40)
async def errors_of_validations_are_ignored(dsn: str) -> None:
    """An object is saved although a validation has raised an error."""
    async with stock(dsn):
        Things = old("things")
        Things.addValidator(lambda subject: 1 / 0)
        await Things(name="x").save()
        assert count(dsn, "things") == 1


@shows(41, 42, 43)
async def names_collide_and_objects_are_not_hashable(dsn: str) -> None:
    """A column can replace a method, a subclass loses its relationships, and objects are not hashable."""
    async with stock(dsn):
        Clashes, Things = old("clashes"), old("things")
        with pytest.raises(AttributeError):
            await Clashes(errors="x").save()
        Things()
        Sub = type("Sub", (Things,), {"HASMANY": ["children"]})
        with pytest.raises(AttributeError):
            _ = Sub(id=1).children
        with pytest.raises(TypeError):
            hash(Things())
        assert Things(name="a") == Things(name="b")


@shows(45)
async def many_to_many_is_two_queries(dsn: str) -> None:
    """And loading a relationship takes a query for each object."""
    execute(
        dsn,
        "INSERT INTO tags VALUES ('1'); INSERT INTO parents VALUES ('1');"
        "INSERT INTO marks VALUES ('1', '''1''')",
    )
    with Relay(dsn) as relay:
        async with stock(relay.dsn, cp_min=1, cp_max=1):
            Registry.REGISTRATION["Tag"] = old("tags")
            Parents = old(
                "parents",
                HABTM=[{"name": "tags", "join_table": "marks", "foreign_key": "parent_id"}],
            )
            parent = await Parents.find("1")
            before = len(relay.messages)
            await parent.tags.get()
            queries = [sql for sql in relay.messages[before:] if sql.startswith(b"SELECT")]
            assert len(queries) == 2


@shows(47, 48, 50, 51)
async def types_do_not_round_trip(dsn: str) -> None:
    """A document cannot be written, bytes are read as another type, and infinity as the year 9999."""
    execute(
        dsn,
        "INSERT INTO documents (doc, at, data, span) VALUES"
        " ('{\"a\": 1}', 'infinity', '\\x00', '1 mon')",
    )
    async with stock(dsn):
        Documents = old("documents")
        found = await Documents.find(limit=1)
        assert isinstance(found.data, memoryview)
        assert found.at.year == 9999
        assert found.span.days == 30
        assert isinstance(await failure_of(found.save()), psycopg2.ProgrammingError)


@shows(52, 53)
async def text_is_not_validated(dsn: str) -> None:
    """A naive timestamp is in an unspecified time zone, and NUL raises a ValueError of Python."""
    at_home = psycopg2.extensions.make_dsn(dsn, options="-c timezone=Asia/Tokyo")
    async with stock(at_home):
        Documents = old("documents")
        await Documents(at=datetime(2020, 1, 1), words="x").save()
        shown = execute(dsn, "SELECT (at AT TIME ZONE 'UTC')::text FROM documents")
        assert shown == [("2019-12-31 15:00:00",)]
        assert isinstance(await failure_of(Documents(words="\0").save()), ValueError)


@shows(55)
async def autocommit_breaks_interactions(dsn: str) -> None:
    """In autocommit, a failed interaction keeps the statements before the error."""

    def fails(cursor: Any) -> None:
        cursor.execute("INSERT INTO things (name) VALUES ('half')")
        raise ValueError

    async with stock(dsn, cp_openfun=lambda made: setattr(made, "autocommit", True)) as pool:
        await failure_of(pool.runInteraction(fails))
        assert count(dsn, "things") == 1


@shows(56, 57)
async def a_dead_connection_stays_or_fails_once(dsn: str) -> None:
    """Each query fails without cp_reconnect, one query with it."""
    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with stock(dsn, cp_min=1, cp_max=1) as pool:
        await pool.runQuery("SELECT 1")
        execute(dsn, terminate)
        await pause(0.05)
        for _ in range(3):
            assert isinstance(await failure_of(pool.runQuery("SELECT 1")), psycopg2.Error)
    async with stock(dsn, cp_min=1, cp_max=1, cp_reconnect=True) as pool:
        await pool.runQuery("SELECT 1")
        execute(dsn, terminate)
        await pause(0.05)
        await failure_of(pool.runQuery("SELECT 1"))
        assert await pool.runQuery("SELECT 1") == [(1,)]


@shows(59, 60)
async def cancelling_does_not_stop_the_query(dsn: str) -> None:
    """The query runs on, keeps its thread, and is committed."""
    async with stock(dsn, cp_min=1, cp_max=1) as pool:

        def slow(cursor: Any) -> None:
            cursor.execute("INSERT INTO things (name) SELECT 'x' FROM pg_sleep(0.4)")

        call = pool.runInteraction(slow)
        await pause(0.1)
        call.cancel()
        assert isinstance(await failure_of(call), CancelledError)
        started = reactor.seconds()
        await pool.runQuery("SELECT 1")
        assert reactor.seconds() - started > 0.1
        assert count(dsn, "things") == 1


@shows(62)
async def close_stops_the_reactor(dsn: str) -> None:
    """It waits in the reactor thread until all queries have ended."""
    async with stock(dsn) as pool:
        running = pool.runQuery("SELECT pg_sleep(0.5)")
        await until(lambda: pool.threadpool.working)
        await pause(0.05)
        with LagProbe(reactor) as probe:
            pool.close()
        assert probe.quantile(1) > 0.2
        await running


def pause_deferred(seconds: float) -> Deferred[None]:
    return ensureDeferred(pause(seconds))


@pytest.mark.parametrize(
    "function", dict.fromkeys(DEFECTS.values()), ids=lambda function: function.__name__
)
@pytest_twisted.ensureDeferred
async def test_defect_of_a_library_still_exists(dsn: str, function: Defect) -> None:
    """Run a proof; its function describes the defect."""
    execute(dsn, TABLES)
    await function(dsn)
