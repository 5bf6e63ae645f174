"""
One call, whole: from its name and arguments to its answer.

A name is a route: a verb, and the relation or the functions that it is about. The verb parses the
arguments into a request, plans it against the catalog and builds a statement: a `Step`, made
without the database. The call runs the step, and the step shapes what came of it. A refusal leaves
any of them as a `ServiceError`. It may be the catalog's fault, since the database may have changed
after it was read: such a call is answered once more from a new one.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from twisted.internet.defer import CancelledError, succeed

from service.api.call import (
    Backend,
    Call,
    CallState,
    Prepared,
    Route,
    Send,
    Snapshot,
    Step,
    no_operation,
)
from service.api.idempotency import key_id, no_key, once_only
from service.api.import_ import Forward, Importing
from service.api.interactive import BEGIN, TX, Interactive, ended
from service.api.leases import Leases
from service.api.roles import Roles, identity_for
from service.api.verbs import FUNCTION, VERBS
from service.catalog import Relation
from service.db.database import Database
from service.db.keys import Keyed
from service.db.slow import ORIGIN, Origin
from service.db.sqlstate import STALE, claims_nothing, refusal
from service.db.transaction import Actor
from service.describe.verb import Verb
from service.errors import (
    DatabaseRefused,
    InvalidArgument,
    InvalidRow,
    NoSuchProcedure,
    NotAuthorized,
    OutcomeUnknown,
    ServiceError,
    TooLarge,
    Unavailable,
    clip,
    committed_despite,
    nearest,
)
from service.payload import fit
from service.request.arguments import (
    IDEMPOTENCY_KEY,
    RECEIPT,
    Caller,
    UnknownArgument,
    idempotency_key_of,
    unwrap,
)
from service.request.call_request import given_option
from service.request.names import FN, FunctionName, Name, parse_name
from service.request.read_request import Limits
from service.request.synonyms import synonym_hint

Refresh = Callable[[], Awaitable[bool]]
"""Reads the catalog again if it has changed; returns whether it is up to date then."""

RETRY_AFTER = 1.0
"""Seconds after which a caller may try again who was refused by a catalog that may be old."""

_CATALOG_ERRORS = (InvalidArgument, NoSuchProcedure, NotAuthorized, InvalidRow, DatabaseRefused)

HALF_WAY = "the call ended half way: what it had committed by then is kept"

NOWHERE = Route(FUNCTION, None, (), "")
"""The route of procedures written by hand, which are about no relation."""


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
        prefix: Of the procedures' URIs, for hints.

    Attributes:
        backend: The database, and the bounds of all calls.
        verbs: Of relations, by name.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        max_bytes: int,
        roles: Roles = Roles(),  # noqa: B008 - frozen
        refresh: Refresh = lambda: succeed(True),
        process: str = "0" * 16,
        prefix: str = "rowcast",
    ) -> None:
        self.refresh = refresh
        self.prefix = prefix
        self.backend = Backend(database, limits, max_bytes)
        self._roles = roles
        self._role_of = lru_cache(1024)(roles.of_authrole)
        self._procedures: dict[str, Procedure] = {}
        self._once: set[str] = set()
        self._interactive: Interactive | None = None
        self._union: Snapshot | None = None
        self._served: Mapping[str, Snapshot] = {}
        self._importing = Importing(database, limits, process)
        self.verbs = dict(VERBS)
        self.register(replace(VERBS["import"], handler=self._importing.take))

    async def answer(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState | None = None,
        progress: Send | None = None,
        handler: Callable[[Call], Awaitable[Any]] | None = None,
    ) -> Any:
        """
        Answer a call.

        Args:
            name: Of the procedure, less the prefix, as in "actions.get".
            args: As they came.
            kwargs: As they came.
            caller: Who calls.
            state: Shows what changes meanwhile to one who looks.
            progress: Sends parts of the answer, if the caller takes any.
            handler: What answers it in place of the verb's own; not for what `is_procedure`.

        Raises:
            ServiceError: Any refusal.
        """
        state = state or CallState()
        if name.startswith(TX):
            return await self._in_transaction(name, args, kwargs, caller, state)
        # No secret, so no uuid4, which would ask the kernel for random bytes each time.
        role, id = self._role_of(caller.authrole), f"{random.getrandbits(128):032x}"
        procedure = self._procedures.get(name)
        inside = self.backend.database.level is not None  # and repeated by who began that
        if not inside:
            ORIGIN.set(Origin(id, name, role))
        # the schema may have changed once more meanwhile
        for last in (True,) if inside else (False, False, True):
            before, snapshot, route, actor = self._union, None, NOWHERE, None
            try:
                if procedure is None:
                    snapshot = self._served.get(role) or self._served_as(role)
                    route = snapshot.routes.get(name) or self._route(snapshot, name)
                identity = identity_for(role, caller, route.schema)
                with self.backend.database.identity(identity) as actor:
                    if procedure is not None:
                        given = {each: unwrap(value) for each, value in kwargs.items()}
                        answer = await procedure(caller, list(map(unwrap, args)), given)
                        self._check_kept(name, actor, answer)
                        return answer
                    assert snapshot is not None
                    call = Call(
                        id,
                        route.verb,
                        route.relation,
                        route.functions,
                        args,
                        kwargs,
                        caller,
                        snapshot,
                        self.backend,
                        state,
                        progress,
                    )
                    if handler is None and (inside or IDEMPOTENCY_KEY in kwargs):
                        call = self._admitted(call)
                    return await (handler or self._perform)(call)
            except Exception as error:
                # What COMMIT refuses in a procedure is said in terms of what the role is served, too.
                served = snapshot or self._served.get(role)
                found = self._refusal(error, actor, snapshot, route.relation, served)
                may_repeat = not (last or state.begun or name in self._once)
                if not await self._newer(found, before, may_repeat):
                    if found is error:
                        raise
                    raise found from error
        raise AssertionError(name)

    def _check_kept(self, name: str, actor: Actor, answer: Any) -> None:
        """Check the size of an answer whose changes are kept: the serializer could not say so."""
        if actor.committed and name in self._once:
            fit(answer, self.backend.max_bytes)

    async def _in_transaction(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState,
    ) -> Any:
        if self._interactive is None:
            raise ended("stopped")
        if self.backend.database.level is not None:
            raise no_operation("tx")
        # The name has the transaction's secret; the log has that of the operation.
        id, role = f"{random.getrandbits(128):032x}", self._roles.of(caller)
        ORIGIN.set(Origin(id, "tx", role, "interactive"))
        served = self._served.get(role)
        catalog = served.catalog if served else None
        return await self._interactive.answer(name, args, kwargs, caller, state, catalog)

    async def _perform(self, call: Call, step: Any = None) -> Any:
        """Answer a call of a verb, by a step that is made already; alone, or in the transaction around it."""
        if step is None:
            assert call.verb.handler is not None  # no name is a route to such a verb
            step = call.verb.handler(call)  # request → plan → statement
        if call.keyed is not None:
            step = once_only(self.backend.database, call, call.keyed, step)
        if not isinstance(step, Step):
            # what takes several steps runs and shapes each by itself, but perhaps for the last
            step = await step
            if not isinstance(step, Step):
                return step
        running = call.run(step)
        # What looks for a missing row sends a statement more, which operations behind it must
        # not overtake: they wait for the answer.
        call.state.sent = not callable(step.missing)
        call.state.plain = step.plain
        return step.shape(await running)

    def prepare(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller
    ) -> Prepared | None:
        """
        Prepare a call in a transaction, without the database; None where `answer` does it all.

        That is for procedures, and for what is refused: it says why.
        """
        if self.is_procedure(name):
            return None
        try:
            role = self._role_of(caller.authrole)
            snapshot = self._served.get(role) or self._served_as(role)
            route = snapshot.routes.get(name) or self._route(snapshot, name)
            with self.backend.database.identity(identity_for(role, caller, route.schema)) as actor:
                about = route.verb, route.relation, route.functions
                whole = *about, args, kwargs, caller, snapshot, self.backend, CallState()
                call = self._admitted(Call("", *whole))
                assert call.verb.handler is not None
                step = call.verb.handler(call)
        except Exception:
            return None
        reads = isinstance(step, Step) and step.access == "read"
        reads = reads and call.relation is not None and not call.relation.side_effects
        return Prepared(step, actor, lambda _: self._perform(call, step), reads)

    def _admitted(self, call: Call) -> Call:
        """Return a call with its key, if it can be made in the transaction around it."""
        inside = self.backend.database.level is not None
        verb, about = call.verb, call.relation or call.functions[0]
        if inside and verb.progress is not None:
            raise no_operation(verb.name)
        if RECEIPT in call.kwargs and inside and _option(call, RECEIPT):
            raise InvalidArgument(
                "an operation of a transaction has no receipt of its own",
                path=RECEIPT,
                hint="the whole has one",
            )
        if IDEMPOTENCY_KEY not in call.kwargs:
            return call
        key = _option(call, IDEMPOTENCY_KEY)
        if key is not None and inside:
            raise no_key("an operation of a transaction has no key of its own", "the whole has one")
        procedure = (about.schema, about.name, verb.name)
        return replace(call, keyed=self.keyed(procedure, call.args, call.kwargs, key, call.caller))

    def keyed(
        self,
        procedure: Sequence[str],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        key: Any,
        caller: Caller,
    ) -> Keyed | None:
        """
        Return what a call is kept as; None without a key.

        Raises:
            InvalidArgument: The key is no key.
            NotAuthorized: The caller is anonymous.
        """
        key = idempotency_key_of(key)
        if key is None:
            return None
        if self._roles.anonymous_is(caller):
            raise NotAuthorized(
                "an anonymous caller has no idempotency keys",
                hint="log in: a key belongs to an authid, and an anonymous session gets another one"
                " each time",
            )
        # By all else of the arguments it is told whether a second call is the same one.
        rest = {name: value for name, value in kwargs.items() if name != IDEMPOTENCY_KEY}
        # With the role: what one role was answered is not for another.
        role, most = self._roles.of(caller), self.backend.max_bytes
        return Keyed(key_id(caller, key), role, procedure, args, rest, most)

    def refused(self, error: Exception, call: Call) -> Exception:
        """Return the refusal that the caller of a call that goes on gets for an error."""
        return self._refusal(error, None, call.snapshot, call.relation, call.snapshot)

    def _refusal(
        self,
        error: Exception,
        actor: Actor | None,
        snapshot: Snapshot | None,
        relation: Relation | None,
        served: Snapshot | None,
    ) -> Exception:
        """Return the refusal that a caller gets for an error; the error itself if it is a bug."""
        if actor is not None and actor.committed:
            if isinstance(error, TooLarge):
                error = committed_despite(error)
            elif claims_nothing(error):
                error = OutcomeUnknown(HALF_WAY)
        if isinstance(error, CancelledError):
            return error
        if not isinstance(error, ServiceError):
            found = refusal(error, served.catalog if served else None, relation)
            if found is None:
                # An error that nothing explains may come of a catalog that is out of date.
                self.refresh()
            return found or error
        if isinstance(error, UnknownArgument) and relation and error.name in relation.columns:
            error.of_column()
        if snapshot is not None and "hint" in error.details:
            error.details["hint"] = snapshot.at_hand(relation, error.details["hint"])
        return error

    async def _newer(self, error: Exception, before: Snapshot | None, may_repeat: bool) -> bool:
        """
        Return whether a refused call is worth another attempt: another catalog is served by now.

        Args:
            error: The refusal.
            before: What was served when the call was refused.
            may_repeat: Whether it may be answered again at all.
        """
        if not (isinstance(error, ServiceError) and depends_on_catalog(error)):
            return False
        # Even for a call that is not repeated: the next one then meets the newer catalog.
        current = self.refresh()
        if not may_repeat:
            return False
        if not await current:
            # The catalog may be old, and cannot be read just now.
            error.details |= {"retry": True, "retry_after": RETRY_AFTER}
            return False
        return self._union is not before

    def _route(self, snapshot: Snapshot, name: str) -> Route:
        """
        Find what a name stands for, and keep it.

        Raises:
            NoSuchProcedure: There is nothing of that name; `hint` names the nearest.
        """
        try:
            return snapshot.keep(name, self._found(snapshot, name))
        except NoSuchProcedure as error:
            if name.startswith(head := f"{self.prefix}."):
                bare = clip(name.removeprefix(head))
                error.details["hint"] = f'did you mean "{bare}", without the prefix?'
            elif hint := self._written_hint(name):
                error.details["hint"] = hint
            raise

    def _written_hint(self, name: str) -> str | None:
        """Return the hint for a procedure written by hand that is called nearly so."""
        head, _, last = name.rpartition(".")
        beside = [each for each in self._procedures if each.rpartition(".")[0] == head]
        lasts = [each.rpartition(".")[2] for each in beside]
        # Before them the verbs: what is as near to one of those is meant for it.
        hint = nearest(last, [*self.verbs, *lasts])
        return hint if hint and hint == nearest(last, lasts) else None

    def _found(self, snapshot: Snapshot, name: str) -> Route:
        parsed = self._as_relation(snapshot, parse_name(name, self._procedures))
        first, *others = snapshot.catalog.schemas
        # sessions search the first schema as it is
        schema = parsed.schema if parsed.schema in others else ""
        home = first if parsed.schema is None else parsed.schema
        if isinstance(parsed, FunctionName):
            functions = snapshot.catalog.function(home, parsed.function)
            route = Route(self._verb_of_function(parsed.verb), None, functions, schema)
        else:
            relation = snapshot.catalog.relation(home, parsed.relation)
            route = Route(self._verb(snapshot, relation, parsed.verb), relation, (), schema)
        return route

    def _verb(self, snapshot: Snapshot, relation: Relation, name: str) -> Verb:
        verb = self.verbs.get(name)
        if verb is None or verb.handler is None:
            raise NoSuchProcedure(
                f'"{relation.name}" has no verb "{clip(name)}"',
                relation=relation.name,
                hint=snapshot.at_hand(relation, synonym_hint("verb", name, self.verbs) or "")
                or nearest(name, list(self.verbs))
                or f"verbs: {', '.join(self.verbs)}",
            )
        if verb.writes and verb.rights[0] not in relation.accepted_writes:
            raise NoSuchProcedure(
                f'"{relation.name}" is a {relation.kind} that takes no {name}',
                relation=relation.name,
                hint="a view takes what PostgreSQL can write through it, or a trigger for it",
            )
        return verb

    def _verb_of_function(self, name: str | None) -> Verb:
        if name is None:
            return FUNCTION
        verb = self.verbs.get(name)
        if verb is None or verb.handler is None or not verb.on_functions:
            known = [each for each, verb in self.verbs.items() if verb.on_functions]
            raise NoSuchProcedure(
                f'a function has no verb "{clip(name)}"',
                hint=synonym_hint("verb", name, known)
                or nearest(name, known)
                or f"verbs: {', '.join(known)}",
            )
        return verb

    def _as_relation(self, snapshot: Snapshot, name: Name | FunctionName) -> Name | FunctionName:
        """Return "app.fn.find" as a verb's name where the schema has a relation "fn"."""
        if isinstance(name, Name) or name.schema is None or name.verb is not None:
            return name
        known = (name.schema, FN) in snapshot.catalog.relations and name.function in self.verbs
        return Name(name.schema, FN, name.function) if known else name

    def is_procedure(self, name: str) -> bool:
        """Return whether a name stands for code, and so for nothing of the catalog."""
        return name in self._procedures or name.startswith(TX)

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

    def role_of(self, caller: Caller) -> str:
        """
        Return the database role of a caller; "" for that of the service.

        Raises:
            NotAuthorized: It has none.
        """
        return self._roles.of(caller)

    def renewed(self, call: Call) -> Call:
        """
        Return a call as it would be made by what is served now.

        Raises:
            NoSuchProcedure: What it is about is gone.
            NotAuthorized, Unavailable: As those of `served_to`.
        """
        snapshot = self.served_to(call.caller)
        if call.relation is not None:
            relation = snapshot.catalog.relation(call.relation.schema, call.relation.name)
            return replace(call, snapshot=snapshot, relation=relation)
        first = call.functions[0]
        functions = snapshot.catalog.function(first.schema, first.name)
        return replace(call, snapshot=snapshot, functions=functions)

    @property
    def ready(self) -> bool:
        """Return whether there is anything served yet."""
        return self._union is not None

    def register(self, verb: Verb) -> None:
        """Serve one more verb of relations, or another one of the same name."""
        self.verbs[verb.name] = verb
        for each in self._served.values():
            # A route has the verb itself, not its name.
            each.routes.clear()

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

    def hold(self, interactive: Interactive) -> None:
        """Serve transactions that callers hold open."""
        self._interactive = interactive
        self.add({BEGIN: interactive.begin})

    def departed(self, session: int | None = None) -> None:
        """Drop what a caller's session has begun; without one, what any has: no router is there."""
        for leases in self._leases():
            leases.departed(session)

    def stop(self) -> None:
        """Begin nothing that outlasts its call, and end what no call is at."""
        for leases in self._leases():
            leases.stop()

    def _leases(self) -> Iterator[Leases[Any]]:
        yield self._importing.uploads
        if self._interactive is not None:
            yield self._interactive.open

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


def _option(call: Call, name: str) -> Any:
    """Return an option of what writes; None where it is none, as an argument of a function."""
    if call.verb is FUNCTION:
        return given_option(call.functions, call.kwargs, name)
    return call.kwargs.get(name) if call.verb.writes else None


def depends_on_catalog(error: ServiceError) -> bool:
    """Return whether the same call might be answered from another catalog."""
    if isinstance(error, Unavailable):
        return error.details.get("sqlstate") in STALE
    return isinstance(error, _CATALOG_ERRORS)


def _unread() -> Unavailable:
    return Unavailable("the database has not been reached yet")
