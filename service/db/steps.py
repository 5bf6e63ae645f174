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
from service.plan.tree import LinkedKey, LinkedRow, NewRows, TreeStep
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
    """

    steps: Sequence[tuple[TreeStep, Statement]]
    last: NewRows | None = None
    answer: Statement | None = None
    written: Sequence[Sequence[int]] = ()
    slot: int = 0


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
        InvalidArgument: Two relationships of a row set one column to different values.
        psycopg2.Error: With a note of the rows that it may speak of.
    """
    known = list(values)
    for step, statement in steps:
        if isinstance(step, NewRows):
            _agree(step, known)
        try:
            cursor = execute(connection, codec, statement, known)
        except psycopg2.Error as error:
            note_step(error, step, known)
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
        found = write_txn(connection, codec, lambda: answer, known, None, shape)
    else:
        _agree(work.last, known)
        try:
            found = write_txn(connection, codec, lambda: answer, known, None, shape, one, last)
        except psycopg2.Error as error:
            note_step(error, work.last, known)
            raise
    return Written(found.rows, written, found.columns, found.tx)


def note_step(error: psycopg2.Error, step: TreeStep, values: Sequence[Any]) -> None:
    """Note on an error which rows a step was to write."""
    if isinstance(step, NewRows):
        note_rows(error, step.relation, zip(step.paths, step.rows, strict=True), values)
    elif isinstance(step, LinkedRow):
        note_rows(error, step.relation, [(step.path, step.changes)], values)


def _keep(step: NewRows | LinkedKey, rows: Sequence[Row], values: list[Any]) -> None:
    """Put what came back of rows into its slots; several rows begin with their numbers."""
    if isinstance(step, LinkedKey):
        rows, slots = [rows[0]], [step.slots]
    elif len(step.rows) == 1:
        slots = [step.slots[0]]
    else:
        slots = [step.slots[row[0]] for row in rows]
        rows = [row[1:] for row in rows]
    for row, places in zip(rows, slots, strict=True):
        for value, slot in zip(row, places, strict=True):
            values[slot] = value


def _agree(step: NewRows, values: Sequence[Any]) -> None:
    """Refuse a row of which two relationships set one column to different values."""
    for one, other, path in step.alike:
        # one may be a caller's, who can write a number as a string
        if str(values[one]) != str(values[other]):
            raise InvalidArgument(
                "this row and another one that stands beside it, or around it, set the same column"
                " to different values",
                path=path,
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
