"""
Idempotency keys: a second call with a key is answered what the first was, and writes nothing.

The key, the result and the write are kept in one transaction (`db/keys.py`), so no crash comes
between them. Failures keep nothing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from service.api.call import Call, Step
from service.db.database import Database
from service.db.keys import (
    KeyClaim,
    Keyed,
    PerhapsKept,
    claim_txn,
    keep_txn,
    kept_txn,
    keyed_outcome,
    keyed_txn,
    look_txn,
    prune_txn,
)
from service.db.levels import Transaction
from service.db.session_settings import OWN_IDENTITY
from service.db.sqlstate import refusal
from service.db.writes import NoRowWritten
from service.errors import InvalidArgument, ServiceError
from service.request.arguments import IDEMPOTENCY_KEY, Caller, seconds_of

BATCH = 1000
"""Keys that one statement drops: it holds a connection that calls may want."""
EVERY = 600.0
"""Seconds between two looks for keys that are old enough, at most."""
FIRST = 20.0
"""Seconds until the first: of services that are started often one looks all the same."""


def key_id(caller: Caller, key: str) -> bytes:
    """Return what tells a key from all others: as JSON, so that no part is taken for another."""
    return sha256(json.dumps([caller.realm, caller.authid, key]).encode()).digest()


def once_only(
    database: Database, call: Call, keyed: Keyed, step: Step | Awaitable[Any]
) -> Step | Awaitable[Any]:
    """Return what a call does, by its step or in several, if that was not done under its key before."""
    if isinstance(step, Step):
        # In one transaction and one job.
        step = step.large or step
        args = (keyed, step.function, step.args, step.shape)
        return replace(
            step, function=keyed_txn, args=args, shape=lambda result: result, access="transaction"
        )
    # Made already for the first attempt; each further one makes its own.
    made = [step]

    async def work() -> Any:
        assert call.verb.handler is not None
        again = made.pop() if made else call.verb.handler(call)
        return again if isinstance(again, Step) else await again

    seconds = seconds_of(call.kwargs.get("timeout"))
    return once(database, keyed, work, timeout=seconds, kind=keyed.procedure)


async def once(
    database: Database,
    keyed: Keyed,
    work: Callable[[], Awaitable[Any]],
    isolation: str | None = None,
    **how: Any,
) -> Any:
    """
    Do work in a transaction under a key, if that is new.

    The claim of the key travels with the first statement of the work, and its result with COMMIT.

    Args:
        database: Where the key is kept.
        keyed: The call.
        work: May be done again. Returns its result, or the step that is the last of it.
        isolation: As that of `Database.transact`.
        how: More of that one's.

    Returns:
        The result of the work, or what was kept of the first.

    Raises:
        InvalidArgument: The key was used for another call.
        Conflict: The first call has not ended; PostgreSQL asks to run all again.
    """

    async def attempt() -> Any:
        level = database.level
        assert isinstance(level, Transaction)
        level.all_or_nothing = True
        claim = KeyClaim(keyed)
        level.first = partial(claim_txn, claim=claim, placed=isolation == "serializable")
        try:
            found = await work()
            if not isinstance(found, Step):
                await database.run(keep_txn, claim, found, last=True)
                return found
            last = kept_txn, claim, found.function, found.args, found.shape
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
    except PerhapsKept as perhaps:
        with database.identity(OWN_IDENTITY):
            kept = await database.run(look_txn, keyed, retry=True)
        if kept is None:
            raise perhaps.error from None
        return kept.result


def no_key(why: str, hint: str | None = None) -> InvalidArgument:
    """Return the refusal of a key where there can be none."""
    return InvalidArgument(why, path=IDEMPOTENCY_KEY, hint=hint)


class Pruner(Service):
    """
    Drops keys that were kept for long enough.

    Args:
        database: Where they are.
        seconds: How long they are kept, at least.
    """

    log = Logger()

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        self._loop = LoopingCall(self._prune)
        self._loop.clock = database.reactor
        self._first: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to look now and then."""
        super().startService()
        every = min(EVERY, self._seconds / 24)
        self._first = self._loop.clock.callLater(min(FIRST, every), self._loop.start, every)

    def stopService(self) -> None:
        """Look no more."""
        super().stopService()
        if self._first is not None and self._first.active():
            self._first.cancel()
        if self._loop.running:
            self._loop.stop()

    def _prune(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.prune())

    async def prune(self) -> None:
        """Drop all that are old enough; other replicas may be at it, too."""
        try:
            # Fewer than asked for were the last.
            while await self._database.run(prune_txn, self._seconds, BATCH) == BATCH:
                pass
        except Exception as error:  # of a database that is away, say: there is a next time
            found = refusal(error)
            self.log.info(
                "idempotency keys were not pruned: {why}", why=found.message if found else error
            )
