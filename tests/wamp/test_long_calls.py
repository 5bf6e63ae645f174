"""
stream, export and import from a client, through the router.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_twisted
from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions
from twisted.internet.defer import CancelledError, Deferred

from service.app import Serving
from service.db.statements import CHUNK_BYTES
from service.wamp.backpressure import HELD
from tests.conftest import Router, execute
from tests.db.test_streaming import transactions
from tests.deferreds import pause, until
from tests.wamp.callers import KINDS, Caller, join

SCHEMA = """
CREATE TABLE items (id int PRIMARY KEY, body bytea, price numeric, at timestamptz);
INSERT INTO items SELECT i, decode(md5(i::text), 'hex'), i * 1.5, '2026-01-01Z'
    FROM generate_series(1, 3000) i;
CREATE TABLE copies (LIKE items INCLUDING ALL);
CREATE VIEW large AS SELECT i AS id, repeat('x', 1000) AS body FROM generate_series(1, 60000) i;
CREATE VIEW slow AS SELECT id, repeat('x', 1000) AS body, pg_sleep(0.001)::text AS nap FROM items;
"""


def open_transactions(dsn: str) -> list[tuple[object, ...]]:
    """Return the open transactions, except the listener's."""
    return [each for each in transactions(dsn) if "LISTEN" not in str(each[1])]


@pytest.mark.parametrize("how", KINDS)
@pytest_twisted.ensureDeferred
async def test_rows_streamed_and_imported_are_the_same(
    how: str, dsn: str, service: Serving, router: Router
) -> None:
    """Streamed rows can be imported unchanged, over each transport and serializer."""
    execute(dsn, "TRUNCATE copies")
    caller = await join(router, how)
    parts: list[Any] = []
    options = CallOptions(on_progress=parts.append)
    assert await caller.call("rowcast.items.stream", options=options) == {"rows": 3000}
    assert [len(part) for part in parts] == [500] * 6
    begun = await caller.call("rowcast.copies.import", done=False)
    for part in parts:
        assert await caller.call("rowcast.copies.import", part, **begun) == begun
    assert await caller.call("rowcast.copies.import", done=True, **begun) == {"rows": 3000}
    assert execute(dsn, "SELECT * FROM items EXCEPT SELECT * FROM copies") == []
    await caller.close()


@pytest_twisted.ensureDeferred
async def test_csv_exported_and_imported_is_the_same(dsn: str, caller: Caller) -> None:
    execute(dsn, "TRUNCATE copies")
    parts: list[str] = []
    options = CallOptions(on_progress=parts.append)
    answer = await caller.call("rowcast.items.export", options=options)
    assert answer == {"rows": 3000, "bytes": len("".join(parts))}
    begun = await caller.call("rowcast.copies.import", csv=parts[0], done=False)
    for part in parts[1:]:
        await caller.call("rowcast.copies.import", csv=part, **begun)
    assert await caller.call("rowcast.copies.import", done=True, **begun) == {"rows": 3000}
    assert execute(dsn, "SELECT * FROM items EXCEPT SELECT * FROM copies") == []
    lines: list[str] = []
    options = CallOptions(on_progress=lines.append)
    await caller.call("rowcast.items.export", format="ndjson", options=options)
    assert [json.loads(line)["id"] for line in "".join(lines).splitlines()] == [*range(1, 3001)]


@pytest_twisted.ensureDeferred
async def test_stream_without_progressive_results_is_refused_with_a_hint(caller: Caller) -> None:
    """The hint says to ask for progressive results."""
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.items.stream")
    assert caught.value.error == "wamp.error.invalid_argument"
    assert "receive_progress" in caught.value.kwargs["hint"]


@pytest.mark.parametrize("how", ["cancels", "leaves", "vanishes"])
@pytest.mark.parametrize("verb", ["stream", "export"])
@pytest_twisted.ensureDeferred
async def test_call_whose_caller_leaves_releases_its_connection(
    how: str, verb: str, dsn: str, service: Serving, router: Router
) -> None:
    """The cursor and the connection are free at once after the caller has cancelled or left."""
    caller = await join(router, "rawsocket cbor")
    begun: Deferred[None] = Deferred()
    options = CallOptions(on_progress=lambda _: begun.called or begun.callback(None))
    arguments = {"chunk": 20} if verb == "stream" else {}
    call = caller.call(f"rowcast.slow.{verb}", options=options, **arguments)
    await begun
    assert open_transactions(dsn)
    if how == "cancels":
        call.cancel()
        with pytest.raises(CancelledError):
            await call
    else:
        call.addErrback(lambda _: None)
        caller._transport.abort() if how == "vanishes" else caller.leave()
    await until(lambda: not open_transactions(dsn))
    await until(lambda: not service.pool.stats().busy)
    await caller.close()


SAMPLES = 20
"""Looks at what the router holds, until it holds the same for a while."""


@pytest.mark.parametrize("verb", ["stream", "export"])
@pytest_twisted.ensureDeferred
async def test_no_more_rows_are_read_for_a_caller_that_takes_nothing(
    verb: str, dsn: str, service: Serving, router: Router
) -> None:
    """Reading stops, and the router buffers little for it."""
    caller = await join(router, "rawsocket cbor")
    own = await join(router, "service cbor")
    call = caller.call(f"rowcast.large.{verb}", options=CallOptions(on_progress=lambda _: None))
    caller._transport.transport.pauseProducing()
    seen: list[int] = []
    try:
        # kernels accept a little more from time to time, and then nothing
        while len(seen) < SAMPLES and not (len(seen) > 2 and seen[-1] == seen[-2] == seen[-3] > 0):
            await pause(0.4)
            seen.append(await own.call("rowcast.router.backlog", caller._session_id))
        assert max(seen) < HELD + 3 * CHUNK_BYTES
        assert len(seen) < SAMPLES, f"it goes on: {seen}"
        assert open_transactions(dsn)
    finally:
        caller._transport.transport.resumeProducing()
    assert (await call)["rows"] == 60_000
    with pytest.raises(ApplicationError) as caught:
        await caller.call("rowcast.router.backlog", caller._session_id)
    assert caught.value.error == "wamp.error.not_authorized"
    await own.close()
    await caller.close()


@pytest.mark.parametrize("how", ["leaves", "vanishes"])
@pytest_twisted.ensureDeferred
async def test_upload_whose_session_leaves_is_rolled_back(
    how: str, dsn: str, service: Serving, router: Router
) -> None:
    execute(dsn, "TRUNCATE copies")
    caller = await join(router, "rawsocket cbor")
    begun = await caller.call("rowcast.copies.import", [{"id": 1}], done=False)
    other = await join(router, "rawsocket cbor")
    with pytest.raises(ApplicationError) as caught:
        await other.call("rowcast.copies.import", done=True, **begun)
    assert caught.value.error == "wamp.error.not_authorized"
    assert open_transactions(dsn)
    caller._transport.abort() if how == "vanishes" else caller.leave()
    await until(lambda: not open_transactions(dsn))
    await caller.close()
    assert await other.call("rowcast.copies.count") == 0
    await other.close()
