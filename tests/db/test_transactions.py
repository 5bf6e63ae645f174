"""
Batches: operations of any verbs and functions in one atomic transaction.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred, gatherResults

from service.api.roles import Roles
from service.db.connection import PgConnection
from service.db.worker import Job, Worker
from service.errors import (
    CheckViolation,
    Conflict,
    DatabaseRefused,
    ForeignKeyViolation,
    InvalidArgument,
    InvalidRow,
    NoSuchProcedure,
    NotAuthorized,
    NotFound,
    ServiceError,
    StatementTimeout,
    TooLarge,
    TooManyRows,
    UniqueViolation,
)
from service.request.arguments import Caller
from service.request.names import COMMANDS_HINT
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, balance int CHECK (balance >= 0));
CREATE TABLE entries (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id int REFERENCES accounts DEFERRABLE INITIALLY DEFERRED, amount int NOT NULL);
CREATE FUNCTION add(a int, b int) RETURNS int LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION nap(seconds float) RETURNS text LANGUAGE sql AS 'SELECT pg_sleep($1)::text';
CREATE FUNCTION limited() RETURNS text LANGUAGE sql AS
    $$SELECT current_setting('statement_timeout')$$;
CREATE SCHEMA other;
SET check_function_bodies = off;
CREATE FUNCTION place() RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT name FROM spot); END';
CREATE FUNCTION other.place() RETURNS text LANGUAGE plpgsql AS
    'BEGIN RETURN (SELECT name FROM spot); END';
CREATE TABLE spot AS SELECT 'here' AS name;
CREATE TABLE other.spot AS SELECT 'there' AS name;
"""


pytestmark = pytest.mark.serving("public", "other", max_bytes=100_000)


@pytest.fixture(autouse=True)
def accounts(db: DirectCaller, dsn: str) -> None:
    """Restore the accounts."""
    execute(
        dsn,
        "TRUNCATE accounts, entries RESTART IDENTITY;"
        "INSERT INTO accounts VALUES (1, 'Ada', 100), (2, 'Bob', 50)",
    )


