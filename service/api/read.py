"""
The verbs that read (get, find, count, exists, aggregate, stream and export), on relations and on the rows of
functions, and plain calls of functions, which may write.

`stream` and `export` send any number of rows as progressive results. One chunk is read while the previous one
is sent, so two are in memory: 1,000,000 rows of 200 bytes add about 1 MB to the service, and 412 MB if they
are read at once. The next chunk is read once the previous one may be followed by another
(`wamp/backpressure.py`), so a slow caller holds up the cursor. PostgreSQL itself writes CSV (COPY), which is
sent block by block. JSON lines are rows in their wire form, read as `stream` does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from service.api.call import Call, Send, Snapshot, Step, as_is
from service.catalog import Catalog, Function, Relation
from service.db.copy import CopyBlocks, copy_out_txn
from service.db.statements import (
    Page,
    Reader,
    Shape,
    answered_columns,
    by_keys_txn,
    groups_txn,
    json_list,
    json_page,
    page_txn,
    read_only_txn,
    value_txn,
)
from service.db.writes import call_txn, counted_txn, fitting_txn, receipted_txn, write_txn
from service.errors import InvalidArgument, NotFound
from service.payload import WithReceipt
from service.plan.call_plan import (
    Plan,
    answer_kind,
    plan_call,
    plan_called,
    refuse_second_call,
    result_columns,
)
from service.plan.plans import (
    AggregatePlan,
    ReadPlan,
    refuse_estimate,
)
from service.plan.read_plan import (
    check_keyed,
    plan_aggregate,
    plan_all,
    plan_count,
    plan_find,
    plan_get,
    plan_totals,
)
from service.plan.scope import refuse_hidden_fields
from service.plan.watch_plan import WatchPlan
from service.request.arguments import RECEIPT
from service.request.call_request import (
    CallRequest,
    FunctionRowsRequest,
    parse_call,
    parse_called,
)
from service.request.read_request import (
    MAX_GROUPS,
    Format,
    Limits,
    Parsed,
    check_format,
    digest_of,
    parse_aggregate,
    parse_chunk,
    parse_count,
    parse_find,
    parse_format,
    parse_get,
    parse_unpaged,
    write_token,
)
from service.request.requests import CountRequest, FindRequest, Form, GetRequest
from service.sql.saved_rows import call as called
from service.sql.select import aggregate as grouped
from service.sql.select import count as counted
from service.sql.select import estimate, select
from service.sql.select import exists as existing
from service.sql.statement import Statement, batched

Found = FindRequest | FunctionRowsRequest[FindRequest]
"""A request for rows of a relation, or for those that a function returns."""

Parse = Callable[[Sequence[Any], Mapping[str, Any], Limits, str], Parsed[Any]]
"""Parses the arguments of a verb; the last one names the rows, to which a token is bound."""

Read = tuple[Parsed[Any], Statement]
"""A parsed call, with its statement."""


def get(call: Call) -> Step:
    """
    Prepare `get`: the row of a key, or the rows of several keys.

    Raises:
        NoSuchProcedure: The relation has no key.
    """
    relation = call.relation
    assert relation is not None
    if not relation.primary_key:
        check_keyed(relation, "get")
    parsed = parse_get(call.args, call.kwargs, call.backend.limits)
    statement = call.snapshot.statement(get_statement, relation, parsed.request)
    form = parsed.request.form
    if parsed.request.many:
        return _get_many(call, parsed, statement)

    def row(page: Page) -> Any:
        if not page.rows:
            raise NotFound(relation.name)
        return _in_lists(statement, page.rows) if form == "lists" else page.rows[0]

    shape = Shape(form, call.backend.max_bytes)
    args = (call.snapshot.codec, statement, parsed.values, None, shape)
    return Step(page_txn, args, row, parsed.timeout, plain=statement.plain)


def _get_many(call: Call, parsed: Parsed[GetRequest], statement: Statement) -> Step:
    form, operands = parsed.request.form, parsed.request.key.operands

    def answer(rows: list[Any]) -> Any:
        found = [row or "null" for row in rows] if form == "json" else rows
        return _rows_in(form, statement, found)

    # The statement numbers the keys, so that each has its row, or null, in the order of the call.
    keys = len(parsed.values[operands[0].slot]) if operands else 0
    shape = Shape(form, call.backend.max_bytes)
    return read_step(call, parsed, answer, by_keys_txn, statement, keys, shape)


def find(call: Call) -> Step | Awaitable[Any]:
    """Prepare `find`: a page of rows, the tokens of the pages beside it, a count and totals on request."""
    parsed = parsed_rows(call, call.kwargs, parse_find)
    request: FindRequest = rows_request(parsed.request)
    # The statement reads a row more than the page has, which shows whether another page follows.
    limit = parsed.values[request.limit.slot] - 1
    # Rows become CBOR in the pool thread: cbor2 took half of the time of 1,000 rows, in the reactor thread.
    # A caller that reads the rows, such as a batch, gets them as values.
    encodes = call.state.encodes and call.relation is not None
    shape = Shape(request.form, call.backend.max_bytes, encodes)
    read_all = counts_as_it_reads(call, parsed)
    statement = statement_of(call, parsed, unlimited_statement if read_all else find_statement)
    totals = statement_of(call, parsed, totals_statement) if request.measures else None

    def page(found: Page, **beside: Any) -> Any:
        answer = {**_tokens(parsed, found, limit, call.kwargs), **beside}
        if request.form == "json":
            return json_page(found.rows, **answer)
        rows = _in_lists(statement, found.rows) if request.form == "lists" else {"rows": found.rows}
        return {**rows, **answer}

    if read_all:

        def page_and_count(found: tuple[Page, int]) -> Any:
            return page(found[0], count=found[1])

        more = parsed.offset, limit, shape
        return read_step(call, parsed, page_and_count, counted_txn, statement, *more)
    step = read_step(call, parsed, page, page_txn, statement, limit, shape)
    return _find_and_more(call, parsed, step, totals) if request.count or totals else step


def count(call: Call) -> Step:
    """Prepare `count`: the number of rows that match."""
    parsed, statement = count_read(call)
    return read_step(call, parsed, int, value_txn, statement)


def exists(call: Call) -> Step:
    """Prepare `exists`: whether any row matches."""
    parsed, statement = exists_read(call)
    return read_step(call, parsed, bool, value_txn, statement)


def aggregate(call: Call) -> Step:
    """
    Prepare `aggregate`: the measures of each group. To run it may raise TooManyGroups.

    Raises:
        InvalidArgument: An argument is invalid; for example, a function does not take its column's type.
    """
    parsed, statement = aggregate_read(call)
    form = rows_request(parsed.request).form
    encodes = call.state.encodes and call.relation is not None
    shape = Shape(form, call.backend.max_bytes, encodes)
    groups = partial(_rows_in, form, statement)
    return read_step(call, parsed, groups, groups_txn, statement, MAX_GROUPS, shape)


def _rows_in(form: Form, statement: Statement, rows: Sequence[Any]) -> Any:
    """Return an answer that is a list of rows, or of groups, in the form that the call asks for."""
    if form == "lists":
        return _in_lists(statement, rows)
    return json_list(rows) if form == "json" else rows


def _in_lists(statement: Statement, rows: Any) -> dict[str, Any]:
    return {"columns": list(answered_columns(statement)), "rows": rows}


def count_read(call: Call) -> Read:
    """Parse `count`, and return its statement."""
    parsed = parse_count(call.args, call.kwargs, call.backend.limits)
    return parsed, statement_of(call, parsed, _count_statement)


def exists_read(call: Call) -> Read:
    """Parse `exists`, and return its statement."""
    parsed = parse_count(call.args, call.kwargs, call.backend.limits)
    return parsed, statement_of(call, parsed, _exists_statement)


def aggregate_read(call: Call) -> Read:
    """Parse `aggregate`, and return the statement of the groups and their measures."""
    parsed = parsed_rows(call, call.kwargs, parse_aggregate)
    return parsed, statement_of(call, parsed, _aggregate_statement)


def parsed_rows(call: Call, kwargs: Mapping[str, Any], parse: Parse) -> Parsed[Any]:
    """
    Parse a call of a verb on the rows of a relation, or on those that a function returns.

    Args:
        call: The call. If it is of a function, its positional arguments are for the function.
        kwargs: The keyword arguments that the verb has not taken before.
        parse: Parses the arguments of the verb.
    """
    limits, relation = call.backend.limits, call.relation
    # The last argument is part of a token's digest, so that a token of other rows is refused.
    if relation is not None:
        return parse(call.args, kwargs, limits, f"{relation.schema}.{relation.name}")
    return parse_called(
        call.functions,
        call.args,
        kwargs,
        call.snapshot.catalog,
        lambda rest, rows: parse((), rest, limits, rows),
    )


def statement_of(
    call: Call, parsed: Parsed[Any], make: Callable[[Catalog, Any, Any], Statement]
) -> Statement:
    """Return the statement of a parsed call, on its relation or on the rows of its function."""
    subject = call.relation or parsed.request.call.function
    return call.snapshot.statement(make, subject, parsed.request)


def counts_as_it_reads(call: Call, parsed: Parsed[Any]) -> bool:
    """
    Return whether a find reads all rows and counts them, in place of a second query that counts.

    It does for a function that may write, which must not be called twice.
    """
    if call.relation is not None or parsed.request.call.function.reads:
        return False
    return rows_request(parsed.request).count in ("exact", "estimated")


def rows_request(request: Any) -> Any:
    """Return the request for rows: the inner one of a function's request, or the request itself."""
    return request.of if isinstance(request, FunctionRowsRequest) else request


