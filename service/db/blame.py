"""
Which of several written rows the error of a constraint speaks of, and where that stands in the call.

PostgreSQL names no row of a statement. Its detail shows the key, or the whole row, that it refused:
that is held against what each row was given. Where several rows can be meant, what they stand in is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import psycopg2

from service.catalog import Catalog, Relation
from service.db.position import bound_of
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
    """
    What a row was given.

    Args:
        path: Where it stands.
        columns: Of each column where that stands, and its value.
        new: Whether it is new; of one that was there its other columns are not known.
    """

    path: str
    columns: dict[str, tuple[str, Any]]
    new: bool


@dataclass(frozen=True, slots=True)
class GivenRows:
    """The rows of one relation that a message was to write; no relation where that is not known."""

    relation: Relation | None
    rows: tuple[GivenRow, ...]


WrittenRow = tuple[Relation, str, Sequence[Assignment], bool]
"""A row that is to be written: of which relation, where it stands, what it is given, whether it is new."""


def note_rows(
    error: psycopg2.Error,
    rows: Iterable[WrittenRow],
    before: Iterable[WrittenRow],
    values: Sequence[Any],
) -> None:
    """Note on an error what its message was to write, and what was written before it."""
    error.rows = _given(rows, values), _given(before, values)  # type: ignore[attr-defined]


def _given(rows: Iterable[WrittenRow], values: Sequence[Any]) -> list[GivenRows]:
    """Return rows by relation, with their values."""
    found: dict[int, tuple[Relation, list[GivenRow]]] = {}
    for relation, path, row, new in rows:
        columns = {
            each.column: (each.path, values[each.operand.slot])
            for each in row
            if each.operand is not None
        }
        found.setdefault(id(relation), (relation, []))[1].append(GivenRow(path, columns, new))
    return [GivenRows(relation, tuple(given)) for relation, given in found.values()]


def rows_of(error: BaseException, catalog: Catalog | None) -> GivenRows | None:
    """Return what the statement of an error was to write, if that was noted."""
    noted = getattr(error, "rows", None)
    if noted is None or not isinstance(error, psycopg2.Error):
        return None
    here, before = noted
    for some in (here, before):  # a constraint that is deferred speaks of what was before
        found = [each for each in some if _is_of(error, each, catalog)]
        if len(found) == 1:
            return found[0]
    return here[0] if len(here) == 1 else GivenRows(None, ())


def _is_of(error: psycopg2.Error, given: GivenRows, catalog: Catalog | None) -> bool:
    """Return whether an error speaks of a relation, of a column's domain, or of a value given."""
    relation, diag, bound = given.relation, error.diag, bound_of(error)
    if relation is None or catalog is None:
        return False
    if diag.table_name:
        home = diag.schema_name or "", diag.table_name
        return catalog.partitions.get(home, home) == (relation.schema, relation.name)
    written = [(name, path) for row in given.rows for name, (path, _) in row.columns.items()]
    if diag.datatype_name:
        types = (catalog.type(relation.columns[name].type) for name, _ in written)
        return (diag.schema_name, diag.datatype_name) in {
            (each.schema, each.name) for each in types
        }
    return bound is not None and any(path == bound.path for _, path in written)


def point_at_row(
    found: ConstraintViolation, error: psycopg2.Error, catalog: Catalog | None
) -> None:
    """Add where the row stands of which a constraint speaks, or its one column."""
    given = rows_of(error, catalog)
    if given is None or "path" in found.details:
        return
    columns = found.details.get("columns") or ()
    rows, certain = _rows(error.diag.message_detail or "", given)
    if not rows:
        return
    if len(rows) == 1 or (certain and error.pgcode == "23503"):
        # of several that refer to what is not there, the first is refused
        found.details["path"] = _place(rows[0], columns)
    elif certain and error.pgcode == "23505":
        # Which of equal ones is refused goes by what was there before; the second cannot be, anyway.
        first, second, *_ = (_place(row, columns) for row in rows)
        found.details |= {"path": second, "hint": f"{first} has the same key"}
    else:
        found.details["path"] = _around(rows)


def _place(row: GivenRow, columns: Iterable[str]) -> str:
    """Return where the one column stands that a row gives of some, or else the row."""
    paths = {row.columns[name][0] for name in columns if name in row.columns}
    return paths.pop() if len(paths) == 1 else row.path


def _around(rows: Iterable[GivenRow]) -> str:
    """Return where all of some rows stand."""
    steps = zip(*(row.path.split(".") for row in rows), strict=False)
    return ".".join(each[0] for each in takewhile(lambda each: len({*each}) == 1, steps))


def _rows(detail: str, given: GivenRows) -> tuple[list[GivenRow], bool]:
    """Return the rows of which a constraint may speak, and whether each of them has the key it names."""
    if len(given.rows) == 1:
        return [*given.rows], True
    relation, key, whole = given.relation, _KEY.search(detail), _ROW.search(detail)
    if relation is None or whole is None:
        return [], False
    if key is None:
        return [row for row in given.rows if _shows(whole[1], row, relation)], False
    names, values = key[1].split(", "), key[2]
    if not relation.columns.keys() >= {*names}:  # an expression, or a column that is hidden
        return [*given.rows], False
    keys = [([_text(row, name, relation) for name in names], row) for row in given.rows]
    found = [(key, row) for key, row in keys if _can_be(key, values)]
    return [row for _, row in found], all(None not in key for key, _ in found)


def _can_be(key: Sequence[str | None], values: str) -> bool:
    """Return whether a key, as far as it is known, can be the one that PostgreSQL shows."""
    known = ", ".join(".*" if each is None else re.escape(each) for each in key)
    return re.fullmatch(known, values, re.DOTALL) is not None


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
    column = relation.columns[name]
    if name not in row.columns:
        known = row.new and not (column.has_default or relation.has_insert_triggers)
        return "null" if known else None
    value = row.columns[name][1]
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value) if column.declared.startswith(_PLAIN) else None
