"""
How a procedure written by hand is made known, and what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twistar.exceptions import ImaginaryTableError

from service.api.dispatcher import Procedure
from service.db.database import Database
from service.errors import NoSuchProcedure
from service.models.meta import Values
from service.models.model import Model
from service.models.registry import Models
from service.procedures.signature import Function, Signature
from service.request.arguments import Caller


@dataclass(frozen=True)
class Call:
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
    codec: Values

    def wire(self, model: Model) -> dict[str, Any]:
        """Return the columns of an object as an answer has them."""
        return model.wire(self.codec)


REGISTERED: dict[str, Function] = {}
"""Procedures by name, as the modules of this room have declared them."""


NEEDED: dict[str, tuple[type[Model], ...]] = {}
"""Models that declared procedures cannot do without, by the procedures' names."""


def procedure(name: str, *needs: type[Model]) -> Callable[[Function], Function]:
    """
    Declare a procedure.

    Args:
        name: Its URI less the prefix; it wins over a generated procedure of that name.
        needs: Models that it cannot do without: where the database has no fitting relation
            for one, there is no such procedure.
    """

    def declare(function: Function) -> Function:
        if name in REGISTERED:
            raise ValueError(f"two procedures are called {name}")
        REGISTERED[name] = function
        NEEDED[name] = needs
        return function

    return declare


def available(name: str) -> bool:
    """Return whether the database now served has all that a procedure needs."""
    return all(model.META is not None for model in NEEDED.get(name, ()))


def procedures(
    database: Database,
    models: Models,
    codec: Callable[[], Values],
    functions: Mapping[str, Function] = REGISTERED,
) -> dict[str, Procedure]:
    """
    Return what the dispatcher serves, made of declared procedures.

    Args:
        database: As procedures get it.
        models: As procedures get them.
        codec: Asked at each call, since another catalog has another one.
        functions: By name.
    """

    def serve(name: str, function: Function) -> Procedure:
        signature = Signature(name, function)

        async def answer(caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            if not available(name):
                raise _unavailable(name)
            call = Call(caller, database, models, codec())
            bound, seconds = signature.bind(call, args, kwargs)
            try:
                return await database.within(seconds, function(*bound.args, **bound.kwargs))
            except ImaginaryTableError as error:
                raise _unavailable(name) from error

        return answer

    return {name: serve(name, function) for name, function in functions.items()}


def _unavailable(name: str) -> NoSuchProcedure:
    return NoSuchProcedure(f'this database does not have what "{name}" needs')
