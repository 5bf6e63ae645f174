"""
What runs in a pool thread to write nested new rows: steps, each of which uses what came of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2

from service.db.blame import note_rows
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.statements import Shape, execute
from service.db.writes import SETTLE, Written, write_txn
from service.errors import InvalidArgument, NotChanged, NotFound
from service.plan.tree import PENDING, LinkedKey, LinkedRow, NewRows, TreeStep
from service.request.requests import Assignment
from service.sql.statement import Statement

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """
    Steps with their statements, and what answers the rows of the call.

    Args:
        steps: In their order.
        last: The step that is answered itself, if that is one.
        answer: Its statement, or one that reads the rows of the call again; None if nothing does.
        written: Slots of their keys as text, for each, if they are read again.
        slot: Where all of those go.
        tree: All steps of the call, those before among them.
    """

    steps: Sequence[tuple[TreeStep, Statement]]
    last: NewRows | None = None
    answer: Statement | None = None
    written: Sequence[Sequence[int]] = ()
    slot: int = 0
    tree: Sequence[TreeStep] = ()


def steps_txn(
    connection: PgConnection,
    codec: Codec,
    steps: Sequence[tuple[TreeStep, Statement]],
    values: Sequence[Any],
) -> list[Any]:
    """
    Write the rows of steps; return the values with what came back of them.

    Raises:
        NotFound: A row that is linked is not there.
        NotChanged: The database left out a row.
        InvalidArgument: A row would not be related as it stands in the call.
        psycopg2.Error: With a note of the rows that it may speak of.
    """
    known = list(values)
    for step, statement in steps:
        if not isinstance(step, LinkedKey):
            refuse_unrelated(step, known)
        try:
            cursor = execute(connection, codec, statement, known)
        except psycopg2.Error as error:
            _note_steps(error, [step], known)
            raise
        wanted = len(step.rows) if isinstance(step, NewRows) else 1
        if cursor.rowcount != wanted:
            raise _left_out(step)
        if not isinstance(step, LinkedRow) and any(step.slots):
            _keep(step, cursor.fetchall(), known)
    return known


def nested_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Work],
    values: Sequence[Any],
    written: int,
    shape: Shape | None,
    one: bool,
    last: bool,
) -> Written:
    """
    Write nested new rows, in a transaction that does not survive an error.

    Args:
        connection: To write them through.
        codec: For the values, both ways.
        make: Returns the statements.
        values: Of the call.
        written: How many rows all of it writes.
        shape: Of the answer; None to read nothing back.
        one: Whether the call is for one row with what is nested in it.
        last: Whether the transaction ends with it.

    Raises:
        NoRowWritten, TooLarge, and what `steps_txn` does: the transaction must not commit.
    """
    work = make()
    return answer_txn(
        connection,
        codec,
        work,
        steps_txn(connection, codec, work.steps, values),
        written,
        shape,
        one,
        last,
    )


def answer_txn(
    connection: PgConnection,
    codec: Codec,
    work: Work,
    values: Sequence[Any],
    written: int,
    shape: Shape | None,
    one: bool,
    last: bool,
) -> Written:
    """Answer the rows of the call behind its steps; the arguments are those of `nested_txn`."""
    answer = work.answer
    if answer is None:
        return Written([], written, ())
    known = list(values)
    if work.last is None:
        known[work.slot] = [[known[slot] for slot in row] for row in work.written]
        if last:
            answer = answer.prefixed(SETTLE)
        exactly, ends = 0, False
    else:
        refuse_unrelated(work.last, known)
        exactly, ends = int(one), last
    try:
        found = write_txn(connection, codec, lambda: answer, known, None, shape, exactly, ends)
    except psycopg2.Error as error:
        _note_steps(error, _steps_of(error, work), known)
        raise
    return Written(found.rows, written, found.columns, found.tx)


def _steps_of(error: psycopg2.Error, work: Work) -> Sequence[TreeStep]:
    """Return the steps that an error at the end can speak of."""
    home = error.diag.schema_name, error.diag.table_name
    last = [work.last] if work.last is not None else []
    if any((step.relation.schema, step.relation.name) == home for step in last):
        return last
    # A constraint that is deferred is checked behind all steps.
    return [
        step for step in work.tree if (step.relation.schema, step.relation.name) == home
    ] or last


def _note_steps(error: psycopg2.Error, steps: Sequence[TreeStep], values: Sequence[Any]) -> None:
    """Note on an error which rows some steps of one relation were to write."""
    rows: list[tuple[str, Sequence[Assignment]]] = []
    for step in steps:
        if isinstance(step, NewRows):
            rows += zip(step.paths, step.rows, strict=True)
        elif isinstance(step, LinkedRow):
            rows.append((step.path, step.related))
    if rows:
        note_rows(error, steps[0].relation, rows, values)


def _keep(step: NewRows | LinkedKey, rows: Sequence[Row], values: list[Any]) -> None:
    """Put what came back of rows into its slots; several rows begin with their numbers."""
    if isinstance(step, LinkedKey):
        _refuse_second_parent(step, rows[0], values)
        slots = [step.slots]
    elif len(step.rows) == 1:
        slots = [step.slots[0]]
    else:
        slots = [step.slots[row[0]] for row in rows]
        rows = [row[1:] for row in rows]
    for row, places in zip(rows, slots, strict=True):
        for value, slot in zip(row, places, strict=True):
            values[slot] = value


def refuse_unrelated(step: NewRows | LinkedRow, values: Sequence[Any]) -> None:
    """
    Refuse rows that would not be related as they stand in the call.

    Raises:
        InvalidArgument: What a relationship goes by is null; two relationships of a row set one
            column to different values, or one of them the primary key of a row that is linked.
    """
    for each in step.related:
        assert each.operand is not None
        if values[each.operand.slot] is None:
            raise InvalidArgument(
                f'"{each.column}" would take a null from the row that it is to refer to, so that'
                " the rows were not related",
                path=each.path,
                column=each.column,
            )
    for one, other, path in step.alike:
        # one may be a caller's, who can write a number as a string
        if str(values[one]) != str(values[other]):
            raise InvalidArgument(
                "this row and another one that stands beside it, or around it, set the same column"
                " to different values"
                if isinstance(step, NewRows)
                else "the link would change the primary key of this row, by which others know it",
                path=path,
            )


def _refuse_second_parent(step: LinkedKey, key: Row, values: list[Any]) -> None:
    """Refuse to link a row to a parent that shall refer to another one, too."""
    if not step.parent:
        return
    if values[step.parents] is PENDING:
        values[step.parents] = {}
    # as text: keys may be lists
    if values[step.parents].setdefault(str(key), step.parent) != step.parent:
        raise InvalidArgument(
            "the same row is linked to another new row, too, and refers to one alone",
            path=step.path,
        )


def _left_out(step: TreeStep) -> NotFound | NotChanged:
    if isinstance(step, NewRows):
        found: NotFound | NotChanged = NotChanged(step.relation.name)
        paths = set(step.paths)
    else:
        found, paths = NotFound(step.relation.name), {f"{step.path}.$link"}
    if len(paths) == 1:
        found.details["path"] = paths.pop()
    return found
