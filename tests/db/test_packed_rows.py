"""Rows of scalars leave the pool's thread as CBOR."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
import pytest_twisted

from service.api.call import CallState
from service.errors import TooLarge
from service.payload import Encoded
from tests.conftest import execute
from tests.db.dispatchers import ANYONE, DirectCaller

SCHEMA = """
CREATE DOMAIN code AS varchar(9);
CREATE TYPE mood AS ENUM ('fine', 'süß');
CREATE TABLE kinds (id bigint PRIMARY KEY, few int2, flag boolean, price numeric, ratio float8, small float4,
    name text, note varchar(400), code code, mood mood, day date, at timestamptz, "then" timestamp, clock time,
    span interval, key uuid, place point, host inet, "say 'hi' {v0}" char(3));
INSERT INTO kinds SELECT (i - 10) * 1000000007::bigint, i, i % 3 = 0, i / 7.0, (ARRAY[0.1, 'NaN', '-Infinity',
    NULL])[i % 4 + 1]::float8, i, repeat('ü', i * 20), repeat('x', i * 20), 'c' || i, 'süß', '2026-01-01', now(),
    'infinity', '12:30', '1 day', gen_random_uuid(), '(1,2)', '127.0.0.1', 'a'
    FROM generate_series(1, 9) i;
INSERT INTO kinds (id) VALUES (9223372036854775807), (-9223372036854775808), (1), (24), (256), (65536);
CREATE TABLE docs (id int PRIMARY KEY, doc jsonb, data bytea);
INSERT INTO docs SELECT i, '[1]', 'x' FROM generate_series(1, 20) i;
CREATE TABLE bare ();
INSERT INTO bare SELECT FROM generate_series(1, 20);
CREATE TABLE turned (id int PRIMARY KEY, v int);
INSERT INTO turned SELECT i, i FROM generate_series(1, 9) i;
"""


async def found(db: DirectCaller, name: str, encodes: bool, **kwargs: Any) -> Any:
    """Find rows, packed or not."""
    state = CallState(encodes=encodes)
    return await db.dispatcher.answer(f"{name}.find", [], kwargs, ANYONE, state)


@pytest.mark.parametrize("form", ["dicts", "lists"])
@pytest.mark.parametrize("more", [{}, {"limit": 12}, {"count": "exact"}, {"order": ["-name"]}])
@pytest_twisted.ensureDeferred
async def test_packed_rows_of_each_kind_equal_those_of_the_encoder(
    db: DirectCaller, form: str, more: dict[str, Any]
) -> None:
    """The bytes equal those of the encoder, also of the other parts of the result."""
    packed = await found(db, "kinds", True, form=form, **more)
    plain = await found(db, "kinds", False, form=form, **more)
    assert isinstance(packed["rows"], Encoded)
    assert packed["rows"].data == cbor2.dumps(plain["rows"])
    assert packed | {"rows": None} == plain | {"rows": None}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bare", {}),
        ("docs", {}),
        ("docs", {"select": ["id", "data"]}),
        ("kinds", {"form": "json"}),
        ("kinds", {"limit": 1}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_other_rows_are_not_packed(
    db: DirectCaller, name: str, options: dict[str, Any]
) -> None:
    """Documents, binary values, JSON text, and rows too few to save time."""
    assert await found(db, name, True, **options) == await found(db, name, False, **options)


@pytest_twisted.ensureDeferred
async def test_column_whose_type_has_changed_is_packed_by_its_new_type(
    db: DirectCaller, dsn: str
) -> None:
    """By the types in PostgreSQL's result, because the catalog may be old."""
    execute(dsn, "ALTER TABLE turned ALTER v TYPE text USING 't' || v")
    packed = await found(db, "turned", True)
    execute(dsn, "ALTER TABLE turned ALTER v TYPE int USING id")
    assert cbor2.loads(packed["rows"].data)[0] == {"id": 1, "v": "t1"}


@pytest.mark.serving(max_bytes=1000)
@pytest_twisted.ensureDeferred
async def test_packed_rows_that_are_too_large_are_refused(db: DirectCaller) -> None:
    with pytest.raises(TooLarge):
        await found(db, "kinds", True)
