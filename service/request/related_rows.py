"""
Related rows among the values of a new row: new ones, or keys of rows that are there.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.errors import InvalidArgument
from service.request.arguments import Values
from service.request.assignments import LINK, assignments
from service.request.brought import Brought
from service.request.read_request import parse_key
from service.request.requests import Assignment, KeyMatch
from service.request.select_list import named
from service.request.shapes import Shaped

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


class Beside(NamedTuple):
    """
    What may be a relationship among the values of a row: a name of no column, or a row in a column.

    Args:
        path: Where in the call.
        name: Of that.
        row: Whether there is a row, new or there.
    """

    path: str
    name: str
    row: bool


class RowsArgument:
    """
    The rows of a `create` or `upsert` before they are parsed: what looking them over tells.

    Args:
        args: Of the call.
        kwargs: Of the call.
    """

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._rows = args[0] if args else kwargs.get("values")

    def more_than(self, most: int) -> bool:
        """Return whether it is a list of more rows."""
        return isinstance(self._rows, list | tuple | Brought) and len(self._rows) > most

    def beside(self, columns: AbstractSet[str], referring: Iterable[str]) -> Iterator[Beside]:
        """Yield what may be a relationship, given the columns, and those that refer by themselves."""
        rows: Any = self._rows
        many, referring = isinstance(rows, list | tuple), [*referring]
        for at, row in enumerate(rows if many else [rows]):
            if not isinstance(row, Mapping):
                continue  # and is refused for it
            keys = row.keys() - columns
            keys |= {name for name in referring if isinstance(row.get(name), Mapping)}
            for key in keys:
                if isinstance(key, str):
                    path = f"values.{at}.{key}" if many else f"values.{key}"
                    yield Beside(path, named(key), _is_row(row[key]))

    def size(self) -> int:
        """Return how many dicts there are, which is at least the number of the rows in all."""
        pending, found = [self._rows], 0
        while pending:
            value = pending.pop()
            if isinstance(value, Mapping):
                found += 1
                pending.extend(each for each in value.values() if isinstance(each, list | dict))
            elif isinstance(value, list | tuple):
                pending.extend(each for each in value if isinstance(each, list | dict))
        return found

    def shaped(self, documents: Container[str], most: int) -> Shaped:
        """Return them as a shape and values, as `Shaped` does."""
        return Shaped(self._rows, documents, most)


def kind_of(given: Assignment, values: Values) -> Literal["", "row", "rows"]:
    """Return whether a value can stand for a related row, or for several."""
    value = None if given.operand is None else values.value(given.operand.slot)
    if isinstance(value, list | tuple):
        return "rows"
    return "row" if _is_row(value) else ""


def parse_related(given: Assignment, many: bool, values: Values) -> tuple[RelatedRow, ...]:
    """
    Parse what a relationship holds: a list of rows, or (not `many`) one; null is none.

    Raises:
        InvalidArgument: It is something else.
    """
    path = given.path
    if given.operand is None:
        raise InvalidArgument("a relationship has no default", path=path)
    value = values.value(given.operand.slot)
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


def _is_row(value: Any) -> bool:
    """Return whether a value can stand for a related row, new or there: a dict that is no operator."""
    return isinstance(value, Mapping) and not any(
        isinstance(key, str) and key.startswith("$") and key != LINK for key in value
    )
