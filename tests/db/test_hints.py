"""
Refusals with the path of the invalid argument and a hint at the way out.
"""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from service.api.roles import Roles
from service.errors import DatabaseRefused, NoSuchProcedure, NotAuthorized, ServiceError
from service.request.arguments import Caller
from tests.conftest import execute
from tests.db.dispatchers import DirectCaller, serving
from tests.deferreds import failure_of

SCHEMA = r"""
CREATE TABLE keyless (a int, b text);
CREATE TABLE indexed (a int, b int);
CREATE UNIQUE INDEX partly ON indexed (a) WHERE b > 0;
CREATE TABLE spelled (id int PRIMARY KEY, name text, seat int4range, day date);
CREATE UNIQUE INDEX by_name ON spelled (lower(name));
CREATE UNIQUE INDEX by_day ON spelled (day, id) WHERE name > '';
ALTER TABLE spelled ADD CONSTRAINT by_seat EXCLUDE USING gist (seat WITH &&);
CREATE TABLE keyed (a int UNIQUE, b int);
CREATE TABLE things (id int PRIMARY KEY, n int, t text, tags text[], doc jsonb, span int4range,
    "a.b" int, "q""x" int);
CREATE TABLE parts (id int PRIMARY KEY, thing_id int REFERENCES things);
CREATE FUNCTION share(things) RETURNS int STABLE LANGUAGE sql AS 'SELECT 10 / ($1.n - 5)';
INSERT INTO things (id, n, t) VALUES (1, 5, 'a');
CREATE FUNCTION part(i int) RETURNS int LANGUAGE sql AS 'SELECT 10 / i';
CREATE FUNCTION zero(i int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 10 / (i - i); END';
CREATE FUNCTION cast_of(i text) RETURNS int LANGUAGE plpgsql
    AS 'BEGIN RETURN (i || ''x'')::int; END';
CREATE FUNCTION records() RETURNS SETOF record LANGUAGE sql AS 'SELECT 1 AS a, 2 AS b';
CREATE TABLE ruled (id int PRIMARY KEY, t text);
CREATE RULE moved AS ON INSERT TO ruled DO INSTEAD INSERT INTO keyless (a) VALUES (NEW.id);
CREATE TABLE copied (id int PRIMARY KEY, t text);
CREATE TABLE pieces (id int PRIMARY KEY, copied_id int REFERENCES copied);
CREATE RULE also AS ON INSERT TO copied DO ALSO INSERT INTO keyless (a) VALUES (NEW.id);
CREATE TABLE counted (id serial PRIMARY KEY, t text);
CREATE TABLE priced (id int PRIMARY KEY, price numeric(6,2), rate numeric(3,1), other numeric(3,1));
INSERT INTO priced VALUES (1, 99, 1, 1);
CREATE TABLE signs (id int PRIMARY KEY, "c:d" int, "e->f" int, "h::i" int, "-g" int);
CREATE MATERIALIZED VIEW stored AS SELECT n FROM things;
CREATE VIEW summed AS SELECT sum(n) AS n FROM things;
CREATE TABLE starred (id int PRIMARY KEY, "*" int);
INSERT INTO starred VALUES (1, 5), (2, 6), (3, NULL);
CREATE SCHEMA other;
CREATE TABLE other.things (id int PRIMARY KEY);
CREATE VIEW other.fn AS SELECT DISTINCT n FROM things;
COMMENT ON VIEW other.fn IS '@key n';
CREATE FUNCTION other.made() RETURNS int LANGUAGE sql AS 'SELECT 1';
"""


async def refused(
    db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any]
) -> ServiceError:
    """Make a call that must be refused; return its error."""
    return await failure_of(db.call(name, *args, **kwargs), ServiceError)


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
    ("things.find", {"select": [{"column": "t", "cast": "int"}]}, "22P02", "select.0.cast"),
    ("things.find", {"select": "t::int"}, "22P02", "select"),
    ("things.get", {"key": 1, "select": ["share"]}, "22012", None),
    ("fn.part", {"i": 0}, "22012", None),
    ("fn.zero", {"i": 0}, "22012", None),
    ("fn.cast_of", {"i": "q"}, "22P02", None),
    ("things.find", {"select": ["t::int", "d:t::date"]}, "22P02", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "sqlstate", "path"), POINTED)
@pytest_twisted.ensureDeferred
async def test_refusal_has_the_path_of_the_invalid_argument(
    db: DirectCaller, name: str, kwargs: dict[str, Any], sqlstate: str, path: str | None
) -> None:
    error = await refused(db, name, [], kwargs)
    assert (error.details["sqlstate"], error.details.get("path")) == (sqlstate, path)


