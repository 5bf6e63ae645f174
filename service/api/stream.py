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
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from service.api.call import CallContext, Send
from service.api.function_rows import as_csv, find
from service.api.handlers import Handlers
from service.api.snapshot import Snapshot
from service.catalog import Catalog, Function, Relation
from service.db.codec import Codec
from service.db.copy import Blocks, copy_out_txn
from service.db.cursors import Reader
from service.db.database import Database
from service.db.statements import Shape, answered_columns, read_only_txn
from service.plan.hidden import refuse_hidden_fields
from service.plan.read import plan_find
from service.plan.types import ReadPlan
from service.request.functions import parse_called
from service.request.read import (
    Format,
    Limits,
    check_format,
    parse_chunk,
    parse_format,
    parse_unpaged,
)
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
        reads: Whether to read them changes nothing; what is changed is kept if all rows could
            be sent, and not otherwise.
        around: What runs each step in the worker, if it does not run by itself.
    """

    codec: Codec
    statement: Statement
    values: Sequence[Any]
    form: Form
    timeout: float | None
    reads: bool = True
    around: tuple[Callable[..., Any], ...] = ()


class Source(Protocol):
    """Makes a flow of what a call asks for."""

    def __call__(
        self,
        snapshot: Snapshot,
        of: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        limits: Limits,
        format: Format | None = None,
    ) -> Flow:
        """
        Read the arguments of a call, less those that its verb has taken.

        Args:
            snapshot: What is served.
            of: The relation, or the functions of a name.
            args: By position.
            kwargs: By name.
            limits: What a call may ask for.
            format: What the rows are written as, if they are to be text.

        Raises:
            ServiceError: What is wrong with them.
        """


class Flowing(Handlers):
    """
    Verbs that send all rows of a flow.

    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What one row may weigh.
        source: Of the rows.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int, source: Source) -> None:
        super().__init__(database, limits, max_bytes)
        self.source = source


def of_relation(
    snapshot: Snapshot,
    of: Relation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    format: Format | None = None,
) -> Flow:
    """Return the flow of a relation's rows."""
    call = parse_unpaged(args, kwargs, limits, f"{of.schema}.{of.name}")
    check_format(format, call.request.embeds)
    make = _as_csv if format == "csv" else _unpaged
    statement = snapshot.statement(make, of, call.request)
    return Flow(snapshot.codec, statement, call.values, call.request.form, call.timeout)


def of_function(
    snapshot: Snapshot,
    of: Sequence[Function],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    format: Format | None = None,
) -> Flow:
    """Return the flow of the rows that a function returns."""
    call = parse_called(
        of,
        args,
        kwargs,
        snapshot.catalog,
        lambda rest, rows: parse_unpaged([], rest, limits, rows),
    )
    rows, function = call.request.of, call.request.call.function
    check_format(format, rows.embeds)
    statement = snapshot.statement(as_csv if format == "csv" else find, function, call.request)
    around = (read_only_txn,) if function.reads else ()
    return Flow(
        snapshot.codec, statement, call.values, rows.form, call.timeout, function.reads, around
    )


def _unpaged(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    return select(_plan(catalog, relation, request))


def _as_csv(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    """Build the statement of rows that PostgreSQL writes by itself, past the codec."""
    plan = _plan(catalog, relation, request)
    refuse_hidden_fields(catalog, plan.outputs, plan.embeds)
    return select(plan)


def _plan(catalog: Catalog, relation: Relation, request: FindRequest) -> ReadPlan:
    """Plan a find whose rows carry no token of where their page ends."""
    return replace(plan_find(catalog, relation, request), keyset=False)


class Streaming(Flowing):
    """The verb that reads rows without a limit."""

    async def stream(
        self,
        snapshot: Snapshot,
        of: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: CallContext,
    ) -> Any:
        """
        Answer `stream`: how many rows there were, when the last of them is on its way.

        Raises:
            InvalidArgument: The caller does not take progressive results.
        """
        send = context.parts()
        chunk, rest = parse_chunk(kwargs)
        flow = self.source(snapshot, of, args, rest, self.limits)
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
        read: Reads a chunk; what it returns is cancelled when it is no longer wanted.
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


class Exporting(Flowing):
    """The verb that sends rows as text."""

    async def export(
        self,
        snapshot: Snapshot,
        of: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        context: CallContext,
    ) -> Any:
        """
        Answer `export`: how many rows and bytes there were, when the last are on their way.

        Raises:
            InvalidArgument: The caller does not take progressive results.
        """
        send = context.parts()
        format, rest = parse_format(kwargs)
        chunk, rest = parse_chunk(rest)
        flow = self.source(snapshot, of, args, rest, self.limits, format)
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
