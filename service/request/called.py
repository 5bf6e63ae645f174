"""
The arguments of verbs on what a function returns: `fn.<name>.find` and `fn.<name>.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.errors import UnknownName
from service.functions import Function
from service.request.aggregate import parse_aggregate
from service.request.call import ARGS, CallRequest, bind_call, read_given
from service.request.overloads import Given
from service.request.paging import digest_of
from service.request.parse import Limits, Parsed, parse_find
from service.request.types import AggregateRequest, FindRequest
from service.request.values import Values

Request = TypeVar("Request", FindRequest, AggregateRequest)


@dataclass(frozen=True, slots=True)
class CalledRequest(Generic[Request]):
    """A request for rows, and the function that returns them."""

    call: CallRequest
    of: Request


def parse_called_find(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    polymorphic: frozenset[int],
) -> Parsed[CalledRequest[FindRequest]]:
    """
    Read a `find` on a function's rows; what the function is given stands in `args`.

    Raises:
        InvalidArgument: It is malformed, or no function takes these arguments.
    """
    given, rest = _apart(functions, args, kwargs)
    # the rows of other arguments are another question
    home = f"{functions[0].schema}.fn.{functions[0].name}"
    question = f"{home} {digest_of(given.positional, sorted(given.named.items()))}"
    parsed = _told(functions, rest, lambda: parse_find([], rest, limits, question))
    return _bound(functions, given, parsed, polymorphic)


def parse_called_aggregate(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    polymorphic: frozenset[int],
) -> Parsed[CalledRequest[AggregateRequest]]:
    """
    Read an `aggregate` of a function's rows; what the function is given stands in `args`.

    Raises:
        InvalidArgument: It is malformed, or no function takes these arguments.
    """
    given, rest = _apart(functions, args, kwargs)
    parsed = _told(functions, rest, lambda: parse_aggregate([], rest, limits))
    return _bound(functions, given, parsed, polymorphic)


def _apart(
    functions: Sequence[Function], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Given, Mapping[str, Any]]:
    rest = {name: value for name, value in kwargs.items() if name != ARGS}
    return read_given(functions, args, kwargs.get(ARGS)), rest


def _told(
    functions: Sequence[Function], rest: Mapping[str, Any], parse: Callable[[], Parsed[Request]]
) -> Parsed[Request]:
    """Read the arguments of the verb; say where those of the function belong."""
    try:
        return parse()
    except UnknownName as refusal:
        path = refusal.details.get("path")
        if path in rest and any(path in function.names for function in functions):
            refusal.details["hint"] = f'arguments of the function go into "{ARGS}"'
        raise


def _bound(
    functions: Sequence[Function],
    given: Given,
    parsed: Parsed[Request],
    polymorphic: frozenset[int],
) -> Parsed[CalledRequest[Request]]:
    values = Values(parsed.values)
    call = bind_call(functions, given, values, polymorphic)
    request = CalledRequest(call, parsed.request)
    return Parsed(request, values.freeze(), parsed.timeout, parsed.question, parsed.offset)
