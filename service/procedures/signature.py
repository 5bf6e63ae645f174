"""
What a procedure written by hand takes: arguments are named, checked and refused as those of the
generated ones are.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from service.db.encode import KINDS, integer_text, unfit
from service.describe.written import Parameters
from service.errors import InvalidArgument
from service.request.arguments import Arguments

Function = Callable[..., Awaitable[Any]]
"""A coroutine function of a `ProcedureCall` and the caller's arguments."""

_INTEGER = integer_text(-(2**63), 2**63 - 1)


class Signature:
    """
    The parameters of a procedure, less the first, which is the call.

    Args:
        name: Of the procedure.
        function: The procedure itself.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._parameters = takes = Parameters(function)
        shown = [each if each in takes.required else f"[{each}]" for each in takes.names]
        self._usage = f"it is {name}({', '.join(shown)})"

    def bind(
        self, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[inspect.BoundArguments, float | None]:
        """
        Return the arguments of a call in their places, and the call's time limit, if any.

        Raises:
            InvalidArgument: One is missing, unknown, given twice or of another type than its
                annotation; `path` names it.
        """
        takes = self._parameters
        most = len(takes.positional) if takes.rest else len(args)
        known = [*takes.names, *(kwargs if takes.others else ())]
        given = Arguments(args[:most], kwargs, takes.positional, known, self._usage)
        for name in takes.required:
            given.required(name)
        values = {takes.call: call}
        for name in takes.names:
            if name in given:
                values[name] = fitting(takes.hints.get(name, Any), given.value(name), name)
        if takes.rest:
            values[takes.rest] = tuple(args[most:])
        if takes.others:
            names = kwargs.keys() - {*takes.names, "timeout"}
            values[takes.others] = {name: kwargs[name] for name in names}
        # A procedure may have a parameter of this name, which is its own then.
        seconds = None if "timeout" in takes.names else given.timeout()
        bound = inspect.BoundArguments(takes.signature, OrderedDict(values))
        bound.apply_defaults()
        return bound, seconds


def fitting(hint: Any, value: Any, path: str) -> Any:
    """
    Return a value as its annotation has it: integral floats and digits are integers, too.

    Raises:
        InvalidArgument: It is of another type.
    """
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        parts = get_args(hint)
        if value is None and NoneType in parts:
            return None
        parts = tuple(each for each in parts if each is not NoneType)
        return fitting(parts[0], value, path) if len(parts) == 1 else value
    wanted = KINDS.get(origin)  # what has another annotation is the procedure's own to check
    try:
        if wanted is None:
            return value
        if origin is int:
            return int(_INTEGER(value))
        # Not isinstance, since True is an int.
        if origin is float and type(value) is int:
            return float(value)
        if not isinstance(value, origin):
            raise unfit(value, wanted)
    except InvalidArgument as refused:
        raise InvalidArgument(refused.message, path=path) from None
    return value
