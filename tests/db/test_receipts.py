"""
Receipts: a write with `receipt` returns the id of its transaction.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from schema.own import MAKE
from service.api.interactive import TransactionLimits
from service.db.connection import PgCursor
from service.errors import Conflict, InvalidArgument, ServiceError
from service.models.model import Model
from service.payload import WithReceipt
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

ANN = Caller(7, "ann", "clerk", "realm1")

# `xid` of a row is that of the transaction which has written it, all but its epoch.
SCHEMA = (
    """
CREATE TABLE notes (id serial PRIMARY KEY, note text, doc jsonb);
CREATE TABLE heads (id int PRIMARY KEY, note text);
CREATE TABLE tails (id int PRIMARY KEY, head_id int REFERENCES heads ON DELETE CASCADE);
CREATE TABLE ruled (id serial PRIMARY KEY, note text);
CREATE TABLE bumped (id int PRIMARY KEY, note text, n int DEFAULT 0);
CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE bumped SET n = n + 1 WHERE id = NEW.id AND n = 0; RETURN NULL; END $$;
CREATE TRIGGER bump AFTER INSERT OR UPDATE ON bumped FOR EACH ROW EXECUTE FUNCTION bump();
CREATE VIEW seen AS SELECT id, note FROM notes;
CREATE VIEW odd AS SELECT id, note FROM notes;
CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO notes (note) VALUES (NEW.note) RETURNING id INTO NEW.id; RETURN NEW; END $$;
CREATE TRIGGER odd INSTEAD OF INSERT ON odd FOR EACH ROW EXECUTE FUNCTION odd();
CREATE FUNCTION noted(note text) RETURNS SETOF notes LANGUAGE sql AS
    'INSERT INTO notes (note) VALUES (note) RETURNING *';
CREATE FUNCTION silent(note text) RETURNS SETOF int LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO notes (note) VALUES (note); END $$;
CREATE FUNCTION nothing(note text) RETURNS void LANGUAGE sql AS
    'INSERT INTO notes (note) VALUES (note)';
