"""
The verb export: rows without end as text, CSV or JSON lines.

PostgreSQL itself writes the CSV (COPY), block by block as the caller's side takes them. JSON
lines are rows in their wire form, read as `stream` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from service.answer.line import Line, Send
from service.answer.served import Served
from service.answer.streaming import relay, unpaged
from service.catalog import Relation
from service.db.copying import Blocks, copy_out_txn
from service.db.cursors import Reader
from service.db.interactions import Shape
from service.db.scope import Database
from service.request.parse import Limits, Parsed
from service.request.streams import parse_export
from service.request.types import FindRequest
from service.sql.statement import Statement


class Exporting:
    """
    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What a single row may weigh.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int) -> None:
        self._database = database
        self._limits = limits
        self._max_bytes = max_bytes

    async def export(
        self,
        served: Served,
        relation: Relation,
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
        name = f"{relation.schema}.{relation.name}"
        call, rows, format = parse_export(args, kwargs, self._limits, name)
        statement = served.statement(unpaged, relation, call.request)
        if format == "csv":
            return await self._csv(served, statement, call, send)
        shape = Shape("dicts", self._max_bytes)
        reader = Reader(served.codec, statement, call.values, shape, rows)
        sent = 0

        async def weighed(text: str) -> None:
            nonlocal sent
            sent += len(text.encode())
            await send(text)

        async with self._database.transaction(read_only=True):
            await relay(
                partial(self._database.run, reader.lines_txn, timeout=call.timeout), weighed
            )
        return {"rows": reader.count, "bytes": sent}

    async def _csv(
        self, served: Served, statement: Statement, call: Parsed[FindRequest], send: Send
    ) -> Any:
        blocks = Blocks(self._database.reactor)
        async with self._database.transaction(read_only=True):
            copying = self._database.run(
                copy_out_txn, served.codec, statement, call.values, blocks, timeout=call.timeout
            )
            copying.addBoth(blocks.ended)
            try:
                await relay(blocks.next, send)
                return {"rows": await copying, "bytes": blocks.bytes}
            finally:
                blocks.stop()
                copying.addErrback(lambda _: None)
                copying.cancel()
