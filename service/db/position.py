"""
Find the parameter of a statement that an error points at.

A position in an error is one in the text that PostgreSQL received, into which psycopg2 has written the
parameters. Comparing that text with the statement's own finds the parameter at the position.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg2

from service.plan.conditions import Bound
from service.sql.statement import Mark, Statement

_PLACE = re.compile(r"%([%s])")
_LITERAL = re.compile(
    r" ?(?:NULL|'[^']*+(?:''[^']*+)*+'|E'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+')", re.DOTALL
)
"""Matches runs, possessively: while it matches a text of megabytes, no other Python thread can run."""
_OPERAND = r"\s*(?:(?:ANY|ALL)\s*)?\(?\s*(?:CAST\()?"
_OPERATOR = re.compile(rf"OPERATOR\((?:\w+|\"(?:[^\"]|\"\")*\")\.[^()]{{1,8}}\){_OPERAND}")
"""An operator, and the SQL that may stand between it and its right operand."""
_BEFORE_REGEX = re.compile(rf"\.~\*?\){_OPERAND}$")
"""SQL in front of a regular expression."""
_BEFORE_LIKE = re.compile(rf"\.!?~~\*?\){_OPERAND}$")
"""SQL in front of a LIKE pattern."""
_ESCAPES = re.compile(r"(\\+)(?:\"?[^\"\\]*\})?'$")
"""The trailing backslashes of a pattern, or of the last pattern in an array."""
_OF_CASTS = frozenset(["22P02", "2202E", "22003", "22007", "22008", "22018", "22023"])
"""SQLSTATEs of a cast or computation that fails for the value of a row."""
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)
_CHECKED = frozenset(["limit", "offset"])
"""Paths of parameters that were validated before, and so never cause an error."""


def annotate_position(error: psycopg2.Error, statement: Statement) -> None:
    """
    Note on an error the parameter or mark that it points at, for `bound_of` and `mark_of`, and the
    paths of all parameters, for `paths_of`.

    Call this in the thread that ran the statement, before the cursor runs another one.
    """
    if error.cursor is None or error.cursor.query is None:
        return
    # PostgreSQL counts the position in characters, not in bytes.
    sent = error.cursor.query.decode("utf-8", "replace")
    pieces = _pieces(statement.text)
    spans = _spans(sent, pieces)
    if len(spans) < len(statement.bounds):  # the cursor has run another statement
        return
    error.paths = {bound.path for bound in statement.bounds}  # type: ignore[attr-defined]
    finder = _Finder(error, statement, sent, pieces, spans)
    error.bound = finder.bound()  # type: ignore[attr-defined]
    error.mark = finder.mark()  # type: ignore[attr-defined]


def bound_of(error: psycopg2.Error) -> Bound | None:
    """Return the parameter that an error points at, if `annotate_position` has noted one."""
    return getattr(error, "bound", None)


def paths_of(error: psycopg2.Error) -> Collection[str]:
    """Return the paths of the statement's parameters in the call, if `annotate_position` has noted them."""
    return getattr(error, "paths", ())


def mark_of(error: psycopg2.Error) -> Mark | None:
    """Return the mark that an error points at, if `annotate_position` has noted one."""
    return getattr(error, "mark", None)


@dataclass(frozen=True, slots=True)
class _Finder:
    """
    Finds what an error points at.

    Args:
        error: The error.
        statement: The statement that raised it.
        sent: The statement's text as it was sent, with its parameters.
        pieces: The parts of the statement's own text around its placeholders.
        spans: The spans of the parameters in `sent`.
    """

    error: psycopg2.Error
    statement: Statement
    sent: str
    pieces: Sequence[str]
    spans: Sequence[tuple[int, int]]

    def mark(self) -> Mark | None:
        """Return the mark at the error's position; without one, the only cast that may have failed."""
        diag, statement = self.error.diag, self.statement
        if diag.statement_position is None:
            casts = {mark.path: mark for mark in statement.marks if mark.cast}
            only = len(casts) == 1 and self.error.pgcode in _OF_CASTS and diag.context is None
            return next(iter(casts.values())) if only else None
        at = int(diag.statement_position) - 1
        for mark in statement.marks:
            *before, piece = _pieces(statement.text[: len(statement.text) - mark.behind])
            begin = self.spans[len(before) - 1][1] if before else self.sent.find(self.pieces[0])
            if begin + len(piece) == at:
                return mark
        return None

    def bound(self) -> Bound | None:
        """Return the parameter that the error points at, or that must have caused it."""
        position = self.error.diag.statement_position
        found = self._guess_parameter() if position is None else self._pointed_at(int(position) - 1)
        if found is None or self.statement.bounds[found].path in _CHECKED:
            return None
        return self.statement.bounds[found]

    def _pointed_at(self, at: int) -> int | None:
        """Find the parameter at a position, or the right operand of the operator there."""
        for index, (start, end) in enumerate(self.spans):
            if start <= at < end or (at < start and _OPERATOR.fullmatch(self.sent, at, start)):
                return index
        return None

    def _guess_parameter(self) -> int | None:
        """Find the parameter that caused an error without a position: a pattern, or a quoted value."""
        error, texts = self.error, [self.sent[start:end].strip() for start, end in self.spans]
        before = {"2201B": _BEFORE_REGEX, "22025": _BEFORE_LIKE}.get(error.pgcode or "")
        if before is not None:
            found = [index for index in range(len(texts)) if before.search(self.pieces[index])]
        else:
            quoted = _QUOTED.search(error.diag.message_primary or "")
            literal = "'" + quoted[1].replace("'", "''") + "'" if quoted else ""
            found = [index for index, text in enumerate(texts) if text == literal]
        if len(found) > 1 and error.pgcode == "22025":
            found = [index for index in found if _ends_in_escape(texts[index])]
        # A parameter may occur twice in a statement, as that of a sort key does: its path is the same.
        return found[0] if len({self.statement.bounds[at].path for at in found}) == 1 else None


def _ends_in_escape(literal: str) -> bool:
    """Return whether a pattern ends in a backslash that escapes nothing."""
    found = _ESCAPES.search(literal)
    doubled = 2 if literal.startswith("E") else 1
    return found is not None and len(found[1]) // doubled % 2 == 1


def _spans(sent: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return the spans of the parameters in the sent text; [] if that is another statement."""
    place = sent.find(pieces[0])  # BEGIN or an identity may stand before it
    found: list[tuple[int, int]] = []
    if place < 0:
        return found
    place += len(pieces[0])
    for piece in pieces[1:]:
        literal = _LITERAL.match(sent, place)
        if literal is None or not sent.startswith(piece, literal.end()):
            return []
        found.append(literal.span())
        place = literal.end() + len(piece)
    return found


def _pieces(text: str) -> list[str]:
    """Return the parts of a text around its placeholders."""
    pieces, begin = [""], 0
    for each in _PLACE.finditer(text):
        pieces[-1] += text[begin : each.start()] + ("%" if each[1] == "%" else "")
        if each[1] == "s":
            pieces.append("")
        begin = each.end()
    pieces[-1] += text[begin:]
    return pieces
