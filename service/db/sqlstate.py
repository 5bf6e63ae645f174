"""
Errors of PostgreSQL and psycopg2 → `ServiceError`, by SQLSTATE.

The exact code is looked up first, then its class (the first two characters). Messages for callers are
worded here, because PostgreSQL's own show values of rows, names of hidden relations, and the host and user
of a failed connect. PostgreSQL's message is passed on only if it was raised by a function's author (RAISE),
or is about the caller's operand and types only; the DETAIL of a constraint violation, which shows keys or
entire rows, only if it shows the caller's own key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import QueryCanceledError
from twisted.internet.defer import CancelledError

from service.catalog import Catalog, QualifiedName, Relation
from service.db.error_paths import (
    bound_of,
    columns_of_domain,
    has_many_rows,
    mark_of,
    name_line,
    paths_of,
    point_at_row,
    rows_of,
)
from service.errors import (
    Canceled,
    CheckViolation,
    Conflict,
    ConstraintViolation,
    DatabaseRefused,
    ExclusionViolation,
    ForeignKeyViolation,
    InvalidArgument,
    NotAuthorized,
    NotNullViolation,
    OutcomeUnknown,
    Raised,
    ServiceError,
    StatementTimeout,
    Unavailable,
    UniqueViolation,
    clip,
    nearest,
)
from service.plan.plans import Bound
from service.request.synonyms import value_hint
from service.sql.statement import quoted
from service.waiting import in_thread

_DATA_FREE = frozenset(["0A", "21", "25", "42", "54", "55"])
"""Classes whose messages contain commands, names and types, but no values of rows."""

_CATALOG_SCHEMA = re.compile(r"\bpg_catalog\.(?=[^\w\s\"])|(?<=function )pg_catalog\.")
"""The qualifier of operators and functions in the service's SQL, which callers have not written."""

_IN_WITH = b'WITH "w" ('
"""The beginning of a write whose rows are read again."""

_VALUE = re.compile(r'\s*:?\s*".*"', re.DOTALL)
_LACKING = re.compile(r'missing data for column "(.*)"', re.DOTALL)
_HELD = {
    "jsonb_object_keys": "what is there is no object, to merge into",
    "jsonb_array_length": "what is there is no list, to add to",
}
"""Messages by the function that fails, of those that check the kind of a computed JSON value."""
Make = Callable[[psycopg2.Error], ServiceError | None]
_KNOWN = frozenset(
    value for name, value in vars(errorcodes).items() if name.isupper() and len(value) == 5
)

_SEQUENCE = re.compile(r"permission denied for sequence (.+)", re.DOTALL)
_OF_THE_SERVER = ("08", "25", "26", "28", "2D", "3D", "40003", "53", "55006", "57")
"""Classes and codes of the state of the server or session; RAISE with one does not mean that state."""

STALE = frozenset(["0A000", "3F000", "42501", "42703", "42704", "42883", "42P01", "42P10"])
"""SQLSTATEs of objects that were dropped, or may not be used any more: the catalog may be outdated."""

_GONE = frozenset(["3F000", "42703", "42704", "42P01"])
_NAMES = _GONE | {"42725", "42883"}


def refusal(
    error: BaseException,
    catalog: Catalog | None = None,
    relation: Relation | None = None,
) -> ServiceError | None:
    """
    Return the `ServiceError` for an error; None if it is no error of the database.

    Args:
        error: The error, on which `annotate_position` may have noted a parameter.
        catalog: The served catalog: no other object is named in the error.
        relation: The relation of the call.
    """
    if isinstance(error, ServiceError):
        return error
    kept: ServiceError | None = getattr(error, "refusal", None)
    if kept is not None:
        return kept
    if isinstance(error, CancelledError):
        return Canceled()
    if not isinstance(error, psycopg2.Error):
        return None
    given = rows_of(error, catalog)
    if given is not None:
        relation = given.relation
    found = _refusal(error, catalog, relation)
    if found is not None:
        name_line(found, error, relation, given)
    if isinstance(found, ConstraintViolation):
        point_at_row(found, error, catalog)
    return found


