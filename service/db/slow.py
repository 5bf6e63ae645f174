"""
Slow statements in the log: their shape and the call that they belong to, never a value.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from psycopg2.sql import Composable
from twisted.logger import Logger

from service.errors import in_line

log = Logger()

MAX_LENGTH = 2000
"""Characters of a statement in the log."""


@dataclass(frozen=True, slots=True)
class Origin:
    """
    The call that work belongs to, for the log.

    Args:
        call: Id of the call; "" outside of calls.
        procedure: Name of the called procedure, without the prefix.
        role: Database role of the caller; "" for the service's own.
        transaction: Name of the innermost transaction that has one.
    """

    call: str = ""
    procedure: str = ""
    role: str = ""
    transaction: str = ""


ORIGIN: ContextVar[Origin | None] = ContextVar("rowcast_origin", default=None)
"""Origin of the work in this context; None for work of the service itself."""

# Comments and strings are tried first: a quote inside a comment, or "--" inside a string, means nothing.
_TOKENS = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
    | [eE]'(?:\\.|''|[^'\\])*' | (?:[uU]&|[bBxXnN])?'(?:[^']|'')*'
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?P<kept> "(?:[^"]|"")*" | [^\W\d][\w$]* | \$\d+ )
    | \d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)? | \.\d+(?:[eE][+-]?\d+)?
    """,
    re.VERBOSE | re.DOTALL,
)


def shape_of(sql: str) -> str:
    """Return SQL in one line, with `?` in place of each literal, and without comments."""

    def replaced(found: re.Match[str]) -> str:
        kept: str | None = found["kept"]
        return kept if kept is not None else " " if found["comment"] else "?"

    return in_line(" ".join(_TOKENS.sub(replaced, sql).split()), MAX_LENGTH)


def report(
    query: str | bytes | Composable, seconds: float, origin: Origin | None, cursor: Any
) -> None:
    """
    Log a slow statement.

    Args:
        query: The statement without the values of its parameters.
        seconds: Duration, the round trip included.
        origin: Call that the statement belongs to.
        cursor: Cursor or connection that quotes the identifiers of a composed query.
    """
    text = query.as_string(cursor) if isinstance(query, Composable) else query
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    found = origin or Origin()
    log.warn(
        "slow statement: {seconds:.3f} s in {procedure} as {role}: {statement}",
        seconds=seconds,
        procedure=in_line(found.procedure) or "the service",
        role=found.role or "the service",
        statement=shape_of(text),
        origin=found,
    )
