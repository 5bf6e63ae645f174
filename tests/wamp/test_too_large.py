"""Writes whose result cannot be sent are rolled back; if they are committed, the error says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted

from service.app import Serving
from service.errors import OutcomeUnknown, TooLarge
from service.models.served import Models
from service.procedures.registry import Declared, ProcedureCall, procedures
from tests.conftest import Router, execute
from tests.wamp.callers import Caller, refusal_of
from tests.wamp.service import served

LIMIT = 100_000
SCHEMA = """
CREATE TABLE notes (id int PRIMARY KEY, body varchar(60000), free text, doc jsonb);
CREATE FUNCTION keep(n int, body text) RETURNS SETOF notes LANGUAGE sql AS
    'INSERT INTO notes VALUES (n, body) RETURNING *';
CREATE FUNCTION keep_value(n int, body text) RETURNS text LANGUAGE sql AS
    'INSERT INTO notes VALUES (n, body) RETURNING body';
CREATE PROCEDURE keep_and_tell(n int, INOUT body text) LANGUAGE plpgsql AS
    'BEGIN INSERT INTO notes VALUES (n, body); END';
"""
WIDE = "€" * 40_000
"""Fewer characters than an answer may have bytes, and more bytes."""


def deep(levels: int) -> Any:
    """Return a list nested in lists."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


async def by_hand(call: ProcedureCall, id: int, body: str) -> Any:
    """Write a row, and return it."""
    async with call.database.transaction():
        sql = "INSERT INTO notes VALUES (%s, %s)"
        await call.database.statement(sql, [id, body], fetch=False)
    return body


async def by_hand_deep(call: ProcedureCall, id: int) -> Any:
    """Write a row, and return a list that nests too deep."""
    await call.database.statement("INSERT INTO notes VALUES (%s)", [id], fetch=False)
    return deep(125)


async def by_hand_read(call: ProcedureCall) -> Any:
    """Return too large a result without a write."""
    return await call.database.statement("SELECT 1", retry=True, post=lambda *_: "x" * LIMIT)


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve the module's database with a small maximum message, and hand-written procedures."""
    async with served(dsn, router, max_bytes=LIMIT) as serving:
        models = Models(serving.database)
        written = {"hand": by_hand, "hand_deep": by_hand_deep, "hand_read": by_hand_read}
        codec = lambda: serving.dispatcher.served.codec  # noqa: E731
        declared = {name: Declared(each) for name, each in written.items()}
        serving.dispatcher.add(procedures(serving.database, models, codec, declared))
        yield serving


Make = Callable[[Caller, int], Any]

REFUSED: dict[str, Make] = {
    "of one row": lambda on, id: on.call("rowcast.notes.create", {"id": id, "body": WIDE}),
    "of one column": lambda on, id: on.call(
        "rowcast.notes.create", {"id": id, "body": WIDE}, select=["body"]
    ),
    "of free text": lambda on, id: on.call("rowcast.notes.create", {"id": id, "free": WIDE}),
    "of rows": lambda on, id: on.call(
        "rowcast.notes.create", [{"id": id, "body": WIDE[:20_000]}, {"id": -id, "body": WIDE}]
    ),
    "as lists": lambda on, id: on.call(
        "rowcast.notes.upsert", {"id": id, "body": WIDE}, form="lists"
    ),
    "as JSON": lambda on, id: on.call(
        "rowcast.notes.create", {"id": id, "body": WIDE}, form="json"
    ),
    "of documents of many kinds": lambda on, id: on.call(
        "rowcast.notes.create", [{"id": id, "doc": 5}, {"id": -id, "doc": ["x" * LIMIT]}]
    ),
    "of a function": lambda on, id: on.call("rowcast.fn.keep", n=id, body=WIDE),
    "of a function's value": lambda on, id: on.call("rowcast.fn.keep_value", n=id, body=WIDE),
    "of a page of a function": lambda on, id: on.call(
        "rowcast.fn.keep.find", args={"n": id, "body": WIDE}
    ),
    "of a counted page": lambda on, id: on.call(
        "rowcast.fn.keep.find", args={"n": id, "body": WIDE}, count="exact"
    ),
    "of groups": lambda on, id: on.call(
        "rowcast.fn.keep.aggregate",
        args={"n": id, "body": WIDE},
        group=["body"],
        measures={"n": {"count": "*"}},
    ),
}

KEPT: dict[str, Make] = {
    "of a procedure": lambda on, id: on.call("rowcast.fn.keep_and_tell", n=id, body=WIDE),
    "by hand": lambda on, id: on.call("rowcast.hand", id, WIDE),
    "by hand, too deep": lambda on, id: on.call("rowcast.hand_deep", id),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest_twisted.ensureDeferred
async def test_write_with_a_too_large_result_has_no_effect(
    how: str, dsn: str, caller: Caller
) -> None:
    id = 1 + list(REFUSED).index(how)
    error = await refusal_of(REFUSED[how](caller, id))
    assert error.error == TooLarge.uri, error
    assert execute(dsn, f"SELECT id FROM notes WHERE abs(id) = {id}") == []


@pytest.mark.parametrize("how", KEPT)
@pytest_twisted.ensureDeferred
async def test_too_large_result_after_a_commit_is_reported_as_committed(
    how: str, dsn: str, caller: Caller
) -> None:
    id = 101 + list(KEPT).index(how)
    error = await refusal_of(KEPT[how](caller, id))
    assert error.error == OutcomeUnknown.uri, error
    assert error.args[0].startswith("what the call changed is kept, but the answer is ")
    assert execute(dsn, f"SELECT id FROM notes WHERE id = {id}") == [(id,)]


@pytest_twisted.ensureDeferred
async def test_result_just_within_the_limit_is_sent(dsn: str, caller: Caller) -> None:
    """Without a result, a write has no limit; a read is refused."""
    fits = "€" * (LIMIT // 3 - 50)
    row = await caller.call("rowcast.notes.create", {"id": 201, "body": fits})
    assert row == {"id": 201, "body": fits, "free": None, "doc": None}
    gone = await caller.call("rowcast.notes.create", {"id": 202, "body": WIDE}, returning=False)
    assert gone == {"affected": 1}
    assert await caller.call("rowcast.fn.keep_value", n=203, body=fits) == fits
    assert (await refusal_of(caller.call("rowcast.hand_read"))).error == TooLarge.uri
    assert len(execute(dsn, "SELECT id FROM notes WHERE id > 200")) == 3
