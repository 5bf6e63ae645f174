"""stream: all rows, in chunks; no connection, cursor or transaction is left however a call ends."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from service.db.statements import CHUNK_BYTES
from service.errors import Canceled, InvalidArgument, ServiceError, TooLarge
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller, serving
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE TABLE parents (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO parents SELECT i, 'parent ' || i FROM generate_series(1, 3) i;
CREATE TABLE items (
    id int PRIMARY KEY, parent_id int REFERENCES parents, price numeric(8, 2), seen timestamptz);
INSERT INTO items SELECT i, 1 + i % 3, i * 1.5, '2026-01-01Z'::timestamptz + i * '1h'::interval
    FROM generate_series(1, 2500) i;
CREATE TABLE uneven (id int PRIMARY KEY, body text);
INSERT INTO uneven SELECT i, repeat('x', CASE WHEN i % 50 < 5 THEN 25000 ELSE 10 END)
    FROM generate_series(1, 400) i;
CREATE VIEW slow AS SELECT id, pg_sleep(0.01)::text AS nap FROM items;
CREATE VIEW broken AS SELECT id, 1 / (id - 700) AS part FROM items;
"""


pytestmark = pytest.mark.serving(max_rows=100, max_bytes=4 << 20)


class Taker:
    """A caller of progressive results that takes a part only when the test lets it."""

    def __init__(self, callee: DirectCaller) -> None:
        self.callee = callee
        self.parts: list[Any] = []
        self.gates: list[Deferred[None]] = []
        self.open = True

    async def take(self, part: Any) -> None:
        """Take one part; wait until `open` is set or the call is cancelled."""
        self.parts.append(part)
        if not self.open:
            self.gates.append(Deferred())
            await self.gates[-1]

    def call(self, name: str, **kwargs: Any) -> Deferred[Any]:
        """Call a procedure with progressive results."""
        answering = self.callee.dispatcher.answer(name, [], kwargs, ANYONE, progress=self.take)
        return Deferred.fromCoroutine(answering)


def transactions(dsn: str) -> list[tuple[object, ...]]:
    """
    Return open transactions and running statements of clients, except this query and autovacuum.

    The check of the catalog that may follow a refusal is left out, too.
    """
    return execute(
        dsn,
        "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        " AND (xact_start IS NOT NULL OR state = 'active') AND query NOT LIKE '%SELECT s.snapshot%'",
    )


@pytest_twisted.ensureDeferred
async def test_stream_in_chunks_has_all_rows_in_order(db: DirectCaller) -> None:
    """The rows are those of find, in order, in chunks of the given size."""
    taker = Taker(db)
    assert await taker.call("items.stream", chunk=700) == {"rows": 2500}
    assert [len(part) for part in taker.parts] == [700, 700, 700, 400]
    rows = [row for part in taker.parts for row in part]
    assert [row["id"] for row in rows] == list(range(1, 2501))
    assert rows[:100] == (await db.call("items.find"))["rows"]


