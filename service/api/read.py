"""
The verbs get, find, count, exists and aggregate, on relations and on the rows of functions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.api.call import Call, Step
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
from service.plan.aggregate_plan import AggregatePlan, plan_aggregate, plan_totals
from service.plan.call_plan import Plan, plan_called, refuse_second_call
from service.plan.plans import ReadPlan
from service.plan.read_plan import check_keyed, plan_all, plan_count, plan_find, plan_get
from service.plan.uses import refuse_guarded
from service.plan.watch_plan import WatchPlan
from service.request.call_request import CalledRequest, parse_called
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
from service.sql.statement import Statement

Found = FindRequest | CalledRequest[FindRequest]
"""A request for rows of a relation, or for those that a function returns."""

Parse = Callable[[Sequence[Any], Mapping[str, Any], Limits, str], Parsed[Any]]
"""Parses the arguments of a verb; the last one names the rows, to which a token is bound."""

Read = tuple[Parsed[Any], Statement]
"""What a call was parsed to, and the statement of it."""


def get(call: Call) -> Step:
    """
    Prepare `get`: the row, or those of several keys.

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

    keys = len(parsed.values[operands[0].slot]) if operands else 0
    shape = Shape(form, call.backend.max_bytes)
    return reading(call, parsed, answer, by_keys_txn, statement, keys, shape)


def find(call: Call) -> Step | Awaitable[Any]:
    """Prepare `find`: a page of rows, the tokens of those beside it, perhaps a count."""
    parsed = parsed_rows(call, call.kwargs, parse_find)
    request: FindRequest = wanted(parsed.request)
    # The statement reads a row more than the page has, which shows whether another page follows.
    limit = parsed.values[request.limit.slot] - 1
    encodes = call.state.encodes and call.relation is not None
    shape = Shape(request.form, call.backend.max_bytes, encodes)
    whole = counts_as_it_reads(call, parsed)
    statement = statement_of(call, parsed, unlimited_statement if whole else find_statement)
    totals = statement_of(call, parsed, totals_statement) if request.measures else None

    def page(found: Page, **beside: Any) -> Any:
        answer = {**_tokens(parsed, found, limit, call.kwargs), **beside}
        if request.form == "json":
            return json_page(found.rows, **answer)
        if request.form == "lists":
            answer = {"columns": list(answered_columns(statement)), **answer}
        return {"rows": found.rows, **answer}

    if whole:
        return reading(
            call,
            parsed,
            lambda both: page(both[0], count=both[1]),
            counted_txn,
            statement,
            parsed.offset,
            limit,
            shape,
        )
    step = reading(call, parsed, page, page_txn, statement, limit, shape)
    return _find_and_more(call, parsed, step, totals) if request.count or totals else step


def count(call: Call) -> Step:
    """Prepare `count`: how many rows match."""
    parsed, statement = count_read(call)
    return reading(call, parsed, int, value_txn, statement)


def exists(call: Call) -> Step:
    """Prepare `exists`: whether a row matches."""
    parsed, statement = exists_read(call)
    return reading(call, parsed, bool, value_txn, statement)