async def look_through_rows(
    reactor: Any, error: BaseException, catalog: Catalog | None, relation: Relation | None = None
) -> None:
    """Find the refusal for an error with many rows in a thread; `refusal` returns it from then on."""
    if isinstance(error, psycopg2.Error) and has_many_rows(error):
        found = await in_thread(reactor, "pg-rows", refusal, error, catalog, relation)
        error.refusal = found  # type: ignore[attr-defined]


def _refusal(
    error: psycopg2.Error, catalog: Catalog | None, relation: Relation | None
) -> ServiceError | None:
    if error.pgcode is None:
        return _without_code(error)
    # Not one of PostgreSQL's codes: RAISE accepts any five letters and digits.
    if error.pgcode not in _KNOWN:
        return _as_raised(error)
    broken = _violation(error, catalog, relation)
    if broken is not None:
        return _as_raised(error, type(broken), broken.message) if _is_raised(error) else broken
    # Otherwise RAISE invalid_password, say, would be reported as a database that cannot be reached.
    if _is_raised(error) and error.pgcode.startswith(_OF_THE_SERVER):
        return _refused(error)
    make = _EXACT.get(error.pgcode) or _CLASSES.get(error.pgcode[:2]) or _refused
    found = make(error)
    if relation is not None and isinstance(found, InvalidArgument):
        name_column(found, error, relation)
    return found


def _without_code(error: psycopg2.Error) -> ServiceError | None:
    """
    Return the `ServiceError` for an error without an SQLSTATE, which is of libpq or psycopg2.

    libpq's message of a failed connect has the host and user, so it is not passed on.
    """
    if isinstance(error, QueryCanceledError):
        return Canceled()
    if isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
        return Unavailable("the connection to the database was lost, or cannot be made")
    closed = error.cursor is not None and error.cursor.connection.closed
    return Unavailable("the connection to the database was lost") if closed else None


def _is_raised(error: psycopg2.Error) -> bool:
    """Return whether the error comes from RAISE, so that its message is that of a function's author."""
    # Recognized by PL/pgSQL's C function, because RAISE may use any SQLSTATE.
    return error.diag.source_function == "exec_stmt_raise"


def _message_of(error: psycopg2.Error, otherwise: str) -> dict[str, Any]:
    """Return message and details: the author's if the error was raised, else `otherwise`."""
    if _is_raised(error):
        return _authors(error, otherwise)
    return {"message": otherwise, "sqlstate": error.pgcode}


def _authors(error: psycopg2.Error, otherwise: str) -> dict[str, Any]:
    diag = error.diag
    return {
        "message": diag.message_primary or otherwise,
        "detail": diag.message_detail,
        "hint": diag.message_hint,
        "sqlstate": error.pgcode,
    }


def _as_raised(
    error: psycopg2.Error,
    kind: type[ServiceError] = Raised,
    otherwise: str = "the database refused",
) -> ServiceError:
    """Return an error of a kind with the message and details of the author who raised it."""
    diag, details = error.diag, _authors(error, otherwise)
    return kind(**details, constraint=diag.constraint_name, column=diag.column_name)


def _refused(error: psycopg2.Error) -> ServiceError:
    """Return the general error, with PostgreSQL's message if that contains no data."""
    code = error.pgcode or ""
    message = f"the database refused ({errorcodes.lookup(code).lower().replace('_', ' ')})"
    # An error with a context comes from the body of a function, whose names callers must not see.
    if code[:2] in _DATA_FREE and error.diag.context is None:
        message = clip(_primary(error) or message, 300)
    return DatabaseRefused(**_message_of(error, message))


def _primary(error: psycopg2.Error) -> str:
    return _CATALOG_SCHEMA.sub("", error.diag.message_primary or "")