def read_step(
    call: Call,
    parsed: Parsed[Any],
    shape: Callable[[Any], Any],
    function: Callable[..., Any],
    statement: Statement,
    *more: Any,
) -> Step:
    """
    Return the step of a verb that reads, or of a plain call of a function.

    A statement that calls a function runs in a transaction: READ ONLY if the function is declared not to
    write, since it may call one that does, else one that is rolled back if the answer cannot be sent.

    Args:
        call: The call.
        parsed: The parsed call.
        shape: Makes the answer from the function's result.
        function: Runs the statement, as `Step.function`.
        statement: Reads the rows.
        more: Further arguments of the function.
    """
    args = (call.snapshot.codec, statement, parsed.values, *more)
    if call.relation is not None:
        return Step(function, args, shape, parsed.timeout, plain=statement.plain)
    if _function_of(parsed.request).reads:
        return Step(read_only_txn, (function, *args), shape, parsed.timeout, "read only")
    args = (call.backend.max_bytes, function, *args)
    return Step(fitting_txn, args, shape, parsed.timeout, "atomic")


def _function_of(request: CallRequest | FunctionRowsRequest[Any]) -> Function:
    return (request.call if isinstance(request, FunctionRowsRequest) else request).function


async def _find_and_more(
    call: Call, parsed: Parsed[Any], step: Step, totals: Statement | None
) -> Any:
    """Answer `find` with a count or totals, which take statements of their own."""
    found, request = await call.run(step), rows_request(parsed.request)
    beside: dict[str, Any] = {}
    if request.count:
        beside["count"] = await _total(call, parsed)
    if totals is not None:
        shape = Shape("json" if request.form == "json" else "dicts", call.backend.max_bytes)
        # Without a group there is one row.
        total = read_step(call, parsed, as_is, groups_txn, totals, MAX_GROUPS, shape)
        (beside["totals"],) = await call.run(total)
    return step.shape(found, **beside)


