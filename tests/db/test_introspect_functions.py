"""Functions in the catalog."""

from __future__ import annotations

import time

import pytest
from psycopg2.extensions import connection

from service.catalog import Argument, Catalog
from service.db.introspect import catalog_txn
from service.errors import NoSuchProcedure
from tests.conftest import execute

SCHEMA = """
CREATE EXTENSION hstore;
CREATE SCHEMA app;
CREATE SCHEMA away;
CREATE TYPE away.pair AS (x int, y text);
CREATE TABLE people (id int PRIMARY KEY, name text, secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION add(a text, b text, c text DEFAULT '') RETURNS text STABLE
    LANGUAGE sql AS 'SELECT a || b || c';
COMMENT ON FUNCTION add(int, int) IS E'The sum.\\n@tracked';
CREATE FUNCTION hushed() RETURNS int LANGUAGE sql AS 'SELECT 1';
COMMENT ON FUNCTION hushed() IS '@hidden';
CREATE FUNCTION parts(INOUT x int, OUT y int, VARIADIC z int[] DEFAULT '{}')
    LANGUAGE sql AS 'SELECT x, 2';
CREATE FUNCTION rows_of(n int) RETURNS TABLE (a int, b away.pair) ROWS 1
    LANGUAGE sql AS 'SELECT n, NULL::away.pair';
CREATE FUNCTION everyone() RETURNS SETOF people LANGUAGE sql AS 'SELECT * FROM people';
CREATE FUNCTION unnamed(int, text) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE work(a int, INOUT b int DEFAULT 5) LANGUAGE plpgsql AS 'BEGIN b := a; END';
CREATE FUNCTION noticed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION told() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE FUNCTION raw(internal) RETURNS int LANGUAGE internal AS 'int4pl';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE TABLE vault (id int);
COMMENT ON TABLE vault IS '@hidden';
CREATE FUNCTION leak() RETURNS SETOF vault LANGUAGE sql AS 'SELECT * FROM vault';
CREATE FUNCTION leak_one(vault) RETURNS int LANGUAGE sql AS 'SELECT $1.id';
CREATE FUNCTION forbidden() RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE EXECUTE ON FUNCTION forbidden() FROM public;
CREATE FUNCTION app."odd ""%name"("a ""%s" int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION away.elsewhere() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""


@pytest.fixture(scope="module")
def catalog(connected: connection) -> Catalog:
    return catalog_txn(connected, ("public", "app"), 1)


def test_hidden_functions_and_functions_of_extensions_are_not_served(catalog: Catalog) -> None:
    """Nor are trigger functions, aggregates and functions of other schemas."""
    assert {name: len(found) for (_, name), found in catalog.functions.items()} == {
        "add": 2,
        "everyone": 1,
        "forbidden": 1,
        'odd "%name': 1,
        "parts": 1,
        "rows_of": 1,
        "unnamed": 1,
        "work": 1,
    }
    assert ("app", 'odd "%name') in catalog.functions


def test_arguments_of_a_function_are_as_declared(catalog: Catalog) -> None:
    """Names, types, modes and defaults."""
    (plain, texts) = catalog.function("public", "add")
    assert plain.arguments == (Argument("a", 23), Argument("b", 23, has_default=True))
    assert (plain.volatility, plain.reads, plain.result) == ("immutable", True, 23)
    assert plain.comment == "The sum."
    assert [each.has_default for each in texts.inputs] == [False, False, True]
    (parts,) = catalog.function("public", "parts")
    assert parts.arguments == (
        Argument("x", 23, "inout"),
        Argument("y", 23, "out"),
        Argument("z", 1007, "variadic", True),
    )
    assert parts.outputs == (("x", 23), ("y", 23))
    (unnamed,) = catalog.function("public", "unnamed")
    assert [each.name for each in unnamed.inputs] == ["", ""]
    assert unnamed.unnamed == 2


def test_results_of_a_function_have_known_types(catalog: Catalog) -> None:
    """Sets, tables and types of other schemas."""
    (rows_of,) = catalog.function("public", "rows_of")
    assert rows_of.many
    assert rows_of.single
    (_, (name, pair)) = rows_of.outputs
    assert (name, catalog.type(pair).sql) == ("b", "away.pair")
    (everyone,) = catalog.function("public", "everyone")
    assert catalog.type(everyone.result).name == "people"
    assert not everyone.single
    (work,) = catalog.function("public", "work")
    assert (work.procedure, work.reads, work.outputs) == (True, False, (("b", 23),))
    assert [each.has_default for each in work.inputs] == [False, True]


def test_function_that_is_unknown_is_refused_with_the_nearest(catalog: Catalog) -> None:
    with pytest.raises(NoSuchProcedure) as refused:
        catalog.function("public", "evryone")
    assert refused.value.details["hint"] == 'did you mean "everyone"?'


def test_function_without_execute_right_is_omitted(connected: connection) -> None:
    execute(connected.dsn, "CREATE ROLE nobody_special")
    try:
        with connected.cursor() as cursor:
            cursor.execute("SET ROLE nobody_special")
        catalog = catalog_txn(connected, ("public",), 1)
    finally:
        with connected.cursor() as cursor:
            cursor.execute("RESET ROLE; DROP ROLE nobody_special")
    assert ("public", "add") in catalog.functions
    assert ("public", "forbidden") not in catalog.functions


def test_catalog_of_a_thousand_functions_is_read_in_seconds(
    dsn: str, connected: connection
) -> None:
    """They are read in one statement."""
    execute(
        dsn,
        "CREATE SCHEMA many; DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format("
        "'CREATE FUNCTION many.f%s(a int, b text DEFAULT NULL) RETURNS int LANGUAGE sql AS"
        " ''SELECT 1''', i); END LOOP; END $$",
    )
    begun = time.perf_counter()
    catalog = catalog_txn(connected, ("many",), 1)
    assert len(catalog.functions) == 1000
    assert time.perf_counter() - begun < 2