def _invalid(error: psycopg2.Error) -> ServiceError:
    """Return the error of an invalid operand; its value is shown only if the caller sent it."""
    if _is_raised(error):
        return InvalidArgument(**_message_of(error, ""))
    message, bound = _primary(error), bound_of(error)
    if error.pgcode == errorcodes.BAD_COPY_FILE_FORMAT:  # its message has the names of columns only
        lacking = _LACKING.fullmatch(message)
        column = lacking[1] if lacking else None
        return InvalidArgument(clip(message, 300), column=column, sqlstate=error.pgcode)
    if bound is None or error.diag.statement_position is None:
        # The value may be one of a row, for which a cast or function has failed.
        message = _VALUE.sub("", message) or "a value does not fit its type"
        mark = None if bound else mark_of(error)
        place = bound or mark
        if mark is not None:
            message = _HELD.get(error.diag.source_function or "", message)
        return InvalidArgument(
            message,
            path=place.path if place else None,
            column=mark.column or None if mark else None,
            sqlstate=error.pgcode,
        )
    return InvalidArgument(
        clip(message, 300), path=bound.path, sqlstate=error.pgcode, hint=_label_hint(error, bound)
    )


def _no_operator(error: psycopg2.Error) -> ServiceError:
    """Return the error of an operator that does not exist for the operands' types."""
    message = clip(_primary(error) or "no such operation for these types", 300)
    mark = mark_of(error)
    if mark is None:
        return InvalidArgument(message, sqlstate=error.pgcode)
    return InvalidArgument(
        message, path=mark.path, column=mark.column or None, hint=mark.hint, sqlstate=error.pgcode
    )


def _label_hint(error: psycopg2.Error, bound: Bound) -> str | None:
    found = re.search(r'"(.*)"', error.diag.message_primary or "", re.DOTALL)
    if found is None:
        return None
    return nearest(found[1], bound.type.labels) or value_hint(bound.path, found[1], False)


def name_column(found: InvalidArgument, error: psycopg2.Error, relation: Relation) -> None:
    """Add the column, and its path: the path's last step, or the only column of the type in the message."""
    if "column" in found.details:
        return
    path = str(found.details.get("path", ""))
    if not path and error.diag.context is None:
        path = _misfit(error, relation)
    name = path.rpartition(".")[2]
    if name in relation.columns:
        found.details["column"] = name
        if path != name:
            found.details.setdefault("path", path)


def _misfit(error: psycopg2.Error, relation: Relation) -> str:
    """
    Return the path of the value that is too long or too large for its column's type modifiers.

    PostgreSQL's message has the type, but not the column.

    Returns:
        If only one column has the type, the path of the only value given for it, else the column. If
        several may be meant, "".
    """
    said = error.diag.message_primary or ""
    if (error.diag.source_function or "").startswith("apply_typmod"):  # a numeric
        modifiers = re.findall("-?[0-9]+", error.diag.message_detail or "")[:2]
        said = f" numeric({','.join(modifiers)})"
    elif error.pgcode not in ("22001", "22026"):  # "value too long for type character varying(20)"
        return ""
    columns = relation.columns.values()
    names = [each.name for each in columns if said.endswith(f" {each.declared}")]
    given = [path for path in paths_of(error) if path.rpartition(".")[2] in names]
    written = {path.rpartition(".")[2] for path in given}
    if len(names) > 1 and not any(relation.columns[name].generated for name in names):
        names = [*written]
    if len(names) != 1:
        return ""
    return given[0] if len(given) == 1 else names[0]


def _syntax_or_access_rule(error: psycopg2.Error) -> ServiceError | None:
    """Return the error of class 42: an operand, a dropped object, or a bug of a function or of ours."""
    if _is_raised(error) or error.diag.context is not None:
        return _refused(error)
    if bound_of(error) is not None or _of_a_value(error):
        return _invalid(error)
    if error.pgcode in _GONE:
        return _schema_changed(error)
    if error.pgcode == "42601":
        # Without a position, the syntax error is in a tsquery or a JSON path; with one, in our SQL.
        return _invalid(error) if error.diag.statement_position is None else None
    if error.pgcode in ("42883", "42804", "42846", "42725"):
        return _no_operator(error)
    return _refused(error)


