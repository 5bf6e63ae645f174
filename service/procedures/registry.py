"""
How a procedure written by hand is made known, what it takes, and what it is given.

Arguments are named, checked and refused as those of the generated procedures are.

They are in the modules that `ROWCAST_APP` names. Nothing is registered anywhere: a model or a procedure
is the application's because a module of the application has it. So two services of one process, or two
tests, may have two applications.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import FunctionType, ModuleType, NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from twistar.exceptions import ImaginaryTableError

from service.api.dispatcher import Procedure
from service.db.codec import Codec
from service.db.database import Database
from service.db.encode import KINDS, integer_text, unfit
from service.db.slow import ORIGIN
from service.describe.document import Parameters
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


NOT_LOADED = re.compile(r"tests?$|tests?_|conftest$|__main__$")
"""Modules of a package that are not for the service, by the beginning of their names."""


class InvalidApplication(ValueError):
    """A module that `ROWCAST_APP` names cannot be used; its message says what to do."""


@dataclass(frozen=True)
class Application:
    """
    What the service takes over from modules of one's own.

    Args:
        models: Those with a TABLENAME; they win over generated ones of the same relation.
        procedures: By their URI less the prefix.
    """

    models: tuple[type[Model], ...] = ()
    procedures: Mapping[str, Declared] = field(default_factory=dict)


def load_application(names: Iterable[str]) -> Application:
    """
    Import modules, and return the models and procedures that they declare or import by name.

    The working directory is on Python's path then, in front. A package is imported with all
    modules in it, but for tests. Blocks.

    Args:
        names: Dotted names of modules.

    Raises:
        InvalidApplication: One is missing or raises; or two models have the same table, two
            procedures the same name.
    """
    models: dict[str, type[Model]] = {}
    procedures: dict[str, Declared] = {}
    for module in _modules(names):
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, Model):
                table = getattr(value, "TABLENAME", None)
                # The same class comes up again where another module imports it by name.
                if table and models.setdefault(table, value) is not value:
                    raise _twice("models are of the table", table, models[table], value)
            elif isinstance(value, FunctionType):
                for name, declared in declarations(value).items():
                    found = procedures.setdefault(name, declared)
                    if found is not declared:
                        raise _twice("procedures are called", name, found.function, value)
    return Application(tuple(models.values()), procedures)


def _modules(names: Iterable[str]) -> Iterator[ModuleType]:
    for name in names:
        # As `python -m`, Flask and uvicorn do; a console script has its own directory there.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        yield from _with_those_in_it(_imported(name))


def _with_those_in_it(module: ModuleType) -> Iterator[ModuleType]:
    yield module
    for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not NOT_LOADED.match(each.name):
            yield from _with_those_in_it(_imported(f"{module.__name__}.{each.name}"))


def _imported(name: str) -> ModuleType:
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        path = name.removesuffix(".py").strip("./").replace("/", ".")
        raise InvalidApplication(
            f'ROWCAST_APP: "{name}" is no module → name modules as in an import: {path or "app"}'
        )
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise InvalidApplication(
                f'ROWCAST_APP: there is no module "{error.name}" in {os.getcwd()} or elsewhere on'
                " Python's path → start the service in the directory that has it, or set PYTHONPATH"
            ) from error
        raise _failed(name, error, f"pip install it for {sys.executable}") from error
    except Exception as error:
        raise _failed(name, error, "mend it, or take it out of ROWCAST_APP") from error


def _failed(name: str, error: Exception, cure: str) -> InvalidApplication:
    reason = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    there = (error.filename, error.lineno) if isinstance(error, SyntaxError) else frame[:2]
    return InvalidApplication(
        f"ROWCAST_APP: {name} cannot be imported: {reason} ({there[0]}, line {there[1]}) → {cure}"
    )


def _twice(what: str, name: str, first: object, second: object) -> InvalidApplication:
    both = " and ".join(
        f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', each)}"
        for each in (first, second)
    )
    return InvalidApplication(f'ROWCAST_APP: two {what} "{name}": {both} → leave one of them')
