"""
The verbs get, find, count, exists and aggregate, on relations and on the rows of functions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.api.call import Call, Step, as_is
from service.catalog import Catalog, Relation
from service.db.statements import (
    Page,
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
from service.db.writes import counted_txn, fitting_txn
from service.errors import NotFound
from service.plan.call_plan import Plan, plan_called, refuse_second_call
from service.plan.plans import ReadPlan
from service.plan.read_plan import (
    AggregatePlan,
    check_keyed,
    plan_aggregate,
    plan_all,
    plan_count,
    plan_find,
    plan_get,
    plan_totals,
)
from service.plan.uses import refuse_guarded
from service.plan.watch_plan import WatchPlan
from service.request.call_request import FunctionRowsRequest, parse_called
from service.request.read_request import (
    MAX_GROUPS,
    Limits,
    Parsed,
    digest_of,
    parse_aggregate,
    parse_count,
    parse_find,
    parse_get,
    write_token,
)
from service.request.requests import CountRequest, FindRequest, GetRequest
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
        if form == "lists":
            return {"columns": list(answered_columns(statement)), "rows": page.rows}
        return page.rows[0]

    shape = Shape(form, call.backend.max_bytes)
    args = (call.snapshot.codec, statement, parsed.values, None, shape)
    return Step(page_txn, args, row, parsed.timeout, plain=statement.plain)


def _get_many(call: Call, parsed: Parsed[GetRequest], statement: Statement) -> Step:
    form, operands = parsed.request.form, parsed.request.key.operands

    def answer(rows: list[Any]) -> Any:
        if form == "lists":
            return {"columns": list(answered_columns(statement)), "rows": rows}
        return json_list(row or "null" for row in rows) if form == "json" else rows

    # The statement numbers the keys, so that each has its row, or null, in the order of the call.
    keys = len(parsed.values[operands[0].slot]) if operands else 0
    shape = Shape(form, call.backend.max_bytes)
    return reading(call, parsed, answer, by_keys_txn, statement, keys, shape)


def find(call: Call) -> Step | Awaitable[Any]:
    """Prepare `find`: a page of rows, the tokens of the pages beside it, a count and totals on request."""
    parsed = parsed_rows(call, call.kwargs, parse_find)
    request: FindRequest = wanted(parsed.request)
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
        if request.form == "lists":
            answer = {"columns": list(answered_columns(statement)), **answer}
        return {"rows": found.rows, **answer}

    if read_all:
        both: Callable[[Any], Any] = lambda found: page(found[0], count=found[1])  # noqa: E731
        return reading(call, parsed, both, counted_txn, statement, parsed.offset, limit, shape)
    step = reading(call, parsed, page, page_txn, statement, limit, shape)
    return _find_and_more(call, parsed, step, totals) if request.count or totals else step


def count(call: Call) -> Step:
    """Prepare `count`: the number of rows that match."""
    parsed, statement = count_read(call)
    return reading(call, parsed, int, value_txn, statement)


def exists(call: Call) -> Step:
    """Prepare `exists`: whether any row matches."""
    parsed, statement = exists_read(call)
    return reading(call, parsed, bool, value_txn, statement)


def aggregate(call: Call) -> Step:
    """
    Prepare `aggregate`: the measures of each group. To run it may raise TooManyGroups.

    Raises:
        InvalidArgument: An argument is invalid; for example, a function does not take its column's type.
    """
    parsed, statement = aggregate_read(call)
    form = wanted(parsed.request).form

    def groups(rows: list[Any]) -> Any:
        if form == "lists":
            return {"columns": list(statement.columns), "rows": rows}
        return json_list(rows) if form == "json" else rows

    shape = Shape(form, call.backend.max_bytes, call.state.encodes and call.relation is not None)
    return reading(call, parsed, groups, groups_txn, statement, MAX_GROUPS, shape)


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
    return wanted(parsed.request).count in ("exact", "estimated")


def wanted(request: Any) -> Any:
    """Return the request for rows: the inner one of a function's request, or the request itself."""
    return request.of if isinstance(request, FunctionRowsRequest) else request


def reading(
    call: Call,
    parsed: Parsed[Any],
    shape: Callable[[Any], Any],
    function: Callable[..., Any],
    statement: Statement,
    *more: Any,
) -> Step:
    """
    Return the step of a verb that reads.

    A statement that calls a function runs in a transaction: READ ONLY if the function is declared not to
    write, else one that is rolled back if the answer cannot be sent.

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
    if parsed.request.call.function.reads:
        return Step(read_only_txn, (function, *args), shape, parsed.timeout, "read only")
    args = (call.backend.max_bytes, function, *args)
    return Step(fitting_txn, args, shape, parsed.timeout, "atomic")


async def _find_and_more(
    call: Call, parsed: Parsed[Any], step: Step, totals: Statement | None
) -> Any:
    """Answer `find` with a count or totals, which take statements of their own."""
    found, request = await call.run(step), wanted(parsed.request)
    beside: dict[str, Any] = {}
    if request.count:
        beside["count"] = await _total(call, parsed)
    if totals is not None:
        shape = Shape("json" if request.form == "json" else "dicts", call.backend.max_bytes)
        # Without a group there is one row.
        total = reading(call, parsed, as_is, groups_txn, totals, MAX_GROUPS, shape)
        (beside["totals"],) = await call.run(total)
    return step.shape(found, **beside)


async def _total(call: Call, parsed: Parsed[Any]) -> int:
    """Return the number of rows on all pages: counted, or estimated by the planner if too many."""
    catalog, mode, found = call.snapshot.catalog, wanted(parsed.request).count, 0
    plan = plan_counted(call, parsed)
    if mode != "exact":
        # The planner's statistics include the rows that policies hide.
        refuse_guarded(catalog, plan)
    if mode != "planned":
        counting = counting_statement(call, parsed, plan)
        found = int(await call.run(reading(call, parsed, as_is, value_txn, counting)))
        if mode == "exact" or found <= call.backend.limits.max_rows:
            return found
    (document,) = await call.run(reading(call, parsed, as_is, value_txn, estimate(plan)))
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
    return counted(plan, limit=most if wanted(parsed.request).count == "estimated" else None)


def _tokens(
    parsed: Parsed[Any], page: Page, limit: int, kwargs: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return the tokens of the next page and, if this page was reached by a token, of the previous one."""
    digest = digest_of(*parsed.query) if page.more or parsed.reached else ""
    reached, keyset = parsed.reached, wanted(parsed.request).after is not None
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
