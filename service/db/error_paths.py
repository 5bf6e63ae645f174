"""
Find what in a call's arguments a database error is about: a parameter of the statement, or one of its rows.

A position in an error is one in the text that PostgreSQL received, into which psycopg2 has written the
parameters. Comparing that text with the statement's own finds the parameter at the position.

PostgreSQL does not say which row of a statement it refused. Its DETAIL shows the key, or the entire
row, and that text is compared with the values given for each row. If it fits several rows, the path of
the list that contains them is reported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import psycopg2

from service.catalog import Catalog, Relation, Type, WriteKind
from service.errors import ConstraintViolation, ServiceError
from service.plan.plans import Bound, ConflictUpdate
from service.plan.scope import Scope
from service.plan.write_plan import Rows, plan_conflict
from service.request.requests import Assignment, CreateRequest, OnConflict, UpdateRowsRequest
from service.request.row_values import BY_DEFAULT, DEFAULT
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


INSERT: frozenset[WriteKind] = frozenset({"insert"})
UPDATE: frozenset[WriteKind] = frozenset({"update"})
MANY = 100
"""Number of written rows above which they are compared with an error in a thread, at 4 µs a row."""
UNKNOWN = object()
"""In place of a given value if another value may be written: the column may have any."""

_KEY = re.compile(r"\((.+?)\)=\((.*)\)", re.DOTALL)
"""In a DETAIL, whatever its language: the columns of a key, and their values."""
_ROW = re.compile(r"\((.*)\)", re.DOTALL)
_SOME = re.compile(r"\((.+?)\) = \((.*)\)", re.DOTALL)
"""In a DETAIL: the columns of a row that the role may read, or those of a partition key."""
_COPY = re.compile(r"^COPY .+?, line (\d+)(?:, column (.+?)(?=: \"|: null input|$))?", re.MULTILINE)
"""In a CONTEXT in English; of a server with another `lc_messages` the line is not found."""
_LONGEST = 60
"""Bytes of a value that are compared: in a row, PostgreSQL truncates a value to 64."""
_SPELLED = {
    **dict.fromkeys(("int2", "int4", "int8"), re.compile("0|-?[1-9][0-9]*")),
    "date": re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "uuid": re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "text": re.compile("(?!null$).*", re.DOTALL),
    "varchar": re.compile("(?!null$)(.*[^ ])?", re.DOTALL),  # trailing spaces may be cut off
}
"""
By type, the strings that PostgreSQL shows exactly as they were given.

