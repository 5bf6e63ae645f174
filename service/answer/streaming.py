"""
The verb stream: rows without end, as progressive results.

A chunk is read while the one before it is on its way, so two are in memory. The next one is
read when that one has left for the router: a caller's side that is behind holds up the cursor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.answer.line import Line
from service.answer.served import Served
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation
from service.db.cursors import Reader
from service.db.interactions import Shape, answered_columns
from service.plan.read import plan_find
from service.plan.types import ReadPlan
from service.request.streams import parse_stream
from service.request.types import FindRequest
from service.sql.select import select
from service.sql.statement import Statement


class Streaming(Verbs):
    """The verb that reads rows without a limit."""

    async def stream(
        self,
        served: Served,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        line: Line,
    ) -> Any:
        """
        Answer `stream`: how many rows there were, when the last of them is on its way.

        Raises:
            InvalidArgument: The caller does not take progressive results.
        """
        send = line.parts()
        call, rows = parse_stream(args, kwargs, self.limits, f"{relation.schema}.{relation.name}")
        statement = served.statement(unpaged, relation, call.request)
        shape = Shape(call.request.form, self.max_bytes)
        reader = Reader(served.codec, statement, call.values, shape, rows)
        async with self.database.transaction(read_only=True):
            await relay(partial(self.database.run, reader.chunk_txn, timeout=call.timeout), send)
        if call.request.form == "lists":
            return {"columns": list(answered_columns(statement)), "rows": reader.count}
        return {"rows": reader.count}


async def relay(read: Callable[[], Deferred[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """
    Send what is read, until an empty chunk is; the next is read while one is sent.

    Args:
        read: Reads a chunk; what it gives is cancelled when nobody wants it any more.
        send: Sends a chunk; done when there may be more.
    """
    ahead = read()
    try:
        while chunk := await ahead:
            ahead = read()
            await send(chunk)
    finally:
        ahead.addErrback(lambda _: None)
        ahead.cancel()


def unpaged(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    """Spell a find whose rows carry no token of where their page ends."""
    return select(unpaged_plan(catalog, relation, request))


def unpaged_plan(catalog: Catalog, relation: Relation, request: FindRequest) -> ReadPlan:
    """Plan a find whose rows carry no token of where their page ends."""
    return replace(plan_find(catalog, relation, request), keyset=False)
