"""
Functions of the pool threads that write, or call database functions that may write.

Each takes a connection first, touches nothing but the database, and may run again. Nested new rows are
written in steps, each of which uses values of others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import psycopg2

from service.catalog import Type
from service.db.codec import Codec
from service.db.connection import PgConnection
from service.db.error_paths import UPDATE, GivenRow, assigned_row, note_rows
from service.db.statements import (
    Page,
    Row,
    Shape,
    answered_columns,
    execute,
    page_txn,
    several_rows,
    shaped,
)
from service.errors import (
    Conflict,
    InvalidArgument,
    NotChanged,
    NotFound,
    TooManyRows,
    TooManyToSend,
    counted,
)
from service.payload import fit
from service.plan.nested_rows import PENDING, LinkedKey, LinkedRow, NewRows, TreeStep
from service.sql.statement import LARGE, MISSED, TRANSACTION, UNSEEN, Statement
from service.sql.step_sql import LEFT_OUT

SETTLE = "SET CONSTRAINTS ALL IMMEDIATE; "
"""Runs deferred triggers now rather than at COMMIT, so that their effects can be read."""


class NoRowWritten(Exception):
    """A row that had to be written was not; the transaction must not commit."""


class LargeRow(Exception):
    """A guarded statement would have returned a large row; it has failed, and written nothing."""


class RowUnseen(Conflict):
    """An upsert met a row inserted after it began, or one that a view does not show."""

    pgcode = "40001"


@dataclass(frozen=True, slots=True)
class Written:
    """
    The result of a write.

    Args:
        rows: The rows that it returned, in the form of the answer.
        affected: Number of rows written.
        columns: Names of the columns of `rows`.
        tx: Id of the transaction, if the statement returns it and something was written.
    """

    rows: list[Any]
    affected: int
    columns: tuple[str, ...]
    tx: str | None = None


def write_txn(
    connection: PgConnection,
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    max_affected: int | None,
    shape: Shape | None,
    exactly: int = 0,
    last: bool = False,
) -> Written:
    """
    Write rows.

    Args:
        connection: The connection to write through.
        codec: Encodes the parameters, and decodes the rows.
        make: Returns the statement; called in the pool thread, as building one for thousands of rows
            takes time.
        values: The values of the call.
        max_affected: Maximum number of rows that may be written.
        shape: The form of the rows, and their maximum size; None to return no rows.
        exactly: Number of rows that have to be written; 0 if it is not known.
        last: Whether the transaction ends with this statement.

    Raises:
        NoRowWritten: Too few rows were written; the transaction must not commit.
        TooManyRows: More than `max_affected`, or than `exactly`; the transaction must not commit.
        TooLarge: The rows exceed `shape.max_bytes`; a transaction must not commit.
        RowUnseen: An upsert has met a row for which its condition cannot be evaluated.
        LargeRow: The statement is guarded, and a row that it would return is large.
    """
    statement = make()
    if last and statement.head:
        statement = statement.prefixed(SETTLE)
    try:
        cursor = execute(connection, codec, statement, values)
    except psycopg2.Error as error:
        # Recognized by the text that failed to be cast: it is quoted in every language of the message.
        if statement.must_write and error.pgcode == "22P02" and MISSED in str(error):
            raise NoRowWritten from error
        if error.pgcode == "22P02" and LARGE in str(error):
            raise LargeRow from error
        if statement.unseen and error.pgcode == "22P02" and UNSEEN in str(error):
            late = statement.unseen == "late"
            said = "a row with this key has come meanwhile"
            said += "" if late else ", or is none of those that are shown"
            # A retry helps only for a row inserted meanwhile, which a new statement does see.
            raise RowUnseen(said, path="where", retry=(late and not last) or None) from error
        raise
    # Of several statements in one message, psycopg2 returns the result of the last.
    affected = max(cursor.rowcount, 0)  # -1 for CALL
    _check(affected, exactly, max_affected)
    if shape is None and not statement.receipt:
        return Written([], affected, ())
    # A RETURNING without columns is left out, but the answer still has a row for each.
    read = statement.columns or statement.flagged or statement.receipt
    rows: list[Row] = cursor.fetchall() if read else [()] * affected
    tx = rows[0][len(statement.columns)] if statement.receipt and rows else None
    if shape is None:
        return Written([], affected, (), tx)
    if statement.numbered:
        rows.sort(key=itemgetter(-1))
    if statement.flagged:
        rows = [row for row in rows if row[-1]]
    found, columns = shaped(rows, statement, codec, shape), answered_columns(statement)
    fit([found, columns], shape.max_bytes)
    return Written(found, affected, columns, tx)


def or_missing_txn(
    connection: PgConnection,
    missing: Callable[[PgConnection], Exception],
    function: Callable[..., Any],
    *args: Any,
) -> Any:
    """Run a function; if it writes no row, raise the reason, which is looked up before other jobs run."""
    try:
        return function(connection, *args)
    except NoRowWritten:
        raise missing(connection) from None


def write_rows_txn(
    connection: PgConnection,
    given: Callable[[Sequence[Any]], Iterable[GivenRow]],
    codec: Codec,
    make: Callable[[], Statement],
    values: Sequence[Any],
    *more: Any,
) -> Written:
    """
    Write rows as `write_txn` does, and note on an error the rows that `given` returns for the values.

    Raises:
        psycopg2.Error: With a note of the rows that may have caused it.
    """
    try:
        return write_txn(connection, codec, make, values, *more)
    except psycopg2.Error as error:
        note_rows(error, given(values))
        raise


def _check(affected: int, exactly: int, max_affected: int | None) -> None:
    if affected < exactly:
        raise NoRowWritten
    if exactly and affected > exactly:
        raise several_rows(affected, exactly)
    if max_affected is not None and affected > max_affected:
        raise too_many_rows(affected, max_affected)


def transaction_txn(connection: PgConnection) -> str | None:
    """Return the id of the open transaction; None if it has written nothing yet."""
    found: str | None = connection.ask(f"SELECT {TRANSACTION.string}")[0]
    return found


def receipted_txn(
    connection: PgConnection, function: Callable[..., Any], *args: Any
) -> tuple[Any, str | None]:
    """Run a function in the open transaction; return the transaction's id beside its result."""
    return function(connection, *args), transaction_txn(connection)


