"""
Errors of PostgreSQL and psycopg2 → refusals of ours, by SQLSTATE.

An exact code is looked up first, then its class (its first two characters). What a caller
reads is worded here, since PostgreSQL's messages show values of rows, names of hidden
relations, and the host and user of a failed connect. Its own words go out only where they
are the author's (RAISE) or speak of nothing but the caller's operand and of types.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import QueryCanceledError
from twisted.internet.defer import CancelledError

from service.catalog import Catalog, Relation
from service.db.diagnosis import invalid, name_column, name_line, raised, refused, retold, words
from service.db.misnamed import feature, keyless, misnamed
from service.db.violations import violation
from service.errors import (
    Canceled,
    Conflict,
    DatabaseRefused,
    InvalidArgument,
    NotAuthorized,
    OutcomeUnknown,
    Raised,
    ServiceError,
    StatementTimeout,
    Unavailable,
)
from service.sql.statement import quoted

Make = Callable[[psycopg2.Error], ServiceError | None]

_KNOWN = frozenset(
    value for name, value in vars(errorcodes).items() if name.isupper() and len(value) == 5
)
_SEQUENCE = re.compile(r"permission denied for sequence (.+)", re.DOTALL)
_OF_THE_SERVER = ("08", "25", "26", "28", "2D", "3D", "40003", "53", "55006", "57")
"""Classes and codes of how the server or a session is; raised by an author they do not tell it."""


def refusal(
    error: BaseException,
    catalog: Catalog | None = None,
    relation: Relation | None = None,
) -> ServiceError | None:
    """
    Give the refusal for an error; None if it is no error of the database's.

    Args:
        error: As it came out of the database room; `position.point_out` may have noted
            which parameter it points at.
        catalog: What is served; nothing else is named.
        relation: Of the call.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, CancelledError):
        return Canceled()
    if not isinstance(error, psycopg2.Error):
        return None
    found = _worded(error, catalog, relation)
    if found is not None:
        name_line(found, error, relation)
    return found


def _worded(
    error: psycopg2.Error, catalog: Catalog | None, relation: Relation | None
) -> ServiceError | None:
    if error.pgcode is None:
        return _without_code(error)
    if error.pgcode not in _KNOWN:
        return _as_raised(error)
    broken = violation(error, catalog, relation)
    if broken is not None:
        return retold(error, broken) if raised(error) else broken
    if raised(error) and error.pgcode.startswith(_OF_THE_SERVER):
        return refused(error)
    make = _EXACT.get(error.pgcode) or _CLASSES.get(error.pgcode[:2]) or refused
    found = make(error)
    if relation is not None and isinstance(found, InvalidArgument):
        name_column(found, error, relation)
    return found


def _without_code(error: psycopg2.Error) -> ServiceError | None:
    """
    Take an error that the server did not word.

    libpq's message of a failed connect names host and user, so it is not passed on.
    """
    if isinstance(error, QueryCanceledError):
        return Canceled()
    if isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
        return Unavailable("the connection to the database was lost, or cannot be made")
    closed = error.cursor is not None and error.cursor.connection.closed
    return Unavailable("the connection to the database was lost") if closed else None


def _as_raised(error: psycopg2.Error) -> ServiceError:
    diag = error.diag
    return Raised(
        diag.message_primary or "the database refused",
        detail=diag.message_detail,
        hint=diag.message_hint,
        constraint=diag.constraint_name,
        column=diag.column_name,
        sqlstate=error.pgcode,
    )


def _ending(error: psycopg2.Error) -> ServiceError:
    return DatabaseRefused(
        "the procedure would commit or roll back a transaction that is not its own",
        hint="it may when it is called alone, and not through a transaction pooler",
        sqlstate=error.pgcode,
    )


def _repeated(error: psycopg2.Error) -> ServiceError:
    """Take a row that an upsert meets twice, or another cardinality that is wrong."""
    if not (error.diag.source_function or "").startswith("ExecOnConflict"):
        return refused(error)
    return InvalidArgument(
        "two of these rows have the same key, and a call writes a row once",
        path="values",
        hint="give each key once",
        sqlstate=error.pgcode,
    )


def _made(error: psycopg2.Error) -> ServiceError:
    """Take a value for what a table makes by itself, given through a view."""
    return InvalidArgument(**words(error, "the database makes a column of these by itself"))


def _forbidden(error: psycopg2.Error) -> ServiceError:
    if error.diag.source_function == "ExecWithCheckOptions":
        said = "row-level security does not let this role write such a row"
    else:
        said = "the database's role may not do this"
    found = NotAuthorized(**words(error, said))
    sequence = _SEQUENCE.fullmatch(error.diag.message_primary or "")
    if sequence is not None and error.diag.context is None and not raised(error):
        # a column's default takes its next value with the rights of the role that writes the row
        found.details["hint"] = f"the role lacks GRANT USAGE ON SEQUENCE {quoted(sequence[1])}"
    return found


def _conflict(error: psycopg2.Error) -> ServiceError:
    told = words(error, "it met another transaction's changes; the same call may succeed")
    return Conflict(**told, retry=True)


def _canceled(error: psycopg2.Error) -> ServiceError:
    # both have one code; a server that speaks another language is taken to mean its limit
    by_us = "user request" in (error.diag.message_primary or "")
    return Canceled() if by_us else StatementTimeout()


def _unavailable(message: str, retry_after: float) -> Make:
    return lambda error: Unavailable(message, retry_after, sqlstate=error.pgcode)


_EXACT: dict[str, Make] = {
    "0A000": feature,
    "21000": _repeated,
    "25006": _unavailable("the database takes no writes here: it is read-only", 5.0),
    "25P03": _unavailable("the transaction lay idle for too long and was rolled back", 0.0),
    "25P04": lambda _: StatementTimeout(),
    "2D000": _ending,
    "26000": _unavailable("the session was exchanged for another", 0.0),
    "3F000": misnamed,
    "40003": lambda _: OutcomeUnknown(),
    "42501": _forbidden,
    "428C9": _made,
    "42P10": keyless,
    "55006": _unavailable("what is asked for is in use", 1.0),
    "55P03": _conflict,
    "57014": _canceled,
    "P0001": _as_raised,
}

_CLASSES: dict[str, Make] = {
    "08": _unavailable("the connection to the database was lost", 1.0),
    "0P": _forbidden,
    "22": invalid,
    "28": _unavailable("the service cannot log in to the database", 5.0),
    "3D": _unavailable("there is no such database", 5.0),
    "40": _conflict,
    "42": misnamed,
    "53": _unavailable("the database is out of resources", 5.0),
    "57": _unavailable("the database is shutting down or starting up", 2.0),
}
