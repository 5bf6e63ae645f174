"""
Writes of one row under an idempotency key: written, and stored under the key, in one message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import count
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from schema.own import MAKE
from service.api.roles import Roles
from service.db.connection import PgCursor
from service.errors import (
    CheckViolation,
    InvalidArgument,
    NotAuthorized,
    NotFound,
    ServiceError,
    UniqueViolation,
)
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of, until

ANN = Caller(7, "ann", "clerk", "realm1")
VALUES = {
    "truth": True,
    "whole": 2**53 + 1,
    "real": "-Infinity",
    "exact": "12.50",
    "words": 'a, "b" (c) \\ \n ü',
    "padded": "abc ",
    "raw": b"\x00\xff\\",
    "day": "2026-11-21",
    "at": "2026-11-21T14:03:00.25Z",
    "span": "P1Y2M3DT4H5M6.789S",
    "id4": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "address": "10.0.0.1",
    "mood": "so, so",
    "written": "",
    "document": {"a": [1, '"x" (\\)', None, {"$number": "0.12345678901234567890123"}], "b": {}},
    "as_it_is": [{"z": 1.5, "a": "\u00fc, ()"}, []],
}
SCHEMA = (
    MAKE
    + """;
CREATE ROLE rows_clerk; CREATE ROLE rows_reader;
CREATE TYPE mood AS ENUM ('sad', 'so, so');
CREATE TABLE things (id serial PRIMARY KEY, "truth" boolean, "whole" int8, "real" float8,
    "exact" numeric, "words" text, "padded" char(6), "raw" bytea, "day" date, "at" timestamptz,
    "span" interval, "id4" uuid, "address" inet, "mood" mood, "written" varchar(9), "document" jsonb,
    "as_it_is" json, "none" int);
CREATE TABLE notes (id serial PRIMARY KEY, note text CHECK (note <> ''), n int UNIQUE,
    by text DEFAULT current_user);
