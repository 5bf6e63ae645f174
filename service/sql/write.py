"""
Write plans to statements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.plan.conditions import Bound, Every
from service.plan.pure import is_pure
from service.plan.types import (
    DeletePlan,
    InsertPlan,
    Output,
    PlannedConflict,
    Setting,
    Takeover,
    UpdatePlan,
)
from service.sql.embed import laterals
from service.sql.expressions import (
    NAME,
    ROW,
    condition,
    not_distinct,
    operator,
    order_by,
    separated,
    where,
)
from service.sql.json_form import json_text
from service.sql.reread import WRITTEN, ordered, save_rows, saved_rows, saved_values
from service.sql.select import answer_of, items
from service.sql.statement import MISSED, Part, Statement, build_statement, doubled

WritePlan = InsertPlan | UpdatePlan | DeletePlan
DEFAULT = SQL("DEFAULT")
NEW = "excluded"
"""What PostgreSQL calls a new row whose key is there already."""


def modify(plan: WritePlan, json: bool = False) -> Statement:
    """
    Build a write with what comes back of it: by itself, or by a second statement behind it.

    With `json`, each value that comes back is JSON.
    """
    returning = plan.returning
    alone = _certain(plan, json) if returning.certain else _returning(plan, json)
    head, rows = (_save(plan), _reread(plan, json)) if returning.reread else ((), alone)
    columns, embeds = answer_of(returning.outputs, returning.embeds, json)
    return build_statement(
        head,
        rows,
        plan.name,
        columns=columns,
        embeds=embeds,
        writes=True,
        picks=bool(returning.inner),
        certain=returning.certain,
        pure=is_pure(plan, plan.relation),
    )


def on_conflict(conflict: PlannedConflict) -> Iterator[Part]:
    """Build what becomes of new rows whose key is there already."""
    yield SQL(" ON CONFLICT ")
    if conflict.target is not None:
        yield SQL(doubled(conflict.target.text))
    else:
        yield SQL("(")
        yield from separated([Identifier(name)] for name in conflict.key)
        yield SQL(")")
    yield SQL(" DO UPDATE SET " if conflict.takeovers else " DO NOTHING")
    yield from separated(_takeover(conflict, each) for each in conflict.takeovers)


def _write(plan: WritePlan) -> Iterator[Part]:
    if isinstance(plan, InsertPlan):
        yield from _insert(plan)
    elif isinstance(plan, UpdatePlan):
        yield from _update(plan)
    else:
        yield SQL("DELETE FROM ")
        yield from _target(plan)
        yield from where(plan.where)


def _returning(plan: WritePlan, json: bool) -> Iterator[Part]:
    yield from _write(plan)
    if plan.returning.outputs:
        yield SQL(" RETURNING ")
        yield from items(plan.returning.outputs, json=json)


def _certain(plan: WritePlan, json: bool) -> Iterator[Part]:
    """Build a write that fails if it writes no row: then a text that is no boolean is read as one."""
    outputs = [Output(each.expression, f"c{at}") for at, each in enumerate(plan.returning.outputs)]
    yield SQL("WITH ")
    yield WRITTEN
    yield SQL(" AS (")
    yield from _write(plan)
    yield SQL(" RETURNING ")
    yield from items(outputs)
    yield SQL(", " if outputs else "")
    yield SQL("CAST('true' AS text) AS ")
    yield Identifier("v")
    yield SQL(") SELECT ")
    yield from separated(
        [*_given(found, json), SQL(" AS "), Identifier(each.name)]
        for found, each in zip(outputs, plan.returning.outputs, strict=True)
    )
    yield SQL(" FROM (SELECT) AS ")
    yield Identifier("o")
    yield SQL(" LEFT JOIN ")
    yield WRITTEN
    yield SQL(" ON true WHERE CAST(coalesce(")
    yield Identifier("w", "v")
    yield SQL(f", '{MISSED}') AS boolean)")


def _given(output: Output, json: bool) -> Iterator[Part]:
    value = [Identifier("w", output.name)]
    yield from json_text(value, output.expression.type) if json else value


def _save(plan: WritePlan) -> Iterator[Part]:
    if plan.returning.reread is None:
        raise TypeError("nothing is read again")
    rows = [*_write(plan), SQL(" RETURNING "), *saved_values(plan.returning.reread, plan.relation)]
    yield from save_rows(rows, plan.returning.certain)


def _reread(plan: WritePlan, json: bool) -> Iterator[Part]:
    returning = plan.returning
    if returning.reread is None:
        raise TypeError("nothing is read again")
    yield SQL("SELECT ")
    yield from items(returning.outputs, returning.embeds, json)
    # not a WHERE: what was written is to be counted, whatever is answered of it
    if returning.inner:
        yield SQL(", " if returning.outputs or returning.embeds else "")
        yield from condition(Every(False, returning.inner))
    yield from saved_rows(returning.reread, plan.relation)
    yield from laterals(returning.embeds, json)
    yield from ordered(order_by(returning.order))


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


def _row(row: Sequence[Bound | None]) -> Iterator[Part]:
    yield SQL("(")
    yield from separated([bound or DEFAULT] for bound in row)
    yield SQL(")")


def _takeover(conflict: PlannedConflict, takeover: Takeover) -> Iterator[Part]:
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


def _among(conflict: PlannedConflict, keys: Sequence[Sequence[Bound]]) -> Iterator[Part]:
    """Build the condition that a new row has one of these keys."""
    yield from separated((_is(conflict, key) for key in keys), " OR ")


def _is(conflict: PlannedConflict, key: Sequence[Bound]) -> Iterator[Part]:
    parts = zip(conflict.key, conflict.equal, key, strict=True)
    yield from separated(
        (
            not_distinct([Identifier(NEW, name)], equal, [value])
            if conflict.nulls
            else [Identifier(NEW, name), operator(equal), value]
            for name, equal, value in parts
        ),
        " AND ",
    )


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
