"""
Procedures and models written by hand: how they are declared and loaded, and how procedures are called.

`ROWCAST_APP` names the modules of an application. There is no global registry: a model or a procedure
belongs to the application because one of its modules contains it, so two services or tests in one process
can have two applications. Arguments are named, checked and refused like those of generated procedures.
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
from typing import Any, TypeVar, Union, get_args, get_origin, overload

from twistar.exceptions import ImaginaryTableError

from service.api.dispatcher import Procedure
from service.api.interactive import TX
from service.db.codec import Codec
from service.db.database import Database
from service.db.encode import integer_text, wrong_type
from service.db.json import KINDS
from service.db.worker import ORIGIN
from service.describe.document import OWN, Parameters
from service.errors import InvalidArgument, NoSuchProcedure, clip
from service.models.model import Model
from service.models.served import Models
from service.request.arguments import Arguments, Caller


@dataclass(frozen=True)
class ProcedureCall:
    """
    One call of a procedure, which is its first argument.

    Args:
        caller: The session that calls.
        database: Runs transactions, and statements without a model.
        models: Has the generated models of relations.
        codec: Reads and writes values.
    """

    caller: Caller
    database: Database
    models: Models
    codec: Codec

    @property
    def id(self) -> str:
        """The id of the call, which the log and an internal error name."""
        origin = ORIGIN.get()
        return "" if origin is None else origin.call

    @overload
    def wire(self, found: Model) -> dict[str, Any]: ...
    @overload
    def wire(self, found: Iterable[Model]) -> list[dict[str, Any]]: ...
    def wire(self, found: Model | Iterable[Model]) -> Any:
        """Return the columns of an object as wire values; of several objects, the list of them."""
        if isinstance(found, Model):
            return found.wire(self.codec)
        return [each.wire(self.codec) for each in found]


Function = Callable[..., Awaitable[Any]]
"""A coroutine function of a `ProcedureCall` and the caller's arguments."""
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Declared:
    """
    A procedure as its module declares it.

    Args:
        function: The procedure.
        needs: Models that it requires.
    """

    function: Function
    needs: tuple[type[Model], ...] = ()

    @property
    def available(self) -> bool:
        """Whether the served catalog has the relations of all required models."""
        return all(model.META is not None for model in self.needs)


def procedure(name: str, *needs: type[Model]) -> Callable[[F], F]:
    """
    Declare a procedure; returns the function unchanged.

    Args:
        name: Its URI without the prefix; it takes precedence over a generated procedure of that name.
        needs: Models that it requires. If the relation of one is not served, the procedure does not exist.

    Raises:
        ValueError: No call could reach this procedure, or be answered by it.
    """
    # Here and not where the application is loaded, so that the traceback has the line of the declaration.
    declaration = f"@procedure({clip(repr(name))})"
    if not (isinstance(name, str) and _URI.fullmatch(name)):
        raise ValueError(
            f'{declaration}: a name is a URI like "drivers.retire": no space, "#" or ".."'
        )
    if name in OWN or name.startswith(TX):
        raise ValueError(f"{declaration}: the service has a procedure of this name itself")
    for model in needs:
        if not (
            isinstance(model, type)
            and issubclass(model, Model)
            and getattr(model, "TABLENAME", None)
        ):
            raise ValueError(f"{declaration}: {clip(model)} is no Model with a TABLENAME")

    def declare(function: F) -> F:
        # What another decorator returns may return a Deferred, as with inlineCallbacks.
        is_async: bool = inspect.iscoroutinefunction(function)
        if not (is_async or hasattr(function, "__wrapped__")):
            raise ValueError(f"{declaration}: the function is not declared with async def")
        first = next(iter(inspect.signature(function).parameters.values()), None)
        if first is None or first.kind not in (
            first.POSITIONAL_ONLY,
            first.POSITIONAL_OR_KEYWORD,
        ):
            raise ValueError(f"{declaration}: the first parameter is not one for the ProcedureCall")
        replaced = getattr(sys.modules.get(function.__module__), function.__qualname__, None)
        if isinstance(replaced, FunctionType) and declarations(replaced).keys() - {name}:
            raise ValueError(
                f"{declaration}: {function.__qualname__} is the function of another procedure of this"
                " module, which would be lost"
            )
        # On the function, because two services or tests in one process would share a registry.
        vars(function).setdefault(_MARK, {})[name] = Declared(function, needs)
        return function

    return declare


def declarations(function: Callable[..., Any]) -> Mapping[str, Declared]:
    """Return the procedures that a function is declared as, by name."""
    found: Mapping[str, Declared] = vars(function).get(_MARK, {})
    return found


_MARK = "__rowcast_procedures__"

