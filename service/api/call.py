"""
One call as a verb gets it, with the snapshot that it is answered from, and the steps of a verb.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, cached_property, partial
from math import inf
from typing import Any, Literal

from service.catalog import Catalog, Column, Function, Relation
from service.db.codec import Codec
from service.db.database import Database
from service.db.keys import Keyed
from service.db.transaction import Actor
from service.db.writes import LargeRow, NoRowWritten
from service.describe.verb import Verb
from service.errors import InvalidArgument, ServiceError, TooLarge, committed_despite
from service.models.served import LoadedModels
from service.plan.growing import document_names
from service.request.arguments import Caller
from service.request.names import encode
from service.request.read_request import Limits
from service.request.requests import Item
from service.request.synonyms import EXAMPLES, at_hand
from service.sql.statement import Statement

Send = Callable[[Any], Awaitable[None]]
"""Sends a part of an answer at once; what it returns is done when the next part may follow."""


class Lasting:
    """
    The answer to a call that goes on, in parts, until its caller ends it.

    Nothing else is kept of such a call: no coroutine waits for its end.
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
        """Call a function, once the call has ended, with the error that says why."""
        self._follower = follower
        if self._error is not None:
            follower(self._error)

    def end(self, error: Exception) -> None:
        """End the call with an error, unless it has ended."""
        if self._error is None:
            self._error = error
            if self._follower is not None:
                self._follower(error)


Access = Literal["read", "read only", "write", "last", "atomic", "procedure", "whole"]
"""
How a step runs, outside of a transaction: a read by itself, or in a transaction that can only read;
a write that commits by itself, or in a transaction that an error undoes; a CALL, which may commit.
The last write of a verb's own transaction is committed in the same job. A whole one begins and ends
a transaction itself, and takes as whom it runs.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """
    What a name stands for.

    Args:
        verb: Which one.
        relation: What it is about; None if that is functions.
        functions: Those of one name.
        schema: Where the statements of the call look for names first, if not where sessions do.
    """

    verb: Verb
    relation: Relation | None
    functions: Sequence[Function]
    schema: str


MAX_ROUTES = 4096
"""Names that are kept per catalog: callers can write one in many ways, with percent escapes."""
MAX_STATEMENTS = 1024
"""Kept per catalog: an application has some hundred shapes."""
MAX_TEXT = 16_384
"""Characters of a statement that is kept: callers choose its shape, and shapes add up."""


@dataclass(slots=True)
class _Kept:
    statement: Statement
    used: bool = False


class Snapshot:
    """
    A catalog with what is made from it; replaced as a whole when the catalog changes.

    Args:
        catalog: What the database holds.
        codec: Its values.
        models: Of its relations, for the rules of their rows.
        mark: Equal to that of another one, of whatever process, if nothing of the database's own
            catalog has changed between the two.

    Attributes:
        routes: Of names that were called before.
        trees: What is made once for each shape of new rows with others inside.
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
        """Keep the route of a name, and return it."""
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
            make: Plans it, and builds the statement.
            subject: The relation or function that it is about.
            request: The shape.
        """
        # `make` belongs to it: count and exists have equal requests, and different statements.
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
        """Drop the oldest statement that was not used since this came by it the last time."""
        while len(self._statements) >= MAX_STATEMENTS:
            oldest = next(iter(self._statements))
            kept = self._statements.pop(oldest)
            if kept.used:
                # By no order of use, which would take the hash of a whole filter twice in each call.
                kept.used = False
                self._statements[oldest] = kept

    def most(self, relation: Relation, select: Sequence[Item] | None) -> float:
        """Return what a row can weigh at most, in bytes; infinite if its types do not tell."""
        if select is None:
            return self._all(relation)
        return sum(self._item(relation, each) for each in select)

    def _item(self, relation: Relation, item: Item) -> float:
        name = item.reference.name
        if item.left_out:
            return 0
        if item.reference.owners or item.reference.cast:
            return inf
        if item.reference.every:
            return self._all(relation)
        column = relation.columns.get(name)
        return inf if column is None else self._column(column) + 4 * len(item.alias or "")

    def at_hand(self, relation: Relation | None, hint: str) -> str:
        """Return a hint with an example of what is there: the project's own relations may not be."""
        catalog = self.catalog
        if all((catalog.schemas[0], each) in catalog.relations for each in EXAMPLES):
            return hint
        if relation is None:
            return at_hand(hint, "", (), ())
        schema = "" if relation.schema == catalog.schemas[0] else f"{encode(relation.schema)}."
        name = f"{schema}{encode(relation.name)}"
        return at_hand(hint, name, list(relation.columns), relation.primary_key)

    @cached_property
    def documents(self) -> frozenset[str]:
        """The names of columns of which a dict or a list is always a value, and no row."""
        return document_names(self.catalog)

    @cached_property
    def _all(self) -> Callable[[Relation], float]:
        return cache(lambda relation: sum(map(self._column, relation.columns.values())))

    def _column(self, column: Column) -> float:
        if column.max_length is None and not (self.catalog.type(column.type).data_type.short):
            return inf
        # A character is up to four bytes in UTF-8.
        return 64 + 4 * (len(column.name) + (column.max_length or 0))


