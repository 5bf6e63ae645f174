"""
The errors that a caller can get, as a tree of classes.

::

    ServiceError
    ├─ InvalidArgument      a name, type or structure in the call is wrong
    ├─ NoSuchProcedure      unknown relation, verb or function
    ├─ NotAuthorized        the role or the session lacks a right
    ├─ Canceled             the caller cancelled, and the query was stopped
    ├─ NotFound             no such row
    ├─ NotChanged           a trigger, rule or policy left a row unchanged
    ├─ InvalidRow           the values fail validation, column by column
    ├─ ConstraintViolation  a constraint of the database is violated
    │  ├─ UniqueViolation  ├─ ForeignKeyViolation  ├─ NotNullViolation
    │  └─ CheckViolation   └─ ExclusionViolation
    ├─ Conflict             `expect` or serialization failed, or an upload has ended
    ├─ TooManyRows          more than `max_affected`, or than the one row that was expected
    ├─ TooLarge             the answer is too large to be sent
    │  ├─ TooLargePart      a row or another part of a stream is too large
    │  ├─ TooManyGroups     an aggregate has more groups than one answer may have
    │  ├─ TooManyToSend     a function returned more rows than one answer may have
    │  ├─ TooManyWatched    a live query has more rows than may be watched
    │  └─ TooMuchToDescribe the description is larger than one answer may be
    ├─ StatementTimeout     the time limit has passed
    ├─ Unavailable          to be tried again later
    ├─ OutcomeUnknown       a change may be kept: COMMIT was not answered, or the call was interrupted
    ├─ Raised               RAISE in the database
    ├─ DatabaseRefused      any other SQLSTATE
    ├─ InternalError        a bug in the service: the caller only gets an id
    └─ RelayedError         an error of another process of the service

A class has the data of one error and words its message. Its `uri` is the error URI for callers; `details`
are the keyword arguments of the WAMP error, whose names have to be in `DETAILS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_INTEGER = {"type": "integer"}

DETAILS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("sqlstate", "relation", "column", "constraint", "detail", "hint"), _TEXT),
    **dict.fromkeys(("path", "id", "reason", "clock"), _TEXT),
    "columns": _TEXTS,
    **dict.fromkeys(("line", "operation", "attempts"), _INTEGER),
    "fields": {"type": "object", "additionalProperties": _TEXTS},
    "candidates": {"type": "array"},
    "row": {"type": ["object", "array", "integer"]},
    "retry": {"type": "boolean"},
    "retry_after": {"type": "number"},
}
"""The keyword arguments of a WAMP error, as JSON Schema."""

MAX_PATH = 300
"""Maximum length of a path in characters."""


class ServiceError(Exception):
    """
    An error for the caller.

    Args:
        message: One sentence for the caller.
        details: Values for names of `DETAILS`; None values are left out.
    """

    uri: ClassVar[str]

    def __init__(self, message: str, **details: Any) -> None:
        unknown = details.keys() - DETAILS
        if unknown:
            raise TypeError(f"not details of an error: {', '.join(sorted(unknown))}")
        super().__init__(message)
        self.message = message
        self.details = {name: value for name, value in details.items() if value is not None}
        if "path" in self.details:  # it repeats names from the call, which can be of any length
            self.details["path"] = clip(self.details["path"], MAX_PATH)


class InvalidArgument(ServiceError):
    """An invalid argument; `path` names its place in the call."""

    uri = "wamp.error.invalid_argument"


class UnknownName(InvalidArgument):
    """
    A column, operator or argument that does not exist.

    Args:
        kind: The kind of name, as in "column".
        name: The name in the call.
        known: The existing names; the nearest one becomes the hint.
        of: What the names belong to, as in 'relation "actions"'.
        path: The place of the name in the call.
        hint: A better hint than the nearest name, if there is one.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        known: Iterable[str],
        of: str = "",
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        where = f" in {of}" if of else ""
        hint = hint or nearest(name, list(known))
        super().__init__(f'no {kind} "{clip(name)}"{where}', path=path, hint=hint)


class NoSuchProcedure(ServiceError):
    """An unknown relation, verb or function; `hint` names the nearest one that the caller may use."""

    uri = "wamp.error.no_such_procedure"


class NotAuthorized(ServiceError):
    """The role or the session lacks a right, by PostgreSQL or by the service."""

    uri = "wamp.error.not_authorized"


class Canceled(ServiceError):
    """The caller has cancelled or left, and the query was cancelled on the server."""

    uri = "wamp.error.canceled"

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


