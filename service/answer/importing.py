"""
The verb import: rows of any number, in one call or in many.

The calls of an upload belong to one session. It has its transaction open until the call that
says `done`; a session that is gone, a pause that is too long or an error ends it, and nothing
is kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from service.answer.line import Line
from service.answer.served import Served
from service.answer.upload import Upload
from service.catalog import Relation
from service.db.database import Database
from service.errors import InvalidArgument, NotAuthorized, Unavailable
from service.request.arguments import Caller
from service.request.read import Limits
from service.request.write import ImportRequest, parse_import

YIELD = 0.5
"""How much of the time that a call of an upload took is left to others before its answer."""

LONGEST = 0.25
"""Seconds of it at most: a call that took longer has waited for the database, not worked here."""


@dataclass
class _Open:
    """An upload between its calls."""

    upload: Upload
    owner: Caller
    calls: int = 0
    timer: IDelayedCall | None = None


class Importing:
    """
    Args:
        database: Where the rows go.
        limits: What a call may ask for, and how long an upload may lie idle.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._open: dict[str, _Open] = {}

    @property
    def most(self) -> int:
        """How many uploads there may be at once: each has a connection, others want some too."""
        return max(1, self._database.pool.dispatch.limits.most - 2)

    async def take(
        self,
        served: Served,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        line: Line,
    ) -> Any:
        """
        Answer `import`: how many rows were written, or the upload that goes on.

        Raises:
            NotAuthorized: The upload is another session's.
            Unavailable: There are as many uploads as may be.
            ServiceError: What is wrong with the rows; nothing is kept.
        """
        call = parse_import(args, kwargs)
        if call.upload is None and call.done:
            return await self._whole(Upload(self._database, served, relation, call), call)
        line.begun = True  # a refusal ends the upload
        if call.upload is None:
            upload = Upload(self._database, served, relation, call)
            id = self._begin(upload, line.caller)
        else:
            id, upload = call.upload, self._of(call.upload, relation, line.caller)
        return await self._one(id, upload, call)

    def departed(self, session: int) -> None:
        """Drop the uploads of a session that is gone."""
        for id, each in list(self._open.items()):
            if each.owner.session == session:
                self._drop(id)

    async def _whole(self, upload: Upload, call: ImportRequest) -> Any:
        try:
            return {"rows": await self._database.within(call.timeout, _all(upload, call))}
        except BaseException:
            upload.abort()
            raise

    async def _one(self, id: str, upload: Upload, call: ImportRequest) -> Any:
        """Make one call of an upload, after those before it."""
        self._rouse(id)
        try:
            await upload.lock.acquire()
            try:
                if id not in self._open:  # what came before has failed, or was the last
                    raise _no_such_upload()
                if call.done:
                    rows = await self._database.within(call.timeout, _all(upload, call))
                    self._open.pop(id, None)
                    return {"rows": rows}
                await self._part(upload, call)
                return {"upload": id}
            finally:
                upload.lock.release()
        except BaseException:
            self._drop(id)
            raise
        finally:
            self._rest(id)

    async def _part(self, upload: Upload, call: ImportRequest) -> None:
        """Take the rows of a call; before it is answered, others have the machine for a while."""
        reactor = self._database.reactor
        began = reactor.seconds()
        await self._database.within(call.timeout, upload.take(call))
        await deferLater(reactor, min(LONGEST, YIELD * (reactor.seconds() - began)))

    def _begin(self, upload: Upload, owner: Caller) -> str:
        if len(self._open) >= self.most:
            raise Unavailable("as many uploads are open as may be", retry_after=5.0)
        id = secrets.token_urlsafe(18)
        self._open[id] = _Open(upload, owner)
        return id

    def _of(self, id: str, relation: Relation, caller: Caller) -> Upload:
        found = self._open.get(id)
        if found is None:
            raise _no_such_upload()
        if found.owner.session != caller.session:
            raise NotAuthorized("the upload is another session's")
        home = found.upload.relation
        if (home.schema, home.name) != (relation.schema, relation.name):
            raise InvalidArgument(f'the upload goes into "{home.name}"', path="upload")
        return found.upload

    def _rouse(self, id: str) -> None:
        found = self._open[id]
        found.calls += 1
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None

    def _rest(self, id: str) -> None:
        """Give an upload so long for its next call."""
        found = self._open.get(id)
        if found is None:
            return
        found.calls -= 1
        if not found.calls:
            found.timer = self._database.reactor.callLater(self._limits.idle, self._expire, id)

    def _expire(self, id: str) -> None:
        self._open[id].timer = None
        self._drop(id)

    def _drop(self, id: str) -> None:
        found = self._open.pop(id, None)
        if found is not None:
            if found.timer is not None:
                found.timer.cancel()
            found.upload.abort()


async def _all(upload: Upload, call: ImportRequest) -> int:
    await upload.take(call)
    return await upload.finish()


def _no_such_upload() -> InvalidArgument:
    return InvalidArgument(
        "there is no such upload",
        path="upload",
        hint="it is done, has failed, or lay idle for too long; nothing of the latter two is kept",
    )