def _of_a_value(error: psycopg2.Error) -> bool:
    """
    Return whether the unknown name was a value, as in 'x'::regclass.

    An error about a name in the statement has a position, except in COPY, which is no query.
    """
    if error.diag.statement_position is not None or error.pgcode not in _NAMES:
        return False
    sent = None if error.cursor is None else error.cursor.query
    return sent is None or not sent.startswith(b"COPY ")


def _schema_changed(error: psycopg2.Error) -> ServiceError:
    """Return the error of a dropped object; the catalog is read again, and a retry may succeed."""
    return Unavailable("the database's schema has just changed", sqlstate=error.pgcode)


def _unsupported(error: psycopg2.Error) -> ServiceError:
    """Return the error of an unsupported feature."""
    # "cached plan must not change result type": the schema has changed.
    if error.diag.source_function == "RevalidateCachedQuery":
        return _schema_changed(error)
    found = _refused(error)
    if error.diag.source_function == "RewriteQuery" and error.diag.context is None:
        sent = b"" if error.cursor is None else error.cursor.query or b""
        found.details["hint"] = (
            "PostgreSQL takes few rules in such a statement: without embed, order and computed"
            " columns it answers"
            if _IN_WITH in sent
            else "a rule of it gives nothing back: returning: false asks for nothing, and a rule"
            " with RETURNING answers"
        )
    return found


def _no_unique_key(error: psycopg2.Error) -> ServiceError | None:
    """Return the error of an upsert by columns without a unique index."""
    # 42P10 is also the error of positions in GROUP BY and ORDER BY.
    if error.diag.source_function != "infer_arbiter_indexes":
        return _syntax_or_access_rule(error)
    return InvalidArgument(
        "there is no unique key over these columns", path="on_conflict", sqlstate=error.pgcode
    )


def _transaction_end(error: psycopg2.Error) -> ServiceError:
    return DatabaseRefused(
        "the procedure would commit or roll back a transaction that is not its own",
        hint="it may when it is called alone, without idempotency_key, and not through a transaction pooler",
        sqlstate=error.pgcode,
    )


def _duplicate_key(error: psycopg2.Error) -> ServiceError:
    """Return the error of an upsert that writes a row twice."""
    # A scalar subselect with more than one row has the same code, 21000.
    if not (error.diag.source_function or "").startswith("ExecOnConflict"):
        return _refused(error)
    return InvalidArgument(
        "two of these rows have the same key, and a call writes a row once",
        path="values",
        hint="give each key once",
        sqlstate=error.pgcode,
    )


def _generated(error: psycopg2.Error) -> ServiceError:
    """Return the error of a value for a generated column, written through a view."""
    return InvalidArgument(**_message_of(error, "the database makes a column of these by itself"))


def _forbidden(error: psycopg2.Error) -> ServiceError:
    # A row that a policy refuses has the same code as a missing privilege, 42501.
    if error.diag.source_function == "ExecWithCheckOptions":
        said = "row-level security does not let this role write such a row"
    else:
        said = "the database's role may not do this"
    found = NotAuthorized(**_message_of(error, said))
    sequence = _SEQUENCE.fullmatch(error.diag.message_primary or "")
    if sequence is not None and error.diag.context is None and not _is_raised(error):
        # A column's default calls nextval() with the privileges of the role that writes the row.
        found.details["hint"] = f"the role lacks GRANT USAGE ON SEQUENCE {quoted(sequence[1])}"
    return found


def _conflict(error: psycopg2.Error) -> ServiceError:
    details = _message_of(error, "it met another transaction's changes or locks")
    clock = "lock" if error.pgcode == "55P03" and not _is_raised(error) else None
    attempts = getattr(error, "attempts", None)  # set by `Retries.run`
    return Conflict(**details, clock=clock, attempts=attempts, retry=True)


def _read_only(error: psycopg2.Error) -> ServiceError:
    if getattr(error, "read_only", False):  # set by `Database.run`
        return DatabaseRefused(
            "this would write, and the transaction is read_only", sqlstate=error.pgcode
        )
    message = "the database takes no writes here: it is read-only"
    return Unavailable(message, 5.0, sqlstate=error.pgcode)


