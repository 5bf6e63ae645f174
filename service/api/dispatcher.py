"""
One call, whole.

A call comes in as a name and raw arguments. The name picks a relation and a verb, a
procedure written by hand, or the service's own. A verb reads its arguments
into a request, plans it against the catalog, builds one statement, runs it in
the pool and shapes the rows. No step knows the next one; a refusal leaves any
of them as a `ServiceError`.

A refusal may be the catalog's fault, since the database may have changed after it was read: such
a call is answered once more from a new one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from twisted.internet.defer import CancelledError, succeed

from service.api.call import CallContext, Send
from service.api.functions import Calling
from service.api.import_ import Forward, Importing
from service.api.read import Aggregating, Reading
from service.api.roles import Roles, identity_for
from service.api.snapshot import Snapshot
from service.api.stream import Exporting, Streaming, of_relation
from service.api.verbs import VERBS
from service.api.write import Changing, Creating
from service.catalog import Relation
from service.db.database import Database
from service.db.errors import STALE, refusal
from service.db.session import Identity
from service.db.slow import ORIGIN, Origin
from service.db.transaction import Actor
from service.describe.verbs import Verb
from service.errors import (
    Canceled,
    Conflict,
    DatabaseRefused,
    InvalidArgument,
    InvalidRow,
    NoSuchProcedure,
    NotAuthorized,
    OutcomeUnknown,
    ServiceError,
    StatementTimeout,
    TooLarge,
    Unavailable,
    clip,
    committed_despite,
    nearest,
)
from service.payload import fit
from service.request.arguments import Caller, UnknownArgument
from service.request.names import FN, FunctionName, Name, encode, parse_name
from service.request.read import Limits
from service.request.synonyms import EXAMPLES, at_hand, synonym_hint

Refresh = Callable[[], Awaitable[bool]]
"""Reads the catalog again if it has changed; returns whether it is up to date then."""

RETRY_AFTER = 1.0
"""Seconds after which a caller may try again who was refused by a catalog that may be old."""

_CATALOG_ERRORS = (InvalidArgument, NoSuchProcedure, NotAuthorized, InvalidRow, DatabaseRefused)


Handler = Callable[..., Awaitable[Any]]
"""Called with what is served, the relation, args and kwargs; those that stand alone with the context too."""

HALF_WAY = "the call ended half way: what it had committed by then is kept"

Procedure = Callable[[Caller, Sequence[Any], Mapping[str, Any]], Awaitable[Any]]


class Dispatcher:
    """
    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What an answer may weigh on the wire, roughly.
        roles: With whose rights a call runs.
        refresh: Called when a call is refused as if the catalog were out of date; returns
            whether it is up to date then.
        process: The id of this process among those of the service.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        max_bytes: int,
        roles: Roles = Roles(),  # noqa: B008 - frozen
        refresh: Refresh = lambda: succeed(True),
        process: str = "0" * 16,
    ) -> None:
        self._procedures: dict[str, Procedure] = {}
        self._once: set[str] = set()
        self._max_bytes = max_bytes
        self.refresh = refresh
        self._database = database
        self._roles = roles
        self._union: Snapshot | None = None
        self._served: Mapping[str, Snapshot] = {}
        reading = Reading(database, limits, max_bytes)
        aggregating = Aggregating(database, limits, max_bytes)
        creating = Creating(database, limits, max_bytes)
        changing = Changing(database, limits, max_bytes)
        streaming = Streaming(database, limits, max_bytes, of_relation)
        exporting = Exporting(database, limits, max_bytes, of_relation)
        self._importing = Importing(database, limits, process)
        self._calling = Calling(database, limits, max_bytes)
        self.verbs = dict(VERBS)
        self._handlers: Mapping[str, Handler] = {
            "get": reading.get,
            "find": reading.find,
            "count": reading.count,
            "exists": reading.exists,
            "stream": streaming.stream,
            "export": exporting.export,
            "aggregate": aggregating.aggregate,
            "create": creating.create,
            "upsert": creating.upsert,
            "update": changing.update,
            "delete": changing.delete,
            "import": self._importing.take,
        }

    @property
    def served(self) -> Snapshot:
        """
        Return the snapshot of what is served to any role now.

        Raises:
            Unavailable: The database was not read yet.
        """
        if self._union is None:
            raise _unread()
        return self._union

    def served_to(self, caller: Caller) -> Snapshot:
        """
        Return the snapshot of what is served to a caller now: what the caller's role may use.

        Raises:
            NotAuthorized: The caller has no role in the database.
            Unavailable: The database was not read yet.
        """
        return self._served_as(self._roles.of(caller))

    def _served_as(self, role: str) -> Snapshot:
        snapshot = self._served.get(role)
        if snapshot is None:
            if self._union is None:
                raise _unread()
            raise NotAuthorized("the database role of these callers is not there, or not ours")
        return snapshot

    @property
    def served_roles(self) -> Collection[str]:
        """Return the database roles whose callers are served now."""
        return self._served.keys()

    @property
    def ready(self) -> bool:
        """Return whether there is anything served yet."""
        return self._union is not None

    def add(self, procedures: Mapping[str, Procedure], once: bool = True) -> None:
        """Serve procedures by name, of which some run once; they win over generated ones."""
        self._procedures.update(procedures)
        if once:
            self._once |= procedures.keys()

    def serve(self, union: Snapshot, snapshots: Mapping[str, Snapshot]) -> None:
        """Serve other catalogs from now on, to any role and by role; running calls keep theirs."""
        self._union = union
        self._served = snapshots

    def share(self, forward: Forward) -> None:
        """Pass calls on to other processes that have what they belong to."""
        self._importing.forward = forward

    def departed(self, session: int | None = None) -> None:
        """Drop what a caller's session has begun; without one, what any has: no router is there."""
        self._importing.uploads.departed(session)

    def stop(self) -> None:
        """Begin nothing that outlasts its call, and end what no call is at."""
        self._importing.uploads.stop()

    async def forwarded(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], session: int | None
    ) -> Any:
        """
        Answer a call that another process of the service has passed on: one of an upload of ours.

        It is made as the one who began the upload. Who passes it on says nothing but the session,
        which has to be that one's, so that it can give nobody other rights.

        Raises:
            ServiceError: Any refusal.
        """
        if not name.endswith(".import"):
            raise NotAuthorized("only calls of an upload are passed on")
        lease = self._importing.of(kwargs.get("upload"), session)
        return await self.answer(name, args, kwargs, lease.owner)

    async def answer(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        progress: Send | None = None,
    ) -> Any:
        """
        Answer a call.

        Args:
            name: Of the procedure, less the prefix, as in "actions.get".
            args: As they came.
            kwargs: As they came.
            caller: Who calls.
            progress: Sends parts of the answer, if the caller takes any.

        Raises:
            ServiceError: Any refusal.
        """
        if name.startswith("tx."):  # a process that is there answers by a registration of its own
            raise Conflict("the service that had this has stopped", reason="stopped")
        role, context = self._roles.of(caller), CallContext(caller, progress)
        ORIGIN.set(Origin(uuid4().hex, name, role))
        for last in (False, False, True):  # the schema may have changed once more meanwhile
            before = self._union
            try:
                return await self._answer(name, args, kwargs, role, context)
            except ServiceError as error:
                if not depends_on_catalog(error):
                    raise
                current = self.refresh()
                if last or context.begun or name in self._once:
                    raise
                if not await current:
                    error.details |= {"retry": True, "retry_after": RETRY_AFTER}
                    raise
                if self._union is before:
                    raise
        raise AssertionError(name)

    async def _answer(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        role: str,
        context: CallContext,
    ) -> Any:
        relation = snapshot = None
        try:
            procedure = self._procedures.get(name)
            if procedure is not None:
                with self._acting_as(identity_for(role, context.caller)) as actor:
                    result = await procedure(context.caller, args, kwargs)
                    if actor.committed:
                        fit(result, self._max_bytes)
                    return result
            snapshot = self._served_as(role)
            parsed = self._as_relation(snapshot, parse_name(name))
            with self._acting_as(identity_for(role, context.caller, _beside(snapshot, parsed))):
                if isinstance(parsed, FunctionName):
                    return await self._calling.answer(snapshot, parsed, args, kwargs, context)
                relation, verb = self.resolve(snapshot, parsed)
                contexts = (context,) if verb.alone else ()
                handler = self._handlers[verb.name]
                return await handler(snapshot, relation, args, kwargs, *contexts)
        except ServiceError as error:
            if isinstance(error, UnknownArgument) and relation and error.name in relation.columns:
                error.of_column()
            if snapshot is not None and "hint" in error.details:
                error.details["hint"] = _at_hand(snapshot, relation, error.details["hint"])
            raise
        except CancelledError:
            raise
        except Exception as error:
            found = refusal(error, snapshot.catalog if snapshot else None, relation)
            if found is None:
                self.refresh()
                raise
            raise found from error

    @contextmanager
    def _acting_as(self, identity: Identity) -> Iterator[Actor]:
        """
        Run the body as a role; yields the record of what its statements did.

        Raises:
            OutcomeUnknown: It ends as if nothing had been changed, and something is kept.
        """
        with self._database.identity(identity) as actor:
            try:
                yield actor
            except Exception as error:
                if actor.committed and isinstance(error, TooLarge):
                    raise committed_despite(error) from error
                if actor.committed and _claims_nothing(error):
                    raise OutcomeUnknown(HALF_WAY) from error
                raise

    def resolve(self, snapshot: Snapshot, name: Name) -> tuple[Relation, Verb]:
        """
        Find a relation and a verb.

        Raises:
            NoSuchProcedure: There is no such relation or verb; `hint` names the nearest.
        """
        schema = name.schema if name.schema is not None else snapshot.catalog.schemas[0]
        relation = snapshot.catalog.relation(schema, name.relation)
        verb = self.verbs.get(name.verb)
        if verb is None:
            raise NoSuchProcedure(
                f'"{relation.name}" has no verb "{clip(name.verb)}"',
                relation=relation.name,
                hint=_at_hand(snapshot, relation, synonym_hint("verb", name.verb, self.verbs) or "")
                or nearest(name.verb, list(self.verbs))
                or f"verbs: {', '.join(self.verbs)}",
            )
        if verb.writes and verb.rights[0] not in relation.accepted_writes:
            raise NoSuchProcedure(
                f'"{relation.name}" is a {relation.kind} that takes no {name.verb}',
                relation=relation.name,
                hint="a view takes what PostgreSQL can write through it, or a trigger for it",
            )
        return relation, verb

    def _as_relation(self, snapshot: Snapshot, name: Name | FunctionName) -> Name | FunctionName:
        """Return "app.fn.find" as a verb's name where the schema has a relation "fn"."""
        if isinstance(name, Name) or name.schema is None or name.verb is not None:
            return name
        known = (name.schema, FN) in snapshot.catalog.relations and name.function in self.verbs
        return Name(name.schema, FN, name.function) if known else name


