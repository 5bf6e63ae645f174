"""
Each error of PostgreSQL becomes one of the service's errors, without data that the caller may not read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection
from twisted.internet.defer import CancelledError

from service.catalog import Catalog
from service.db.error_paths import annotate_position
from service.db.introspect import catalog_txn
from service.db.sqlstate import refusal
from service.errors import (
    Canceled,
    CheckViolation,
    Conflict,
    DatabaseRefused,
    ExclusionViolation,
    ForeignKeyViolation,
    InvalidArgument,
    NotAuthorized,
    NotFound,
    NotNullViolation,
    Raised,
    ServiceError,
    StatementTimeout,
    Unavailable,
    UniqueViolation,
)
from service.plan.plans import Bound
from service.sql.statement import Statement
from tests.conftest import execute

SCHEMA = r"""
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN positive AS int CONSTRAINT above_zero CHECK (VALUE > 0);
CREATE TABLE makers (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE cars (
    id int PRIMARY KEY,
    maker_id int REFERENCES makers,
    plate varchar(5) NOT NULL DEFAULT 'x',
    price numeric(5, 2) CONSTRAINT dear CHECK (price > 1),
    kept int4range, CONSTRAINT apart EXCLUDE USING gist (kept WITH &&),
    mood mood,
    doc json,
    n positive,
    many positive[],
    flags bit(4) DEFAULT '0000',
    marks bit(4) DEFAULT '0000',
    secret text NOT NULL DEFAULT 'shh' UNIQUE,
    code text
);
COMMENT ON COLUMN cars.secret IS '@hidden';
ALTER TABLE cars ALTER secret SET DEFAULT gen_random_uuid()::text;
CREATE UNIQUE INDEX folded ON cars (lower(code));
CREATE TABLE hushed (id int PRIMARY KEY, maker_id int CONSTRAINT hushed_maker REFERENCES makers);
COMMENT ON TABLE hushed IS '@hidden';
CREATE TABLE parts (id int, day date) PARTITION BY RANGE (day);
CREATE VIEW cheap AS SELECT id, price FROM cars WHERE price < 10 WITH CHECK OPTION;
CREATE FUNCTION fail(code text, words text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION USING
       errcode = code, message = words, detail = 'why', hint = 'how'; END $$;
CREATE FUNCTION broken() RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN PERFORM * FROM not_there_at_all; RETURN 1; END $$;
INSERT INTO makers VALUES (1, 'one'), (2, 'two'), (3, 'three');
INSERT INTO cars (id, maker_id, kept, secret, code) VALUES (1, 1, '[1,5)', 'top', 'A');
INSERT INTO hushed VALUES (1, 2);
CREATE EXTENSION dblink;
CREATE FUNCTION afar(code text) RETURNS int LANGUAGE sql AS
    $$ SELECT n FROM dblink(
       format('dbname=%s host=%s user=%s', current_database(),
              current_setting('unix_socket_directories'), current_user),
       format('SELECT fail(%L, ''x'')', code)) AS t(n int) $$;
CREATE ROLE nobody_here;
GRANT USAGE ON SCHEMA public TO nobody_here;
"""


@pytest.fixture(scope="module")
def connected(connected: connection, dsn: str) -> Iterator[connection]:
    """Drop the role of the tests afterwards."""
    yield connected
    execute(dsn, "DROP OWNED BY nobody_here; DROP ROLE nobody_here")


@pytest.fixture(scope="module")
def catalog(connected: connection) -> Catalog:
    return catalog_txn(connected, ("public",), 1)


@contextlib.contextmanager
def restored(connected: connection) -> Iterator[None]:
    """Restore the session if it is still open."""
    yield
    if not connected.closed:
        with connected.cursor() as cursor:
            cursor.execute("ROLLBACK")
            cursor.execute("RESET ROLE; RESET statement_timeout")


def refused(
    connected: connection,
    catalog: Catalog,
    text: str,
    values: Sequence[tuple[str, str, str | None]] = (),
    relation: str | None = None,
) -> Any:
    """Run a statement, and return the service's error for PostgreSQL's error."""
    bounds = tuple(
        Bound(slot, catalog.types_by_name[type], path)
        for slot, (path, type, _) in enumerate(values)
    )
    with connected.cursor() as cursor, restored(connected):
        try:
            cursor.execute(text, [value for *_, value in values])
        except psycopg2.Error as error:
            annotate_position(error, Statement(text, bounds, "test"))
            of = catalog.relation("public", relation) if relation else None
            return refusal(error, catalog, of)
    raise AssertionError("it was not refused")


OPERANDS: list[tuple[str, list[tuple[str, str, str | None]], str, dict[str, Any]]] = [
    (
        "SELECT CAST(%s AS text), CAST(%s AS int)",
        [("a", "text", "it's %s 'quoted'"), ("where.n.eq", "int4", "x")],
        'invalid input syntax for type integer: "x"',
        {"path": "where.n.eq", "sqlstate": "22P02"},
    ),
    (
        "BEGIN; SELECT '%%', CAST(%s AS int), CAST(%s AS int)",
        [("a", "int4", None), ("b", "int4", "99999999999")],
        "out of range",
        {"path": "b", "sqlstate": "22003"},
    ),
    (
        "INSERT INTO cars (id, kept) VALUES (%s, '[9,9]'), (%s, %s)",
        [
            ("values.0.id", "int4", "8"),
            ("values.1.id", "int4", "9"),
            ("values.1.kept", "int4range", "[5,1)"),
        ],
        "range lower bound",
        {"path": "values.1.kept", "sqlstate": "22000", "column": "kept"},
    ),
    (
        "SELECT CAST(%s AS mood)",
        [("where.mood.eq", "public.mood", "hapy")],
        "invalid input value for enum",
        {"path": "where.mood.eq", "hint": 'did you mean "happy"?', "column": None},
    ),
    ("SELECT CAST(%s AS date)", [("d", "date", "zz")], "zz", {"path": "d", "sqlstate": "22007"}),
    (
        "SELECT CAST(%s AS date)",
        [("d", "date", "2026-02-30")],
        "2026-02-30",
        {"path": "d", "sqlstate": "22008"},
    ),
    (
        "SELECT * FROM makers WHERE id = CAST(%s AS int) AND name OPERATOR(pg_catalog.~*) CAST(%s AS text)",
        [("id", "int4", "1"), ("where.name.imatch", "text", "(")],
        "invalid regular expression",
        {"path": "where.name.imatch", "sqlstate": "2201B"},
    ),
    (
        "SELECT * FROM makers WHERE name OPERATOR(pg_catalog.~) ANY(CAST(%s AS text[])) AND id = CAST(%s AS int)",
        [("where.name.match.any", "text[]", "{(}"), ("id", "int4", "1")],
        "invalid regular expression",
        {"path": "where.name.match.any"},
    ),
    (
        "SELECT to_tsquery(CAST(%s AS text)) WHERE 1 = CAST(%s AS int)",
        [("where.name.fts", "text", "a b"), ("n", "int4", "1")],
        "syntax error in tsquery",
        {"path": "where.name.fts", "sqlstate": "42601"},
    ),
    (
        "SELECT jsonb_path_query('{}', CAST(%s AS jsonpath))",
        [("p", "jsonpath", "$[")],
        "jsonpath",
        {"path": "p"},
    ),
    (
        "SELECT * FROM cars WHERE id = CAST(%s AS int) AND doc OPERATOR(pg_catalog.=) CAST(%s AS json)",
        [("where.id.eq", "int4", "1"), ("where.doc.eq", "json", "1")],
        "operator does not exist: json = json",
        {"path": "where.doc.eq", "sqlstate": "42883"},
    ),
    (
        "SELECT * FROM cars ORDER BY doc LIMIT %s",
        [("limit", "int4", "1")],
        "ordering operator for type json",
        {"path": None, "sqlstate": "42883"},
    ),
    (
        "INSERT INTO cars (id, plate) VALUES (%s, %s)",
        [("values.id", "int4", "9"), ("values.plate", "varchar", "too long")],
        "value too long for type character varying(5)",
        {"column": "plate", "path": "values.plate", "sqlstate": "22001"},
    ),
    (
        "INSERT INTO cars (id, price) VALUES (%s, %s)",
        [("values.id", "int4", "9"), ("values.price", "numeric", "12345")],
        "numeric field overflow",
        {"column": "price", "path": "values.price", "sqlstate": "22003"},
    ),
    (
        "INSERT INTO cars (id, price) VALUES (%s, %s), (%s, %s)",
        [
            ("values.0.id", "int4", "9"),
            ("values.0.price", "numeric", "Infinity"),
            ("values.1.id", "int4", "9"),
            ("values.1.price", "numeric", "3"),
        ],
        "numeric field overflow",
        {"column": "price", "path": None, "sqlstate": "22003"},
    ),
    (
        "INSERT INTO cars (id, flags) VALUES (%s, %s)",
        [("values.id", "int4", "9"), ("values.flags", "bit", "101")],
        "bit string length 3 does not match type bit(4)",
        {"column": "flags", "path": "values.flags", "sqlstate": "22026"},
    ),
    (
        "UPDATE cars SET marks = %s",
        [("changes.marks", "bit", "10101")],
        "bit string length 5 does not match type bit(4)",
        {"column": "marks", "path": "changes.marks"},
    ),
    (
        "UPDATE cars SET price = 999.99 * CAST(%s AS numeric)",
        [("where.id", "numeric", "100000")],
        "numeric field overflow",
        {"column": "price", "path": None},
    ),
    (
        "UPDATE cars SET doc = CAST(%s AS json), flags = marks || flags",
        [("changes.doc", "json", "1")],
        "does not match type bit(4)",
        {"column": None, "path": None},
    ),
    (
        "SELECT to_tsvector(CAST(%s AS regconfig), 'a')",
        [("where.name.fts.config", "regconfig", "klingon")],
        "klingon",
        {"path": "where.name.fts.config", "sqlstate": "42704"},
    ),
]


@pytest.mark.parametrize(("text", "values", "message", "details"), OPERANDS)
def test_operand_that_postgresql_refuses_has_its_path(
    connected: connection,
    catalog: Catalog,
    text: str,
    values: list[tuple[str, str, str | None]],
    message: str,
    details: dict[str, Any],
) -> None:
    """The error has the path of the operand that PostgreSQL refuses."""
    found = refused(connected, catalog, text, values, "cars")
    assert type(found) is InvalidArgument
    assert message in found.message
    assert {name: found.details.get(name) for name in details} == details


def test_values_of_rows_are_not_repeated(connected: connection, catalog: Catalog) -> None:
    """The error of a cast of a stored value does not show the value."""
    found = refused(connected, catalog, "SELECT secret::int FROM cars")
    assert type(found) is InvalidArgument
    assert found.message == "invalid input syntax for type integer"


VIOLATIONS: list[tuple[str, type[ServiceError], str, dict[str, Any]]] = [
    (
        "INSERT INTO makers VALUES (1, 'x')",
        UniqueViolation,
        'the same value of "id"',
        {
            "constraint": "makers_pkey",
            "columns": ["id"],
            "column": "id",
            "relation": "makers",
            "detail": "Key (id)=(1) already exists.",
            "sqlstate": "23505",
        },
    ),
    (
        "INSERT INTO cars (id, secret) VALUES (9, 'top')",
        UniqueViolation,
        "the same value",
        {"relation": "cars", "columns": None, "constraint": None, "detail": None},
    ),
    (
        "INSERT INTO cars (id, code) VALUES (9, 'a')",
        UniqueViolation,
        "the same value",
        {"relation": "cars", "constraint": "folded", "detail": None},
    ),
    (
        "INSERT INTO cars (id, maker_id) VALUES (9, 99)",
        ForeignKeyViolation,
        '"maker_id" refers to no row of "makers"',
        {"constraint": "cars_maker_id_fkey", "columns": ["maker_id"], "relation": "cars"},
    ),
    (
        "DELETE FROM makers WHERE id = 1",
        ForeignKeyViolation,
        'rows of "cars" still refer to it',
        {"constraint": "cars_maker_id_fkey", "columns": ["maker_id"], "relation": "cars"},
    ),
    (
        "DELETE FROM makers WHERE id = 2",
        ForeignKeyViolation,
        "a reference between rows",
        {"constraint": None, "columns": None, "relation": None, "detail": None},
    ),
    (
        "UPDATE cars SET plate = NULL",
        NotNullViolation,
        '"plate" must not be null',
        {"columns": ["plate"], "column": "plate", "relation": "cars", "detail": None},
    ),
    (
        "UPDATE cars SET secret = NULL",
        NotNullViolation,
        "a value that is required is missing",
        {"columns": None, "column": None, "detail": None},
    ),
    (
        "UPDATE cars SET price = 0.5",
        CheckViolation,
        '"price" does not satisfy a check',
        {"constraint": "dear", "columns": ["price"], "relation": "cars", "detail": None},
    ),
    (
        "SELECT (-1)::positive",
        CheckViolation,
        "does not satisfy a check",
        {"constraint": "above_zero"},
    ),
    (
        "INSERT INTO cars (id, many) VALUES (9, '{1,-1}')",
        CheckViolation,
        "does not satisfy a check",
        {"constraint": "above_zero", "relation": None},
    ),
    (
        "INSERT INTO parts VALUES (1, '2026-01-01')",
        CheckViolation,
        "no part of the relation",
        {"relation": "parts", "detail": None},
    ),
    (
        "INSERT INTO cars (id, kept) VALUES (9, '[2,3)')",
        ExclusionViolation,
        'another one in "kept"',
        {"constraint": "apart", "columns": ["kept"], "detail": None},
    ),
    (
        "INSERT INTO cheap VALUES (9, 99)",
        CheckViolation,
        "would not belong to the view",
        {"sqlstate": "44000", "detail": None},
    ),
    (
        "SELECT fail('23505', 'one is enough')",
        UniqueViolation,
        "one is enough",
        {"sqlstate": "23505", "detail": "why", "hint": "how"},
    ),
]


@pytest.mark.parametrize(("sql", "kind", "message", "details"), VIOLATIONS)
@pytest.mark.parametrize("acted_on", ["cars", "makers", None])
def test_violation_of_a_constraint_is_named_without_row_values(
    connected: connection,
    catalog: Catalog,
    sql: str,
    kind: type[ServiceError],
    message: str,
    details: dict[str, Any],
    acted_on: str | None,
) -> None:
    """The error names the constraint and its columns, but no stored values and nothing hidden."""
    found = refused(connected, catalog, sql, relation=acted_on)
    assert type(found) is kind
    assert message in found.message
    if "detail" in details and details.get("relation") not in (None, acted_on):
        details = {**details, "detail": None}  # rows of other writers are not shown
    assert {name: found.details.get(name) for name in details} == details
    assert "hushed" not in f"{found.message} {found.details}"
    assert "secret" not in found.message


def test_violation_without_a_catalog_keeps_its_kind(connected: connection) -> None:
    """Before the catalog is read, the error names nothing, but has the right class."""
    with connected.cursor() as cursor, pytest.raises(psycopg2.Error) as raised:
        cursor.execute("INSERT INTO makers VALUES (1)")
    found = refusal(raised.value)
    assert type(found) is UniqueViolation
    assert found.details == {"sqlstate": "23505"}


OTHERS: list[tuple[str, type[ServiceError], dict[str, Any]]] = [
    ("SET ROLE nobody_here; SELECT * FROM hushed", NotAuthorized, {"sqlstate": "42501"}),
    ("SELECT * FROM gone", Unavailable, {"sqlstate": "42P01", "retry": True}),
    ("SELECT gone FROM cars", Unavailable, {"sqlstate": "42703", "retry": True}),
    ("SELECT gone.cars.id FROM gone.cars", Unavailable, {"retry": True}),
    ("SELECT broken()", DatabaseRefused, {"sqlstate": "42P01", "retry": None}),
    ("SELECT gone(1)", InvalidArgument, {"sqlstate": "42883"}),
    ("SELECT fail('P0001', 'no')", Raised, {"sqlstate": "P0001", "detail": "why", "hint": "how"}),
    ("SELECT fail('PT402', 'pay')", Raised, {"sqlstate": "PT402", "detail": "why"}),
    ("SELECT fail('42501', 'not yours')", NotAuthorized, {"detail": "why", "hint": "how"}),
    ("SELECT fail('22023', 'bad')", InvalidArgument, {"detail": "why", "hint": "how"}),
    ("SELECT fail('42703', 'odd')", DatabaseRefused, {"detail": "why"}),
    ("SELECT fail('40001', 'again')", Conflict, {"retry": True}),
    ("SELECT fail('40P01', 'again')", Conflict, {"retry": True}),
    ("SELECT fail('55P03', 'locked')", Conflict, {"retry": True}),
    ("SELECT fail('P0003', 'many')", DatabaseRefused, {"sqlstate": "P0003"}),
    ("SELECT fail('XX000', 'odd')", DatabaseRefused, {"sqlstate": "XX000"}),
    ("SELECT (SELECT id FROM makers)", DatabaseRefused, {"sqlstate": "21000"}),
    ("SELECT 1/0", InvalidArgument, {"sqlstate": "22012"}),
    ("SET statement_timeout = 1; SELECT pg_sleep(9)", StatementTimeout, {"sqlstate": None}),
    ("BEGIN READ ONLY; DELETE FROM cars", Unavailable, {"sqlstate": "25006"}),
    ("SELECT afar('53300')", Unavailable, {"retry": True, "retry_after": 5.0}),
    ("SELECT afar('57P03')", Unavailable, {"retry": True, "retry_after": 2.0}),
    ("SELECT afar('08006')", Unavailable, {"retry": True}),
]


@pytest.mark.parametrize(("sql", "kind", "details"), OTHERS)
def test_error_of_any_sqlstate_has_its_refusal(
    connected: connection,
    catalog: Catalog,
    sql: str,
    kind: type[ServiceError],
    details: dict[str, Any],
) -> None:
    found = refused(connected, catalog, sql)
    assert type(found) is kind
    assert {name: found.details.get(name) for name in details} == details
    words = f"{found.message} {found.details}"
    assert "hushed" not in words
    assert "SELECT" not in words


def test_error_raised_by_a_function_has_its_message(
    connected: connection, catalog: Catalog
) -> None:
    for code in ("P0001", "PT402", "42501", "22023", "40001", "P0003"):
        assert refused(connected, catalog, f"SELECT fail('{code}', 'mine')").message == "mine"


@pytest.mark.parametrize("code", ["28000", "28P01", "57014", "57P01", "53400", "08006", "25006",
                                  "2D000", "26000", "3D000", "40003", "55006"])  # fmt: skip
def test_sqlstate_of_the_server_raised_by_a_function_is_not_retried(
    connected: connection, catalog: Catalog, code: str
) -> None:
    """Such errors say nothing about the server's state, so they are not retryable."""
    found = refused(connected, catalog, f"SELECT fail('{code}', 'mine')")
    assert type(found) is DatabaseRefused
    assert (found.message, found.details["hint"]) == ("mine", "how")
    assert "retry" not in found.details


def test_error_inside_a_function_has_no_path_of_its_argument(
    connected: connection, catalog: Catalog
) -> None:
    """An error inside a function has no path of an argument."""
    found = refused(
        connected, catalog, "SELECT broken() WHERE 1 = CAST(%s AS int)", [("a", "int4", "1")]
    )
    assert type(found) is DatabaseRefused
    assert "not_there_at_all" not in found.message


@pytest.mark.parametrize("kind", ["class", "type", "namespace", "role", "config", "proc"])
def test_invalid_name_as_value_is_an_invalid_argument(
    connected: connection, catalog: Catalog, kind: str
) -> None:
    """A value that is an invalid name is not mistaken for a change of the schema, and is not shown."""
    found = refused(connected, catalog, f"SELECT secret::reg{kind} FROM cars")
    assert type(found) is InvalidArgument
    assert "top" not in f"{found.message} {found.details}"
    found = refused(connected, catalog, f"SELECT CAST(%s AS reg{kind})", [("a", "text", "nowhere")])
    assert type(found) is InvalidArgument
    assert found.details["path"] == "a"


def test_error_in_generated_sql_is_internal(connected: connection, catalog: Catalog) -> None:
    """A syntax error in the service's own SQL is a bug, not the caller's mistake."""
    assert refused(connected, catalog, "SELEC %s", [("a", "int4", "1")]) is None


def test_wait_for_a_locked_row_is_conflict(
    connected: connection, catalog: Catalog, dsn: str
) -> None:
    """The call can be retried."""
    other = psycopg2.connect(dsn)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT * FROM makers FOR UPDATE")
            found = refused(connected, catalog, "SELECT * FROM makers FOR UPDATE NOWAIT")
    finally:
        other.close()
    assert type(found) is Conflict


def test_connection_that_is_lost_is_unavailable(dsn: str, catalog: Catalog) -> None:
    """During or before a statement; the call can be retried."""
    made = psycopg2.connect(dsn)
    found = refused(made, catalog, "SELECT pg_terminate_backend(pg_backend_pid())")
    assert type(found) is Unavailable
    with pytest.raises(psycopg2.InterfaceError) as raised:
        made.cursor()
    assert type(refusal(raised.value)) is Unavailable


def test_error_of_a_failed_connect_shows_no_host_or_user() -> None:
    with pytest.raises(psycopg2.OperationalError) as raised:
        psycopg2.connect("host=127.0.0.1 port=1 user=somebody password=pass")
    found = refusal(raised.value)
    assert type(found) is Unavailable
    words = f"{found.message} {found.details}"
    assert not any(word in words for word in ("127.0.0.1", "somebody", "pass"))


def test_error_not_from_the_database_is_not_a_database_refusal() -> None:
    """Other exceptions return None, and the service's own errors are returned unchanged."""
    mine = NotFound("cars")
    assert refusal(mine) is mine
    assert type(refusal(CancelledError())) is Canceled
    assert type(refusal(psycopg2.extensions.QueryCanceledError("stopped"))) is Canceled
    assert refusal(ValueError("x")) is None
    assert refusal(psycopg2.ProgrammingError("can't adapt")) is None


def test_error_of_another_statement_on_the_cursor_has_no_path(
    connected: connection, catalog: Catalog
) -> None:
    """If the cursor has run another statement since, the error has no path."""
    statement = Statement("SELECT %s, %s", (Bound(0, catalog.type(23), "a"),) * 2, "test")
    with connected.cursor() as cursor:
        with pytest.raises(psycopg2.Error) as raised:
            cursor.execute("SELECT CAST('x' AS int)")
        annotate_position(raised.value, statement)
    found = refusal(raised.value, catalog)
    assert found is not None
    assert "path" not in found.details
