"""Images of rows in the change log, read for every type: they equal the row that `find` returns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schema.changes import install
from service.catalog import Relation
from service.changes.images import ImageReader, UnconvertibleValue, image_reader
from service.changes.net import parse_image
from service.plan.plans import Bound
from tests.amounts import amount
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller
from tests.db.test_values import PROPERTIES, ROUND
from tests.db.test_values import SCHEMA as TYPES

SCHEMA = f"""
{TYPES}
CREATE EXTENSION hstore;
CREATE DOMAIN never AS int NOT NULL;
CREATE TYPE "Temp" AS RANGE (subtype = interval);
CREATE TYPE inner_ AS (n numeric, j jsonb, h hstore);
CREATE TYPE odd AS (i inner_, k kept, "Temp" "Temp"[], z bytea[]);
CREATE TYPE shown;
CREATE FUNCTION shown_in(cstring) RETURNS shown LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION shown_out(shown) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE shown (INPUT = shown_in, OUTPUT = shown_out, LIKE = text);
CREATE FUNCTION to_shape(shown) RETURNS json LANGUAGE sql IMMUTABLE AS 'SELECT ''{{"type": 1}}''::json';
CREATE CAST (shown AS json) WITH FUNCTION to_shape(shown);
{install()}
"""

MORE: dict[str, list[str]] = {
    "numeric": ["'1E+5'", "'1e-20'", "'-Infinity'", "repeat('9', 5000)::numeric", "'0.000'"],
    "numeric(12,4)": ["12.5", "1e3"],
    "float8": ["'-0'", "1e22", "1", "123456789012345678"],
    "int8": ["9223372036854775807"],
    "hstore": ['\'a=>1, b=>NULL, "c d"=>""\'', "''"],
    "hstore[]": ["ARRAY['a=>\"1,2\"'::hstore, NULL]"],
    "never": ["5"],
    "odd": [
        "ROW(ROW(1.50, '{\"$number\": \"1\"}', 'a=>1'), ROW(1, 'hidden', 'seen'),"
        " ARRAY['[1 day,1 mon)'::\"Temp\"], ARRAY['\\x00'::bytea, NULL])",
        "ROW(NULL, NULL, NULL, NULL)",
    ],
    "kept": ["ROW(1, 'hidden', 'seen')"],
    "kept[]": ["ARRAY[ROW(1, 'hidden', 'seen')::kept, NULL]"],
    '"Temp"': ["'[1 day 02:03:04,3 years)'"],
    "tstzmultirange": ["'{[2026-01-01 00:00+02,2026-01-02 00:00+02)}'"],
    "int4[]": ["'[2:3]={1,2}'", "'[0:0][2:3]={{1,2}}'"],
    "box[]": ["'[0:1]={(3,4),(1,2);(1,1),(0,0)}'"],
    "json": [
        "'\"a\\u0000b\\ud800\\ud83d\\ude97\"'",
        '\'{"\\u0000": ["\\u0000"]}\'',
        '\'{"a": 1,  "a": 2}\'',
        "'[-0, 1.0, 1e22, 0.30000000000000004, 9223372036854775808]'",
        "'null'",
    ],
    "jsonb": [
        "'[1e400, 1.5e3]'",
        "('[' || repeat('9', 5000) || ']')::jsonb",
        '\'{"$value": {"$value": 123456789012345678901}}\'',
        '\'[{"$number": "5"}, {"$number": "x"}, {"$value": 1}, {"a": 1, "$number": "1"}]\'',
        "repeat('[', 100)::text || repeat(']', 100)",
    ],
    "json[]": ["ARRAY['[1, [2.50]]'::json, '{\"a\": 12345678901234567890}', NULL]"],
    "interval": ["'1 year -2 mons 3 days -04:05:06.789'", "'-infinity'", "'0'", "'-1 day'"],
    "bpchar(5)": ["'ab'"],
    "xid8": ["'123456789012'"],
    "tid": ["'(1,2)'"],
    "timetz": ["'14:03:00.5-03:30'"],
    '"char"': ["'x'", "''"],
}

ELSEWHERE = {"int2vector", "oidvector"}
"""Arrays in JSON, and text on the wire: rows with one are to be read by their key."""


NUMBERS = itertools.count()


class Tracking:
    """Creates tracked tables, and reads their rows by `find` and from the log."""

    def __init__(self, db: DirectCaller, dsn: str) -> None:
        self.db = db
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True

    def run(self, sql: str, *values: Any) -> list[Any]:
        """Run SQL on a connection of its own."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    async def tables(self, *declared: str) -> list[str]:
        """Create and serve a table for each list of columns, beside `id`; return the names."""
        names = [f"t{next(NUMBERS)}" for _ in declared]
        for name, columns in zip(names, declared, strict=True):
            self.run(f"CREATE TABLE {name} (id int PRIMARY KEY, {columns})")
            self.run(f"SELECT rowcast.track('{name}')")
        await self.db.catch_up()
        return names

    def reader(self, name: str) -> ImageReader:
        """Return the reader of a table's images, for all of its columns."""
        catalog = self.db.dispatcher.served.catalog
        relation = catalog.relations["public", name]
        return image_reader(catalog, relation, _typed(relation, relation.columns))

    def image(self) -> dict[str, Any]:
        """Return the newest image in the log."""
        ((text,),) = self.run(
            "SELECT coalesce(new, old)::text FROM rowcast.log ORDER BY seq DESC LIMIT 1"
        )
        return parse_image(text)


