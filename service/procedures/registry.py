"""
How a procedure written by hand is made known, what it takes, and what it is given.

Arguments are named, checked and refused as those of the generated procedures are.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from twistar.exceptions import ImaginaryTableError

from service.api.dispatcher import Procedure
from service.db.codec import Codec
from service.db.database import Database
from service.db.encode import KINDS, integer_text, unfit
from service.db.slow import ORIGIN
from service.describe.written import Parameters
from service.errors import InvalidArgument, NoSuchProcedure
from service.models.model import Model
from service.models.served import Models
from service.request.arguments import Arguments, Caller


@dataclass(frozen=True)
class ProcedureCall:
    """
    One call of a procedure.

    Args:
        caller: Who calls.
        database: For transactions, and for statements that no model has.
        models: For the models of relations that have none of their own.
        codec: For values.
    """

    caller: Caller
    database: Database
    models: Models
    codec: Codec

    @property
    def id(self) -> str:
        """The id of the call, as the log and an internal error have it."""
        origin = ORIGIN.get()
        return "" if origin is None else origin.call

    def wire(self, model: Model) -> dict[str, Any]:
        """Return the columns of an object as an answer has them."""
        return model.wire(self.codec)


Function = Callable[..., Awaitable[Any]]
"""A coroutine function of a `ProcedureCall` and the caller's arguments."""
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Declared:
    """
    A procedure as its module declares it.

    Args:
        function: It.
        needs: Models that it cannot do without.
    """

    function: Function
    needs: tuple[type[Model], ...] = ()

    @property
    def available(self) -> bool:
        """Whether the database now served has all that it needs."""
        return all(model.META is not None for model in self.needs)


def procedure(name: str, *needs: type[Model]) -> Callable[[F], F]:
    """
    Declare a procedure; the function itself stays as it is.

    Args:
        name: Its URI less the prefix; it wins over a generated procedure of that name.
        needs: Models that it cannot do without: where the database has no fitting relation
            for one, there is no such procedure.
    """

    def declare(function: F) -> F:
        # On the function itself: two services, or two tests, would share what the process keeps.
        vars(function).setdefault(_MARK, {})[name] = Declared(function, needs)
        return function

    return declare


def declarations(function: Callable[..., Any]) -> Mapping[str, Declared]:
    """Return the procedures that a function was declared to be, by name."""
    found: Mapping[str, Declared] = vars(function).get(_MARK, {})
    return found


_MARK = "__rowcast_procedures__"


def procedures(
    database: Database,
    models: Models,
    codec: Callable[[], Codec],
    declared: Mapping[str, Declared],
) -> dict[str, Procedure]:
    """
    Return what the dispatcher serves: procedures that check their arguments and call a function.

    Args:
        database: As procedures get it.
        models: As procedures get them.
        codec: Asked at each call, since another catalog has another one.
        declared: By name.
    """

    def serve(name: str, found: Declared) -> Procedure:
        signature = Signature(name, found.function)

        async def answer(caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            if not found.available:
                raise _unavailable(name)
            call = ProcedureCall(caller, database, models, codec())
            bound, seconds = signature.bind(call, args, kwargs)
            try:
                return await database.within(seconds, found.function(*bound.args, **bound.kwargs))
            except ImaginaryTableError as error:
                raise _unavailable(name) from error

        return answer

    return {name: serve(name, found) for name, found in declared.items()}


def _unavailable(name: str) -> NoSuchProcedure:
    return NoSuchProcedure(f'this database does not have what "{name}" needs')


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
        # What is beyond the named ones is for `*args`, whose items have no names to be refused by.
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
