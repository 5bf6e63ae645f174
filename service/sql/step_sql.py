"""
The steps of nested new rows as statements, several of them in one message, and the one that reads
the rows of the call after them.

In a message with others a statement counts its rows itself, and fails where they are others than it
was to write. What statements behind it use goes by settings of the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from psycopg2.sql import SQL, Composable

from service.catalog import Relation
from service.plan.conditions import Bound, Expression
from service.plan.plans import InsertPlan, PlannedReturning, ReadPlan, UpdatePlan
from service.sql.expressions import cast, expression
from service.sql.modify import modify, reread_rows
from service.sql.saved_rows import aggregated, hand_on
from service.sql.select import answer_of, select
from service.sql.statement import (
    COMMA,
    SECRET,
    Parameter,
    Statement,
    build_statement,
    render,
)

LEFT_OUT = f"rowcast_left_out_{SECRET}"
"""What an error speaks of, with the number of a statement, where its rows are not as many as wanted."""

_TELLING = ("smallint", "integer", "bigint", "uuid")
"""Types of most keys, whose input functions refuse `LEFT_OUT`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """
    A statement among others of a message.

    Args:
        plan: Of it alone.
        number: Its own, among all of the call.
        rows: How many it has to give.
        slots: Where the values of its columns go; of the one row, if there is one.
        numbered: Whether the number of each row stands before them.
        kept: Whether the values come back.
    """

    plan: InsertPlan | UpdatePlan | ReadPlan
    number: int
    rows: int
    slots: tuple[int, ...] = ()
    numbered: bool = False
    kept: bool = False


def step_statement(plan: InsertPlan | UpdatePlan | ReadPlan) -> Statement:
    """Build the statement of a step."""
    return select(plan) if isinstance(plan, ReadPlan) else modify(plan)


def answer_statement(relation: Relation, returning: PlannedReturning, written: Bound) -> Statement:
    """
    Build what reads the rows of the call.

    Args:
        relation: Whose rows.
        returning: What is answered of them.
        written: Their keys, as a list of lists of PostgreSQL's text.
    """
    names, embeds = answer_of(returning)
    return build_statement(
        f"{relation.name}.create",
        reread_rows(relation, returning, Parameter(written)),
        columns=names,
        embeds=embeds,
        writes=True,
        receipt=returning.receipt,
        flagged=bool(returning.inner),
    )


def joined(
    parts: Sequence[Counted], passed: Collection[int], answer: Statement | None = None
) -> Statement:
    """
    Build the message of several statements.

    Args:
        parts: In their order.
        passed: Slots of values that are handed on.
        answer: What stands behind them; without it, what comes back is one row, with the values of
            each part that are kept, as JSON.
    """
    ahead = [
        _uncounted(part.plan, part, passed)
        if isinstance(part.plan, InsertPlan) and _is_certain(part.plan, part, passed)
        else _counted(part, passed)
        for part in parts
    ]
    if answer is None:
        back = ", ".join(
            f"pg_catalog.current_setting('rowcast.rows_{each.number}')"
            for each in parts
            if each.kept
        )
        answer = Statement(f"SELECT {back}", (), parts[0].plan.name, pure=True)
    else:
        answer = _handed(answer, passed)
    head = "".join(each.text for each in ahead)
    return replace(
        answer,
        text=head + answer.text,
        bounds=tuple(bound for each in (*ahead, answer) for bound in each.bounds),
        head=len(head) + answer.head,
        writes=True,
        pure=answer.pure and all(each.pure for each in ahead),
    )


def _is_certain(plan: InsertPlan, part: Counted, passed: Collection[int]) -> bool:
    """
    Return whether a statement writes all of its rows, or fails: counting takes half as much again.

    That is by the catalog, which can be older than a trigger; so what it hands on has to be of a type
    that tells a value from `LEFT_OUT`.
    """
    relation = plan.relation
    return (
        relation.kind == "table"
        and not (part.kept or relation.side_effects)
        and all(value.type.sql in _TELLING for value, _ in _passed_values(plan, part, passed))
    )


def _passed_values(
    plan: InsertPlan, part: Counted, passed: Collection[int]
) -> list[tuple[Expression, int]]:
    """Return what a statement hands on, each with its slot: of one row, as there may be several."""
    outputs = zip(plan.returning.outputs, part.slots, strict=True) if part.rows == 1 else ()
    return [(each.expression, slot) for each, slot in outputs if slot in passed]


def _uncounted(plan: InsertPlan, part: Counted, passed: Collection[int]) -> Statement:
    """Build an INSERT that hands on the values of its row."""
    statement = _handed(modify(replace(plan, returning=PlannedReturning(), numbered=False)), passed)
    values = _passed_values(plan, part, passed)
    # The row may be left out, all the same: what a call before handed on must not stand here then.
    cleared = "".join(
        f"SET LOCAL rowcast.value_{slot:d} TO '{LEFT_OUT} {part.number:d}'; " for _, slot in values
    )
    effects = [
        hand_on(f"value_{slot:d}", cast(expression(value), "text")) for value, slot in values
    ]
    returning = f" RETURNING {render([COMMA.join(effects)])[0]}" if effects else ""
    return replace(statement, text=f"{cleared}{statement.text}{returning}; ")


def _counted(part: Counted, passed: Collection[int]) -> Statement:
    """Build a statement that fails if its rows are too few, or too many, and hands on their values."""
    statement = _handed(step_statement(part.plan), passed)
    columns = [f"c{at}" for at in range(len(statement.columns))]
    returning = "" if columns else " RETURNING true"
    names = [*(["n"] if part.numbered else []), *(columns or ["c0"])]
    effects: list[Composable] = [
        SQL(
            f"CAST(CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) {part.rows:d} THEN 'true'"
            f" ELSE '{LEFT_OUT} {part.number:d}' END AS boolean)"
        )
    ]
    effects += [
        hand_on(f"value_{slot:d}", SQL(f'pg_catalog.max(CAST("w"."{column}" AS text))'))
        for column, slot in zip(columns, part.slots, strict=True)
        if slot in passed
    ] if part.rows == 1 else []  # fmt: skip
    if part.kept:
        values = ", ".join(
            '"w"."n"' if name == "n" else f'CAST("w"."{name}" AS text)' for name in names
        )
        rows = f"CAST(pg_catalog.json_agg(pg_catalog.json_build_array({values})) AS text)"
        effects.append(hand_on(f"rows_{part.number:d}", SQL(rows)))
    text, _, _ = render([aggregated(SQL(statement.text + returning), names, effects)])
    return replace(statement, text=text)


def _handed(statement: Statement, passed: Collection[int]) -> Statement:
    """Build a statement in which values that are handed on stand for their parameters."""
    if not any(bound.slot in passed for bound in statement.bounds):
        return statement
    return statement.substituted(
        lambda _, bound: (
            f"pg_catalog.current_setting('rowcast.value_{bound.slot:d}')"
            if bound.slot in passed
            else None
        )
    )
