"""
Idempotency keys: a second call with a key is answered what the first was, and writes nothing.

The key, the result and the write are kept in one transaction (`db/keys.py`), so no crash comes
between them. Failures keep nothing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from service.api.call import Step
from service.db.database import Database
from service.db.keys import Kept, Keyed, claim_txn, keep_txn, keyed_txn, prune_txn
from service.db.sqlstate import refusal
from service.errors import InvalidArgument
from service.request.arguments import IDEMPOTENCY_KEY, Caller

BATCH = 1000
"""Keys that one statement drops: it holds a connection that calls may want."""
EVERY = 600.0
"""Seconds between two looks for keys that are old enough, at most."""
FIRST = 20.0
"""Seconds until the first: of services that are started often one looks all the same."""


def key_id(caller: Caller, key: str) -> bytes:
    """Return what tells a key from all others: as JSON, so that no part is taken for another."""
    return sha256(json.dumps([caller.realm, caller.authid, key]).encode()).digest()


def under_key(step: Step, keyed: Keyed) -> Step:
    """Return the step that does the same under a key, in one transaction and one job."""
    step = step.large or step
    args = (keyed, step.function, step.args, step.shape)
    return replace(step, function=keyed_txn, args=args, shape=lambda result: result, access="whole")


async def once(database: Database, keyed: Keyed | None, work: Callable[[], Awaitable[Any]]) -> Any:
    """
    Do work and commit the transaction that it is called in; with a key only if that is new.

    Returns:
        The result of the work, or what was kept of the first.

    Raises:
        InvalidArgument: The key was used for another call.
        Conflict: The first call has not ended; PostgreSQL asks to run all again.
    """
    if keyed is None:
        return await work()
    claimed = await database.run(claim_txn, keyed)
    if isinstance(claimed, Kept):
        return claimed.result
    result = await work()
    await database.run(keep_txn, keyed, claimed, result, last=True)
    return result


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