def _canceled(error: psycopg2.Error) -> ServiceError:
    # A cancel and a statement timeout have one code; a message that is not English counts as a timeout.
    by_us = "user request" in (error.diag.message_primary or "")
    return Canceled() if by_us else StatementTimeout()


def _unavailable(message: str, retry_after: float, clock: str | None = None) -> Make:
    return lambda error: Unavailable(message, retry_after, sqlstate=error.pgcode, clock=clock)


_EXACT: dict[str, Make] = {
    "0A000": _unsupported,
    "21000": _duplicate_key,
    "25006": _read_only,
    "25P03": _unavailable("the transaction lay idle for too long and was rolled back", 0.0, "idle"),
    "25P04": lambda _: StatementTimeout(clock="transaction"),
    "2D000": _transaction_end,
    "26000": _unavailable("the session was exchanged for another", 0.0),
    "3F000": _syntax_or_access_rule,
    "40003": lambda _: OutcomeUnknown(),
    "42501": _forbidden,
    "428C9": _generated,
    "42P10": _no_unique_key,
    "55006": _unavailable("what is asked for is in use", 1.0),
    "55P03": _conflict,
    "57014": _canceled,
    "P0001": _as_raised,
}

_CLASSES: dict[str, Make] = {
    "08": _unavailable("the connection to the database was lost", 1.0),
    "0P": _forbidden,
    "22": _invalid,
    "28": _unavailable("the service cannot log in to the database", 5.0),
    "3D": _unavailable("there is no such database", 5.0),
    "40": _conflict,
    "42": _syntax_or_access_rule,
    "53": _unavailable("the database is out of resources", 5.0),
    "57": _unavailable("the database is shutting down or starting up", 2.0),
}


def nothing_changed(error: Exception) -> bool:
    """Return whether an error guarantees that nothing was changed."""
    found = refusal(error)
    return isinstance(found, Canceled | StatementTimeout) or bool(
        found and found.details.get("retry")
    )


class Violation(NamedTuple):
    """
    What PostgreSQL reports of a violated constraint; a partition is reported as its root table.

    Args:
        home: Schema and name of the table, or of the domain.
        constraint: Name of the constraint, as declared on the root table.
        column: Column of a NOT NULL constraint.
        detail: PostgreSQL's DETAIL.
        domain: Whether it is a constraint of a domain.
        sqlstate: SQLSTATE of class 23, or 44000.
    """

    home: QualifiedName
    constraint: str | None
    column: str | None
    detail: str | None
    domain: bool
    sqlstate: str


def _violation(
    error: psycopg2.Error, catalog: Catalog | None, acted_on: Relation | None
) -> ConstraintViolation | None:
    """
    Return the error of a violated constraint; None if the error is another one.

    Args:
        error: PostgreSQL's error.
        catalog: The served catalog: no other object is named.
        acted_on: The relation of the call, if it has one.
    """
    make = _KINDS.get(error.pgcode or "")
    if make is None:
        return None
    reported = _reported(error, catalog)
    relation = None if catalog is None else catalog.relations.get(reported.home)
    found = make(reported, relation, acted_on)
    if reported.domain and catalog is not None and acted_on is not None:
        _name_domain_column(found, error, catalog, acted_on)
    return found


def _reported(error: psycopg2.Error, catalog: Catalog | None) -> Violation:
    diag = error.diag
    table, name, detail = diag.table_name or "", diag.constraint_name, diag.message_detail
    home = (diag.schema_name or "", table or diag.datatype_name or "")
    if catalog is not None and table:
        name = catalog.constraint_copies.get((*home, name or ""), name)
        home = catalog.partitions.get(home, home)
        before, found, after = (detail or "").rpartition(f'"{table}"')
        if found and ")" not in after:  # not inside the key in parentheses, which may be any text
            detail = f'{before}"{home[1]}"{after}'
    return Violation(home, name, diag.column_name, detail, not table, error.pgcode or "")


