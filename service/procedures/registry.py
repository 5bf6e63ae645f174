"""
How a procedure written by hand is made known, and what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from twistar.exceptions import ImaginaryTableError

from service.api.dispatcher import Procedure
from service.db.codec import Codec
from service.db.database import Database
from service.db.slow import ORIGIN
from service.errors import NoSuchProcedure
from service.models.model import Model
from service.models.served import Models
from service.procedures.signature import Function, Signature
from service.request.arguments import Caller


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
