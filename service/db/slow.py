"""
Slow statements: their shape in the log, with the call that they are of, and never a value.
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
    What work is for, as the log calls it.

    Args:
        call: Id of the call; "" outside of calls.
        procedure: Its name, less the prefix.
        role: The database role of its caller; "" for the service's own.
        transaction: The name of the innermost transaction that has one.
    """

    call: str = ""
    procedure: str = ""
    role: str = ""
    transaction: str = ""


ORIGIN: ContextVar[Origin | None] = ContextVar("rowcast_origin", default=None)
"""Of whatever runs now, in the reactor thread; None for the service's own."""

# Comments and strings before all else: a quote in the one, or dashes in the other, open nothing.
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
    """Return SQL with `?` in place of each literal, in one line; comments are left out."""

    def replaced(found: re.Match[str]) -> str:
        kept: str | None = found["kept"]
        return kept if kept is not None else " " if found["comment"] else "?"

    return in_line(" ".join(_TOKENS.sub(replaced, sql).split()), MAX_LENGTH)


def report(
    query: str | bytes | Composable, seconds: float, origin: Origin | None, cursor: Any
) -> None:
    """
    Log a statement.

    Args:
        query: As it was sent, less its parameters.
        seconds: What it took, its way there and back included.
        origin: What it was for.
        cursor: Quotes the names of a composed query.
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
