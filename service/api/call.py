"""
What a verb's handler receives and returns: a `Call`, with the `Snapshot` that answers it, and a `Step`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import inf
from typing import Any, Literal, NamedTuple

from service.catalog import Catalog, Column, Function, Relation
from service.db.codec import Codec
from service.db.database import Database
from service.db.keys import KeyedCall
from service.db.transaction import Actor
from service.db.writes import LargeRow, NoRowWritten
from service.describe.verb import Verb
from service.errors import InvalidArgument, ServiceError
from service.models.served import LoadedModels
from service.plan.joins import document_names
from service.request.arguments import Caller
from service.request.names import encode
from service.request.read_request import Limits
from service.request.requests import Item
from service.request.synonyms import EXAMPLES, adapt_hint
from service.sql.statement import Statement

Send = Callable[[Any], Awaitable[None]]
"""Sends a part of an answer at once; its awaitable completes when the next part may be sent."""


class OngoingCall:
    """
    The answer to a call, such as a watch, that sends progressive results until its caller cancels it.

    The service keeps no more than this object for such a call. A coroutine that waits for the end would
    keep its frame and context, several KB for each watch.
    """

    __slots__ = ("_error", "_follower")

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._follower: Callable[[Exception], None] | None = None

    @property
    def ended(self) -> bool:
        """Return whether the call has ended."""
        return self._error is not None

    def follow(self, follower: Callable[[Exception], None]) -> None:
        """Call a function with the error that ends the call, now if the call has ended."""
        self._follower = follower
        if self._error is not None:
            follower(self._error)

    def end(self, error: Exception) -> None:
        """End the call with an error, unless it has ended."""
        if self._error is None:
            self._error = error
            if self._follower is not None:
                self._follower(error)


Access = Literal["read", "read only", "write", "last", "atomic", "procedure", "transaction"]
"""
How a step runs, if its call is not in a transaction.

