"""JSON documents are unchanged after they were read and written, wherever they are used."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted

from tests.conftest import execute
from tests.db.dispatchers import DirectCaller

SCHEMA = """
CREATE TYPE part AS (doc jsonb, n numeric, raw json);
CREATE TABLE boxes (id int PRIMARY KEY);
CREATE TABLE docs (id int PRIMARY KEY, box int REFERENCES boxes, doc jsonb, raw json, docs jsonb[],
    raws json[], part part, parts part[]);
CREATE TABLE odd ("$value" jsonb, box int REFERENCES boxes UNIQUE, id int PRIMARY KEY);
CREATE TABLE numbers ("$number" text, box int REFERENCES boxes, id int PRIMARY KEY);
CREATE FUNCTION same(doc jsonb) RETURNS jsonb LANGUAGE sql STABLE AS 'SELECT doc';
CREATE FUNCTION unnamed() RETURNS record LANGUAGE sql STABLE AS 'SELECT 1, 2';
CREATE FUNCTION untyped() RETURNS record LANGUAGE sql STABLE AS 'SELECT 1 AS f1, 2.50 AS f2';
CREATE FUNCTION same_row(doc json) RETURNS TABLE (doc json, n int) LANGUAGE sql STABLE
    AS 'SELECT doc, 1';
INSERT INTO boxes VALUES (1);
"""
TEXTS = [
    '{"price": 0.12345678901234567890123, "big": 123456789012345678901}',
    "0.12345678901234567890123",
    "[-0, 1.0, 1, 1e22, 1e300, 9223372036854775808, 0.30000000000000004]",
    "1" + "0" * 400,
    "0." + "0" * 400 + "1",
    '{"$number": "5"}',
    '{"$value": {"$number": "5"}}',
    '{"$value": 0.12345678901234567890123}',
    '{"$value": {"$value": 123456789012345678901}}',
    '{"$number": 123456789012345678901}',
    '[{"$number": "x"}, {"$value": 1}, {"a": 1, "$number": "1"}]',
]


BEFORE_EACH = "TRUNCATE docs, odd, numbers"


def _exactly(text: Any) -> Any:
    return json.loads(str(text), parse_int=Decimal, parse_float=Decimal)


@pytest.mark.parametrize("text", TEXTS)
@pytest_twisted.ensureDeferred
async def test_document_is_unchanged_after_it_was_read_and_written(
    db: DirectCaller, dsn: str, text: str
) -> None:
    quoted = text.replace("'", "''")
    execute(
        dsn,
        f"INSERT INTO docs VALUES (1, 1, '{quoted}', '{quoted}', ARRAY['{quoted}'::jsonb, NULL],"
        f" ARRAY['{quoted}'::json], ROW('{quoted}', 1.50, '{quoted}'),"
        f" ARRAY[ROW('{quoted}', 1.50, '{quoted}')]::part[])",
    )
    row = await db.call("docs.get", 1)
    await db.call("docs.create", row | {"id": 2})
    await db.call("docs.create", {"id": 3})
    await db.call("docs.update", 3, {name: row[name] for name in row if name != "id"})
    (box,) = (await db.call("boxes.find", embed={"docs": {"where": {"id": 1}}}))["rows"]
    assert box["docs"] == [row]
    await db.call("docs.create", box["docs"][0] | {"id": 4})
    await db.call("docs.import", [row | {"id": 5}])
    await db.call("docs.upsert", [row | {"id": 1}])
    given = await db.call("fn.same", doc=row["doc"])
    (pair,) = await db.call("fn.same_row", doc=row["raw"])
    await db.call("docs.create", {"id": 6, "doc": given, "raw": pair["doc"]})
    columns = "doc, raw, docs[1], raws[1], (part).doc, (part).raw, parts[1].doc, parts[1].raw"
    found = execute(dsn, f"SELECT {columns.replace(',', '::text,')}::text FROM docs WHERE id < 6")
    assert len(found) == 5
    for copy in found:
        assert [_exactly(each) for each in copy] == [_exactly(text)] * len(copy)
    stored = execute(dsn, "SELECT doc::text, raw::text FROM docs WHERE id = 6")[0]
    assert [_exactly(each) for each in stored] == [_exactly(text)] * 2
    for where in (
        {"doc": {"eq": row["doc"]}},
        {"doc": {"in": [row["doc"]]}},
        {"raw": {"eq": row["raw"]}},
        {"docs": {"cs": [row["doc"]]}},
    ):
        assert await db.call("docs.count", where=where) >= 5, where
    await db.call("docs.update", 2, {"box": None}, expect={"doc": row["doc"], "raw": row["raw"]})


@pytest_twisted.ensureDeferred
async def test_record_of_no_known_type_as_text_has_its_digits(db: DirectCaller) -> None:
    assert await db.call("fn.untyped", form="json") == '{"f1":1,"f2":2.50}'
    assert await db.call("fn.unnamed", form="json") == '{"?column?":1,"?column?":2}'


@pytest_twisted.ensureDeferred
async def test_row_that_looks_like_an_encoded_number_is_read_as_a_row(
    db: DirectCaller, dsn: str
) -> None:
    execute(dsn, """INSERT INTO numbers VALUES ('12', 1, 1), ('x', 1, 2)""")
    for text in ('{"$number": "1"}', "12345678901234567890123", '{"a": 1}'):
        execute(dsn, f"DELETE FROM odd; INSERT INTO odd VALUES ('{text}', 1, 1)")
        (row,) = (await db.call("odd.find", select=["$value"]))["rows"]
        embed = {"odd": {"select": ["$value"]}, "numbers": {"select": ["$number"], "order": ["id"]}}
        (box,) = (await db.call("boxes.find", embed=embed))["rows"]
        assert box["odd"] == row
        assert box["numbers"] == [{"$number": "12"}, {"$number": "x"}]
        await db.call("odd.update", 1, row)
        ((stored,),) = execute(dsn, 'SELECT "$value"::text FROM odd')
        assert _exactly(stored) == _exactly(text)
