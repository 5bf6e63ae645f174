"""
The procedure `transaction`: operations of any verbs and functions in one transaction, all or nothing.

Each operation is a call as it would be by itself, with its hooks and validations, its role and the
schema of its name; what it runs goes to the transaction that the batch is in. What PostgreSQL asks
to be run again is run again as a whole, since nothing of it has reached the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from service.api.call import CallState, no_operation
from service.api.dispatcher import Dispatcher, Procedure
from service.api.idempotency import no_key, once
from service.db.keys import Keyed
from service.db.levels import Transaction
from service.db.writes import transaction_txn
from service.errors import Conflict, InvalidArgument, ServiceError
from service.payload import Receipted, fit
from service.request.arguments import IDEMPOTENCY_KEY, Caller
from service.request.batch_request import BatchRequest, parse_batch, resolve


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
            raise no_operation("transaction")
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

        try:
            found: list[Any] | Receipted = await self._database.transact(
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

        async def operate() -> list[Any] | Receipted:
            await self._operate(caller, request, results)
            if whole is None:
                fit(results, self._dispatcher.backend.max_bytes)
            if fails:
                raise InjectedFailure("this attempt was to fail", retry=True)
            if not request.receipt or request.dry_run:
                return results
            # With a key, what keeps that is the last statement.
            tx = await self._database.run(transaction_txn, last=whole is None)
            return Receipted(results, tx)

        found: list[Any] | Receipted = await once(self._database, whole, operate)
        if request.dry_run:  # what would be checked at COMMIT is checked now
            await self._database.statement("SET CONSTRAINTS ALL IMMEDIATE", fetch=False)
            # Raised, so that the transaction is rolled back like any that fails.
            raise DryRun(results)
        return found

    async def _operate(self, caller: Caller, request: BatchRequest, results: list[Any]) -> None:
        """
        Make the operations, and append their results.

        One that refers to no other is sent together with those before it: the worker of the
        transaction takes them in their order.
        """
        level = self._database.level
        assert isinstance(level, Transaction)
        ahead: deque[Deferred[Any]] = deque()

        async def catch_up() -> None:
            level.flush()
            while ahead:  # the first error is that of the first operation that fails
                results.append(await ahead.popleft())

        try:
            for at, operation in enumerate(request.operations):
                if operation.refers:
                    await catch_up()
                state = CallState()
                work = self._operation(caller, request, at, results, state)
                with level.gathering():
                    ahead.append(Deferred.fromCoroutine(work))
                # What it has yet to send would come after the statements of those behind it.
                if not state.sent:
                    await catch_up()
            await catch_up()
        finally:
            for each in ahead:
                # Nobody waits for these after a failure; Twisted would log theirs as unhandled.
                each.addErrback(lambda _: None)
                each.cancel()

    async def _operation(
        self, caller: Caller, request: BatchRequest, at: int, results: list[Any], state: CallState
    ) -> Any:
        operation, path = request.operations[at], f"operations.{at}"
        args, kwargs = operation.args, operation.kwargs
        try:
            if operation.refers:
                args = [resolve(each, results, f"{path}.args.{i}") for i, each in enumerate(args)]
                # one by one: what is brought has no names of arguments
                kwargs = {
                    name: resolve(each, results, f"{path}.kwargs.{name}")
                    for name, each in kwargs.items()
                }
            return await self._dispatcher.answer(operation.name, args, kwargs, caller, state=state)
        except ServiceError as error:
            error.details["operation"] = at
            raise
