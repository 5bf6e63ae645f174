"""
Groups and the measures over them, and the statement of `aggregate`.
"""

from __future__ import annotations

from psycopg2.sql import SQL, Composable, Composed, Identifier

from service.plan.aggregate import AggregatePlan
from service.plan.types import Groups, PlannedMeasure
from service.plan.uses import is_pure
from service.sql.expressions import (
    cast,
    condition,
    expression,
    json_text,
    limit_offset,
    order_by,
    output_list,
    schema_sql,
    where_clause,
)
from service.sql.reread import row_source, save_function_rows
from service.sql.statement import COMMA, EMPTY, Mark, Parameter, Statement, build_statement

FOR = {"sum": "numeric", "avg": "numeric", "bool_and": "boolean", "bool_or": "boolean"}
"""What a function is for."""


def aggregate(plan: AggregatePlan) -> Statement:
    """Build an aggregate: the groups, and a selection of them."""
    outputs = plan.grouped.outputs
    values = [(expression(each.expression), each.expression.type) for each in outputs]
    statement = SQL(
        'SELECT {columns} FROM ({groups}) AS "t"{having}{order}{page}'
    ).format(
        columns=COMMA.join(json_text(*each) for each in values) if plan.json else output_list(outputs),
        groups=grouped(
            plan.grouped,
            Composed([row_source(plan.relation, plan.call, plan.afterwards),
                      where_clause(plan.where)]),
        ),
        having=where_clause(plan.having),
        order=order_by(plan.grouped.order),
        page=limit_offset(plan.limit, plan.offset),
    )  # fmt: skip
    return build_statement(
        plan.name,
        statement,
        save_function_rows(plan.call, plan.relation) if plan.call and plan.afterwards else EMPTY,
        columns=tuple(output.name for output in outputs),
        pure=is_pure(plan),
    )


def grouped(groups: Groups, rows: Composable) -> Composable:
    """
    Build groups of rows: what they have in common, then the measures.

    Groups stand by position: a parameter spelled twice would be two different ones for PostgreSQL.

    Args:
        groups: Of them.
        rows: What the FROM clause reads, with the WHERE clause.
    """
    items = [output_list([each]) for each in groups.groups]
    by = SQL(" GROUP BY " + ", ".join(f"{at}" for at in range(1, len(items) + 1)))
    return SQL("SELECT {items} FROM {rows}{by}").format(
        items=COMMA.join([*items, *map(_measure, groups.measures)]),
        rows=rows,
        by=by if items else EMPTY,
    )


def _measure(measure: PlannedMeasure) -> Composable:
    """Build a measure, as `CAST(f(DISTINCT x, ',') FILTER (WHERE …) AS type) AS name`."""
    column = measure.operand.column.name if measure.operand else ""
    hint = f'a cast may help, as in "column::{FOR.get(measure.function, "text")}"'
    separator = EMPTY
    if measure.separator is not None:
        bytes_ = measure.operand is not None and measure.operand.type.form == "binary"
        # string_agg of bytea takes its separator as bytea.
        template = ", pg_catalog.convert_to({}, 'UTF8')" if bytes_ else ", {}"
        separator = SQL(template).format(Parameter(measure.separator))
    where = EMPTY
    if measure.where is not None:
        where = SQL(" FILTER (WHERE {})").format(condition(measure.where))
    value: Composable = SQL("{mark}{function}({distinct}{operand}{separator}){where}").format(
        mark=Mark(f"{measure.path}.{measure.function}", column, hint),
        function=SQL(f"{schema_sql(measure.schema)}.{measure.function}"),
        distinct=SQL("DISTINCT " if measure.distinct and measure.operand else ""),
        operand=expression(measure.operand) if measure.operand else SQL("*"),
        separator=separator,
        where=where,
    )
    if measure.cast:
        mark = Mark(f"{measure.path}.cast", column, cast=True)
        value = Composed([mark, cast(value, measure.cast.sql)])
    return SQL("{value} AS {name}").format(value=value, name=Identifier(measure.name))