def _name_domain_column(
    found: ConstraintViolation, error: psycopg2.Error, catalog: Catalog, acted_on: Relation
) -> None:
    """Add the only written column that contains values of the domain; PostgreSQL reports no column."""
    given = rows_of(error, catalog)
    written = (
        {*acted_on.columns} if given is None else {n for row in given.rows for n in row.columns}
    )
    names = [*written & columns_of_domain(error, acted_on, catalog)]
    if len(names) == 1 and error.diag.context is None:
        found.message = f"{_listed(names)} does not satisfy a check of the database"
        found.details.setdefault("column", names[0])
        found.details.setdefault("columns", names)


def _details(
    reported: Violation,
    relation: Relation | None,
    columns: Sequence[str] | None,
    detail: str | None = None,
) -> dict[str, Any]:
    known = reported.constraint in (relation.constraints if relation else ())
    return {
        "columns": list(columns) if columns else None,
        "column": columns[0] if columns and len(columns) == 1 else None,
        "detail": detail,
        "sqlstate": reported.sqlstate,
        "relation": relation.name if relation else None,
        # A constraint of a domain belongs to no relation.
        "constraint": reported.constraint if known or reported.domain else None,
    }


def _unique(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.unique_keys if relation else ()
    key = next((each for each in keys if each.name == reported.constraint), None)
    columns = key.columns if key else ()
    # A trigger may write to other relations, whose keys the caller may not see.
    shown = key is not None and _home(acted_on) == reported.home and _readable(relation, columns)
    which = f" of {_listed(columns)}" if columns else ""
    return UniqueViolation(
        f"there is a row with the same value{which} already",
        **_details(reported, relation, columns, reported.detail if shown else None),
    )


def _foreign_key(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    keys = relation.foreign_keys if relation else ()
    key = next((each for each in keys if each.name == reported.constraint), None)
    columns = key.columns if key else ()
    message = "a reference between rows would no longer hold"
    if relation is not None and key is not None:
        here, home = _home(acted_on), _home(relation)
        detail = reported.detail or ""
        missing = "not present in table" in detail
        # If the message is not in English, the relation of the call decides which of the two it is.
        if "referenced from table" in detail or (not missing and home != here == key.target):
            message = f'rows of "{relation.name}" still refer to it'
        elif missing or home == here != key.target:
            message = f'{_listed(columns)} refers to no row of "{key.target[1]}"'
    own = key is not None and _home(acted_on) in (reported.home, key.target)
    shown = own and _readable(relation, columns)
    return ForeignKeyViolation(
        message, **_details(reported, relation, columns, reported.detail if shown else None)
    )


def _not_null(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    known = relation is not None and reported.column in relation.columns
    column = reported.column if known else None
    return NotNullViolation(
        f'"{column}" must not be null' if column else "a value that is required is missing",
        **_details(reported, relation, [column] if column else None),
    )


def _check(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(reported, relation)
    if reported.sqlstate == "44000":
        message = "the row would not belong to the view it is written through"
    elif reported.constraint is None:
        message = "no part of the relation takes such a row"  # there is no partition for it
    else:
        message = f"{_listed(columns) or 'a value'} does not satisfy a check of the database"
    return CheckViolation(message, **_details(reported, relation, columns))


def _exclusion(
    reported: Violation, relation: Relation | None, acted_on: Relation | None
) -> ConstraintViolation:
    columns = _checked(reported, relation)
    which = f" in {_listed(columns)}" if columns else ""
    return ExclusionViolation(
        f"the row conflicts with another one{which}", **_details(reported, relation, columns)
    )


_KINDS = {
    "23001": _foreign_key,
    "23502": _not_null,
    "23503": _foreign_key,
    "23505": _unique,
    "23514": _check,
    "23P01": _exclusion,
    "44000": _check,
}


def _checked(reported: Violation, relation: Relation | None) -> tuple[str, ...]:
    known = relation.constraints if relation else {}
    return known.get(reported.constraint or "", ())


def _home(relation: Relation | None) -> tuple[str, str] | None:
    return (relation.schema, relation.name) if relation else None


def _readable(relation: Relation | None, columns: tuple[str, ...]) -> bool:
    return relation is not None and all(relation.columns[name].selectable for name in columns)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
