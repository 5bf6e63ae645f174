"""
The verb stream: rows without end, as progressive results.

A chunk is read while the one before it is on its way, so two are in memory. The next one is
read when that one has left for the router: a caller's side that is behind holds up the cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.answer.flowing import Flowing
from service.answer.line import Line, Send
from service.answer.served import Served
from service.db.cursors import Reader
from service.db.statements import Shape, answered_columns
from service.request.read import take_chunk


class Streaming(Flowing):
    """The verb that reads rows without a limit."""

    async def stream(
        self,
        served: Served,
        of: Any,
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
        flow = self.source(served, of, args, rest, self.limits)
        shape = Shape(flow.form, self.max_bytes)
        reader = Reader(flow.codec, flow.statement, flow.values, shape, chunk)
        step = partial(self.database.run, *flow.around, reader.chunk_txn, timeout=flow.timeout)
        async with self.database.transaction(read_only=flow.reads):
            await relay(step, send)
        if flow.form == "lists":
            return {"columns": list(answered_columns(flow.statement)), "rows": reader.count}
        return {"rows": reader.count}


async def relay(read: Callable[[], Deferred[Any]], send: Send) -> None:
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
