"""
The dispatcher: answers one call, from the procedure's name and arguments to the result or the error.

The name resolves to a route: a verb, and the relation or the functions that it applies to. The verb's
handler parses the arguments into a request, plans the request against the catalog and builds a
statement; the result is a `Step`, made without the database. The call runs the step, and the step
shapes the rows into the answer. Any of these can raise a `ServiceError`. If an outdated catalog may be
the reason, because the schema may have changed since it was read, the call is answered again from a
new catalog.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from twisted.internet.defer import CancelledError, succeed

from service.api.call import (
    Backend,
    Call,
    CallState,
    PreparedCall,
    Route,
    Send,
    Snapshot,
    Step,
    not_in_transaction,
)
from service.api.idempotency import key_id, keyed_step, option_of, refuse_own_options
from service.api.import_ import Forward, ImportProcedure
from service.api.interactive import BEGIN, TX, Interactive, TransactionLimits
from service.api.leases import new_process
from service.api.roles import Roles, identity_for
from service.api.verbs import FUNCTION, VERBS, find_route
from service.catalog import Relation
from service.db.codec import Codec
from service.db.database import Database
from service.db.keys import KeyedCall
from service.db.sqlstate import STALE, look_through_rows, nothing_changed, refusal
from service.db.transaction import Actor
from service.db.worker import ORIGIN, Origin
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
    committed_despite,
)
from service.payload import fit
from service.request.arguments import (
    IDEMPOTENCY_KEY,
    Caller,
    UnknownArgument,
    idempotency_key_of,
    unwrap,
)
from service.request.read_request import Limits

Refresh = Callable[[], Awaitable[bool]]
"""Reads the catalog again if it has changed; returns whether the served catalog is up to date."""

RETRY_AFTER = 1.0
"""Seconds after which a caller may retry a call that a possibly outdated catalog refused."""

_CATALOG_ERRORS = (InvalidArgument, NoSuchProcedure, NotAuthorized, InvalidRow, DatabaseRefused)

INTERRUPTED = "the call was interrupted: what it had committed before is kept"

NO_RELATION = Route(FUNCTION, None, (), "")
"""Stands for the route of procedures, which apply to no relation."""

Procedure = Callable[[Caller, Sequence[Any], Mapping[str, Any]], Awaitable[Any]]
"""A procedure that is no verb: one of the service's own, or one written by hand."""


