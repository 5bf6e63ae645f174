"""
A statement: SQL text with placeholders, and the parameters to bind to them.

The text depends only on the shape of a call, never on its values: names are quoted identifiers, and each
value is a `Parameter` that says which value of the call is bound there. Statements are built from
templates with named placeholders; docs/statements.md shows the SQL that results.
"""

from __future__ import annotations

import re
import secrets
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.catalog import Type
from service.plan.plans import Bound, PlannedEmbed

SECRET = secrets.token_hex(16)
"""
Random part, chosen once per process, of the texts by which a statement fails on purpose.

Such a statement casts the text to boolean, and PostgreSQL quotes it in the error, whatever the language of
the message. Because of the random part, no value that a caller sends can cause the same error.
"""
MISSED = f"rowcast_missed_{SECRET}"
"""In the error of a statement that had to write a row and wrote none."""
Unseen = typing.Literal["", "late", "left out"]
UNSEEN = f"rowcast_unseen_{SECRET}"
"""In the error of an upsert that met a row that the caller may not see."""
LARGE = f"rowcast_large_{SECRET}"
"""In the error of a guarded statement that would return a large row."""

TRANSACTION = SQL("pg_catalog.pg_current_xact_id_if_assigned()")
"""The id of the top-level transaction; null while it has written nothing."""

EMPTY: Composable = SQL("")
COMMA, AND = SQL(", "), SQL(" AND ")
_PLACE = re.compile("%s|%%")  # "%%s" is a percent sign and an s, no placeholder


