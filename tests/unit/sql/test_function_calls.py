"""Calls of functions, from the arguments to the SQL text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.catalog import Argument, Function
from service.errors import InvalidArgument
from service.plan.call_plan import plan_call
from service.request.call_request import parse_call
from service.sql.saved_rows import call
from tests.unit.samples import catalog

CATALOG = catalog()
ADD = Function(
    "public", "add", (Argument("a", 23), Argument("b", 23, has_default=True)), 23,
    volatility="immutable",
)  # fmt: skip


def build_statement(function, *args, **kwargs):
    """Return the text of a call, and its parameters."""
    parsed = parse_call([function], args, kwargs, CATALOG)
    statement = call(plan_call(CATALOG, parsed.request), 11)
    return statement.text, [parsed.values[bound.slot] for bound in statement.bounds]


def test_arguments_by_name_are_cast_to_their_types():
    """They are passed by name, so that omitted ones get their defaults."""
    assert build_statement(ADD, b=2, a=1) == (
        'SELECT "public"."add"("a" => CAST(%s AS integer), "b" => CAST(%s AS integer)) AS "answer"',
        [1, 2],
    )


def test_calls_of_other_values_have_one_statement():
    """The text depends neither on the values nor on the order of the arguments."""
    first = parse_call([ADD], [], {"a": 1, "b": 2}, CATALOG).request
    assert first == parse_call([ADD], [], {"b": 5, "a": None}, CATALOG).request


def test_function_of_an_odd_name_is_quoted():
    """Quotes and percent signs in names are doubled."""
    odd = Function('a"%s', 'f"%', (Argument('x"%s', 25),), 25)
    text, _ = build_statement(odd, **{'x"%s': "v"})
    assert text == 'SELECT "a""%%s"."f""%%"("x""%%s" => CAST(%s AS text)) AS "answer"'


def test_function_that_returns_a_set_is_read_as_rows():
    """One row more than a page has is read."""
    numbers = Function("public", "numbers", (Argument("", 23),), 23, many=True)
    assert build_statement(numbers, 5)[0] == (
        'SELECT "t"."answer" FROM "public"."numbers"(CAST(%s AS integer)) AS "t" ("answer")'
        " LIMIT 11"
    )
    table = replace(
        numbers, arguments=(Argument("x", 23, "table"), Argument("", 25, "out")), result=2249
    )
    assert build_statement(table)[0] == (
        'SELECT "t"."x", "t"."column2" FROM "public"."numbers"() AS "t" ("x", "column2") LIMIT 11'
    )


def test_procedure_is_called_with_places_for_results():
    """CALL has an argument for each OUT argument."""
    work = Function(
        "public", "work", (Argument("a", 23), Argument("b", 23, "out")), 2249, procedure=True
    )
    assert build_statement(work, a=1) == (
        'CALL "public"."work"("a" => CAST(%s AS integer), "b" => NULL)', [1]
    )  # fmt: skip


def test_variadic_argument_is_a_list():
    """Without it, the other arguments are passed by position."""
    joined = Function(
        "public", "joined", (Argument("sep", 25), Argument("parts", 1009, "variadic", True)), 25
    )
    assert build_statement(joined, sep="-", parts=[])[0] == (
        'SELECT "public"."joined"("sep" => CAST(%s AS text), VARIADIC "parts" =>'
        ' CAST(%s AS text[])) AS "answer"'
    )
    assert build_statement(joined, sep="-")[0] == (
        'SELECT "public"."joined"(CAST(%s AS text)) AS "answer"'
    )  # fmt: skip


def test_argument_called_like_an_option_is_the_functions():
    """Inside of "args" it cannot be mistaken for the option."""
    clash = Function("public", "clash", (Argument("timeout", 23), Argument("form", 25)), 25)
    parsed = parse_call([clash], [], {"timeout": 5, "form": "x"}, CATALOG)
    assert (parsed.timeout, parsed.values) == (None, ("x", 5))
    parsed = parse_call([clash], [], {"args": {"timeout": 5, "form": "x"}, "timeout": 7}, CATALOG)
    assert (parsed.timeout, parsed.values) == (7.0, ("x", 5))
    with pytest.raises(InvalidArgument):
        parse_call([clash], [], {"args": {"timeout": 5}, "form": "x"}, CATALOG)


def test_overload_that_fits_the_names_is_called():
    """Of those that have the given names, the one with the fewest omitted arguments."""
    other = Function("public", "add", (Argument("a", 23),), 23)
    assert parse_call([ADD, other], [], {"a": 1}, CATALOG).request.function is other
    assert parse_call([ADD, other], [], {"a": 1, "b": 1}, CATALOG).request.function is ADD
    with pytest.raises(InvalidArgument) as refused:
        parse_call([ADD, other], [], {"c": 1}, CATALOG)
    assert refused.value.details["hint"] == ("it is add(a integer, [b integer]) or add(a integer)")