async def _total(call: Call, parsed: Parsed[Any]) -> int:
    """Return the number of rows on all pages: counted, or estimated by the planner if too many."""
    catalog, mode, found = call.snapshot.catalog, rows_request(parsed.request).count, 0
    plan = plan_counted(call, parsed)
    if mode != "exact":
        # The planner's statistics include the rows that policies hide.
        refuse_estimate(catalog, plan)
    if mode != "planned":
        counting = counting_statement(call, parsed, plan)
        found = int(await call.run(read_step(call, parsed, as_is, value_txn, counting)))
        if mode == "exact" or found <= call.backend.limits.max_rows:
            return found
    (document,) = await call.run(read_step(call, parsed, as_is, value_txn, estimate(plan)))
    # The planner's estimate may be lower than the rows counted so far.
    return max(found, int(document["Plan"]["Plan Rows"]))


def plan_counted(call: Call, parsed: Parsed[Any]) -> ReadPlan:
    """Plan to read the rows of all pages of a find."""
    plan = planned(plan_all, call.snapshot.catalog, call.relation, parsed.request)
    # The rows of a function that may write are not counted by this plan (`counts_as_it_reads`), and
    # EXPLAIN, the other use of it, calls no function: nothing has to be read after a write.
    return replace(plan, afterwards=False)


