"""
Interactive transactions: a session holds a transaction open between calls, under a URI of its own.

`transaction.begin` answers the URI, which contains the id of this process. A call of the URI runs an
operation in the transaction; the commands below the URI end it or set savepoints. Statements run in the
order of their calls, so a caller can send calls ahead without waiting for answers. A call waits for the one
before it only until that one's statements have been sent, because a worker keeps their order. Once a call
fails, those behind it fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall

from service.api.call import CallState, not_in_transaction
from service.api.idempotency import key_refusal
from service.api.leases import Lease, Leases, Reason, is_process, process_of
from service.catalog import Catalog
from service.db.connection import PgConnection
from service.db.database import Database, Transaction
from service.db.keys import KeyedCall, claim_at_end_txn
from service.db.sqlstate import look_through_rows, refusal
from service.db.transaction import TransactionAborted, TransactionClosed, rollback_to_txn
from service.db.worker import ORIGIN, Origin
from service.db.writes import transaction_txn
from service.errors import (
    Canceled,
    Conflict,
    InvalidArgument,
    NoSuchProcedure,
    ServiceError,
    UnknownName,
    clip,
    nearest,
)
from service.payload import WithReceipt
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT, Arguments, Caller, seconds_of
from service.request.batch_request import ISOLATION
from service.sql.statement import quoted
from service.waiting import cancel_timer


class Turn:
    """
    The place of one call in the order of a transaction's calls.

    Attributes:
        sent: Whether the call has sent all of its statements.
        work: Answers the call, once it has begun.
        waiting: Fires when the call may begin.
        alone: Whether the call begins once those before it have ended, not once they are sent.
        over: Whether the call has ended.
        on_end: Called once the call and all those before it have ended.
    """

    __slots__ = ("alone", "on_end", "over", "sent", "waiting", "work")

    def __init__(self) -> None:
        self.sent = False
        self.work: Deferred[Any] | None = None
        self.waiting: Deferred[None] | None = None
        self.alone = self.over = False
        self.on_end: Callable[[], None] | None = None


class Turns:
    """The order of the calls of a transaction that have not ended."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()
        self._sent = 0
        self._advancing = False

    def add(self) -> Turn:
        """Add a call that has arrived, behind all others, and return its turn."""
        turn = Turn()
        self._turns.append(turn)
        return turn

    async def wait(self, turn: Turn, alone: bool = False) -> None:
        """Wait until the calls before a turn have sent their statements or, with `alone`, have ended."""
        turn.alone = alone
        if not self._may_begin(turn):
            turn.waiting = Deferred()
            await turn.waiting

    def sent(self, turn: Turn) -> None:
        """Record that a call has sent all of its statements."""
        turn.sent = True
        self._advance()

    def end(self, turn: Turn, on_end: Callable[[], None] | None) -> None:
        """End a call; call `on_end`, if given, once those before it have ended."""
        turn.over, turn.on_end = True, on_end
        self._advance()

    def stop(self) -> None:
        """Cancel the calls that run."""
        # A copy, because a call that ends when it is cancelled removes itself.
        for turn in list(self._turns):
            if turn.work is not None:
                turn.work.cancel()

    def _advance(self) -> None:
        # A loop, because each call that begins or ends moves the next one: nested calls would exceed the
        # recursion limit when a refused call has some hundred behind it.
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._advance_once():
                pass
        finally:
            self._advancing = False

    def _advance_once(self) -> bool:
        """Remove the first call if it has ended, or begin one that waits; return whether either was done."""
        turns = self._turns
        if turns and turns[0].over:
            ended = turns.popleft()
            self._sent = max(0, self._sent - 1)
            if ended.on_end is not None:
                ended.on_end()
            return True
        for turn in (self._first(), self._unsent()):
            waiting = None if turn is None or not self._may_begin(turn) else turn.waiting
            if waiting is not None and not waiting.called:
                waiting.callback(None)
                return True
        return False

    def _may_begin(self, turn: Turn) -> bool:
        return turn is self._first() or (not turn.alone and turn is self._unsent())

    def _first(self) -> Turn | None:
        return self._turns[0] if self._turns else None

    def _unsent(self) -> Turn | None:
        """Return the first turn whose call has not sent all of its statements."""
        turns = self._turns
        while self._sent < len(turns) and turns[self._sent].sent:
            self._sent += 1
        return turns[self._sent] if self._sent < len(turns) else None


