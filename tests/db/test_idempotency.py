"""
Idempotency keys: a repeated call returns the first result and writes once.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import Clock

from schema.own import MAKE, make
from service.api.idempotency import Pruner
from service.api.interactive import TransactionLimits
from service.db.connection import PgConnection, PgCursor
from service.errors import (
    CheckViolation,
    Conflict,
    ForeignKeyViolation,
    InvalidArgument,
    InvalidRow,
    NotAuthorized,
    NotFound,
    ServiceError,
    StatementTimeout,
    TooLarge,
    Unavailable,
)
from service.models.model import Model, not_blank
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of, until

ANN, BOB = (
    Caller(7, "ann", "clerk", "realm1"),
    Caller(8, "bob", "clerk", "realm1"),
)

SCHEMA = (
    """
CREATE TABLE notes (id serial PRIMARY KEY, note text CHECK (note <> ''), n numeric, doc jsonb,
    raw bytea, at timestamptz DEFAULT now(), lot float DEFAULT random());
CREATE TABLE ruled (id serial PRIMARY KEY, note text);
CREATE TABLE plain (id serial PRIMARY KEY, note text);
CREATE TABLE heads (id int PRIMARY KEY);
CREATE TABLE tails (id int REFERENCES heads DEFERRABLE INITIALLY DEFERRED);
CREATE SEQUENCE tickets;
CREATE FUNCTION ticket(step int DEFAULT 1) RETURNS bigint LANGUAGE sql AS $$
    INSERT INTO notes (note, n) VALUES ('ticket', step); SELECT nextval('tickets') $$;
CREATE FUNCTION slow(seconds float) RETURNS float LANGUAGE sql AS $$
    INSERT INTO notes (note) VALUES ('slow'); SELECT random() FROM pg_sleep(seconds) $$;
CREATE FUNCTION looked() RETURNS float STABLE LANGUAGE sql AS 'SELECT random()';
CREATE FUNCTION own(idempotency_key text) RETURNS float LANGUAGE sql AS 'SELECT random()';
CREATE FUNCTION several() RETURNS SETOF notes LANGUAGE sql AS $$
    INSERT INTO notes (note) VALUES ('one'), ('two') RETURNING * $$;