class NotFound(ServiceError):
    """A row does not exist; if the call names several, `row` is the index of the first missing one."""

    uri = "rowcast.error.not_found"

    def __init__(self, relation: str, row: int | None = None) -> None:
        super().__init__(f'no such row in "{relation}"', relation=relation, row=row)


class NotChanged(ServiceError):
    """The database did not write a row, without an error; the write is rolled back."""

    uri = "rowcast.error.not_changed"

    def __init__(self, relation: str) -> None:
        super().__init__(
            f'the database did not write the row of "{relation}"',
            relation=relation,
            hint="a trigger, a rule or a policy leaves it out; nothing was written",
        )


class InvalidRow(ServiceError):
    """
    Values that fail validation.

    Args:
        relation: The relation of the row.
        fields: The reasons against the value of each column.
        path: The place of the row in the call, if the call has several.
    """

    uri = "rowcast.error.invalid_row"

    def __init__(
        self, relation: str, fields: Mapping[str, Sequence[str]], path: str | None = None
    ) -> None:
        reasons = "; ".join(f"{column} {reason}" for column in fields for reason in fields[column])
        super().__init__(
            f'not a valid row of "{relation}": {clip(reasons, 500)}',
            relation=relation,
            fields={column: list(found) for column, found in fields.items()},
            path=path,
        )


class ConstraintViolation(ServiceError):
    """A constraint of the database is violated; `constraint` and `columns` name it."""


class UniqueViolation(ConstraintViolation):
    """SQLSTATE 23505."""

    uri = "rowcast.error.unique_violation"


class ForeignKeyViolation(ConstraintViolation):
    """SQLSTATE 23503 and 23001."""

    uri = "rowcast.error.foreign_key_violation"


class NotNullViolation(ConstraintViolation):
    """SQLSTATE 23502."""

    uri = "rowcast.error.not_null_violation"


class CheckViolation(ConstraintViolation):
    """SQLSTATE 23514 and 44000 (a view's WITH CHECK OPTION)."""

    uri = "rowcast.error.check_violation"


class ExclusionViolation(ConstraintViolation):
    """SQLSTATE 23P01."""

    uri = "rowcast.error.exclusion_violation"


class Conflict(ServiceError):
    """
    A conflict with another write.

    `expect` failed (`row` is the current row), serialization failed in all attempts, or the transaction or
    upload of the call has ended (`reason`).
    """

    uri = "rowcast.error.conflict"


class TooManyRows(ServiceError):
    """More rows than `max_affected`, or than the one that was expected; the write is rolled back."""

    uri = "rowcast.error.too_many_rows"


class TooLarge(ServiceError):
    """
    The answer is larger than may be sent; a write is rolled back.

    Args:
        limit: The limit, in the unit of `wording`.
    """

    uri = "rowcast.error.too_large"
    wording: ClassVar[str] = "the answer is larger than {} bytes"
    hint: ClassVar[str] = (
        "ask for fewer rows with limit, for fewer columns with select, or use stream;"
        " of a write, with returning: false, for nothing"
    )

    def __init__(self, limit: int) -> None:
        super().__init__(self.wording.format(limit), hint=self.hint)


class TooLargePart(TooLarge):
    """A progressive result, such as a single row of a stream, is larger than may be sent."""

    wording = "a part of the answer is larger than {} bytes"
    hint = (
        "a row is sent in one part: ask for fewer columns with select, or use export with format: csv,"
        " which divides rows"
    )


class TooManyToSend(TooLarge):
    """
    A function returned more rows than one answer may have.

    Args:
        name: The name of the function.
        limit: Maximum number of rows of an answer.
        verbs: Whether verbs apply to the function; not if its rows are single values.
    """

    def __init__(self, name: str, limit: int, verbs: bool) -> None:
        message = f'"{name}" gave more than {counted(limit, "row")}, the most of one answer'
        paged = f'"fn.{name}.find" gives rows in pages, "fn.{name}.stream" all of them'
        bare = "a function that RETURNS TABLE has find, which gives pages, and stream"
        ServiceError.__init__(self, message, hint=paged if verbs else bare)


class TooManyGroups(TooLarge):
    """An aggregate has more groups than one answer may have."""

    wording = "there are more than {} groups, the most of one answer"
    hint = "ask for a part with where or having, or for one after the other with limit and offset"


class TooManyWatched(TooLarge):
    """A live query has more rows than may be watched."""

    wording = "there are more than {} rows, the most of one that is watched"
    hint = "watch a part with where, or the first ones with order and limit"


