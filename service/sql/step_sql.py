"""
The steps of nested new rows as statements, several of them in one message, and the one that reads
the rows of the call after them.

In a message with others a statement counts its rows itself, and fails where they are others than it
was to write; of those that leave out none, by the catalog, it is looked at behind them how many rows the
transaction has inserted. What statements behind one use goes by settings of the transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from psycopg2.sql import SQL, Composable, Literal

from service.catalog import Relation
from service.plan.conditions import Bound, Expression
from service.plan.plans import InsertPlan, PlannedReturning, ReadPlan, UpdatePlan
from service.sql.expressions import cast, expression
from service.sql.modify import modify, reread_rows
from service.sql.saved_rows import aggregated, hand_on, row_type
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
        in_statistics: Whether PostgreSQL counts its rows as those of the table, and of no partition.
    """

    plan: InsertPlan | UpdatePlan | ReadPlan
    number: int
    rows: int
    slots: tuple[int, ...] = ()
    numbered: bool = False
    kept: bool = False
    in_statistics: bool = True


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
    first = next((at for at, part in enumerate(parts) if _hands_on(part, passed)), -1)
    # Those behind it that are certain, and that no other goes by, are counted all together.
    silent = [part for part in parts[first + 1 :] if _is_silent(part, passed)]
    watched = {part.plan.relation: part for part in reversed(silent)}
    noted = _noted([*watched.values()]) if first < 0 else ""
    ahead = list[Statement]()
    for at, part in enumerate(parts):
        if _hands_on(part, passed):
            ahead.append(_uncounted(part, passed, [*watched.values()] if at == first else []))
        elif at > first and _is_silent(part, passed):
            ahead.append(_uncounted(part, passed))
        else:
            ahead.append(_counted(part, passed))
    inserts = [part for part in parts[first + 1 :] if isinstance(part.plan, InsertPlan)]
    rows = Counter[Relation]()
    for part in inserts:
        rows[part.plan.relation] += part.rows
    check = _all_inserted([(part, rows[relation]) for relation, part in watched.items()])
    if answer is None:
        back = ", ".join(
            f"pg_catalog.current_setting('rowcast.rows_{each.number}')"
            for each in parts
            if each.kept
        )
        answer = Statement(f"SELECT {back}{check}", (), parts[0].plan.name, pure=True)
        check = ""
    else:
        answer = _handed(answer, passed)
    head = noted + "".join(each.text for each in ahead) + (check and f"SELECT{check}; ")
    return replace(
        answer,
        text=head + answer.text,
        bounds=tuple(bound for each in (*ahead, answer) for bound in each.bounds),
        head=len(head) + answer.head,
        writes=True,
        pure=answer.pure and all(each.pure for each in ahead),
    )


def _is_certain(part: Counted) -> bool:
    """
    Return whether a statement writes all of its rows, or fails, by the catalog, which can be older than
    a trigger: one that may leave some out counts them in a WITH.
    """
    relation = part.plan.relation
    insert = isinstance(part.plan, InsertPlan) and relation.kind == "table"
    return insert and not (part.kept or relation.side_effects)


def _hands_on(part: Counted, passed: Collection[int]) -> bool:
    """Return whether a statement is certain and hands on values that tell whether its row is there."""
    values = _passed_values(part, passed) if _is_certain(part) else []
    return bool(values) and all(value.type.sql in _TELLING for value, _ in values)


def _is_silent(part: Counted, passed: Collection[int]) -> bool:
    """Return whether a statement is certain, and PostgreSQL's statistics alone tell of its rows."""
    return _is_certain(part) and part.in_statistics and not _passed_values(part, passed)


def _note(part: Counted) -> Composable:
    """Build the call that hands on how many rows the table of a statement has got."""
    return hand_on(f"rows_{part.number:d}", SQL(f"CAST({_inserted(part)} AS text)"))


def _noted(parts: Sequence[Counted]) -> str:
    """Build a statement that does so for several, and sends no row; none for none."""
    calls = SQL(" OR ").join(SQL("{} IS NULL").format(_note(each)) for each in parts)
    return f"SELECT WHERE {render([calls])[0]}; " if parts else ""


def _all_inserted(watched: Sequence[tuple[Counted, int]]) -> str:
    """Build the WHERE clause that fails where a table has fewer new rows than so many, if any."""
    short = "".join(
        f" WHEN (CAST(pg_catalog.current_setting('rowcast.rows_{part.number:d}') AS bigint)"
        f" OPERATOR(pg_catalog.+) {rows:d}) OPERATOR(pg_catalog.>) {_inserted(part)}"
        f" THEN '{LEFT_OUT} {part.number:d}'"
        for part, rows in watched
    )
    counts = "pg_catalog.current_setting('track_counts') OPERATOR(pg_catalog.=) 'on'"
    return (
        short
        and f" WHERE CAST(CASE WHEN NOT {counts} THEN 'true'{short} ELSE 'true' END AS boolean)"
    )


def _inserted(part: Counted) -> str:
    """Build the number of rows that the transaction has inserted into the table of a statement."""
    name = Literal(row_type(part.plan.relation))
    table = SQL("CAST({} AS pg_catalog.regclass)").format(name)
    return render([SQL("pg_catalog.pg_stat_get_xact_tuples_inserted({})").format(table)])[0]


def _passed_values(part: Counted, passed: Collection[int]) -> list[tuple[Expression, int]]:
    """Return what an INSERT hands on, each with its slot: of one row, as there may be several."""
    if not isinstance(part.plan, InsertPlan) or part.rows > 1:
        return []
    outputs = zip(part.plan.returning.outputs, part.slots, strict=True)
    return [(each.expression, slot) for each, slot in outputs if slot in passed]


def _uncounted(
    part: Counted, passed: Collection[int], watched: Sequence[Counted] = ()
) -> Statement:
    """Build an INSERT that hands on the values of its row, and how many rows some tables have got."""
    assert isinstance(part.plan, InsertPlan)
    plan = replace(part.plan, returning=PlannedReturning(), numbered=False)
    statement, values = _handed(modify(plan), passed), _passed_values(part, passed)
    # The row may be left out, all the same: what a call before handed on must not stand here then.
    cleared = "".join(
        f"SET LOCAL rowcast.value_{slot:d} TO '{LEFT_OUT} {part.number:d}'; " for _, slot in values
    )
    effects = [
        hand_on(f"value_{slot:d}", cast(expression(value), "text")) for value, slot in values
    ]
    effects += map(_note, watched)
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