CREATE PROCEDURE stored(INOUT said text) LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO notes (note) VALUES (said); said := random()::text; END $$;
CREATE PROCEDURE halves() LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO notes (note) VALUES ('half'); COMMIT; END $$;
"""
    + MAKE
)


class Ruled(Model):
    """A model with validations that query the database, and a hook that changes the row."""

    TABLENAME = "ruled"

    async def beforeSave(self) -> bool:
        """Number the note by the existing rows."""
        there = await Ruled.count()
        self.note = f"{self.note} after {there}"
        return True


Ruled.VALIDATIONS = ()


class Plain(Model):
    """A model with a validation of given values only."""

    TABLENAME = "plain"
    VALIDATIONS = (not_blank("note"),)


pytestmark = pytest.mark.serving(max_bytes=100_000, written=(Ruled, Plain), inject=True)
BEFORE_EACH = (
    "TRUNCATE notes, ruled, plain, heads, tails, rowcast.idempotency_keys RESTART IDENTITY"
)


WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = '{}'"


async def ask(
    db: DirectCaller, name: str, /, *args: Any, caller: Caller = ANN, **kwargs: Any
) -> Any:
    """Call as an authenticated caller."""
    return await db.call_as(caller, name, *args, **kwargs)


async def refused(db: DirectCaller, name: str, /, *args: Any, **kwargs: Any) -> ServiceError:
    return await failure_of(ask(db, name, *args, **kwargs), ServiceError)


def notes(dsn: str, table: str = "notes") -> int:
    """Return the number of rows."""
    ((found,),) = execute(dsn, f"SELECT count(*) FROM {table}")
    assert isinstance(found, int)
    return found


NOTE = {"note": "x", "n": "12.50", "doc": {"a": [1, 2.5, None]}, "raw": b"\0\xff"}
WRITES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("notes.create", [NOTE], {}, 1),
    ("notes.create", [NOTE], {"returning": False}, 1),
    ("notes.create", [NOTE], {"form": "lists"}, 1),
    ("notes.create", [NOTE], {"form": "json", "select": ["n", "doc", "lot"]}, 1),
    ("notes.create", [[NOTE, {"note": "y"}]], {}, 2),
    ("notes.create", [[{"note": f"{at}"} for at in range(150)]], {"select": ["lot"]}, 150),
    ("notes.create", [[]], {}, 0),
    ("notes.upsert", [{"id": 9, "note": "new"}], {}, 1),
    (
        "notes.upsert",
        [{"id": 9, "note": "new"}],
        {"update": {"n": {"$add": 1}}, "returning": "both"},
        1,
    ),
    ("notes.update", [1, {"note": "other"}], {"returning": True}, 1),
    ("notes.update", [1, {}], {}, 1),
    ("notes.update", [], {"where": {"id": 1}, "changes": {"note": "o"}, "max_affected": 1}, 1),
    ("notes.delete", [1], {}, 0),
    ("notes.delete", [], {"all": True}, 0),
    ("notes.import", [[{"note": "a"}, {"note": "b"}]], {}, 2),
    ("notes.import", [], {"csv": "note\na\nb\n"}, 2),
    ("fn.ticket", [], {"step": 2}, 1),
    ("fn.ticket", [], {"args": {"step": 2}, "form": "json"}, 1),
    ("fn.several", [], {"form": "lists"}, 2),
    ("fn.looked", [], {}, 0),
    ("fn.stored", [], {"said": "x"}, 1),
    ("ruled.create", [{"note": "x"}], {}, 1),
    ("ruled.create", [[{"note": "x"}, {"note": "y"}]], {}, 2),
    ("ruled.update", [1, {"note": "x"}], {}, 1),
    ("ruled.update", [], {"all": True, "changes": {"note": "x"}}, 1),
    ("ruled.import", [[{"note": "a"}, {"note": "b"}]], {}, 2),
    ("ruled.import", [], {"csv": "note\na\nb"}, 2),
    ("transaction", [[{"call": "notes.create", "args": [NOTE]}, {"call": "fn.ticket"}]], {}, 2),
    (
        "transaction",
        [[{"call": "ruled.create", "args": [{"note": "x"}]}]],
        {"isolation": "serializable"},
        1,
    ),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "rows"), WRITES)
@pytest_twisted.ensureDeferred
async def test_second_call_with_a_key_returns_the_first_result_and_writes_nothing(
    db: DirectCaller, dsn: str, name: str, args: list[Any], kwargs: dict[str, Any], rows: int
) -> None:
    for table in ("notes", "ruled"):
        if f"{table}.update" in name or f"{table}.delete" in name:
            execute(dsn, f"INSERT INTO {table} (note) VALUES ('first')")
    first = await ask(db, name, *args, **kwargs, idempotency_key="k")
    before = execute(dsn, "SELECT notes::text FROM notes ORDER BY id")
    assert len(before) + notes(dsn, "ruled") == rows
    second = await ask(db, name, *args, **kwargs, idempotency_key="k")
    assert second == first
    assert repr(second) == repr(first)
    assert execute(dsn, "SELECT notes::text FROM notes ORDER BY id") == before
    assert len(before) + notes(dsn, "ruled") == rows
    assert notes(dsn, "rowcast.idempotency_keys") == 1


MESSAGES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("notes.create", [NOTE], {}, 2),
    ("notes.update", [1, {"note": "other"}], {}, 2),
    ("fn.ticket", [], {"step": 2}, 2),
    ("plain.create", [{"note": "x"}], {}, 2),
    ("plain.update", [1, {"note": "x"}], {}, 2),
    ("ruled.create", [{"note": "x"}], {}, 3),  # its validation queries the database
    ("ruled.update", [1, {"note": "x"}], {}, 4),
    ("transaction", [[{"call": "notes.create", "args": [NOTE]}] * 3], {}, 4),
    ("transaction", [[{"call": "plain.create", "args": [{"note": "x"}]}] * 3], {}, 4),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "messages"), MESSAGES)
@pytest_twisted.ensureDeferred
async def test_key_travels_with_the_first_message_and_its_result_with_commit(
    db: DirectCaller,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    messages: int,
) -> None:
    """So the only additional message is COMMIT, whatever validations the model has."""
    for table in ("notes", "ruled", "plain"):
        execute(dsn, f"INSERT INTO {table} (note) VALUES ('first')")
    await ask(db, name, *args, **kwargs, idempotency_key="first")
    sent: list[Any] = []
    run = PgCursor.execute

    def noted(cursor: PgCursor, query: Any, *args: Any, **how: Any) -> None:
        # not what a new session sends first, nor a PREPARE
        if cursor.connection.opened_at and not str(query).startswith("PREPARE"):
            sent.append(query)
        run(cursor, query, *args, **how)

    monkeypatch.setattr(PgCursor, "execute", noted)
    await ask(db, name, *args, **kwargs, idempotency_key="k")
    assert len(sent) == messages, sent


@pytest_twisted.ensureDeferred
async def test_session_prepares_key_statements_once_until_foreign_code_has_run(
    db: DirectCaller, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such code may have replaced the prepared statements."""
    sent: list[str] = []
    command = PgConnection.command

    def noted(connection: PgConnection, words: str) -> str:
        sent.append(words)
        return command(connection, words)

    async with serving(dsn, most=1) as other:

        async def planned(name: str, *args: Any) -> int:
            sent.clear()
            await ask(other, name, *args, idempotency_key=f"{next(keys)}")
            return sum(words.startswith("PREPARE") for words in sent)

        keys = count()
        monkeypatch.setattr(PgConnection, "command", noted)
        # One statement writes and stores a row in one message; other writes have two statements.
        for rows, again in (({"note": "x"}, 1), ([{"note": "x"}], 2)):
            create = [await planned("notes.create", rows) for _ in range(4)]
            assert create == [0, 2, 0, 0]
            assert any("EXECUTE" in words for words in sent)
            await planned("fn.ticket")
            create = [await planned("notes.create", rows) for _ in range(3)]
            assert create == [0, again, 0]
    assert notes(dsn) == notes(dsn, "rowcast.idempotency_keys") == 16


