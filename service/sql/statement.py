"""
A statement: SQL text with placeholders, and what is to be bound to them.

The text depends on the shape of a call alone, never on its values: names stand in it as
identifiers, and each value is a `Parameter` that says which of the call's values goes there.
Statements are templates with named holes; docs/statements.md shows what they come to.
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
from service.plan.conditions import Bound
from service.plan.plans import PlannedEmbed

SECRET = secrets.token_hex(16)
"""
Of this process, in each text by which an error is known for one that a statement raises itself.

Errors quote values, in the words of any language: no caller can send one that reads like such a text.
"""
MISSED = f"rowcast_missed_{SECRET}"
"""What an error speaks of where a statement had to write a row and wrote none."""
Unseen = typing.Literal["", "late", "left out"]
UNSEEN = f"rowcast_unseen_{SECRET}"
"""What an error speaks of where an upsert met a row that it does not see."""
LARGE = f"rowcast_large_{SECRET}"
"""What an error speaks of where a row that was written is large."""

TRANSACTION = SQL("pg_catalog.pg_current_xact_id_if_assigned()")
"""The id of the transaction, that of a savepoint's too; null while it has written nothing."""

EMPTY: Composable = SQL("")
COMMA, AND = SQL(", "), SQL(" AND ")
_PLACE = re.compile("%s|%%")  # the latter is a percent sign, whatever follows it


class Parameter(Composable):
    """A parameter, cast to its type where the place does not give that."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound


@dataclass(frozen=True)
class Mark(Composable):
    """
    A place in the SQL where something that the caller wrote stands, for errors that point at it.

    It adds nothing to the text.

    Args:
        path: Of that in the call.
        column: Of what it speaks.
        hint: What may help where it does not fit.
        behind: How many characters of the text follow the place.
        cast: Whether it is a cast.
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
        text: With a `%s` for each of `bounds`; a literal percent sign is doubled.
        bounds: What is bound, in the order of the text.
        name: What it is for, as the log and the metrics call it: "actions.get".
        columns: The names of the columns that it returns, embeds last.
        embeds: What the embedded rows are made of.
        writes: False if running it twice does no harm.
        marks: Places in the text.
        receipt: Whether the column behind those is the transaction's id.
        flagged: Whether a last column says of each row whether it is answered.
        untyped: Whether its values are JSON, as text, of rows of no known type.
        numbered: Whether a last column has the number of each row, by which they are in order.
        must_write: Whether it fails, by `MISSED`, where it would write no row.
        unseen: Why it may fail, by `UNSEEN`, if it may: the row that it met has come since it began, or
            is perhaps one that a view leaves out.
        head: How many characters of the text are of another statement, which goes ahead.
        pure: Whether it is certain to leave nothing behind in the session, by the catalog.
        scalar: Whether its one column, as JSON, is what is answered for each row.
        backwards: Whether its rows come from the last to the first.
        plain: Whether all that it answers are values without others inside, of which the codec makes
            nothing that a client could not be sent.
        settled: Whether PostgreSQL would run it in the same way whatever its values are.
        guarded: The same, but it fails, by `LARGE`, where a row that it returns is large; None where that
            is not known of each of its values.
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
    plain: bool = False
    settled: bool = False
    guarded: Statement | None = None

    def prefixed(self, words: str) -> Statement:
        """Return the statement with SQL before the one, or the second one, that returns rows."""
        behind = len(self.text) - self.head
        marks = tuple(
            replace(mark, behind=mark.behind + len(words)) if mark.behind > behind else mark
            for mark in self.marks
        )
        text = self.text[: self.head] + words + self.text[self.head :]
        return replace(self, text=text, marks=marks, settled=False)

    def substituted(self, sql: Callable[[int, Bound], str | None]) -> Statement:
        """
        Return the statement with SQL in place of parameters.

        Args:
            sql: Returns it for a parameter, which it is given with its place among all; None leaves it.
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
            # where the statement itself has no cast, the place gave the type
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
        bare = replace(self, settled=False, guarded=None)
        return replace(bare, text=text, bounds=tuple(kept), marks=marks)

    def followed(self, words: str) -> Statement:
        """Return the statement with SQL behind it."""
        marks = tuple(replace(mark, behind=mark.behind + len(words)) for mark in self.marks)
        return replace(self, text=self.text + words, marks=marks)

    def parts(self) -> list[Statement]:
        """Return the statements that it is made of, for where they cannot share a message."""
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
        name: What it is for.
        statement: Its SQL.
        ahead: Of another statement, which goes ahead in the same message, if there is one.
        rest: As of a `Statement`.
    """
    head = len(render([ahead])[0])
    text, bounds, marks = render([ahead, statement])
    return Statement(text, bounds, name, marks=marks, head=head, **rest)


def render(statement: Iterable[Composable]) -> tuple[str, tuple[Bound, ...], tuple[Mark, ...]]:
    """
    Return the text of the parts of a statement, its parameters and its marks.

    Needs no connection, unlike `Composed.as_string`, so that a plan is rendered once, in
    the reactor thread: in UTF-8 an identifier is quoted by doubling its double quotes
    (libpq's PQescapeIdentifier does no more), and a string constant by doubling its quotes, as
    `standard_conforming_strings` is on in every session. Percent signs in names are doubled
    too, which psycopg2 forgets.
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
    """Build SQL that PostgreSQL has spelled out of its own catalog, as the name of a type."""
    return SQL(doubled(text))


def doubled(text: str) -> str:
    """Return SQL text with its percent signs doubled, as psycopg2 reads it beside parameters."""
    return text.replace("%", "%%")


def quoted(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def batched(statement: Statement, texts: Type) -> Statement:
    """
    Build the statement that runs another one for each of a list of values.

    After the columns of the other one, which has parameters, comes the number of the values, from 1.

    Args:
        statement: That reads.
        texts: The type of arrays of text: each parameter is one, of the values of one parameter of the
            other statement, as PostgreSQL's text.
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
