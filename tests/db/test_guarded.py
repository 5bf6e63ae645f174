"""
Writing one row and reading it back in one message, unless the row is large.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from schema.own import MAKE
from service.api.roles import Roles
from service.db.connection import PgCursor
from service.db.planned import RUNS
from service.errors import TooLarge
from service.request.arguments import Caller
from service.sql.modify import MANY_BYTES
from tests.db.dispatchers import DirectCaller
from tests.deferreds import failure_of

SCHEMA = f"""{MAKE};
CREATE TYPE pair AS (a text, b text);
CREATE TABLE notes (id serial PRIMARY KEY, note text, doc jsonb, raw bytea, tags text[],
  code varchar(20), pairs pair[]);
CREATE TABLE keyed (id text PRIMARY KEY, n int);
"""
BEFORE_EACH = "TRUNCATE notes RESTART IDENTITY; INSERT INTO notes (note) VALUES ('first')"
PLAIN = {"select": ["id", "note", "doc", "raw", "code"]}
LARGE = "ä" * MANY_BYTES
COMMIT = b"COMMIT"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Collect the messages to PostgreSQL."""
    found: list[bytes] = []
    execute = PgCursor.execute

    def noted(self: PgCursor, *args: Any, **options: Any) -> None:
        try:
            execute(self, *args, **options)
        finally:
            if b"notes" in (query := self.query or b"") or b"EXECUTE" in query or query == COMMIT:
                found.append(query)

    monkeypatch.setattr(PgCursor, "execute", noted)
    return found


CALLS: list[tuple[str, list[Any]]] = [
    ("notes.create", [{"note": "x", "doc": {"a": [1]}, "raw": b"\0", "code": "c"}]),
    ("notes.create", [{}]),
    ("notes.update", [1, {"note": "y", "code": None}]),
    ("notes.upsert", [{"id": 1, "note": "z"}]),
    ("notes.delete", [1]),
]


@pytest.mark.parametrize(("name", "args"), CALLS)
@pytest.mark.parametrize("form", ["dicts", "lists", "json"])
@pytest_twisted.ensureDeferred
async def test_row_of_unbounded_columns_is_written_in_one_message(
    db: DirectCaller, sent: list[bytes], name: str, args: list[Any], form: str
) -> None:
    answer = await db.call(name, *args, **PLAIN, form=form)
    assert answer
    (message,) = sent
    assert COMMIT not in message
    assert b"octet_length" in message


@pytest.mark.parametrize("form", ["dicts", "lists", "json"])
@pytest.mark.parametrize("large", [{"note": LARGE}, {"doc": [LARGE]}, {"raw": LARGE.encode()}])
@pytest_twisted.ensureDeferred
async def test_large_row_is_written_in_a_transaction(
    db: DirectCaller, sent: list[bytes], large: dict[str, Any], form: str
) -> None:
    """It is written once."""
    await db.call("notes.create", large, **PLAIN, form=form)
    await db.call("notes.update", 1, large, **PLAIN, form=form)
    await db.call("notes.update", 1, {"code": "z"}, **PLAIN, form=form)
    assert sum(COMMIT in message for message in sent) == 3
    assert (await db.call("notes.find", order=["id"]))["rows"][0]["code"] == "z"
    assert await db.call("notes.count") == 2
    await db.call("notes.delete", 1, **PLAIN, form=form)
    assert await db.call("notes.count") == 1


@pytest_twisted.ensureDeferred
async def test_large_row_is_first_tried_by_the_prepared_statement_alone(
    db: DirectCaller, sent: list[bytes]
) -> None:
    """The row is not sent a third time, with the text of the same statement."""
    for _ in range(RUNS + 1):
        await db.call("notes.create", {"note": "x"}, **PLAIN)
    sent.clear()
    await db.call("notes.create", {"note": LARGE}, **PLAIN)
    assert sum(LARGE.encode() in message for message in sent) == 2
    assert sum(b"EXECUTE" in message for message in sent) == 1


@pytest.mark.serving(max_bytes=16 * MANY_BYTES)
@pytest_twisted.ensureDeferred
async def test_row_that_is_too_large_is_not_written(db: DirectCaller) -> None:
    huge = "x" * (17 * MANY_BYTES)
    assert isinstance(await failure_of(db.call("notes.create", {"note": huge})), TooLarge)
    assert isinstance(await failure_of(db.call("notes.update", 1, {"note": huge})), TooLarge)
    assert await db.call("notes.find", select=["note"]) == {
        "rows": [{"note": "first"}],
        "next": None,
    }


@pytest.mark.serving(max_bytes=16 * MANY_BYTES)
@pytest.mark.parametrize("form", ["dicts", "lists", "json"])
@pytest_twisted.ensureDeferred
async def test_row_that_is_not_large_is_below_the_limit_in_any_form(
    db: DirectCaller, form: str
) -> None:
    """The values take the most bytes in their form, such as control characters in JSON, and numbers."""
    for row in (
        {"note": "\x01" * MANY_BYTES},
        {"doc": ["\x01" * 10_000]},
        {"doc": [0.5] * (MANY_BYTES // 5)},
        {"doc": [[[]]] * (MANY_BYTES // 8)},
        {"raw": b"\xff" * (MANY_BYTES // 2 - 1)},
    ):
        await db.call("notes.create", row, **PLAIN, form=form)


@pytest.mark.serving(max_bytes=16 * MANY_BYTES - 1)
@pytest_twisted.ensureDeferred
async def test_write_under_a_small_size_limit_is_not_guarded(
    db: DirectCaller, sent: list[bytes]
) -> None:
    await db.call("notes.create", {"note": "x"})
    assert COMMIT in sent[-1]


@pytest.mark.parametrize("select", [["pairs"], ["doc->a"], ["tags"]])
@pytest_twisted.ensureDeferred
async def test_nested_and_computed_values_are_not_guarded(
    db: DirectCaller, sent: list[bytes], select: list[str]
) -> None:
    """Neither are expressions with parameters in the select list."""
    await db.call("notes.create", {"note": "x"}, select=select)
    assert COMMIT in sent[-1]


@pytest.mark.serving(roles=Roles({"user": "postgres"}, "postgres"))
@pytest_twisted.ensureDeferred
async def test_large_row_is_written_once_under_a_key(db: DirectCaller) -> None:
    caller = Caller(1, "p", "user", "realm1")
    for _ in range(2):
        row = await db.call_as(caller, "notes.create", {"note": LARGE}, idempotency_key="k")
        assert row["note"] == LARGE
    assert await db.call("notes.count") == 2


@pytest_twisted.ensureDeferred
async def test_large_row_in_a_transaction_is_returned(db: DirectCaller) -> None:
    call = {"call": "notes.create", "args": [{"note": LARGE}]}
    found = await db.call("transaction", [call, call])
    assert [each["note"] for each in found] == [LARGE] * 2
    assert await db.call("notes.count") == 3


@pytest_twisted.ensureDeferred
async def test_receipt_is_returned_by_a_guarded_write(db: DirectCaller) -> None:
    for note in ("x", LARGE):
        answer = await db.dispatcher.answer(
            "notes.create", [{"note": note}], {"receipt": True}, Caller(None, None, None, "realm1")
        )
        assert answer.answer["note"] == note
        assert answer.tx.isdigit()