class Parameter(Composable):
    """A parameter, cast to its type unless its context determines that."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound


@dataclass(frozen=True)
class Mark(Composable):
    """
    A position in the SQL that comes from an argument of the call, for errors that point at it.

    It adds nothing to the text.

    Args:
        path: Path of the argument in the call.
        column: Column that the argument names.
        hint: Hint for the caller if PostgreSQL reports an error there.
        behind: Number of characters of the text behind the position.
        cast: Whether a cast is at the position.
    """

    path: str
    column: str
    hint: str | None = None
    behind: int = 0
    cast: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """
    SQL text, ready for a cursor, with its parameters in order.

    Args:
        text: SQL with a `%s` for each of `bounds`; a literal percent sign is doubled.
        bounds: The parameters, in the order of the text.
        name: Name in the log and the metrics, such as "actions.get".
        columns: Names of the columns that are part of the answer, embeds last.
        embeds: The embeds among these columns.
        writes: Whether running it a second time might change something.
        marks: Positions in the text that come from arguments of the call.
        receipt: Whether the column behind `columns` is the transaction's id.
        flagged: Whether the last column says of each row whether it is part of the answer.
        untyped: Whether its values are JSON texts, because the type of its rows is not known.
        numbered: Whether the last column is the number of each row, by which they are to be sorted.
        must_write: Whether it fails with `MISSED` if it writes no row.
        unseen: Why it may fail with `UNSEEN`, if it may. "late": the row that the upsert met was
            inserted after the statement began. "left out": so, or a view does not show the row.
        head: Number of characters of the statement that goes ahead in the same message.
        pure: Whether, by the catalog, it can leave no state in the session.
        scalar: Whether its one column, as JSON, is the answer for each row.
        backwards: Whether it returns its rows from the last to the first.
        keys: Places in a row of the values that its page may be bounded by: the sort keys as text, or integers.
        plain: Whether no column of its answer is a list or an object, so that the codec returns
            nothing that could not be sent as it is.
        settled: Whether the best plan is the same whatever the parameters are.
        types: Oids of the types of `columns`, if it is a settled write that returns at most one row of
            scalars and documents (JSON, hstore); else ().
        guarded: The same statement, but failing with `LARGE` if a row that it returns is large; None if
            the size of its values cannot be checked.
        many: The statement that runs it for each of several lists of values (`batched`), if several calls
            may share a run of it.
    """

    text: str
    bounds: tuple[Bound, ...]
    name: str
    columns: tuple[str, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    writes: bool = False
    marks: tuple[Mark, ...] = ()
    receipt: bool = False
    flagged: bool = False
    untyped: bool = False
    numbered: bool = False
    must_write: bool = False
    unseen: Unseen = ""
    head: int = 0
    pure: bool = False
    scalar: bool = False
    backwards: bool = False
    keys: tuple[int, ...] = ()
    plain: bool = False
    settled: bool = False
    types: tuple[int, ...] = ()
    guarded: Statement | None = None
    many: Statement | None = None

    def prefixed(self, sql: str) -> Statement:
        """Return the statement with SQL in front of the one that returns rows, behind `head`."""
        behind = len(self.text) - self.head
        marks = tuple(
            replace(mark, behind=mark.behind + len(sql)) if mark.behind > behind else mark
            for mark in self.marks
        )
        text = self.text[: self.head] + sql + self.text[self.head :]
        return replace(self, text=text, marks=marks, settled=False, types=(), many=None)

    def substituted(self, sql: Callable[[int, Bound], str | None]) -> Statement:
        """
        Return the statement with SQL in place of some parameters.

        Args:
            sql: Called with the position of each parameter among all, and the parameter; returns the
                SQL, or None to keep the parameter.
        """
        bounds, kept = iter(enumerate(self.bounds)), list[Bound]()
        longer: list[tuple[int, int]] = []

        def value(place: re.Match[str]) -> str:
            if place[0] == "%%":
                return place[0]
            at, bound = next(bounds)
            text = sql(at, bound)
            if text is None:
                kept.append(bound)
                return place[0]
            # A parameter without a cast takes its type from its context; an expression does not.
            if not bound.cast:
                text = f"CAST({text} AS {doubled(bound.type.sql)})"
            longer.append((len(self.text) - place.start(), len(text) - len(place[0])))
            return text

        text = _PLACE.sub(value, self.text)
        marks = tuple(
            replace(
                mark, behind=mark.behind + sum(more for at, more in longer if at <= mark.behind)
            )
            for mark in self.marks
        )
        bare = replace(self, settled=False, types=(), guarded=None, many=None)
        return replace(bare, text=text, bounds=tuple(kept), marks=marks)

    def followed(self, sql: str) -> Statement:
        """Return the statement with SQL behind it."""
        marks = tuple(replace(mark, behind=mark.behind + len(sql)) for mark in self.marks)
        return replace(self, text=self.text + sql, marks=marks)

    def parts(self) -> list[Statement]:
        """Return the one or two statements that it consists of, to send them in separate messages."""
        if not self.head:
            return [self]
        ahead, behind = self.text[: self.head], self.text[self.head :]
        # "%%s" is a percent sign and an s.
        taken = ahead.replace("%%", "").count("%s")
        return [
            replace(self, text=ahead, bounds=self.bounds[:taken], head=0, marks=()),
            replace(
                self,
                text=behind,
                bounds=self.bounds[taken:],
                head=0,
                marks=tuple(mark for mark in self.marks if mark.behind <= len(behind)),
            ),
        ]


def build_statement(
    name: str, statement: Composable, ahead: Composable = EMPTY, **rest: Any
) -> Statement:
    """
    Build a statement from its SQL.

    Args:
        name: Name in the log and the metrics.
        statement: SQL of the statement that returns rows.
        ahead: SQL of a statement that goes ahead in the same message, if any.
        rest: Further fields of `Statement`.
    """
    head = len(render([ahead])[0])
    text, bounds, marks = render([ahead, statement])
    return Statement(text, bounds, name, marks=marks, head=head, **rest)


def render(statement: Iterable[Composable]) -> tuple[str, tuple[Bound, ...], tuple[Mark, ...]]:
    """
    Return the text of a statement, its parameters and its marks.

    Unlike `Composed.as_string` this needs no connection, so a plan is rendered once, in the reactor
    thread. In UTF-8 an identifier is quoted by doubling its double quotes (libpq's PQescapeIdentifier
    does no more), and a string constant by doubling its quotes, because `standard_conforming_strings`
    is on in every session. Percent signs in names are doubled too, which psycopg2 does not do.
    """
    text: list[str] = []
    bounds: list[Bound] = []
    marks: list[tuple[int, Mark]] = []

    def add(parts: Iterable[Composable]) -> None:
        for part in parts:
            if type(part) is SQL:
                text.append(part.string)
            elif type(part) is Composed:
                add(part)
            elif type(part) is Identifier:
                text.append(doubled(".".join(map(quoted, part.strings))))
            elif type(part) is Parameter:
                bound = part.bound
                text.append(f"CAST(%s AS {doubled(bound.type.sql)})" if bound.cast else "%s")
                bounds.append(bound)
            elif type(part) is Mark:
                marks.append((len(text), part))
            elif type(part) is Literal:
                text.append("'" + doubled(part.wrapped.replace("'", "''")) + "'")
            else:
                raise TypeError(f"not a part of a statement: {part!r}")

    add(statement)
    behind = [0, *accumulate(len(each) for each in reversed(text))][::-1] if marks else []
    placed = tuple(replace(mark, behind=behind[at]) for at, mark in marks)
    return "".join(text), tuple(bounds), placed


def catalog_sql(text: str) -> SQL:
    """Build SQL from text that PostgreSQL itself has formatted, such as the name of a type."""
    return SQL(doubled(text))


def doubled(text: str) -> str:
    """Return SQL text with its percent signs doubled, as psycopg2 needs it if there are parameters."""
    return text.replace("%", "%%")


def quoted(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def batched(statement: Statement, texts: Type) -> Statement:
    """
    Build the statement that runs a query once for each of several sets of parameters.

    Behind the query's columns it returns the number of the set, counted from 1. Each of its parameters is
    an array: the values of one parameter of the query, as PostgreSQL's text.

    Args:
        statement: A query that has parameters.
        texts: The type text[].
    """
    inner = statement.substituted(lambda at, _: f'given."p{at}"').text
    places = range(len(statement.bounds))
    lists = ", ".join("pg_catalog.unnest(CAST(%s AS text[]))" for _ in places)
    names = ", ".join(f'"p{at}"' for at in places)
    text = (
        f'SELECT found.*, given."n" FROM ROWS FROM ({lists}) WITH ORDINALITY AS given({names}, "n")'
        f" CROSS JOIN LATERAL ({inner}) AS found"
    )
    return replace(
        statement,
        text=text,
        bounds=tuple(Bound(at, texts, "", raw=True) for at in places),
        marks=(),
    )
