"""
Functions and procedures through the dispatcher, compared with the results of SQL.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted

from service.errors import (
    CheckViolation,
    DatabaseRefused,
    InvalidArgument,
    NoSuchProcedure,
    OutcomeUnknown,
    Raised,
    StatementTimeout,
    TooLarge,
    TooManyRows,
    UniqueViolation,
)
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (x int, y numeric);
CREATE DOMAIN small AS int CHECK (VALUE < 10);
CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, born date, secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
INSERT INTO people VALUES (1, 'Ada', '1815-12-10', 'a'), (2, 'Bob', NULL, 'b'), (3, 'Cyd', NULL, 'c');
CREATE TABLE app.fn (id int PRIMARY KEY);
INSERT INTO app.fn VALUES (7);

CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION add(a text, b text, c text) RETURNS text IMMUTABLE
    LANGUAGE sql AS 'SELECT a || b || c';
CREATE FUNCTION price(n numeric) RETURNS numeric IMMUTABLE LANGUAGE sql AS 'SELECT n * 1.50';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION nulled() RETURNS int LANGUAGE sql AS 'SELECT NULL::int';
CREATE FUNCTION one_out(n int, OUT twice int) LANGUAGE sql AS 'SELECT n * 2';
CREATE FUNCTION outs(INOUT a int, OUT b text, OUT c date) LANGUAGE sql
    AS $$SELECT a + 1, 'b', '2026-01-01'::date$$;
CREATE FUNCTION numbers(n int) RETURNS SETOF int IMMUTABLE
    LANGUAGE sql AS 'SELECT generate_series(1, n)';
CREATE FUNCTION table_of(n int) RETURNS TABLE (a int, "b ""%s" numeric) STABLE
    LANGUAGE sql AS 'SELECT i, i * 1.5 FROM generate_series(1, n) i';
CREATE FUNCTION set_of_out(n int, OUT v int) RETURNS SETOF int
    LANGUAGE sql AS 'SELECT generate_series(1, n)';
CREATE FUNCTION everyone() RETURNS SETOF people STABLE
    LANGUAGE sql AS 'SELECT * FROM people ORDER BY id';
CREATE FUNCTION person(key int) RETURNS people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE id = key';
CREATE FUNCTION pair(p pair) RETURNS pair IMMUTABLE
    LANGUAGE sql AS 'SELECT (p.x + 1, p.y)::pair';
CREATE FUNCTION record_of() RETURNS record LANGUAGE sql AS $$SELECT 1 AS a, 'x'::text AS b$$;
CREATE FUNCTION unnamed() RETURNS record LANGUAGE sql AS 'SELECT 1, 2';
CREATE FUNCTION doubled() RETURNS SETOF record
    LANGUAGE sql AS $$SELECT 1 AS a, '{"k": 1, "k": 2}'::json AS b UNION ALL SELECT 2, NULL$$;
CREATE FUNCTION no_record() RETURNS record LANGUAGE sql AS 'SELECT 1, 2 WHERE false';
CREATE FUNCTION records_of() RETURNS SETOF record
    LANGUAGE sql AS $$SELECT 1 AS a, 'x'::text AS b UNION ALL SELECT 2, 'y'$$;
CREATE FUNCTION same(v anyelement) RETURNS anyelement IMMUTABLE LANGUAGE sql AS 'SELECT v';
CREATE FUNCTION first_of(v anyarray, otherwise anyelement) RETURNS anyelement IMMUTABLE
    LANGUAGE sql AS 'SELECT coalesce(v[1], otherwise)';
CREATE FUNCTION type_of(v anyelement) RETURNS text IMMUTABLE
    LANGUAGE sql AS 'SELECT pg_typeof(v)::text';
CREATE FUNCTION joined(sep text, VARIADIC parts text[] DEFAULT '{}') RETURNS text IMMUTABLE
    LANGUAGE sql AS 'SELECT array_to_string(parts, sep)';
CREATE FUNCTION padded(a int DEFAULT 1, b int DEFAULT 2, VARIADIC v text[] DEFAULT '{x}')
    RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT a || ' ' || b || ' ' || array_to_string(v, ' ')$$;
CREATE FUNCTION any_count(VARIADIC v anyarray) RETURNS int IMMUTABLE
    LANGUAGE sql AS 'SELECT cardinality(v)';
CREATE FUNCTION echo(json) RETURNS json IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION echo_b(jsonb) RETURNS jsonb IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION size_of(bytea) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT length($1)';
CREATE FUNCTION kind(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'text'$$;
CREATE FUNCTION kind(jsonb) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'jsonb'$$;
CREATE FUNCTION kind(bytea) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT 'bytea'$$;
CREATE FUNCTION minus(int, b int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 - b';
CREATE FUNCTION clash(timeout int, form text, args text) RETURNS text IMMUTABLE
    LANGUAGE sql AS $$SELECT timeout || form || args$$;
CREATE FUNCTION twin(a int) RETURNS text LANGUAGE sql AS $$SELECT 'int'$$;
CREATE FUNCTION twin(a text) RETURNS text LANGUAGE sql AS $$SELECT 'text'$$;
CREATE FUNCTION either(a int, b text) RETURNS text LANGUAGE sql AS $$SELECT 'it'$$;
CREATE FUNCTION either(a text, b int) RETURNS text LANGUAGE sql AS $$SELECT 'ti'$$;
CREATE FUNCTION either(a date, b int) RETURNS text LANGUAGE sql AS $$SELECT 'di'$$;
CREATE FUNCTION either(a int[], b jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'Ij'$$;
CREATE FUNCTION either(a text[], b jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'Tj'$$;
CREATE FUNCTION either(a jsonb, b pair) RETURNS text LANGUAGE sql AS $$SELECT 'jp'$$;
CREATE FUNCTION unlike(a int) RETURNS text LANGUAGE sql AS $$SELECT 'int'$$;
CREATE FUNCTION unlike(a date) RETURNS text LANGUAGE sql AS $$SELECT 'date'$$;
CREATE FUNCTION unlike(a json) RETURNS text LANGUAGE sql AS $$SELECT 'json'$$;
CREATE FUNCTION unlike(a jsonb) RETURNS text LANGUAGE sql AS $$SELECT 'jsonb'$$;
CREATE FUNCTION moody(m mood, s small DEFAULT 3) RETURNS mood IMMUTABLE LANGUAGE sql
    AS 'SELECT m WHERE s IS NOT NULL';
CREATE FUNCTION app."odd ""%name.x"("a ""%s(" int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION app.find() RETURNS text LANGUAGE sql AS $$SELECT 'function'$$;
CREATE FUNCTION app.of_home() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT id FROM fn); END';
CREATE FUNCTION app.other() RETURNS text LANGUAGE sql AS $$SELECT 'function'$$;
CREATE FUNCTION born(who int, name text) RETURNS SETOF people VOLATILE LANGUAGE sql
    AS 'INSERT INTO people VALUES (who, name), (who + 1, name) RETURNING *';
CREATE FUNCTION sneaky() RETURNS int STABLE LANGUAGE plpgsql
    AS $$BEGIN PERFORM nextval('counter'); RETURN 1; END$$;
CREATE FUNCTION sneaky_rows() RETURNS SETOF people STABLE LANGUAGE plpgsql
    AS $$BEGIN PERFORM nextval('counter'); END$$;
CREATE SEQUENCE counter;
CREATE FUNCTION sleepy() RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(30)';
CREATE FUNCTION angry() RETURNS void LANGUAGE plpgsql
    AS $$BEGIN RAISE 'no' USING HINT = 'ask nicely', ERRCODE = 'AN001'; END$$;
CREATE PROCEDURE work(who int, OUT said text, INOUT n int DEFAULT 5) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO people VALUES (who, 'worker');
    COMMIT;
    n := n + 1; said := 'done';
END$$;
CREATE PROCEDURE dying(who int) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO people VALUES (who, 'last');
    COMMIT;
    PERFORM pg_terminate_backend(pg_backend_pid());
END$$;
CREATE PROCEDURE quiet() LANGUAGE sql AS '';
"""


