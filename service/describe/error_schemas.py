"""
Which errors a procedure can end with, and what each of them carries, as JSON Schema.

What a function or a trigger of the database raises under a SQLSTATE of PostgreSQL's own keeps
the URI of that SQLSTATE, so reads do not end with violations of constraints only as long as no
function in them says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from service import errors
from service.describe.definitions import Schema, reference
from service.errors import ServiceError

Kind = type[ServiceError]

ANY: tuple[Kind, ...] = (
    errors.InvalidArgument,
    errors.NoSuchProcedure,
    errors.NotAuthorized,
    errors.Canceled,
    errors.StatementTimeout,
    errors.Unavailable,
    errors.InternalError,
)
"""Of every procedure."""

DATABASE: tuple[Kind, ...] = (
    *ANY,
    errors.Conflict,
    errors.CheckViolation,
    errors.NotNullViolation,
    errors.Raised,
    errors.DatabaseRefused,
)
"""Of all that asks the database: casts to domains check their constraints, a lock may not come in time."""

ROWS: tuple[Kind, ...] = (*DATABASE, errors.TooLarge)
VIOLATIONS: tuple[Kind, ...] = (
    errors.UniqueViolation,
    errors.ForeignKeyViolation,
    errors.ExclusionViolation,
    errors.OutcomeUnknown,
)
WRITES: tuple[Kind, ...] = (*ROWS, *VIOLATIONS, errors.InvalidRow, errors.TooManyRows)
ALL: tuple[Kind, ...] = (*WRITES, errors.NotFound, errors.NotChanged)
CHANGES: tuple[Kind, ...] = (*DATABASE, errors.PositionGone)
"""Of what reads the log of changes."""

OTHERS: Mapping[str, tuple[Kind, ...]] = {
    "fn": (*ROWS, *VIOLATIONS, errors.TooManyRows),
    "describe": (*ANY, errors.TooLarge),
    "health": ANY,
    "stats": ANY,
    "why": ANY,
    "explain": ROWS,
    "changes": CHANGES,
    "position": ANY,
    "transaction": ALL,
    "transaction.begin": ANY,
    "written": (*ALL, errors.PositionGone),
}
"""Of a call of a function, of our own procedures, and of one written by hand."""

CARRIED: Mapping[str, Schema] = {
    **{
        name: {"type": "string"}
        for name in (
            "sqlstate",
            "relation",
            "column",
            "constraint",
            "detail",
            "hint",
            "path",
            "id",
            "reason",
            "clock",
        )
    },
    "columns": {"type": "array", "items": {"type": "string"}},
    "line": {"type": "integer"},
    "operation": {"type": "integer"},
    "attempts": {"type": "integer"},
    "fields": {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}},
    },
    "candidates": {"type": "array"},
    "row": {"type": ["object", "array", "integer"]},
    "retry": {"type": "boolean"},
    "retry_after": {"type": "number"},
}
"""The keyword arguments of a WAMP error."""


def definitions(by_procedure: Mapping[str, tuple[Kind, ...]]) -> dict[str, Schema]:
    """Return the shared parts: each error, what they carry, and the errors of each procedure."""
    found: dict[str, Schema] = {
        "carried": {
            "type": "object",
            "properties": dict(CARRIED),
            "additionalProperties": False,
        }
    }
    for kind in (*ALL, errors.PositionGone):
        found[_name(kind)] = _error(kind)
    for procedure, kinds in by_procedure.items():
        each = sorted({_name(kind) for kind in kinds})
        found[f"errors.{procedure}"] = {"oneOf": [reference(name) for name in each]}
    return found


def _name(kind: Kind) -> str:
    return f"error.{kind.uri.rpartition('.')[2]}"


def _error(kind: Kind) -> Schema:
    """Return what a WAMP error is, as the HTTP bridge spells it."""
    return {
        "type": "object",
        "properties": {
            "error": {"const": kind.uri},
            "args": {"type": "array", "items": {"type": "string"}, "maxItems": 1},
            "kwargs": reference("carried"),
        },
        "required": ["error"],
    }
