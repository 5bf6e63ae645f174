"""
A statement: SQL text with placeholders, and what is to be bound to them.

The text depends on the shape of a call alone, never on its values: names stand in it as
identifiers, and each value is a `Bound` that says which of the call's values goes there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from psycopg2 import sql

from service.plan.conditions import Bound
from service.plan.types import PlannedEmbed

MISSED = "rowcast_missed"
"""What an error speaks of where a statement had to write a row and wrote none."""


@dataclass(frozen=True, slots=True)
class Mark:
    """
    A place in the SQL where something that the caller wrote stands, for errors that point at it.

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
        picks: Whether a last column tells which of the rows are answered.
        untyped: Whether its values are JSON of rows of no known type.
        certain: Whether it fails, by `MISSED`, where it would write no row.
        head: How many characters of the text are of another statement, which goes ahead.
        pure: Whether it is certain to leave nothing behind in the session, by the catalog.
        bare: Whether its one column, as JSON, is what is answered for each row.
    """

    text: str
    bounds: tuple[Bound, ...]
    name: str
    columns: tuple[str, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    writes: bool = False
    marks: tuple[Mark, ...] = ()
    picks: bool = False
    untyped: bool = False
    certain: bool = False
    head: int = 0
    pure: bool = False
    bare: bool = False

    def prefixed(self, words: str) -> Statement:
        """Return the statement with SQL before the one, or the second one, that returns rows."""
        behind = len(self.text) - self.head
        marks = tuple(
            replace(mark, behind=mark.behind + len(words)) if mark.behind > behind else mark
            for mark in self.marks
        )
        text = self.text[: self.head] + words + self.text[self.head :]
        return replace(self, text=text, marks=marks)

    def parts(self) -> list[Statement]:
        """Return the statements that it is made of, for where they cannot share a message."""
        if not self.head:
            return [self]
        ahead, behind = self.text[: self.head], self.text[self.head :]
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


Part = sql.Composable | Bound | Mark
"""What a statement is put together from: SQL, an identifier, a parameter; marks are nothing."""


def render(parts: Iterable[Part]) -> tuple[str, tuple[Bound, ...], tuple[Mark, ...]]:
    """
    Return the SQL text of parts, its parameters and its marks.

    Needs no connection, unlike `Composed.as_string`, so that a plan is rendered once, in
    the reactor thread: in UTF-8 an identifier is quoted by doubling its double quotes
    (libpq's PQescapeIdentifier does no more). Percent signs in names are doubled too,
    which psycopg2 forgets.
    """
    text: list[str] = []
    bounds: list[Bound] = []
    marks: list[tuple[int, Mark]] = []

    def add(part: Part) -> None:
        if isinstance(part, Bound):
            text.append(f"CAST(%s AS {doubled(part.type.sql)})" if part.cast else "%s")
            bounds.append(part)
        elif isinstance(part, sql.Composed):
            for each in part.seq:
                add(each)
        elif isinstance(part, sql.Identifier):
            text.append(doubled(".".join(quoted(name) for name in part.strings)))
        elif isinstance(part, sql.SQL):
            text.append(part.string)
        elif isinstance(part, Mark):
            marks.append((len(text), part))
        else:
            raise TypeError(f"not a part of a statement: {part!r}")

    for part in parts:
        add(part)
    behind = [0, *accumulate(len(each) for each in reversed(text))][::-1] if marks else []
    placed = tuple(replace(mark, behind=behind[at]) for at, mark in marks)
    return "".join(text), tuple(bounds), placed


def build_statement(
    head: Iterable[Part], parts: Iterable[Part], name: str, **rest: Any
) -> Statement:
    """
    Build a statement of parts.

    Args:
        head: Of another statement, which goes ahead in the same message, if there is one.
        parts: Of the statement.
        name: What it is for.
        rest: As of a `Statement`.
    """
    before = list(head)
    text, bounds, marks = render([*before, *parts])
    return Statement(text, bounds, name, marks=marks, head=len(render(before)[0]), **rest)


def doubled(text: str) -> str:
    """Return SQL text with its percent signs doubled, as psycopg2 reads it beside parameters."""
    return text.replace("%", "%%")


def quoted(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'
