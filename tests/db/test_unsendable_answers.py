"""
Writes whose answer cannot be sent: nothing is written, or the error says that it was.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from schema.own import MAKE
from service.errors import OutcomeUnknown, TooLarge
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

ANN = Caller(7, "ann", "clerk", "realm1")
CHAIN = '{"$value": ' * 70 + '{"$number": "1"}' + "}" * 70
"""A document of 71 levels, which would have 141 levels with a `$value` around each object."""
MAX_BYTES = 2**20
SCHEMA = f"""{MAKE};
CREATE TABLE docs (id int PRIMARY KEY, note text, doc jsonb DEFAULT '{CHAIN}');
CREATE TABLE parts (id int PRIMARY KEY, of int REFERENCES docs, doc json DEFAULT '{CHAIN}');
CREATE FUNCTION made(id int) RETURNS docs LANGUAGE sql AS
    'INSERT INTO docs (id) VALUES (id) RETURNING docs.*';
CREATE FUNCTION listed(id int) RETURNS SETOF docs LANGUAGE sql AS
    'INSERT INTO docs (id) VALUES (id) RETURNING docs.*';
CREATE TABLE grown (id int PRIMARY KEY, n int);
"""
BEFORE_EACH = "TRUNCATE docs, parts, grown; INSERT INTO docs (id) VALUES (-1)"

WRITES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "create": ("docs.create", [{"id": 1}], {}),
    "create of a list": ("docs.create", [[{"id": 1}]], {}),
    "create, as lists": ("docs.create", [{"id": 1}], {"form": "lists"}),
    "update": ("docs.update", [-1, {"note": "x"}], {}),
    "upsert": ("docs.upsert", [{"id": -1, "note": "x"}], {}),
    "delete": ("docs.delete", [-1], {}),
    "function": ("fn.made", [], {"id": 1}),
    "function of rows": ("fn.listed", [], {"id": 1}),
    "page of a function": ("fn.listed.find", [], {"args": {"id": 1}}),
    "batch": ("transaction", [[{"call": "docs.create", "args": [{"id": 1}]}]], {}),
}


def documents(answer: Any) -> list[Any]:
    """Return the values of the columns `doc` in an answer, at any depth."""
    if isinstance(answer, list):
        return [found for each in answer for found in documents(each)]
    if not isinstance(answer, dict):
        return []
    if "columns" in answer:
        return [row[answer["columns"].index("doc")] for row in answer["rows"]]
    found = [answer["doc"]] if "doc" in answer else []
    return found + [each for value in answer.values() for each in documents(value)]


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("how", WRITES)
@pytest_twisted.ensureDeferred
async def test_written_document_that_is_too_deep_is_returned_as_text(
    db: DirectCaller, dsn: str, how: str, keyed: bool
) -> None:
    name, args, kwargs = WRITES[how]
    keyed = keyed and "page" not in how  # which takes no key
    kwargs = kwargs | ({"idempotency_key": how} if keyed else {})
    answers = [await db.call_as(ANN, name, *args, **kwargs) for _ in range(1 + keyed)]
    for answer in answers:
        found = documents(answer)
        assert [each.replace(" ", "") for each in found] == [CHAIN.replace(" ", "")] * len(found)
        assert found


@pytest_twisted.ensureDeferred
async def test_too_large_row_of_a_changed_type_is_reported_as_written(
    dsn: str,
) -> None:
    async with serving(dsn, max_bytes=MAX_BYTES) as db:
        await db.call("grown.create", {"id": 1, "n": 1})
        execute(dsn, f"ALTER TABLE grown ALTER n TYPE text USING repeat('x', 2 * {MAX_BYTES})")
        change = db.dispatcher.answer("grown.update", [1, {"id": 2}], {}, ANN)
        error = await failure_of(change)
        assert isinstance(error, OutcomeUnknown)
        assert str(error).startswith("what the call changed is kept, but")
    assert execute(dsn, "SELECT id FROM grown") == [(2,)]
    execute(dsn, "ALTER TABLE grown ALTER n TYPE int USING 1")


@pytest.mark.parametrize("keyed", [False, True])
@pytest_twisted.ensureDeferred
async def test_nested_rows_with_a_document_that_is_too_deep_are_not_written(
    db: DirectCaller, dsn: str, keyed: bool
) -> None:
    """In an embed the document is a part of a larger one, and cannot be text."""
    kwargs = {"idempotency_key": "nested"} if keyed else {}
    row = {"id": 1, "parts": [{"id": 1}]}
    call = db.call_as(ANN, "docs.create", row, embed={"parts": True}, **kwargs)
    assert isinstance(await failure_of(call), TooLarge)
    assert execute(dsn, "SELECT id FROM docs") == [(-1,)]
    execute(dsn, "INSERT INTO parts (id, of) VALUES (2, -1)")
    assert isinstance(await failure_of(db.call("docs.get", -1, embed={"parts": True})), TooLarge)
