"""
Aggregate plans to statements.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg2.sql import SQL

from service.plan.aggregate import AggregatePlan
from service.plan.pure import is_pure
from service.sql.expressions import ROW, limited, order_by, where
from service.sql.groups import group_by, grouped_items
from service.sql.reread import save_function_rows
from service.sql.select import columns_of, items, source
from service.sql.statement import Part, Statement, build_statement


def aggregate(plan: AggregatePlan, json: bool = False) -> Statement:
    """Build an aggregate: the groups, and a selection of them; with `json`, each value as JSON."""
    head = save_function_rows(plan.call, plan.relation) if plan.call and plan.afterwards else ()
    columns = columns_of(plan.grouped.outputs, ())
    rows, pure = _aggregate(plan, json), is_pure(plan)
    return build_statement(head, rows, plan.name, columns=columns, pure=pure)


def _aggregate(plan: AggregatePlan, json: bool) -> Iterator[Part]:
    yield SQL("SELECT ")
    yield from items(plan.grouped.outputs, json=json)
    yield SQL(" FROM (SELECT ")
    yield from grouped_items(plan.grouped)
    yield from source(plan.relation, plan.call, plan.afterwards)
    yield from where(plan.where)
    yield from group_by(plan.grouped)
    yield SQL(") AS ")
    yield ROW
    yield from where(plan.having)
    yield from order_by(plan.grouped.order)
    yield from limited(plan.limit, plan.offset)
