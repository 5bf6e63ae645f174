"""
The verbs stream and export on what functions return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.answer.called import as_csv, find
from service.answer.exporting import Exporting
from service.answer.line import Line
from service.answer.served import Served
from service.answer.streaming import Flow, Streaming
from service.answer.verbs import Verbs
from service.catalog import Catalog
from service.db.calls import kept_txn
from service.db.scope import Database
from service.functions import Function
from service.request.called import CalledRequest, parse_called
from service.request.parse import Limits, Parsed
from service.request.streams import check_format, parse_unpaged, take_chunk, take_format
from service.request.types import FindRequest, Form
from service.sql.statement import Statement


class Flowing(Verbs):
    """
    The verbs that send all rows that a function returns.

    What the function writes is kept if all of them could be sent, and not otherwise.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int) -> None:
        super().__init__(database, limits, max_bytes)
        self._streaming = Streaming(database, limits, max_bytes)
        self._exporting = Exporting(database, limits, max_bytes)

    async def stream(
        self,
        served: Served,
        functions: Sequence[Function],
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
        call = self._parse(served, functions, args, rest)
        flow = _flow(served, call, find, call.request.of.form)
        return await self._streaming.flow(flow, chunk, send)

    async def export(
        self,
        served: Served,
        functions: Sequence[Function],
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
        call = self._parse(served, functions, args, rest)
        check_format(format, call.request.of.embeds)
        flow = _flow(served, call, as_csv if format == "csv" else find, "dicts")
        return await self._exporting.flow(flow, chunk, format, send)

    def _parse(
        self,
        served: Served,
        functions: Sequence[Function],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Parsed[CalledRequest[FindRequest]]:
        return parse_called(
            functions,
            args,
            kwargs,
            served.catalog,
            lambda rest, rows: parse_unpaged([], rest, self.limits, rows),
        )


def _flow(
    served: Served,
    call: Parsed[CalledRequest[FindRequest]],
    make: Callable[[Catalog, Any, Any], Statement],
    form: Form,
) -> Flow:
    function = call.request.call.function
    return Flow(
        served.codec,
        served.statement(make, function, call.request),
        call.values,
        form,
        call.timeout,
        function.reads,
        (kept_txn,) if function.reads else (),
    )