class Dispatcher:
    """
    Answers calls, each from the catalog that the caller's database role may use.

    Args:
        database: The database to run statements in.
        limits: The bounds on what a call may ask for.
        max_bytes: Approximate maximum size of an answer on the wire, in bytes.
        roles: Maps callers to database roles.
        process: The id of this process among those of the service; a new one if None.
        prefix: The prefix of the procedures' URIs, for hints.

    Attributes:
        backend: The database, and the bounds of all calls.
        refresh: Reads the catalog again if it has changed; called after a refusal for which an outdated
            catalog may be the reason.
        verbs: The verbs by name.
    """

    def __init__(
        self,
        database: Database,
        limits: Limits,
        max_bytes: int,
        roles: Roles = Roles(),  # noqa: B008 - frozen
        process: str | None = None,
        prefix: str = "rowcast",
    ) -> None:
        self.refresh: Refresh = lambda: succeed(True)
        self.prefix = prefix
        self.backend = Backend(database, limits, max_bytes)
        self._roles = roles
        self._role_of = lru_cache(1024)(roles.of_authrole)
        self._procedures: dict[str, Procedure] = {}
        self._once: set[str] = set()
        self._process = process or new_process()
        self._union: Snapshot | None = None
        self._served: Mapping[str, Snapshot] = {}
        self._importing = ImportProcedure(database, limits, self._process)
        self.hold(TransactionLimits())
        self.verbs = dict(VERBS)
        self.register(replace(VERBS["import"], handler=self._importing.answer))

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
            name: The procedure, without the prefix, as in "actions.get".
            args: The positional arguments, as received.
            kwargs: The keyword arguments, as received.
            caller: The session that calls.
            state: Reports the progress of the call to the component that started it.
            progress: Sends progressive results, if the caller accepts them.
            handler: Answers the call instead of the verb's own handler; not for names of
                which `is_procedure` is true.

        Raises:
            ServiceError: The call is refused.
        """
        state = state or CallState()
        # The id is no secret, so it needs no uuid4, which reads random bytes from the kernel each time.
        role, id = self._role_of(caller.authrole), f"{random.getrandbits(128):032x}"
        if name.startswith(TX):
            return await self._in_transaction(id, role, name, args, kwargs, caller, state)
        database, procedure = self.backend.database, self._procedures.get(name)
        # In a transaction, the component that began it repeats all of its calls or none.
        inside = database.level is not None
        if not inside:  # the log names the client's call, not the operations that it consists of
            ORIGIN.set(Origin(id, name, role))
        # Three attempts: the schema may change again while the new catalog is read.
        for last in (True,) if inside else (False, False, True):
            union, snapshot, route, actor = self._union, self._served.get(role), NO_RELATION, None
            try:
                if procedure is None:
                    snapshot = snapshot or self._served_as(role)
                    route = snapshot.routes.get(name) or self._route(snapshot, name)
                with database.identity(identity_for(role, caller, route.schema)) as actor:
                    if procedure is not None:
                        return await self._run_procedure(name, args, kwargs, caller, actor)
                    assert snapshot is not None
                    target = route.verb, route.relation, route.functions
                    call = Call(
                        id, *target, args, kwargs, caller, snapshot, self.backend, state, progress
                    )
                    if handler is None and (inside or IDEMPOTENCY_KEY in kwargs):
                        self._admit(call)
                    return await (handler or self._perform)(call)
            except Exception as error:
                catalog = snapshot.catalog if snapshot else None
                await look_through_rows(database.reactor, error, catalog, route.relation)
                refused = self._refusal(error, actor, snapshot, route.relation, procedure is None)
                may_repeat = not (last or state.begun or name in self._once)
                if not await self._should_repeat(refused, union, may_repeat):
                    if refused is error:
                        raise
                    raise refused from error
        raise AssertionError(name)

    async def _perform(self, call: Call, step: Any = None) -> Any:
        """
        Answer a call of a verb, by itself or in the transaction that it is made in.

        Args:
            call: The call.
            step: What the handler has returned, if the call was prepared before.
        """
        if step is None:
            assert call.verb.handler is not None  # no route leads to a verb without a handler
            step = call.verb.handler(call)  # request → plan → statement
        if call.state.keyed is not None:
            step = keyed_step(self.backend.database, call, call.state.keyed, step)
        if not isinstance(step, Step):
            # A verb of several steps runs and shapes them itself; it may return the last one to be run here.
            step = await step
            if not isinstance(step, Step):
                return step
        running = call.run(step)
        # If `missing` may send another statement, operations behind this one must not be sent ahead
        # of that statement: they wait for the answer.
        call.state.sent = not callable(step.missing)
        call.state.plain = step.plain
        return step.shape(await running)

    async def _run_procedure(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        actor: Actor,
    ) -> Any:
        given = {each: unwrap(value) for each, value in kwargs.items()}
        answer = await self._procedures[name](caller, list(map(unwrap, args)), given)
        if actor.committed and name in self._once:
            # The serializer would refuse it as too large, without saying that the changes are kept.
            fit(answer, self.backend.max_bytes)
        return answer

    async def _in_transaction(
        self,
        id: str,
        role: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState,
    ) -> Any:
        """Answer a call of a transaction that the caller holds open."""
        if self.backend.database.level is not None:
            raise not_in_transaction("tx")
        # The name contains the transaction's secret, so the log shows the operation's name instead.
        ORIGIN.set(Origin(id, "tx", role, "interactive"))
        served = self._served.get(role)
        catalog = served.catalog if served else None
        return await self._interactive.answer(name, args, kwargs, caller, state, catalog)

    def prepare(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], caller: Caller
    ) -> PreparedCall | None:
        """
        Prepare a call in a transaction, without the database.

        Returns None for procedures written by hand and for calls that are refused: `answer` runs the
        former, and raises the refusal of the latter.
        """
        if self.is_procedure(name):
            return None
        try:
            role = self._role_of(caller.authrole)
            snapshot = self._served.get(role) or self._served_as(role)
            route = snapshot.routes.get(name) or self._route(snapshot, name)
            with self.backend.database.identity(identity_for(role, caller, route.schema)) as actor:
                target = route.verb, route.relation, route.functions
                call = Call("", *target, args, kwargs, caller, snapshot, self.backend, CallState())
                self._admit(call)
                assert call.verb.handler is not None
                step = call.verb.handler(call)
        except Exception:
            return None
        reads = isinstance(step, Step) and step.access == "read"
        reads = reads and call.relation is not None and not call.relation.side_effects
        return PreparedCall(step, actor, lambda _: self._perform(call, step), reads)

    def _admit(self, call: Call) -> None:
        """
        Note the idempotency key of a call.

        Raises:
            InvalidArgument: The key is not a valid one, or a call in a transaction has options that only
                the transaction may have.
            NotAuthorized: The caller is anonymous, and gives a key.
        """
        if self.backend.database.level is not None:
            refuse_own_options(call)
            return
        target, key = call.relation or call.functions[0], option_of(call, IDEMPOTENCY_KEY)
        procedure = target.schema, target.name, call.verb.name
        given = call.args, call.kwargs, key, call.caller, call.snapshot.codec
        call.state.keyed = self.keyed(procedure, *given)

    def keyed(
        self,
        procedure: Sequence[str],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        key: Any,
        caller: Caller,
        codec: Codec | None = None,
    ) -> KeyedCall | None:
        """
        Return the record that identifies a call under its idempotency key; None without a key.

        Raises:
            InvalidArgument: The key is not a valid one.
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
        # All other arguments decide whether a second call with the key is the same call.
        rest = {name: value for name, value in kwargs.items() if name != IDEMPOTENCY_KEY}
        # The role is part of it: what one role was answered must not reach another.
        role, max_bytes = self.role_of(caller), self.backend.max_bytes
        return KeyedCall(key_id(caller, key), role, procedure, args, rest, max_bytes, codec)

    def refused(self, error: Exception, call: Call) -> Exception:
        """Return the refusal for an error that ends an ongoing call, such as a watch."""
        return self._refusal(error, None, call.snapshot, call.relation, of_verb=True)

    def _refusal(
        self,
        error: Exception,
        actor: Actor | None,
        snapshot: Snapshot | None,
        relation: Relation | None,
        of_verb: bool,
    ) -> Exception:
        """
        Return the refusal that a caller gets for an error; the error itself if it is a bug.

        Args:
            error: What ended the call.
            actor: Whose statements they were, once it is known.
            snapshot: What the caller's role may use, to name the constraint that was violated, which may
                be that of a procedure's COMMIT, too; None if it is not known.
            relation: The relation of the call, if it has one.
            of_verb: Whether the hint may have an example of Rowcast's own, which is adapted; those of
                procedures written by hand are left as they are.
        """
        # An error that claims that nothing was changed would be wrong, and its caller might repeat the call.
        if actor is not None and actor.committed:
            if isinstance(error, TooLarge):
                error = committed_despite(error)
            elif nothing_changed(error):
                error = OutcomeUnknown(INTERRUPTED)
        if isinstance(error, CancelledError):
            return error
        if not isinstance(error, ServiceError):
            found = refusal(error, snapshot.catalog if snapshot else None, relation)
            if found is None:
                # An unexpected error may come from an outdated catalog: the next call meets a newer one.
                self.refresh()
            return found or error
        if isinstance(error, UnknownArgument) and relation and error.name in relation.columns:
            error.of_column()
        if of_verb and snapshot is not None and "hint" in error.details:
            error.details["hint"] = snapshot.adapted_hint(relation, error.details["hint"])
        return error

    async def _should_repeat(
        self, error: Exception, union: Snapshot | None, may_repeat: bool
    ) -> bool:
        """
        Return whether to answer a refused call again, because another catalog is served by now.

        Args:
            error: The refusal.
            union: The snapshot of all roles when the attempt began.
            may_repeat: Whether the call may be answered again at all.
        """
        if not (isinstance(error, ServiceError) and depends_on_catalog(error)):
            return False
        # Even if this call is not repeated, the next one then meets the newer catalog.
        current = self.refresh()
        if not may_repeat:
            return False
        if not await current:
            # The catalog may be outdated, and the database does not answer now.
            error.details |= {"retry": True, "retry_after": RETRY_AFTER}
            return False
        return self._union is not union

    def _route(self, snapshot: Snapshot, name: str) -> Route:
        return find_route(snapshot, name, self.verbs, self._procedures.keys(), self.prefix)

    def is_procedure(self, name: str) -> bool:
        """Return whether a name is a procedure written by hand, and not one of the catalog."""
        return name in self._procedures or name.startswith(TX)

    @property
    def served(self) -> Snapshot:
        """
        Return the current snapshot of everything that any role may use.

        Raises:
            Unavailable: The catalog has not been read yet.
        """
        if self._union is None:
            raise _not_loaded()
        return self._union

    def served_to(self, caller: Caller) -> Snapshot:
        """
        Return the current snapshot of what the caller's role may use.

        Raises:
            NotAuthorized: The caller has no role in the database.
            Unavailable: The catalog has not been read yet.
        """
        return self._served_as(self.role_of(caller))

    def _served_as(self, role: str) -> Snapshot:
        snapshot = self._served.get(role)
        if snapshot is None:
            if self._union is None:
                raise _not_loaded()
            raise NotAuthorized(
                "the database role of this caller does not exist, or the service may not act as it"
            )
        return snapshot

    def role_of(self, caller: Caller) -> str:
        """
        Return the database role of a caller; "" for the service's own.

        Raises:
            NotAuthorized: The caller has none.
        """
        return self._role_of(caller.authrole)

    def renewed(self, call: Call) -> Call:
        """
        Return a call with the current snapshot in place of the one that it was made from.

        Raises:
            NoSuchProcedure: Its relation or function no longer exists.
            NotAuthorized, Unavailable: As `served_to` raises them.
        """
        snapshot = self.served_to(call.caller)
        if call.relation is not None:
            relation = snapshot.catalog.relation(call.relation.schema, call.relation.name)
            return call._replace(snapshot=snapshot, relation=relation)
        first = call.functions[0]
        functions = snapshot.catalog.function(first.schema, first.name)
        return call._replace(snapshot=snapshot, functions=functions)

    @property
    def ready(self) -> bool:
        """Return whether the catalog has been read."""
        return self._union is not None

    def register(self, verb: Verb) -> None:
        """Serve a verb, in place of another one of the same name if there is one."""
        self.verbs[verb.name] = verb
        for each in self._served.values():
            # A route refers to the verb itself, not to its name.
            each.routes.clear()

    def add(self, procedures: Mapping[str, Procedure], once: bool = True) -> None:
        """
        Serve procedures written by hand; they take precedence over generated ones.

        Args:
            procedures: The procedures by name.
            once: Whether to answer a call only once, even if an outdated catalog may have refused it:
                the procedure may have had effects.
        """
        self._procedures.update(procedures)
        if once:
            self._once |= procedures.keys()

    def serve(self, union: Snapshot, snapshots: Mapping[str, Snapshot]) -> None:
        """Replace the snapshot of all roles, and those by role; running calls keep theirs."""
        self._union = union
        self._served = snapshots

    def share(self, forward: Forward) -> None:
        """Forward calls of an upload to the process that holds the upload."""
        self._importing.forward = forward

    def hold(self, limits: TransactionLimits) -> None:
        """Serve transactions that callers hold open, within limits."""
        how = self._process, self.prefix, self.answer, self.keyed
        self._interactive = Interactive(self.backend.database, limits, *how)
        self.add({BEGIN: self._interactive.begin})

    def departed(self, session: int | None = None) -> None:
        """Drop the leases of a session that has left; all leases if None: the router is lost."""
        self._importing.uploads.departed(session)
        self._interactive.leases.departed(session)

    def stop(self) -> None:
        """Open no more leases, and drop those that no call uses."""
        self._importing.uploads.stop()
        self._interactive.leases.stop()

    async def forwarded(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], session: int | None
    ) -> Any:
        """
        Answer a call that another process of the service has forwarded; it belongs to an upload here.

        The call runs with the rights of the caller that began the upload. The other process sends the
        session id alone, and it has to be that caller's, so forwarding cannot grant other rights.

        Raises:
            ServiceError: The call is refused.
        """
        if not name.endswith(".import"):
            raise NotAuthorized("only calls of an upload are passed on")
        lease = self._importing.lease_of(kwargs.get("upload"), session)
        return await self.answer(name, args, kwargs, lease.owner)


def depends_on_catalog(error: ServiceError) -> bool:
    """Return whether the same call might succeed with another catalog."""
    if isinstance(error, Unavailable):
        return error.details.get("sqlstate") in STALE
    return isinstance(error, _CATALOG_ERRORS)


def _not_loaded() -> Unavailable:
    return Unavailable("the database has not been reached yet")
