"""
The procedure `transaction`: operations of any verbs and functions in one transaction, all or nothing.

Each operation is a call as it would be by itself, with its hooks and validations, its role and the
schema of its name; what it runs goes to the transaction that the batch is in. What PostgreSQL asks
to be run again is run again as a whole, since nothing of it has reached the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from service.api.call import Call, Step, not_in_transaction
from service.api.dispatcher import Dispatcher, Procedure
from service.api.idempotency import no_key, once
from service.db.keys import Keyed
from service.db.transaction import Actor, acting_each_txn
from service.db.writes import NoRowWritten, transaction_txn
from service.errors import Conflict, InvalidArgument, ServiceError
from service.payload import Receipted, fit
from service.request.arguments import IDEMPOTENCY_KEY, Caller
from service.request.batch_request import BatchRequest, Operation, parse_batch, resolve


class InjectedFailure(Conflict):
    """What a caller has asked for, to try its own loop: as a conflict of two transactions."""

    pgcode = "40001"


class DryRun(Exception):
    """
    The end of a batch that is to be rolled back.

    Args:
        results: What it answers all the same.
    """

    def __init__(self, results: list[Any]) -> None:
        super().__init__()
        self.results = results


@dataclass(frozen=True, slots=True)
class Ready:
    """
    An operation that is ready to run, in one step.

    Args:
        at: Its number.
        operation: It.
        step: What it runs.
        actor: As whom.
        reads: Whether it leaves nothing to undo.
    """

    at: int
    operation: Operation
    step: Step
    actor: Actor
    reads: bool


class Batches:
    """
    Args:
        dispatcher: Answers each operation.
        inject: Whether callers may make attempts fail.
    """

    def __init__(self, dispatcher: Dispatcher, inject: bool = False) -> None:
        self._dispatcher = dispatcher
        self._database = dispatcher.backend.database
        self._inject = inject

    def procedures(self) -> dict[str, Procedure]:
        """Return the procedure by name."""
        return {"transaction": self._transaction}

    async def _transaction(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Any] | Receipted:
        """
        Answer `transaction`: the results of the operations, in their order.

        Raises:
            Conflict: PostgreSQL asked to run it again more often than is done.
            ServiceError: What an operation is refused for; nothing of the batch is kept.
        """
        if self._database.level is not None:
            raise not_in_transaction("transaction")
        request = parse_batch(args, kwargs)
        key = kwargs.get(IDEMPOTENCY_KEY)
        whole = self._dispatcher.keyed(("transaction",), args, kwargs, key, caller)
        # An answer that can be had again needs no keeping, and one that was rolled back is not kept.
        if whole is not None and (request.read_only or request.dry_run):
            raise no_key("a batch that writes nothing has no idempotency key")
        if request.failures and not self._inject:
            raise InvalidArgument("attempts are made to fail in development alone", path="inject")
        attempts = 0

        async def attempt() -> list[Any] | Receipted:
            nonlocal attempts
            attempts += 1
            return await self._attempt(caller, request, whole, attempts <= request.failures)

        run: Callable[..., Awaitable[Any]] = self._database.transact
        if whole is not None:
            run = partial(once, self._database, whole)
        try:
            found: list[Any] | Receipted = await run(
                attempt,
                isolation=request.isolation,
                read_only=request.read_only,
                timeout=request.timeout,
                kind=frozenset(each.name for each in request.operations),
            )
        except DryRun as done:
            found = Receipted(done.results, None) if request.receipt else done.results
        return found

    async def _attempt(
        self, caller: Caller, request: BatchRequest, whole: Keyed | None, fails: bool
    ) -> list[Any] | Receipted:
        results: list[Any] = []
        level = self._database.level
        assert level is not None
        level.all_or_nothing = True

        commits = whole is None and not (fails or request.dry_run or request.receipt)
        await self._operate(caller, request, results, commits)
        if whole is None:
            fit(results, self._dispatcher.backend.max_bytes)
        if fails:
            raise InjectedFailure("this attempt was to fail", retry=True)
        if request.dry_run:  # what would be checked at COMMIT is checked now
            await self._database.statement("SET CONSTRAINTS ALL IMMEDIATE", fetch=False)
            # Raised, so that the transaction is rolled back like any that fails.
            raise DryRun(results)
        if not request.receipt:
            return results
        # With a key, what keeps that is the last statement.
        return Receipted(results, await self._database.run(transaction_txn, last=whole is None))

    async def _operate(
        self, caller: Caller, request: BatchRequest, results: list[Any], commits: bool
    ) -> None:
        """
        Make the operations, and append their results.

        Those that take one step, and refer to none of these, run in one go in the transaction's worker:
        to hand each over and back would cost as much as its statement.

        Args:
            caller: Of the batch.
            request: It.
            results: Of the operations so far.
            commits: Whether operations that only read may be committed with the last of them.
        """
        group: list[Ready] = []
        for at, operation in enumerate(request.operations):
            if operation.refers:
                await self._together(caller, group, results)
                operation = _resolved(operation, at, results)
            name, args, kwargs = operation.name, operation.args, operation.kwargs
            prepared = self._dispatcher.prepare(name, args, kwargs, caller)
            step = None if prepared is None else prepared.step
            if prepared is not None and isinstance(step, Step) and _is_alone(step):
                group.append(Ready(at, operation, step, prepared.actor, prepared.reads))
                continue
            try:
                await self._together(caller, group, results)
            except BaseException:
                if isinstance(step, Coroutine):
                    step.close()
                raise
            handler = None if prepared is None else prepared.handler
            results.append(await self._operation(caller, operation, at, handler))
        only_read = len(group) == len(request.operations) and all(each.reads for each in group)
        await self._together(caller, group, results, commits and only_read)

    async def _together(
        self,
        caller: Caller,
        group: list[Ready],
        results: list[Any],
        last: bool = False,
    ) -> None:
        """Run operations in one go, append their results, and empty the group."""
        if not group:
            return
        done: list[Any] = []
        failed: Exception | None = None
        steps = [(each.actor, each.step.function, each.step.args) for each in group]
        try:
            await self._database.run(acting_each_txn, steps, done, last=last)
        except Exception as error:
            failed = error
        answered = 0
        try:
            for each, found in zip(group, done, strict=False):
                results.append(each.step.shape(found))
                answered += 1
        except Exception as error:
            failed = error
        if failed is not None and answered < len(group):
            first = group[answered]
            handler = partial(_fail, first.step, failed)
            await self._operation(caller, first.operation, first.at, handler)
        if failed is not None:
            raise failed
        group.clear()

    async def _operation(
        self,
        caller: Caller,
        operation: Operation,
        at: int,
        handler: Callable[[Call], Awaitable[Any]] | None,
    ) -> Any:
        try:
            return await self._dispatcher.answer(
                operation.name, operation.args, operation.kwargs, caller, handler=handler
            )
        except ServiceError as error:
            error.details["operation"] = at
            raise


def _is_alone(step: Step) -> bool:
    """Return whether a step has no time limit and no savepoint of its own."""
    if step.timeout is not None:
        return False
    return step.access in ("read", "write") or (
        step.access in ("read only", "atomic") and not callable(step.missing)
    )


async def _fail(step: Step, error: Exception, _: Call) -> None:
    """Refuse an operation whose step has failed."""
    if isinstance(error, NoRowWritten) and step.missing is not None:
        raise (await step.missing() if callable(step.missing) else step.missing) from None
    raise error


def _resolved(operation: Operation, at: int, results: Sequence[Any]) -> Operation:
    """
    Return an operation with what it refers to in place of the references.

    Raises:
        InvalidArgument: One is to nothing.
    """
    path = f"operations.{at}"
    try:
        args = [resolve(each, results, f"{path}.args.{i}") for i, each in enumerate(operation.args)]
        # one by one: what is brought has no names of arguments
        kwargs = {
            name: resolve(each, results, f"{path}.kwargs.{name}")
            for name, each in operation.kwargs.items()
        }
    except ServiceError as error:
        error.details["operation"] = at
        raise
    return replace(operation, args=args, kwargs=kwargs)
