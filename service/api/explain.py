"""
The procedure `explain`: how PostgreSQL would answer a read.

The call is routed, parsed and planned as if it were made, with the rights and claims of its caller. EXPLAIN
gets its statements with the values of the call as literals in the text, as when the call is made, so
PostgreSQL makes a custom plan for these values, not a generic one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from service.api.call import Call, Step
from service.api.dispatcher import Dispatcher, Procedure
from service.api.read import (
    Read,
    aggregate_read,
    count_read,
    counting_statement,
    counts_as_it_reads,
    exists_read,
    find_statement,
    flow,
    get_statement,
    parsed_rows,
    plan_counted,
    rows_request,
    statement_of,
    totals_statement,
    unlimited_statement,
    watched_statement,
)
from service.db.statements import explain_txn
from service.errors import InvalidArgument, clip
from service.payload import fit
from service.plan.watch_plan import plan_watch
from service.request.arguments import Caller
from service.request.batch_request import ExplainRequest, parse_explain
from service.request.read_request import (
    parse_find,
    parse_format,
    parse_get,
    parse_watch_options,
    parse_watched,
)


class ExplainProcedure:
    """
    Answers `explain`, if ROWCAST_EXPLAIN allows it: plans show policies, and the tables under views.

    Args:
        dispatcher: Routes the call that is explained.
        max_watched: Maximum number of rows of a watched query.
    """

    def __init__(self, dispatcher: Dispatcher, max_watched: int) -> None:
        self._dispatcher = dispatcher
        self._reads: Mapping[str, Callable[[Call], Iterable[Read]]] = {
            "get": _get,
            "find": _find,
            "count": lambda call: [count_read(call)],
            "exists": lambda call: [exists_read(call)],
            "aggregate": lambda call: [aggregate_read(call)],
            "stream": _stream,
            "export": _export,
            "watch": partial(_watch, max_watched),
        }

    def procedures(self) -> dict[str, Procedure]:
        """Return the procedure by name."""
        return {"explain": self._explain}

    async def _explain(
        self, caller: Caller, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[Any]:
        """
        Answer `explain`: the plans of a call's statements, in the order in which they would run.

        Raises:
            InvalidArgument: The call is not one that only reads.
        """
        request = parse_explain(args, kwargs)
        operation = request.operation
        # The statements of a procedure written by hand are not known before it runs.
        if self._dispatcher.is_procedure(operation.name):
            raise self._no_read(operation.name)
        plans: list[Any] = await self._dispatcher.answer(
            operation.name,
            operation.args,
            operation.kwargs,
            caller,
            handler=partial(self._explained, request),
        )
        fit(plans, self._dispatcher.backend.max_bytes)
        return plans

    async def _explained(self, request: ExplainRequest, call: Call) -> list[Any]:
        reads = self._reads.get(call.verb.name)
        if reads is None:
            raise self._no_read(request.operation.name)
        plans = []
        for parsed, statement in reads(call):
            if statement.head and not request.analyze:
                raise InvalidArgument(
                    "the rows of a function that may write are read once it has run",
                    path="operation.analyze",
                    hint="with analyze it runs, in a transaction that can only read",
                )
            args = (call.snapshot.codec, statement, parsed.values, request.analyze)
            seconds = request.timeout or parsed.timeout
            # With analyze the statement runs; a READ ONLY transaction refuses the writes of functions in it.
            step = Step(explain_txn, args, timeout=seconds, access="read only")
            plans.append(await call.run(step))
        return plans

    def _no_read(self, name: str) -> InvalidArgument:
        return InvalidArgument(
            f'"{clip(name)}" is no verb that only reads',
            path="operation.call",
            hint=f"what can be explained is {', '.join(self._reads)}, of relations and of functions",
        )


def _get(call: Call) -> Iterator[Read]:
    parsed = parse_get(call.args, call.kwargs, call.backend.limits)
    yield parsed, statement_of(call, parsed, get_statement)


def _find(call: Call) -> Iterator[Read]:
    parsed = parsed_rows(call, call.kwargs, parse_find)
    request, whole = rows_request(parsed.request), counts_as_it_reads(call, parsed)
    yield parsed, statement_of(call, parsed, unlimited_statement if whole else find_statement)
    if request.count in ("exact", "estimated") and not whole:
        yield parsed, counting_statement(call, parsed, plan_counted(call, parsed))
    if request.measures:
        yield parsed, statement_of(call, parsed, totals_statement)


def _stream(call: Call) -> Iterator[Read]:
    rows = flow(call, call.kwargs)
    yield rows.parsed, rows.statement


def _export(call: Call) -> Iterator[Read]:
    format, rest = parse_format(call.kwargs)
    rows = flow(call, rest, format)
    yield rows.parsed, rows.statement


def _watch(most: int, call: Call) -> Iterator[Read]:
    _, rest = parse_watch_options(call.kwargs)
    parsed = parsed_rows(call, rest, partial(parse_watched, most=most))
    plan = plan_watch(call.snapshot.catalog, call.relation, parsed.request)
    yield parsed, watched_statement(plan)