Other values cannot be compared: a number as `1e3`, say, is shown in another form.
"""


@dataclass(frozen=True, slots=True)
class GivenRow:
    """
    The values given for a row.

    Args:
        relation: The relation of the row.
        path: Path of the row in the call's arguments.
        columns: By column, the path of its value, and the value.
        kinds: The ways in which the row may be written: as an INSERT, an UPDATE, or either.
    """

    relation: Relation
    path: str
    columns: dict[str, tuple[str, Any]]
    kinds: frozenset[WriteKind] = INSERT

    @property
    def certain(self) -> bool:
        """Whether the row is written as given: no trigger and no rule can change it."""
        # An UPDATE that moves a row to another partition inserts it there.
        triggers = self.relation.before_triggers
        return not (self.relation.has_rules or (triggers & self.kinds if self.new else triggers))

    @property
    def new(self) -> bool:
        """Whether the row is certainly new; a column without a value and a default is null then."""
        return self.kinds == INSERT


@dataclass(frozen=True, slots=True)
class GivenRows:
    """The rows of one relation that a statement was to write; the relation is None if unknown."""

    relation: Relation | None
    rows: tuple[GivenRow, ...]


def assigned_row(
    relation: Relation,
    path: str,
    row: Iterable[Assignment],
    values: Sequence[Any],
    kinds: frozenset[WriteKind] = INSERT,
    known: Collection[str] | None = None,
) -> GivenRow:
    """Return the values given for a row; if not all are written as given, `known` names those that are."""
    columns = {
        each.column: (
            each.path,
            UNKNOWN
            if each.operand is None
            or each.computes
            or (known is not None and each.column not in known)
            else values[each.operand.slot],
        )
        for each in row
        if each.operand is not None or kinds == UPDATE  # in a new row, a DEFAULT is as no value
    }
    return GivenRow(relation, path, columns, kinds)


def requested_rows(
    catalog: Catalog,
    relation: Relation,
    request: CreateRequest | UpdateRowsRequest,
    values: Sequence[Any],
) -> Iterator[GivenRow]:
    """Yield the rows of a request that are items of a list."""
    kinds, known, changed = UPDATE, None, set[str]()
    if isinstance(request, CreateRequest):
        kinds = INSERT if request.conflict is None else INSERT | UPDATE
        known = _updated_columns(catalog, relation, request.conflict, request.rows)
        if request.conflict is not None:
            changed = {each.column for each in request.conflict.changes}
    for path, row in zip(request.paths, request.rows, strict=True):
        if path is not None:
            found = assigned_row(relation, path, row, values, kinds, known)
            # ON CONFLICT DO UPDATE sets these columns in a row that exists, to other values.
            others = {name: (path, UNKNOWN) for name in changed}
            yield replace(found, columns=found.columns | others) if others else found


def imported_rows(
    catalog: Catalog,
    relation: Relation,
    rows: Iterable[Any],
    names: Sequence[str],
    conflict: OnConflict | None,
) -> Iterator[GivenRow]:
    """Yield the unparsed rows of an import: dicts, or lists in the order of `names`; any may be malformed."""
    kinds = INSERT if conflict is None else INSERT | UPDATE
    known: set[str] | None = None
    for at, row in enumerate(rows):
        items = row if isinstance(row, list | tuple) else ()
        given = row if isinstance(row, Mapping) else dict(zip(names, items, strict=False))
        if not at and conflict is not None:
            some = tuple(Assignment(name, None, name) for name in given)
            known = _updated_columns(catalog, relation, conflict, [some])
        columns = {
            name: (f"rows.{at}.{name}", value if known is None or name in known else UNKNOWN)
            for name, value in given.items()
            if value is not BY_DEFAULT and value != {DEFAULT: True}
        }
        yield GivenRow(relation, f"rows.{at}", columns, kinds)


def _updated_columns(
    catalog: Catalog, relation: Relation, conflict: OnConflict | None, rows: Rows
) -> set[str] | None:
    """Return the columns that an upsert writes as given if the row exists; None for all of them."""
    if conflict is None or conflict.update == ():  # an existing row is not written
        return None
    planned = plan_conflict(Scope(catalog, relation), conflict, rows)
    known = {each.column.name for each in planned.updates if isinstance(each, ConflictUpdate)}
    return known if planned.target else known | {*planned.key}


def note_rows(
    error: BaseException, rows: Iterable[GivenRow], before: Iterable[GivenRow] = ()
) -> None:
    """Attach to a database error the rows that its statement was to write, and those written before."""
    if isinstance(error, psycopg2.Error):
        error.rows = _by_relation(rows), _by_relation(before)  # type: ignore[attr-defined]


def _by_relation(rows: Iterable[GivenRow]) -> list[GivenRows]:
    found: dict[int, list[GivenRow]] = {}
    for row in rows:
        found.setdefault(id(row.relation), []).append(row)
    return [GivenRows(given[0].relation, tuple(given)) for given in found.values()]


def rows_of(error: BaseException, catalog: Catalog | None) -> GivenRows | None:
    """Return the rows that the statement of an error was to write, if `note_rows` attached them."""
    noted = getattr(error, "rows", None)
    if noted is None or not isinstance(error, psycopg2.Error):
        return None
    here, before = noted
    if not here and not before:
        return None
    for some in (here, before):  # a deferred constraint may fail because of a row written before
        found = [each for each in some if _is_of(error, each, catalog)]
        if len(found) == 1:
            return found[0]
    return here[0] if len(here) == 1 else GivenRows(None, ())


def has_many_rows(error: BaseException) -> bool:
    """Return whether `note_rows` attached so many rows that looking through them would hold up the reactor."""
    return sum(len(each.rows) for some in getattr(error, "rows", ()) for each in some) > MANY


def _types_within(catalog: Catalog, oid: int) -> Iterator[Type]:
    """Yield a type, and recursively its element type, base type and fields."""
    type = catalog.type(oid)
    yield type
    for part in type.parts:
        yield from _types_within(catalog, part)


def _is_of(error: psycopg2.Error, given: GivenRows, catalog: Catalog | None) -> bool:
    """Return whether an error is about the relation, the domain of a column, or a value of these rows."""
    relation, diag, bound = given.relation, error.diag, bound_of(error)
    if relation is None or catalog is None:
        return False
    if diag.table_name:
        home = diag.schema_name or "", diag.table_name
        return catalog.partitions.get(home, home) == (relation.schema, relation.name)
    written = {name: path for row in given.rows for name, (path, _) in row.columns.items()}
    if diag.datatype_name:
        return not columns_of_domain(error, relation, catalog).isdisjoint(written)
    return bound is not None and any(
        path == bound.path for row in given.rows for path, _ in row.columns.values()
    )


def columns_of_domain(error: psycopg2.Error, relation: Relation, catalog: Catalog) -> set[str]:
    """Return the columns that contain values of the domain that an error names."""
    home = error.diag.schema_name, error.diag.datatype_name
    return {
        name
        for name, column in relation.columns.items()
        if any((each.schema, each.name) == home for each in _types_within(catalog, column.type))
    }


def name_line(
    found: ServiceError, error: psycopg2.Error, relation: Relation | None, given: GivenRows | None
) -> None:
    """Add the line and column of an import, if COPY reports them, and the path of the row."""
    place = _COPY.search(error.diag.context or "")
    if place is None:
        return
    # Noted by `import_txn` if the lines that COPY has read are not those of the call.
    lines, line = getattr(error, "lines", None), int(place[1])
    found.details["line"] = lines(line) if lines else line
    column = place[2] if relation is not None and place[2] in relation.columns else None
    if column is not None:
        found.details.setdefault("column", column)
    if given is not None and line <= len(given.rows):
        columns = [column] if column else found.details.get("columns") or ()
        found.details.setdefault("path", _path_of(given.rows[line - 1], columns))


def point_at_row(
    found: ConstraintViolation, error: psycopg2.Error, catalog: Catalog | None
) -> None:
    """Add the path of the row that violates a constraint, or of its one column that does."""
    given = rows_of(error, catalog)
    if given is None or catalog is None or not given.rows or "path" in found.details:
        return
    # An error with a context may be about a row that a trigger or a function has written.
    sure = error.diag.context is None and _is_of(error, given, catalog)
    columns = (found.details.get("columns") or ()) if sure else ()
    rows, certain = [*given.rows], False
    if len(rows) > 1 and sure:
        rows, certain = _Shown(error, catalog, found).rows_of(given)
    if not rows:
        return
    if len(rows) == 1 or (certain and error.pgcode in ("23502", "23503")):
        # Of several rows that violate a NOT NULL or a foreign key, PostgreSQL refuses the first.
        found.details["path"] = _path_of(rows[0], columns)
    elif certain and error.pgcode == "23505":
        # Which row with an equal key is refused depends on the rows that were there before; the
        # second is refused in any case.
        same, second, *_ = (_path_of(row, columns) for row in rows)
        found.details |= {"path": second, "hint": f"{same} has the same key"}
    else:
        found.details["path"] = _common_path(rows)


def _path_of(row: GivenRow, columns: Iterable[str]) -> str:
    """Return the path of the only one of some columns that the row gives, else that of the row."""
    paths = {row.columns[name][0] for name in columns if name in row.columns}
    return paths.pop() if len(paths) == 1 else row.path


def _common_path(rows: Iterable[GivenRow]) -> str:
    """Return the longest path that all rows have in common."""
    steps = zip(*(row.path.split(".") for row in rows), strict=False)
    return ".".join(each[0] for each in takewhile(lambda each: len({*each}) == 1, steps))


@dataclass(frozen=True, slots=True)
class _Shown:
    """The row that PostgreSQL shows in the DETAIL of a constraint violation."""

    error: psycopg2.Error
    catalog: Catalog
    found: ConstraintViolation

    def rows_of(self, given: GivenRows) -> tuple[list[GivenRow], bool]:
        """Return the rows that it may be, and whether each of them certainly violates the constraint."""
        assert given.relation is not None
        if not all(row.certain for row in given.rows):
            return [*given.rows], False
        detail = self.error.diag.message_detail or ""
        if self.error.diag.datatype_name:
            return self._with_domain(given, given.relation), False
        if self.error.pgcode in ("23502", "23514"):
            return self._with_values(detail, given, given.relation)
        return self._with_key(detail, given, given.relation)

    def _with_domain(self, given: GivenRows, relation: Relation) -> list[GivenRow]:
        """Return the rows that give a value of the domain; or lack one, if the domain is NOT NULL."""
        names = columns_of_domain(self.error, relation, self.catalog)
        lacking = self.error.pgcode == "23502"

        def may(row: GivenRow, name: str) -> bool:
            if name in row.columns:
                return lacking or row.columns[name][1] is not None
            return row.kinds != UPDATE and (lacking or relation.columns[name].has_default)

        return [row for row in given.rows if any(may(row, name) for name in names)]

    def _with_values(
        self, detail: str, given: GivenRows, relation: Relation
    ) -> tuple[list[GivenRow], bool]:
        """Return the rows that may be the shown one, and whether the first certainly lacks its value."""
        readings: list[tuple[Sequence[str], str]] = []
        routed = self.error.diag.source_function == "ExecFindPartition"
        if not routed and (whole := _ROW.search(detail)):
            readings.append(([*relation.columns], whole[1]))
        if some := _SOME.search(detail):
            if relation.columns.keys() >= {*some[1].split(", ")}:
                readings.append((some[1].split(", "), some[2]))
            elif routed:  # the partition key is an expression
                return [*given.rows], False

        def short(row: GivenRow, names: Sequence[str]) -> Iterator[str | None]:
            for text in (self._text(row, name) for name in names):
                yield text if text is None or len(text.encode()) <= _LONGEST else None

        # A generator: for most of the rows, which may be thousands, one value is enough to decide.
        rows = [
            row
            for row in given.rows
            if any(_may_be_shown(short(row, names), len(names), shown) for names, shown in readings)
        ]
        lacking = self.error.diag.column_name
        # A column that is nullable in the parent table may be NOT NULL in one partition alone.
        known = lacking in relation.columns and not relation.columns[lacking or ""].nullable
        known = known and bool(rows) and rows[0].new
        return rows, known and self._text(rows[0], lacking or "") == "null"

    def _with_key(
        self, detail: str, given: GivenRows, relation: Relation
    ) -> tuple[list[GivenRow], bool]:
        """Return the rows that may have the shown key, and whether all of these certainly have it."""
        constraint = self.found.details.get("constraint")
        for each in relation.foreign_keys:  # the name of the referenced table may have parentheses
            if each.name == constraint and each.target[1] in detail:
                detail = detail[: detail.rindex(each.target[1])]
        key = _KEY.search(detail)
        if key is None:
            return [], False
        shown = [key[2]]
        if self.error.pgcode == "23P01":
            # The existing row's key is shown behind; a text in either key may look as if it began there.
            ends = re.finditer(f"(?={re.escape(f'({key[1]})=(')})", key[2])
            shown = [key[2][: end.start()].rpartition(")")[0] for end in ends] or shown
        names = [_unquoted(name) for name in key[1].split(", ")]
        if self.error.pgcode == "23503" and names != self.found.details.get("columns"):
            return [], False  # the old key of a row that is referenced
        if not relation.columns.keys() >= {*names}:  # an expression, or a hidden column
            return [*given.rows], False
        # A row may come into a partial index by an UPDATE that does not change its key.
        every = {each.name for each in relation.unique_keys}
        every |= {each.name for each in relation.foreign_keys}
        full = constraint in every
        keys = [(self._texts(row, names, full), row) for row in given.rows]
        found = [
            (key, row)
            for key, row in keys
            if key
            and any(
                _may_be_shown(key, len(key), each)
                if None in key
                else each == ", ".join(map(str, key))
                for each in shown
            )
        ]
        certain = full or self.error.pgcode != "23505"
        certain = certain and all(None not in key and row.new for key, row in found)
        # A key shown as "a, b" may consist of one text or of two.
        certain = certain and len({tuple(key) for key, _ in found}) == 1
        return [row for _, row in found], certain

    def _texts(self, row: GivenRow, names: Sequence[str], full: bool) -> list[str | None]:
        """Return the texts of a row's key; none if an UPDATE leaves its key in a full index unchanged."""
        columns = row.relation.columns
        if row.new or not full or any(n in row.columns or columns[n].generated for n in names):
            return [self._text(row, name) for name in names]
        if row.kinds == UPDATE:
            return []
        return [None if columns[name].has_default else "null" for name in names]

    def _text(self, row: GivenRow, name: str) -> str | None:
        """Return the text of a value as PostgreSQL shows it; None if that is not known."""
        column = row.relation.columns[name]
        if name not in row.columns:
            return "null" if row.new and not column.has_default else None
        value = row.columns[name][1]
        if value is None:
            return "null"
        type = self.catalog.plain(self.catalog.type(column.type))
        name = "text" if type.kind == "enum" else type.name
        shown_as_is = (
            _SPELLED.get(name) if type.schema == "pg_catalog" or type.kind == "enum" else None
        )
        if name.startswith("int") and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        known = shown_as_is and isinstance(value, str) and shown_as_is.fullmatch(value)
        return value if known and not column.loose else None


def _unquoted(name: str) -> str:
    """Return an identifier without the quotes in which PostgreSQL may show it."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _may_be_shown(texts: Iterable[str | None], size: int, shown: str) -> bool:
    """
    Return whether values, as far as they are known, can be those that PostgreSQL shows.

    Args:
        texts: Texts of the values in the order of their columns; None for an unknown one.
        size: Number of the values.
        shown: The values that PostgreSQL shows, those of hidden and further columns among them.
    """
    parts = shown.split(", ")
    if len(parts) == size:  # no further columns, and no value that contains ", "
        return all(text is None or text == part for text, part in zip(texts, parts, strict=True))
    at, shown = 0, f", {shown}, "
    for text in texts:
        if text is not None:
            at = shown.find(f", {text}, ", at)
            if at < 0:
                return False
            at += len(text) + 2
    return True