BEGIN = "transaction.begin"
"""The procedure that begins a transaction."""
TX = "tx."
"""The beginning of the names of calls in a transaction."""

NAMED = frozenset({"savepoint", "release", "rollback_to"})
"""Commands that name a savepoint."""

MAX_NAME = 63
"""Maximum bytes of a savepoint's name: PostgreSQL truncates longer ones, which can make two equal."""

ENDED: Mapping[Reason, str] = {
    "idle_timeout": "the transaction lay idle for too long and was rolled back",
    "session_left": "the session that had the transaction has left; it was rolled back",
    "stopped": "no running service has this transaction: unless committed, it is rolled back",
    "failed": "the transaction has failed",
    "timeout": "the transaction took longer than it may and was rolled back",
    "committed": "the transaction has been committed",
    "rolled_back": "the transaction has been rolled back",
}

FAILED = "the transaction has failed: a call before this one was refused"
REPEAT = "roll it back, begin another one, and make all of its calls again"
"""The hint of an error with `retry`. Outside a transaction such an error asks to repeat the one call."""

Answer = Callable[[str, Sequence[Any], Mapping[str, Any], Caller, CallState], Awaitable[Any]]
"""`Dispatcher.answer`, with the name, args, kwargs, caller and state of an operation."""


@dataclass(frozen=True)
class TransactionLimits:
    """
    How many transactions callers may hold open, and for how long.

    Args:
        total: Maximum number of all sessions; each transaction holds a connection.
        session: Maximum number of one session.
        idle: Maximum time between two calls, in seconds.
        whole: Maximum time from begin to end, in seconds.
    """

    total: int = 3
    session: int = 2
    idle: float = 10.0
    whole: float = 60.0


class OpenTransaction:
    """
    A transaction that a session holds open.

    Args:
        level: The transaction in the database; it takes a connection with its first statement.

    Attributes:
        savepoints: Names of the savepoints, oldest first; a name may occur twice.
        failure: Details of the refusal that all calls get since one has failed; None before.
        reason: Why it has ended; None before.
        turns: The order of its calls.
    """

    def __init__(self, level: Transaction) -> None:
        self.level = level
        self.savepoints: list[str] = []
        self.turns = Turns()
        self._undone: Deferred[None] | None = None
        self.failure: Mapping[str, Any] | None = None
        self.reason: Reason | None = None
        self.clock: IDelayedCall | None = None

    def fail(self, cause: ServiceError | None) -> None:
        """
        Record why a call has failed; the calls behind it fail for that reason.

        Without a savepoint only a rollback can follow, so the transaction is rolled back at once. Otherwise
        the other side of a deadlock would wait for its locks until this caller rolls back.
        """
        if self.reason is None and self.failure is None:
            self.failure = {
                "reason": "failed",
                "detail": f"{cause.uri}: {cause.message}" if cause else None,
                "sqlstate": cause.details.get("sqlstate") if cause else None,
                "hint": "roll it back, or back to a savepoint" if self.savepoints else REPEAT,
            }
            # The calls behind it that have been sent are refused without waiting for their statements.
            self.turns.stop()
            if not self.savepoints:
                self._undone = Deferred.fromCoroutine(self.level.rollback())

    async def rollback(self) -> None:
        """Roll back, or wait for the rollback that a failure has started."""
        await (self._undone or self.level.rollback())

    def index_of(self, savepoint: str) -> int:
        """
        Return the index of the last savepoint of a name.

        Raises:
            UnknownName: No savepoint has that name.
        """
        for at in reversed(range(len(self.savepoints))):
            if self.savepoints[at] == savepoint:
                return at
        refused = UnknownName("savepoint", savepoint, self.savepoints, path="name")
        known = ", ".join(f'"{clip(each)}"' for each in self.savepoints[-5:])
        refused.details.setdefault("hint", f"savepoints: {known}" if known else "none is set")
        raise refused

    def refuse_if_failed(self) -> None:
        """
        Refuse a call if an earlier one has failed.

        Raises:
            Conflict: An earlier call has failed.
        """
        if self.failure is not None:
            raise Conflict(FAILED, **self.failure)

    def mark_ended(self, reason: Reason) -> None:
        """Record why the transaction has ended, and stop its clock."""
        self.reason = reason
        cancel_timer(self.clock)

    def drop(self, reason: Reason) -> None:
        """Cancel the calls that run, and roll back."""
        self.mark_ended(reason)
        self.turns.stop()
        self.level.abandon()


