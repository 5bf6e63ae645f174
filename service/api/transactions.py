"""
The procedure `transaction`: a batch of calls of verbs and functions in one transaction, all or nothing.

Each operation is answered like a call by itself, with its hooks, validations, role and search_path, but its
statements run in the transaction of the batch. After a serialization failure or a deadlock the entire batch
is run again, because the caller has received nothing of it yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from service.api.call import Call, Step, not_in_transaction
from service.api.dispatcher import Dispatcher, Procedure
from service.api.idempotency import key_refusal, run_once
from service.db.keys import KeyedCall
from service.db.transaction import Actor, acting_each_txn
from service.db.writes import NoRowWritten, transaction_txn
from service.errors import Conflict, InvalidArgument, ServiceError
from service.payload import WithReceipt, fit
from service.request.arguments import IDEMPOTENCY_KEY, Caller
from service.request.batch_request import BatchRequest, Operation, parse_batch, resolve


class InjectedFailure(Conflict):
    """The failure that a caller asks for to test its retries; it looks like a serialization failure."""

    pgcode = "40001"


class DryRun(Exception):
    """
    Raised at the end of a dry run, to roll the transaction back.

    Args:
        results: The answer of the batch.
    """

    def __init__(self, results: list[Any]) -> None:
        super().__init__()
        self.results = results


@dataclass(frozen=True, slots=True)
class ReadyOperation:
    """
    An operation whose only step is ready to run.

    Args:
        at: Its index in the batch.
        operation: The operation.
        step: Its step.
        actor: Who its statements are sent for.
        reads: Whether it certainly changes nothing.
    """

    at: int
    operation: Operation
    step: Step
    actor: Actor
    reads: bool


class TransactionProcedure:
    """
    Answers `transaction`.

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
    ) -> list[Any] | WithReceipt:
        """
        Answer `transaction`: the results of the operations, in their order.

        Raises:
            Conflict: All attempts ended in a serialization failure or a deadlock.
            ServiceError: An operation is refused; nothing of the batch is kept.
        """
        if self._database.level is not None:
            raise not_in_transaction("transaction")
        request = parse_batch(args, kwargs)
        key = kwargs.get(IDEMPOTENCY_KEY)
        whole = self._dispatcher.keyed(("transaction",), args, kwargs, key, caller)
        # The answer of a read can be computed again, and the key of a dry run is rolled back with it.
        if whole is not None and (request.read_only or request.dry_run):
            raise key_refusal("a batch that writes nothing has no idempotency key")
        if request.failures and not self._inject:
            raise InvalidArgument("failures can be injected in development only", path="inject")
        attempts = 0

        async def attempt() -> list[Any] | WithReceipt:
            nonlocal attempts
            attempts += 1
            return await self._attempt(caller, request, whole, attempts <= request.failures)

        run: Callable[..., Awaitable[Any]] = self._database.transact
        if whole is not None:
            run = partial(run_once, self._database, whole)
        try:
            found: list[Any] | WithReceipt = await run(
                attempt,
                isolation=request.isolation,
                read_only=request.read_only,
                timeout=request.timeout,
                kind=frozenset(each.name for each in request.operations),
            )
        except DryRun as done:
            found = WithReceipt(done.results, None) if request.receipt else done.results
        return found

    async def _attempt(
        self, caller: Caller, request: BatchRequest, whole: KeyedCall | None, fails: bool
    ) -> list[Any] | WithReceipt:
        results: list[Any] = []
        level = self._database.level
        assert level is not None
        level.all_or_nothing = True

        commits = whole is None and not (fails or request.dry_run or request.receipt)
        await self._operate(caller, request, results, commits)
        if whole is None:  # else the statement that stores the result checks its size
            fit(results, self._dispatcher.backend.max_bytes)
        if fails:
            raise InjectedFailure("this attempt fails as requested", retry=True)
        if request.dry_run:  # deferred constraints, which COMMIT would check, are checked now
            await self._database.statement("SET CONSTRAINTS ALL IMMEDIATE", fetch=False)
            # An exception rolls the transaction back.
            raise DryRun(results)
        if not request.receipt:
            return results
        # With an idempotency key, the statement that stores the result is the last one.
        return WithReceipt(results, await self._database.run(transaction_txn, last=whole is None))

    async def _operate(
        self, caller: Caller, request: BatchRequest, results: list[Any], commits: bool
    ) -> None:
        """
        Run the operations, and append their results.

        Consecutive operations of one step that refer to no result of each other run as one job of the
        worker: to hand each one to the thread and back would cost as much as its statement. A batch of five
        gets took 0.65 to 0.82 of the CPU of five calls, and 1.2 to 2.2 with a job for each operation.

        Args:
            caller: The caller of the batch.
            request: The batch.
            results: Receives the results.
            commits: Whether the last job may commit, if all operations only read.
        """
        group: list[ReadyOperation] = []
        for at, operation in enumerate(request.operations):
            if operation.refers:  # to results, which the group has to produce first
                await self._run_group(caller, group, results)
                operation = _resolved(operation, at, results)
            name, args, kwargs = operation.name, operation.args, operation.kwargs
            prepared = self._dispatcher.prepare(name, args, kwargs, caller)
            step = None if prepared is None else prepared.step
            if prepared is not None and isinstance(step, Step) and _can_share_job(step):
                group.append(ReadyOperation(at, operation, step, prepared.actor, prepared.reads))
                continue
            try:
                await self._run_group(caller, group, results)
            except BaseException:
                if isinstance(step, Coroutine):
                    step.close()  # else Python warns that it was never awaited
                raise
            handler = None if prepared is None else prepared.handler
            results.append(await self._operation(caller, operation, at, handler))
        only_read = len(group) == len(request.operations) and all(each.reads for each in group)
        await self._run_group(caller, group, results, commits and only_read)

    async def _run_group(
        self,
        caller: Caller,
        group: list[ReadyOperation],
        results: list[Any],
        last: bool = False,
    ) -> None:
        """
        Run a group of operations as one job, append their results, and empty the group.

        The one that fails is answered by the dispatcher with its error, which makes it a refusal.
        """
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


def _can_share_job(step: Step) -> bool:
    """Return whether a step needs no timeout and no savepoint, so that it can share a job with others."""
    if step.timeout is not None:
        return False
    return step.access in ("read", "write") or (
        step.access in ("read only", "atomic") and not callable(step.missing)
    )


async def _fail(step: Step, error: Exception, _: Call) -> None:
    """Raise the refusal of an operation whose step has failed."""
    raise await step.refusal(error) if isinstance(error, NoRowWritten) else error


def _resolved(operation: Operation, at: int, results: Sequence[Any]) -> Operation:
    """
    Return an operation with earlier results in place of its references to them.

    Raises:
        InvalidArgument: A reference leads to nothing.
    """
    path = f"operations.{at}"
    try:
        args = [resolve(each, results, f"{path}.args.{i}") for i, each in enumerate(operation.args)]
        # Each value by itself: `resolve` marks a dict as data, which the dict of arguments is not.
        kwargs = {
            name: resolve(each, results, f"{path}.kwargs.{name}")
            for name, each in operation.kwargs.items()
        }
    except ServiceError as error:
        error.details["operation"] = at
        raise
    return replace(operation, args=args, kwargs=kwargs)
