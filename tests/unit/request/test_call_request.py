"""Which overload of a function is called, and the actual types of polymorphic arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalog import Argument, Function, Type
from service.errors import InvalidArgument, UnknownName
from service.request.call_request import (
    FAR,
    FunctionArguments,
    distance,
    parse_call,
    parse_called,
    polymorphic_type,
    resolve_overload,
)
from service.request.read_request import Limits, parse_find
from tests.unit.samples import catalog

ANY = Type(2283, "pg_catalog", "anyelement", "anyelement", "pseudo", "P")
FLOAT = Type(701, "pg_catalog", "float8", "double precision", "base", "N")
BYTES = Type(17, "pg_catalog", "bytea", "bytea", "base", "U")
CATALOG = catalog()
CATALOG = replace(
    CATALOG, types={**CATALOG.types, ANY.oid: ANY, FLOAT.oid: FLOAT, BYTES.oid: BYTES}
)


def function(*types: int, **rest: Any) -> Function:
    """Return an overload of "f" with arguments a, b … of some types."""
    arguments = (Argument(name, oid) for name, oid in zip("abcd", types, strict=False))
    return Function("public", "f", tuple(arguments), 23, **rest)


def resolved(functions: list[Function], *args: Any, **named: Any) -> Function:
    """Return the overload that is chosen for arguments."""
    return resolve_overload(functions, FunctionArguments(args, named), CATALOG)


@pytest.mark.parametrize(
    ("value", "closest", "others"),
    [
        (True, "bool", ["int4", "text"]),
        (5, "int4", ["int8", "numeric", "float8", "text", "jsonb"]),
        (2**40, "int8", ["numeric", "float8", "int4"]),
        (1.5, "float8", ["numeric", "int4", "text"]),
        ("x", "text", ["varchar", "int4", "timestamptz"]),
        (b"x", "bytea", ["text", "jsonb"]),
        ({"a": 1}, "jsonb", ["text", "int4"]),
        ([1], "_int4", ["_text", "int4"]),
    ],
)
def test_overload_is_the_one_whose_types_are_closest(
    value: Any, closest: str, others: list[str]
) -> None:
    """Whatever their order in the catalog."""
    oids = {type.name: oid for oid, type in CATALOG.types.items()}
    meant = function(oids[closest])
    functions = [function(oids[each]) for each in others]
    assert resolved([meant, *functions], a=value) is meant
    assert resolved([*functions, meant], a=value) is meant


def test_equally_close_overloads_are_refused() -> None:
    """Each is closer in one of the arguments."""
    functions = [function(23, 25), function(25, 23)]
    with pytest.raises(InvalidArgument, match="several functions") as refused:
        resolved(functions, a=1, b=1)
    assert refused.value.details["candidates"] == ["f(a integer, b text)", "f(a text, b integer)"]
    assert resolved(functions, a=1, b="x") is functions[0]


@given(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers())
)  # fmt: skip
def test_distance_is_finite_and_null_fits_all(value: Any) -> None:
    """So any value can be compared with any type."""
    for type in CATALOG.types.values():
        found = distance(value, type, CATALOG)
        assert 0 <= found <= FAR
        assert found == 0 or value is not None


@pytest.mark.parametrize(
    ("named", "type", "lists"),
    [
        ({"a": 1, "b": 2}, "int4", set()),
        ({"a": 1, "b": 2**40}, "int8", set()),
        ({"a": 1, "b": 2**70}, "numeric", set()),
        ({"a": 1, "b": 0.5}, "float8", set()),
        ({"a": 2**70, "b": 0.5}, "numeric", set()),
        ({"a": 1, "b": "x"}, "text", set()),
        ({"a": [1, [2]], "b": 3}, "int4", {"a"}),
        ({"a": True, "b": None}, "bool", set()),
        ({"a": {"x": 1}, "b": {}}, "jsonb", set()),
        ({"a": None, "b": None}, "text", set()),
    ],
)
def test_polymorphic_arguments_have_one_type(named: Any, type: str, lists: set[str]) -> None:
    """As in PostgreSQL, the one that can hold all values; text if no other can."""
    of = function(ANY.oid, ANY.oid)
    assert polymorphic_type(of, FunctionArguments((), named), CATALOG) == (type, frozenset(lists))
    assert polymorphic_type(function(23), FunctionArguments((), {"a": 1}), CATALOG) == (
        "",
        frozenset(),
    )


@pytest.mark.parametrize(
    ("kwargs", "message", "path"),
    [
        ({"a": 1}, '"b" is missing', "b"),
        ({"a": 1, "b": 2, "bb": 3}, "bb", "bb"),
        ({"args": {"a": 1}, "b": 2}, "b", "b"),
        ({"args": 5}, '"args" is a dict', "args"),
    ],
)
def test_call_that_no_function_takes_is_refused(kwargs: Any, message: str, path: str) -> None:
    """The error says which arguments are missing or surplus."""
    with pytest.raises(InvalidArgument, match=message) as refused:
        parse_call([function(23, 23)], [], kwargs, CATALOG)
    assert refused.value.details["path"] == path


def test_verb_on_rows_says_where_arguments_of_the_function_go() -> None:
    """Keyword arguments are the verb's; the function's are in "args"."""
    rows = function(23, many=True)

    def find(rest: Any, name: str) -> Any:
        return parse_find([], rest, Limits(), name)

    with pytest.raises(UnknownName) as refused:
        parse_called([rows], [], {"a": 1}, CATALOG, find)
    assert refused.value.details["hint"] == 'arguments of the function go into "args"'
    parsed = parse_called([rows], [], {"args": {"a": 1}, "limit": 5}, CATALOG, find)
    (operand,) = (operand for _, operand in parsed.request.call.named)
    assert parsed.values[operand.slot] == 1
    assert operand.path == "args.a"
    other = parse_called([rows], [], {"args": {"a": 2}, "limit": 5}, CATALOG, find)
    assert parsed.request == other.request
    assert parsed.query != other.query