@pytest_twisted.ensureDeferred
async def test_stream_accepts_arguments_of_find_without_maximum_limit(db: DirectCaller) -> None:
    """Stream takes the arguments of find, with no maximum limit; it has no pages."""
    taker = Taker(db)
    answer = await taker.call(
        "items.stream",
        where={"id": {"gt": 10}},
        select=["id"],
        order=["-id"],
        limit=1500,
        offset=1,
        embed={"parents": {"select": ["name"]}},
    )
    assert answer == {"rows": 1500}
    assert [len(part) for part in taker.parts] == [500, 500, 500]
    assert taker.parts[0][0] == {"id": 2499, "parents": {"name": "parent 1"}}
    listed = Taker(db)
    answer = await listed.call("items.stream", select=["id", "price"], form="lists", limit=2)
    assert answer == {"columns": ["id", "price"], "rows": 2}
    assert listed.parts == [[[1, "1.50"], [2, "3.00"]]]
    empty = Taker(db)
    assert await empty.call("items.stream", where={"id": 0}) == {"rows": 0}
    assert await empty.call("items.stream", limit=0) == {"rows": 0}
    assert empty.parts == []


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"chunk": 0}, "chunk"),
        ({"chunk": 5001}, "chunk"),
        ({"chunk": "many"}, "chunk"),
        ({"after": "x"}, "after"),
        ({"after": None}, "after"),
        ({"count": None}, "count"),
        ({"count": "exact"}, "count"),
        ({"size": 1}, "size"),
        ({"where": {"nope": 1}}, "where.nope"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_stream_with_malformed_arguments_is_refused(
    db: DirectCaller, arguments: dict[str, Any], path: str
) -> None:
    """A malformed call is refused before anything is sent."""
    taker = Taker(db)
    refused = await failure_of(taker.call("items.stream", **arguments))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path
    assert taker.parts == []


@pytest_twisted.ensureDeferred
async def test_stream_without_progressive_results_is_refused_with_a_hint(db: DirectCaller) -> None:
    """The hint says to ask for progressive results."""
    refused = await failure_of(db.call("items.stream"))
    assert isinstance(refused, InvalidArgument)
    assert "receive_progress" in refused.details["hint"]


@pytest_twisted.ensureDeferred
async def test_chunks_are_bounded_by_bytes(db: DirectCaller) -> None:
    """Large rows come in smaller chunks, whatever the size of the rows before them."""
    taker = Taker(db)
    assert await taker.call("uneven.stream") == {"rows": 400}
    assert [row["id"] for part in taker.parts for row in part] == list(range(1, 401))
    weights = [sum(len(row["body"]) for row in part) for part in taker.parts]
    assert max(weights) <= CHUNK_BYTES
    assert len(taker.parts) >= 40 * 25_000 // CHUNK_BYTES


@pytest_twisted.ensureDeferred
async def test_row_over_the_limit_ends_the_stream(dsn: str) -> None:
    """A row that is larger than a message may be ends the stream with an error."""
    async with serving(dsn, max_bytes=20_000) as db:
        taker = Taker(db)
        for how in {"form": "dicts"}, {"form": "lists"}:
            error = await failure_of(taker.call("uneven.stream", order=["-id"], **how), TooLarge)
            assert "format: csv" in error.details["hint"]
        await until(lambda: not db.pool.stats().busy)


@pytest_twisted.ensureDeferred
async def test_stream_whose_caller_is_behind_reads_one_chunk_ahead(
    dsn: str, db: DirectCaller
) -> None:
    """While the caller takes nothing, one more chunk is read."""
    taker = Taker(db)
    taker.open = False
    call = taker.call("slow.stream", chunk=10)
    await until(lambda: taker.gates)
    await until(lambda: [row[0] for row in transactions(dsn)] == ["idle in transaction"])
    assert len(taker.parts) == 1
    call.cancel()
    assert isinstance(await failure_of(call), CancelledError | Canceled)


@pytest.mark.parametrize("when", ["reading", "sending"])
@pytest_twisted.ensureDeferred
async def test_stream_that_is_cancelled_frees_its_connection(
    dsn: str, db: DirectCaller, when: str
) -> None:
    """The cursor and the connection are free at once after the caller has cancelled or left."""
    taker = Taker(db)
    taker.open = False
    call = taker.call("slow.stream", chunk=1000 if when == "reading" else 5)
    if when == "reading":
        await until(lambda: transactions(dsn))
    else:
        await until(lambda: taker.gates)
    call.cancel()
    assert isinstance(await failure_of(call), CancelledError | Canceled)
    await until(lambda: not transactions(dsn))
    await until(lambda: not db.pool.stats().busy)
    assert await db.call("items.count") == 2500


@pytest_twisted.ensureDeferred
async def test_stream_with_an_error_in_the_middle_ends_with_it(dsn: str, db: DirectCaller) -> None:
    """An error after the first chunks ends the call with it."""
    taker = Taker(db)
    refused = await failure_of(taker.call("broken.stream", order=["id"], chunk=100))
    assert isinstance(refused, ServiceError)
    assert refused.details["sqlstate"] == "22012"
    assert 1 <= len(taker.parts) < 8
    assert not transactions(dsn)


@pytest_twisted.ensureDeferred
async def test_stream_whose_part_cannot_be_sent_ends(dsn: str, db: DirectCaller) -> None:
    """A part that cannot be serialized ends the stream with an error."""

    async def take(part: Any) -> None:
        raise TooLarge(1)

    answering = db.dispatcher.answer("items.stream", [], {}, ANYONE, progress=take)
    assert isinstance(await failure_of(answering), TooLarge)
    assert not transactions(dsn)
