"""
Idempotency keys: a second call with a key gets the result of the first one, and writes nothing.

The key, the result and the write are committed in one transaction (`db/keys.py`), so a crash cannot separate
them. A call that fails stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import sha256
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from service.api.call import Call, Step, as_is, not_in_transaction
from service.api.verbs import FUNCTION
from service.db.database import Database, Transaction
from service.db.keys import (
    KeyedCall,
    MaybeStored,
    claim_txn,
    keyed_outcome,
    keyed_row_txn,
    keyed_txn,
    lookup_txn,
    prune_txn,
    run_and_store_txn,
    store_result_txn,
)
from service.db.session_settings import OWN_IDENTITY
from service.db.sqlstate import refusal
from service.db.writes import NoRowWritten, fitting_txn
from service.errors import InvalidArgument, ServiceError
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT, Caller, seconds_of
from service.request.call_request import given_option
from service.waiting import cancel_timer

BATCH = 1000
"""Keys that one statement deletes, so that it does not hold a connection for long."""
EVERY = 600.0
"""Maximum interval between two prunings, in seconds."""
FIRST = 20.0
"""Seconds until the first pruning, so that a service that is restarted often prunes as well."""


def key_id(caller: Caller, key: str) -> bytes:
    """Return the id of a caller's key; its parts are hashed as JSON, which keeps them apart."""
    return sha256(json.dumps([caller.realm, caller.authid, key]).encode()).digest()


def keyed_step(
    database: Database, call: Call, keyed: KeyedCall, step: Step | Awaitable[Any]
) -> Step | Awaitable[Any]:
    """Return the step, or the awaitable, of a call that runs only if its key is new."""
    if isinstance(step, Step):
        # The key, the step and the result run in one transaction and one job.
        unguarded = step.large or step
        run, given = unguarded.function, unguarded.args
        if run is fitting_txn:  # the size of the answer is checked when it is stored
            run, given = given[1], given[2:]
        args: tuple[Any, ...] = keyed, run, given, unguarded.shape
        function: Callable[..., Any] = keyed_txn
        if step.one_row:
            function, args = keyed_row_txn, (*args, [step.args] if step.row else [])
        return Step(function, args, as_is, step.timeout, "transaction", step.missing)
    # The first attempt uses the awaitable that was made already; a retry makes another one.
    made = [step]

    async def work() -> Any:
        assert call.verb.handler is not None
        again = made.pop() if made else call.verb.handler(call)
        return again if isinstance(again, Step) else await again

    seconds = seconds_of(call.kwargs.get("timeout"))
    return run_once(database, keyed, work, timeout=seconds, kind=keyed.procedure)


async def run_once(
    database: Database,
    keyed: KeyedCall,
    work: Callable[[], Awaitable[Any]],
    isolation: str | None = None,
    **how: Any,
) -> Any:
    """
    Run work in a transaction under a key, if the key is new.

    The statement that claims the key is sent in front of the first statement of the work, and the one that
    stores the result in front of COMMIT, so they cost no round trips.

    Args:
        database: Where the key is stored.
        keyed: The call.
        work: Runs the call, again in each attempt; returns the result, or the last step to run.
        isolation: As in `Database.transact`.
        how: Further arguments of `Database.transact`.

    Returns:
        The result of the work, or the stored result of the first call.

    Raises:
        InvalidArgument: The key was used for another call.
        Conflict: The first call has not ended, or all attempts ended in a serialization failure.
    """

    async def attempt() -> Any:
        level = database.level
        assert isinstance(level, Transaction)
        level.all_or_nothing = True
        level.first = partial(claim_txn, keyed=keyed)
        try:
            found = await work()
            if not isinstance(found, Step):
                await database.run(store_result_txn, keyed, found, last=True)
                return found
            last = run_and_store_txn, keyed, found.function, found.args, found.shape
            try:
                return await database.run(*last, timeout=found.timeout, last=True)
            except NoRowWritten:
                assert isinstance(found.missing, ServiceError)
                raise found.missing from None
        except Exception as error:
            found = keyed_outcome(error)
            if found is error:
                raise
            raise found from error

    try:
        return await database.transact(attempt, isolation=isolation, **how)
    except MaybeStored as perhaps:
        with database.identity(OWN_IDENTITY):
            kept = await database.run(lookup_txn, keyed, retry=True)
        if kept is None:
            raise perhaps.error from None
        return kept.result


def key_refusal(why: str, hint: str | None = None) -> InvalidArgument:
    """Return the refusal of an idempotency key that a call may not have."""
    return InvalidArgument(why, path=IDEMPOTENCY_KEY, hint=hint)


def option_of(call: Call, name: str) -> Any:
    """Return an option of a call that writes; None if a function has a parameter of that name."""
    if call.verb is FUNCTION:
        return given_option(call.functions, call.kwargs, name)
    return call.kwargs.get(name) if call.verb.writes else None


def refuse_own_options(call: Call) -> None:
    """
    Refuse what a call in a transaction cannot have of its own: parts of its answer, a receipt, a key.

    Raises:
        InvalidArgument: It has one of them.
    """
    if call.verb.progress is not None:
        raise not_in_transaction(call.verb.name)
    if RECEIPT in call.kwargs and option_of(call, RECEIPT):
        raise InvalidArgument(
            "an operation of a transaction has no receipt of its own",
            path=RECEIPT,
            hint="the transaction has one",
        )
    if IDEMPOTENCY_KEY in call.kwargs and option_of(call, IDEMPOTENCY_KEY) is not None:
        raise key_refusal(
            "an operation of a transaction has no key of its own", "the transaction has one"
        )


class Pruner(Service):
    """
    Deletes the keys whose retention time has passed.

    Args:
        database: Where the keys are stored.
        seconds: Minimum retention time.
    """

    log = Logger()

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        self._loop = LoopingCall(self._prune)
        self._loop.clock = database.reactor
        self._first: IDelayedCall | None = None

    def startService(self) -> None:
        """Start to prune at intervals."""
        super().startService()
        every = min(EVERY, self._seconds / 24)
        self._first = self._loop.clock.callLater(min(FIRST, every), self._loop.start, every)

    def stopService(self) -> None:
        """Stop pruning."""
        super().stopService()
        cancel_timer(self._first)
        if self._loop.running:
            self._loop.stop()

    def _prune(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.prune())

    async def prune(self) -> None:
        """Delete all old keys, in batches; other replicas may do so at the same time."""
        try:
            # A batch that is not full was the last one.
            while await self._database.run(prune_txn, self._seconds, BATCH) == BATCH:
                pass
        except Exception as error:  # the database may be away; the next interval tries again
            found = refusal(error)
            self.log.info(
                "idempotency keys were not pruned: {why}", why=found.message if found else error
            )
