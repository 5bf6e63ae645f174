"""
The hub: one call, whole.

A call comes in as a name and raw arguments. The name picks a relation and a verb, a
procedure written by hand, or a word about the service itself. A verb reads its arguments
into a request, plans it against the catalog, spells the plan as one statement, runs it in
the pool and gives the rows their form. No step knows the next one; a refusal leaves any
of them as a `ServiceError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError

from service.answer.aggregating import Aggregating
from service.answer.changing import Changing
from service.answer.creating import Creating
from service.answer.reading import Reading
from service.answer.served import Served
from service.catalog import Relation
from service.db.scope import Database
from service.db.sqlstate import STALE, refusal
from service.errors import NoSuchProcedure, ServiceError, Unavailable, clip, nearest
from service.request.caller import Caller
from service.request.names import Name, parse_name
from service.request.parse import Limits

Verb = Callable[[Served, Relation, Sequence[Any], Mapping[str, Any]], Awaitable[Any]]
Procedure = Callable[[Caller, Sequence[Any], Mapping[str, Any]], Awaitable[Any]]


class Hub:
    """
    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What an answer may weigh on the wire, roughly.
        suspect: Called when a statement fails as if the catalog were out of date.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        max_bytes: int,
        suspect: Callable[[], None] = lambda: None,
    ) -> None:
        self._procedures: dict[str, Procedure] = {}
        self.suspect = suspect
        self._served: Served | None = None
        reading = Reading(database, limits, max_bytes)
        aggregating = Aggregating(database, limits, max_bytes)
        creating = Creating(database, limits, max_bytes)
        changing = Changing(database, limits, max_bytes)
        self.verbs: Mapping[str, Verb] = {
            "get": reading.get,
            "find": reading.find,
            "count": reading.count,
            "exists": reading.exists,
            "aggregate": aggregating.aggregate,
            "create": creating.create,
            "update": changing.update,
            "delete": changing.delete,
        }

    @property
    def served(self) -> Served:
        """
        What is served now.

        Raises:
            Unavailable: The database was not read yet.
        """
        if self._served is None:
            raise Unavailable("the database has not been reached yet")
        return self._served

    @property
    def ready(self) -> bool:
        """Whether there is anything served yet."""
        return self._served is not None

    def add(self, procedures: Mapping[str, Procedure]) -> None:
        """Serve procedures by name; they win over generated ones."""
        self._procedures.update(procedures)

    def serve(self, served: Served) -> None:
        """Serve another catalog from now on; running calls keep theirs."""
        self._served = served

    async def answer(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller
    ) -> Any:
        """
        Answer a call.

        Args:
            name: Of the procedure, less the prefix, as in "actions.get".
            args: As they came.
            kwargs: As they came.
            caller: Who calls.

        Raises:
            ServiceError: Any refusal.
        """
        relation = None
        try:
            procedure = self._procedures.get(name)
            if procedure is not None:
                return await procedure(caller, args, kwargs)
            served = self.served
            relation, verb = self.resolve(served, parse_name(name))
            return await verb(served, relation, args, kwargs)
        except (ServiceError, CancelledError):
            raise
        except Exception as error:
            found = refusal(error, self.served.catalog, relation)
            if found is None:
                raise
            if found.details.get("sqlstate") in STALE:
                self.suspect()
            raise found from error

    def resolve(self, served: Served, name: Name) -> tuple[Relation, Verb]:
        """
        Find a relation and a verb.

        Raises:
            NoSuchProcedure: There is no such relation or verb; `hint` names the nearest.
        """
        schema = name.schema if name.schema is not None else served.catalog.schemas[0]
        relation = served.catalog.relation(schema, name.relation)
        verb = self.verbs.get(name.verb)
        if verb is None:
            raise NoSuchProcedure(
                f'"{relation.name}" has no verb "{clip(name.verb)}"',
                relation=relation.name,
                hint=nearest(name.verb, list(self.verbs)) or f"verbs: {', '.join(self.verbs)}",
            )
        return relation, verb