@pytest_twisted.ensureDeferred
async def test_second_call_that_the_model_would_refuse_returns_the_first_result(
    db: DirectCaller, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table, model in (("plain", Plain), ("ruled", Ruled)):
        first = await ask(db, f"{table}.create", {"note": "x"}, idempotency_key=table)
        with monkeypatch.context() as patch:
            patch.setattr(model, "VALIDATIONS", [lambda row: row.errors.add("note", "is late")])
            again = await ask(db, f"{table}.create", {"note": "x"}, idempotency_key=table)
            assert again == first
            error = await refused(db, f"{table}.create", {"note": "x"}, idempotency_key="other")
            assert isinstance(error, InvalidRow)
            other = await refused(db, f"{table}.create", {"note": "y"}, idempotency_key=table)
            assert isinstance(other, InvalidArgument)
        assert notes(dsn, table) == 1


@pytest_twisted.ensureDeferred
async def test_second_call_of_a_model_that_suppresses_errors_returns_the_first_result(
    db: DirectCaller, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def careless(row: Ruled) -> None:
        with suppress(Exception):
            await Ruled.count()

    monkeypatch.setattr(Ruled, "VALIDATIONS", [careless])
    found = [await ask(db, "ruled.create", {"note": "x"}, idempotency_key="k") for _ in range(2)]
    assert found[0] == found[1]
    assert notes(dsn, "ruled") == 1


@pytest.mark.parametrize(
    "other",
    [
        {"args": [{"note": "y"}]},
        {"name": "notes.upsert", "args": [{"id": 1, "note": "x"}]},
        {"name": "fn.ticket", "args": []},
        {"name": "transaction", "args": [[]]},
        {"timeout": 5},
        {"form": "lists"},
        {"select": ["id"]},
        {"returning": False},
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_call_under_a_key_is_refused(
    db: DirectCaller, dsn: str, other: dict[str, Any]
) -> None:
    await ask(db, "notes.create", {"note": "x"}, idempotency_key="k")
    name, args = other.pop("name", "notes.create"), other.pop("args", [{"note": "x"}])
    error = await refused(db, name, *args, **other, idempotency_key="k")
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"
    assert notes(dsn) == 1


@pytest_twisted.ensureDeferred
async def test_key_is_of_its_caller_and_realm(db: DirectCaller, dsn: str) -> None:
    """Concatenating caller and key otherwise does not give the same key."""
    callers = [ANN, BOB, Caller(7, "ann", "clerk", "realm2"), Caller(1, 'ann","k', "clerk", "r")]
    for caller in callers:
        await ask(db, "notes.create", {"note": "x"}, idempotency_key="k", caller=caller)
    assert notes(dsn) == len(callers)
    elsewhere = Caller(99, "ann", "clerk", "realm1")
    found = await ask(db, "notes.create", {"note": "x"}, idempotency_key="k", caller=elsewhere)
    assert found["id"] == 1
    assert notes(dsn) == len(callers)


@pytest.mark.parametrize(
    "caller",
    [
        Caller(1, None, None, "realm1"),
        Caller(1, "", "user", "realm1"),
        Caller(1, "J3X", "anonymous", "realm1"),
    ],
)
@pytest.mark.parametrize("name", ["notes.create", "transaction"])
@pytest_twisted.ensureDeferred
async def test_anonymous_caller_is_refused(
    db: DirectCaller, dsn: str, name: str, caller: Caller
) -> None:
    args = [] if name == "transaction" else {"note": "x"}
    error = await refused(db, name, args, idempotency_key="k", caller=caller)
    assert isinstance(error, NotAuthorized)
    assert notes(dsn) == 0


@pytest.mark.parametrize("key", ["", "k" * 256, 5, ["k"], b"k", True, "k\0", "\ud800"])
@pytest.mark.parametrize("name", ["notes.create", "fn.ticket", "transaction"])
@pytest_twisted.ensureDeferred
async def test_invalid_key_is_refused(db: DirectCaller, dsn: str, name: str, key: Any) -> None:
    args = {"notes.create": [{"note": "x"}], "transaction": [[]]}.get(name, [])
    error = await refused(db, name, *args, idempotency_key=key)
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"
    assert notes(dsn) == 0


@pytest_twisted.ensureDeferred
async def test_call_with_a_null_key_is_run_each_time(db: DirectCaller, dsn: str) -> None:
    for caller in (ANN, Caller(None, None, None, "realm1")):
        await ask(db, "notes.create", {"note": "x"}, idempotency_key=None, caller=caller)
        await ask(db, "fn.ticket", idempotency_key=None, caller=caller)
        await ask(db, "transaction", [], idempotency_key=None, caller=caller)
    assert (notes(dsn), notes(dsn, "rowcast.idempotency_keys")) == (4, 0)


@pytest_twisted.ensureDeferred
async def test_argument_of_a_function_named_idempotency_key_is_passed_to_it(
    db: DirectCaller, dsn: str
) -> None:
    """Within `args` it is an argument of the function, beside `args` it is the service's."""
    one, two = [await ask(db, "fn.own", idempotency_key="k") for _ in range(2)]
    assert one != two
    assert notes(dsn, "rowcast.idempotency_keys") == 0
    kept = [
        await ask(db, "fn.own", args={"idempotency_key": "x"}, idempotency_key="k")
        for _ in range(2)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("name", "args"), [("notes.get", [1]), ("notes.find", []), ("notes.count", [])]
)
@pytest_twisted.ensureDeferred
async def test_read_with_a_key_is_refused(db: DirectCaller, name: str, args: list[Any]) -> None:
    error = await failure_of(db.dispatcher.answer(name, args, {"idempotency_key": "k"}, ANN))
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "kind"),
    [
        ("notes.create", [{"note": ""}], {}, CheckViolation),
        ("notes.update", [5, {"note": "x"}], {}, NotFound),
        ("notes.create", [{"note": "x" * 200_000}], {}, TooLarge),
        ("fn.slow", [], {"seconds": 60.0, "timeout": 0.1}, StatementTimeout),
        ("tails.create", [{"id": 5}], {}, ForeignKeyViolation),
        ("transaction", [[{"call": "notes.create", "args": [{"note": ""}]}]], {}, CheckViolation),
        ("transaction", [[{"call": "tails.create", "args": [{"id": 5}]}]], {}, ForeignKeyViolation),
        ("ruled.create", [{"note": "x" * 200_000}], {}, TooLarge),
    ],
)
@pytest_twisted.ensureDeferred
async def test_call_that_fails_under_a_key_is_not_kept(
    db: DirectCaller, dsn: str, name: str, args: list[Any], kwargs: dict[str, Any], kind: type
) -> None:
    """A retry runs again, and another call may use the key."""
    for _ in range(2):
        assert isinstance(await refused(db, name, *args, **kwargs, idempotency_key="k"), kind)
    assert notes(dsn) + notes(dsn, "ruled") + notes(dsn, "rowcast.idempotency_keys") == 0
    await ask(db, "notes.create", {"note": "x"}, idempotency_key="k")
    assert notes(dsn) == 1


@pytest.mark.parametrize("name", ["fn.slow", "transaction"])
@pytest_twisted.ensureDeferred
async def test_concurrent_duplicates_wait_for_the_first(
    db: DirectCaller, dsn: str, name: str
) -> None:
    call = {"call": "fn.slow", "kwargs": {"seconds": 0.3}}
    args = [[call]] if name == "transaction" else []
    kwargs = {} if args else {"seconds": 0.3}
    calls = [ensureDeferred(ask(db, name, *args, **kwargs, idempotency_key="k")) for _ in range(12)]
    first, *others = await gatherResults(calls)
    assert all(each == first for each in others)
    assert notes(dsn) == 1


@pytest_twisted.ensureDeferred
async def test_duplicate_waits_longer_than_for_a_lock(dsn: str, db: DirectCaller) -> None:
    """It waits beyond `lock_timeout`, up to the call's timeout."""
    async with serving(dsn, lock_timeout=0.2) as other:
        first = ensureDeferred(ask(other, "fn.slow", seconds=0.8, idempotency_key="k"))
        await until(lambda: execute(dsn, WAITING.format("PgSleep")))
        second = ensureDeferred(ask(other, "fn.slow", seconds=0.8, idempotency_key="k"))
        assert await first == await second
    assert notes(dsn) == 1


@pytest_twisted.ensureDeferred
async def test_duplicate_whose_connection_is_lost_ends_in_an_error(
    db: DirectCaller, dsn: str
) -> None:
    """The connection is lost while it waits for the first call; the error must not be its own cause."""
    first = ask(db, "fn.slow", seconds=1.0, idempotency_key="k")
    slow = [{"call": "fn.slow", "kwargs": {"seconds": 0}}]
    running = ensureDeferred(first)
    await until(lambda: bool(execute(dsn, WAITING.format("PgSleep"))))
    second = ensureDeferred(ask(db, "transaction", slow, idempotency_key="k"))
    waiting = WAITING.format("transactionid").replace(
        "SELECT 1", "SELECT pg_terminate_backend(pid)"
    )
    await until(lambda: bool(execute(dsn, waiting)))
    assert isinstance(await failure_of(second), Unavailable)
    await running
    assert notes(dsn) == 1


@pytest_twisted.ensureDeferred
async def test_duplicate_of_a_call_that_fails_is_run(db: DirectCaller, dsn: str) -> None:
    first: Deferred[Any] = ensureDeferred(ask(db, "fn.slow", seconds=60.0, idempotency_key="k"))
    await until(lambda: execute(dsn, WAITING.format("PgSleep")))
    second = ensureDeferred(ask(db, "notes.create", {"note": "mine"}, idempotency_key="k"))
    await until(lambda: execute(dsn, WAITING.format("transactionid")))
    first.addErrback(lambda _: None)
    first.cancel()
    assert (await second)["note"] == "mine"
    assert notes(dsn) == 1


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
@pytest_twisted.ensureDeferred
async def test_batches_of_any_isolation_are_written_once(
    db: DirectCaller, dsn: str, isolation: str
) -> None:
    """Eight keys with three concurrent calls each."""
    calls = [
        ensureDeferred(
            ask(
                db,
                "transaction",
                [{"call": "notes.create", "args": [{"note": f"{key}"}]}],
                isolation=isolation,
                idempotency_key=f"{key}",
            )
        )
        for key in range(8)
        for _ in range(3)
    ]
    found = await gatherResults(calls)
    assert notes(dsn) == 8
    assert all(found[at] == found[at - at % 3] for at in range(len(found)))


@pytest_twisted.ensureDeferred
async def test_batch_that_is_run_again_is_kept_once(db: DirectCaller, dsn: str) -> None:
    operations = [{"call": "notes.create", "args": [{"note": "x"}], "kwargs": {"select": ["note"]}}]
    inject = {"serialization_failure": 2}
    for _ in range(2):
        found = await ask(db, "transaction", operations, inject=inject, idempotency_key="k")
        assert found == [{"note": "x"}]
    assert notes(dsn) == 1


@pytest.mark.parametrize("option", ["read_only", "dry_run"])
@pytest_twisted.ensureDeferred
async def test_batch_that_writes_nothing_is_refused_with_a_key(
    db: DirectCaller, option: str
) -> None:
    error = await refused(db, "transaction", [], **{option: True}, idempotency_key="k")
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"


@pytest_twisted.ensureDeferred
async def test_operation_of_a_batch_with_its_own_key_is_refused(db: DirectCaller, dsn: str) -> None:
    call = {"call": "notes.create", "args": [{"note": "x"}], "kwargs": {"idempotency_key": "k"}}
    error = await refused(db, "transaction", [call])
    assert isinstance(error, InvalidArgument)
    assert (error.details["path"], error.details["operation"]) == ("idempotency_key", 0)
    assert notes(dsn) == 0


@pytest.mark.parametrize("kwargs", [{"done": False}, {"rows": [{"note": "x"}], "done": False}])
@pytest_twisted.ensureDeferred
async def test_upload_with_a_key_is_refused(db: DirectCaller, kwargs: dict[str, Any]) -> None:
    error = await refused(db, "notes.import", **kwargs, idempotency_key="k")
    assert isinstance(error, InvalidArgument)
    assert error.details["path"] == "idempotency_key"


@pytest_twisted.ensureDeferred
async def test_procedure_under_a_key_may_not_commit(db: DirectCaller, dsn: str) -> None:
    error = await refused(db, "fn.halves", idempotency_key="k")
    assert error.details["sqlstate"] == "2D000"
    assert "without idempotency_key" in error.details["hint"]
    assert notes(dsn) == 0
    await ask(db, "fn.halves")
    assert notes(dsn) == 1


async def begin(db: DirectCaller, **options: Any) -> str:
    """Begin an interactive transaction; return its name."""
    if not db.dispatcher._interactive.leases:
        db.dispatcher.hold(TransactionLimits(total=9, session=9))
    found = await ask(db, "transaction.begin", **options)
    return str(found["tx"]).removeprefix("rowcast.")


async def call(db: DirectCaller, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return await db.dispatcher.answer(name, args, kwargs, ANN)


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
@pytest_twisted.ensureDeferred
async def test_interactive_commit_under_a_used_key_writes_nothing(
    db: DirectCaller, dsn: str, isolation: str
) -> None:
    for _ in range(2):
        tx = await begin(db, isolation=isolation)
        await call(db, tx, "notes.create", [{"note": "x"}])
        assert await call(db, f"{tx}.commit", idempotency_key="k") is None
    assert notes(dsn) == 1
    error = await failure_of(call(db, f"{tx}.commit", idempotency_key="k"))
    assert isinstance(error, Conflict)
    assert error.details["reason"] == "committed"


@pytest_twisted.ensureDeferred
async def test_interactive_commit_under_a_key_of_another_call_is_refused(
    db: DirectCaller, dsn: str
) -> None:
    await ask(db, "fn.ticket", idempotency_key="k")
    tx = await begin(db)
    await call(db, tx, "notes.create", [{"note": "x"}])
    error = await failure_of(call(db, f"{tx}.commit", idempotency_key="k"))
    assert isinstance(error, InvalidArgument)
    await call(db, f"{tx}.rollback")
    assert notes(dsn) == 1


@pytest_twisted.ensureDeferred
async def test_interactive_commit_that_fails_keeps_no_key(db: DirectCaller, dsn: str) -> None:
    tx = await begin(db)
    await call(db, tx, "tails.create", [{"id": 5}])
    assert isinstance(
        await failure_of(call(db, f"{tx}.commit", idempotency_key="k")), ForeignKeyViolation
    )
    await call(db, f"{tx}.rollback")
    assert notes(dsn, "rowcast.idempotency_keys") == 0
    tx = await begin(db)
    error = await failure_of(call(db, f"{tx}.rollback", idempotency_key="k"))
    assert isinstance(error, InvalidArgument)
    await call(db, f"{tx}.rollback")


@pytest_twisted.ensureDeferred
async def test_old_keys_are_pruned_and_younger_ones_stay(db: DirectCaller, dsn: str) -> None:
    await ask(db, "notes.create", {"note": "x"}, idempotency_key="old")
    execute(dsn, "UPDATE rowcast.idempotency_keys SET kept_at = now() - interval '25 hours'")
    execute(
        dsn,
        "INSERT INTO rowcast.idempotency_keys (id, call, kept_at) SELECT i::text::bytea, 'x',"
        " now() - interval '2 days' FROM generate_series(1, 2500) i",
    )
    await ask(db, "notes.create", {"note": "y"}, idempotency_key="young")
    await Pruner(db.database, 86_400).prune()
    assert notes(dsn, "rowcast.idempotency_keys") == 1
    assert (await ask(db, "notes.create", {"note": "y"}, idempotency_key="young"))["id"] == 2
    assert (await ask(db, "notes.create", {"note": "x"}, idempotency_key="old"))["id"] > 2


@pytest_twisted.ensureDeferred
async def test_keys_are_pruned_soon_after_the_start_and_then_periodically(
    db: DirectCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a service restarted more often than its interval would never prune."""
    clock, looks = Clock(), list[float]()
    monkeypatch.setattr(db.database, "reactor", clock)
    pruner = Pruner(db.database, 86_400)

    async def prune() -> None:
        looks.append(clock.seconds())

    monkeypatch.setattr(pruner, "prune", prune)
    pruner.startService()
    for _ in range(61):
        clock.advance(20)
    assert looks == [20, 620, 1220]
    pruner.stopService()
    pruner.startService()
    pruner.stopService()
    assert not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_database_without_the_table_is_refused_with_the_command_that_creates_it(
    db: DirectCaller, dsn: str
) -> None:
    execute(dsn, "DROP TABLE rowcast.idempotency_keys; DROP SCHEMA rowcast")
    try:
        for name, args in (("notes.create", {"note": "x"}), ("transaction", [])):
            error = await refused(db, name, args, idempotency_key="k")
            assert isinstance(error, InvalidArgument)
            assert error.details["path"] == "idempotency_key"
            assert "python -m service init" in error.details["hint"]
        await Pruner(db.database, 1).prune()
        await ask(db, "notes.create", {"note": "x"})
        assert notes(dsn) == 1
    finally:
        make(dsn)
