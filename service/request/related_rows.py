"""
Related rows among the values of a new row: new ones, or keys of rows that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.assignments import LINK, assignments
from service.request.read_request import parse_key
from service.request.requests import Assignment, KeyMatch

MAX_NEW_ROWS = 10_000
"""Rows of one call with all that is nested in them."""


@dataclass(frozen=True, slots=True)
class RelatedRow:
    """
    What stands for a related row.

    Args:
        path: Where in the call.
        assignments: Of a new one.
        link: The key of one that is there; None of a new one.
    """

    path: str
    assignments: tuple[Assignment, ...]
    link: KeyMatch | None = None


def parse_related(value: Any, path: str, many: bool, values: Values) -> tuple[RelatedRow, ...]:
    """
    Parse what a relationship holds: a list of rows, or (not `many`) one; null is none.

    Raises:
        InvalidArgument: It is something else.
    """
    if value is None:
        return ()
    if not many:
        return (_related(value, path, values),)
    if not isinstance(value, list | tuple):
        raise InvalidArgument(
            "rows of this relationship may be many, and stand in a list",
            path=path,
            hint="put the row into a list",
        )
    return tuple(_related(each, f"{path}.{at}", values) for at, each in enumerate(value))


def _related(value: Any, path: str, values: Values) -> RelatedRow:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidArgument(
            "a related row is a dict of columns and values",
            path=path,
            hint='one that is there is {"$link": key}',
        )
    if LINK not in value:
        return RelatedRow(path, assignments(value, path, values))
    if len(value) > 1:
        raise InvalidArgument(
            "a link is to a row as it is: nothing stands beside it",
            path=path,
            hint='"update" changes rows that are there',
        )
    return RelatedRow(path, (), parse_key(value[LINK], values, f"{path}.{LINK}"))


def is_row(value: Any) -> bool:
    """Return whether a value can stand for a related row, new or there: a dict that is no operator."""
    return isinstance(value, Mapping) and not any(
        isinstance(key, str) and key.startswith("$") and key != LINK for key in value
    )


def size_of(values: Any) -> int:
    """Return how many dicts there are among values, which is at least the number of their rows."""
    pending, found = [values], 0
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            found += 1
            pending.extend(each for each in value.values() if isinstance(each, list | dict))
        elif isinstance(value, list | tuple):
            pending.extend(each for each in value if isinstance(each, list | dict))
    return found
