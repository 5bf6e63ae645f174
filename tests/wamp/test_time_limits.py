"""
Time limits over the wire: the error names the limit, and nothing is written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import ensureDeferred, gatherResults

from service.app import Serving
from tests.conftest import Router, execute
from tests.deferreds import pause
from tests.wamp.callers import refusal_of
from tests.wamp.service import served

SCHEMA = """
CREATE TABLE notes (id int PRIMARY KEY, note text);
INSERT INTO notes VALUES (1, 'as it was'), (2, 'as it was');
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN IF NEW.note = ''slow'' THEN PERFORM pg_sleep(20); END IF; RETURN NEW; END';
CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION slow();
CREATE VIEW naps AS SELECT id, pg_sleep(20)::text AS nap FROM notes;
CREATE FUNCTION nap() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(20)';
CREATE FUNCTION note(row_id int) RETURNS int LANGUAGE sql AS
    'UPDATE notes SET note = ''changed'' WHERE id = row_id RETURNING id';
"""

Call = tuple[str, dict[str, Any]]
SLOW = {"id": 3, "note": "slow"}
TAKE_LONG: list[Call] = [
    ("naps.find", {}),
    ("naps.find", {"form": "json"}),
    ("naps.count", {"where": {"nap": ""}}),
    ("naps.exists", {"where": {"nap": ""}}),
    ("naps.aggregate", {"measures": {"n": {"max": "nap"}}}),
    ("naps.stream", {}),
    ("naps.export", {}),
    ("notes.create", {"values": SLOW}),
    ("notes.create", {"values": [SLOW]}),
    ("notes.update", {"key": 1, "changes": {"note": "slow"}}),
    ("notes.update", {"where": {"id": 1}, "changes": {"note": "slow"}}),
    ("notes.upsert", {"values": {**SLOW, "id": 1}}),
    ("notes.import", {"rows": [SLOW]}),
    ("fn.nap", {"args": {}}),
    ("transaction", {"operations": [{"call": "notes.create", "args": [SLOW]}]}),
]
WAIT_FOR_A_LOCK: list[Call] = [
    ("notes.update", {"key": 1, "changes": {"note": "changed"}}),
    ("notes.update", {"where": {"id": 1}, "changes": {"note": "changed"}}),
    ("notes.delete", {"key": 1}),
    ("notes.upsert", {"values": {"id": 1, "note": "changed"}}),
    ("fn.note", {"args": {"row_id": 1}}),
    (
        "transaction",
        {"operations": [{"call": "notes.update", "args": [1, {"note": "changed"}]}]},
    ),
]


@pytest_twisted.async_yield_fixture(scope="module")
async def service(dsn: str, router: Router) -> AsyncIterator[Serving]:
    """Serve with short limits, but a long one for statements."""
    limits = {"statement_timeout": 12, "lock_timeout": 0.3, "transaction_timeout": 3}
    async with served(dsn, router, **limits) as serving:
        yield serving


@pytest.fixture(autouse=True)
def unchanged(dsn: str) -> Iterator[None]:
    """Check after the test that no timed out call has written anything."""
    yield
    assert execute(dsn, "SELECT id, note FROM notes ORDER BY id") == [
        (1, "as it was"),
        (2, "as it was"),
    ]


@contextmanager
def locked(dsn: str) -> Iterator[None]:
    """Hold the lock of the first row for the length of the body."""
    connection = psycopg2.connect(dsn)
    try:
        connection.cursor().execute("SELECT FROM notes WHERE id = 1 FOR UPDATE")
        yield
    finally:
        connection.close()


@pytest.mark.parametrize(("name", "kwargs"), TAKE_LONG)
@pytest_twisted.ensureDeferred
async def test_error_of_a_call_timeout_names_the_statement(
    name: str, kwargs: dict[str, Any], caller: Any
) -> None:
    parts = CallOptions(on_progress=lambda _: None) if name.endswith(("stream", "export")) else None
    error = await refusal_of(caller.call(f"rowcast.{name}", **kwargs, timeout=0.3, options=parts))
    assert (error.error, error.kwargs.get("clock")) == ("rowcast.error.timeout", "statement")


@pytest.mark.parametrize(("name", "kwargs"), WAIT_FOR_A_LOCK)
@pytest_twisted.ensureDeferred
async def test_error_of_a_lock_timeout_names_the_lock(
    name: str, kwargs: dict[str, Any], dsn: str, caller: Any
) -> None:
    with locked(dsn):
        error = await refusal_of(caller.call(f"rowcast.{name}", **kwargs))
    assert (error.error, error.kwargs.get("clock")) == ("rowcast.error.conflict", "lock")
    assert error.kwargs["retry"] is True


@pytest_twisted.ensureDeferred
async def test_error_of_a_lock_timeout_in_an_open_transaction_names_the_lock(
    dsn: str, caller: Any
) -> None:
    tx = (await caller.call("rowcast.transaction.begin"))["tx"]
    with locked(dsn):
        error = await refusal_of(caller.call(tx, "notes.update", [1, {"note": "changed"}]))
    assert (error.error, error.kwargs.get("clock")) == ("rowcast.error.conflict", "lock")
    await caller.call(f"{tx}.rollback")


@pytest_twisted.ensureDeferred
async def test_error_of_an_idle_transaction_names_idle(caller: Any) -> None:
    tx = (await caller.call("rowcast.transaction.begin", idle_timeout=0.1))["tx"]
    await pause(1)
    error = await refusal_of(caller.call(f"{tx}.commit"))
    assert error.error == "rowcast.error.conflict"
    assert (error.kwargs["reason"], error.kwargs["clock"]) == ("idle_timeout", "idle")


@pytest_twisted.ensureDeferred
async def test_error_of_a_long_transaction_names_the_transaction(caller: Any) -> None:
    tx = (await caller.call("rowcast.transaction.begin"))["tx"]
    caller.call(tx, "notes.update", [1, {"note": "changed"}]).addErrback(lambda _: None)
    late = [
        refusal_of(caller.call(uri, *args)) for uri, *args in ((tx, "naps.find"), (f"{tx}.commit",))
    ]
    for error in await gatherResults([ensureDeferred(each) for each in late]):
        assert error.error == "rowcast.error.conflict"
        assert error.kwargs["clock"] == "transaction"
