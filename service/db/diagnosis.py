"""
What an error of PostgreSQL says, as far as a caller may read it.

Its own words go out where they are an author's, who wrote RAISE, or where they repeat the
caller's operand; a value out of a row does not.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg2
from psycopg2 import errorcodes

from service.catalog import Relation
from service.db.position import bound_of, mark_of
from service.errors import (
    ConstraintViolation,
    DatabaseRefused,
    InvalidArgument,
    ServiceError,
    clip,
    nearest,
)
from service.plan.conditions import Bound

_COPY = re.compile(r"^COPY .+?, line (\d+)(?:, column (.+?)(?=: \"|: null input|$))?", re.MULTILINE)
"""A server of another language says it otherwise: then the line is not told."""
_DATA_FREE = frozenset(["0A", "21", "25", "42", "54", "55"])
"""Classes whose messages speak of commands, names and types, never of values in rows."""
_HOME = re.compile(r"\bpg_catalog\.(?=[^\w\s\"])|(?<=function )pg_catalog\.")
"""The schema in which our statements name operators and functions; a caller knows of none."""
_VALUE = re.compile(r'\s*:?\s*".*"', re.DOTALL)


def raised(error: psycopg2.Error) -> bool:
    """Tell whether RAISE made the error: then its words are the author's, whatever its code."""
    return error.diag.source_function == "exec_stmt_raise"


def words(error: psycopg2.Error, otherwise: str) -> dict[str, Any]:
    """Give message and details: the author's if it was raised, else our message alone."""
    diag = error.diag
    if not raised(error):
        return {"message": otherwise, "sqlstate": error.pgcode}
    return {
        "message": diag.message_primary or otherwise,
        "detail": diag.message_detail,
        "hint": diag.message_hint,
        "sqlstate": error.pgcode,
    }


def refused(error: psycopg2.Error) -> ServiceError:
    """Take an error that says nothing of the call, with PostgreSQL's words if they are harmless."""
    code = error.pgcode or ""
    message = f"the database refused ({errorcodes.lookup(code).lower().replace('_', ' ')})"
    if code[:2] in _DATA_FREE and error.diag.context is None:
        message = clip(_primary(error) or message, 300)
    return DatabaseRefused(**words(error, message))


def _primary(error: psycopg2.Error) -> str:
    return _HOME.sub("", error.diag.message_primary or "")


def retold(error: psycopg2.Error, broken: ConstraintViolation) -> ServiceError:
    """Give a violation that a trigger or function raised, in its own words."""
    diag = error.diag
    return type(broken)(
        **words(error, broken.message), constraint=diag.constraint_name, column=diag.column_name
    )


def invalid(error: psycopg2.Error) -> ServiceError:
    """Take what an operand caused; with its own value, as the caller sent it."""
    if raised(error):
        return InvalidArgument(**words(error, ""))
    message, bound = _primary(error), bound_of(error)
    if bound is None or error.diag.statement_position is None:
        # it may be the value of a row that a cast or function stumbled over
        message = _VALUE.sub("", message) or "a value does not fit its type"
        mark = None if bound else mark_of(error)
        place = bound or mark
        return InvalidArgument(
            message,
            path=place.path if place else None,
            column=mark.column or None if mark else None,
            sqlstate=error.pgcode,
        )
    return InvalidArgument(
        clip(message, 300), path=bound.path, sqlstate=error.pgcode, hint=_label_hint(error, bound)
    )


def unfit(error: psycopg2.Error) -> ServiceError:
    """Take an operation that there is not for the types, with the caller's word for it."""
    message = clip(_primary(error) or "no such operation for these types", 300)
    mark = mark_of(error)
    if mark is None:
        return InvalidArgument(message, sqlstate=error.pgcode)
    return InvalidArgument(
        message, path=mark.path, column=mark.column or None, hint=mark.hint, sqlstate=error.pgcode
    )


def _label_hint(error: psycopg2.Error, bound: Bound) -> str | None:
    found = re.search(r'"(.*)"', error.diag.message_primary or "", re.DOTALL)
    return nearest(found[1], bound.type.labels) if found and bound.type.labels else None


def name_line(found: ServiceError, error: psycopg2.Error, relation: Relation | None) -> None:
    """Add where in an import it happened, as far as COPY tells: the line, the column."""
    place = _COPY.search(error.diag.context or "")
    if place is None:
        return
    found.details["line"] = int(place[1])
    if relation is not None and place[2] in relation.columns:
        found.details.setdefault("column", place[2])


def name_column(found: InvalidArgument, error: psycopg2.Error, relation: Relation) -> None:
    """Add the column: the one that the path ends in, or the only one of the type named."""
    if "column" in found.details:
        return
    tail = str(found.details.get("path", "")).rpartition(".")[2]
    names = [tail] if tail in relation.columns else []
    if error.pgcode == "22001" and not names:
        message = error.diag.message_primary or ""
        names = [c.name for c in relation.columns.values() if message.endswith(" " + c.declared)]
    if len(names) == 1:
        found.details["column"] = names[0]