GROUPS = 'aggregate groups rows, as in things.aggregate({"n": {"count": "*"}}, group=["n"])'
QUOTES = (
    'written [alias:]column[->key][->>key][::type]; a name with any of : -> . " stands in'
    ' "quotes", with each " in it doubled, as in "q""x"'
)
RELATED = (
    'null asks for none, {"is": "not null"} for at least one, and a filter for one that matches,'
    ' as in {"parts": {"id": …}}'
)
DISTINCT = 'true leaves out rows that are alike; ["a"] gives one row for each value of "a"'
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
    ("indexed.upsert", [{"a": 1}], {"on_conflict": ["a"]},
     'on_conflict: "partly" names the index over them, which is partial'),
    ("indexed.upsert", [{"a": 1}], {"on_conflict": "a"},
     'on_conflict: "partly" names the index over them, which is partial'),
    ("indexed.upsert", [{"a": 1}], {"on_conflict": ["b"]},
     'on_conflict names a unique key or index, as in "partly"'),
    ("spelled.upsert", [{"id": 1}], {"on_conflict": ["id", "day"]},
     'on_conflict: "by_day" names the index over them, which is partial'),
    ("spelled.upsert", [{"id": 1}], {"on_conflict": "name"},
     'on_conflict: "by_name" names the index over them, which is on expressions'),
    ("spelled.upsert", [{"id": 1}], {"on_conflict": "seat"},
     'on_conflict: "by_seat" names the index over them, which is an exclusion constraint, and takes update: [] alone'),
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
    ("things.find", [], {"where": "n = 1"}, 'as in {"n": …, "id": {"gt": 5}}'),
    ("things.find", [], {"where": [{"n": 1}]}, 'as in {"n": …, "id": {"gt": 5}}'),
    ("things.find", [], {"order": ["n", "desc"]},
     'descending is a sign before the name, as in ["-n"]'),
    ("things.find", [], {"order": [["n", "desc"]]}, 'did you mean ["-n"]?'),
    ("things.find", [], {"select": {"id": True}}, 'did you mean ["id"]?'),
    ("things.find", [], {"select": [{"name": True, "n": False, "t": 1}]}, 'did you mean ["name", "t"]?'),
    ("parts.find", [], {"embed": {"things": {"select": {"name": True}}}}, 'did you mean ["name"]?'),
    ("parts.find", [], {"embed": {"things": {"name": True}}},
     'columns stand in "select", related rows in "embed"'),
    ("parts.find", [], {"embed": {"things": {"iner": True}}}, 'did you mean "inner"?'),
    ("things.find", [], {"select": {"m": "n"}}, 'did you mean "m:n"?'),
    ("parts.find", [], {"select": ["things(t, n)"]},
     'related rows are an argument, as in embed={"things": {"select": ["t", "n"]}}'),
    ("parts.find", [], {"select": "id,a:things!thing_id!inner(*)"},
     'related rows are an argument, as in embed={"things": {"select": ["*"]}}'),
    ("things.find", [], {"where": {"doc.a": 1}},
     '"doc" is a column; a value in JSON is "doc->key"'),
    ("things.find", [], {"order": ["n.desc"]},
     '"n" is a column; descending is "-n", a value in JSON is "n->key"'),
    ("things.find", [], {"where": {"n": "gt.5"}}, 'did you mean {"gt": …}?'),
    ("things.find", [], {"where": {"or": [{"span": "not.eq.5"}]}}, 'did you mean {"not": …}?'),
    ("things.find", [], {"where": {"tags": "t1"}}, 'arrays with an element are found by {"cs": […]}'),
    ("things.update", [1, {"n": {"increment": 1}}], {}, 'did you mean {"$add": 1}?'),
    ("things.update", [1, {"n": {"_inc": 1}}], {}, 'did you mean {"$add": 1}?'),
    ("things.update", [1, {"tags": {"append": "x"}}], {}, 'did you mean {"$append": […]}?'),
    ("things.update", [1], {"_inc": {"n": 1}}, 'did you mean {"$add": 1}?'),
    ("things.create", [{"id": 9}], {"returning": ["id"]}, 'columns stand in "select", as in select=["id"]'),
    ("things.update", [1, {}], {"returning": "id"}, 'columns stand in "select", as in select=["id"]'),
    ("stored.create", [{"n": 1}], {},
     'write to the tables of its query; REFRESH MATERIALIZED VIEW runs it again'),
    ("summed.create", [{"n": 1}], {},
     'a view takes what PostgreSQL can write through it, or a trigger for it'),
    ("things.watch", [], {}, 'verbs: get, find, count, exists, stream, export, watch, aggregate,'
     ' create, upsert, update, delete, import'),
    ("things.update", [], {"key": 1, "values": {"n": 1}},
     'did you mean "changes", as in things.update(key=…, changes={"n": …})?'),
    ("things.create", [], {"data": {"n": 1}},
     'did you mean "values", as in things.create(values={"n": …, "t": …})?'),
    ("things.update", [1], {"changes": {}, "fields": ["n"]},
     'did you mean "select", as in things.find(select=["id", "n"])?'),
    ("things.first", [], {}, 'did you mean "find", as in things.find(limit=1)?'),
    ("things.findOne", [], {}, 'did you mean "find", as in things.find(limit=1)?'),
    ("things.find", [], {"group": ["n"]}, GROUPS),
    ("things.find", [], {"groupBy": ["n"]}, GROUPS),
    ("things.find", [], {"tags": 5}, 'a column goes into "where", as in where={"tags": …}'),
    ("things.count", [], {"foo": 5}, "arguments: timeout, where"),
    ("things.count", [], {"args": {}}, "arguments: timeout, where"),
    ("things.aggregate", [], {"n": "count"},
     'a measure goes into "measures", as in measures={"n": {"count": "*"}}'),
    ("things.find", [], {"where": {"n": {"any": [1]}}},
     '"any" is an operand, as in {"eq": {"any": […]}}; "in" takes a list'),
    ("things.find", [], {"select": ["a.b"]},
     'the column of that name is written "a.b", quotes and all'),
    ("things.find", [], {"where": {"a.b": 1}},
     'the column of that name is written "a.b", quotes and all'),
    ("signs.find", [], {"select": ["c:d"]}, 'did you mean "c:d", quotes and all?'),
    ("signs.find", [], {"select": ["e->f"]}, 'did you mean "e->f", quotes and all?'),
    ("signs.find", [], {"select": ["h::i"]}, 'did you mean "h::i", quotes and all?'),
    ("signs.find", [], {"select": ["-g"]}, 'did you mean "-g", quotes and all?'),
    ("signs.find", [], {"order": ["e->f"]}, 'did you mean "e->f", quotes and all?'),
    ("signs.find", [], {"where": {"e->f": 1}}, 'did you mean "e->f", quotes and all?'),
    ("things.find", [], {"where": {"n": {"args": {"k": 1}}}},
     'what a computed column is given stands beside an operator, as in {"args": {…}, "eq": 1}'),
    ("things.update", [1], {"changes": {"n": {"$inc": 1}}},
     'did you mean {"$add": 1}? a value is taken as it is in {"$value": …}'),
    ("things.update", [1], {"changes": {"n": {"$subtract": 1}}},
     'did you mean {"$add": -1}? a value is taken as it is in {"$value": …}'),
    ("things.update", [1], {"changes": {"tags": {"$push": "x"}}},
     'did you mean {"$append": […]}? a value is taken as it is in {"$value": …}'),
    ("things.update", [1], {"changes": {"n": {"$link": 1}}},
     "what a row refers to changes with the columns of its foreign key"),
    ("things.create", [{"n": {"$inc": 1}}], {}, 'a value is taken as it is in {"$value": …}'),
    ("things.find", [], {"select": ['q"x']}, QUOTES),
    ("keyless.get", [], {}, '"keyless.find" takes a where'),
    ("things.find", [], {"where": {"parts": [None]}}, RELATED),
    ("things.find", [], {"where": {"parts": {"eq": 1}}}, RELATED),
    ("things.find", [], {"distinct": 1}, DISTINCT),
    ("things.find", [], {"distinct": []}, DISTINCT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "kwargs", "hint"), HINTED)
