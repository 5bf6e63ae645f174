"""
The statements of nested new rows, several of which share a message, and the one that reads the answer.

Within a message, a statement counts its rows in a WITH, and fails if it has not written as many as it
should. Inserts that by the catalog leave out no row are not counted: that would take an eighth of the time
of an order with its lines. Instead, the last statement compares PostgreSQL's statistics of the transaction
with the number of rows. Values that later statements use are passed in settings of the transaction.

`plan/nested_rows.py` makes the steps and messages, and shows an example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from psycopg2.sql import SQL, Composable, Literal

from service.catalog import Relation
from service.plan.plans import Bound, Expression, InsertPlan, PlannedReturning, ReadPlan, UpdatePlan
from service.sql.expressions import cast, expression
from service.sql.modify import modify, reread_rows
from service.sql.saved_rows import aggregated, row_type, save_value
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
"""In the error of a statement, before its number, that has not written as many rows as it should."""

_REFUSES_LEFT_OUT = ("smallint", "integer", "bigint", "uuid")
"""Types, those of most keys, whose input functions refuse the text `LEFT_OUT`."""


@dataclass(frozen=True, slots=True)
class MessagePart:
    """
    One of the statements of a message.

    Args:
        plan: The statement's plan.
        number: Number of the statement among all of the call.
        rows: Number of rows that it has to write or read.
        slots: Slots of the values of its columns, if it has one row.
        returned: Whether the message returns the values.
        in_statistics: Whether PostgreSQL's statistics count its rows for the table itself, as they do
            not for a partitioned table.
    """

    plan: InsertPlan | UpdatePlan | ReadPlan
    number: int
    rows: int
    slots: tuple[int, ...] = ()
    returned: bool = False
    in_statistics: bool = True


def step_statement(plan: InsertPlan | UpdatePlan | ReadPlan) -> Statement:
    """Build the statement of a step."""
    return select(plan) if isinstance(plan, ReadPlan) else modify(plan)


def answer_statement(relation: Relation, returning: PlannedReturning, written: Bound) -> Statement:
    """
    Build the query that reads the rows of the call for its answer.

    Args:
        relation: The relation of the rows.
        returning: The columns and embeds of the answer.
        written: The rows' keys, as a list of lists of PostgreSQL's text.
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


def message_statement(
    parts: Sequence[MessagePart], passed: Collection[int], answer: Statement | None = None
) -> Statement:
    """
    Build the message of several statements.

    Args:
        parts: The statements, in their order.
        passed: Slots of values that later statements use.
        answer: The last statement of the message. Without one, the message returns one row, with a
            JSON of the values of each part that are returned.
    """
    checks = [_check_of(part, passed) for part in parts]
    first = checks.index("value") if "value" in checks else -1
    # The statistics of inserts behind `first` are compared once at the end. `first`, or else a statement in
    # front of all, saves what the statistics were before.
    behind = [*zip(parts, checks, strict=True)][first + 1 :]
    watched = {
        part.plan.relation: part for part, check in reversed(behind) if check == "statistics"
    }
    rows = Counter[Relation]()
    for part, _ in behind:
        if isinstance(part.plan, InsertPlan):
            rows[part.plan.relation] += part.rows
    ahead = [
        _counted(part, passed)
        if check == "count" or (check == "statistics" and at < first)
        else _uncounted(part, passed, [*watched.values()] if at == first else [])
        for at, (part, check) in enumerate(zip(parts, checks, strict=True))
    ]
    head = _save_inserted([*watched.values()]) if first < 0 else ""
    head += "".join(each.text for each in ahead)
    compared = _all_inserted([(part, rows[relation]) for relation, part in watched.items()])
    if answer is None:
        back = ", ".join(
            f"pg_catalog.current_setting('rowcast.rows_{each.number}')"
            for each in parts
            if each.returned
        )
        answer = Statement(f"SELECT {back}{compared}", (), parts[0].plan.name, pure=True)
    else:
        answer = _with_passed_values(answer, passed)
        head += compared and f"SELECT{compared}; "
    return replace(
        answer,
        text=head + answer.text,
        bounds=tuple(bound for each in (*ahead, answer) for bound in each.bounds),
        head=len(head) + answer.head,
        writes=True,
        pure=answer.pure and all(each.pure for each in ahead),
    )


def _check_of(part: MessagePart, passed: Collection[int]) -> str:
    """
    Return how a statement is checked to write all of its rows.

    Returns:
        "count": its rows are counted; "value": it passes on values that prove it, because without its row
        they are `LEFT_OUT`, which the cast to their types refuses; "statistics": those of PostgreSQL are
        compared. The last two are for inserts that by the catalog write all rows or fail. The catalog may be
        older than a trigger that leaves rows out, so this has to be checked as well.
    """
    relation, values = part.plan.relation, _passed_values(part, passed)
    insert = isinstance(part.plan, InsertPlan) and relation.kind == "table"
    if not insert or part.returned or relation.side_effects:
        return "count"
    if values:
        refused = all(value.type.sql in _REFUSES_LEFT_OUT for value, _ in values)
        return "value" if refused else "count"
    return "statistics" if part.in_statistics else "count"