@dataclass(frozen=True, slots=True)
class Backend:
    """
    What all calls stand on.

    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What an answer, or one row of a long one, may weigh on the wire.
    """

    database: Database
    limits: Limits
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """
    One statement of a call: all that it takes to run it, and what becomes of its rows.

    Args:
        function: Runs it in a worker thread; called with the connection and `args`.
        args: For the function.
        shape: Makes the answer of what the function returns.
        timeout: Seconds that it may take, as the caller said.
        access: How it runs.
        missing: Why no row was written, where there should have been one, or what looks for that.
        plain: Whether the answer need not be checked before it is sent.
        large: What is run in its place where the row that it was to answer is large.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    shape: Callable[..., Any]
    timeout: float | None = None
    access: Access = "read"
    missing: ServiceError | Callable[[], Awaitable[ServiceError]] | None = None
    plain: bool = False
    large: Step | None = None


@dataclass(slots=True)
class CallState:
    """
    What changes while a call is answered; all else of a call is fixed.

    Args:
        begun: Whether something was done for it that must not be done twice.
        sent: Whether all that it asks of the database is on its way, so that what comes after it
            need not wait for its answer.
        plain: Whether the answer need not be checked before it is sent: to walk over 100 rows takes
            as long as to read them.
        encodes: Whether rows may be `Encoded`: who has made the call sends them on as they are.
    """

    begun: bool = False
    sent: bool = False
    plain: bool = False
    encodes: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """
    A call of a verb on a relation, or on functions of one name.

    Args:
        id: Random; the log and the answer of a call that fails have it.
        verb: Which one.
        relation: What it is about; None if that is functions.
        functions: Those of one name.
        args: As they came.
        kwargs: As they came.
        caller: Who calls.
        snapshot: What is served to the caller, to the end of the call.
        backend: The database, and the limits of all calls.
        state: The one part that changes.
        progress: Sends parts of the answer, if the caller asked for progressive results.
        keyed: The idempotency key, under which it writes once.
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
    keyed: Keyed | None = None

    def run(self, step: Step) -> Awaitable[Any]:
        """
        Run a step: in the transaction that the call is in, else as it asks for.

        A read goes again if its connection was lost, a write if PostgreSQL asks for it (40001,
        40P01). In a transaction neither does: that is for who began it.

        Raises:
            ServiceError: What `missing` says, where no row was written.
            OutcomeUnknown: A procedure is done, and its answer is too large.
        """
        if step.access == "read":
            run, seconds = self.backend.database.run, step.timeout
            return run(step.function, *step.args, retry=True, timeout=seconds)
        return self._write(step)

    async def _write(self, step: Step) -> Any:
        database, seconds = self.backend.database, step.timeout
        reads, ends = step.access == "read only", step.access == "procedure"
        run: Callable[..., Awaitable[Any]] = database.run
        level = database.level
        # Nor does a verb end a transaction that it has not begun.
        last = step.access == "last" and not (level is not None and level.all_or_nothing)
        how: dict[str, Any] = {"ending": ends, "last": last, "timeout": seconds}
        # A savepoint costs two round trips, and is of no use where a refusal undoes all. A
        # `missing` that looks for itself needs a transaction that still takes statements.
        strict = level is not None and level.all_or_nothing and not callable(step.missing)
        if (reads or step.access == "atomic") and not strict:
            run = database.atomic
            how = {"read_only": reads, "retry": reads, "timeout": seconds}
        elif step.access == "whole":
            run, how = database.acting, {"timeout": seconds}
        attempt = partial(run, step.function, *step.args, **how)
        try:
            # A procedure may have committed half of what it does: it never goes again.
            return await (attempt() if ends else database.again(attempt))
        except LargeRow:
            if step.large is None:
                raise
            return await self._write(step.large)
        except NoRowWritten:
            if step.missing is None:
                raise
            missing = await step.missing() if callable(step.missing) else step.missing
            raise missing from None
        except TooLarge as error:
            # Outside of a transaction a procedure has committed by now.
            if not ends or database.level is not None:
                raise
            raise committed_despite(error) from error

    def together(self) -> AbstractAsyncContextManager[Any]:
        """Return the transaction of a verb that takes several steps, for the length of a body."""
        database, level = self.backend.database, self.backend.database.level
        # As in `_write`. What has side effects may fail where it writes no row, and is then asked why.
        strict = level is not None and level.all_or_nothing
        if strict and self.relation is not None and not self.relation.side_effects:
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
                "this is answered in parts, as progressive results, and the call asks for none",
                hint="call with receive_progress (autobahn: CallOptions(on_progress=…))",
            )

        async def send(part: Any) -> None:
            # From here on no newer catalog can answer it anew: the caller has rows.
            self.state.begun = True
            await progress(part)

        return send


@dataclass(frozen=True, slots=True)
class Prepared:
    """
    A call that is ready to run in the transaction that it is made in.

    Args:
        step: What it runs; an awaitable, if that takes several steps.
        actor: As whom.
        handler: Answers it, for `Dispatcher.answer`.
        reads: Whether it certainly leaves nothing that a refusal would undo.
    """

    step: Step | Awaitable[Any]
    actor: Actor
    handler: Callable[[Call], Awaitable[Any]]
    reads: bool


def no_operation(
    name: str, hint: str = "it takes verbs and functions whose answer is one result"
) -> InvalidArgument:
    """Return the refusal of what cannot be called in a transaction."""
    return InvalidArgument(f'"{name}" cannot be called in a transaction', hint=hint)
