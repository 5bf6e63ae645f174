"""
The verbs stream and export: any number of rows, as progressive results.

One chunk is read while the previous one is sent, so two are in memory: 1,000,000 rows of 200 bytes add
about 1 MB to the service, and 412 MB if they are read at once. The next chunk is read once the previous one
may be followed by another (`wamp/backpressure.py`), so a slow caller holds up the cursor. PostgreSQL itself
writes CSV (COPY), which is sent block by block. JSON lines are rows in their wire form, read as `stream`
does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.api.call import Call, Send
from service.api.read import Found, parsed_rows, planned, statement_of, wanted, with_writes
from service.catalog import Catalog, Function
from service.db.copy import CopyBlocks, copy_out_txn
from service.db.statements import Reader, Shape, answered_columns, read_only_txn
from service.plan.plans import ReadPlan
from service.plan.read_plan import plan_find
from service.plan.scope import refuse_hidden_fields
from service.request.read_request import (
    Format,
    Parsed,
    check_format,
    parse_chunk,
    parse_format,
    parse_unpaged,
)
from service.request.requests import Form
from service.sql.select import select
from service.sql.statement import Statement


@dataclass(frozen=True, slots=True)
class Flow:
    """
    Rows that a call reads without a limit.

    Args:
        call: The call.
        parsed: The parsed call.
        statement: Reads the rows.
        chunk: Number of rows of one part.
        function: The database function that returns the rows; None if they are of a relation.
    """

    call: Call
    parsed: Parsed[Any]
    statement: Statement
    chunk: int
    function: Function | None

    def reader(self, form: Form) -> Reader:
        """Return the reader of the rows in chunks."""
        shape = Shape(form, self.call.backend.max_bytes)
        codec, values = self.call.snapshot.codec, self.parsed.values
        return Reader(codec, self.statement, values, shape, self.chunk)

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Return the transaction to read in; what a function writes commits once all rows are sent."""
        reads = self.function is None or self.function.reads
        return self.call.backend.database.transaction(read_only=reads)

    def run(self, step: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a function that reads, in a worker thread."""
        reads = self.function is not None and self.function.reads
        steps = (read_only_txn, step) if reads else (step,)
        return self.call.backend.database.run(*steps, *args, timeout=self.parsed.timeout)


def flow(call: Call, kwargs: Mapping[str, Any], format: Format | None = None) -> Flow:
    """
    Parse a call that reads rows without pages, and return their flow.

    Args:
        call: The call.
        kwargs: The keyword arguments that the verb has not taken before.
        format: The format of an export; None for `stream`.
    """
    chunk, rest = parse_chunk(kwargs)
    parsed = parsed_rows(call, rest, parse_unpaged)
    check_format(format, wanted(parsed.request).embeds)
    statement = statement_of(call, parsed, _as_csv if format == "csv" else _unpaged)
    function = None if call.relation else parsed.request.call.function
    return Flow(call, parsed, statement, chunk, function)


def _unpaged(catalog: Catalog, subject: Any, request: Found) -> Statement:
    return with_writes(select(_plan(catalog, subject, request)), request)


def _as_csv(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement of rows that COPY writes as text, without the codec."""
    plan = _plan(catalog, subject, request)
    refuse_hidden_fields(catalog, plan.outputs, plan.embeds)
    return with_writes(select(plan), request)


def _plan(catalog: Catalog, subject: Any, request: Found) -> ReadPlan:
    """Plan a find without the keyset columns that the token of a page needs."""
    return replace(planned(plan_find, catalog, subject, request), keyset=False)


async def stream(call: Call) -> Any:
    """
    Answer `stream`: the number of rows, once the last one has been sent.

    Raises:
        InvalidArgument: The caller does not take progressive results.
    """
    rows = flow(call, call.kwargs)
    send = call.parts()  # after the arguments are parsed, so that a wrong one is refused first
    form = wanted(rows.parsed.request).form
    reader = rows.reader(form)
    async with rows.transaction():
        await relay(partial(rows.run, reader.chunk_txn), send)
    if form == "lists":
        return {"columns": list(answered_columns(rows.statement)), "rows": reader.count}
    return {"rows": reader.count}


async def relay(read: Callable[[], Deferred[Any]], send: Send) -> None:
    """
    Read and send chunks until an empty one is read; each is read while the previous one is sent.

    Args:
        read: Reads a chunk; its Deferred is cancelled if sending fails.
        send: Sends a chunk; its awaitable completes when the next one may be sent.
    """
    ahead = read()
    try:
        while chunk := await ahead:
            ahead = read()
            await send(chunk)
    finally:
        # After an error it is not awaited, and Twisted would log an unhandled error.
        ahead.addErrback(lambda _: None)
        ahead.cancel()


async def export(call: Call) -> Any:
    """
    Answer `export`: the number of rows and of bytes, once the last ones have been sent.

    Raises:
        InvalidArgument: The caller does not take progressive results.
    """
    format, rest = parse_format(call.kwargs)
    rows, send = flow(call, rest, format), call.parts()
    return await (_csv(rows, send) if format == "csv" else _lines(rows, send))


async def _lines(rows: Flow, send: Send) -> Any:
    reader, sent = rows.reader("dicts"), 0

    async def send_counted(text: str) -> None:
        nonlocal sent
        sent += len(text.encode())
        await send(text)

    async with rows.transaction():
        await relay(partial(rows.run, reader.lines_txn), send_counted)
    return {"rows": reader.count, "bytes": sent}


async def _csv(rows: Flow, send: Send) -> Any:
    call = rows.call
    blocks = CopyBlocks(call.backend.database.reactor)
    async with rows.transaction():
        args = (call.snapshot.codec, rows.statement, rows.parsed.values, blocks)
        copying = rows.run(copy_out_txn, *args)
        copying.addBoth(blocks.ended)
        try:
            await relay(blocks.next, send)
            count = await copying
        finally:
            # Otherwise the worker would wait forever, with its connection, for a block to be taken.
            blocks.stop()
            copying.addErrback(lambda _: None)
            copying.cancel()
    return {"rows": count, "bytes": blocks.bytes}
