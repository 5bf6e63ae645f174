"""
Calls of functions: by themselves, and as what a FROM clause reads.
"""

from __future__ import annotations

from psycopg2.sql import SQL, Composable, Identifier

from service.plan.plans import CallPlan, FunctionCall
from service.sql.expressions import NAME, aliased, argument, json_text
from service.sql.statement import COMMA, EMPTY, Statement, build_statement


def call(plan: CallPlan, limit: int) -> Statement:
    """
    Build a plain call.

    Args:
        plan: Of the call.
        limit: How many rows are fetched at most.
    """
    return build_statement(
        plan.name,
        _call(plan, limit),
        columns=plan.columns,
        writes=not plan.call.function.reads,
        untyped=plan.untyped and not plan.json,
        scalar=plan.columns == ("answer",),
    )


def function_source(found: FunctionCall) -> Composable:
    """Build a function as what a FROM clause reads, under the alias of its rows."""
    names = SQL(" ({})").format(COMMA.join(map(Identifier, found.names))) if found.names else EMPTY
    return SQL('{function} AS "t"{names}').format(function=_invocation(found), names=names)


def _call(plan: CallPlan, limit: int) -> Composable:
    function = _invocation(plan.call)
    # CALL is no expression: nothing stands around it, no LIMIT and no to_json.
    if plan.call.function.procedure:
        return SQL("CALL {function}").format(function=function)
    stop = SQL(f" LIMIT {limit:d}" if plan.rows else "")
    if plan.untyped or (not plan.rows and len(plan.columns) == 1):
        if plan.json:
            value = json_text(function, plan.types[0])
        else:
            if plan.untyped:  # a dict would lose one of two columns with one name
                function = SQL("CAST(pg_catalog.to_json({}) AS text)").format(function)
            value = aliased([(function, plan.columns[0])])
        return SQL("SELECT {value}{limit}").format(value=value, limit=stop)
    columns: list[Composable] = [Identifier(NAME, name) for name in plan.columns]
    if plan.json:
        columns = list(map(json_text, columns, plan.types))
    return SQL("SELECT {columns} FROM {function}{limit}").format(
        columns=COMMA.join(columns), function=function_source(plan.call), limit=stop
    )


def _invocation(found: FunctionCall) -> Composable:
    """Build a function with its arguments; those by name keep their defaults apart."""
    return SQL("{function}({arguments})").format(
        function=Identifier(found.function.schema, found.function.name),
        arguments=COMMA.join(map(argument, found.arguments)),
    )
