"""
Write plans to statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.plan.conditions import Bound
from service.plan.types import DeletePlan, InsertPlan, Setting, UpdatePlan
from service.sql.expressions import ROW, order_by, separated, where
from service.sql.select import outputs
from service.sql.statement import Part, Statement, render

WritePlan = InsertPlan | UpdatePlan | DeletePlan
DEFAULT = SQL("DEFAULT")


def modify(plan: WritePlan) -> Statement:
    """Spell a write, with what it gives back."""
    text, bounds = render(_ordered(plan) if plan.order else _returning(plan))
    names = tuple(output.name for output in plan.outputs)
    return Statement(text, bounds, plan.name, names, writes=True)


def _write(plan: WritePlan) -> Iterator[Part]:
    if isinstance(plan, InsertPlan):
        yield from _insert(plan)
    elif isinstance(plan, UpdatePlan):
        yield from _update(plan)
    else:
        yield SQL("DELETE FROM ")
        yield from _target(plan)
        yield from where(plan.where)


def _returning(plan: WritePlan) -> Iterator[Part]:
    yield from _write(plan)
    if plan.outputs:
        yield SQL(" RETURNING ")
        yield from outputs(plan.outputs)


def _ordered(plan: WritePlan) -> Iterator[Part]:
    """Give the written rows in an order: they become a source to select from."""
    yield SQL("WITH ")
    yield ROW
    yield SQL(" AS (")
    yield from _write(plan)
    yield SQL(" RETURNING ")
    yield from separated(_column(name) for name in _needed(plan))
    yield SQL(") SELECT ")
    yield from outputs(plan.outputs)
    yield SQL(" FROM ")
    yield ROW
    yield from order_by(plan.order)


def _needed(plan: WritePlan) -> list[str]:
    used = [output.expression for output in plan.outputs]
    used += [key.expression for key in plan.order]
    return list(dict.fromkeys(each.column.name for each in used))


def _column(name: str) -> Iterator[Part]:
    yield ROW
    yield SQL(".")
    yield Identifier(name)


def _target(plan: WritePlan) -> Iterator[Part]:
    yield Identifier(plan.relation.schema, plan.relation.name)
    yield SQL(" AS ")
    yield ROW


def _insert(plan: InsertPlan) -> Iterator[Part]:
    yield SQL("INSERT INTO ")
    yield from _target(plan)
    if not plan.columns:
        yield SQL(" DEFAULT VALUES")
        return
    yield SQL(" (")
    yield from separated([Identifier(column.name)] for column in plan.columns)
    yield SQL(") VALUES ")
    yield from separated(_row(row) for row in plan.rows)


def _row(row: Sequence[Bound | None]) -> Iterator[Part]:
    yield SQL("(")
    yield from separated([bound or DEFAULT] for bound in row)
    yield SQL(")")


def _update(plan: UpdatePlan) -> Iterator[Part]:
    yield SQL("UPDATE ")
    yield from _target(plan)
    yield SQL(" SET ")
    yield from separated(_setting(setting) for setting in plan.settings)
    yield from where(plan.where)


def _setting(setting: Setting) -> Iterator[Part]:
    yield Identifier(setting.column.name)
    yield SQL(" = ")
    yield setting.value or DEFAULT
