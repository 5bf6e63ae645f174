"""
Which errors a procedure can end with, and what each of them carries, as JSON Schema.

What a function or a trigger of the database raises under a SQLSTATE of PostgreSQL's own keeps
the URI of that SQLSTATE, so reads do not end with violations of constraints only as long as no
function in them says so.
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
"""Of every procedure."""
DATABASE: Kinds = (
    *ANY,
    errors.Conflict,
    errors.CheckViolation,
    errors.NotNullViolation,
    errors.Raised,
    errors.DatabaseRefused,
)
"""Of all that asks the database: casts to domains check their constraints, a lock may not come in time."""
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
"""Of what reads the log of changes."""
WRITTEN: Kinds = (*ALL, errors.PositionGone)
"""Of a procedure written by hand, which may do anything."""
FUNCTION: Kinds = (*ROWS, *VIOLATIONS, errors.TooManyRows)
"""Of a call of a function."""


def definitions(by_procedure: Mapping[str, Kinds]) -> dict[str, Schema]:
    """Return the shared parts: each error, what they carry, and the errors of each procedure."""
    found = {"carried": record({name: dict(schema) for name, schema in errors.DETAILS.items()})}
    for kind in WRITTEN:  # as the HTTP bridge spells a WAMP error
        error = {
            "error": {"const": kind.uri},
            "args": array(str, maxItems=1),
            "kwargs": reference("carried"),
        }
        found[_name(kind)] = record(error, ["error"], closed=False)
    for procedure, kinds in by_procedure.items():
        each = sorted({_name(kind) for kind in kinds})
        found[f"errors.{procedure}"] = {"oneOf": [reference(name) for name in each]}
    return found


def _name(kind: type[ServiceError]) -> str:
    return f"error.{kind.uri.rpartition('.')[2]}"
