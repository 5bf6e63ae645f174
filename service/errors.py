"""
Every refusal, by family.

::

    ServiceError
    ├─ InvalidArgument      the call itself: a name, a type, a shape
    ├─ NoSuchProcedure      unknown relation, verb or function
    ├─ NotAuthorized        role or session
    ├─ Canceled             the caller cancelled, the query was stopped
    ├─ NotFound             no such row
    ├─ NotChanged           a trigger, rule or policy kept a row as it was
    ├─ InvalidRow           the values fail validation, column by column
    ├─ ConstraintViolation  a constraint of the database says no
    │  ├─ UniqueViolation  ├─ ForeignKeyViolation  ├─ NotNullViolation
    │  └─ CheckViolation   └─ ExclusionViolation
    ├─ Conflict             `expect` or serialization failed, or an upload has ended
    ├─ TooManyRows          over `max_affected`, or one row was expected
    ├─ TooLarge             the answer may not be sent
    │  ├─ TooManyGroups     an aggregate has more groups than an answer holds
    │  ├─ TooManyToSend     a function gave more rows than an answer holds
    │  ├─ TooManyWatched    a query has more rows than are watched
    │  └─ TooMuchToDescribe more is served than one answer describes
    ├─ StatementTimeout     over the time limit
    ├─ Unavailable          try again later
    ├─ OutcomeUnknown       a change may be kept: COMMIT had no answer, or the call went half way
    ├─ Raised               RAISE in the database
    ├─ DatabaseRefused      any other SQLSTATE
    ├─ InternalError        a bug of ours: the caller gets an id alone
    └─ Relayed              what another process of the service has refused

A class holds the data of one refusal and words its message. Its `uri` is what WAMP
callers see; `details` are the keyword arguments of the WAMP error, and only the names
in `DETAILS` may be used.
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
"""Characters of a path."""


class ServiceError(Exception):
    """
    A refusal with its wire form.

    Args:
        message: One sentence for the person who made the call.
        details: Values for names of `DETAILS`; a None is left out.
    """

    uri: ClassVar[str]

    def __init__(self, message: str, **details: Any) -> None:
        unknown = details.keys() - DETAILS
        if unknown:
            raise TypeError(f"not details of an error: {', '.join(sorted(unknown))}")
        super().__init__(message)
        self.message = message
        self.details = {name: value for name, value in details.items() if value is not None}
        if "path" in self.details:  # it repeats the caller's own words, however long
            self.details["path"] = clip(self.details["path"], MAX_PATH)


class InvalidArgument(ServiceError):
    """A malformed call; `path` points at the argument, `hint` helps."""

    uri = "wamp.error.invalid_argument"


class UnknownName(InvalidArgument):
    """
    A column, operator or argument that does not exist.

    Args:
        kind: What was looked for, as in "column".
        name: What the caller wrote.
        known: What there is; the nearest becomes the hint.
        of: Where it was looked for, as in 'relation "actions"'.
        path: Where in the call.
        hint: What is known to be meant; without it the nearest.
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
    """An unknown relation, verb or function; `hint` names the nearest the caller may use."""

    uri = "wamp.error.no_such_procedure"


class NotAuthorized(ServiceError):
    """PostgreSQL or the service refuses this role."""

    uri = "wamp.error.not_authorized"


class Canceled(ServiceError):
    """The caller cancelled or left; the query was stopped on the server."""

    uri = "wamp.error.canceled"

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


class NotFound(ServiceError):
    """There is no such row; of several in a call, `row` is the number of the first, from 0."""

    uri = "rowcast.error.not_found"

    def __init__(self, relation: str, row: int | None = None) -> None:
        super().__init__(f'no such row in "{relation}"', relation=relation, row=row)