CREATE FUNCTION looked() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM notes';
CREATE FUNCTION idle() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION own(receipt boolean) RETURNS boolean LANGUAGE sql AS 'SELECT receipt';
CREATE PROCEDURE stored(INOUT said text) LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO notes (note) VALUES (said); END $$;
"""
    + MAKE
)
BEFORE_EACH = """
TRUNCATE notes, heads, tails, ruled, bumped, rowcast.idempotency_keys RESTART IDENTITY;
INSERT INTO notes (note) VALUES ('a'), ('b'), ('c');
INSERT INTO ruled (note) VALUES ('a'), ('b');
INSERT INTO heads VALUES (1, 'x'); INSERT INTO tails VALUES (1, 1)
"""


class Ruled(Model):
    """A model with a rule, so that its rows are written as objects."""

    TABLENAME = "ruled"

    def beforeSave(self) -> bool:
        """Change the row."""
        self.note = f"{self.note}!"
        return True


Ruled.VALIDATIONS = ()

pytestmark = pytest.mark.serving(max_bytes=100_000, written=(Ruled,))


async def ask(db: DirectCaller, name: str, /, *args: Any, **kwargs: Any) -> WithReceipt:
    """Call with `receipt`."""
    found = await db.call_as(ANN, name, *args, receipt=True, **kwargs)
    assert isinstance(found, WithReceipt)
    return found


async def refused(db: DirectCaller, name: str, /, *args: Any, **kwargs: Any) -> ServiceError:
    return await failure_of(db.call_as(ANN, name, *args, receipt=True, **kwargs), ServiceError)


def committed(dsn: str, tx: str | None) -> bool:
    """Return whether a transaction has committed."""
    return bool(execute(dsn, f"SELECT pg_xact_status('{tx}'::xid8) = 'committed'")[0][0])


def newest(dsn: str, table: str) -> str:
    """Return the top-level id of the transaction that has written to a table last."""
    # A subtransaction has an id of its own in the row; none of these has one.
    ((found,),) = execute(dsn, f"SELECT max(xmin::text::bigint) FROM {table}")
    return str(found)


WRITES: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("notes.create", [{"note": "x"}], {}, "notes"),
    ("notes.create", [{"note": "x"}], {"returning": False}, "notes"),
    ("notes.create", [{"note": "x"}], {"select": []}, "notes"),
    ("notes.create", [{"note": "x"}], {"form": "lists"}, "notes"),
    ("notes.create", [{"note": "x"}], {"form": "json"}, "notes"),
    ("notes.create", [[{"note": "x"}, {"note": "y"}]], {}, "notes"),
    ("notes.create", [[{"note": "x"}] * 150], {"returning": False}, "notes"),
    ("notes.create", [[{"note": "x"}] * 3], {"order": "-id", "max_affected": 3}, "notes"),
    ("notes.update", [1, {"note": "x"}], {}, "notes"),
    ("notes.update", [1, {"note": "x"}], {"expect": {"note": "a"}}, "notes"),
    ("notes.update", [], {"where": {"id": {"lt": 3}}, "changes": {"note": "x"}}, "notes"),
    ("notes.upsert", [{"id": 1, "note": "x"}], {}, "notes"),
    ("seen.create", [{"note": "x"}], {}, "notes"),
    ("odd.create", [{"note": "x"}], {}, "notes"),
    ("odd.create", [{"note": "x"}], {"returning": False}, "notes"),
    ("ruled.create", [{"note": "x"}], {}, "ruled"),
    ("ruled.create", [[{"note": "x"}, {"note": "y"}]], {}, "ruled"),
    ("ruled.update", [1, {"note": "x"}], {}, "ruled"),
    ("ruled.update", [], {"all": True, "changes": {"note": "x"}}, "ruled"),
    ("bumped.create", [{"id": 1, "note": "x"}], {"form": "lists"}, "bumped"),
    (
        "tails.create",
        [{"id": 2, "head_id": 1}],
        {"embed": {"heads": {"where": {"note": "other"}, "inner": True}}},
        "tails",
    ),
    ("notes.import", [[{"note": "x"}]], {}, "notes"),
    ("ruled.import", [[{"note": "x"}]], {}, "ruled"),
    ("fn.noted", [], {"note": "x"}, "notes"),
    ("fn.noted", [], {"note": "x", "form": "lists"}, "notes"),
    ("fn.silent", [], {"note": "x"}, "notes"),
    ("fn.nothing", [], {"note": "x"}, "notes"),
    ("transaction", [[{"call": "notes.create", "args": [{"note": "x"}]}]], {}, "notes"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "table"), WRITES)
@pytest_twisted.ensureDeferred
async def test_write_with_a_receipt_returns_its_transaction(
    dsn: str, db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any], table: str
) -> None:
    found = await ask(db, name, *args, **kwargs)
    assert found.tx is not None
    if name != "ruled.import":  # its rows are written in a savepoint, which has an id of its own
        assert found.tx == newest(dsn, table)
    assert committed(dsn, found.tx)


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [(name, args, kwargs) for name, args, kwargs, _ in WRITES]
)
@pytest_twisted.ensureDeferred
async def test_result_with_a_receipt_equals_that_without_one(
    dsn: str, db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    with_one = await ask(db, name, *args, **kwargs)
    execute(dsn, BEFORE_EACH)
    assert with_one.answer == await db.call_as(ANN, name, *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_delete_with_a_receipt_returns_its_transaction(dsn: str, db: DirectCaller) -> None:
    for found in (
        await ask(db, "notes.delete", 1),
        await ask(db, "notes.delete", where={"id": 2}),
        await ask(db, "heads.delete", 1, returning=False),
    ):
        assert committed(dsn, found.tx)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "answer"),
    [
        ("notes.update", [1, {}], {"select": ["note"]}, {"note": "a"}),
        ("notes.update", [], {"where": {"id": 9}, "changes": {}}, {"rows": [], "affected": 0}),
        (
            "notes.update",
            [],
            {"where": {"id": 9}, "changes": {"note": "x"}},
            {"rows": [], "affected": 0},
        ),
        ("notes.delete", [], {"where": {"id": 9}, "returning": False}, {"affected": 0}),
        ("notes.create", [[]], {}, []),
        ("notes.upsert", [{"id": 1, "note": "x"}], {"update": []}, None),
        ("fn.looked", [], {}, 3),
        ("fn.idle", [], {}, 1),
        ("notes.import", [[]], {}, {"rows": 0}),
        ("transaction", [[]], {}, []),
        ("transaction", [[{"call": "notes.count"}]], {"read_only": True}, [3]),
        (
            "transaction",
            [[{"call": "notes.delete", "args": [1], "kwargs": {"returning": False}}]],
            {"dry_run": True},
            [{"affected": 1}],
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_receipt_of_a_call_that_writes_nothing_has_no_transaction(
    db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any], answer: Any
) -> None:
    assert await ask(db, name, *args, **kwargs) == WithReceipt(answer, None)


@pytest.mark.serving(most=1)
@pytest_twisted.ensureDeferred
async def test_receipt_of_a_single_row_needs_no_additional_message(
    db: DirectCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one session: on a loaded machine, another worker may run a call, and its session opens or prepares."""
    texts: list[Any] = []
    execute_ = PgCursor.execute

    def noted(self: PgCursor, query: Any, *args: Any, **how: Any) -> None:
        texts.append(query)
        execute_(self, query, *args, **how)

    monkeypatch.setattr(PgCursor, "execute", noted)
    counts = []
    for receipt in (True, False, True):
        texts.clear()
        await db.call("notes.update", 1, {"note": "x"}, receipt=receipt)
        await db.call("notes.create", {"note": "x"}, returning=False, receipt=receipt)
        counts.append(len(texts))
    assert counts[1] == counts[2]


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [(name, args, kwargs) for name, args, kwargs, _ in WRITES],
)
@pytest_twisted.ensureDeferred
async def test_second_call_with_a_key_has_the_receipt_of_the_first(
    dsn: str, db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    first = await ask(db, name, *args, idempotency_key="k", **kwargs)
    assert committed(dsn, first.tx)
    assert await ask(db, name, *args, idempotency_key="k", **kwargs) == first


@pytest_twisted.ensureDeferred
async def test_key_of_a_call_without_a_receipt_is_another_call(db: DirectCaller) -> None:
    await db.call_as(ANN, "notes.create", {"note": "x"}, idempotency_key="k")
    error = await refused(db, "notes.create", {"note": "x"}, idempotency_key="k")
    assert (error.details["path"], type(error)) == ("idempotency_key", InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_receipt_of_an_operation_in_a_transaction_is_refused(db: DirectCaller) -> None:
    for call in (
        {"call": "notes.create", "args": [{"note": "x"}], "kwargs": {"receipt": True}},
        {"call": "fn.nothing", "kwargs": {"note": "x", "receipt": True}},
    ):
        error = await refused(db, "transaction", [call])
        assert error.details["path"] == "receipt"
        assert error.details["operation"] == 0
    call = {"call": "fn.own", "kwargs": {"receipt": True}}
    found = await ask(db, "transaction", [call])
    assert found.answer == [True]


@pytest_twisted.ensureDeferred
async def test_receipt_of_a_procedure_needs_an_idempotency_key(dsn: str, db: DirectCaller) -> None:
    error = await refused(db, "fn.stored", said="x")
    assert error.details["path"] == "receipt"
    found = await ask(db, "fn.stored", said="x", idempotency_key="k")
    assert (found.answer, found.tx) == ({"said": "x"}, newest(dsn, "notes"))


@pytest_twisted.ensureDeferred
async def test_receipt_that_is_not_a_boolean_is_refused(db: DirectCaller) -> None:
    for name, args in (
        ("notes.create", [{"note": "x"}]),
        ("fn.idle", []),
        ("transaction", [[]]),
        ("notes.import", [[]]),
    ):
        error = await failure_of(db.call(name, *args, receipt="yes"))
        assert isinstance(error, InvalidArgument)
        assert error.details["path"] == "receipt"


@pytest_twisted.ensureDeferred
async def test_argument_of_a_function_named_receipt_is_passed_to_it(db: DirectCaller) -> None:
    assert await db.call("fn.own", receipt=True) is True
    assert await db.call("fn.own", args={"receipt": False}, receipt=True) == WithReceipt(
        False, None
    )


@pytest_twisted.ensureDeferred
async def test_upload_has_the_receipt_of_its_last_call(dsn: str, db: DirectCaller) -> None:
    first = await ask(db, "notes.import", [{"note": "x"}], done=False)
    assert first.tx is None
    last = await ask(db, "notes.import", [], upload=first.answer["upload"], done=True)
    assert (last.answer, last.tx) == ({"rows": 1}, newest(dsn, "notes"))


@pytest.fixture
def held(db: DirectCaller) -> DirectCaller:
    """Serve transactions that are held open, too."""
    db.dispatcher.hold(TransactionLimits())
    return db


@pytest_twisted.ensureDeferred
async def test_commit_with_a_receipt_returns_its_transaction(dsn: str, held: DirectCaller) -> None:
    async def begun() -> str:
        found = await held.call_as(ANN, "transaction.begin")
        return str(found["tx"]).removeprefix("rowcast.")

    for key in (None, "k"):
        tx = await begun()
        await held.call_as(ANN, tx, "notes.create", [{"note": "x"}])
        # the row itself is of a savepoint's transaction, perhaps
        found = await ask(held, f"{tx}.commit", idempotency_key=key)
        assert found.answer is None
        assert committed(dsn, found.tx)
    again = await begun()
    await held.call_as(ANN, again, "notes.create", [{"note": "x"}])
    assert await ask(held, f"{again}.commit", idempotency_key="k") == found

    empty = await begun()
    await held.call_as(ANN, empty, "notes.count")
    assert await ask(held, f"{empty}.commit") == WithReceipt(None, None)

    failed = await begun()
    await failure_of(held.call_as(ANN, failed, "notes.create", [{"no": "x"}]))
    assert isinstance(await refused(held, f"{failed}.commit"), Conflict)