def fitting_txn(
    connection: PgConnection, max_bytes: int, function: Callable[..., Any], *args: Any
) -> Any:
    """
    Run a function that may write, in a transaction that is rolled back after an error.

    Raises:
        TooLarge: The rows that it returns exceed `max_bytes`.
    """
    result = function(connection, *args)
    page = result[0] if isinstance(result, tuple) else result
    fit(getattr(page, "rows", page), max_bytes)
    return result


def too_many_rows(rows: int, most: int) -> TooManyRows:
    """Return the error of a write of more rows than `max_affected`."""
    return TooManyRows(
        f"this would write {counted(rows, 'row')}, and max_affected is {most}",
        hint="nothing was written",
    )


COUNTED = "rowcast_counted"
DECLARE = f"DECLARE {COUNTED} NO SCROLL CURSOR FOR "
MOST = 2**31 - 1
"""Maximum number of rows of one MOVE: its grammar takes an integer of 32 bits."""


def call_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    limit: int,
    max_affected: int | None,
    shape: Shape,
    verbs: bool,
) -> list[Any]:
    """
    Call a database function and return its rows in the form of the answer.

    Args:
        connection: The connection, in a transaction that is rolled back after an error.
        codec: Encodes the parameters, and decodes the rows.
        statement: The call's statement.
        values: The values of the call.
        limit: Maximum number of rows of an answer.
        max_affected: Maximum number of rows that the caller expects.
        shape: The form of the rows, and their maximum size.
        verbs: Whether the function's rows can be read with `find` and other verbs, for the hint.

    Raises:
        TooManyRows: There are more rows than `max_affected`.
        TooManyToSend: There are more rows than `limit`.
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    page = page_txn(connection, codec, statement, values, limit, shape)
    if max_affected is not None and len(page.rows) > max_affected:
        raise too_many_rows(len(page.rows) + page.more, max_affected)
    if page.more:
        raise TooManyToSend(statement.name.removeprefix("fn."), limit, verbs)
    if statement.untyped:
        return [{name: codec.record(text) for name, text in row.items()} for row in page.rows]
    return page.rows


def counted_txn(
    connection: PgConnection,
    codec: Codec,
    statement: Statement,
    values: Sequence[Any],
    offset: int,
    limit: int,
    shape: Shape,
) -> tuple[Page, int]:
    """
    Read a page of a query that must run only once; return it with the number of all rows.

    A cursor moves over the other rows on the server, and only the page is fetched.

    Args:
        connection: The connection, in a transaction that is rolled back after an error.
        codec: Encodes the parameters, and decodes the rows.
        statement: Returns all rows, without a limit.
        values: The values of the call.
        offset: Number of rows before the page.
        limit: Maximum number of rows of the page.
        shape: The form of the rows, and their maximum size.

    Raises:
        TooLarge: The rows exceed `shape.max_bytes`.
    """
    cursor = execute(connection, codec, statement.prefixed(DECLARE), values)
    before = _move(cursor, f"FORWARD {min(offset, MOST):d}") if offset else 0
    rows: list[Any] = []
    if before == offset and limit:  # FETCH FORWARD 0 would fetch the current row again
        cursor.execute(f"FETCH FORWARD {limit:d} FROM {COUNTED}")
        rows = cursor.fetchall()
    page = Page(shaped(rows, statement, codec, shape))
    behind = _move(cursor, "FORWARD ALL")
    cursor.execute(f"CLOSE {COUNTED}")
    return replace(page, more=behind > 0), before + len(rows) + behind


def _move(cursor: Any, rows: str) -> int:
    """Move the cursor over rows, and return how many there were."""
    cursor.execute(f"MOVE {rows} FROM {COUNTED}")
    passed: int = cursor.rowcount
    return passed


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
            if cursor.rowcount != len(step.filled):
                raise _missing_error(step)
            if any(step.filled):
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


def _read(codec: Codec, types: Sequence[Type | None], text: str) -> list[Sequence[Any]]:
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


def _keep(step: TreeStep, rows: Sequence[Sequence[Any]], values: list[Any]) -> None:
    """Store the returned values of rows in their slots; each of several rows begins with its number."""
    if isinstance(step, LinkedKey):
        _refuse_second_parent(step, rows[0], values)
    slots = step.filled
    if len(slots) > 1:
        slots = tuple(slots[row[0]] for row in rows)
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


def _refuse_second_parent(step: LinkedKey, key: Sequence[Any], values: list[Any]) -> None:
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
