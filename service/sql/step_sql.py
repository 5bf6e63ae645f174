"""
The steps of nested new rows as statements, several of them in one message, and the one that reads
the rows of the call after them.

In a message with others a statement counts its rows itself, and fails where they are others than it
was to write. What statements behind it use goes by settings of the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from psycopg2.sql import SQL, Literal

from service.catalog import Relation
from service.plan.conditions import Bound
from service.plan.plans import InsertPlan, PlannedReturning, ReadPlan, UpdatePlan
from service.sql.expressions import cast, expression
from service.sql.modify import modify, reread_rows
from service.sql.select import answer_of, select
from service.sql.statement import COMMA, Parameter, Statement, build_statement, doubled, render

LEFT_OUT = "rowcast_left_out"
"""What an error speaks of, with the number of a statement, where its rows are not as many as wanted."""

_PLACE = re.compile("%s|%%")


@dataclass(frozen=True, slots=True)
class Counted:
    """
    A statement among others of a message.

    Args:
        plan: Of it alone.
        rows: How many it has to give.
        slots: Where the values of its columns go; of the one row, if there is one.
        numbered: Whether the number of each row stands before them.
        kept: Whether the values come back.
    """

    plan: InsertPlan | UpdatePlan | ReadPlan
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
        if isinstance(part.plan, InsertPlan) and _is_certain(part)
        else _counted(part, number, passed)
        for number, part in enumerate(parts)
    ]
    kept = [number for number, part in enumerate(parts) if part.kept]
    if answer is None:
        back = ", ".join(f"pg_catalog.current_setting('rowcast.rows_{each}')" for each in kept)
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


def _is_certain(part: Counted) -> bool:
    """Return whether a statement writes all of its rows, or fails: to count them takes a third more."""
    return part.plan.relation.kind == "table" and not (part.kept or part.plan.relation.side_effects)


def _uncounted(plan: InsertPlan, part: Counted, passed: Collection[int]) -> Statement:
    """Build an INSERT that hands on the values of its row."""
    statement = _handed(modify(replace(plan, returning=PlannedReturning(), numbered=False)), passed)
    effects = [
        SQL("pg_catalog.set_config({name}, {value}, true)").format(
            name=Literal(f"rowcast.value_{slot:d}"), value=cast(expression(each.expression), "text")
        )
        for each, slot in zip(plan.returning.outputs, part.slots, strict=True)
        if slot in passed
    ] if part.rows == 1 else []  # fmt: skip
    returning = f" RETURNING {render([COMMA.join(effects)])[0]}" if effects else ""
    return replace(statement, text=f"{statement.text}{returning}; ")


def _counted(part: Counted, number: int, passed: Collection[int]) -> Statement:
    """Build a statement that fails if its rows are too few, or too many, and hands on their values."""
    statement = _handed(step_statement(part.plan), passed)
    columns = [f"c{at}" for at in range(len(statement.columns))]
    returning = "" if columns else " RETURNING true"
    names = [*(["n"] if part.numbered else []), *(columns or ["c0"])]
    effects = [
        f"CAST(CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) {part.rows:d} THEN 'true'"
        f" ELSE '{LEFT_OUT} {number:d}' END AS boolean)"
    ]
    effects += [
        f"pg_catalog.set_config('rowcast.value_{slot:d}',"
        f' pg_catalog.max(CAST("w"."{column}" AS text)), true)'
        for column, slot in zip(columns, part.slots, strict=True)
        if slot in passed
    ] if part.rows == 1 else []  # fmt: skip
    if part.kept:
        values = ", ".join(
            '"w"."n"' if name == "n" else f'CAST("w"."{name}" AS text)' for name in names
        )
        effects.append(
            f"pg_catalog.set_config('rowcast.rows_{number:d}', CAST(pg_catalog.json_agg("
            f"pg_catalog.json_build_array({values})) AS text), true)"
        )
    # HAVING is there for its effects, all of them: no row is sent.
    quoted = ", ".join(f'"{name}"' for name in names)
    text = (
        f'WITH "w" ({quoted}) AS ({statement.text}{returning})'
        f' SELECT FROM "w" HAVING pg_catalog.num_nulls({", ".join(effects)}) IS NULL; '
    )
    return replace(statement, text=text)


def _handed(statement: Statement, passed: Collection[int]) -> Statement:
    """Build a statement in which values that are handed on stand for their parameters."""
    if not any(bound.slot in passed for bound in statement.bounds):
        return statement
    bounds, kept = iter(statement.bounds), list[Bound]()
    longer: list[tuple[int, int]] = []

    def value(place: re.Match[str]) -> str:
        if place[0] != "%s":
            return place[0]
        bound = next(bounds)
        if bound.slot not in passed:
            kept.append(bound)
            return "%s"
        text = f"pg_catalog.current_setting('rowcast.value_{bound.slot:d}')"
        # where the statement itself has no cast, the place gave the type
        if not bound.cast:
            text = f"CAST({text} AS {doubled(bound.type.sql)})"
        longer.append((len(statement.text) - place.start(), len(text) - len(place[0])))
        return text

    text = _PLACE.sub(value, statement.text)
    marks = tuple(
        replace(mark, behind=mark.behind + sum(more for at, more in longer if at <= mark.behind))
        for mark in statement.marks
    )
    return replace(statement, text=text, bounds=tuple(kept), marks=marks)