def _save_count(part: MessagePart) -> Composable:
    """Build the call that saves how many rows the transaction has inserted into a part's table."""
    return save_value(f"rows_{part.number:d}", SQL(f"CAST({_inserted(part)} AS text)"))


def _save_inserted(parts: Sequence[MessagePart]) -> str:
    """Build the statement that saves the row counts of several parts, and returns no row."""
    calls = SQL(" OR ").join(SQL("{} IS NULL").format(_save_count(each)) for each in parts)
    return f"SELECT WHERE {render([calls])[0]}; " if parts else ""


def _all_inserted(watched: Sequence[tuple[MessagePart, int]]) -> str:
    """
    Build the WHERE clause that fails if a table has got fewer new rows than it should; "" for no table.

    With `track_counts` off there are no statistics, and nothing is checked.
    """
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


def _inserted(part: MessagePart) -> str:
    """Build the number of rows that the transaction has inserted into a part's table."""
    name = render([Literal(row_type(part.plan.relation))])[0]
    return f"pg_catalog.pg_stat_get_xact_tuples_inserted(CAST({name} AS pg_catalog.regclass))"


def _passed_values(part: MessagePart, passed: Collection[int]) -> list[tuple[Expression, int]]:
    """Return the values that an INSERT of one row passes on, with their slots; none for several rows."""
    if not isinstance(part.plan, InsertPlan) or part.rows > 1:
        return []
    outputs = zip(part.plan.returning.outputs, part.slots, strict=True)
    return [(each.expression, slot) for each, slot in outputs if slot in passed]


def _uncounted(
    part: MessagePart, passed: Collection[int], watched: Sequence[MessagePart] = ()
) -> Statement:
    """Build an INSERT that saves the passed values of its row, and the row counts of `watched`."""
    assert isinstance(part.plan, InsertPlan)
    plan = replace(part.plan, returning=PlannedReturning(), numbered=False)
    statement, values = _with_passed_values(modify(plan), passed), _passed_values(part, passed)
    # A trigger that is newer than the catalog may leave the row out. The setting must not have the value
    # of an earlier call of the transaction then, or children would get the wrong parent.
    cleared = "".join(
        f"SET LOCAL rowcast.value_{slot:d} TO '{LEFT_OUT} {part.number:d}'; " for _, slot in values
    )
    effects = [
        save_value(f"value_{slot:d}", cast(expression(value), "text")) for value, slot in values
    ]
    effects += map(_save_count, watched)
    returning = f" RETURNING {render([COMMA.join(effects)])[0]}" if effects else ""
    return replace(statement, text=f"{cleared}{statement.text}{returning}; ")


def _counted(part: MessagePart, passed: Collection[int]) -> Statement:
    """Build a statement that fails unless it has exactly its number of rows, and saves their values."""
    statement = _with_passed_values(step_statement(part.plan), passed)
    columns = [f"c{at}" for at in range(len(statement.columns))]
    returning = "" if columns else " RETURNING true"
    numbered = isinstance(part.plan, InsertPlan) and part.plan.numbered
    # With several rows, their numbers stand in front of their columns.
    names = [*(["n"] if numbered else []), *(columns or ["c0"])]
    effects: list[Composable] = [
        SQL(
            f"CAST(CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) {part.rows:d} THEN 'true'"
            f" ELSE '{LEFT_OUT} {part.number:d}' END AS boolean)"
        )
    ]
    effects += [
        save_value(f"value_{slot:d}", SQL(f'pg_catalog.max(CAST("w"."{column}" AS text))'))
        for column, slot in zip(columns, part.slots, strict=True)
        if slot in passed
    ] if part.rows == 1 else []  # fmt: skip
    if part.returned:
        values = ", ".join(
            '"w"."n"' if name == "n" else f'CAST("w"."{name}" AS text)' for name in names
        )
        rows = f"CAST(pg_catalog.json_agg(pg_catalog.json_build_array({values})) AS text)"
        effects.append(save_value(f"rows_{part.number:d}", SQL(rows)))
    text, _, _ = render([aggregated(SQL(statement.text + returning), names, effects)])
    return replace(statement, text=text)


def _with_passed_values(statement: Statement, passed: Collection[int]) -> Statement:
    """Build a statement that reads passed values from their settings, in place of parameters."""
    if not any(bound.slot in passed for bound in statement.bounds):
        return statement

    def setting(_: int, bound: Bound) -> str | None:
        name = f"rowcast.value_{bound.slot:d}"
        return f"pg_catalog.current_setting('{name}')" if bound.slot in passed else None

    return statement.substituted(setting)