- "read": a read in autocommit, which is retried after a lost connection
- "read only": a read in a READ ONLY transaction
- "write": a write in autocommit
- "last": the last write in a transaction of the verb's own; its job commits as well
- "atomic": a write in a transaction, or in a savepoint, which an error rolls back
- "procedure": a CALL, which may commit by itself
- "transaction": a function that begins and ends a transaction itself, and receives the `Actor`
"""


@dataclass(frozen=True, slots=True)
class Route:
    """
    What the name of a generated procedure stands for.

    Args:
        verb: The verb.
        relation: The relation that it applies to; None if it applies to functions.
        functions: The overloads of the function that it applies to.
        schema: First schema in the search_path of the call's statements; "" for that of the session.
    """

    verb: Verb
    relation: Relation | None
    functions: Sequence[Function]
    schema: str


MAX_ROUTES = 4096
"""Names cached per catalog. Callers can write one name in many ways, with percent escapes."""
MAX_STATEMENTS = 1024
"""Statements cached per catalog. An application uses some hundred shapes."""
MAX_TEXT = 16_384
"""Characters of the longest statement that is cached. Callers choose the shape, so this bounds memory."""


@dataclass(slots=True)
class _Kept:
    statement: Statement
    used: bool = False


class Snapshot:
    """
    A catalog with everything that is derived from it; replaced as one when the catalog changes.

    Args:
        catalog: The relations, functions and types of the database.
        codec: Reads and writes values of its types.
        models: The models of its relations.
        mark: Fingerprint of the database's catalog; equal in all processes that have read the same one.

    Attributes:
        routes: Cache of routes, by the name that was called.
        trees: Cache of what is planned for nested new rows, by their shape.
    """

    def __init__(
        self, catalog: Catalog, codec: Codec, models: LoadedModels, mark: str = ""
    ) -> None:
        self.catalog = catalog
        self.codec = codec
        self.model = models.bound
        self.mark = mark
        self.routes: dict[str, Route] = {}
        self.trees: dict[Hashable, Any] = {}
        self._statements: dict[Hashable, _Kept] = {}

    def keep(self, name: str, route: Route) -> Route:
        """Cache the route of a name, and return it."""
        if len(self.routes) >= MAX_ROUTES:
            self.routes.clear()
        self.routes[name] = route
        return route

    def statement(
        self,
        make: Callable[[Catalog, Any, Any], Statement],
        subject: Hashable,
        request: Hashable,
    ) -> Statement:
        """
        Plan a request and build its statement, once for each shape in use; in the reactor thread.

        Args:
            make: Plans the request and builds the statement.
            subject: The relation or function that the request applies to.
            request: The request, which holds the shape of the call without its values.
        """
        # `make` is part of the key: count and exists have equal requests, but different statements.
        key = make, subject, request
        kept = self._statements.get(key)
        if kept is not None:
            kept.used = True
            return kept.statement
        found = make(self.catalog, subject, request)
        if len(found.text) <= MAX_TEXT:
            self._make_room()
            self._statements[key] = _Kept(found)
        return found

    def _make_room(self) -> None:
        """
        Drop the oldest statement that was not used since its last turn: the clock algorithm.

        An LRU order would hash the key, with its entire filter, twice in each call.
        """
        while len(self._statements) >= MAX_STATEMENTS:
            oldest = next(iter(self._statements))
            kept = self._statements.pop(oldest)
            if kept.used:
                kept.used = False
                self._statements[oldest] = kept

    def max_row_bytes(self, relation: Relation, select: Sequence[Item] | None) -> float:
        """Return the maximum size of a row on the wire; infinite if a type has no limit."""
        if select is None:
            return self._max_bytes(relation)
        return sum(self._item(relation, each) for each in select)

    def _item(self, relation: Relation, item: Item) -> float:
        name = item.reference.name
        if item.left_out:
            return 0
        if item.reference.owners or item.reference.cast:
            return inf
        if item.reference.every:
            return self._max_bytes(relation)
        column = relation.columns.get(name)
        return inf if column is None else self._column(column) + 4 * len(item.alias or "")

    def adapted_hint(self, relation: Relation | None, hint: str) -> str:
        """Return a hint whose example names relations and columns of this database."""
        catalog = self.catalog
        # Hints are written for the demo relations, which other databases lack.
        if all((catalog.schemas[0], each) in catalog.relations for each in EXAMPLES):
            return hint
        if relation is None:
            return adapt_hint(hint, "", (), ())
        schema = "" if relation.schema == catalog.schemas[0] else f"{encode(relation.schema)}."
        name = f"{schema}{encode(relation.name)}"
        return adapt_hint(hint, name, list(relation.columns), relation.primary_key)

    @cached_property
    def documents(self) -> frozenset[str]:
        """The names of columns in which a dict or a list is always a value, never related rows."""
        return document_names(self.catalog)

    @cached_property
    def _max_bytes(self) -> Callable[[Relation], float]:
        return cache(lambda relation: sum(map(self._column, relation.columns.values())))

    def _column(self, column: Column) -> float:
        if column.max_length is None and not (self.catalog.type(column.type).data_type.short):
            return inf
        # A character is up to four bytes in UTF-8.
        return 64 + 4 * (len(column.name) + (column.max_length or 0))


@dataclass(frozen=True, slots=True)
class Backend:
    """
    What all calls share.

    Args:
        database: The database to run statements in.
        limits: The bounds on what a call may ask for.
        max_bytes: Maximum size on the wire of an answer, or of one row of a streamed answer.
    """

    database: Database
    limits: Limits
    max_bytes: int


def as_is(result: Any) -> Any:
    """Return the result of a step's function, as its answer."""
    return result