@pytest_twisted.ensureDeferred
async def test_refusal_has_a_hint_at_the_way_out(
    db: DirectCaller, name: str, args: list[Any], kwargs: dict[str, Any], hint: str
) -> None:
    assert (await refused(db, name, args, kwargs)).details["hint"] == hint


OF_THINGS = "get, find, count, exists, stream, export, watch, aggregate, create, upsert, update, delete, import"
INCOMPLETE = [
    ("things", f'as in "things.get"; verbs: {OF_THINGS}'),
    ("things.", f'as in "things.get"; verbs: {OF_THINGS}'),
    ("other.things", f'as in "other.things.get"; verbs: {OF_THINGS}'),
    (
        "other.fn",
        'as in "other.fn.get"; verbs: get, find, count, exists, stream, export, watch, aggregate',
    ),
    ("things.xyzzy", f"verbs: {OF_THINGS}"),
    ("part", 'did you mean the function "fn.part"?'),
    ("part.", 'did you mean the function "fn.part"?'),
    ("other.made", 'did you mean the function "other.fn.made"?'),
    ("fn", 'functions are "fn.<function>"; describe lists them'),
    ("fn.", 'functions are "fn.<function>"; describe lists them'),
    ("other", 'this is a schema: "other.<relation>.<verb>"; describe lists them'),
    ("other.", 'this is a schema: "other.<relation>.<verb>"; describe lists them'),
    ("othr.things.find", 'did you mean "public.things"?'),
    ("othr.xyzzy.find", 'did you mean "other"?'),
    ("rowcast.things.find", 'did you mean "things.find", without the prefix?'),
    ("rowcast.things", f'as in "things.get"; verbs: {OF_THINGS}'),
    ("rowcast.thigns.find", 'did you mean "things"?'),
    ("rowcast.things.fnd", 'did you mean "find"?'),
    ("rowcast.idempotency_keys.find", None),
    (
        "rowcast." * 5000 + "things.find",
        "procedures are <relation>.<verb> or <schema>.<relation>.<verb>; describe lists them",
    ),
    ("", "procedures are <relation>.<verb> or <schema>.<relation>.<verb>; describe lists them"),
]


