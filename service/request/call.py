"""
The arguments of a call of a database function: which function, and what it is given.

This is where the raw arguments are met with what functions take, since an argument of a
function may be called like an option of the call, and since overloads are told apart by
what is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.catalog import Catalog
from service.errors import InvalidArgument, UnknownName
from service.functions import Function
from service.request.arguments import Arguments
from service.request.generic import generic_of
from service.request.overloads import Given, chosen
from service.request.parse import Parsed, parse_form
from service.request.terms import Operand
from service.request.types import Form
from service.request.values import Values

OPTIONS = ("form", "max_affected", "timeout")
ARGS = "args"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """
    A call of a function.

    Args:
        function: Which one.
        positional: What is given by position.
        named: What is given by name, in the order of the names.
        generic: The name of the type that stands for the polymorphic ones, if there are any.
        lists: Names and positions of what is given as a list for those.
        form: Of rows in the answer.
        max_affected: How many rows may come back.
    """

    function: Function
    positional: tuple[Operand, ...] = ()
    named: tuple[tuple[str, Operand], ...] = ()
    generic: str = ""
    lists: frozenset[str | int] = frozenset()
    form: Form = "dicts"
    max_affected: int | None = None


def parse_call(
    functions: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    catalog: Catalog,
) -> Parsed[CallRequest]:
    """
    Read a plain call: all keywords are the function's, but the options of the call.

    Args:
        functions: Those of the name.
        args: By position.
        kwargs: By name.
        catalog: For the types of arguments.

    Raises:
        InvalidArgument: No function takes these arguments, or more than one does.
    """
    named, options = _split(functions, kwargs)
    given = _given(functions, args, named, options.pop(ARGS, None))
    call = Arguments([], options, [], OPTIONS)
    values = Values()
    request = bind_call(
        functions, given, values, catalog, parse_form(call), call.whole("max_affected")
    )
    return Parsed(request, values.freeze(), call.timeout())


def read_given(functions: Sequence[Function], args: Sequence[Any], named: Any) -> Given:
    """
    Read what a function is given where all keywords are those of a verb.

    Args:
        functions: Those of the name.
        args: By position.
        named: The argument `args`: a dict, or a list for what goes by position.
    """
    if named is None:
        return Given(tuple(args), {}, f"{ARGS}.")
    return _given(functions, args, {}, named)


def bind_call(
    functions: Sequence[Function],
    given: Given,
    values: Values,
    catalog: Catalog,
    form: Form = "dicts",
    max_affected: int | None = None,
) -> CallRequest:
    """
    Pick the function that arguments mean, and put them among the values of the call.

    Raises:
        InvalidArgument: No function takes these arguments, or more than one does.
    """
    function = chosen(functions, given, catalog)
    generic, lists = generic_of(function, given, catalog)
    return CallRequest(
        function,
        tuple(Operand(values.add(each), f"{at}") for at, each in enumerate(given.positional)),
        tuple(
            (name, Operand(values.add(given.named[name]), f"{given.path}{name}"))
            for name in sorted(given.named)
        ),
        generic,
        lists,
        form,
        max_affected,
    )


def _split(
    functions: Sequence[Function], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the function's arguments from the options of the call."""
    names = {name for function in functions for name in function.names}
    apart = isinstance(kwargs.get(ARGS), Mapping)
    named: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in kwargs.items():
        option = name in OPTIONS or name == ARGS
        if option and (apart or name not in names):
            options[name] = value
        elif apart:
            raise UnknownName("option", name, (*OPTIONS, ARGS), path=name)
        else:
            named[name] = value
    return named, options


def _given(
    functions: Sequence[Function], args: Sequence[Any], named: Mapping[str, Any], apart: Any
) -> Given:
    if apart is None:
        return Given(tuple(args), named)
    if isinstance(apart, list | tuple):
        if args:
            raise InvalidArgument("values by position are given twice", path=ARGS)
        return Given(tuple(apart), named)
    if not isinstance(apart, Mapping) or not all(isinstance(name, str) for name in apart):
        raise InvalidArgument(
            '"args" is a dict of names and values, or a list of values', path=ARGS
        )
    return Given(tuple(args), apart, f"{ARGS}.")
