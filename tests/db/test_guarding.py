"""
Calls that write rows whose model has hooks or validations.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from service.errors import Conflict, InvalidArgument, InvalidRow, NotFound, TooManyRows
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.relay import Relay
from tests.deferreds import failure_of

SCHEMA = """
CREATE DOMAIN paper AS jsonb;
CREATE TABLE boxes (id int PRIMARY KEY, label text, sealed boolean DEFAULT false,
    made int GENERATED ALWAYS AS (id) STORED, secret text,
    doc paper);
COMMENT ON COLUMN boxes.secret IS '@hidden';
CREATE TABLE things (id int PRIMARY KEY, box int REFERENCES boxes);
"""


BEFORE_EACH = (
    "TRUNCATE boxes, things;"
    " INSERT INTO boxes SELECT i, 'box ' || i, i = 4 FROM generate_series(1, 4) i;"
    " INSERT INTO things VALUES (1, 1)"
)


def guard(db: DirectCaller, hook: Callable[..., Any], name: str = "beforeDelete") -> None:
    """Add a hook to the model of boxes."""
    served = db.dispatcher.served
    setattr(served.model(served.catalog.relation("public", "boxes")).model, name, hook)


@pytest_twisted.ensureDeferred
async def test_delete_refused_by_the_hook_keeps_all_rows(db: DirectCaller) -> None:
    """If the hook refuses one row, all rows of the call are kept."""
    guard(db, lambda self: not self.sealed)
    refused = await failure_of(db.call("boxes.delete", 4))
    assert isinstance(refused, InvalidRow)
    assert refused.details["fields"] == {"*": ["refused by beforeDelete"]}
    refused = await failure_of(db.call("boxes.delete", where={"id": {"gt": 1}}))
    assert isinstance(refused, InvalidRow)
    assert await db.call("boxes.count") == 4
    assert await db.call("boxes.delete", 2, select=["label"]) == {"label": "box 2"}
    gone = await db.call("boxes.delete", where={"id": [3, 9]}, select=["id"], max_affected=1)
    assert gone == {"rows": [{"id": 3}], "affected": 1}
    assert await db.call("boxes.delete", where={"id": 9}, returning=False) == {"affected": 0}


@pytest_twisted.ensureDeferred
async def test_delete_with_a_hook_refuses_like_one_without(db: DirectCaller) -> None:
    """The errors for no row, a failed `expect` and too many rows are the same."""
    asked: list[int] = []
    guard(db, lambda self: asked.append(self.id))
    assert isinstance(await failure_of(db.call("boxes.delete", 9)), NotFound)
    refused = await failure_of(db.call("boxes.delete", 1, expect={"label": "x"}, select=["id"]))
    assert isinstance(refused, Conflict)
    assert refused.details["row"] == {"id": 1}
    for most, rows in ((3, "3 rows"), (1, "1 row")):
        refused = await failure_of(db.call("boxes.delete", all=True, max_affected=most))
        assert isinstance(refused, TooManyRows)
        assert refused.message == f"this would write more than {rows}"
    assert not asked
    assert await db.call("boxes.count") == 4


@pytest_twisted.ensureDeferred
async def test_delete_hook_runs_in_the_transaction_of_the_delete(
    db: DirectCaller, dsn: str
) -> None:
    """Writes of the hook belong to the same transaction, and are kept only if the row is deleted."""

    async def empty(self: Any) -> None:
        await self.database().statement("DELETE FROM things WHERE box = %s", [self.id])
        await self.database().statement("UPDATE boxes SET label = 'empty' WHERE id = %s", [self.id])
        if self.sealed:
            self.errors.add("sealed", "is in the way.")

    guard(db, empty)
    refused = await failure_of(db.call("boxes.delete", all=True))
    assert refused.details["fields"] == {"sealed": ["is in the way"]}
    assert execute(dsn, "SELECT count(*) FROM things") == [(1,)]
    assert await db.call("boxes.delete", 1, select=["label"]) == {"label": "empty"}
    assert execute(dsn, "SELECT count(*) FROM things") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_row_that_matches_meanwhile_is_conflict(db: DirectCaller, dsn: str) -> None:
    """A row that the hook has not seen is not deleted; the error is retryable."""

    def meanwhile(self: Any) -> None:
        execute(dsn, "INSERT INTO boxes VALUES (7, 'late') ON CONFLICT DO NOTHING")

    guard(db, meanwhile)
    refused = await failure_of(db.call("boxes.delete", where={"id": {"gt": 1}}))
    assert isinstance(refused, Conflict)
    assert refused.details["retry"] is True
    assert await db.call("boxes.count") == 5
    assert (await db.call("boxes.delete", where={"id": {"gt": 1}}))["affected"] == 4


@pytest_twisted.ensureDeferred
async def test_update_of_a_row_not_validated_is_conflict(db: DirectCaller, dsn: str) -> None:
    """A row that no validation has seen is not updated."""

    def meanwhile(self: Any) -> None:
        execute(dsn, "INSERT INTO boxes VALUES (7, 'late') ON CONFLICT DO NOTHING")

    guard(db, meanwhile, "beforeUpdate")
    call = {"where": {"id": {"gt": 1}}, "changes": {"sealed": True}, "returning": False}
    refused = await failure_of(db.call("boxes.update", **call))
    assert isinstance(refused, Conflict)
    assert await db.call("boxes.count", where={"sealed": True}) == 1
    assert await db.call("boxes.update", **call) == {"affected": 4}


@pytest.mark.parametrize("name", ["labl", "secret", "made"])
@pytest_twisted.ensureDeferred
async def test_unknown_hidden_or_generated_column_is_refused_before_the_model(
    db: DirectCaller, name: str
) -> None:
    asked: list[Any] = []
    guard(db, asked.append, "beforeSave")
    for call, path in (
        (db.call("boxes.create", {"id": 8, name: "x"}), f"values.{name}"),
        (db.call("boxes.create", [{"id": 8}, {"id": None, name: "x"}]), f"values.1.{name}"),
        (db.call("boxes.upsert", [{"id": 1, name: "x"}]), f"values.0.{name}"),
        (db.call("boxes.update", 1, {name: "x"}), f"changes.{name}"),
        (db.call("boxes.update", all=True, changes={name: "x"}), f"changes.{name}"),
        (db.call("boxes.import", [{"id": 8, name: "x"}]), f"rows.0.{name}"),
        (db.call("boxes.import", csv=f"id,{name}\n8,x\n"), f"csv.{name}"),
    ):
        refused = await failure_of(call)
        assert isinstance(refused, InvalidArgument), (path, refused)
        assert refused.details["path"] == path
    assert not asked
    assert await db.call("boxes.count") == 4


@pytest_twisted.ensureDeferred
async def test_import_refused_by_a_model_names_its_line(db: DirectCaller) -> None:
    """Errors of the model, and of values that cannot be converted for it, have the line in the entire import."""

    def refuse(self: Any) -> bool:
        return self.label != "bad"

    guard(db, refuse, "beforeSave")
    for pieces, path, line in (
        ([[{"id": 8, "label": "good"}, {"id": 9, "label": "bad"}]], "rows.1", 2),
        ([[{"id": 8}], [{"id": 9, "label": "bad"}]], "rows.0", 2),
        ([[{"id": 8}, {"id": 9, "label": 1.5, "doc": float("nan")}]], "rows.1.doc", 2),
        (["id,label\n8,good\n9,bad\n"], "csv", 3),
        (['id,label\r\n8,"two\nlines"\r\n9,b', "ad\r\n"], "csv", 4),
        (["id,label\n8,good\n", "9\n"], "csv", 3),
        (["id,sealed\n8,yes\n9,perhaps\n"], "csv.sealed", 3),
        (['id,doc\n8,"{""a"": 1}"\n9,{a\n'], "csv.doc", 3),
    ):
        begun = await db.call("boxes.import", done=False)
        *most, last = [
            {"csv": piece} if isinstance(piece, str) else {"rows": piece} for piece in pieces
        ]
        for piece in most:
            await db.call("boxes.import", **piece, **begun)
        refused = await failure_of(db.call("boxes.import", **last, done=True, **begun))
        assert isinstance(refused, InvalidArgument | InvalidRow), refused
        assert (refused.details["path"], refused.details["line"]) == (path, line)
    assert await db.call("boxes.count") == 4
    answer = await db.call("boxes.import", csv='id,doc\n8,"{""a"": [1]}"\n9,\n')
    assert answer == {"rows": 2}
    found = await db.call("boxes.find", where={"id": [8, 9]}, select=["doc"], order=["id"])
    assert found["rows"] == [{"doc": {"a": [1]}}, {"doc": None}]


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        (["id,label\n8,a\n1,b\n"], 3),
        (['id,label\n8,"a\n\nb"\n1,b\n9,c\n'], 5),
        (["id,label\r\n8,a\r\n1,", 'b\r\n9,"c\n"\r\n'], 3),
        (['id,label\n7,"a\n', 'b"\n8,c\n9,"d\n"\n', "1,e\n10,f\n"], 7),
        (["id,label\n8,a\n", "9,\0\n"], 3),
    ],
)
@pytest_twisted.ensureDeferred
async def test_csv_validated_here_and_refused_by_the_database_names_its_line(
    db: DirectCaller, pieces: list[str], line: int
) -> None:
    """COPY receives the rows of a model with rules as one line each; the error has the line of the CSV."""
    guard(db, lambda self: True, "beforeSave")
    begun = await db.call("boxes.import", done=False)
    for piece in pieces[:-1]:
        await db.call("boxes.import", csv=piece, **begun)
    refused = await failure_of(db.call("boxes.import", csv=pieces[-1], done=True, **begun))
    assert refused.details["line"] == line
    assert refused.details.get("path", "csv").startswith("csv")
    if len(pieces) == 1:
        refused = await failure_of(db.call("boxes.import", csv=pieces[0]))
        assert refused.details["line"] == line


@pytest_twisted.ensureDeferred
async def test_csv_validated_here_without_a_header_counts_from_its_first_line(
    db: DirectCaller,
) -> None:
    guard(db, lambda self: True, "beforeSave")
    csv, columns = '8,"a\nb"\n1,c\n', ["id", "label"]
    refused = await failure_of(db.call("boxes.import", csv=csv, columns=columns))
    assert refused.details["line"] == 3
    rows = [{"id": 8, "label": "a\nb"}, {"id": 1}]
    refused = await failure_of(db.call("boxes.import", rows))
    assert (refused.details["line"], refused.details["path"]) == (2, "rows.1.id")


@pytest.mark.parametrize("ruled", [False, True])
@pytest_twisted.ensureDeferred
async def test_list_of_another_length_is_refused_with_both_numbers(
    db: DirectCaller, ruled: bool
) -> None:
    """Without `columns`, a list is no row; the hint names the argument. With rules, likewise."""
    if ruled:
        guard(db, lambda self: True, "beforeSave")
    for row, columns, message in (
        ([8, "a", True], ["id", "label"], "3 values for 2 columns"),
        ([8], ["id", "label"], "1 value for 2 columns"),
        ([], ["id"], "0 values for 1 column"),
        ([8, "a"], None, "a row is a dict of columns and values"),
        (7, None, "a row is a dict of columns and values"),
        (7, ["id"], "a row is a dict of columns and values"),
    ):
        refused = await failure_of(db.call("boxes.import", [row], columns=columns))
        assert (refused.message, refused.details["path"]) == (message, "rows.0")
        hint = None if " for " in message else '"columns" names the items of rows that are lists'
        assert refused.details.get("hint") == hint


@pytest_twisted.ensureDeferred
async def test_import_for_a_model_refuses_missing_values_like_create(db: DirectCaller) -> None:
    """What the catalog says of a column is checked before the rules of the model."""
    asked: list[Any] = []
    guard(db, lambda self: asked.append(self.label), "beforeSave")
    for row, reason in (({"label": "x"}, "is required"), ({"id": None}, "may not be null")):
        for call, path in (("boxes.create", "values.0"), ("boxes.import", "rows.0")):
            refused = await failure_of(db.call(call, [row]))
            assert isinstance(refused, InvalidRow)
            assert refused.details["fields"] == {"id": [reason]}
            assert refused.details["path"] == path
    refused = await failure_of(db.call("boxes.import", csv="label\nx\n"))
    assert (refused.details["fields"], refused.details["line"]) == ({"id": ["is required"]}, 2)
    assert not asked


@pytest_twisted.ensureDeferred
async def test_rows_that_the_model_changes_are_returned_as_json(db: DirectCaller) -> None:
    """Each row is written by its own statement, whose values are JSON as in other statements."""

    def label(self: Any) -> None:
        self.label = f'box "{self.id}"'

    guard(db, label, "beforeSave")
    call = {"where": {"id": [1, 2]}, "changes": {"sealed": True}, "select": ["id", "label"]}
    answer = json.loads(await db.call("boxes.update", **call, form="json"))
    assert sorted(answer["rows"], key=lambda row: row["id"]) == [
        {"id": 1, "label": 'box "1"'},
        {"id": 2, "label": 'box "2"'},
    ]


@pytest_twisted.ensureDeferred
async def test_update_of_a_model_with_rules_is_three_messages(dsn: str) -> None:
    """SELECT with BEGIN, UPDATE without a savepoint, COMMIT; one message without validations."""
    execute(dsn, "TRUNCATE boxes, things; INSERT INTO boxes VALUES (1, 'one')")
    with Relay(dsn) as relay:
        async with serving(relay.dsn, most=1) as db:

            async def messages() -> list[bytes]:
                before = len(relay.statements)
                answer = await db.call("boxes.update", 1, {"label": "a"}, returning=False)
                assert answer == {"affected": 1}
                return relay.statements[before:]

            guard(db, lambda self: None, "beforeCreate")
            await messages()
            (update,) = await messages()
            assert b"UPDATE" in update
            guard(db, lambda self: None, "beforeUpdate")
            await messages()
            locked, update, commit = await messages()
            assert locked.startswith(b"BEGIN")
            assert b"FOR" in locked
            assert b"UPDATE" in update
            assert commit == b"COMMIT"
