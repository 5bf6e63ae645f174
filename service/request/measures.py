"""
Parse the `measures` argument: aggregate functions over rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import Values, flag_of
from service.request.filters import FilterParser
from service.request.requests import Item, Measure, Operand
from service.request.select_list import check_name, parse_one, parse_order
from service.request.synonyms import synonym_hint

FUNCTIONS = (
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "bool_and",
    "bool_or",
    "stddev",
    "variance",
    "percentile",
    "mode",
    "array_agg",
    "string_agg",
)
SORTED = ("percentile", "mode")
"""Ordered-set aggregates, which sort rows by their argument."""
LISTS = ("array_agg", "string_agg")
"""Aggregates that take an ORDER BY."""
OPTIONS = ("distinct", "separator", "where", "cast", "fraction", "discrete", "order")
MAX_MEASURES = 200
"""Measures of one call; PostgreSQL limits a result to 1,664 columns, groups included."""


def parse_measures(
    measures: Any, values: Values, max_depth: int, path: str = "measures"
) -> tuple[Measure, ...]:
    """
    Parse measures by name.

    Args:
        measures: The argument, unparsed.
        values: Values of the call; operands are appended.
        max_depth: Maximum nesting of and, or and not in their filters.
        path: Path of the argument in the call.
    """
    if not isinstance(measures, Mapping):
        raise InvalidArgument(
            "measures are a dict of names and functions",
            path=path,
            hint='as in {"total": {"sum": "amount"}}',
        )
    if len(measures) > MAX_MEASURES:
        raise InvalidArgument(f"a call has at most {MAX_MEASURES} measures", path=path)
    filters = FilterParser(values, max_depth)  # one parser, so that it counts all their conditions
    found = []
    for name, measure in measures.items():
        if not isinstance(name, str):
            raise InvalidArgument("the keys of measures are names", path=path)
        check_name(name, path)
        found.append(_measure(name, measure, values, filters, f"{path}.{name}"))
    return tuple(found)


def _measure(name: str, measure: Any, values: Values, filters: FilterParser, path: str) -> Measure:
    if not isinstance(measure, Mapping):
        raise InvalidArgument(
            "a measure is a dict of a function and its column",
            path=path,
            hint='as in {"sum": "amount"} or {"count": "*"}',
        )
    function = _function(measure, path)
    item = _operand(function, measure[function], values, f"{path}.{function}")
    distinct = flag_of(measure.get("distinct"), "distinct", f"{path}.distinct")
    cast = measure.get("cast")
    if distinct and item is None:
        raise InvalidArgument("rows are not distinct, columns are", path=f"{path}.distinct")
    if cast is not None and not isinstance(cast, str):
        raise InvalidArgument('"cast" is the name of a type', path=f"{path}.cast")
    if distinct and function in SORTED:
        raise InvalidArgument(f'"{function}" is of all values', path=f"{path}.distinct")
    if measure.get("order") is not None and function not in LISTS:
        raise InvalidArgument(f'"{function}" has no order', path=f"{path}.order")
    return Measure(
        name,
        path,
        function,
        item,
        distinct,
        _separator(function, measure, values, path),
        filters.parse(measure.get("where"), f"{path}.where"),
        cast,
        *_fraction(function, measure, values, path),
        parse_order(measure.get("order"), values, f"{path}.order"),
    )


def _function(measure: Mapping[Any, Any], path: str) -> str:
    found = [str(each) for each in measure if each not in OPTIONS]
    for each in found:
        if each not in FUNCTIONS:
            known, hint = [*FUNCTIONS, *OPTIONS], synonym_hint("function", each, FUNCTIONS)
            raise UnknownName("function", each, known, path=f"{path}.{each}", hint=hint)
    if len(found) != 1:
        raise InvalidArgument(
            "a measure has one function", path=path, hint=f"one of {', '.join(FUNCTIONS)}"
        )
    return found[0]


def _operand(function: str, operand: Any, values: Values, path: str) -> Item | None:
    """Parse the argument of a function; None means rows, as in `count(*)`."""
    if operand == "*" and function == "count":
        return None
    item = parse_one(operand, path, values)
    if item.alias is not None or item.left_out or item.reference.every:
        raise InvalidArgument(
            f'"{function}" takes a column, perhaps with a path and a cast',
            path=path,
            hint="the name of a measure is its key",
        )
    return item


def _fraction(
    function: str, measure: Mapping[str, Any], values: Values, path: str
) -> tuple[Operand | None, bool]:
    """Parse `fraction` and `discrete` of a percentile."""
    fraction = measure.get("fraction")
    discrete = flag_of(measure.get("discrete"), "discrete", f"{path}.discrete")
    if function != "percentile":
        for name in ("fraction", "discrete"):
            if measure.get(name) is not None:
                raise InvalidArgument(f'"{function}" has no {name}', path=f"{path}.{name}")
        return None, False
    if (
        not isinstance(fraction, int | float)
        or isinstance(fraction, bool)
        or not 0 <= fraction <= 1  # also false for NaN
    ):
        raise InvalidArgument(
            '"fraction" is a number from 0 to 1',
            path=f"{path}.fraction",
            hint='0.5 is the median, as in {"percentile": "seats", "fraction": 0.5}',
        )
    return Operand(values.add(fraction), f"{path}.fraction"), discrete


def _separator(
    function: str, measure: Mapping[str, Any], values: Values, path: str
) -> Operand | None:
    separator = measure.get("separator")
    if function != "string_agg":
        if separator is not None:
            raise InvalidArgument(f'"{function}" has no separator', path=f"{path}.separator")
        return None
    if separator is None:
        separator = ","
    if not isinstance(separator, str):
        raise InvalidArgument('"separator" is a string', path=f"{path}.separator")
    return Operand(values.add(separator), f"{path}.separator")
