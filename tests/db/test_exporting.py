"""
export: rows of any number as CSV and as JSON lines.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError

from service.errors import Canceled, InvalidArgument, ServiceError, StatementTimeout
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.db.test_streaming import Taker, transactions
from tests.deferreds import failure_of, until

SCHEMA = """
CREATE TABLE parents (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO parents VALUES (1, 'Ada "the first"'), (2, E'Bo,\\nb');
CREATE TABLE items (
    id int PRIMARY KEY, parent_id int REFERENCES parents, price numeric(8, 2), seen timestamptz,
    body bytea, tags text[], doc jsonb, secret text);
COMMENT ON COLUMN items.secret IS '@hidden';
INSERT INTO items SELECT i, 1 + i % 2, i * 1.5, '2026-01-01Z'::timestamptz + i * '1h'::interval,
    decode('00ff', 'hex'), ARRAY['a', 'b,c'], '{"n": [1, null, "é"]}', 'secret'
    FROM generate_series(1, 1000) i;
CREATE TABLE "odd %s" (id int PRIMARY KEY, "a ""b" text);
INSERT INTO "odd %s" VALUES (1, '100%'), (2, NULL), (3, '');
CREATE TABLE wide (id int PRIMARY KEY, body text);
INSERT INTO wide SELECT i, repeat('é', 300000) FROM generate_series(1, 3) i;
CREATE VIEW slow AS SELECT id, repeat('x', 10000) AS body, pg_sleep(0.005)::text AS nap
    FROM items;
CREATE VIEW broken AS SELECT id, repeat('x', 1000) AS body,
    CASE id WHEN 700 THEN pg_sleep(1) END::text AS nap, 1 / (id - 700) AS part
    FROM generate_series(1, 1000) id;
"""
# Not FROM items: sorted by their key, some plans compute all values before the first row.


def copied(dsn: str, query: str) -> str:
    """Return the rows as psql's copy command writes them, in the session settings of the service."""
    out = io.StringIO()
    connection = psycopg2.connect(dsn, options="-c timezone=UTC -c extra_float_digits=1")
    with connection.cursor() as cursor:
        cursor.copy_expert(f"COPY ({query}) TO STDOUT WITH (FORMAT csv, HEADER)", out)
    connection.close()
    return out.getvalue()


@pytest_twisted.ensureDeferred
async def test_export_as_csv_is_what_copy_writes(dsn: str, db: DirectCaller) -> None:
    """CSV equals that of COPY, without hidden columns; the result counts rows and bytes."""
    taker = Taker(db)
    answer = await taker.call("items.export", format="csv")
    text = "".join(taker.parts)
    assert text == copied(
        dsn, "SELECT id, parent_id, price, seen, body, tags, doc FROM items ORDER BY id"
    )
    assert answer == {"rows": 1000, "bytes": len(text.encode())}
    assert "secret" not in text


@pytest_twisted.ensureDeferred
async def test_export_with_arguments_of_stream_binds_their_values(
    dsn: str, db: DirectCaller
) -> None:
    """Export takes the arguments of stream; values of the call are bound as parameters."""
    taker = Taker(db)
    answer = await taker.call(
        "items.export",
        where={"tags": {"cs": ["b,c"]}, "id": {"lte": 3}},
        select=["id", "n:doc->n->>2"],
        order=["-id"],
        limit=2,
    )
    assert answer["rows"] == 2
    assert "".join(taker.parts) == "id,n\n3,é\n2,é\n"
    odd = Taker(db)
    await odd.call("odd%20%25s.export", where={'"a ""b"': {"neq": "'; DROP TABLE items; --%s"}})
    assert list(csv.reader(io.StringIO("".join(odd.parts)))) == [
        ["id", 'a "b'],
        ["1", "100%"],
        ["3", ""],
    ]
    related = Taker(db)
    await related.call(
        "items.export", select=["id"], embed={"parents": {"select": ["name"]}}, limit=2
    )
    rows = list(csv.DictReader(io.StringIO("".join(related.parts))))
    assert [json.loads(row["parents"]) for row in rows] == [
        {"name": "Bo,\nb"},
        {"name": 'Ada "the first"'},
    ]


@pytest_twisted.ensureDeferred
async def test_csv_with_columns_of_related_rows_names_them_in_its_head(dsn: str) -> None:
    """A column is empty without a related row, and the header has aliases."""
    execute(
        dsn,
        "CREATE TABLE halls (id int PRIMARY KEY, city text);"
        "CREATE TABLE crates (id int PRIMARY KEY, hall_id int REFERENCES halls);"
        "INSERT INTO halls VALUES (1, 'Ulm'); INSERT INTO crates VALUES (1, 1), (2, NULL)",
    )
    async with serving(dsn) as db:
        taker = Taker(db)
        select = ["id", "halls.city", "hall:hall_id.id"]
        await taker.call("crates.export", select=select, order=["halls.city"])
        assert "".join(taker.parts) == "id,city,hall\n1,Ulm,1\n2,,\n"


@pytest_twisted.ensureDeferred
async def test_export_without_rows_is_the_header_or_nothing(db: DirectCaller) -> None:
    """CSV without rows is the header only, JSON lines without rows are empty."""
    taker = Taker(db)
    answer = await taker.call("items.export", where={"id": 0}, select=["id"])
    assert answer == {"rows": 0, "bytes": 3}
    assert taker.parts == ["id\n"]
    lines = Taker(db)
    answer = await lines.call("items.export", where={"id": 0}, format="ndjson")
    assert answer == {"rows": 0, "bytes": 0}
    assert lines.parts == []


@pytest_twisted.ensureDeferred
async def test_export_as_ndjson_has_rows_in_wire_form(db: DirectCaller) -> None:
    """Each line is a row in its wire form; bytes are base64."""
    taker = Taker(db)
    answer = await taker.call("items.export", format="ndjson", chunk=300, embed={"parents": True})
    text = "".join(taker.parts)
    assert len(taker.parts) == 4
    assert all(part.endswith("\n") for part in taker.parts)
    assert answer == {"rows": 1000, "bytes": len(text.encode())}
    rows = [json.loads(line) for line in text.splitlines()]
    found = (await db.call("items.find", embed={"parents": True}))["rows"]
    assert [row.pop("body") for row in rows] == ["AP8="] * 1000
    assert [row.pop("body") for row in found] == [b"\0\xff"] * 1000
    assert rows == found


@pytest_twisted.ensureDeferred
async def test_row_longer_than_a_block_is_split_between_characters(
    dsn: str, db: DirectCaller
) -> None:
    taker = Taker(db)
    answer = await taker.call("wide.export")
    text = "".join(taker.parts)
    assert text == copied(dsn, "SELECT id, body FROM wide ORDER BY id")
    assert answer["bytes"] == len(text.encode())
    assert max(map(len, taker.parts)) <= 2**17


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"format": "xml"}, "format"),
        ({"form": "lists"}, "form"),
        ({"after": "x"}, "after"),
        ({"after": None}, "after"),
        ({"count": None}, "count"),
        ({"embed": {"parents": {"spread": True}}}, "embed.parents.spread"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_export_with_malformed_arguments_is_refused(
    db: DirectCaller, arguments: dict[str, Any], path: str
) -> None:
    """A malformed call is refused before anything is sent."""
    refused = await failure_of(Taker(db).call("items.export", **arguments))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["path"] == path


@pytest_twisted.ensureDeferred
async def test_export_without_progressive_results_is_refused_with_a_hint(db: DirectCaller) -> None:
    """The hint says to ask for progressive results."""
    refused = await failure_of(db.call("items.export"))
    assert isinstance(refused, InvalidArgument)
    assert "receive_progress" in refused.details["hint"]


@pytest.mark.parametrize("format", ["csv", "ndjson"])
@pytest.mark.parametrize("when", ["reading", "sending"])
@pytest_twisted.ensureDeferred
async def test_export_that_is_cancelled_frees_its_connection(
    dsn: str, db: DirectCaller, when: str, format: str
) -> None:
    """A connection is free at once after the caller has cancelled or left."""
    taker = Taker(db)
    taker.open = False
    call = taker.call("slow.export", format=format, chunk=1000 if when == "reading" else 5)
    await until(lambda: transactions(dsn) if when == "reading" else taker.gates)
    call.cancel()
    assert isinstance(await failure_of(call), CancelledError | Canceled)
    await until(lambda: not transactions(dsn))
    await until(lambda: not db.pool.stats().busy)
    assert await db.call("items.count") == 1000


@pytest_twisted.ensureDeferred
async def test_export_whose_caller_is_behind_reads_one_block_ahead(
    dsn: str, db: DirectCaller
) -> None:
    """While the caller takes nothing, COPY stops after one more block."""
    taker = Taker(db)
    taker.open = False
    call = taker.call("slow.export")
    await until(lambda: taker.gates)
    ((_, query),) = transactions(dsn)
    assert "COPY" in str(query)
    for taken in range(1, 4):
        await until(lambda taken=taken: len(taker.parts) == taken)
        taker.gates[-1].callback(None)
    await until(lambda: len(taker.parts) == 4)
    taker.open = True
    taker.gates[-1].callback(None)
    assert (await call)["rows"] == 1000
    assert not transactions(dsn)


@pytest.mark.parametrize("format", ["csv", "ndjson"])
@pytest_twisted.ensureDeferred
async def test_export_with_an_error_in_the_middle_ends_with_it(
    dsn: str, db: DirectCaller, format: str
) -> None:
    """An error that occurs a second after the first rows ends the call."""
    taker = Taker(db)
    refused = await failure_of(taker.call("broken.export", format=format))
    assert isinstance(refused, ServiceError)
    assert refused.details["sqlstate"] == "22012"
    assert taker.parts
    assert not transactions(dsn)


@pytest_twisted.ensureDeferred
async def test_export_that_exceeds_its_timeout_is_ended(dsn: str, db: DirectCaller) -> None:
    taker = Taker(db)
    refused = await failure_of(taker.call("slow.export", timeout=0.2))
    assert isinstance(refused, StatementTimeout)
    await until(lambda: not transactions(dsn))
