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
from service.answer.streaming import relay, unpaged, unpaged_plan
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation
from service.db.copying import Blocks, copy_out_txn
from service.db.cursors import Reader
from service.db.interactions import Shape
from service.plan.veiled import refuse_veiled
from service.request.parse import Parsed
from service.request.streams import parse_export
from service.request.types import FindRequest
from service.sql.select import select
from service.sql.statement import Statement


class Exporting(Verbs):
    """The verb that gives rows as text."""

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
        call, rows, format = parse_export(args, kwargs, self.limits, name)
        if format == "csv":
            statement = served.statement(_as_csv, relation, call.request)
            return await self._csv(served, statement, call, send)
        statement = served.statement(unpaged, relation, call.request)
        shape = Shape("dicts", self.max_bytes)
        reader = Reader(served.codec, statement, call.values, shape, rows)
        sent = 0

        async def weighed(text: str) -> None:
            nonlocal sent
            sent += len(text.encode())
            await send(text)

        async with self.database.transaction(read_only=True):
            await relay(partial(self.database.run, reader.lines_txn, timeout=call.timeout), weighed)
        return {"rows": reader.count, "bytes": sent}

    async def _csv(
        self, served: Served, statement: Statement, call: Parsed[FindRequest], send: Send
    ) -> Any:
        blocks = Blocks(self.database.reactor)
        async with self.database.transaction(read_only=True):
            copying = self.database.run(
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


def _as_csv(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    """Spell what PostgreSQL writes by itself, past the codec."""
    plan = unpaged_plan(catalog, relation, request)
    refuse_veiled(catalog, plan.outputs, plan.embeds)
    return select(plan)
