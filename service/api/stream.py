"""
The verbs stream and export: rows of any number, as progressive results.

A chunk is read while the one before it is on its way, so two are in memory. The next one is
read when that one has left for the router: a caller that is behind holds up the cursor.
PostgreSQL itself writes CSV (COPY), block by block as the caller's side takes them. JSON
lines are rows in their wire form, read as `stream` reads them.
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
from service.db.copy import Blocks, copy_out_txn
from service.db.statements import Reader, Shape, answered_columns, read_only_txn
from service.plan.hidden import refuse_hidden_fields
from service.plan.plans import ReadPlan
from service.plan.read_plan import plan_find
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
        call: Of the verb.
        parsed: What it was parsed to.
        statement: Reads them.
        chunk: Rows of one part.
        function: Of the database, whose rows they are, if it is one.
    """

    call: Call
    parsed: Parsed[Any]
    statement: Statement
    chunk: int
    function: Function | None

    def reader(self, form: Form) -> Reader:
        """Return what reads them in chunks."""
        shape = Shape(form, self.call.backend.max_bytes)
        codec, values = self.call.snapshot.codec, self.parsed.values
        return Reader(codec, self.statement, values, shape, self.chunk)

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Return the transaction to read in: what is changed is kept if all rows could be sent."""
        reads = self.function is None or self.function.reads
        return self.call.backend.database.transaction(read_only=reads)

    def run(self, step: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run a step of reading in a worker."""
        reads = self.function is not None and self.function.reads
        steps = (read_only_txn, step) if reads else (step,)
        return self.call.backend.database.run(*steps, *args, timeout=self.parsed.timeout)


def flow(call: Call, kwargs: Mapping[str, Any], format: Format | None = None) -> Flow:
    """
    Parse a call for rows without pages, and return the flow of them.

    Args:
        call: Of a verb.
        kwargs: Less those that the verb itself has taken.
        format: What the rows are written as, if they are to be text.
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
    """Build the statement of rows that PostgreSQL writes by itself, past the codec."""
    plan = _plan(catalog, subject, request)
    refuse_hidden_fields(catalog, plan.outputs, plan.embeds)
    return with_writes(select(plan), request)


def _plan(catalog: Catalog, subject: Any, request: Found) -> ReadPlan:
    """Plan a find whose rows carry no token of where their page ends."""
    return replace(planned(plan_find, catalog, subject, request), keyset=False)


async def stream(call: Call) -> Any:
    """
    Answer `stream`: how many rows there were, when the last of them is on its way.

    Raises:
        InvalidArgument: The caller does not take progressive results.
    """
    send = call.parts()
    rows = flow(call, call.kwargs)
    form = wanted(rows.parsed.request).form
    reader = rows.reader(form)
    async with rows.transaction():
        await relay(partial(rows.run, reader.chunk_txn), send)
    if form == "lists":
        return {"columns": list(answered_columns(rows.statement)), "rows": reader.count}
    return {"rows": reader.count}


async def relay(read: Callable[[], Deferred[Any]], send: Send) -> None:
    """
    Send what is read, until an empty chunk is; the next is read while one is sent.

    Args:
        read: Reads a chunk; what it returns is cancelled when it is no longer wanted.
        send: Sends a chunk; done when there may be more.
    """
    ahead = read()
    try:
        while chunk := await ahead:
            ahead = read()
            await send(chunk)
    finally:
        # Nobody waits for it after an error; Twisted would log its failure as an unhandled one.
        ahead.addErrback(lambda _: None)
        ahead.cancel()


async def export(call: Call) -> Any:
    """
    Answer `export`: how many rows and bytes there were, when the last are on their way.

    Raises:
        InvalidArgument: The caller does not take progressive results.
    """
    send = call.parts()
    format, rest = parse_format(call.kwargs)
    rows = flow(call, rest, format)
    return await (_csv(rows, send) if format == "csv" else _lines(rows, send))


async def _lines(rows: Flow, send: Send) -> Any:
    reader, sent = rows.reader("dicts"), 0

    async def weighed(text: str) -> None:
        nonlocal sent
        sent += len(text.encode())
        await send(text)

    async with rows.transaction():
        await relay(partial(rows.run, reader.lines_txn), weighed)
    return {"rows": reader.count, "bytes": sent}


async def _csv(rows: Flow, send: Send) -> Any:
    call = rows.call
    blocks = Blocks(call.backend.database.reactor)
    async with rows.transaction():
        args = (call.snapshot.codec, rows.statement, rows.parsed.values, blocks)
        copying = rows.run(copy_out_txn, *args)
        copying.addBoth(blocks.ended)
        try:
            await relay(blocks.next, send)
            count = await copying
        finally:
            # Else the worker would wait for ever, with its connection, for blocks to be taken.
            blocks.stop()
            copying.addErrback(lambda _: None)
            copying.cancel()
    return {"rows": count, "bytes": blocks.bytes}
