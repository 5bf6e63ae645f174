"""
The arguments of verbs on what a function returns: `fn.<name>.find` and `fn.<name>.aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service.catalog import Catalog
from service.errors import InvalidArgument, UnknownName
from service.functions import Function
from service.request.call import ARGS, CallRequest, bind_call, read_given
from service.request.paging import digest_of
from service.request.parse import Parsed
from service.request.types import AggregateRequest, FindRequest
from service.request.values import Values

Request = TypeVar("Request", FindRequest, AggregateRequest)


@dataclass(frozen=True, slots=True)
class CalledRequest(Generic[Request]):
    """A request for rows, and the function that returns them."""

    call: CallRequest
    of: Request


def parse_called(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    catalog: Catalog,
    parse: Callable[[Mapping[str, Any], str], Parsed[Request]],
) -> Parsed[CalledRequest[Request]]:
    """
    Read a call of a verb on a function's rows; what the function is given stands in `args`.

    Args:
        functions: Those of the name.
        args: By position: they are the function's.
        kwargs: By name: they are the verb's.
        catalog: For the types of arguments.
        parse: Reads the arguments of the verb, told of what rows.

    Raises:
        InvalidArgument: It is malformed, or no function takes these arguments.
    """
    rest = {name: value for name, value in kwargs.items() if name != ARGS}
    given = read_given(functions, args, kwargs.get(ARGS))
    # the rows of other arguments are another question
    home = f"{functions[0].schema}.fn.{functions[0].name}"
    question = f"{home} {digest_of(given.positional, sorted(given.named.items()))}"
    try:
        parsed = parse(rest, question)
    except InvalidArgument as refusal:
        _explain(refusal, functions, args, rest)
        raise
    values = Values(parsed.values)
    call = bind_call(functions, given, values, catalog)
    request = CalledRequest(call, parsed.request)
    return Parsed(request, values.freeze(), parsed.timeout, parsed.question, parsed.offset)


def _explain(
    refusal: InvalidArgument,
    functions: Sequence[Function],
    args: Sequence[Any],
    rest: Mapping[str, Any],
) -> None:
    """Say which arguments are the function's, and which the verb's, where they were mistaken."""
    path = refusal.details.get("path")
    if isinstance(refusal, UnknownName):
        if path in rest and any(path in function.names for function in functions):
            refusal.details["hint"] = f'arguments of the function go into "{ARGS}"'
    elif args and path == "measures" and path not in rest:
        refusal.details.setdefault(
            "hint", "by position go arguments of the function, those of the verb by name"
        )