class Step(NamedTuple):
    """
    One statement of a call: how to run it, and how to make the answer from its rows.

    Args:
        function: Runs the statement in a worker thread; called with the connection and `args`.
        args: Further arguments of the function.
        shape: Makes the answer from the function's result; `Call.run` returns that result itself.
        timeout: Seconds that the statement may take, if the caller limits it.
        access: How the step runs outside a transaction.
        missing: The error if no row was written although one had to be, or a function that finds the
            reason with a statement of its own.
        plain: Whether the answer needs no check before it is sent.
        one_row: Whether one statement writes one row at most, and runs no code of the database's users.
        row: Whether the answer is moreover that row, as a dict of values that are stored as text.
        large: The step to run instead if this one fails because the row to return is large.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    shape: Callable[..., Any] = as_is
    timeout: float | None = None
    access: Access = "read"
    missing: ServiceError | Callable[[], Awaitable[ServiceError]] | None = None
    plain: bool = False
    one_row: bool = False
    row: bool = False
    large: Step | None = None

    async def refusal(self, error: NoRowWritten) -> Exception:
        """Return why no row was written: `missing`, or the given error if the step has none."""
        if callable(self.missing):
            return await self.missing()
        return self.missing or error


@dataclass(slots=True)
class CallState:
    """
    The part of a call that changes while the call is answered.

    Args:
        begun: Whether the call has had an effect that must not happen twice.
        sent: Whether all of its statements have been sent, so that the next call of the transaction
            need not wait for the answer.
        plain: Whether the answer needs no check before it is sent. To check 100 rows takes as long as
            to read them.
        encodes: Whether rows may be `Encoded`, because the caller of `answer` sends them on unread.
        keyed: The idempotency key, with what identifies the call under it.
    """

    begun: bool = False
    sent: bool = False
    plain: bool = False
    encodes: bool = False
    keyed: KeyedCall | None = None


class Call(NamedTuple):
    """
    A call of a verb on a relation, or on functions of one name.

    Args:
        id: Random; stands in the log and in the error of a call that fails.
        verb: The verb.
        relation: The relation that it applies to; None if it applies to functions.
        functions: The overloads of the function that it applies to.
        args: The positional arguments, as received.
        kwargs: The keyword arguments, as received.
        caller: The session that calls.
        snapshot: What the caller's role may use; the same to the end of the call.
        backend: The database, and the limits of all calls.
        state: The part that changes.
        progress: Sends progressive results, if the caller asked for them.
    """

    id: str
    verb: Verb
    relation: Relation | None
    functions: Sequence[Function]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    caller: Caller
    snapshot: Snapshot
    backend: Backend
    state: CallState
    progress: Send | None = None

    def run(self, step: Step) -> Awaitable[Any]:
        """
        Run a step, in the transaction that the call is in, else as its `access` says.

        Outside a transaction a read is retried after a lost connection, and a write after a
        serialization failure or a deadlock (40001, 40P01). In a transaction the component that began
        it retries.

        Raises:
            ServiceError: `missing`, if no row was written.
            OutcomeUnknown: The write has committed by itself, and its answer is too large.
        """
        if step.access == "read":
            run, seconds = self.backend.database.run, step.timeout
            return run(step.function, *step.args, retry=True, timeout=seconds)
        return self._write(step)

    async def _write(self, step: Step) -> Any:
        database, level = self.backend.database, self.backend.database.level
        all_or_nothing = level is not None and level.all_or_nothing
        reads, ends = step.access == "read only", step.access == "procedure"
        # A savepoint costs two round trips, and is useless if any refusal rolls back the transaction.
        # But a `missing` that sends a statement needs a transaction that has not failed.
        no_savepoint = all_or_nothing and not callable(step.missing)
        run: Callable[..., Awaitable[Any]]
        if step.access == "transaction":
            run = database.acting
        elif (reads or step.access == "atomic") and not no_savepoint:
            run = partial(database.atomic, read_only=reads, retry=reads)
        else:
            # In such a transaction the verb has not begun one of its own (`transaction`), so it ends none.
            last = step.access == "last" and not all_or_nothing
            run = partial(database.run, ending=ends, last=last)
        attempt = partial(run, step.function, *step.args, timeout=step.timeout)
        try:
            # A procedure may have committed some of its work, so it is never run again.
            return await (attempt() if ends else database.again(attempt))
        except LargeRow:
            if step.large is None:
                raise
            return await self._write(step.large)
        except NoRowWritten as error:
            raise await step.refusal(error) from None

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """
        Return the transaction of a verb that takes several steps, or a savepoint in the one around it.

        It is neither if any refusal rolls back the transaction around it, as in `_write`. But if writes
        have side effects, a statement may fail because it writes no row, and the reason can only be looked
        up after a rollback to a savepoint.
        """
        database, level = self.backend.database, self.backend.database.level
        all_or_nothing = level is not None and level.all_or_nothing
        if all_or_nothing and self.relation is not None and not self.relation.side_effects:
            return nullcontext()
        return database.transaction()

    def parts(self) -> Send:
        """
        Return the function that sends parts of an answer.

        Raises:
            InvalidArgument: The caller takes a single answer only.
        """
        progress = self.progress
        if progress is None:
            raise InvalidArgument(
                "the answer comes as progressive results, and the call does not ask for them",
                hint="call with receive_progress (autobahn: CallOptions(on_progress=…))",
            )

        async def send(part: Any) -> None:
            # The caller has rows now, so the call cannot be answered again from a newer catalog.
            self.state.begun = True
            await progress(part)

        return send


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """
    A call in a transaction whose step has been made.

    Args:
        step: What the handler returned; an awaitable if the verb takes several steps.
        actor: Who the statements are sent for.
        handler: Runs the step, as the `handler` of `Dispatcher.answer`.
        reads: Whether the call certainly changes nothing, so that a refusal has nothing to undo.
    """

    step: Step | Awaitable[Any]
    actor: Actor
    handler: Callable[[Call], Awaitable[Any]]
    reads: bool


def not_in_transaction(
    name: str, hint: str = "it takes verbs and functions whose answer is one result"
) -> InvalidArgument:
    """Return the refusal of a procedure that cannot be called in a transaction."""
    return InvalidArgument(f'"{name}" cannot be called in a transaction', hint=hint)
