"""
The errors that procedures may raise, and their details, as JSON Schema.

A function or trigger of the database may raise any SQLSTATE of PostgreSQL, which is mapped to its URI: a
read can end with a constraint violation only if a function in it raises one.
"""

from __future__ import annotations

from collections.abc import Mapping

from service import errors
from service.describe.json_schema import Schema, array, record, reference
from service.errors import ServiceError

Kinds = tuple[type[ServiceError], ...]

ANY: Kinds = (
    errors.InvalidArgument,
    errors.NoSuchProcedure,
    errors.NotAuthorized,
    errors.Canceled,
    errors.StatementTimeout,
    errors.Unavailable,
    errors.InternalError,
)
"""Errors of every procedure."""
DATABASE: Kinds = (
    *ANY,
    errors.Conflict,
    errors.CheckViolation,
    errors.NotNullViolation,
    errors.Raised,
    errors.DatabaseRefused,
)
"""Errors of every procedure that runs a statement: casts to domains check constraints, locks time out."""
ROWS: Kinds = (*DATABASE, errors.TooLarge)
VIOLATIONS: Kinds = (
    errors.UniqueViolation,
    errors.ForeignKeyViolation,
    errors.ExclusionViolation,
    errors.OutcomeUnknown,
)
WRITES: Kinds = (*ROWS, *VIOLATIONS, errors.InvalidRow, errors.TooManyRows)
ALL: Kinds = (*WRITES, errors.NotFound, errors.NotChanged)
CHANGES: Kinds = (*DATABASE, errors.PositionGone)
"""Errors of procedures that read the change log."""
WRITTEN: Kinds = (*ALL, errors.PositionGone)
"""Errors of hand-written procedures, which may do anything."""
FUNCTION: Kinds = (*ROWS, *VIOLATIONS, errors.TooManyRows)
"""Errors of a call of a function."""


def definitions(by_procedure: Mapping[str, Kinds]) -> dict[str, Schema]:
    """Return the shared parts: each error, the details of errors, and the errors of each procedure."""
    found = {"carried": record({name: dict(schema) for name, schema in errors.DETAILS.items()})}
    for kind in WRITTEN:  # in the HTTP bridge's form of a WAMP error
        uri = {"const": kind.uri}
        error = {"error": uri, "args": array(str, maxItems=1), "kwargs": "carried"}
        found[_name(kind)] = record(error, ["error"], closed=False)
    for procedure, kinds in by_procedure.items():
        names = sorted(set(map(_name, kinds)))
        found[f"errors.{procedure}"] = {"oneOf": list(map(reference, names))}
    return found


def _name(kind: type[ServiceError]) -> str:
    return f"error.{kind.uri.rpartition('.')[2]}"
