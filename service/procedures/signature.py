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

from service.db.encode import integer_text, unfit
from service.describe.written import hints_of
from service.errors import InvalidArgument
from service.request.arguments import Arguments

Function = Callable[..., Awaitable[Any]]
"""A coroutine function of a `ProcedureCall` and the caller's arguments."""

WANTED: Mapping[Any, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    bytes: "binary",
    list: "a list",
    dict: "a dict",
}
"""Annotations that are checked; what has another one is the procedure's own to check."""

_INTEGER = integer_text(-(2**63), 2**63 - 1)


class Signature:
    """
    The parameters of a procedure, less the first, which is the call.

    Args:
        name: Of the procedure.
        function: It.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._signature = inspect.signature(function)
        self._call, *parameters = self._signature.parameters.values()
        self._hints = hints_of(function)
        self._rest = [each for each in parameters if each.kind is each.VAR_POSITIONAL]
        self._others = [each for each in parameters if each.kind is each.VAR_KEYWORD]
        named = [each for each in parameters if each not in self._rest + self._others]
        self._names = [each.name for each in named]
        self._leading = [each.name for each in named if each.kind is not each.KEYWORD_ONLY]
        self._needed = [each.name for each in named if each.default is each.empty]
        spelled = [each if each in self._needed else f"[{each}]" for each in self._names]
        self._takes = f"it is {name}({', '.join(spelled)})"

    def bind(
        self, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[inspect.BoundArguments, float | None]:
        """
        Return the arguments of a call in their places, and the call's time limit, if any.

        Raises:
            InvalidArgument: One is missing, unknown, given twice or of another type than its
                annotation; `path` names it.
        """
        most = len(self._leading) if self._rest else len(args)
        known = [*self._names, *(kwargs if self._others else ())]
        given = Arguments(args[:most], kwargs, self._leading, known, self._takes)
        for name in self._needed:
            given.required(name)
        values = {self._call.name: call}
        for name in self._names:
            if name in given:
                values[name] = fitting(self._hints.get(name, Any), given.value(name), name)
        for rest in self._rest:
            values[rest.name] = tuple(args[most:])
        for others in self._others:
            names = kwargs.keys() - {*self._names, "timeout"}
            values[others.name] = {name: kwargs[name] for name in names}
        seconds = None if "timeout" in self._names else given.timeout()
        bound = inspect.BoundArguments(self._signature, OrderedDict(values))
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
    wanted = WANTED.get(origin)
    try:
        if wanted is None:
            return value
        if origin is int:
            return int(_INTEGER(value))
        if origin is float and type(value) is int:
            return float(value)
        if not isinstance(value, origin):
            raise unfit(value, wanted)
    except InvalidArgument as refused:
        raise InvalidArgument(refused.message, path=path) from None
    return value