@pytest.fixture
def tracking(db: DirectCaller, dsn: str) -> Any:
    made = Tracking(db, dsn)
    yield made
    made.connection.close()


def _typed(relation: Relation, names: Iterable[str]) -> frozenset[tuple[str, int]]:
    return frozenset((name, relation.columns[name].type) for name in names)


def _parameter(db: DirectCaller, name: str, value: Any) -> tuple[str, str]:
    """Return the type of a column, and a value of it as SQL that has one parameter."""
    catalog, codec = db.dispatcher.served.catalog, db.dispatcher.served.codec
    found = catalog.types_by_name.get(name) or catalog.type_named(name)
    (text,) = codec.parameters([Bound(0, found, "value")], [value])
    return found.sql, text


def _examples(values: st.SearchStrategy[Any]) -> list[Any]:
    found: list[Any] = []

    @settings(
        max_examples=amount(10, 40),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(values)
    def draw(value: Any) -> None:
        found.append(value)

    draw()
    return found


@pytest_twisted.ensureDeferred
async def test_image_of_any_type_is_the_row_that_find_returns(tracking: Tracking) -> None:
    db = tracking.db
    names = [name for name, values in ROUND.items() if values and name not in ELSEWHERE]
    types = [_parameter(db, name, None)[0] for name in names]
    tables = await tracking.tables(*(f"v {sql}" for sql in types))
    for name, sql, table in zip(names, types, tables, strict=True):
        for at, value in enumerate(ROUND[name]):
            _, text = _parameter(db, name, value)
            tracking.run(f"INSERT INTO {table} VALUES (%s, CAST(%s AS {sql}))", at, text)
            row = tracking.reader(table).row(tracking.image())
            assert repr(row) == repr(await db.call(f"{table}.get", at)), name


@pytest_twisted.ensureDeferred
async def test_image_of_an_odd_value_is_the_row_that_find_returns(tracking: Tracking) -> None:
    tables = await tracking.tables(*(f"v {name}" for name in MORE))
    for (name, values), table in zip(MORE.items(), tables, strict=True):
        for at, value in enumerate(values):
            tracking.run(f"INSERT INTO {table} VALUES ({at}, CAST({value} AS {name}))")
            row = tracking.reader(table).row(tracking.image())
            found = await tracking.db.call(f"{table}.get", at)
            # JSON loses the sign of a float's zero.
            assert repr(row).replace("-0.0", "0.0") == repr(found).replace("-0.0", "0.0"), value


@pytest_twisted.ensureDeferred
async def test_image_of_any_value_is_the_row_that_find_returns(tracking: Tracking) -> None:
    db = tracking.db
    types = [_parameter(db, name, None)[0] for name, _ in PROPERTIES]
    tables = await tracking.tables(*(f"v {sql}" for sql in types))
    for (name, values), sql, table in zip(PROPERTIES, types, tables, strict=True):
        images = []
        for at, value in enumerate(_examples(values)):
            _, text = _parameter(db, name, value)
            tracking.run(f"INSERT INTO {table} VALUES (%s, CAST(%s AS {sql}))", at, text)
            images.append(tracking.image())
        reader = tracking.reader(table)
        found = await db.call(f"{table}.find", order=["id"])
        assert [reader.row(image) for image in images] == found["rows"], name


@pytest_twisted.ensureDeferred
async def test_value_that_an_image_does_not_have_exactly_is_not_guessed(
    tracking: Tracking,
) -> None:
    tracking.run("CREATE TABLE seen (id int)")
    cases = (
        ("shown", "'x'"),
        ("regclass", "'seen'"),
        ("int2vector", "'1 2'"),
        ("jsonb", "(repeat('[', 101) || repeat(']', 101))::jsonb"),
        ("shown[]", "ARRAY['x'::shown]"),
    )
    tables = await tracking.tables(*(f"v {declared}" for declared, _ in cases))
    for table, (_, value) in zip(tables, cases, strict=True):
        tracking.run(f"INSERT INTO {table} VALUES (1, {value})")
        with pytest.raises(UnconvertibleValue):
            tracking.reader(table).row(tracking.image())


@pytest_twisted.ensureDeferred
async def test_value_of_a_column_whose_type_has_changed_is_not_misread(
    tracking: Tracking,
) -> None:
    cases = (
        ("text", "'a'", "int", "1"),
        ("int", "1", "text", "v::text"),
        ("jsonb", "'1e308'", "int", "1"),
        ("json", "'1e999999999999'", "numeric", "1"),
        ("json", "'1e99999999999999999999'", "float8", "1"),
        ("text", "'\\xzz'", "bytea", "''"),
        ("boolean", "true", "numeric", "1"),
        ("boolean", "true", "int", "1"),
        ("text", "'x'", "interval", "'0'"),
        ("text", "'x'", "float8", "1"),
        ("int", "1", "boolean", "true"),
        ("int", "1", "int[]", "'{1}'"),
        ("int", "1", "pair", "NULL"),
        ("jsonb", "'{\"a\": 1}'", "pair", "NULL"),
        ("int", "1", "hstore", "NULL"),
    )
    tables = await tracking.tables(*(f"v {before}" for before, *_ in cases))
    images = []
    for table, (_, value, after, using) in zip(tables, cases, strict=True):
        tracking.run(f"INSERT INTO {table} VALUES (1, {value})")
        images.append(tracking.image())
        tracking.run(f"ALTER TABLE {table} ALTER v TYPE {after} USING {using}")
    await tracking.db.catch_up()
    for table, image, case in zip(tables, images, cases, strict=True):
        with pytest.raises(UnconvertibleValue):
            pytest.fail(f"{case}: {tracking.reader(table).row(image)}")


@pytest_twisted.ensureDeferred
async def test_hidden_virtual_and_unknown_columns_are_not_in_the_row(tracking: Tracking) -> None:
    (table,) = await tracking.tables(
        "secret text, a int, b int GENERATED ALWAYS AS (a * 2) VIRTUAL"
    )
    execute(tracking.connection.dsn, f"COMMENT ON COLUMN {table}.secret IS '@hidden'")
    await tracking.db.catch_up()
    tracking.run(f"INSERT INTO {table} VALUES (1, 'x', 2)")
    image = tracking.image()
    assert image["secret"] == "x"
    assert tracking.reader(table).row(image) == {"id": 1, "a": 2}
    tracking.run(f"ALTER TABLE {table} RENAME a TO c")
    await tracking.db.catch_up()
    assert tracking.reader(table).row(image) == {"id": 1}, "a renamed column"
    tracking.run(f"ALTER TABLE {table} ADD d int DEFAULT 5")
    tracking.run(f"UPDATE {table} SET c = 3")
    newer = tracking.image()
    assert tracking.reader(table).row(newer) == {"id": 1, "c": 3}, "a catalog that is behind"
    await tracking.db.catch_up()
    assert tracking.reader(table).row(newer) == {"id": 1, "c": 3, "d": 5}
    tracking.run(f"ALTER TABLE {table} DROP c CASCADE")
    await tracking.db.catch_up()
    assert tracking.reader(table).row(newer) == {"id": 1, "d": 5}, "a dropped column"


@pytest_twisted.ensureDeferred
async def test_row_has_only_the_readable_columns(tracking: Tracking) -> None:
    (table,) = await tracking.tables("a int, b int")
    tracking.run(f"INSERT INTO {table} VALUES (1, 2, 3)")
    catalog = tracking.db.dispatcher.served.catalog
    relation = catalog.relations["public", table]
    cut = image_reader(catalog, relation, _typed(relation, ["id", "b"]))
    assert cut.row(tracking.image()) == {"id": 1, "b": 3}


@pytest_twisted.ensureDeferred
async def test_column_that_differs_from_the_catalog_is_not_read(tracking: Tracking) -> None:
    (table,) = await tracking.tables("a int, b int")
    tracking.run(f"INSERT INTO {table} VALUES (1, NULL, 3)")
    catalog = tracking.db.dispatcher.served.catalog
    relation = catalog.relations["public", table]
    typed, image = _typed(relation, ["id", "b"]), tracking.image()
    for more in ("c", 23), ("b", 25):
        behind = image_reader(
            catalog, relation, frozenset({**dict(typed), more[0]: more[1]}.items())
        )
        with pytest.raises(UnconvertibleValue):
            behind.row({"id": 1, "b": 3, "c": 4})
        assert behind.row({**image, more[0]: None})[more[0]] is None