@pytest.mark.serving("public", "other")
@pytest.mark.parametrize(("name", "hint"), INCOMPLETE)
@pytest_twisted.ensureDeferred
async def test_incomplete_name_is_refused_with_its_continuations(
    db: DirectCaller, name: str, hint: str | None
) -> None:
    """A similar name of another kind, as `transaction` for `actions`, is not suggested."""
    error = await refused(db, name, [], {})
    assert isinstance(error, NoSuchProcedure)
    assert error.details.get("hint") == hint


@pytest_twisted.ensureDeferred
async def test_path_points_at_the_invalid_name(db: DirectCaller) -> None:
    """A path has an index only for a list; the path of a cast is beside that of its column."""
    for kwargs, path in (
        ({"order": "n descending"}, "order"),
        ({"order": ["n descending"]}, "order.0"),
        ({"select": "nope"}, "select"),
        ({"distinct": "nope"}, "distinct"),
        ({"select": [{"column": "id", "cast": "pg_catalog.regclass"}]}, "select.0.cast"),
        ({"select": [{"column": "nope", "cast": "text"}]}, "select.0.column"),
    ):
        assert (await refused(db, "things.find", [], kwargs)).details["path"] == path


@pytest_twisted.ensureDeferred
async def test_get_of_a_relation_without_a_key_does_not_exist(db: DirectCaller) -> None:
    """`get` does not exist, with or without a key argument."""
    for args in ([], [1]):
        error = await refused(db, "keyless.get", args, {})
        assert isinstance(error, NoSuchProcedure)
        assert error.message == '"keyless" has no primary key, and so no get by key'


@pytest_twisted.ensureDeferred
async def test_example_in_a_hint_is_a_call_of_the_relation(db: DirectCaller) -> None:
    """The call in the example runs when its placeholders are replaced by values."""
    error = await refused(db, "things.find", [], {"sort": "n"})
    hint = error.details["hint"]
    assert hint == 'did you mean "order", as in things.find(order=["-n", "id"])?'
    assert await db.call("things.find", order=["-n", "id"])
    error = await refused(db, "fn.records.insert", [], {})
    assert "actions" not in error.details["hint"]


@pytest_twisted.ensureDeferred
async def test_dict_for_a_missing_column_is_an_unknown_column(db: DirectCaller) -> None:
    error = await refused(db, "things.find", [], {"where": {"nam": {"x": 1}}})
    assert error.message == 'no column "nam" in relation "things"'
    assert error.details["path"] == "where.nam"


