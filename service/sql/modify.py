"""
Write plans to statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.catalog import Relation
from service.plan.conditions import Bound, Every
from service.plan.reread import holding, row_name
from service.plan.writes import (
    Back,
    Conflict,
    DeletePlan,
    InsertPlan,
    Setting,
    Takeover,
    UpdatePlan,
)
from service.sql.embed import laterals
from service.sql.expressions import (
    NAME,
    ROW,
    alike,
    condition,
    operator,
    order_by,
    separated,
    where,
)
from service.sql.select import columns_of, items
from service.sql.statement import Part, Statement, render

WritePlan = InsertPlan | UpdatePlan | DeletePlan
DEFAULT = SQL("DEFAULT")
NEW = "excluded"
"""What PostgreSQL calls a new row whose key is there already."""


def modify(plan: WritePlan) -> Statement:
    """Spell a write, with what it gives back."""
    back = plan.back
    related = any(output.expression.links for output in back.outputs)
    apart = back.order or back.embeds or back.inner or related
    text, bounds, marks = render(_reread(plan) if apart else _returning(plan))
    columns = columns_of(back.outputs, back.embeds)
    return Statement(text, bounds, plan.name, columns, back.embeds, True, marks, bool(back.inner))


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
    if plan.back.outputs:
        yield SQL(" RETURNING ")
        yield from items(plan.back.outputs)


def _reread(plan: WritePlan) -> Iterator[Part]:
    """Give the written rows in an order, or with related ones: they become a source."""
    row = row_name(plan.relation)
    back = holding(plan.back, row)
    needed: list[list[Part]] = [[Identifier(NAME, column)] for column in _needed(back)]
    if back != plan.back:
        needed.append(_held(plan.relation, row))
    yield SQL("WITH ")
    yield ROW
    yield SQL(" AS (")
    yield from _write(plan)
    yield SQL(" RETURNING ")
    yield from separated(needed)
    yield SQL(") SELECT ")
    yield from items(back.outputs, back.embeds)
    if back.inner:  # not a WHERE: what was written is to be counted, whatever is answered of it
        yield SQL(", " if back.outputs or back.embeds else "")
        yield from condition(Every(False, back.inner))
    yield SQL(" FROM ")
    yield ROW
    yield from laterals(back.embeds)
    yield from order_by(back.order)


def _held(relation: Relation, row: str) -> list[Part]:
    """Give the whole row in one column, for functions of it."""
    home = Identifier(relation.schema, relation.name)
    return [SQL("CAST("), ROW, SQL(".* AS "), home, SQL(") AS "), Identifier(row)]


def _needed(back: Back) -> list[str]:
    """Name the columns that the outputs, the order and the related rows go by."""
    used = [output.expression for output in back.outputs]
    used += [key.expression for key in back.order]
    names = [each.column.name for each in used if not each.links and each.function is None]
    links = [each.links[0] for each in used if each.links]
    links += [embed.link for embed in back.embeds]
    links += [each.link for each in back.inner]
    for link in links:
        names += [here for here, *_ in (link.passage.here if link.passage else link.pairs)]
    return list(dict.fromkeys(names))


def _target(plan: WritePlan) -> Iterator[Part]:
    yield Identifier(plan.relation.schema, plan.relation.name)
    yield SQL(" AS ")
    yield ROW


def _insert(plan: InsertPlan) -> Iterator[Part]:
    yield SQL("INSERT INTO ")
    yield from _target(plan)
    if plan.columns:
        yield SQL(" (")
        yield from separated([Identifier(column.name)] for column in plan.columns)
        yield SQL(") VALUES ")
        yield from separated(_row(row) for row in plan.rows)
    elif len(plan.rows) == 1:
        yield SQL(" DEFAULT VALUES")
    else:
        yield SQL(f" SELECT FROM pg_catalog.generate_series(1, {len(plan.rows)})")
    if plan.conflict is not None:
        yield from on_conflict(plan.conflict)


def on_conflict(conflict: Conflict) -> Iterator[Part]:
    """Give what becomes of new rows whose key is there already."""
    yield SQL(" ON CONFLICT (")
    yield from separated([Identifier(name)] for name in conflict.key)
    yield SQL(") DO UPDATE SET " if conflict.takeovers else ") DO NOTHING")
    yield from separated(_takeover(conflict, each) for each in conflict.takeovers)


def _takeover(conflict: Conflict, takeover: Takeover) -> Iterator[Part]:
    name = takeover.column.name
    yield Identifier(name)
    yield SQL(" = ")
    if takeover.kept:
        yield SQL("CASE WHEN ")
        yield from _among(conflict, takeover.kept)
        yield SQL(" THEN ")
        yield Identifier(NAME, name)
        yield SQL(" ELSE ")
    yield Identifier(NEW, name)
    yield SQL(" END" if takeover.kept else "")


def _among(conflict: Conflict, keys: Sequence[Sequence[Bound]]) -> Iterator[Part]:
    """Give the condition that a new row has one of these keys."""
    yield from separated((_is(conflict, key) for key in keys), " OR ")


def _is(conflict: Conflict, key: Sequence[Bound]) -> Iterator[Part]:
    parts = zip(conflict.key, conflict.equal, key, strict=True)
    yield from separated(
        (
            alike([Identifier(NEW, name)], equal, [value])
            if conflict.nulls
            else [Identifier(NEW, name), operator(equal), value]
            for name, equal, value in parts
        ),
        " AND ",
    )


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
