"""
The verbs stream and export: rows of any number, as progressive results.

A chunk is read while the one before it is on its way, so two are in memory. The next one is
read when that one has left for the router: a caller that is behind holds up the cursor.
PostgreSQL itself writes CSV (COPY), block by block as the caller's side takes them. JSON
lines are rows in their wire form, read as `stream` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.api.call import Call, Send
from service.api.read import Found, noted, parsed_rows, plan_find_on, statement_of, wanted
from service.catalog import Catalog
from service.db.codec import Codec
from service.db.copy import Blocks, copy_out_txn
from service.db.cursors import Reader
from service.db.database import Database
from service.db.statements import Shape, answered_columns, read_only_txn
from service.plan.hidden import refuse_hidden_fields
from service.plan.plans import ReadPlan
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
    Rows that are read without a limit.

    Args:
        database: Where they are.
        codec: For the values, both ways.
        statement: Reads them.
        values: Of the call.
        form: Of the rows.
        timeout: Seconds that each step of reading may take.
        max_bytes: What one row may weigh.
        reads: Whether to read them changes nothing; what is changed is kept if all rows could
            be sent, and not otherwise.
        around: What runs each step in the worker, if it does not run by itself.
    """

    database: Database
    codec: Codec
    statement: Statement
    values: Sequence[Any]
    form: Form
    timeout: float | None
    max_bytes: int
    reads: bool = True
    around: tuple[Callable[..., Any], ...] = ()


def _flow(call: Call, kwargs: Mapping[str, Any], format: Format | None = None) -> Flow:
    """
    Return the flow of the rows of a call.

    Args:
        call: Of a verb.
        kwargs: Less those that the verb itself has taken.
        format: What the rows are written as, if they are to be text.
    """
    backend = call.backend
    parsed, statement = unpaged(call, kwargs, format)
    function = None if call.relation else parsed.request.call.function
    return Flow(
        backend.database,
        call.snapshot.codec,
        statement,
        parsed.values,
        wanted(parsed.request).form,
        parsed.timeout,
        backend.max_bytes,
        function is None or function.reads,
        (read_only_txn,) if function is not None and function.reads else (),
    )


def unpaged(
    call: Call, kwargs: Mapping[str, Any], format: Format | None = None
) -> tuple[Parsed[Any], Statement]:
    """Parse a call for rows without pages, as `_flow` does, and return the statement that reads them."""
    parsed = parsed_rows(call, kwargs, parse_unpaged)
    check_format(format, wanted(parsed.request).embeds)
    return parsed, statement_of(call, parsed, _as_csv if format == "csv" else _unpaged)


def _unpaged(catalog: Catalog, subject: Any, request: Found) -> Statement:
    return noted(select(_plan(catalog, subject, request)), request)


def _as_csv(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement of rows that PostgreSQL writes by itself, past the codec."""
    plan = _plan(catalog, subject, request)
    refuse_hidden_fields(catalog, plan.outputs, plan.embeds)
    return noted(select(plan), request)


def _plan(catalog: Catalog, subject: Any, request: Found) -> ReadPlan:
    """Plan a find whose rows carry no token of where their page ends."""
    return replace(plan_find_on(catalog, subject, request), keyset=False)


async def stream(call: Call) -> Any:
    """
    Answer `stream`: how many rows there were, when the last of them is on its way.

    Raises:
        InvalidArgument: The caller does not take progressive results.
    """
    send = call.parts()
    chunk, rest = parse_chunk(call.kwargs)
    flow = _flow(call, rest)
    database, shape = flow.database, Shape(flow.form, flow.max_bytes)
    reader = Reader(flow.codec, flow.statement, flow.values, shape, chunk)
    step = partial(database.run, *flow.around, reader.chunk_txn, timeout=flow.timeout)
    async with database.transaction(read_only=flow.reads):
        await relay(step, send)
    if flow.form == "lists":
        return {"columns": list(answered_columns(flow.statement)), "rows": reader.count}
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
    chunk, rest = parse_chunk(rest)
    flow = _flow(call, rest, format)
    return await (_csv(flow, send) if format == "csv" else _lines(flow, chunk, send))


async def _lines(flow: Flow, chunk: int, send: Send) -> Any:
    database = flow.database
    reader = Reader(flow.codec, flow.statement, flow.values, Shape("dicts", flow.max_bytes), chunk)
    step = partial(database.run, *flow.around, reader.lines_txn, timeout=flow.timeout)
    sent = 0

    async def weighed(text: str) -> None:
        nonlocal sent
        sent += len(text.encode())
        await send(text)

    async with database.transaction(read_only=flow.reads):
        await relay(step, weighed)
    return {"rows": reader.count, "bytes": sent}


async def _csv(flow: Flow, send: Send) -> Any:
    database = flow.database
    blocks = Blocks(database.reactor)
    async with database.transaction(read_only=flow.reads):
        copying = database.run(
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
            # Else the worker would wait for ever, with its connection, for blocks to be taken.
            blocks.stop()
            copying.addErrback(lambda _: None)
            copying.cancel()
    return {"rows": rows, "bytes": blocks.bytes}