def counting_statement(call: Call, parsed: Parsed[Any], plan: ReadPlan) -> Statement:
    """Build the query that counts the rows of a plan, up to the limit beyond which they are estimated."""
    most = call.backend.limits.max_rows + 1
    return counted(plan, limit=most if rows_request(parsed.request).count == "estimated" else None)


def _tokens(
    parsed: Parsed[Any], page: Page, limit: int, kwargs: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return the tokens of the next page and, if this page was reached by a token, of the previous one."""
    digest = digest_of(*parsed.query) if page.more or parsed.reached else ""
    reached, keyset = parsed.reached, rows_request(parsed.request).after is not None
    given = str(kwargs[reached]) if reached else ""

    def token(keys: Sequence[str | None] | int) -> str:
        return write_token(digest, keys)

    def next_token() -> str:
        if page.last:
            return token(page.last)
        if not keyset:
            return token(parsed.offset + limit)
        # An empty page has no keys of its own, so the token that led to it is given again.
        return given if page.more or reached == "after" else token(0)

    def previous_token() -> str | None:
        if page.first:
            return token(page.first)
        if not keyset:
            return token(parsed.offset) if parsed.offset else None
        return given if page.more or reached == "before" else token([])

    if reached is None:
        return {"next": next_token() if page.more else None}
    if reached == "after":
        return {"next": next_token() if page.more else None, "prev": previous_token()}
    return {
        "next": next_token(),
        "prev": previous_token() if page.more or not keyset else None,
    }


def planned(
    plan: Callable[[Catalog, Relation, Any], Plan], catalog: Catalog, subject: Any, request: Any
) -> Plan:
    """Plan to read the rows of a relation, or those that a function returns."""
    if isinstance(request, FunctionRowsRequest):
        return plan_called(catalog, request, plan)
    return plan(catalog, subject, request)


def with_writes(statement: Statement, request: Any) -> Statement:
    """Return a statement, marked as one that writes if it calls a function that may write."""
    if isinstance(request, FunctionRowsRequest):
        return replace(statement, writes=not request.call.function.reads)
    return statement


def get_statement(catalog: Catalog, relation: Relation, request: GetRequest) -> Statement:
    """Build the statement that reads the row of a key, or the rows of several."""
    return _shared(catalog, select(plan_get(catalog, relation, request)))


def find_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement that reads a page of rows."""
    return with_writes(
        _shared(catalog, select(planned(plan_find, catalog, subject, request))), request
    )


def _shared(catalog: Catalog, statement: Statement) -> Statement:
    """Return a statement with `many` set if several calls may share a run of it."""
    if not (statement.settled and statement.pure):
        return statement
    return replace(statement, many=batched(statement, catalog.types_by_name["_text"]))


def unlimited_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement that reads the rows of all pages of a find."""
    plan = replace(planned(plan_find, catalog, subject, request), limit=None, offset=None)
    return with_writes(select(plan), request)


def totals_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement that computes the measures over the rows of all pages of a find."""
    if isinstance(request, FunctionRowsRequest):
        refuse_second_call(request.call.function)
    return grouped(planned(plan_totals, catalog, subject, request))


def watched_statement(plan: WatchPlan) -> Statement:
    """Build the statement that reads the rows of a watched query."""
    return grouped(plan.read) if isinstance(plan.read, AggregatePlan) else select(plan.read)


def _count_statement(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return counted(plan_count(catalog, relation, request))


def _exists_statement(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return existing(plan_count(catalog, relation, request))


def _aggregate_statement(catalog: Catalog, subject: Any, request: Any) -> Statement:
    return with_writes(grouped(planned(plan_aggregate, catalog, subject, request)), request)


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
    check_format(format, rows_request(parsed.request).embeds)
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
    form = rows_request(rows.parsed.request).form
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


def call_function(call: Call) -> Step:
    """
    Prepare a call of a function, or of a procedure, which may commit and so runs in no transaction.

    Raises:
        InvalidArgument: No overload takes these arguments, or several do.
    """
    snapshot, backend = call.snapshot, call.backend
    parsed = parse_call(call.functions, call.args, call.kwargs, snapshot.catalog)
    request, function, limit = parsed.request, parsed.request.function, backend.limits.max_rows
    # One row more than may be sent shows that there are too many.
    statement = snapshot.statement(_call_statement, function, (request, limit + 1))
    kind = answer_kind(snapshot.catalog, function)
    # Any other result is one column, "answer", from which `_answer` makes the lists.
    form = request.form if kind in ("row", "rows") or request.form == "json" else "dicts"
    shape, answer = Shape(form, backend.max_bytes), partial(_answer, snapshot, request, statement)
    if function.procedure:
        call.state.begun = True  # it may have committed before it fails
        step = Step(
            write_txn,
            (snapshot.codec, lambda: statement, parsed.values, None, shape),
            lambda written: answer(written.rows),
            parsed.timeout,
            "procedure",
        )
    else:
        has_verbs = result_columns(snapshot.catalog, function) is not None
        how = limit, request.max_affected, shape, has_verbs
        step = read_step(call, parsed, answer, call_txn, statement, *how)
    return _receipted(call, function, step) if request.receipt else step


def _receipted(call: Call, function: Function, step: Step) -> Step:
    """
    Return the step that answers a receipt as well.

    The transaction's id is read by a statement of its own, since the call may return no row to carry it.
    """
    if function.procedure and call.state.keyed is None:
        raise InvalidArgument(
            "a procedure has no receipt: it may commit several transactions",
            path=RECEIPT,
            hint="with an idempotency_key it runs in one, and has one",
        )
    return step._replace(
        function=receipted_txn,
        args=(step.function, *step.args),
        shape=lambda found: WithReceipt(step.shape(found[0]), found[1]),
    )


def _call_statement(catalog: Catalog, _: Function, wanted: tuple[CallRequest, int]) -> Statement:
    request, most = wanted
    return called(plan_call(catalog, request), most)


def _answer(snapshot: Snapshot, request: CallRequest, statement: Statement, rows: list[Any]) -> Any:
    """Return the answer of a function, from the rows of its statement."""
    kind = answer_kind(snapshot.catalog, request.function)
    if request.form == "json":
        if kind == "nothing":
            return "null"
        return json_list(rows) if kind in ("rows", "values") else rows[0]
    if request.form == "lists":
        if kind in ("row", "rows"):
            return _in_lists(statement, rows)
        if kind == "composite":
            columns = list(result_columns(snapshot.catalog, request.function) or ())
            found = [row["answer"] for row in rows if row["answer"] is not None]
            return {"columns": columns, "rows": [[row[name] for name in columns] for row in found]}
    if kind == "nothing":
        return None
    if kind == "rows":
        return rows
    if kind == "values":
        return [row["answer"] for row in rows]
    return rows[0] if kind == "row" else rows[0]["answer"]
