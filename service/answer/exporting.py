"""
The verb export: rows without end as text, CSV or JSON lines.

PostgreSQL itself writes the CSV (COPY), block by block as the caller's side takes them. JSON
lines are rows in their wire form, read as `stream` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.answer.flowing import Flow, Flowing
from service.answer.line import Line, Send
from service.answer.served import Served
from service.answer.streaming import relay
from service.db.copy import Blocks, copy_out_txn
from service.db.cursors import Reader
from service.db.statements import Shape
from service.request.read import take_chunk, take_format


class Exporting(Flowing):
    """The verb that gives rows as text."""

    async def export(
        self,
        served: Served,
        of: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        line: Line,
    ) -> Any:
        """
        Answer `export`: how many rows and bytes there were, when the last are on their way.

        Raises:
            InvalidArgument: The caller does not take progressive results.
        """
        send = line.parts()
        format, rest = take_format(kwargs)
        chunk, rest = take_chunk(rest)
        flow = self.source(served, of, args, rest, self.limits, format)
        return await (self._csv(flow, send) if format == "csv" else self._lines(flow, chunk, send))

    async def _lines(self, flow: Flow, chunk: int, send: Send) -> Any:
        shape = Shape("dicts", self.max_bytes)
        reader = Reader(flow.codec, flow.statement, flow.values, shape, chunk)
        step = partial(self.database.run, *flow.around, reader.lines_txn, timeout=flow.timeout)
        sent = 0

        async def weighed(text: str) -> None:
            nonlocal sent
            sent += len(text.encode())
            await send(text)

        async with self.database.transaction(read_only=flow.reads):
            await relay(step, weighed)
        return {"rows": reader.count, "bytes": sent}

    async def _csv(self, flow: Flow, send: Send) -> Any:
        blocks = Blocks(self.database.reactor)
        async with self.database.transaction(read_only=flow.reads):
            copying = self.database.run(
                *flow.around,
                copy_out_txn,
                flow.codec,
                flow.statement,
                flow.values,
                blocks,
                timeout=flow.timeout,
            )
            copying.addBoth(blocks.ended)
            try:
                await relay(blocks.next, send)
                rows = await copying
            finally:
                blocks.stop()
                copying.addErrback(lambda _: None)
                copying.cancel()
        return {"rows": rows, "bytes": blocks.bytes}