GRANT ALL ON things, things_id_seq, notes, notes_id_seq TO rows_clerk;
GRANT SELECT ON notes TO rows_reader;
"""
)
ROLES = {"own": Roles(), "mapped": Roles({"clerk": "rows_clerk", "reader": "rows_reader"})}
KEYS = count()


@pytest.fixture(params=list(ROLES))
def roles(request: pytest.FixtureRequest) -> Roles:
    return ROLES[request.param]


@pytest.fixture(autouse=True)
def emptied(dsn: str) -> None:
    execute(dsn, "TRUNCATE things, notes, rowcast.idempotency_keys RESTART IDENTITY")
    execute(dsn, "INSERT INTO notes (id, note) SELECT -i, 'old' FROM generate_series(1, 24) i")


async def ask(db: DirectCaller, name: str, /, *args: Any, key: str = "", **kwargs: Any) -> Any:
    """Call with an idempotency key, a new one if none is given."""
    key = key or f"key {next(KEYS)}"
    return await db.call_as(ANN, name, *args, idempotency_key=key, **kwargs)


@asynccontextmanager
async def planned(
    dsn: str, roles: Roles, sessions: int = 1, **options: Any
) -> AsyncIterator[DirectCaller]:
    """Serve with sessions that have prepared the writes of the tests."""
    async with serving(dsn, most=sessions, roles=roles, **options) as db:
        for name, args in (
            ("notes.create", lambda _: [{"note": "x"}]),
            ("notes.update", lambda at: [-1 - at, {"note": "x"}]),
            ("notes.delete", lambda at: [-1 - at]),
            ("things.create", lambda _: [VALUES]),
        ):
            calls = [ensureDeferred(ask(db, name, *args(at))) for at in range(6 * sessions)]
            await gatherResults(calls)
        execute(dsn, "TRUNCATE things, notes, rowcast.idempotency_keys RESTART IDENTITY")
        execute(dsn, "INSERT INTO notes (id, note) VALUES (-1, 'old'), (-2, 'old')")
        yield db


def rows(dsn: str) -> list[tuple[object, ...]]:
    return execute(dsn, "SELECT id, note, n FROM notes ORDER BY id")


def stored(dsn: str) -> list[bool]:
    """Return for each stored result whether it is a row written by a single message."""
    query = "SELECT get_byte(result, 0) = 255 FROM rowcast.idempotency_keys"
    return [bool(each) for (each,) in execute(dsn, query)]


WRITES: dict[str, tuple[list[Any], list[tuple[object, ...]]]] = {
    "notes.create": ([{"note": "new"}], [(-2, "old", None), (-1, "old", None), (1, "new", None)]),
    "notes.update": ([-1, {"note": "new"}], [(-2, "old", None), (-1, "new", None)]),
    "notes.delete": ([-1], [(-2, "old", None)]),
}


@pytest.mark.parametrize("name", WRITES)
@pytest_twisted.ensureDeferred
async def test_row_is_written_and_stored_in_one_message(
    dsn: str, roles: Roles, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, expected = WRITES[name]
    sent: list[Any] = []
    run = PgCursor.execute

    def noted(cursor: PgCursor, query: Any, *args: Any, **how: Any) -> None:
        sent.append(query)
        run(cursor, query, *args, **how)

    async with planned(dsn, roles) as db:
        monkeypatch.setattr(PgCursor, "execute", noted)
        first = await ask(db, name, *args, key="k")
        assert len(sent) == 1
        assert rows(dsn) == expected
        assert stored(dsn) == [True]
        for _ in range(2):
            assert await ask(db, name, *args, key="k") == first
        assert rows(dsn) == expected


@pytest_twisted.ensureDeferred
async def test_values_of_a_stored_row_equal_those_of_the_row(dsn: str, roles: Roles) -> None:
    """This holds for each service that reads them, and for each way of writing the row."""
    async with planned(dsn, roles) as db, serving(dsn, roles=roles) as other:
        first = await ask(db, "things.create", VALUES, key="k")
        assert stored(dsn) == [True]
        again = await ask(other, "things.create", VALUES, key="k")
        there = await db.call_as(ANN, "things.get", 1)
        as_ever = await ask(other, "things.create", VALUES)
    assert [repr(each) for each in (again, there)] == [repr(first)] * 2
    assert repr(as_ever) == repr(first | {"id": as_ever["id"]})
    assert stored(dsn) == [True, False]


@pytest_twisted.ensureDeferred
async def test_stored_row_has_the_columns_of_the_time_of_the_write(dsn: str, roles: Roles) -> None:
    execute(dsn, "DROP TABLE IF EXISTS grown")
    execute(dsn, "CREATE TABLE grown (id serial PRIMARY KEY, note text, gone int DEFAULT 1)")
    execute(dsn, "GRANT ALL ON grown, grown_id_seq TO rows_clerk")
    async with serving(dsn, most=1, roles=roles) as db:
        for key in "abcdefk":
            first = await ask(db, "grown.create", {"note": "x"}, key=key)
    assert any(stored(dsn))
    execute(dsn, "ALTER TABLE grown DROP COLUMN gone, ADD COLUMN more int DEFAULT 2")
    async with serving(dsn, most=1, roles=roles) as db:
        # without the check against the description, which the old row no longer matches
        call = "grown.create", [{"note": "x"}], {"idempotency_key": "k"}
        assert await db.dispatcher.answer(*call, ANN) == first


CHANGES = {
    "text": ("text USING 'x' || n", "x1"),
    "float8": ("float8 USING n + 0.5", 1.5),
    "numeric": ("numeric", "1"),
    "domain": ("whole", 1),
    "boolean": ("boolean USING n > 0", True),
    "array": ("int[] USING ARRAY[n]", [1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest_twisted.ensureDeferred
async def test_row_is_decoded_by_the_types_that_its_columns_have_now(
    dsn: str, roles: Roles, change: str
) -> None:
    """Not by the types that the service's catalog knows, which a migration may just have changed."""
    type, value = CHANGES[change]
    execute(
        dsn, "DROP TABLE IF EXISTS typed; DROP DOMAIN IF EXISTS whole; CREATE DOMAIN whole AS int"
    )
    execute(dsn, "CREATE TABLE typed (id int PRIMARY KEY, note text, n int)")
    execute(dsn, "INSERT INTO typed (id, n) VALUES (1, 1); GRANT ALL ON typed TO rows_clerk")
    async with serving(dsn, most=1, roles=roles) as db:
        for _ in range(6):
            await ask(db, "typed.update", 1, {"note": "x"})
        assert stored(dsn)[-1]
        execute(dsn, f"ALTER TABLE typed ALTER n TYPE {type}")
        # past the check that answers are as described: this one is not
        call = "typed.update", [1, {"note": "y"}], {"idempotency_key": "k"}, ANN
        first = await db.dispatcher.answer(*call)
        assert first == {"id": 1, "note": "y", "n": value}
        assert repr(await db.dispatcher.answer(*call)) == repr(first)


@pytest.mark.parametrize("name", WRITES)
@pytest_twisted.ensureDeferred
async def test_concurrent_duplicates_are_written_once(dsn: str, roles: Roles, name: str) -> None:
    args, expected = WRITES[name]
    async with planned(dsn, roles, sessions=4) as db:
        for _ in range(5):
            calls = [ensureDeferred(ask(db, name, *args, key="k")) for _ in range(12)]
            first, *others = await gatherResults(calls)
            assert all(each == first for each in others)
    # sequence values of rolled back rows are lost
    assert [row[1:] for row in rows(dsn)] == [row[1:] for row in expected]
    assert len(stored(dsn)) == 1


@pytest_twisted.ensureDeferred
async def test_duplicates_that_wait_for_the_row_get_the_same_result(dsn: str, roles: Roles) -> None:
    async with planned(dsn, roles, sessions=4) as db:
        with closing(psycopg2.connect(dsn)) as other, other.cursor() as cursor:
            cursor.execute("UPDATE notes SET note = 'held' WHERE id = -1")
            change = -1, {"n": {"$add": 1}}
            calls = [ensureDeferred(ask(db, "notes.update", *change, key="k")) for _ in range(3)]
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: len(execute(dsn, waiting)) == 3)
            cursor.execute("UPDATE notes SET n = 7 WHERE id = -1")
            other.commit()
        answers = await gatherResults(calls)
    assert [each["n"] for each in answers] == [8, 8, 8]
    assert rows(dsn) == [(-2, "old", None), (-1, "held", 8)]


