"""The description of functions and computed columns matches their arguments and results."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from jsonschema import Draft202012Validator

from service.describe.document import describe
from service.errors import InvalidArgument, NoSuchProcedure
from tests.db.described import Described
from tests.db.dispatchers import ANYONE, DirectCaller
from tests.deferreds import failure_of

SCHEMA = """
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE people (id int PRIMARY KEY, name text, mood mood, secret text);
COMMENT ON COLUMN people.secret IS '@hidden';
INSERT INTO people VALUES (1, 'Ada', 'ok', 'x');
CREATE FUNCTION add(a int, b int DEFAULT 2) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + b';
CREATE FUNCTION add(a text, b text, c text) RETURNS text LANGUAGE sql AS 'SELECT a || b || c';
COMMENT ON FUNCTION add(int, int) IS 'The sum';
CREATE FUNCTION everyone() RETURNS SETOF people STABLE LANGUAGE sql AS 'SELECT * FROM people';
CREATE FUNCTION person(key int) RETURNS people STABLE
    LANGUAGE sql AS 'SELECT * FROM people WHERE id = key';
CREATE FUNCTION label(people) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT '#' || $1.name$$;
COMMENT ON FUNCTION label(people) IS 'With a sign';
CREATE FUNCTION outs(n numeric, OUT a int, OUT b numeric[]) LANGUAGE sql
    AS 'SELECT 1, ARRAY[n, NULL]';