@pytest.mark.parametrize(
    ("changes", "column"),
    [({"price": "12345.6"}, "price"), ({"price": {"$multiply": 1000}}, "price"), ({"rate": 1000}, "rate"),
     ({"rate": 1000, "other": 1}, None)],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_number_that_overflows_is_refused_with_its_column(
    db: DirectCaller, changes: dict[str, Any], column: str | None
) -> None:
    """PostgreSQL reports only the declared precision and scale, so the column is named if no other written one has them."""
    error = await refused(db, "priced.update", [1, changes], {})
    assert error.details["sqlstate"] == "22003"
    assert error.details.get("column") == column


@pytest_twisted.ensureDeferred
async def test_function_of_records_has_no_verbs_and_says_why(db: DirectCaller) -> None:
    """Only rows with declared columns can be filtered and selected from."""
    assert await db.call("fn.records") == [{"a": 1, "b": 2}]
    error = await refused(db, "fn.records.find", [], {})
    assert isinstance(error, NoSuchProcedure)
    assert "returns records without columns of their own" in error.message
    assert "RETURNS TABLE" in error.details["hint"]


@pytest_twisted.ensureDeferred
async def test_rule_without_returning_is_refused_with_a_hint(db: DirectCaller, dsn: str) -> None:
    error = await refused(db, "ruled.create", [{"id": 7, "t": "x"}], {})
    assert isinstance(error, DatabaseRefused)
    assert "returning: false" in error.details["hint"]
    assert execute(dsn, "SELECT a FROM keyless WHERE a = 7") == []
    assert await db.call("ruled.create", {"id": 7, "t": "x"}, returning=False) == {"affected": 1}
    assert execute(dsn, "SELECT a FROM keyless WHERE a = 7") == [(7,)]


@pytest.mark.parametrize("kwargs", [{"order": ["id"]}, {"select": [], "embed": {"pieces": True}}])
@pytest_twisted.ensureDeferred
async def test_write_by_a_rule_is_refused_with_options_that_read_rows_again(
    db: DirectCaller, kwargs: dict[str, Any]
) -> None:
    """The rule returns the rows of other writes."""
    error = await refused(db, "copied.create", [[{"id": 1}, {"id": 2}]], kwargs)
    assert isinstance(error, DatabaseRefused), error
    assert "without embed, order" in error.details["hint"]
    row = {"id": 3}
    assert await db.call("copied.create", [row], select=["id"]) == [row]
    await db.call("copied.delete", row)


@pytest_twisted.ensureDeferred
async def test_missing_right_on_a_sequence_names_the_grant(dsn: str, db: DirectCaller) -> None:
    """INSERT on a table does not include USAGE on the sequence of its key."""
    execute(dsn, "CREATE ROLE hinted; GRANT SELECT, INSERT ON counted TO hinted")
    person = Caller(1, "ada", "clerk", "realm1")
    try:
        async with serving(dsn, roles=Roles({"clerk": "hinted"}, None)) as as_clerk:
            call = as_clerk.call_as(person, "counted.create", {"t": "x"})
            error = await failure_of(call)
            assert isinstance(error, NotAuthorized)
            hint = 'the role lacks GRANT USAGE ON SEQUENCE "counted_id_seq"'
            assert error.details.get("hint") == hint
            execute(dsn, 'GRANT USAGE ON SEQUENCE "counted_id_seq" TO hinted')
            made = await as_clerk.call_as(person, "counted.create", {"t": "x"})
            assert made["t"] == "x"
    finally:
        execute(dsn, "DROP OWNED BY hinted; DROP ROLE hinted")


@pytest_twisted.ensureDeferred
async def test_column_named_asterisk_is_quoted(db: DirectCaller) -> None:
    """This holds in measures, select lists, sort keys and filters."""
    (found,) = await db.call(
        "starred.aggregate",
        {"all": {"count": "*"}, "n": {"count": '"*"'}, "s": {"sum": {"column": '"*"::int'}}},
    )
    assert found == {"all": 3, "n": 2, "s": 11}
    named = await db.call("starred.find", select=['"*"'], where={'"*"': {"gt": 5}}, order=['-"*"'])
    assert named["rows"] == [{"*": 6}]
    every = await db.call("starred.find", select=["*"], limit=1)
    assert every["rows"] == [{"id": 1, "*": 5}]
    rest = await db.call("starred.find", select=["*", '-"*"'], limit=1)
    assert rest["rows"] == [{"id": 1}]
    for operand in ("*", "*::int", {"column": "*"}, "*->a"):
        error = await refused(db, "starred.aggregate", [{"s": {"sum": operand}}], {})
        assert "takes a column" in error.message, operand


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("things.mendd", 'did you mean "mend"?'),
        ("things.ge", 'did you mean "get"?'),
        ("things.mget", 'did you mean "get"?'),
        ("desk.opn", 'did you mean "open"?'),
        ("app.desk.close", 'did you mean "closed"?'),
    ],
)
@pytest.mark.serving  # it adds procedures
@pytest_twisted.ensureDeferred
async def test_misspelled_procedure_written_by_hand_is_in_the_hint(
    db: DirectCaller, name: str, hint: str
) -> None:
    """Beside the verbs, and where there is no relation of the name."""

    async def answer(*_: Any) -> None:
        """Return None."""

    names = ("things.mend", "desk.open", "app.desk.closed")
    db.dispatcher.add(dict.fromkeys(names, answer))
    error = await refused(db, name, [], {})
    assert isinstance(error, NoSuchProcedure)
    assert error.details.get("hint") == hint
