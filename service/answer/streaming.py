"""
The verb stream: rows without end, as progressive results.

A chunk is read while the one before it is on its way, so two are in memory. The next one is
read when that one has left for the router: a caller's side that is behind holds up the cursor.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.answer.line import Line, Send
from service.answer.served import Served
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation
from service.db.cursors import Reader
from service.db.interactions import Shape, answered_columns
from service.db.values import Codec
from service.plan.read import plan_find
from service.plan.types import ReadPlan
from service.request.streams import parse_unpaged, take_chunk
from service.request.types import FindRequest, Form
from service.sql.select import select
from service.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class Flow:
    """
    Rows that are read without a limit.

    Args:
        codec: For the values, both ways.
        statement: Reads them.
        values: Of the call.
        form: Of the rows.
        timeout: Seconds that each step of reading may take.
        reads: Whether to read them changes nothing.
        around: What runs each step in the worker, if it does not run by itself.
    """

    codec: Codec
    statement: Statement
    values: Sequence[Any]
    form: Form
    timeout: float | None = None
    reads: bool = True
    around: tuple[Callable[..., Any], ...] = ()


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
        chunk, rest = take_chunk(kwargs)
        call = parse_unpaged(args, rest, self.limits, f"{relation.schema}.{relation.name}")
        statement = served.statement(unpaged, relation, call.request)
        flow = Flow(served.codec, statement, call.values, call.request.form, call.timeout)
        return await self.flow(flow, chunk, send)

    async def flow(self, flow: Flow, chunk: int, send: Send) -> Any:
        """Send rows in chunks, in a transaction of their own; gives the last answer."""
        shape = Shape(flow.form, self.max_bytes)
        reader = Reader(flow.codec, flow.statement, flow.values, shape, chunk)
        step = partial(self.database.run, *flow.around, reader.chunk_txn, timeout=flow.timeout)
        async with self.database.transaction(read_only=flow.reads):
            await relay(step, send)
        if flow.form == "lists":
            return {"columns": list(answered_columns(flow.statement)), "rows": reader.count}
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