class NotChanged(ServiceError):
    """The database left out a write of one row, without an error; nothing is kept."""

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
        relation: Whose row it is.
        fields: Column name to the reasons against its value.
        path: Where in the call, for one row out of many.
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
    """A constraint of the database says no; `constraint` and `columns` tell which."""


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
    `expect` failed (`row` is the row as it is now), serialization failed after retries, or what the
    call belongs to has ended (`reason`).
    """

    uri = "rowcast.error.conflict"


class TooManyRows(ServiceError):
    """More rows than `max_affected`, or more than the one that was expected; nothing is kept."""

    uri = "rowcast.error.too_many_rows"


class TooLarge(ServiceError):
    """
    The answer is larger than may be sent; nothing is kept of a write.

    Args:
        limit: The most that may be, of what `wording` counts.
    """

    uri = "rowcast.error.too_large"
    wording: ClassVar[str] = "the answer is larger than {} bytes"
    hint: ClassVar[str] = (
        "ask for fewer rows with limit, for fewer columns with select, or use stream;"
        " of a write, with returning: false, for nothing"
    )

    def __init__(self, limit: int) -> None:
        super().__init__(self.wording.format(limit), hint=self.hint)


class TooManyToSend(TooLarge):
    """
    A function gave more rows than one answer holds.

    Args:
        name: Of the function.
        limit: The most rows of an answer.
        verbs: Whether it has any; a function whose rows are values has none.
    """

    def __init__(self, name: str, limit: int, verbs: bool) -> None:
        message = f'"{name}" gave more than {limit} rows, the most of one answer'
        paged = f'"fn.{name}.find" gives rows in pages, "fn.{name}.stream" all of them'
        bare = "a function that RETURNS TABLE has find, which gives pages, and stream"
        ServiceError.__init__(self, message, hint=paged if verbs else bare)


class TooManyGroups(TooLarge):
    """An aggregate has more groups than one answer holds."""

    wording = "there are more than {} groups, the most of one answer"
    hint = "ask for a part with where or having, or for one after the other with limit and offset"


class TooManyWatched(TooLarge):
    """A query has more rows than are watched."""

    wording = "there are more than {} rows, the most of one that is watched"
    hint = "watch a part with where, or the first ones with order and limit"


class TooMuchToDescribe(TooLarge):
    """More is served than one answer describes."""

    wording = "what is served takes more than {} bytes to describe"
    hint = "relations=[…] and functions=[…] ask for a part; relations=[] gives the names"


class StatementTimeout(ServiceError):
    """
    Over the time limit; stopped on the server.

    Args:
        message: What took too long.
        clock: Which limit ran out, as callers see it.
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
    No database, no free connection, or shutting down; nothing was changed.

    Args:
        message: What is missing.
        retry_after: Seconds after which another try makes sense.
    """

    uri = "rowcast.error.unavailable"

    def __init__(self, message: str, retry_after: float = 1.0, **details: Any) -> None:
        super().__init__(message, retry=True, retry_after=retry_after, **details)


class PositionGone(ServiceError):
    """The changes after the asked position are no longer kept, or are those of another database."""

    uri = "rowcast.error.position_gone"

    def __init__(self) -> None:
        super().__init__(
            "the changes after this position are not kept any more",
            hint="read the rows again, and go on from position() as it was before that",
        )


class OutcomeUnknown(ServiceError):
    """
    The connection was lost during COMMIT, or a call was stopped half way: changes may be kept.

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
    """Build the answer in place of a refusal if what the call changed is kept."""
    return OutcomeUnknown(f"what the call changed is kept, but {error.message}")


class Raised(ServiceError):
    """RAISE in the database: P0001, or a SQLSTATE that PostgreSQL itself does not define."""

    uri = "rowcast.error.raised"


class DatabaseRefused(ServiceError):
    """Any other SQLSTATE."""

    uri = "rowcast.error.database"


class InternalError(ServiceError):
    """
    A bug of ours.

    Args:
        id: Under which the log has the rest.
    """

    uri = "rowcast.error.internal"

    def __init__(self, id: str) -> None:
        super().__init__("an internal error; the service's log has it under this id", id=id)


class Relayed(ServiceError):
    """
    A refusal of another process of the service.

    Args:
        uri: Of the error.
        message: Its message.
        details: Its keyword arguments.
    """

    def __init__(self, uri: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message, **details)
        self.uri = uri  # type: ignore[misc]


def causes(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """
    Yield an error and those that it came from, each once: `raise error from error` is a loop.

    Args:
        error: The last one.
        contexts: Whether those count that were being handled when another one was raised.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        before = each.__context__ if contexts and not each.__suppress_context__ else None
        each = each.__cause__ or before


def clip(text: object, length: int = 80) -> str:
    """Return what a caller wrote, cut to a length in characters."""
    word = str(text)
    return word if len(word) <= length else word[: length - 1] + "…"


def first_line(error: Exception) -> str:
    """Return an error's first line, for the log; rows and statements might follow it."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def visible(text: str) -> str:
    """Return a text with what a terminal would obey, such as ESC, as escapes; lines stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda at: f"\\x{ord(at[0]):02x}", text)


def in_line(text: object, length: int = 300) -> str:
    """
    Return a text of a peer's for a line of the log.

    A URI may hold any character but white space, and a router's reason any at all: neither may
    begin a line that looks like one of ours, nor colour the terminal of whoever reads it.
    """
    return visible(clip(text, length)).replace("\n", "\\n")


def nearest(name: object, known: Sequence[str]) -> str | None:
    """Return a hint with the nearest known name, or the one that begins so; None if there is none."""
    # A caller's name may be of any length, and difflib's time grows with it.
    word = str(name)[:80].lower()
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if not close and len(word) > 3:
        close = [each for each in known if each.lower().startswith(word)]
    return f'did you mean "{close[0]}"?' if len(close) == 1 else None
