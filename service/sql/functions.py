"""
Calls of functions to statements, and to parts of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from psycopg2.sql import SQL, Identifier

from service.plan.types import CallPlan, FunctionCall, PlannedArgument
from service.sql.expressions import ROW, separated
from service.sql.json_form import json_text
from service.sql.statement import Part, Statement, render


def call(plan: CallPlan, limit: int, json: bool = False) -> Statement:
    """
    Build a plain call.

    Args:
        plan: Of the call.
        limit: How many rows are fetched at most.
        json: Whether each value is to be JSON.
    """
    text, bounds, marks = render(_call(plan, limit, json))
    writes = not plan.call.function.reads
    return Statement(
        text,
        bounds,
        plan.name,
        plan.columns,
        writes=writes,
        marks=marks,
        untyped=plan.untyped and not json,
        bare=plan.columns == ("answer",),
    )


def invocation(found: FunctionCall) -> Iterator[Part]:
    """Build a function with its arguments; those by name keep their defaults apart."""
    yield Identifier(found.function.schema, found.function.name)
    yield SQL("(")
    yield from separated(_argument(each) for each in found.arguments)
    yield SQL(")")


def function_source(found: FunctionCall) -> Iterator[Part]:
    """Build a function as what a FROM clause reads, under the alias of its rows."""
    yield from invocation(found)
    yield SQL(" AS ")
    yield ROW
    if found.names:
        yield SQL(" (")
        yield from separated([Identifier(name)] for name in found.names)
        yield SQL(")")


def _call(plan: CallPlan, limit: int, json: bool) -> Iterator[Part]:
    if plan.call.function.procedure:
        yield SQL("CALL ")
        yield from invocation(plan.call)
        return
    yield SQL("SELECT ")
    stop = SQL(f" LIMIT {limit:d}" if plan.rows else "")
    if json:
        yield from _as_json(plan)
        yield stop
        return
    if plan.untyped or (not plan.rows and len(plan.columns) == 1):
        yield SQL("pg_catalog.to_json(" if plan.untyped else "")
        yield from invocation(plan.call)
        yield SQL(")" if plan.untyped else "")
        yield SQL(" AS ")
        yield Identifier(plan.columns[0])
        yield stop
        return
    yield from separated([Identifier("t", column)] for column in plan.columns)
    yield SQL(" FROM ")
    yield from function_source(plan.call)
    yield stop


def _as_json(plan: CallPlan) -> Iterator[Part]:
    columns: Iterable[Iterable[Part]] = ([Identifier("t", name)] for name in plan.columns)
    source: list[Part] = [SQL(" FROM "), *function_source(plan.call)]
    if plan.untyped or (not plan.rows and len(plan.columns) == 1):
        columns, source = [invocation(plan.call)], []
    yield from separated(map(json_text, columns, plan.types))
    yield from source


def _argument(argument: PlannedArgument) -> Iterator[Part]:
    yield SQL("VARIADIC " if argument.variadic else "")
    if argument.name:
        yield Identifier(argument.name)
        yield SQL(" => ")
    yield argument.value or SQL("NULL")
