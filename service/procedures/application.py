"""
Code of one's own: the modules that `ROWCAST_APP` names, and what is in them.

Nothing is registered anywhere: a model or a procedure is the application's because a module of
the application has it. So two services of one process, or two tests, may have two applications.
"""

from __future__ import annotations

import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import FunctionType, ModuleType

from service.models.model import Model
from service.procedures.registry import Declared, declarations

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