@pytest.mark.parametrize("name", ["notes.update", "notes.delete", "notes.upsert"])
@pytest_twisted.ensureDeferred
async def test_duplicates_in_prepared_and_new_sessions_do_not_deadlock(
    dsn: str, roles: Roles, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that sends the write and its key in one message, and one that sends two messages."""
    args = [{"id": -1, "note": "new"}] if name == "notes.upsert" else WRITES[name][0]
    deadlocks: list[Exception] = []
    run = PgCursor.execute

    def noted(cursor: PgCursor, *args: Any, **how: Any) -> None:
        try:
            run(cursor, *args, **how)
        except psycopg2.errors.DeadlockDetected as error:
            deadlocks.append(error)
            raise

    monkeypatch.setattr(PgCursor, "execute", noted)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with planned(dsn, roles) as prepared, serving(dsn, most=1, roles=roles) as new:
        for _ in range(6):
            await ask(prepared, "notes.upsert", {"id": -2, "note": "old"})
        with closing(psycopg2.connect(dsn)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM notes WHERE id = -1 FOR UPDATE")
            calls = []
            for db in (prepared, new):
                calls.append(ensureDeferred(ask(db, name, *args, key="k")))
                await until(lambda: len(execute(dsn, waiting)) == len(calls))
            other.commit()
        first, second = await gatherResults(calls)
    assert first == second
    assert deadlocks == []
    expected = [(-2, "old", None)] + ([(-1, "new", None)] if "delete" not in name else [])
    assert rows(dsn) == expected


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("notes.create", [{"note": ""}], CheckViolation),
        ("notes.create", [{"note": "x", "n": "y"}], InvalidArgument),
        ("notes.update", [99, {"note": "x"}], NotFound),
        ("notes.delete", [99], NotFound),
    ],
)
@pytest_twisted.ensureDeferred
async def test_write_that_fails_stores_nothing(
    dsn: str, roles: Roles, name: str, args: list[Any], kind: type[ServiceError]
) -> None:
    async with planned(dsn, roles) as db:
        for _ in range(2):
            assert isinstance(await failure_of(ask(db, name, *args, key="k")), kind)
        assert stored(dsn) == []
        assert (await ask(db, "notes.create", {"note": "new"}, key="k"))["note"] == "new"
        assert stored(dsn) == [True]
    assert len(rows(dsn)) == 3


@pytest_twisted.ensureDeferred
async def test_large_row_is_stored_by_separate_messages(dsn: str, roles: Roles) -> None:
    note = "x" * 100_000
    async with planned(dsn, roles) as db:
        first = await ask(db, "notes.create", {"note": note}, key="k")
        assert first == await ask(db, "notes.create", {"note": note}, key="k")
    assert first["note"] == note
    assert stored(dsn) == [False]


@pytest_twisted.ensureDeferred
async def test_stored_row_is_returned_although_its_write_would_be_refused(
    dsn: str, roles: Roles
) -> None:
    """Another row has its key now, or the row was deleted."""
    async with planned(dsn, roles) as db:
        first = await ask(db, "notes.create", {"note": "new", "n": 5}, key="create")
        assert first == await ask(db, "notes.create", {"note": "new", "n": 5}, key="create")
        gone = await ask(db, "notes.delete", -1, key="delete")
        assert gone == await ask(db, "notes.delete", -1, key="delete")
        taken = failure_of(ask(db, "notes.create", {"note": "new", "n": 5}, key="other"))
        assert isinstance(await taken, UniqueViolation)


@pytest_twisted.ensureDeferred
async def test_other_write_under_the_key_is_refused(dsn: str, roles: Roles) -> None:
    async with planned(dsn, roles) as db:
        await ask(db, "notes.update", -1, {"note": "new"}, key="k")
        for change in ([-2, {"note": "new"}], [99, {"note": "new"}], [-1, {"note": ""}]):
            error = await failure_of(ask(db, "notes.update", *change, key="k"))
            assert isinstance(error, InvalidArgument)
            assert error.details["path"] == "idempotency_key"
    assert rows(dsn) == [(-2, "old", None), (-1, "new", None)]


@pytest_twisted.ensureDeferred
async def test_row_is_written_with_the_rights_of_the_role(dsn: str) -> None:
    reader = Caller(8, "bob", "reader", "realm1")
    async with planned(dsn, ROLES["mapped"]) as db:
        assert (await ask(db, "notes.create", {"note": "new"}))["by"] == "rows_clerk"
        for _ in range(6):
            again = {"note": "x"}, str(next(KEYS))
            error = await failure_of(
                db.call_as(reader, "notes.create", again[0], idempotency_key=again[1])
            )
            assert isinstance(error, NotAuthorized)
        (path,) = await db.database.statement(
            "SELECT current_user || current_setting('rowcast_key.row', true)"
        )
    ((owner,),) = execute(dsn, "SELECT current_user")
    assert path == (owner,)
    assert stored(dsn) == [True]