def op(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return an operation."""
    return {"call": name, "args": list(args), "kwargs": kwargs}


async def batch(db: DirectCaller, *operations: Any, **options: Any) -> Any:
    """Call a batch."""
    return await db.call("transaction", list(operations), **options)


async def refusal_of(db: DirectCaller, *operations: Any, **options: Any) -> ServiceError:
    """Call a batch that is refused, and return the error."""
    return await failure_of(batch(db, *operations, **options), ServiceError)


async def balances(db: DirectCaller) -> list[int]:
    """Return the balances of the accounts."""
    page = await db.call("accounts.find", select="balance", order="id")
    return [row["balance"] for row in page["rows"]]


@pytest_twisted.ensureDeferred
async def test_constraint_violated_at_commit_is_named(db: DirectCaller) -> None:
    """A deferred constraint is checked after all operations, so the error names none of them."""
    entry = {"account_id": 99, "amount": 1}
    refused = await refusal_of(db, op("entries.create", entry))
    assert isinstance(refused, ForeignKeyViolation)
    assert refused.message == '"account_id" refers to no row of "accounts"'
    assert refused.details["relation"] == "entries"
    assert refused.details["columns"] == ["account_id"]


@pytest_twisted.ensureDeferred
async def test_batch_returns_the_result_of_each_operation(db: DirectCaller) -> None:
    """Each result is that of the single call."""
    found = await batch(
        db,
        op("accounts.create", {"id": 3, "owner": "Eve", "balance": 1}),
        op("accounts.get", 3, select="owner"),
        op("accounts.find", where={"id": 3}),
        op("accounts.count"),
        op("accounts.exists", where={"id": 9}),
        op("accounts.aggregate", {"n": {"count": "*"}}),
        op("accounts.upsert", {"id": 3, "owner": "Eva", "balance": 2}),
        op("accounts.update", 3, {"balance": 5}, returning=False),
        op("accounts.delete", 3, select="id"),
        op("fn.add", a=1, b=2),
        {"call": "accounts.count"},
    )
    eve = {"id": 3, "owner": "Eve", "balance": 1}
    assert found == [
        eve,
        {"owner": "Eve"},
        {"rows": [eve], "next": None},
        3,
        False,
        [{"n": 3}],
        {"id": 3, "owner": "Eva", "balance": 2},
        {"affected": 1},
        {"id": 3},
        3,
        2,
    ]
    assert await batch(db) == []


@pytest_twisted.ensureDeferred
async def test_reference_is_replaced_by_a_value_of_an_earlier_result(db: DirectCaller) -> None:
    """References work in values, keys, filters and arguments of functions."""
    found = await batch(
        db,
        op("accounts.create", {"id": 7, "owner": "Eve", "balance": 1}),
        op("entries.create", [{"account_id": {"$ref": "0.id"}, "amount": {"$ref": "0.balance"}}]),
        op("accounts.get", {"$ref": "1.0.account_id"}),
        op("entries.find", where={"account_id": {"eq": {"$ref": "0.id"}}}),
        op("fn.add", a={"$ref": "3.rows.0.amount"}, b={"$ref": "0.id"}),
        op("accounts.update", 7, {"balance": {"$ref": "4"}}),
    )
    assert found[2]["owner"] == "Eve"
    assert [row["amount"] for row in found[3]["rows"]] == [1]
    assert found[4:] == [8, {"id": 7, "owner": "Eve", "balance": 8}]


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("1.id", "operations.1.args.0.id"),
        ("2.id", "operations.1.args.0.id"),
        ("0.nothing", "operations.1.args.0.id"),
        ("0.id.more", "operations.1.args.0.id"),
        ("id", "operations.1.args.0.id"),
        ("", "operations.1.args.0.id"),
        ("²", "operations.1.args.0.id"),
        ("00.id", "operations.1.args.0.id"),
        ("0.", "operations.1.args.0.id"),
        ("0..id", "operations.1.args.0.id"),
        ("0.id.", "operations.1.args.0.id"),
        ("9" * 5000, "operations.1.args.0.id"),
        (7, "operations.1.args.0.id"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_reference_to_nothing_is_refused(db: DirectCaller, reference: Any, path: str) -> None:
    refused = await refusal_of(
        db, op("accounts.get", 1), op("accounts.get", {"id": {"$ref": reference}})
    )
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
    assert refused.details["operation"] == 1


@pytest_twisted.ensureDeferred
async def test_error_names_its_operation_and_nothing_is_kept(db: DirectCaller) -> None:
    """This holds for each kind of error."""
    taken = op("accounts.update", 1, {"balance": 0})
    for wrong, kind in (
        (op("accounts.update", 2, {"balance": -1}), CheckViolation),
        (op("accounts.get", 9), NotFound),
        (op("accounts.get", 1, selects="id"), InvalidArgument),
        (op("accounts.delete", 9), NotFound),
        (op("accounts.update", 2, {"balance": 1}, expect={"owner": "Eve"}), Conflict),
    ):
        refused = await refusal_of(db, op("accounts.count"), taken, wrong)
        assert isinstance(refused, kind)
        assert refused.details["operation"] == 2
        assert await balances(db) == [100, 50]


@pytest_twisted.ensureDeferred
async def test_error_at_commit_keeps_nothing(db: DirectCaller) -> None:
    """The error names no operation."""
    refused = await refusal_of(db, op("entries.create", {"account_id": 9, "amount": 1}))
    assert isinstance(refused, ForeignKeyViolation)
    assert "operation" not in refused.details
    assert await db.call("entries.count") == 0


@pytest_twisted.ensureDeferred
async def test_dry_run_returns_results_and_writes_nothing(db: DirectCaller) -> None:
    """Deferred constraints that would fail at COMMIT fail, too."""
    assert await batch(db, op("accounts.update", 1, {"balance": 0}), dry_run=True) == [
        {"id": 1, "owner": "Ada", "balance": 0}
    ]
    assert await balances(db) == [100, 50]
    late = op("entries.create", {"account_id": 9, "amount": 1})
    assert isinstance(await refusal_of(db, late, dry_run=True), ForeignKeyViolation)


@pytest_twisted.ensureDeferred
async def test_read_only_batch_refuses_to_write(db: DirectCaller) -> None:
    refused = await refusal_of(db, op("accounts.get", 1), op("accounts.delete", 1), read_only=True)
    assert isinstance(refused, DatabaseRefused)
    assert refused.details["sqlstate"] == "25006"
    assert refused.details["operation"] == 1


@pytest_twisted.ensureDeferred
async def test_result_that_is_too_large_rolls_back_the_batch(db: DirectCaller) -> None:
    """Each single result would fit."""
    long = op("accounts.upsert", {"id": 3, "owner": "x" * 40_000, "balance": 0})
    assert isinstance(await refusal_of(db, *[long] * 3), TooLarge)
    assert await db.call("accounts.count") == 2


@pytest_twisted.ensureDeferred
async def test_contending_batches_are_retried(db: DirectCaller) -> None:
    """Serializable batches that read what they write: none is refused, and the total stays the same."""

    async def move(source: int, target: int) -> None:
        await batch(
            db,
            op("accounts.aggregate", {"sum": {"sum": "balance"}}),
            op("accounts.get", source),
            op("accounts.get", target),
            op("fn.add", a={"$ref": "1.balance"}, b=-1),
            op("fn.add", a={"$ref": "2.balance"}, b=1),
            op("accounts.update", source, {"balance": {"$ref": "3"}}),
            op("accounts.update", target, {"balance": {"$ref": "4"}}),
            isolation="serializable",
        )

    for _ in range(5):
        await gatherResults([ensureDeferred(move(1, 2)), ensureDeferred(move(2, 1))])
    assert await balances(db) == [100, 50]


@pytest_twisted.ensureDeferred
async def test_batch_that_is_made_to_fail_is_retried(dsn: str) -> None:
    """Two attempts fail and the third commits; if all fail, the conflict has their number."""
    async with serving(dsn, inject=True) as db:
        change = op("accounts.update", 1, {"balance": 7})
        (row,) = await batch(db, change, inject={"serialization_failure": 2})
        assert row["balance"] == 7
        refused = await refusal_of(db, change, inject={"serialization_failure": 9})
        assert isinstance(refused, Conflict)
        assert refused.details["attempts"] == 6
    async with serving(dsn) as db:
        refused = await refusal_of(db, change, inject={"serialization_failure": 1})
        assert isinstance(refused, InvalidArgument)


@pytest.mark.parametrize(
    "name",
    ["accounts.stream", "accounts.export", "fn.add.stream", "transaction"],
)
@pytest_twisted.ensureDeferred
async def test_call_that_sends_parts_is_refused_as_an_operation(
    db: DirectCaller, name: str
) -> None:
    refused = await refusal_of(db, {"call": name})
    assert isinstance(refused, InvalidArgument)
    assert refused.details["operation"] == 0


IMPORTS = {
    "rows": {"rows": [{"id": 7, "owner": "Eve", "balance": 1}, {"id": 8, "owner": "Flo"}]},
    "csv": {"csv": "id,owner,balance\n7,Eve,1\n8,Flo,\n"},
    "conflicts": {
        "rows": [
            *({"id": 7, "owner": "Eve", "balance": 1}, {"id": 8, "owner": "Flo", "balance": None}),
            {"id": 1, "owner": "Ada", "balance": 100},
        ],
        "on_conflict": ["id"],
    },
}


@pytest.mark.parametrize("given", IMPORTS)
@pytest_twisted.ensureDeferred
async def test_import_of_one_call_is_an_operation(db: DirectCaller, given: str) -> None:
    """Later operations see its rows, and may change and import more."""
    counted, imported, row, again, changed = await batch(
        db,
        op("accounts.count"),
        op("accounts.import", **IMPORTS[given]),
        op("accounts.get", {"$ref": "0"}),
        op("entries.import", [{"account_id": 7, "amount": 3}, {"account_id": 8, "amount": 4}]),
        op("accounts.update", 7, {"balance": {"$add": 2}}, select="balance"),
    )
    assert (counted, imported["rows"], again) == (
        2,
        len(IMPORTS[given].get("rows", [1, 2])),
        {"rows": 2},
    )
    assert row["owner"] == "Bob"
    assert changed == {"balance": 3}
    assert await balances(db) == [100, 50, 3, None]
    assert await db.call("entries.aggregate", {"sum": {"sum": "amount"}}) == [{"sum": 7}]


@pytest_twisted.ensureDeferred
async def test_imports_with_on_conflict_can_follow_each_other(db: DirectCaller) -> None:
    """Each import has its own temporary table."""
    ada = {"id": 1, "owner": "Ada", "balance": 7}
    answers = await batch(
        db,
        op("accounts.import", [ada, {"id": 7, "owner": "Eve", "balance": 1}], on_conflict="id"),
        op("entries.import", [{"account_id": 1, "amount": 1}]),
        op("accounts.import", csv="id,owner\n7,Eva\n8,Flo\n", on_conflict="id"),
    )
    assert [each["rows"] for each in answers] == [2, 1, 2]
    assert await balances(db) == [7, 50, 1, None]


@pytest_twisted.ensureDeferred
async def test_import_accepts_references_to_earlier_results(db: DirectCaller) -> None:
    """Rows may contain references, as those of `create` may."""
    made, imported = await batch(
        db,
        op("accounts.create", {"id": 7, "owner": "Eve"}),
        op("entries.import", [{"account_id": {"$ref": "0.id"}, "amount": n} for n in range(3)]),
    )
    assert (made["id"], imported) == (7, {"rows": 3})
    assert await db.call("entries.count", where={"account_id": 7}) == 3


@pytest.mark.parametrize(
    "after", [op("accounts.create", {"id": 1, "owner": "x"}), op("accounts.import", [{"id": 1}])]
)
@pytest_twisted.ensureDeferred
async def test_import_is_rolled_back_with_its_batch(
    db: DirectCaller, after: dict[str, Any]
) -> None:
    """It is rolled back, whichever operation fails."""
    refused = await refusal_of(db, op("accounts.import", [{"id": 7, "owner": "Eve"}]), after)
    assert refused.details["operation"] == 1
    assert await db.call("accounts.count") == 2


@pytest_twisted.ensureDeferred
async def test_import_in_a_batch_does_not_change_the_statement_timeout(db: DirectCaller) -> None:
    """COPY of complete rows has the statement timeout, and so have the operations after it."""
    before, _, after = await batch(
        db, op("fn.limited"), op("accounts.import", [{"id": 7, "owner": "Eve"}]), op("fn.limited")
    )
    assert before == after != "0"


@pytest.mark.parametrize("given", [{"done": False}, {"upload": "x", "done": True}])
@pytest_twisted.ensureDeferred
async def test_upload_is_refused_as_an_operation(db: DirectCaller, given: dict[str, Any]) -> None:
    """An upload has its own transaction, which spans calls."""
    refused = await refusal_of(db, op("accounts.import", [{"id": 7, "owner": "Eve"}], **given))
    assert isinstance(refused, InvalidArgument)
    assert refused.message == '"import" cannot be called in a transaction'
    assert "all rows" in refused.details["hint"]
    assert await db.call("accounts.count") == 2


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, "operations"),
        ({"operations": {}}, "operations"),
        ({"operations": [{}] * 1001}, "operations"),
        ({"operations": ["accounts.get"]}, "operations.0"),
        ({"operations": [{"args": []}]}, "operations.0.call"),
        ({"operations": [{"call": "accounts.get", "args": 1}]}, "operations.0.args"),
        ({"operations": [{"call": "accounts.get", "kwargs": []}]}, "operations.0.kwargs"),
        ({"operations": [{"call": "accounts.get", "kwargs": {1: 2}}]}, "operations.0.kwargs"),
        ({"operations": [{"call": "accounts.get", "timeout": 1}]}, "operations.0.timeout"),
        ({"operations": [{"call": "accounts.get", "key": 1}]}, "operations.0.key"),
        ({"operations": [], "isolation": "chaos"}, "isolation"),
        ({"operations": [], "read_only": 1}, "read_only"),
        ({"operations": [], "inject": 1}, "inject"),
        ({"operations": [], "inject": {"serialization_failure": -1}}, "inject"),
        ({"operations": [], "nonsense": 1}, "nonsense"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_malformed_batch_is_refused(
    db: DirectCaller, arguments: dict[str, Any], path: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await db.call("transaction", **arguments)
    assert caught.value.details["path"] == path
    assert caught.value.details.get("operation") == (0 if path.startswith("operations.") else None)


@pytest_twisted.ensureDeferred
async def test_path_of_an_operations_error_is_that_of_the_call_alone(db: DirectCaller) -> None:
    """Beside `operation`, `path` points into the arguments of the operation, by their names."""
    for call, path in (
        (op("accounts.find", where={"sttus": 1}), "where.sttus"),
        (op("accounts.create", {"sttus": 1}), "values.sttus"),
        (op("fn.add", a=1, c=2), "c"),
    ):
        refused = await refusal_of(db, op("accounts.count"), call)
        assert refused.details["operation"] == 1
        alone = await failure_of(db.call(call["call"], *call["args"], **call["kwargs"]))
        assert alone.details["path"] == refused.details["path"] == path


@pytest.mark.parametrize("reference", ["0.rows.00.id", "0.rows.1.id", "0.rows.٠.id", "0.rows.0."])
@pytest_twisted.ensureDeferred
async def test_reference_past_a_list_is_refused(db: DirectCaller, reference: str) -> None:
    """Positions are decimal numbers as in JSON."""
    refused = await refusal_of(
        db, op("accounts.find", limit=1), op("accounts.get", {"$ref": reference})
    )
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == "operations.1.args.0"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rowcast.accounts.get", 'did you mean "accounts.get", without the prefix?'),
        ("rowcast.fn.add", 'did you mean "fn.add", without the prefix?'),
        ("rowcast.acounts.get", 'did you mean "accounts"?'),
        ("rowcast.transaction", 'did you mean "transaction", without the prefix?'),
        ("transactions", 'did you mean "transaction"?'),
        ("transaction.commit", COMMANDS_HINT),
        ("rollback", COMMANDS_HINT),
    ],
)
@pytest_twisted.ensureDeferred
async def test_misspelled_name_in_a_batch_has_a_hint(
    db: DirectCaller, name: str, hint: str
) -> None:
    refused = await refusal_of(db, {"call": name})
    assert isinstance(refused, NoSuchProcedure)
    assert refused.details["hint"] == hint
    assert refused.details["operation"] == 0


@pytest_twisted.ensureDeferred
async def test_operation_of_another_schema_searches_that_first(db: DirectCaller) -> None:
    """Functions resolve names with the same search_path as in a single call."""
    found = await batch(db, op("fn.place"), op("other.fn.place"), op("fn.place"))
    assert found == ["here", "there", "here"]


@pytest_twisted.ensureDeferred
async def test_batch_of_a_role_has_its_rights(dsn: str) -> None:
    execute(
        dsn,
        "DO $$ BEGIN CREATE ROLE batch_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT SELECT ON accounts TO batch_reader",
    )
    reader = Caller(5, "rita", "reader", "realm1")
    async with serving(dsn, roles=Roles({"reader": "batch_reader"})) as db:
        read = op("accounts.get", 1)
        (row,) = await db.call_as(reader, "transaction", [read])
        assert row["owner"] == "Ada"
        with pytest.raises(NotAuthorized) as caught:
            await db.call_as(reader, "transaction", [read, op("accounts.delete", 1)])
        assert caught.value.details["operation"] == 1


@pytest_twisted.ensureDeferred
async def test_batch_that_uses_a_new_column_is_run_again(db: DirectCaller, dsn: str) -> None:
    """The entire batch runs again: the first attempt is rolled back."""
    execute(dsn, "ALTER TABLE entries ADD note text")
    first, second = await batch(
        db,
        op("accounts.create", {"id": 8, "owner": "Eve", "balance": 1}),
        op("entries.create", {"account_id": 8, "amount": 1, "note": "new"}),
    )
    assert (first["id"], second["note"]) == (8, "new")
    assert await db.call("accounts.count") == 3


@pytest_twisted.ensureDeferred
async def test_batch_that_takes_too_long_keeps_nothing(db: DirectCaller) -> None:
    refused = await refusal_of(
        db, op("accounts.update", 1, {"balance": 0}), op("fn.nap", seconds=30.0), timeout=0.3
    )
    assert isinstance(refused, StatementTimeout)
    assert await balances(db) == [100, 50]


@pytest_twisted.ensureDeferred
async def test_procedure_written_by_hand_is_part_of_the_batch(db: DirectCaller) -> None:
    """Its transactions are savepoints in the batch's transaction."""

    async def spend(caller: Caller, args: Any, kwargs: Any) -> Any:
        async with db.database.transaction():
            await db.database.statement("UPDATE accounts SET balance = balance - 1", fetch=False)
        return "spent"

    db.dispatcher.add({"accounts.spend": spend})
    assert await batch(db, op("accounts.spend"), op("accounts.get", 2)) == [
        "spent",
        {"id": 2, "owner": "Bob", "balance": 49},
    ]
    await refusal_of(db, op("accounts.spend"), op("accounts.get", 9))
    assert await balances(db) == [99, 49]
    assert await db.dispatcher.answer("accounts.spend", [], {}, ANYONE) == "spent"


@pytest_twisted.ensureDeferred
async def test_batch_sets_no_savepoint_for_a_single_statement_operation(
    db: DirectCaller, monkeypatch: Any
) -> None:
    """A savepoint is only needed if another statement looks for the cause of a failure."""
    sent: list[str] = []
    command = PgConnection.command

    def noted(connection: PgConnection, words: str) -> str:
        sent.append(words)
        return command(connection, words)

    monkeypatch.setattr(PgConnection, "command", noted)
    await batch(
        db,
        op("accounts.create", [{"id": at, "owner": "x", "balance": 1} for at in (5, 6)]),
        op("accounts.update", where={"id": 5}, changes={"owner": "y"}, max_affected=1),
        op("accounts.update", 6, {"owner": "z"}),
        op("fn.add", a=1, b=2),
        op("fn.nap", seconds=0.0),
    )
    assert [words for words in sent if "SAVEPOINT" in words] == []
    refused = await refusal_of(
        db,
        op("accounts.create", {"id": 7, "owner": "x", "balance": 1}),
        op("accounts.update", where={"balance": 1}, changes={"owner": "y"}, max_affected=1),
    )
    assert isinstance(refused, TooManyRows)
    assert await db.call("accounts.count") == 4


@pytest.mark.parametrize(
    ("operations", "handed"),
    [
        # the other job is the one that keeps the worker
        ([op("accounts.get", 1), op("accounts.find"), op("fn.add", a=1, b=2)], 3),
        ([op("accounts.get", 1), op("accounts.get", 2), op("accounts.count")], 2),
        ([op("accounts.update", at, {"balance": 9}) for at in (1, 2, 1, 2, 1)], 3),
        ([op("accounts.get", 1), op("accounts.get", {"$ref": "0.id"}), op("accounts.get", 2)], 4),
        ([op("accounts.get", 1), op("accounts.get", 2, timeout=5), op("accounts.get", 1)], 5),
    ],
)
@pytest_twisted.ensureDeferred
async def test_operations_without_references_are_passed_to_the_worker_together(
    db: DirectCaller, monkeypatch: Any, operations: list[dict[str, Any]], handed: int
) -> None:
    """Passing a job to the worker costs as much as a statement; a read-only batch commits with the last one."""
    functions: list[Any] = []
    execute = Worker.execute

    def noted(worker: Worker, job: Job, *how: Any, **more: Any) -> None:
        functions.append(job.function)
        execute(worker, job, *how, **more)

    monkeypatch.setattr(Worker, "execute", noted)
    assert len(await batch(db, *operations)) == len(operations)
    assert len(functions) == handed, functions


@pytest_twisted.ensureDeferred
async def test_first_error_of_operations_that_run_together_is_raised(db: DirectCaller) -> None:
    """This includes a refusal after PostgreSQL has answered, even if a later operation fails in PostgreSQL."""
    create = op("accounts.create", {"id": 1, "owner": "x", "balance": 1})
    for operations, at, kind in (
        ([op("accounts.get", 1), op("accounts.get", 9), create], 1, NotFound),
        ([op("accounts.get", 1), create, op("accounts.get", 9)], 1, UniqueViolation),
        ([create, op("accounts.get", 9)], 0, UniqueViolation),
        ([op("accounts.get", 1), op("accounts.update", 9, {"owner": "x"}), create], 1, NotFound),
        ([op("accounts.get", 9), op("accounts.nothing")], 0, NotFound),
    ):
        refused = await refusal_of(db, *operations)
        assert isinstance(refused, kind), refused
        assert refused.details["operation"] == at
    assert await balances(db) == [100, 50]


@pytest_twisted.ensureDeferred
async def test_rules_of_models_apply_to_each_operation(db: DirectCaller) -> None:
    """A hook may change its row and write other rows; these writes belong to the batch's transaction."""
    served = db.dispatcher.served
    model = served.model(served.catalog.relation("public", "accounts")).model

    async def note(self: Any) -> bool:
        await db.database.statement(
            "INSERT INTO entries (account_id, amount) VALUES (%s, %s)",
            [self.id, self.balance],
            fetch=False,
        )
        self.owner = self.owner.title()
        return self.balance < 1000

    model.beforeSave = note
    try:
        found = await batch(
            db,
            op("accounts.create", {"id": 3, "owner": "eve", "balance": 1}),
            op("accounts.update", 3, {"owner": "adam"}),
            op("entries.count"),
        )
        assert [found[0]["owner"], found[1]["owner"], found[2]] == ["Eve", "Adam", 2]
        refused = await refusal_of(
            db,
            op("accounts.update", 3, {"balance": 2}),
            op("accounts.create", {"id": 4, "owner": "zoe", "balance": 2000}),
        )
    finally:
        del model.beforeSave
    assert isinstance(refused, InvalidRow)
    assert refused.details["operation"] == 1
    assert await balances(db) == [100, 50, 1]
    assert await db.call("entries.count") == 2


@pytest_twisted.ensureDeferred
async def test_operation_that_ended_in_time_does_not_time_out_for_later_ones(
    db: DirectCaller,
) -> None:
    """Operations are sent together and answered together, but each has its own time limit."""
    quick, slow = {"timeout": 0.5}, {"seconds": 1.0, "timeout": 10.0}
    found = await batch(db, op("accounts.get", 1, **quick), op("fn.nap", **slow))
    assert found[0]["owner"] == "Ada"
    with pytest.raises(StatementTimeout) as late:
        await batch(db, op("accounts.get", 1), op("fn.nap", seconds=30.0, timeout=0.3))
    assert late.value.details["operation"] == 1
