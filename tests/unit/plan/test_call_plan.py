"""Plans of function calls: the columns of the result, and how arguments are passed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.catalog import Argument, Catalog, Function, Type
from service.errors import DatabaseRefused, InvalidArgument, NoSuchProcedure
from service.plan.call_plan import answer_kind, plan_call, plan_called, relation_of, result_columns
from service.plan.plans import CallPlan, ReadPlan
from service.plan.read_plan import plan_find
from service.request.call_request import parse_call, parse_called
from service.request.read_request import Limits, parse_find
from tests.unit.samples import demo_catalog

ANY = Type(2283, "pg_catalog", "anyelement", "anyelement", "pseudo", "P")
ANYARRAY = Type(2277, "pg_catalog", "anyarray", "anyarray", "pseudo", "P")
DEMO = demo_catalog()
DEMO = replace(DEMO, types={**DEMO.types, ANY.oid: ANY, ANYARRAY.oid: ANYARRAY})
BOTH = (Argument("a", 23, "out"), Argument("", 25, "out"))


def function(name: str = "f", *arguments: Argument, result: int = 23, **rest: Any) -> Function:
    """Return a function of the served schema."""
    return Function("public", name, arguments, result, **rest)


def called(of: Function, *args: Any, catalog: Catalog = DEMO, **kwargs: Any) -> CallPlan:
    """Plan a plain call."""
    return plan_call(catalog, parse_call([of], args, kwargs, catalog).request)


def found(of: Function, catalog: Catalog = DEMO, **kwargs: Any) -> ReadPlan:
    """Plan a find on a function's rows."""
    request = parse_called(
        [of], [], kwargs, catalog, lambda rest, rows: parse_find([], rest, Limits(), rows)
    ).request
    return plan_called(catalog, request, plan_find)


@pytest.mark.parametrize(
    ("of", "answer", "columns"),
    [
        (function(), "value", ("answer",)),
        (function(many=True), "values", ("answer",)),
        (function(result=2278), "nothing", ("answer",)),
        (function(result=9100), "composite", ("answer",)),
        (function(result=9100, many=True), "rows", ("id", "plate", "model", "seats", "driver_id")),
        (function("f", *BOTH, result=2249), "row", ("a", "column2")),
        (function("f", *BOTH, result=2249, many=True), "rows", ("a", "column2")),
        (function("f", *BOTH, result=2249, procedure=True), "row", ("a", "column2")),
        (function(procedure=True), "nothing", ()),
        (function(result=2249), "value", ("answer",)),
    ],
)
def test_answer_follows_from_what_a_function_returns(
    of: Function, answer: str, columns: Any
) -> None:
    """Rows have the columns of their type or of the OUT arguments; a scalar has one column."""
    assert answer_kind(DEMO, of) == answer
    plan = called(of)
    assert plan.columns == columns
    assert plan.rows is (answer in ("rows", "values"))


def test_record_of_no_known_type_is_untyped() -> None:
    """Only the server knows its columns."""
    record = function(result=2249, many=True)
    assert called(record).untyped
    assert called(record).call.names == ("answer",)
    with pytest.raises(NoSuchProcedure, match="without columns"):
        relation_of(DEMO, record, "", False)


def test_bound_for_rows_of_what_returns_none_is_refused() -> None:
    """A function without rows takes no limit of affected rows."""
    for of in (function(result=2278), function(procedure=True)):
        with pytest.raises(InvalidArgument, match="no rows"):
            called(of, max_affected=1)


def test_arguments_are_passed_by_name_except_unnamed_ones() -> None:
    """By name, each omitted argument gets its default."""
    of = function("f", Argument("", 23), Argument("b", 25))
    plan = called(of, 1, b="x")
    assert [(each.name, each.value and each.value.type.sql) for each in plan.call.arguments] == [
        ("", "integer"),
        ("b", "text"),
    ]


def test_omitted_variadic_argument_passes_all_by_position() -> None:
    """PostgreSQL uses its default only in a call by position."""
    parts = Argument("parts", 1009, "variadic", has_default=True)
    of = function("f", Argument("sep", 25), Argument("end", 25, has_default=True), parts)
    given = {"sep": "-", "end": ".", "parts": ["a"]}
    assert [each.name for each in called(of, sep="-").call.arguments] == [""]
    assert [each.name for each in called(of, **given).call.arguments] == ["sep", "end", "parts"]
    with pytest.raises(InvalidArgument, match='"end" is missing'):
        called(of, sep="-", parts=["a"])  # with a given one, PostgreSQL takes no defaults


@pytest.mark.parametrize(
    ("of", "value", "type"),
    [
        (ANY, 1, "integer"),
        (ANY, 2**40, "bigint"),
        (ANY, [1, 2], "integer[]"),
        (ANY, "x", "text"),
        (ANYARRAY, ["x"], "text[]"),
    ],
)
def test_polymorphic_argument_has_the_type_of_its_value(of: Type, value: Any, type: str) -> None:
    """A list for `anyelement` is an array, as it is for `anyarray`."""
    (argument,) = called(function("f", Argument("v", of.oid), result=25), v=value).call.arguments
    assert argument.value is not None
    assert argument.value.type.sql == type


def test_rows_of_a_function_are_those_of_its_relation_without_its_keys() -> None:
    """Columns are those of the served relation, or of another composite type."""
    rows = function(result=9100, many=True, volatility="stable")
    plan = found(rows, where={"seats": 4}, order=["plate"])
    assert plan.relation.name == "vehicles"
    assert plan.relation.primary_key == ()
    assert plan.call is not None
    assert not plan.afterwards
    with pytest.raises(NoSuchProcedure, match="returns no rows"):
        found(function())


def test_rows_that_a_function_writes_are_read_after_it() -> None:
    """Related rows are read by a second statement, because a statement does not see its own writes."""
    writes = function(result=9100, many=True)
    assert not found(writes).afterwards
    assert found(writes, where={"seats": 4}).afterwards
    assert found(writes, embed={"drivers": True}).afterwards


def test_record_that_may_have_hidden_fields_is_refused() -> None:
    """The columns of a record are unknown, so hidden ones cannot be left out."""
    hidden = replace(DEMO, hidden_fields={1: (True, False)})
    out = function("f", Argument("r", 2249, "out"), result=2249)
    assert called(out)
    with pytest.raises(DatabaseRefused, match="hidden fields"):
        called(out, catalog=hidden)
    with pytest.raises(InvalidArgument, match="JSON text"):
        called(function(result=2249), catalog=hidden, form="json")


def test_hidden_field_is_no_column_of_a_result() -> None:
    """It keeps its position in the composite type."""
    row = Type(9300, "public", "r", "public.r", "composite", "C", fields=(("a", 23), ("", 25)))
    known = replace(DEMO, types={**DEMO.types, row.oid: row})
    columns = result_columns(known, function(result=9300, many=True))
    assert columns is not None
    assert list(columns) == ["a"]
