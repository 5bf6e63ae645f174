"""
Groups and the measures over them, and the statement of `aggregate`.
"""

from __future__ import annotations

from psycopg2.sql import SQL, Composable, Composed

from service.plan.aggregate_plan import AggregatePlan
from service.plan.plans import Groups
from service.plan.uses import is_pure
from service.sql.expressions import (
    aliased,
    expression,
    json_text,
    limit_offset,
    measure_value,
    order_by,
    output_list,
    where_clause,
)
from service.sql.saved_rows import row_source, save_function_rows
from service.sql.statement import COMMA, EMPTY, Statement, build_statement


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
    measures = [aliased([(measure_value(each), each.name)]) for each in groups.measures]
    return SQL("SELECT {items} FROM {rows}{by}").format(
        items=COMMA.join([*items, *measures]),
        rows=rows,
        by=by if items else EMPTY,
    )