pytestmark = pytest.mark.serving("public", "app", max_rows=50, max_bytes=10_000)


ADA = {"id": 1, "name": "Ada", "born": "1815-12-10"}

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("add", (), {"a": 1}, 3),
    ("add", (), {"a": 1, "b": 5}, 6),
    ("add", (), {"a": "x", "b": "y", "c": "z"}, "xyz"),
    ("add", (), {"args": {"a": 1}}, 3),
    ("price", (), {"n": "2.10"}, "3.1500"),
    ("nothing", (), {}, None),
    ("nulled", (), {}, None),
    ("one_out", (), {"n": 4}, {"twice": 8}),
    ("outs", (), {"a": 4}, {"a": 5, "b": "b", "c": "2026-01-01"}),
    ("numbers", (), {"n": 3}, [1, 2, 3]),
    ("numbers", (), {"n": 0}, []),
    ("table_of", (), {"n": 1}, [{"a": 1, 'b "%s': "1.5"}]),
    ("set_of_out", (), {"n": 2}, [{"v": 1}, {"v": 2}]),
    ("person", (), {"key": 1}, ADA),
    ("person", (), {"key": 99}, None),
    ("person", (), {"key": 1, "form": "lists"},
     {"columns": ["id", "name", "born"], "rows": [[1, "Ada", "1815-12-10"]]}),
    ("one_out", (), {"n": 4, "form": "lists"}, {"columns": ["twice"], "rows": [[8]]}),
    ("pair", (), {"p": {"x": 1, "y": "2.50"}}, {"x": 2, "y": "2.50"}),
    ("record_of", (), {}, {"a": 1, "b": "x"}),
    ("doubled", (), {}, [{"a": 1, "b": {"k": 2}}, {"a": 2, "b": None}]),
    ("no_record", (), {}, None),
    ("records_of", (), {}, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ("same", (), {"v": 5}, 5),
    ("same", (), {"v": "five"}, "five"),
    ("same", (), {"v": True}, True),
    ("same", (), {"v": None}, None),
    ("same", (), {"v": [1, 2]}, [1, 2]),
    ("same", (), {"v": {"a": [1]}}, {"a": [1]}),
    ("type_of", (), {"v": 5}, "integer"),
    ("type_of", (), {"v": 2**40}, "bigint"),
    ("type_of", (), {"v": 2**70}, "numeric"),
    ("type_of", (), {"v": 1.5}, "double precision"),
    ("type_of", (), {"v": "x"}, "text"),
    ("type_of", (), {"v": [1.5, 2]}, "double precision[]"),
    ("first_of", (), {"v": [], "otherwise": 2**40}, 2**40),
    ("first_of", (), {"v": [1], "otherwise": None}, 1),
    ("joined", (), {"sep": "-", "parts": ["a", "b"]}, "a-b"),
    ("joined", (), {"sep": "-"}, ""),
    ("padded", (), {"a": 5}, "5 2 x"),
    ("padded", (), {"a": 5, "b": 6, "v": ["y", "z"]}, "5 6 y z"),
    ("padded", (), {}, "1 2 x"),
    ("any_count", (), {"v": [1, 2, 3]}, 3),
    ("echo", ({"a": [1, None]},), {}, {"a": [1, None]}),
    ("echo", ("text",), {}, "text"),
    ("echo_b", ([1, "x"],), {}, [1, "x"]),
    ("size_of", (b"\0\1",), {}, 2),
    ("kind", ("x",), {}, "text"),
    ("kind", ({"a": 1},), {}, "jsonb"),
    ("kind", (b"x",), {}, "bytea"),
    ("minus", (5,), {"b": 3}, 2),
    ("minus", (), {"args": [5], "b": 3}, 2),
    ("clash", (), {"timeout": 1, "form": "x", "args": "y"}, "1xy"),
    ("clash", (), {"args": {"timeout": 1, "form": "x", "args": "y"}, "timeout": 5}, "1xy"),
    ("twin", (), {"a": 1}, "int"),
    ("twin", (), {"a": "1"}, "text"),
    ("unlike", (), {"a": 1.0}, "int"),
    ("either", (), {"a": 1, "b": "1"}, "it"),
    ("either", (), {"a": "1", "b": 1}, "ti"),
    ("either", (), {"a": [1, None], "b": [1]}, "Ij"),
    ("either", (), {"args": {"a": ["x"], "b": [1]}}, "Tj"),
    ("moody", (), {"m": "ok"}, "ok"),
    ("quiet", (), {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs", "expected"), CALLS)
@pytest_twisted.ensureDeferred
async def test_call_of_a_function_has_the_result_of_its_kind(
    db: DirectCaller, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    """The function receives its arguments, and the result has the form for its kind of function."""
    found = await db.call(f"fn.{name}", *args, **kwargs)
    assert found == expected
    assert type(found) is type(expected)
    assert await db.call(f"public.fn.{name}", *args, **kwargs) == expected


@pytest_twisted.ensureDeferred
async def test_rows_of_a_relation_from_a_function_lack_hidden_columns(db: DirectCaller) -> None:
    """Rows of a relation's type have no hidden columns, as everywhere."""
    found = await db.call("fn.everyone")
    assert found[0] == ADA
    assert [row["id"] for row in found] == [1, 2, 3]
    lists = await db.call("fn.everyone", form="lists")
    assert lists["columns"] == ["id", "name", "born"]
    assert lists["rows"][0] == [1, "Ada", "1815-12-10"]


REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str | None]] = [
    ("add", (), {}, None),
    ("add", (), {"a": 1, "d": 2}, "d"),
    ("add", (1,), {}, None),
    ("price", (), {}, "n"),
    ("price", (), {"n": "x; DROP TABLE people"}, "n"),
    ("price", (), {"args": {"n": [1]}}, "args.n"),
    ("price", (), {"args": 5}, "args"),
    ("price", (), {"args": {}, "n": 5}, "n"),
    ("price", (), {"n": 1, "timeout": -1}, "timeout"),
    ("price", (), {"n": 1, "form": "rows"}, "form"),
    ("price", (), {'n" => 1); DROP TABLE people; --%s': 1}, None),
    ("echo", ({"a": 1}, 2), {}, None),
    ("echo", (), {"a": 1}, "a"),
    ("echo", (), {}, None),
    ("twin", (), {"a": None}, None),
    ("twin", (), {"a": True}, None),
    ("unlike", (), {"a": "2026-01-01"}, None),
    ("unlike", (), {"a": {}}, None),
    ("either", (), {"a": 1, "b": 1}, None),
    ("either", (), {"a": "2026-01-01", "b": 2**40}, None),
    ("moody", (), {"m": "glad"}, "m"),
    ("pair", (), {"p": {"z": 1}}, "p.z"),
    ("person", (), {"key": True}, "key"),
    ("padded", (), {"b": 1}, "a"),
    ("padded", (), {"a": 1, "v": ["y"]}, "b"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs", "path"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_arguments_that_no_function_takes_are_refused_with_their_path(
    db: DirectCaller, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], path: str | None
) -> None:
    refused = await failure_of(db.call(f"fn.{name}", *args, **kwargs))
    assert isinstance(refused, InvalidArgument), refused
    if path is not None:
        assert refused.details["path"] == path
    assert "DROP" not in str(refused.details.get("sqlstate"))


@pytest.mark.parametrize(
    "value",
    [
        "\0", "\ud800", 2**5000, float("nan"), [[[[[[[[1]]]]]]]], {1: 2}, b"\xff", "'; DROP --",
        {"a": {"b": [None, True]}}, [1, "x"], [[1], [2, 3]], object(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "by_name"),
    [("same", "v"), ("any_count", "v"), ("echo", ""), ("moody", "m"), ("pair", "p"), ("add", "a")],
)
@pytest_twisted.ensureDeferred
async def test_arguments_of_any_kind_lead_to_a_result_or_a_refusal(
    db: DirectCaller, name: str, by_name: str, value: Any
) -> None:
    """Any arguments lead to a result or a refusal, never to an internal error."""
    args, kwargs = ((), {by_name: value}) if by_name else ((value,), {})
    with suppress(InvalidArgument):
        await db.call(f"fn.{name}", *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_record_with_two_columns_of_one_name_is_refused(db: DirectCaller) -> None:
    refused = await failure_of(db.call("fn.unnamed"))
    assert isinstance(refused, DatabaseRefused)
    assert refused.message == 'the function returns two columns with the name "?column?"'
    assert refused.details["sqlstate"] == "42701"
    assert refused.details["hint"] == "name each in the function, as in SELECT 1 AS a, 2 AS b"


@pytest_twisted.ensureDeferred
async def test_value_nested_too_deep_is_refused(db: DirectCaller) -> None:
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    for name, args, kwargs in (
        ("fn.echo", (deep,), {}),
        ("fn.same", (), {"v": deep}),
        ("fn.everyone.find", (), {"args": {"x": deep}}),
        ("fn.table_of.find", (), {"args": {"n": deep}}),
        ("fn.table_of.find", (), {"args": {"n": 1}, "where": {"a": deep}}),
    ):
        refused = await failure_of(db.call(name, *args, **kwargs))
        assert isinstance(refused, InvalidArgument), (name, refused)


@pytest_twisted.ensureDeferred
async def test_call_of_ambiguous_functions_is_refused_with_candidates(db: DirectCaller) -> None:
    """If several functions take the same argument names, the error lists them."""
    refused = await failure_of(db.call("fn.twin", a=None))
    assert isinstance(refused, InvalidArgument)
    assert refused.details["candidates"] == ["twin(a integer)", "twin(a text)"]
    missing = await failure_of(db.call("fn.add", b=1))
    assert isinstance(missing, InvalidArgument)
    assert missing.details["candidates"] == [
        "add(a integer, [b integer])",
        "add(a text, b text, c text)",
    ]


@pytest_twisted.ensureDeferred
async def test_function_of_any_schema_and_name_is_called(db: DirectCaller) -> None:
    """Functions of other schemas and of any name can be called; a relation named "fn" too."""
    assert await db.call('app.fn.odd%20"%25name%2Ex', **{'a "%s(': 5}) == 5
    assert await db.call("app.fn.other") == "function"
    assert await db.call("app.fn.of_home") == 7
    assert (await db.call("app.fn.find"))["rows"] == [{"id": 7}]
    assert await db.call("app.fn.get", 7) == {"id": 7}
    for name in ("fn.ad", "fn.add.finds", "app.fn.nowhere", "fn", "fn.", "nowhere.fn.add"):
        assert isinstance(await failure_of(db.call(name)), NoSuchProcedure), name
    near = await failure_of(db.call("fn.everyon"))
    assert near.details["hint"] == 'did you mean "everyone"?'


@pytest_twisted.ensureDeferred
async def test_value_against_its_domain_is_check_violation(db: DirectCaller) -> None:
    refused = await failure_of(db.call("fn.moody", m="ok", s=11))
    assert isinstance(refused, CheckViolation)
    assert refused.details["constraint"] == "small_check"


@pytest_twisted.ensureDeferred
async def test_error_raised_by_a_function_keeps_its_message(db: DirectCaller) -> None:
    raised = await failure_of(db.call("fn.angry"))
    assert isinstance(raised, Raised)
    assert (raised.message, raised.details["hint"]) == ("no", "ask nicely")
    assert isinstance(await failure_of(db.call("fn.sleepy", timeout=0.2)), StatementTimeout)
    taken = await failure_of(db.call("fn.born", who=1, name="x"))
    assert isinstance(taken, UniqueViolation)


@pytest_twisted.ensureDeferred
async def test_stable_function_that_writes_is_refused(db: DirectCaller, dsn: str) -> None:
    """A STABLE function runs in a read-only transaction."""
    refused = await failure_of(db.call("fn.sneaky"))
    assert isinstance(refused, DatabaseRefused)
    assert refused.details["sqlstate"] == "25006"
    assert refused.details["hint"] == "a function that writes is VOLATILE"
    over_rows = await failure_of(db.call("fn.sneaky_rows.find"))
    assert isinstance(over_rows, DatabaseRefused)


@pytest_twisted.ensureDeferred
async def test_rows_over_the_limit_are_refused_and_not_kept(db: DirectCaller, dsn: str) -> None:
    """If a limit is exceeded, the call is rolled back, and the error names the way out."""
    many = await failure_of(db.call("fn.numbers", n=51))
    assert isinstance(many, TooLarge)
    assert "RETURNS TABLE has find" in many.details["hint"]
    assert "fn.numbers" not in many.details["hint"]
    table = await failure_of(db.call("fn.table_of", n=51))
    assert isinstance(table, TooLarge)
    assert '"fn.table_of.find" gives rows in pages' in table.details["hint"]
    assert len(await db.call("fn.numbers", n=50)) == 50
    over = await failure_of(db.call("fn.born", who=50, name="x", max_affected=1))
    assert isinstance(over, TooManyRows)
    heavy = await failure_of(db.call("fn.born", who=50, name="x" * 20_000))
    assert isinstance(heavy, TooLarge)
    assert execute(dsn, "SELECT count(*) FROM people WHERE id >= 50") == [(0,)]
    kept = await db.call("fn.born", who=50, name="x", max_affected=2)
    assert [row["id"] for row in kept] == [50, 51]
    assert execute(dsn, "DELETE FROM people WHERE id >= 50 RETURNING id") == [(50,), (51,)]


@pytest_twisted.ensureDeferred
async def test_max_affected_without_rows_to_return_is_refused(db: DirectCaller) -> None:
    """For a function without rows, `max_affected` is refused instead of ignored."""
    assert await db.call("fn.nothing") is None
    for call in (
        db.call("fn.nothing", max_affected=1),
        db.call("fn.quiet", max_affected=1),
        db.call("fn.work", who=90, max_affected=5),
    ):
        refused = await failure_of(call)
        assert isinstance(refused, InvalidArgument)
        assert refused.details["path"] == "max_affected"
    assert not await db.call("people.exists", where={"id": 90})


@pytest_twisted.ensureDeferred
async def test_procedure_that_commits_returns_its_out_arguments(db: DirectCaller, dsn: str) -> None:
    """A procedure may commit; the result is its OUT arguments."""
    assert await db.call("fn.work", who=60) == {"n": 6, "said": "done"}
    assert await db.call("fn.work", who=61, n=1, form="lists") == {
        "columns": ["said", "n"], "rows": [["done", 2]],
    }  # fmt: skip
    assert execute(dsn, "DELETE FROM people WHERE id >= 60 RETURNING id") == [(60,), (61,)]
    refused = await failure_of(db.call("fn.work"))
    assert isinstance(refused, InvalidArgument)


@pytest_twisted.ensureDeferred
async def test_procedure_whose_session_dies_is_outcome_unknown(db: DirectCaller, dsn: str) -> None:
    """It is unknown what it has committed, so the error is not retryable."""
    refused = await failure_of(db.call("fn.dying", who=80))
    assert isinstance(refused, OutcomeUnknown)
    assert execute(dsn, "DELETE FROM people WHERE id = 80 RETURNING id") == [(80,)]


@pytest_twisted.ensureDeferred
async def test_function_in_a_transaction_is_rolled_back_with_it(db: DirectCaller, dsn: str) -> None:
    """Its writes belong to the transaction that it is called in."""
    database = db.database
    with suppress(RuntimeError):
        async with database.transaction():
            await db.call("fn.born", who=70, name="x")
            assert len(await db.call("fn.everyone")) == 5
            raise RuntimeError
    assert execute(dsn, "SELECT count(*) FROM people") == [(3,)]


@pytest_twisted.ensureDeferred
async def test_function_that_was_dropped_is_refused(db: DirectCaller, dsn: str) -> None:
    """The call is refused, and the catalog is read again."""
    execute(dsn, "CREATE FUNCTION brief() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    async with serving(dsn) as other:
        assert await other.call("fn.brief") == 1
        execute(dsn, "DROP FUNCTION brief()")
        refused = await failure_of(other.call("fn.brief"))
        assert isinstance(refused, InvalidArgument | NoSuchProcedure | DatabaseRefused)
