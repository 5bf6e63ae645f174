"""
Aggregate plans to statements.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg2.sql import SQL

from service.plan.aggregate import AggregatePlan
from service.sql.expressions import ROW, order_by, where
from service.sql.groups import group_by, grouped_items
from service.sql.select import columns_of, items, source
from service.sql.statement import Part, Statement, render


def aggregate(plan: AggregatePlan) -> Statement:
    """Spell an aggregate: the groups, and a selection of them."""
    text, bounds, marks = render(_aggregate(plan))
    return Statement(text, bounds, plan.name, columns_of(plan.grouped.outputs, ()), marks=marks)


def _aggregate(plan: AggregatePlan) -> Iterator[Part]:
    yield SQL("SELECT ")
    yield from items(plan.grouped.outputs)
    yield SQL(" FROM (SELECT ")
    yield from grouped_items(plan.grouped)
    yield from source(plan.relation, plan.call)
    yield from where(plan.where)
    yield from group_by(plan.grouped)
    yield SQL(") AS ")
    yield ROW
    yield from where(plan.having)
    yield from order_by(plan.grouped.order)
    for word, bound in ((" LIMIT ", plan.limit), (" OFFSET ", plan.offset)):
        if bound is not None:
            yield SQL(word)
            yield bound
