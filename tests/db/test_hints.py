"""
Refusals that point at the right place, and name the way out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import DatabaseRefused, NoSuchProcedure, NotAuthorized, ServiceError
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.hubs import Callee, serving
from tests.db.rooms import failure_of

SCHEMA = r"""
CREATE TABLE keyless (a int, b text);
CREATE TABLE indexed (a int, b int);
CREATE UNIQUE INDEX partly ON indexed (a) WHERE b > 0;
CREATE TABLE keyed (a int UNIQUE, b int);
CREATE TABLE things (id int PRIMARY KEY, n int, t text, tags text[], doc jsonb, span int4range);
INSERT INTO things (id, n, t) VALUES (1, 5, 'a');
CREATE FUNCTION part(i int) RETURNS int LANGUAGE sql AS 'SELECT 10 / i';
CREATE FUNCTION zero(i int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 10 / (i - i); END';
CREATE FUNCTION cast_of(i text) RETURNS int LANGUAGE plpgsql
    AS 'BEGIN RETURN (i || ''x'')::int; END';
CREATE FUNCTION records() RETURNS SETOF record LANGUAGE sql AS 'SELECT 1 AS a, 2 AS b';
CREATE TABLE ruled (id int PRIMARY KEY, t text);
CREATE RULE moved AS ON INSERT TO ruled DO INSTEAD INSERT INTO keyless (a) VALUES (NEW.id);
CREATE TABLE counted (id serial PRIMARY KEY, t text);
"""


@pytest_twisted.async_yield_fixture(scope="module")
async def db(dsn: str) -> AsyncIterator[Callee]:
    """Serve it."""
    execute(dsn, SCHEMA)
    async with serving(dsn) as callee:
        yield callee


async def refused(db: Callee, name: str, args: list[Any], kwargs: dict[str, Any]) -> ServiceError:
    """Make a call that is refused."""
    error = await failure_of(db.call(name, *args, **kwargs))
    assert isinstance(error, ServiceError), error
    return error


POINTED: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("things.find", {"where": {"t": {"like": "%\\"}}}, "22025", "where.t.like"),
    ("things.find", {"where": {"t": {"ilike": "%\\"}}}, "22025", "where.t.ilike"),
    ("things.find", {"where": {"t": {"like": {"any": ["%\\"]}}}}, "22025", "where.t.like.any"),
    ("things.find", {"where": {"t": "a", "id": 1, "and": [{"t": {"like": "%\\"}}]}},
     "22025", "where.and.0.t.like"),
    ("things.find", {"where": {"and": [{"t": {"like": "a%"}}, {"t": {"like": "%\\"}}]}},
     "22025", "where.and.1.t.like"),
    ("things.find", {"select": ["t::text[]"]}, "22P02", "select.0"),
    ("things.find", {"select": ["id", "t::int"], "where": {"id": 1}}, "22P02", "select.1"),
    ("things.find", {"select": ["n::text[]"]}, "42846", "select.0"),
    ("things.aggregate", {"measures": {"x": {"sum": "t::int"}}}, "22P02", "measures.x.sum"),
    ("fn.part", {"i": 0}, "22012", None),
    ("fn.zero", {"i": 0}, "22012", None),
    ("fn.cast_of", {"i": "q"}, "22P02", None),
    ("things.find", {"select": ["t::int", "d:t::date"]}, "22P02", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "sqlstate", "path"), POINTED)
@pytest_twisted.ensureDeferred
async def test_refusal_points_at_what_is_to_blame_and_at_nothing_else(
    db: Callee, name: str, kwargs: dict[str, Any], sqlstate: str, path: str | None
) -> None:
    error = await refused(db, name, [], kwargs)
    assert (error.details["sqlstate"], error.details.get("path")) == (sqlstate, path)


HINTED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("keyless.get", [1], {}, '"keyless.find" takes a where'),
    ("keyless.update", [1, {"a": 2}], {}, '"keyless.update" takes a where'),
    ("keyless.delete", [1], {}, '"keyless.delete" takes a where'),
    ("keyless.upsert", [{"a": 1}], {},
     '"keyless" has no unique key at all: "keyless.create" adds rows'),
    ("keyless.upsert", [{"a": 1}], {"on_conflict": ["a"]},
     '"keyless" has no unique key at all: "keyless.create" adds rows'),
    ("keyless.upsert", [{"a": 1}], {"on_conflict": "a_key"},
     '"keyless" has no unique key at all: "keyless.create" adds rows'),
    ("indexed.upsert", [{"a": 1}], {}, 'on_conflict names a unique key or index, as in "partly"'),
    ("keyed.upsert", [{"a": 1}], {}, 'on_conflict names a unique key or index, as in ["a"]'),
    ("things.update", [{"n": 1}], {}, "by position: key, changes"),
    ("things.find", [], {"where": {"tags": {"contains": "x"}}},
     'did you mean {"tags": {"cs": …}}?'),
    ("things.find", [], {"where": {"doc": {"contains": {"a": 1}}}},
     'did you mean {"doc": {"cs": …}}?'),
    ("things.find", [], {"where": {"span": {"overlaps": "[1,2)"}}},
     'did you mean {"span": {"ov": …}}?'),
    ("things.find", [], {"where": {"doc": {"min": 1}}}, 'a value inside of it is "doc->min"'),
    ("things.find", [], {"where": {"n >=": 1}}, 'did you mean {"n": {"gte": …}}?'),
    ("things.find", [], {"where": {"n=": 1}}, 'did you mean {"n": {"eq": …}}?'),
    ("things.find", [], {"where": "n = 1"}, 'as in {"status": false, "id": {"gt": 5}}'),
    ("things.find", [], {"where": [{"n": 1}]}, 'as in {"status": false, "id": {"gt": 5}}'),
    ("things.find", [], {"order": ["n", "desc"]},
     'descending is a sign before the name, as in ["-created_at"]'),
    ("things.find", [], {"order": [["n", "desc"]]}, 'did you mean "-n"?'),
    ("things.update", [], {"key": 1, "values": {"n": 1}},
     'did you mean "changes", as in actions.update(key=1, changes={"status": True})?'),
    ("things.create", [], {"data": {"n": 1}},
     'did you mean "values", as in actions.create(values={"action": "deploy", "path": "/srv"})?'),
    ("things.update", [1], {"changes": {}, "fields": ["n"]},
     'did you mean "select", as in actions.find(select=["id", "action"])?'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs", "hint"), HINTED)
@pytest_twisted.ensureDeferred
async def test_refusal_names_the_way_out(
    db: Callee, name: str, args: list[Any], kwargs: dict[str, Any], hint: str
) -> None:
    assert (await refused(db, name, args, kwargs)).details["hint"] == hint


@pytest_twisted.ensureDeferred
async def test_dict_for_a_column_that_is_not_there_is_an_unknown_column(db: Callee) -> None:
    error = await refused(db, "things.find", [], {"where": {"nam": {"x": 1}}})
    assert error.message == 'no column "nam" in relation "things"'
    assert error.details["path"] == "where.nam"


@pytest_twisted.ensureDeferred
async def test_function_of_records_has_no_verbs_and_says_why(db: Callee) -> None:
    """Its answer is what it gives; only columns that are declared can be asked for."""
    assert await db.call("fn.records") == [{"a": 1, "b": 2}]
    error = await refused(db, "fn.records.find", [], {})
    assert isinstance(error, NoSuchProcedure)
    assert "returns records without columns of their own" in error.message
    assert "RETURNS TABLE" in error.details["hint"]


@pytest_twisted.ensureDeferred
async def test_rule_without_returning_is_refused_with_what_works(db: Callee, dsn: str) -> None:
    error = await refused(db, "ruled.create", [{"id": 7, "t": "x"}], {})
    assert isinstance(error, DatabaseRefused)
    assert "returning: false" in error.details["hint"]
    assert execute(dsn, "SELECT a FROM keyless WHERE a = 7") == []
    assert await db.call("ruled.create", {"id": 7, "t": "x"}, returning=False) == {"affected": 1}
    assert execute(dsn, "SELECT a FROM keyless WHERE a = 7") == [(7,)]


@pytest_twisted.ensureDeferred
async def test_missing_right_on_a_sequence_names_the_grant(dsn: str, db: Callee) -> None:
    """The right to write rows is not the right to the sequence that numbers them."""
    execute(dsn, "CREATE ROLE hinted; GRANT SELECT, INSERT ON counted TO hinted")
    person = Caller(1, "ada", "clerk", "realm1")
    try:
        async with serving(dsn, roles=Roles({"clerk": "hinted"}, None)) as as_clerk:
            call = as_clerk.call_as(person, "counted.create", {"t": "x"})
            error = await failure_of(call)
            assert isinstance(error, NotAuthorized)
            hint = 'the role lacks GRANT USAGE ON SEQUENCE "counted_id_seq"'
            assert error.details["hint"] == hint
            execute(dsn, 'GRANT USAGE ON SEQUENCE "counted_id_seq" TO hinted')
            made = await as_clerk.call_as(person, "counted.create", {"t": "x"})
            assert made["t"] == "x"
    finally:
        execute(dsn, "DROP OWNED BY hinted; DROP ROLE hinted")
