"""
Calls of database functions and procedures.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from service.api.call import Call, Step
from service.catalog import Catalog, Function
from service.db.statements import Shape, json_list, read_only_txn
from service.db.writes import call_txn, fitting_txn, receipted_txn, write_txn
from service.errors import InvalidArgument
from service.payload import WithReceipt
from service.plan.call_plan import Answer, answer_kind, plan_call, result_columns
from service.request.arguments import RECEIPT
from service.request.call_request import CallRequest, parse_call
from service.request.read_request import Parsed
from service.sql.saved_rows import call as called
from service.sql.statement import Statement


def call_function(call: Call) -> Step:
    """
    Prepare a call of a function, or of a procedure, which may commit and so runs in no transaction.

    Raises:
        InvalidArgument: No overload takes these arguments, or several do.
    """
    parsed = parse_call(call.functions, call.args, call.kwargs, call.snapshot.catalog)
    step = _step(call, parsed)
    return _receipted(call, parsed.request.function, step) if parsed.request.receipt else step


def _step(call: Call, parsed: Parsed[CallRequest]) -> Step:
    snapshot, backend = call.snapshot, call.backend
    request, function = parsed.request, parsed.request.function
    limit = backend.limits.max_rows
    # One row more than may be sent shows that there are too many.
    statement = snapshot.statement(_call, function, (request, limit + 1))
    answer = answer_kind(snapshot.catalog, function)
    # Any other result is one column, "answer", from which `_answer` makes the lists.
    form = request.form if answer in ("row", "rows") or request.form == "json" else "dicts"
    shape = Shape(form, backend.max_bytes)
    shaped = partial(_answer, snapshot.catalog, request, statement, answer)
    if function.procedure:
        call.state.begun = True  # it may have committed before it fails
        return Step(
            write_txn,
            (snapshot.codec, lambda: statement, parsed.values, None, shape),
            lambda written: shaped(written.rows),
            parsed.timeout,
            "procedure",
        )
    has_verbs = result_columns(snapshot.catalog, function) is not None
    most = request.max_affected
    args = (call_txn, snapshot.codec, statement, parsed.values, limit, most, shape, has_verbs)
    # A STABLE function may call a volatile one, whose writes a READ ONLY transaction refuses.
    if function.reads:
        return Step(read_only_txn, args, shaped, parsed.timeout, "read only")
    return Step(fitting_txn, (backend.max_bytes, *args), shaped, parsed.timeout, "atomic")


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
    return replace(
        step,
        function=receipted_txn,
        args=(step.function, *step.args),
        shape=lambda found: WithReceipt(step.shape(found[0]), found[1]),
    )


def _call(catalog: Catalog, _: Function, shape: tuple[CallRequest, int]) -> Statement:
    request, most = shape
    return called(plan_call(catalog, request), most)


def _answer(
    catalog: Catalog, request: CallRequest, statement: Statement, answer: Answer, rows: list[Any]
) -> Any:
    """Return the answer of a function, from the rows of its statement."""
    if request.form == "json":
        if answer == "nothing":
            return "null"
        return json_list(rows) if answer in ("rows", "values") else rows[0]
    if request.form == "lists":
        if answer in ("row", "rows"):
            return {"columns": list(statement.columns), "rows": rows}
        if answer == "composite":
            columns = list(result_columns(catalog, request.function) or ())
            found = [row["answer"] for row in rows if row["answer"] is not None]
            return {"columns": columns, "rows": [[row[name] for name in columns] for row in found]}
    if answer == "nothing":
        return None
    if answer == "rows":
        return rows
    if answer == "values":
        return [row["answer"] for row in rows]
    return rows[0] if answer == "row" else rows[0]["answer"]