def depends_on_catalog(error: ServiceError) -> bool:
    """Return whether the same call might be answered from another catalog."""
    if isinstance(error, Unavailable):
        return error.details.get("sqlstate") in STALE
    return isinstance(error, _CATALOG_ERRORS)


def _claims_nothing(error: Exception) -> bool:
    """Return whether an error says that nothing was changed."""
    found = refusal(error)
    return isinstance(found, Canceled | StatementTimeout) or bool(
        found and found.details.get("retry")
    )


def _unread() -> Unavailable:
    return Unavailable("the database has not been reached yet")


def _at_hand(snapshot: Snapshot, relation: Relation | None, hint: str) -> str:
    """Return a hint with an example of what is there: the project's own relations may not be."""
    catalog = snapshot.catalog
    if all((catalog.schemas[0], each) in catalog.relations for each in EXAMPLES):
        return hint
    if relation is None:
        return at_hand(hint, "", (), ())
    schema = "" if relation.schema == catalog.schemas[0] else f"{encode(relation.schema)}."
    name = f"{schema}{encode(relation.name)}"
    return at_hand(hint, name, list(relation.columns), relation.primary_key)


def _beside(snapshot: Snapshot, name: Name | FunctionName) -> str:
    """Return the schema of a call if it is served, and not the first, which sessions search."""
    return name.schema if name.schema in snapshot.catalog.schemas[1:] else ""
