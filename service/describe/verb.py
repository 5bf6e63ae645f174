"""
The class of the verb table's rows, and what verbs and other procedures share: schemas, and groups of the
errors that they may raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service import errors
from service.catalog import Relation
from service.describe.json_schema import Schema, any_of, array, limited, record, reference, words
from service.errors import ServiceError
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT
from service.request.read_request import FORMS

Right = Literal["select", "insert", "update", "delete"]
ErrorClasses = tuple[type[ServiceError], ...]

COMMON_ERRORS: ErrorClasses = (
    errors.InvalidArgument,
    errors.NoSuchProcedure,
    errors.NotAuthorized,
    errors.Canceled,
    errors.StatementTimeout,
    errors.Unavailable,
    errors.InternalError,
)
"""Errors of every procedure."""
DATABASE_ERRORS: ErrorClasses = (
    *COMMON_ERRORS,
    errors.Conflict,
    errors.CheckViolation,
    errors.NotNullViolation,
    errors.Raised,
    errors.DatabaseRefused,
)
"""
Errors of every procedure that runs a statement: casts to domains check constraints, locks time out.

A function or trigger of the database may raise any SQLSTATE of PostgreSQL, which is mapped to its URI: a
read can end with another constraint violation only if a function in it raises one.
"""
ROW_ERRORS: ErrorClasses = (*DATABASE_ERRORS, errors.TooLarge)
VIOLATIONS: ErrorClasses = (
    errors.UniqueViolation,
    errors.ForeignKeyViolation,
    errors.ExclusionViolation,
    errors.OutcomeUnknown,
)
WRITE_ERRORS: ErrorClasses = (*ROW_ERRORS, *VIOLATIONS, errors.InvalidRow, errors.TooManyRows)
UPDATE_ERRORS: ErrorClasses = (*WRITE_ERRORS, errors.NotFound, errors.NotChanged)
CHANGE_LOG_ERRORS: ErrorClasses = (*DATABASE_ERRORS, errors.PositionGone)
"""Errors of procedures that read the change log."""
ALL_ERRORS: ErrorClasses = (*UPDATE_ERRORS, errors.PositionGone)
"""Errors of hand-written procedures, which may do anything."""
FUNCTION_ERRORS: ErrorClasses = (*ROW_ERRORS, *VIOLATIONS, errors.TooManyRows)
"""Errors of a call of a function."""


@dataclass(frozen=True, slots=True)
class Verb:
    """
    A verb: one row of the verb table, with all that is particular to it.

    Args:
        name: The last component of its URIs.
        handler: Takes a `Call`; returns its only `Step`, or an awaitable of the result or of the last
            step if there are several. None in the table if the handler has state, as for uploads: the
            verb is served once its handler is registered with the dispatcher.
        arguments: JSON Schema of its arguments, the same for all relations.
        result: JSON Schema of its result; may be just a reference to that of another verb.
        errors: Errors that it may raise.
        positional: Names of the arguments that may be positional, in order.
        takes: Arguments whose schema depends on the relation: its "key" or "keys", new "values", or
            "trees" of them with related rows, an "update", or rows that are "imported".
        answers: The default form of its result: a "row", "rows", rows "got" by keys, "null", a "page"
            of rows, or rows "written".
        sends: The default form of each progressive result.
        progress: JSON Schema of each progressive result; None if it sends none.
        rights: Privileges that the caller's role needs; the first one also determines which views
            have the verb.
        fits: Whether a relation has what else the verb needs.
        on_functions: Whether the rows of functions have it, too.
    """

    name: str
    handler: Callable[[Any], Any] | None
    arguments: Schema
    result: Schema
    errors: ErrorClasses
    positional: tuple[str, ...] = ()
    takes: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    progress: Schema | None = None
    rights: tuple[Right, ...] = ("select",)
    fits: Callable[[Relation], bool] = lambda _: True
    on_functions: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes rows, and so takes an idempotency key."""
        return self.rights[0] != "select"


COUNTED = limited(int, minimum=0)
ROWS = array(dict)
NAMES = array(str)
TIMEOUT = {"timeout": reference("seconds")}
WRITES = {each: reference(each) for each in (IDEMPOTENCY_KEY, RECEIPT)}
"""Arguments of everything that writes."""
FORM = {"form": words(*FORMS)}


def forms(*usual: Any, more: Iterable[Any] = ()) -> Schema:
    """Return the schema of a result in its default forms, as lists, as JSON text, or in `more` forms."""
    return any_of(*usual, "lists", "text", *more)


def error_definitions(by_procedure: Mapping[str, ErrorClasses]) -> dict[str, Schema]:
    """Return the shared parts: each error, the details of errors, and the errors of each procedure."""
    found = {"carried": record({name: dict(schema) for name, schema in errors.DETAILS.items()})}
    for kind in ALL_ERRORS:  # in the HTTP bridge's form of a WAMP error
        uri = {"const": kind.uri}
        error = {"error": uri, "args": array(str, maxItems=1), "kwargs": "carried"}
        found[_error_name(kind)] = record(error, ["error"], closed=False)
    for procedure, kinds in by_procedure.items():
        names = sorted(set(map(_error_name, kinds)))
        found[f"errors.{procedure}"] = {"oneOf": list(map(reference, names))}
    return found


def _error_name(kind: type[ServiceError]) -> str:
    return f"error.{kind.uri.rpartition('.')[2]}"