def aggregate(call: Call) -> Step:
    """
    Prepare `aggregate`: the measures of each group; running it may raise TooManyGroups.

    Raises:
        InvalidArgument: Among others, a function is none of its column's type.
    """
    parsed, statement = aggregate_read(call)
    form = wanted(parsed.request).form

    def groups(rows: list[Any]) -> Any:
        if form == "lists":
            return {"columns": list(statement.columns), "rows": rows}
        return json_list(rows) if form == "json" else rows

    shape = Shape(form, call.backend.max_bytes)
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
    Parse a verb on rows: those of a relation, or those of a function, whose arguments are `args`.

    Args:
        call: Whose positional arguments they are.
        kwargs: Those that are left for the verb.
        parse: Parses what the verb takes.
    """
    limits, relation = call.backend.limits, call.relation
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
    """Return whether a find counts the rows that it reads: those of what may not be called twice."""
    if call.relation is not None or parsed.request.call.function.reads:
        return False
    return wanted(parsed.request).count in ("exact", "estimated")


def wanted(request: Any) -> Any:
    """Return what is wanted of rows, wherever they come from."""
    return request.of if isinstance(request, CalledRequest) else request


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

    What calls a function of the database runs in a transaction: one that can only read if the
    function promises to, else one that is undone if the answer cannot be sent.

    Args:
        call: Of the verb.
        parsed: Its values.
        shape: Makes the answer.
        function: Runs the statement.
        statement: Reads the rows.
        more: For the function.
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
    """Answer a page with what is asked for beside it."""
    found, request = await call.run(step), wanted(parsed.request)
    beside: dict[str, Any] = {}
    if request.count:
        beside["count"] = await _total(call, parsed)
    if totals is not None:
        shape = Shape("json" if request.form == "json" else "dicts", call.backend.max_bytes)
        whole = reading(call, parsed, list, groups_txn, totals, MAX_GROUPS, shape)
        (beside["totals"],) = await call.run(whole)
    return step.shape(found, **beside)


async def _total(call: Call, parsed: Parsed[Any]) -> int:
    """Return how many rows a find would give without its pages."""
    catalog, mode, found = call.snapshot.catalog, wanted(parsed.request).count, 0
    plan = plan_counted(call, parsed)
    if mode != "exact":
        refuse_guarded(catalog, plan)
    if mode != "planned":
        counting = counting_statement(call, parsed, plan)
        found = int(await call.run(reading(call, parsed, int, value_txn, counting)))
        if mode == "exact" or found <= call.backend.limits.max_rows:
            return found
    (document,) = await call.run(reading(call, parsed, list, value_txn, estimate(plan)))
    # The planner may guess less than what was counted.
    return max(found, int(document["Plan"]["Plan Rows"]))


def plan_counted(call: Call, parsed: Parsed[Any]) -> ReadPlan:
    """Plan all rows that a find would give without its pages."""
    plan = planned(plan_all, call.snapshot.catalog, call.relation, parsed.request)
    # A function that may write is counted as its rows are read; EXPLAIN, all else, calls none.
    return replace(plan, afterwards=False)


def counting_statement(call: Call, parsed: Parsed[Any], plan: ReadPlan) -> Statement:
    """Build the query how many rows a plan gives, up to where an estimate takes over."""
    most = call.backend.limits.max_rows + 1
    return counted(plan, limit=most if wanted(parsed.request).count == "estimated" else None)


def _tokens(
    parsed: Parsed[Any], page: Page, limit: int, kwargs: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return the tokens of the page behind and, if a token led here, of the one before."""
    digest = digest_of(*parsed.query) if page.more or parsed.reached else ""
    here, keyset = parsed.reached, wanted(parsed.request).after is not None
    given = str(kwargs[here]) if here else ""

    def token(keys: Sequence[str | None] | int) -> str:
        return write_token(digest, keys)

    def behind() -> str:
        if page.last:
            return token(page.last)
        if not keyset:
            return token(parsed.offset + limit)
        # An empty page begins and ends where the token says; without rows, it is all there is.
        return given if page.more or here == "after" else token(0)

    def before() -> str | None:
        if page.first:
            return token(page.first)
        if not keyset:
            return token(parsed.offset) if parsed.offset else None
        return given if page.more or here == "before" else token([])

    if here is None:
        return {"next": behind() if page.more else None}
    if here == "after":
        return {"next": behind() if page.more else None, "prev": before()}
    return {"next": behind(), "prev": before() if page.more or not keyset else None}


def planned(
    plan: Callable[[Catalog, Relation, Any], Plan], catalog: Catalog, subject: Any, request: Any
) -> Plan:
    """Plan to read rows: those of a relation, or those that a function returns."""
    if isinstance(request, CalledRequest):
        return plan_called(catalog, request, plan)
    return plan(catalog, subject, request)


def noted(statement: Statement, request: Any) -> Statement:
    """Return a statement that is known to write, if it calls a function that may."""
    if isinstance(request, CalledRequest):
        return replace(statement, writes=not request.call.function.reads)
    return statement


def get_statement(catalog: Catalog, relation: Relation, request: GetRequest) -> Statement:
    """Build the statement of the row of a key, or those of several."""
    return select(plan_get(catalog, relation, request))


def find_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement of a page of rows."""
    return noted(select(planned(plan_find, catalog, subject, request)), request)


def unlimited_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement of all rows of a find, without its pages."""
    plan = replace(planned(plan_find, catalog, subject, request), limit=None, offset=None)
    return noted(select(plan), request)


def totals_statement(catalog: Catalog, subject: Any, request: Found) -> Statement:
    """Build the statement of the measures over all rows of a find."""
    if isinstance(request, CalledRequest):
        refuse_second_call(request.call.function)
    return grouped(planned(plan_totals, catalog, subject, request))


def watched_statement(plan: WatchPlan) -> Statement:
    """Build the statement of what a watched query reads."""
    return grouped(plan.read) if isinstance(plan.read, AggregatePlan) else select(plan.read)


def _count_statement(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return counted(plan_count(catalog, relation, request))


def _exists_statement(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return existing(plan_count(catalog, relation, request))


def _aggregate_statement(catalog: Catalog, subject: Any, request: Any) -> Statement:
    return noted(grouped(planned(plan_aggregate, catalog, subject, request)), request)