class Interactive:
    """
    The transactions that callers hold open in this process.

    Args:
        database: Where the transactions run.
        limits: Maximum number and times of the transactions.
        process: The id of this process.
        prefix: The prefix of the procedures' URIs.
        answer: Answers an operation.
        keyed: `Dispatcher.keyed`.
    """

    def __init__(
        self,
        database: Database,
        limits: TransactionLimits,
        process: str,
        prefix: str,
        answer: Answer,
        keyed: Callable[..., KeyedCall | None],
    ) -> None:
        self._database = database
        self._limits = limits
        self._prefix = prefix
        self._answer = answer
        self._keyed = keyed
        self.leases: Leases[OpenTransaction] = Leases(
            database.reactor,
            process,
            "transaction",
            limits.total,
            limits.session,
            "commit or roll back one of them",
        )
        self._commands: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "commit": self._commit,
            "rollback": self._rollback,
            "savepoint": self._savepoint,
            "release": self._release,
            "rollback_to": self._rollback_to,
        }

    async def begin(self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """
        Answer `transaction.begin`: the URI of a new transaction.

        Raises:
            InvalidArgument: An argument is invalid.
            Unavailable: The maximum number of transactions is open.
        """
        if self._database.level is not None:
            raise not_in_transaction(BEGIN)
        given = Arguments(args, kwargs, [], ["isolation", "read_only", "idle_timeout"])
        isolation = given.choice("isolation", ISOLATION)
        idle = seconds_of(given.value("idle_timeout"), "idle_timeout") or self._limits.idle
        level = self._database.hold(self._limits.idle, isolation, given.flag("read_only"))
        # A failure rolls back all of it, or to a savepoint that the caller set.
        level.all_or_nothing = True
        held = OpenTransaction(level)
        lease = self.leases.open(caller, held, min(idle, self._limits.idle))
        held.clock = self._database.reactor.callLater(
            self._limits.whole, self.leases.drop, lease, "timeout"
        )
        with self.leases.use(lease):
            # The end of this `use` starts the idle time, before the first call.
            return {"tx": f"{self._prefix}.{TX}{lease.id}"}

    async def answer(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState,
        catalog: Catalog | None,
    ) -> Any:
        """
        Answer a call in a transaction.

        Args:
            name: As in "tx.<process>.<secret>.commit".
            args: The arguments of the command; without a command, the name, args and kwargs of an operation.
            kwargs: The same by name: `call`, `args`, `kwargs`.
            caller: The session that calls.
            state: The state of the call, used for the operation as well.
            catalog: The caller's catalog, to name constraints that COMMIT finds violated; None if unknown.

        Raises:
            NotAuthorized: The transaction belongs to another session.
            Conflict: It has ended, or an earlier call has failed.
            ServiceError: The operation is refused.
        """
        process, _, rest = name.removeprefix(TX).partition(".")
        secret, _, command = rest.partition(".")
        id = f"{process}.{secret}"
        if process != self.leases.process:
            # Calls are routed to the process. So the one that has given this id, if one has, is stopped. So is
            # one whose own URI is called: a service has forwarded the call of an upload to it.
            gone = process_of(id) is not None or (not rest and is_process(process))
            raise ended_refusal("stopped" if gone else None)
        lease = self.leases.find(id, caller.session)
        if lease is None:
            raise ended_refusal(self.leases.reason(id))
        held = lease.held
        with self.leases.use(lease):
            turns, turn = held.turns, held.turns.add()
            on_end: Callable[[], None] | None = partial(held.fail, None)
            try:
                # A command concerns all calls before it, so they have to end first.
                await turns.wait(turn, alone=bool(command))
                work = self._work(lease, turn, command, args, kwargs, caller, state)
                turn.work = Deferred.fromCoroutine(work)
                if state.sent and not turn.work.called:
                    turns.sent(turn)
                answer, on_end = await turn.work, None
                return answer
            except Exception as error:
                if not isinstance(error, CancelledError):
                    # An earlier call may have failed as well, and its failure counts.
                    with suppress(CancelledError):
                        await turns.wait(turn, alone=True)
                await look_through_rows(self._database.reactor, error, catalog)
                cause = refusal(error, catalog)
                on_end = partial(held.fail, cause)
                # The end of the transaction has cancelled this call; the refusal says why it ended.
                if held.reason is not None and (cause is None or isinstance(cause, Canceled)):
                    raise ended_refusal(held.reason) from error
                # A command checks the failure by itself.
                if held.failure is not None and not command:
                    raise Conflict(FAILED, **held.failure) from error
                if cause is not None and cause.details.get("retry"):
                    locks = "; until then it keeps its locks" if held.savepoints else ""
                    cause.details.setdefault("hint", REPEAT + locks)
                if cause is None or cause is error:
                    raise
                raise cause from error
            finally:
                turns.end(turn, on_end)

    async def _work(
        self,
        lease: Lease[OpenTransaction],
        turn: Turn,
        command: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
        state: CallState,
    ) -> Any:
        held = lease.held
        if held.reason is not None:
            raise ended_refusal(held.reason)
        if command:
            return await self._run_command(lease, command, args, kwargs, caller)
        held.refuse_if_failed()
        given = Arguments(args, kwargs, ["call", "args", "kwargs"], [])
        call, positional, named = given.required("call"), given.value("args"), given.value("kwargs")
        if not isinstance(call, str):
            raise InvalidArgument(
                "an operation is named by a string", path="call", hint='as in "relation.update"'
            )
        if not isinstance(positional, list | tuple | None):
            raise InvalidArgument('"args" is a list', path="args")
        if not isinstance(named, Mapping | None):
            raise InvalidArgument('"kwargs" is a dict', path="kwargs")
        seconds = given.timeout()
        if seconds is not None or (named and "timeout" in named):
            await held.turns.wait(turn, alone=True)  # its timeout must not include earlier calls
            held.refuse_if_failed()
        ORIGIN.set(replace(ORIGIN.get() or Origin(), procedure=call))
        with self._database.inside(held.level):
            work = self._answer(call, positional or (), named or {}, caller, state)
            answer = await self._database.within(seconds, work)
        # An earlier call may still fail, and then this one fails as well.
        await held.turns.wait(turn, alone=True)
        held.refuse_if_failed()
        return answer

    async def _run_command(
        self,
        lease: Lease[OpenTransaction],
        command: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        caller: Caller,
    ) -> Any:
        # Checked in its turn, so that a mistyped rollback_to fails the commit that was sent behind it.
        if command not in self._commands:
            hint = nearest(command, list(self._commands))
            raise NoSuchProcedure(f'a transaction has no "{command}"', hint=hint)
        names = ["name"] if command in NAMED else []
        known = [IDEMPOTENCY_KEY, RECEIPT] if command == "commit" else []
        given = Arguments(args, kwargs, names, known)
        others = {RECEIPT: True} if given.flag(RECEIPT) else {}
        key = self._keyed(("tx.commit",), (), others, given.value(IDEMPOTENCY_KEY), caller)
        if key is None:
            work = self._commands[command](lease, given)
        else:
            work = self._commit_once(lease, given, key)
        return await self._database.within(given.timeout(), work)

    async def _commit(self, lease: Lease[OpenTransaction], given: Arguments) -> WithReceipt | None:
        """Commit; roll back a transaction that has failed, as PostgreSQL does."""
        held, receipt = lease.held, None
        if held.failure is not None:
            self._end(lease, "failed")
            await held.rollback()
            raise Conflict(FAILED, **held.failure)
        try:
            if given.flag(RECEIPT):
                receipt = WithReceipt(None, await held.level.send(transaction_txn))
            await held.level.commit()
        except BaseException as error:
            self._end(lease, "failed")
            if isinstance(error, TransactionAborted | TransactionClosed):
                raise ended_refusal("failed") from error
            raise
        self._end(lease, "committed")
        return receipt

    async def _commit_once(
        self, lease: Lease[OpenTransaction], given: Arguments, key: KeyedCall
    ) -> Any:
        """Commit under an idempotency key; roll back if a transaction has committed under it before."""
        held = lease.held
        if held.level.read_only:
            raise key_refusal("a transaction that is read_only keeps no idempotency key")
        kept = None
        if held.failure is None:
            kept = await held.level.send(claim_at_end_txn, key, given.flag(RECEIPT))
        if kept is None:
            return await self._commit(lease, given)
        self._end(lease, "committed")
        await held.rollback()
        return kept.result

    async def _rollback(self, lease: Lease[OpenTransaction], given: Arguments) -> None:
        # Before the wait, so that a call that arrives meanwhile is refused: the transaction has ended.
        self._end(lease, "rolled_back")
        await lease.held.rollback()

    def _end(self, lease: Lease[OpenTransaction], reason: Reason) -> None:
        self.leases.end(lease, reason)
        lease.held.mark_ended(reason)

    async def _savepoint(self, lease: Lease[OpenTransaction], given: Arguments) -> None:
        name, held = _name_of(given), lease.held
        held.refuse_if_failed()
        await held.level.send(PgConnection.command, f"SAVEPOINT {quoted(name)}")
        held.savepoints.append(name)

    async def _release(self, lease: Lease[OpenTransaction], given: Arguments) -> None:
        """Release a savepoint, and those set after it."""
        name, held = _name_of(given), lease.held
        held.refuse_if_failed()
        at = held.index_of(name)
        await held.level.send(PgConnection.command, f"RELEASE SAVEPOINT {quoted(name)}")
        del held.savepoints[at:]

    async def _rollback_to(self, lease: Lease[OpenTransaction], given: Arguments) -> None:
        """Roll back to a savepoint; the transaction continues, even if it had failed."""
        name, held = _name_of(given), lease.held
        at = held.index_of(name)
        await held.level.send(rollback_to_txn, quoted(name))
        del held.savepoints[at + 1 :]
        held.failure = None


def ended_refusal(reason: Reason | None) -> Conflict:
    """Return the refusal of a call in a transaction that has ended."""
    if reason is None:
        return Conflict("there is no such transaction, or it has ended a while ago")
    clock = {"idle_timeout": "idle", "timeout": "transaction"}.get(reason)
    return Conflict(ENDED[reason], reason="failed" if reason == "timeout" else reason, clock=clock)


def _name_of(given: Arguments) -> str:
    name = given.value("name")
    if not isinstance(name, str) or not name or "\0" in name or len(name.encode()) > MAX_NAME:
        raise InvalidArgument(
            f"a savepoint's name is a string of 1 to {MAX_NAME} bytes", path="name"
        )
    return name