class TooMuchToDescribe(TooLarge):
    """The description is larger than one answer may be."""

    wording = "what is served takes more than {} bytes to describe"
    hint = "relations=[…] and functions=[…] ask for a part; relations=[] gives the names"


class StatementTimeout(ServiceError):
    """
    A time limit has passed, and the statement was cancelled on the server.

    Args:
        message: What took too long.
        clock: The time limit that has passed.
    """

    uri = "rowcast.error.timeout"

    def __init__(
        self,
        message: str = "the call took longer than its time limit and was stopped",
        clock: str | None = "statement",
    ) -> None:
        super().__init__(message, clock=clock)


class Unavailable(ServiceError):
    """
    No database, no free connection, or the service is stopping; nothing was changed.

    Args:
        message: What is missing.
        retry_after: Seconds after which the caller may retry.
    """

    uri = "rowcast.error.unavailable"

    def __init__(self, message: str, retry_after: float = 1.0, **details: Any) -> None:
        super().__init__(message, retry=True, retry_after=retry_after, **details)


class PositionGone(ServiceError):
    """The changes after a position are no longer kept, or the position is of another database."""

    uri = "rowcast.error.position_gone"

    def __init__(self) -> None:
        super().__init__(
            "the changes after this position are not kept any more",
            hint="read the rows again, and go on from position() as it was before that",
        )


class OutcomeUnknown(ServiceError):
    """
    The connection was lost during COMMIT, or a call was interrupted: changes may be kept.

    Args:
        message: What is known.
    """

    uri = "rowcast.error.outcome_unknown"

    def __init__(
        self,
        message: str = "the connection was lost during COMMIT: the change may or may not be kept",
    ) -> None:
        super().__init__(message)


def committed_despite(error: TooLarge) -> OutcomeUnknown:
    """Return the error to raise instead of `error` if the changes of the call were committed."""
    return OutcomeUnknown(f"what the call changed is kept, but {error.message}")


class Raised(ServiceError):
    """RAISE in the database: P0001, or a SQLSTATE that PostgreSQL itself does not define."""

    uri = "rowcast.error.raised"


class DatabaseRefused(ServiceError):
    """Any other SQLSTATE: of PostgreSQL, or the one that says what the service itself refuses."""

    uri = "rowcast.error.database"

    def __init__(self, message: str, *, sqlstate: str | None, **details: Any) -> None:
        super().__init__(message, sqlstate=sqlstate, **details)


class InternalError(ServiceError):
    """
    A bug in the service.

    Args:
        id: The id under which the log has the details.
    """

    uri = "rowcast.error.internal"

    def __init__(self, id: str) -> None:
        super().__init__("an internal error; the service's log has it under this id", id=id)


class RelayedError(ServiceError):
    """
    An error of another process of the service, which answered a forwarded call.

    Args:
        uri: The URI of the error.
        message: Its message.
        details: Its keyword arguments.
    """

    def __init__(self, uri: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message, **details)
        self.uri = uri  # type: ignore[misc]


def causes(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """
    Yield an error and its causes, each once, since `raise error from error` makes a loop.

    Args:
        error: The error.
        contexts: Whether to include the errors that were handled when another one was raised.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        before = each.__context__ if contexts and not each.__suppress_context__ else None
        each = each.__cause__ or before


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1."""
    return f"{number} {noun}{'s'[number == 1 :]}"


def clip(text: object, length: int = 80) -> str:
    """Return a text of a caller, cut to a length in characters."""
    word = str(text)
    return word if len(word) <= length else word[: length - 1] + "…"


def first_line(error: Exception) -> str:
    """Return an error's first line, for the log; the other lines may contain rows and statements."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def visible(text: str) -> str:
    """Return a text with terminal control characters, such as ESC, escaped; line ends are kept."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda at: f"\\x{ord(at[0]):02x}", text)


def in_line(text: object, length: int = 300) -> str:
    """
    Return a text of a WAMP peer for a line of the log.

    A URI may contain any character but white space, and a router's reason any at all. Neither may forge a
    line of the log, or control the terminal of its reader.
    """
    return visible(clip(text, length)).replace("\n", "\\n")


def nearest(name: object, known: Sequence[str]) -> str | None:
    """Return a hint with the nearest known name, or the only one with that prefix; None if there is none."""
    # The name may be of any length, and difflib's time grows with it.
    word = str(name)[:80].lower()
    known = [each for each in known if each != name]  # one that is known, but not here
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    # A name that is cut short is too far from the complete one for difflib.
    if not close and len(word) > 3:
        close = [each for each in known if each.lower().startswith(word)]
    return f'did you mean "{close[0]}"?' if len(close) == 1 else None
