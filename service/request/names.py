"""
Parse procedure names, without the prefix: "actions.get", "app.actions.get", "describe".

A component with characters that WAMP URIs do not allow is percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from service.errors import NoSuchProcedure, clip, nearest

RESERVED = frozenset(
    {
        "fn",
        "tx",
        "transaction",
        "changes",
        "position",
        "describe",
        "health",
        "stats",
        "error",
    }
)
"""Names of our own procedures; relations of these names are served schema-qualified only."""

COMMANDS = ("commit", "rollback", "savepoint", "release", "rollback_to")
"""Procedures of an interactive transaction, below its URI."""
COMMANDS_HINT = 'it stands below the URI that transaction.begin answers, as in "<tx>.commit"'

SETTING_HINTS = {"explain": "ROWCAST_EXPLAIN=true turns it on"}
"""Hints for procedures that a setting turns on."""

FN = "fn"
"""The component before the name of a function."""

_FORBIDDEN = re.compile(r"[\s.#%]")
# Consecutive escapes are matched together: a character has one for each of its bytes in UTF-8.
_ESCAPE = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_BROKEN = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Name:
    """A verb of a relation; without a schema, of the first served one."""

    schema: str | None
    relation: str
    verb: str


@dataclass(frozen=True, slots=True)
class FunctionName:
    """A function, called if `verb` is None; without a schema, of the first served one."""

    schema: str | None
    function: str
    verb: str | None


def encode(component: str) -> str:
    """Return a name as one component of a URI, with white space, ".", "#" and "%" escaped."""
    return _FORBIDDEN.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), component
    )


def decode(component: str) -> str:
    """
    Return the name that a component of a URI stands for.

    Raises:
        NoSuchProcedure: An escape is malformed or not UTF-8.
    """
    if "%" not in component:
        return component
    if _BROKEN.search(component):
        raise NoSuchProcedure(f'"{clip(component)}" has a broken percent escape')
    try:
        return _ESCAPE.sub(
            lambda found: bytes.fromhex(found.group().replace("%", "")).decode(), component
        )
    except UnicodeDecodeError:
        raise NoSuchProcedure(f'"{clip(component)}" is not UTF-8') from None


def parse_name(name: str, others: Collection[str] = ()) -> Name | FunctionName:
    """
    Parse a procedure's name.

    "app.fn.f" is parsed as the function "f", but may also mean the verb "f" of a relation named "fn".

    Args:
        name: Without the prefix.
        others: Names of procedures that belong to no relation, for the hint.

    Raises:
        NoSuchProcedure: The name has none of the known forms, or a broken escape.
    """
    parts = [decode(part) for part in name.split(".")]
    found = _function(parts)
    if found is not None:
        return found
    if len(parts) == 2 and parts[0] not in RESERVED:
        return Name(None, parts[0], parts[1])
    if len(parts) == 3 and parts[0] not in RESERVED:
        return Name(*parts)
    raise NoSuchProcedure(
        f'no procedure "{clip(name)}"',
        hint=COMMANDS_HINT
        if parts[-1] in COMMANDS and set(parts[:-1]) <= {"transaction"}
        else SETTING_HINTS.get(name)
        or nearest(name, list(others))
        or "procedures are <relation>.<verb> or <schema>.<relation>.<verb>; describe lists them",
    )


def _function(parts: list[str]) -> FunctionName | None:
    if parts[0] == FN and len(parts) in (2, 3):
        return FunctionName(None, parts[1], parts[2] if len(parts) == 3 else None)
    if len(parts) in (3, 4) and parts[1] == FN and parts[0] not in RESERVED:
        return FunctionName(parts[0], parts[2], parts[3] if len(parts) == 4 else None)
    return None
