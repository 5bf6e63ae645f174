"""
SQLSTATE class 42 and its like: a name or an operation that there is not.

It is the caller's, or it is gone from the database, or a function's author or we have it wrong.
"""

from __future__ import annotations

import psycopg2

from service.db.diagnosis import invalid, raised, refused, unfit
from service.db.position import bound_of
from service.errors import InvalidArgument, ServiceError, Unavailable

STALE = frozenset(["0A000", "3F000", "42501", "42703", "42704", "42883", "42P01", "42P10"])
"""What PostgreSQL says of names that are there no more (undefined table, column, …), or not ours."""

_GONE = frozenset(["3F000", "42703", "42704", "42P01"])
_NAMES = _GONE | {"42725", "42883"}


def misnamed(error: psycopg2.Error) -> ServiceError | None:
    """Take class 42: an operand, a name that is gone, or a bug of ours or of a function."""
    if raised(error) or error.diag.context is not None:
        return refused(error)
    if bound_of(error) is not None or _of_a_value(error):
        return invalid(error)
    if error.pgcode in _GONE:
        return changed(error)
    if error.pgcode == "42601":
        # a query of a text search or a JSON path, or else SQL that we spelled badly
        return invalid(error) if error.diag.statement_position is None else None
    if error.pgcode in ("42883", "42804", "42846", "42725"):
        return unfit(error)
    return refused(error)


def _of_a_value(error: psycopg2.Error) -> bool:
    """
    Tell whether a name was no name of ours, but the value of a row: 'x'::regclass, ::regtype.

    Ours stand in the text of the statement, and have a place there; those of COPY, which is no
    query, have none.
    """
    if error.diag.statement_position is not None or error.pgcode not in _NAMES:
        return False
    sent = None if error.cursor is None else error.cursor.query
    return sent is None or not sent.startswith(b"COPY ")


def changed(error: psycopg2.Error) -> ServiceError:
    """Take a name that is gone: the catalog is read again, and the same call may succeed."""
    return Unavailable("the database's schema has just changed", sqlstate=error.pgcode)


def feature(error: psycopg2.Error) -> ServiceError:
    """Take what PostgreSQL cannot do: a plan that fits its tables no more, or anything else."""
    if error.diag.source_function == "RevalidateCachedQuery":
        return changed(error)
    found = refused(error)
    if error.diag.source_function == "RewriteQuery" and error.diag.context is None:
        found.details["hint"] = (
            "a rule of it gives nothing back: returning: false asks for nothing, and a rule"
            " with RETURNING answers"
        )
    return found


def keyless(error: psycopg2.Error) -> ServiceError | None:
    """Take columns of an upsert that are no unique key, as far as PostgreSQL sees."""
    if error.diag.source_function != "infer_arbiter_indexes":
        return misnamed(error)
    return InvalidArgument(
        "there is no unique key over these columns", path="on_conflict", sqlstate=error.pgcode
    )