_URI = re.compile(r"[^\s.#]+(\.[^\s.#]+)*")
"""A URI by the loose rules of WAMP; strict ones, which a realm may have, allow no capital letters either."""


def procedures(
    database: Database,
    models: Models,
    codec: Callable[[], Codec],
    declared: Mapping[str, Declared],
) -> dict[str, Procedure]:
    """
    Return the procedures for the dispatcher, which check their arguments and call the functions.

    Args:
        database: Passed to the procedures.
        models: Passed to the procedures.
        codec: Returns the current codec; called for each call, since each catalog has its own.
        declared: The declarations by name.
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
    # As of a generated procedure: whether the database has it may be none of the caller's business.
    return NoSuchProcedure(
        f'"{name}" needs a relation that is not served',
        hint="a relation is served if it exists and a role of the callers may use it; the columns that"
        " the rules of its model need have to be there as well",
    )


_INTEGER = integer_text(-(2**63), 2**63 - 1)


class Signature:
    """
    The parameters of a procedure without the first one, which is the call.

    Args:
        name: The name of the procedure.
        function: The procedure.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._parameters = takes = Parameters(function)
        shown = [each if each in takes.required else f"[{each}]" for each in takes.names]
        self._usage = f"it is {name}({', '.join(shown)})"

    def bind(
        self, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[inspect.BoundArguments, float | None]:
        """
        Return the arguments bound to the parameters, and the timeout in seconds, if the call has one.

        Raises:
            InvalidArgument: An argument is missing, unknown, given twice or not of the annotated type;
                `path` names it.
        """
        takes = self._parameters
        # Further positional arguments are for `*args`; they have no names, so `Arguments` cannot check them.
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
        # A parameter of the procedure called "timeout" is not the call's time limit.
        seconds = None if "timeout" in takes.names else given.timeout()
        bound = inspect.BoundArguments(takes.signature, OrderedDict(values))
        bound.apply_defaults()
        return bound, seconds


def fitting(hint: Any, value: Any, path: str) -> Any:
    """
    Return a value of the annotated type: integral floats and strings of digits become integers.

    Raises:
        InvalidArgument: The value is not of that type.
    """
    origin = get_origin(hint) or hint
    if origin in (Union, UnionType):
        parts = get_args(hint)
        if value is None and NoneType in parts:
            return None
        parts = tuple(each for each in parts if each is not NoneType)
        return fitting(parts[0], value, path) if len(parts) == 1 else value
    wanted = KINDS.get(origin)  # values of other annotations are checked by the procedure itself
    try:
        if wanted is None:
            return value
        if origin is int:
            return int(_INTEGER(value))
        # Not isinstance, because True is an int.
        if origin is float and type(value) is int:
            return float(value)
        if not isinstance(value, origin):
            raise wrong_type(value, wanted)
    except InvalidArgument as refused:
        raise InvalidArgument(refused.message, path=path) from None
    return value


NOT_LOADED = re.compile(r"tests?$|tests?_|conftest$|__main__$")
"""Modules of a package that are not loaded, by the beginning of their names."""


class InvalidApplication(ValueError):
    """A module that `ROWCAST_APP` names cannot be used; its message says what to do."""


@dataclass(frozen=True)
class Application:
    """
    The models and procedures of an application.

    Args:
        models: Models with a TABLENAME; they take precedence over generated ones of the same relation.
        procedures: The procedures by their URI without the prefix.
    """

    models: tuple[type[Model], ...] = ()
    procedures: Mapping[str, Declared] = field(default_factory=dict)


def load_application(names: Iterable[str]) -> Application:
    """
    Import modules, and return the models and procedures that they define or import by name.

    The working directory is put at the front of Python's path. A package is imported with all of its modules
    except tests. Blocks.

    Args:
        names: Dotted names of modules.

    Raises:
        InvalidApplication: A module is missing or raises, or two models have the same table, or two
            procedures the same name.
    """
    models: dict[str, type[Model]] = {}
    procedures: dict[str, Declared] = {}
    for module in _modules(names):
        for value in list(vars(module).values()):
            if isinstance(value, type) and issubclass(value, Model):
                table = getattr(value, "TABLENAME", None)
                # The same class is found again in each module that imports it by name.
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
        # As `python -m`, Flask and uvicorn do. A console script has only its own directory on the path.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        yield from _with_submodules(_imported(name))


def _with_submodules(module: ModuleType) -> Iterator[ModuleType]:
    yield module
    for each in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if not NOT_LOADED.match(each.name):
            yield from _with_submodules(_imported(f"{module.__name__}.{each.name}"))


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
    frames = traceback.extract_tb(error.__traceback__)
    # The refusal of a declaration is raised in this module, and the line to mend is its caller's.
    frame = next(each for each in reversed(frames) if each.filename != __file__)
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
