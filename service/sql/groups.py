"""
Groups and measures to parts of a statement.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg2.sql import SQL, Identifier

from service.plan.types import Groups, Output, PlannedMeasure
from service.sql.expressions import condition, expression, home, separated
from service.sql.statement import Mark, Part, doubled

FOR = {"sum": "numeric", "avg": "numeric", "bool_and": "boolean", "bool_or": "boolean"}
"""What a function is for."""


def grouped_items(grouped: Groups) -> Iterator[Part]:
    """Build the select list of groups: what they have in common, then the measures."""
    yield from separated([*map(_group, grouped.groups), *map(_measure, grouped.measures)])


def group_by(grouped: Groups) -> Iterator[Part]:
    """
    Build a GROUP BY clause, or nothing.

    By position: a parameter spelled twice would be two different ones for PostgreSQL.
    """
    if grouped.groups:
        yield SQL(" GROUP BY ")
        yield SQL(", ".join(str(at) for at, _ in enumerate(grouped.groups, 1)))


def _group(output: Output) -> Iterator[Part]:
    yield from expression(output.expression)
    yield SQL(" AS ")
    yield Identifier(output.name)


def _measure(measure: PlannedMeasure) -> Iterator[Part]:
    column = measure.operand.column.name if measure.operand else ""
    if measure.cast:
        yield Mark(f"{measure.path}.cast", column, cast=True)
        yield SQL("CAST(")
    yield Mark(f"{measure.path}.{measure.function}", column, _hint(measure.function))
    yield SQL(f"{home(measure.schema)}.{measure.function}(")
    if measure.operand is None:
        yield SQL("*")
    else:
        yield SQL("DISTINCT " if measure.distinct else "")
        yield from expression(measure.operand)
    if measure.separator is not None:
        bytes_ = measure.operand is not None and measure.operand.type.form == "binary"
        yield SQL(", pg_catalog.convert_to(" if bytes_ else ", ")
        yield measure.separator
        yield SQL(", 'UTF8')" if bytes_ else "")
    yield SQL(")")
    if measure.where is not None:
        yield SQL(" FILTER (WHERE ")
        yield from condition(measure.where)
        yield SQL(")")
    if measure.cast:
        yield SQL(f" AS {doubled(measure.cast.sql)})")
    yield SQL(" AS ")
    yield Identifier(measure.name)


def _hint(function: str) -> str:
    return f'a cast may help, as in "column::{FOR.get(function, "text")}"'