CREATE FUNCTION numbers(VARIADIC v int[]) RETURNS SETOF int LANGUAGE sql AS 'SELECT unnest(v)';
CREATE FUNCTION nothing() RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION same(v anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT v';
CREATE FUNCTION hushed() RETURNS int LANGUAGE sql AS 'SELECT 1';
COMMENT ON FUNCTION hushed() IS '@hidden';
CREATE FUNCTION plus(int, b int DEFAULT 2) RETURNS int LANGUAGE sql AS 'SELECT $1 + b';
CREATE FUNCTION perhaps(int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION words(args text[]) RETURNS text LANGUAGE sql AS $$SELECT args[1]$$;
CREATE FUNCTION later("timeout" int, form text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE app.work(INOUT a int) LANGUAGE sql AS 'SELECT a';
"""

CALLS: list[tuple[str, int, dict[str, Any]]] = [
    ("fn.add", 0, {"a": 1}),
    ("fn.add", 1, {"a": "x", "b": "y", "c": None}),
    ("fn.everyone", 0, {}),
    ("fn.person", 0, {"key": 1}),
    ("fn.person", 0, {"key": 9}),
    ("fn.outs", 0, {"n": 1.5}),
    ("fn.numbers", 0, {"v": [1, 2]}),
    ("fn.nothing", 0, {}),
    ("fn.same", 0, {"v": "x"}),
    ("app.fn.work", 0, {"a": 1}),
]


pytestmark = pytest.mark.serving("public", "app")


def described(db: DirectCaller) -> dict[str, Any]:
    """Return the description of the service."""
    return describe(db.dispatcher.served.catalog, "rowcast", "0", db.dispatcher.verbs, {})


@pytest_twisted.ensureDeferred
async def test_functions_with_overloads_are_described_without_hidden_ones(db: DirectCaller) -> None:
    """Each overload has its arguments."""
    functions = described(db)["functions"]
    assert "fn.hushed" not in functions
    first, second = functions["fn.add"]
    assert first["comment"] == "The sum"
    assert first["volatility"] == "immutable"
    assert [(each["name"], each["type"], each["required"]) for each in first["parameters"]] == [
        ("a", "integer", True),
        ("b", "integer", False),
    ]
    assert first["arguments"]["anyOf"][0]["required"] == ["a"]
    assert second["arguments"]["anyOf"][0]["required"] == ["a", "b", "c"]
    verbs = {"find", "aggregate", "stream", "export", "watch"}
    assert functions["fn.everyone"][0]["verbs"].keys() == verbs
    assert functions["app.fn.work"][0]["kind"] == "procedure"
    assert functions["fn.label"][0]["parameters"][0]["name"] is None
    assert "secret" not in str(functions)


@pytest_twisted.ensureDeferred
async def test_description_of_functions_is_a_valid_schema(db: DirectCaller) -> None:
    Draft202012Validator.check_schema(described(db))


@pytest.mark.parametrize(("name", "overload", "kwargs"), CALLS)
@pytest_twisted.ensureDeferred
async def test_schemas_of_a_function_match_its_arguments_and_results(
    db: DirectCaller, name: str, overload: int, kwargs: dict[str, Any]
) -> None:
    document = described(db)
    found = document["functions"][name][overload]
    answer = await db.call(name, **kwargs)
    for schema, value in ((found["arguments"], kwargs), (found["result"], answer)):
        assert not Described(document).faults(schema, value)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("fn.nothing", {"max_affected": 1}),
    ("app.fn.work", {"a": 1, "max_affected": 1}),
    ("fn.person", {"key": 1, "other": 1}),
    ("fn.person", {}),
    ("fn.person", {"args": {}}),
    ("fn.person", {"args": [1]}),
    ("fn.label", {"args": []}),
    ("fn.label", {"args": [None, 1]}),
    ("fn.label", {}),
]


@pytest.mark.parametrize(("name", "kwargs"), REFUSED)
@pytest_twisted.ensureDeferred
async def test_arguments_that_a_function_refuses_are_not_described(
    db: DirectCaller, name: str, kwargs: dict[str, Any]
) -> None:
    document = described(db)
    (found,) = document["functions"][name]
    error = await failure_of(db.dispatcher.answer(name, [], kwargs, ANYONE))
    assert isinstance(error, InvalidArgument)
    assert Described(document).faults(found["arguments"], kwargs)


@pytest_twisted.ensureDeferred
async def test_verbs_are_described_only_for_functions_that_return_rows(db: DirectCaller) -> None:
    functions = described(db)["functions"]
    with_verbs = {name for name, (found, *_) in functions.items() if found["verbs"]}
    assert with_verbs == {"fn.everyone", "fn.person", "fn.outs"}
    found = await db.call("fn.outs.find", args={"n": 2})
    assert len(found["rows"]) == 1
    error = await failure_of(
        db.dispatcher.answer("app.fn.work.find", [], {"args": {"a": 1}}, ANYONE)
    )
    assert isinstance(error, NoSuchProcedure)


@pytest_twisted.ensureDeferred
async def test_computed_column_with_a_comment_is_described(db: DirectCaller) -> None:
    """It is listed beside the columns."""
    assert described(db)["relations"]["people"]["computed"] == {
        "label": {
            "type": "text",
            "comment": "With a sign",
            "json_schema": {"type": ["string", "null"]},
            "parameters": [],
            "overloads": [],
        }
    }


TAKEN: list[tuple[str, dict[str, Any], bool]] = [
    ("fn.add", {"a": 1, "args": None}, True),
    ("fn.add", {"args": {"a": 1}}, True),
    ("fn.add", {"args": {"b": 1}}, False),
    ("fn.add", {"a": 1, "args": [1]}, False),
    ("fn.add", {"a": 1, "more": 1}, False),
    ("fn.add", {"a": 1, "timeout": 2, "max_affected": 1}, True),
    ("fn.nothing", {"max_affected": 1}, False),
    ("fn.nothing", {"max_affected": None}, True),
    ("fn.plus", {"args": [1]}, True),
    ("fn.plus", {"args": [1], "b": 3}, True),
    ("fn.plus", {"args": [1, 2]}, False),
    ("fn.plus", {"args": {"b": 3}}, False),
    ("fn.plus", {"b": 3}, False),
    ("fn.plus", {}, False),
    ("fn.perhaps", {}, True),
    ("fn.perhaps", {"args": [1]}, True),
    ("fn.words", {"args": ["x"]}, True),
    ("fn.words", {"args": {"args": ["x"]}}, True),
    ("fn.words", {}, False),
    ("fn.words", {"args": 5}, False),
    ("fn.later", {"timeout": 3, "form": "x"}, True),
    ("fn.later", {"timeout": "x", "form": "x"}, True),
    ("fn.later", {"args": {"timeout": 3, "form": "x"}, "timeout": 2, "form": "lists"}, True),
    ("fn.later", {"args": {"timeout": 3, "form": "x"}, "timeout": "x"}, False),
]


@pytest.mark.parametrize(("name", "kwargs", "fits"), TAKEN)
@pytest_twisted.ensureDeferred
async def test_schema_of_a_call_accepts_only_valid_arguments(
    db: DirectCaller, name: str, kwargs: dict[str, Any], fits: bool
) -> None:
    """`args` is a list of unnamed arguments or a dict, unless an argument has that name."""
    document = described(db)
    schema = document["functions"][name][0]["arguments"]
    judge = Draft202012Validator({**schema, "$defs": document["$defs"]})
    assert judge.is_valid(kwargs) is fits
