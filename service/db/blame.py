"""
Which of several written rows the error of a constraint speaks of, and where that stands in the call.

PostgreSQL names no row of a statement. Its detail shows the key, or the whole row, that it refused:
that is held against what each row was given. A row that is not certain is not named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2

from service.catalog import Relation
from service.errors import ConstraintViolation
from service.request.requests import Assignment

_KEY = re.compile(r"\((.+)\)=\((.*)\)", re.DOTALL)
"""Of a detail, in any language: columns and their values."""
_ROW = re.compile(r"\((.*)\)", re.DOTALL)
_LONGEST = 60
"""Characters of a value: PostgreSQL shows no more than 64 of it in a row."""
_PLAIN = ("bigint", "integer", "smallint", "text", "character varying", "uuid")
"""How types begin whose text is that of the value as it came. Others tell nothing."""


@dataclass(frozen=True, slots=True)
class GivenRow:
    """What a row was given: where it stands, and of each column where that stands and its value."""

    path: str
    columns: dict[str, tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class GivenRows:
    """The rows that a statement was to write."""

    relation: Relation
    rows: tuple[GivenRow, ...]


def note_rows(
    error: psycopg2.Error,
    relation: Relation,
    rows: Iterable[tuple[str, Sequence[Assignment]]],
    values: Sequence[Any],
) -> None:
    """Note on an error what the statement was to write, each row with where it stands."""
    given = tuple(
        GivenRow(
            path,
            {
                each.column: (each.path, values[each.operand.slot])
                for each in row
                if each.operand is not None
            },
        )
        for path, row in rows
    )
    error.rows = GivenRows(relation, given)  # type: ignore[attr-defined]


def rows_of(error: BaseException) -> GivenRows | None:
    """Return what the statement of an error was to write, if that was noted."""
    return getattr(error, "rows", None)


def point_at_row(found: ConstraintViolation, error: psycopg2.Error) -> None:
    """Add where the row stands of which a constraint speaks, or its one column."""
    given = rows_of(error)
    if given is None or "path" in found.details:
        return
    row = _row(error.diag.message_detail or "", given)
    if row is None:
        return
    paths = {row.columns[name][0] for name in found.details.get("columns") or ()
             if name in row.columns}  # fmt: skip
    found.details["path"] = paths.pop() if len(paths) == 1 else row.path


def _row(detail: str, given: GivenRows) -> GivenRow | None:
    if len(given.rows) == 1:
        return given.rows[0]
    key, whole = _KEY.search(detail), _ROW.search(detail)
    if key is not None:
        names, values = key[1].split(", "), key[2]
        found = [row for row in given.rows if _key_of(row, names, given.relation) == values]
    elif whole is not None:
        found = [row for row in given.rows if _shows(whole[1], row, given.relation)]
    else:
        found = []
    return found[0] if len(found) == 1 else None


def _key_of(row: GivenRow, names: Sequence[str], relation: Relation) -> str | None:
    texts = [_text(row, name, relation) for name in names]
    return None if None in texts else ", ".join(map(str, texts))


def _shows(values: str, row: GivenRow, relation: Relation) -> bool:
    """Return whether a refused row, as PostgreSQL shows it, can be this one."""
    begin = 0
    for name in relation.columns:
        text = _text(row, name, relation)
        if text is None or len(text) > _LONGEST:
            continue
        # the values stand in the order of the columns, hidden ones among them
        found = re.compile(rf"(?:^|(?<=, )){re.escape(text)}(?=, |$)").search(values, begin)
        if found is None:
            return False
        begin = found.end()
    return True


def _text(row: GivenRow, name: str, relation: Relation) -> str | None:
    """Return the text of a value as PostgreSQL shows it; None where that is not known."""
    if name not in row.columns or not relation.columns[name].declared.startswith(_PLAIN):
        return None
    value = row.columns[name][1]
    if value is None or isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value)
