"""
Which of several written rows the error of a constraint speaks of, and where that stands in the call.

PostgreSQL names no row of a statement. Its detail shows the key, or the whole row, that it refused:
that is held against what each row was given. Where several rows can be meant, what they stand in is named.

Where an error points into a statement, it is at a parameter. psycopg2 writes parameters into the text
before it sends it, and PostgreSQL tells where in that text it stumbled. Walking the sent text along the
statement's own text gives the parameter back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import psycopg2

from service.catalog import Catalog, Relation
from service.errors import ConstraintViolation
from service.plan.conditions import Bound
from service.request.requests import Assignment
from service.sql.statement import Mark, Statement

_PLACE = re.compile(r"%([%s])")
_LITERAL = re.compile(
    r" ?(?:NULL|'[^']*+(?:''[^']*+)*+'|E'[^'\\]*+(?:(?:''|\\.)[^'\\]*+)*+')", re.DOTALL
)
"""By runs: a text of megabytes is matched in one go, in which no other thread has its turn."""
_OPERAND = r"\s*(?:(?:ANY|ALL)\s*)?\(?\s*(?:CAST\()?"
_OPERATOR = re.compile(rf"OPERATOR\((?:\w+|\"(?:[^\"]|\"\")*\")\.[^()]{{1,8}}\){_OPERAND}")
"""An operator, and what may stand between it and its operand."""
_MATCHES = re.compile(rf"\.~\*?\){_OPERAND}$")
"""What stands before a regular expression."""
_LIKENS = re.compile(rf"\.!?~~\*?\){_OPERAND}$")
"""What stands before a pattern of LIKE."""
_ESCAPES = re.compile(r"(\\+)(?:\"?[^\"\\]*\})?'$")
"""The backslashes that a pattern ends in, or one of an array of them."""
_OF_CASTS = frozenset(["22P02", "2202E", "22003", "22007", "22008", "22018", "22023"])
"""What a cast, or what computes a value, says of the value of a row that does not fit."""
_QUOTED = re.compile(r'"(.*)"', re.DOTALL)
_CHECKED = frozenset(["limit", "offset"])
"""Paths of parameters that are right when they are sent, and so are never to blame."""


def point_out(error: psycopg2.Error, statement: Statement) -> None:
    """
    Note on an error which parameter or mark it points at, for `bound_of` and `mark_of`, and where
    all parameters stand in the call, for `paths_of`.

    To be called in the thread that ran the statement, while its cursor is still at it.
    """
    if error.cursor is None or error.cursor.query is None:
        return
    # PostgreSQL counts the place in characters, not in bytes.
    sent = error.cursor.query.decode("utf-8", "replace")
    pieces = _pieces(statement.text)
    spans = _spans(sent, pieces)
    if len(spans) < len(statement.bounds):  # of another statement
        return
    error.paths = {bound.path for bound in statement.bounds}  # type: ignore[attr-defined]
    error.bound = _find(error, statement, sent, spans, pieces)  # type: ignore[attr-defined]
    error.mark = _marked(error, statement, sent, spans, pieces)  # type: ignore[attr-defined]


def bound_of(error: psycopg2.Error) -> Bound | None:
    """Return the parameter that an error points at, if that was noted."""
    return getattr(error, "bound", None)


def paths_of(error: psycopg2.Error) -> Collection[str]:
    """Return where the parameters of the statement stand in the call, if that was noted."""
    return getattr(error, "paths", ())


def mark_of(error: psycopg2.Error) -> Mark | None:
    """Return the mark that an error points at, if that was noted."""
    return getattr(error, "mark", None)


def _marked(
    error: psycopg2.Error,
    statement: Statement,
    sent: str,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[str],
) -> Mark | None:
    """Find the mark at the very place, or the one cast that a value of a row may not fit."""
    if error.diag.statement_position is None:
        casts = {mark.path: mark for mark in statement.marks if mark.cast}
        only = len(casts) == 1 and error.pgcode in _OF_CASTS and error.diag.context is None
        return next(iter(casts.values())) if only else None
    at = int(error.diag.statement_position) - 1
    for mark in statement.marks:
        *before, piece = _pieces(statement.text[: len(statement.text) - mark.behind])
        begin = spans[len(before) - 1][1] if before else sent.find(pieces[0])
        if begin + len(piece) == at:
            return mark
    return None


def _find(
    error: psycopg2.Error,
    statement: Statement,
    sent: str,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[str],
) -> Bound | None:
    if not spans:
        return None
    position = error.diag.statement_position
    if position is not None:
        found = _pointed_at(sent, spans, int(position) - 1)
    else:
        found = _suspected(error, statement, sent, spans, pieces)
    if found is None or statement.bounds[found].path in _CHECKED:
        return None
    return statement.bounds[found]


def _pointed_at(sent: str, spans: Sequence[tuple[int, int]], at: int) -> int | None:
    """Find the parameter at a place, or the operand of the operator there."""
    for index, (start, end) in enumerate(spans):
        if start <= at < end or (at < start and _OPERATOR.fullmatch(sent, at, start)):
            return index
    return None


def _suspected(
    error: psycopg2.Error,
    statement: Statement,
    sent: str,
    spans: Sequence[tuple[int, int]],
    pieces: Sequence[str],
) -> int | None:
    """Find the parameter that an error speaks of when it does not tell a place."""
    before = {"2201B": _MATCHES, "22025": _LIKENS}.get(error.pgcode or "")
    if before is not None:
        found = [index for index in range(len(spans)) if before.search(pieces[index])]
    else:
        quoted = _QUOTED.search(error.diag.message_primary or "")
        literal = "'" + quoted[1].replace("'", "''") + "'" if quoted else ""
        found = [i for i, (start, end) in enumerate(spans) if sent[start:end].strip() == literal]
    if len(found) > 1 and error.pgcode == "22025":
        found = [i for i in found if _ends_in_escape(sent[slice(*spans[i])].strip())]
    # What stands twice in a statement, as a sort key does, is one thing of the call.
    return found[0] if len({statement.bounds[index].path for index in found}) == 1 else None


def _ends_in_escape(literal: str) -> bool:
    """Return whether a pattern ends in a backslash that escapes nothing."""
    found = _ESCAPES.search(literal)
    doubled = 2 if literal.startswith("E") else 1
    return found is not None and len(found[1]) // doubled % 2 == 1


def _spans(sent: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Return where the parameters stand in what was sent; [] if it is another statement."""
    place = sent.find(pieces[0])  # a BEGIN may stand before it
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
