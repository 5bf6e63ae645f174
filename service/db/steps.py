"""
Functions of the pool threads that write nested new rows in steps, each of which uses values of others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg2

from service.catalog import Type
from service.db.blame import UPDATE, GivenRow, assigned_row, note_rows
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.statements import Shape, execute
from service.db.writes import Written, write_txn
from service.errors import InvalidArgument, NotChanged, NotFound
from service.plan.tree import PENDING, LinkedKey, LinkedRow, NewRows, TreeStep
from service.sql.statement import Statement
from service.sql.step_sql import LEFT_OUT

Row = Sequence[Any]
_LEFT_OUT = re.compile(rf"{LEFT_OUT} (\d+)")


@dataclass(frozen=True, slots=True)
class Message:
    """
    Statements of steps that are sent in one message.

    Args:
        steps: The steps.
        statement: All their statements; that of a single step returns its rows directly.
        returned: Numbers of the steps whose values are returned as JSON, with the types of the values; a
            value whose type is None stays text. None for a single step.
    """

    steps: tuple[TreeStep, ...]
    statement: Statement
    returned: tuple[tuple[int, tuple[Type | None, ...]], ...] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """
    The messages of a call, and the statement that reads its answer.

    Args:
        messages: The messages, in their order.
        answer: The last message, whose last statement returns the rows of the call; None if the call
            returns no rows.
        root: The step whose statement that is, if the rows are not read again.
        written: If they are read again, the slots of each row's key as text.
        slot: Slot of the list of these keys.
        tree: All steps of the call.
        before: Steps that were sent before.
    """

    messages: Sequence[Message]
    answer: Message | None = None
    root: NewRows | None = None
    written: Sequence[Sequence[int]] = ()
    slot: int = 0
    tree: Sequence[TreeStep] = ()
    before: Sequence[TreeStep] = ()


def steps_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Message],
    values: Sequence[Any],
    before: Sequence[TreeStep],
) -> list[Any]:
    """
    Write the rows of one message, behind the steps `before`; return the values with the returned ones.

    This raises the errors of `nested_txn`, except those of the answer.
    """
    return _write_messages(connection, codec, [make()], values, before)


def nested_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Work],
    values: Sequence[Any],
    written: int,
    shape: Shape | None,
) -> Written:
    """
    Write nested new rows, in a transaction that is rolled back after an error.

    Args:
        connection: The connection to write through.
        codec: Encodes the parameters, and decodes the rows.
        make: Returns the messages.
        values: The values of the call.
        written: Number of rows that the call writes.
        shape: The form of the rows, and their maximum size; None to return no rows.

    Raises:
        NotFound: A row that is linked does not exist.
        NotChanged: The database has left out a row.
        InvalidArgument: A row would not be related as the call has it.
        psycopg2.Error: With a note of the rows that may have caused it.
        NoRowWritten, TooLarge: As `write_txn`.
    """
    work = make()
    known = _write_messages(connection, codec, work.messages, values, work.before)
    answer, exactly = work.answer, 0
    if answer is None:
        return Written([], written, ())
    _refuse_unrelated(answer.steps, known)
    if work.root is not None:
        _refuse_unrelated([work.root], known)
        # With a rule, the row count of several rows may be that of other rows.
        several = len(work.root.rows) > 1 and work.root.relation.has_rules
        exactly = 0 if several else len(work.root.rows)
    if work.written:
        known[work.slot] = [[known[slot] for slot in row] for row in work.written]
    last = [work.root] if work.root is not None else []
    statement = answer.statement
    sent = [*work.before]
    sent += [step for message in (*work.messages, answer) for step in message.steps]
    with _rows_noted_on_error(sent, [*answer.steps, *last], known, work.tree):
        found = write_txn(connection, codec, lambda: statement, known, None, shape, exactly)
    return Written(found.rows, written, found.columns, found.tx)


def _write_messages(
    connection: PgConnection,
    codec: Codec,
    messages: Sequence[Message],
    values: Sequence[Any],
    before: Sequence[TreeStep],
) -> list[Any]:
    """Write the rows of messages; return the values with those that the messages returned."""
    known, sent = list(values), [*before]
    for message in messages:
        sent += message.steps
        _refuse_unrelated(message.steps, known)
        with _rows_noted_on_error(sent, message.steps, known):
            cursor = execute(connection, codec, message.statement, known)
        if message.returned is None:
            (step,) = message.steps
            if cursor.rowcount != (len(step.rows) if isinstance(step, NewRows) else 1):
                raise _missing_error(step)
            if not isinstance(step, LinkedRow) and any(step.slots):
                _keep(step, cursor.fetchall(), known)
        elif message.returned:
            for (number, types), text in zip(message.returned, cursor.fetchone(), strict=True):
                _keep(message.steps[number], _read(codec, types, text), known)
    return known


@contextmanager
def _rows_noted_on_error(
    sent: Sequence[TreeStep],
    steps: Sequence[TreeStep],
    values: Sequence[Any],
    tree: Sequence[TreeStep] = (),
) -> Iterator[None]:
    """
    Note on an error of a message, sent in the body, which rows may have caused it.

    Args:
        sent: Steps of the call so far; the number of a statement is an index.
        steps: Steps of the message.
        values: The values of the call that are known.
        tree: Steps before the message, which may violate a deferred constraint.
    """
    try:
        yield
    except psycopg2.Error as error:
        found = _LEFT_OUT.search(str(error)) if error.pgcode == "22P02" else None
        if found is not None:
            raise _missing_error(sent[int(found[1])]) from error
        note_rows(error, _rows_of(steps, values), _rows_of(tree, values))
        raise


def _rows_of(steps: Iterable[TreeStep], values: Sequence[Any]) -> Iterator[GivenRow]:
    """Yield the rows that steps write."""
    for step in steps:
        if isinstance(step, NewRows):
            for path, row in zip(step.paths, step.rows, strict=True):
                yield assigned_row(step.relation, path, row, values)
        elif isinstance(step, LinkedRow):
            yield assigned_row(step.relation, step.path, step.changes, values, UPDATE)


def _read(codec: Codec, types: Sequence[Type | None], text: str) -> list[Row]:
    """Decode rows that were returned as JSON of texts; their numbers, if any, stand first."""
    return [
        [
            *row[: len(row) - len(types)],
            *(
                value if type is None else codec.read(type, value)
                for type, value in zip(types, row[len(row) - len(types) :], strict=True)
            ),
        ]
        for row in json.loads(text)
    ]


def _keep(step: TreeStep, rows: Sequence[Row], values: list[Any]) -> None:
    """Store the returned values of rows in their slots; each of several rows begins with its number."""
    slots: Sequence[Sequence[int]]
    if isinstance(step, LinkedRow):
        return
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


def _refuse_unrelated(steps: Sequence[TreeStep], values: Sequence[Any]) -> None:
    for step in steps:
        if not isinstance(step, LinkedKey):
            refuse_unrelated(step, values)


def refuse_unrelated(step: NewRows | LinkedRow, values: Sequence[Any]) -> None:
    """
    Refuse rows that would not be related as the call has them.

    Raises:
        InvalidArgument: A referenced value is null; or two relationships of a row set one column to
            different values; or a link would change the primary key of the linked row.
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
    for one, other, path in step.equal_slots:
        # As text, because a caller may send a number as a string.
        if str(values[one]) != str(values[other]):
            raise InvalidArgument(
                "this row and another one that stands beside it, or around it, set the same column"
                " to different values"
                if isinstance(step, NewRows)
                else "the link would change the primary key of this row, by which others know it",
                path=path,
            )


def _refuse_second_parent(step: LinkedKey, key: Row, values: list[Any]) -> None:
    """Refuse to link a row to a second parent."""
    if not step.parent:
        return
    if values[step.parents] is PENDING:
        values[step.parents] = {}
    # As text, because a key may contain lists, which are not hashable.
    if values[step.parents].setdefault(str(key), step.parent) != step.parent:
        raise InvalidArgument(
            "the same row is linked to another new row, too, and refers to one alone",
            path=step.path,
        )


def _missing_error(step: TreeStep) -> NotFound | NotChanged:
    if isinstance(step, NewRows):
        found: NotFound | NotChanged = NotChanged(step.relation.name)
        paths = set(step.paths)
    else:
        found, paths = NotFound(step.relation.name), {f"{step.path}.$link"}
    if len(paths) == 1:
        found.details["path"] = paths.pop()
    return found
