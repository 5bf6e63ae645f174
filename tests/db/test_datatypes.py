"""The table of types agrees with PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from jsonschema import Draft202012Validator

from service.catalog import Catalog, Type
from service.datatypes import FORMS, TYPES, DataType
from service.db.codec import PYTHON_READERS, READERS, Codec
from service.db.encode import WRITERS
from service.db.introspect import catalog_txn
from tests.conftest import execute
from tests.db.test_values import OPTIONS, ROUND

FORMS_OF_STRINGS = {"string": "S", "number": "N", "decimal": "N", "float": "N", "integer": "N"}
EXTENSIONS = [name for name, each in TYPES.items() if each.extension]
VALUES: dict[str, list[Any]] = {
    **ROUND,
    "float4": [1.0],
    "float8": [1.0],
    "json": [{"a": [1, None]}],
    "jsonb": [{"a": [1, None]}],
    "hstore": [{"a": "1", "b": None}],
    "timestamptz": ["2026-11-21T14:03:00.25Z"],
}
"""By type."""


class Server:
    """A connection whose rows are in wire form."""

    def __init__(self, connection: Any) -> None:
        self.catalog: Catalog = catalog_txn(connection, ("public",), 1)
        self.codec = Codec(self.catalog)
        self._cursor = connection.cursor()
        self.codec.install(self._cursor)

    def row(self, sql: str, *parameters: Any) -> Any:
        """Return the single row of a query."""
        self._cursor.execute(sql, parameters)
        return self._cursor.fetchone()

    def type(self, name: str) -> Type:
        """Return a type, whether callers may cast to it or not."""
        return self.catalog.types_by_name[name]


@pytest.fixture(scope="module")
def server(dsn: str) -> Iterator[Server]:
    for name in EXTENSIONS:
        execute(dsn, f"CREATE EXTENSION {name}")
    execute(dsn, "CREATE TABLE limited (varchar varchar(5), bpchar char(5))")
    connection = psycopg2.connect(dsn, options=OPTIONS)
    connection.autocommit = True
    yield Server(connection)
    connection.close()


def rows(*forms: str) -> list[DataType]:
    """Return the rows with sample values, of all forms or of some."""
    return [each for each in TYPES.values() if not forms or each.form in forms]


@pytest.mark.parametrize("name", TYPES)
def test_form_of_a_type_agrees_with_its_category(server: Server, name: str) -> None:
    sql = "SELECT typcategory, typnamespace = 'pg_catalog'::regnamespace FROM pg_type WHERE typname = %s"
    category, built_in = server.row(sql, name)
    wanted = FORMS_OF_STRINGS.get(TYPES[name].form)
    form = f'{name} has the form "{TYPES[name].form}" and the category {category}'
    assert (category == wanted) if wanted else category not in "SN", form
    assert built_in is not TYPES[name].extension


@pytest.mark.parametrize("name", [each.name for each in rows("integer", "decimal", "float")])
def test_sum_and_average_have_the_types_that_postgresql_gives(server: Server, name: str) -> None:
    if name == "oid":  # for which there is no sample
        return
    of = server.type(name)
    found = server.row(
        f"SELECT pg_typeof(sum(x))::oid, pg_typeof(avg(x))::oid FROM (SELECT NULL::{of.sql} AS x) t"
    )
    stated = [TYPES[name].sum or name, TYPES[name].average or name]
    assert [server.catalog.type(oid).name for oid in found] == stated


@pytest.mark.parametrize("name", [name for name in TYPES if name in VALUES])
def test_native_json_is_what_to_json_writes(server: Server, name: str) -> None:
    type = server.type(name)
    alike = []
    for value in VALUES[name]:
        text = server.codec.encode(type, value, "value")
        sql = f"SELECT CAST(%s AS {type.sql}), to_json(CAST(%s AS {type.sql}))::text"
        read, written = server.row(sql, text, text)
        shown = json.loads(written) if written else None
        alike.append((repr(read), read.__class__) == (repr(shown), shown.__class__))
    assert all(alike) is TYPES[name].native_json


@pytest.mark.parametrize("name", [name for name in TYPES if name in VALUES])
def test_values_of_any_type_fit_their_schemas(server: Server, name: str) -> None:
    type = server.type(name)
    for value in VALUES[name]:
        if value is not None and not isinstance(value, bytes):
            Draft202012Validator(TYPES[name].given).validate(value)
            text = server.codec.encode(type, value, "value")
            (read,) = server.row(f"SELECT CAST(%s AS {type.sql})", text)
            Draft202012Validator(TYPES[name].schema).validate(read)


@pytest.mark.parametrize("name", ["varchar", "bpchar"])
def test_modifier_of_a_bounded_type_is_its_length_and_four(server: Server, name: str) -> None:
    (modifier,) = server.row(
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'limited'::regclass AND attname = %s",
        name,
    )
    assert TYPES[name].max_length
    assert modifier == 9


def test_functions_of_forms_have_known_names() -> None:
    assert {*READERS, *WRITERS, *PYTHON_READERS} <= FORMS.keys()
    assert {each.form for each in TYPES.values()} == FORMS.keys()


def test_page_of_values_has_a_type_of_each_form() -> None:
    """docs/values.md describes each form that is not PostgreSQL's text."""
    page = (Path(__file__).parents[2] / "docs" / "values.md").read_text("utf-8")
    for form in FORMS.keys() - {"text"}:
        names = {each for row in rows(form) for each in (row.name, *row.aliases)}
        assert any(f"`{name}`" in page for name in names), form


def test_type_of_an_application_with_a_known_name_is_text() -> None:
    own = Type(99999, "app", "json", "app.json", "base", "U")
    assert own.form == "text"
    assert not own.data_type.castable


def test_extension_type_is_known_in_any_schema() -> None:
    assert Type(99999, "ext", "hstore", "ext.hstore", "base", "U").form == "hstore"
