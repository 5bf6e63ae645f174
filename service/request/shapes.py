"""
The shape of rows apart from their values: what depends on the shape alone is made once for each.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.request.assignments import DEFAULT, LINK, VALUE


class Unshaped(Exception):
    """What rows mean depends on more than their shape, or there are too many of them."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """Stands in rows for a value that is no list, no dict and no null: its number among those."""

    at: int


class Shaped:
    """
    Rows as a shape and values.

    Args:
        rows: A dict, or a list of them, and what is in these.
        documents: Keys of which a dict or a list is a value as any other.
        most: How many dicts there may be.

    Attributes:
        shape: The keys of dicts, the lengths of lists, and where a null is.
        values: All others, in their order.

    Raises:
        Unshaped: There are more dicts, or one is an operator's.
    """

    def __init__(self, rows: Any, documents: Container[str], most: int) -> None:
        self._documents = documents
        self._left = most
        self.values: list[Any] = []
        self.shape = self._shape_of(rows)

    def _shape_of(self, value: Any) -> Hashable:
        kind = type(value)
        if value is None:
            return None
        if kind is dict:
            return self._of_dict(value)
        if kind is list or kind is tuple:
            return (list, *map(self._shape_of, value))
        # of another class, it is as one of these to whoever reads it
        if isinstance(value, Mapping | list | tuple):
            raise Unshaped
        self.values.append(value)
        return 0

    def _of_dict(self, row: dict[Any, Any]) -> Hashable:
        self._left -= 1
        keys = tuple(row)
        if self._left < 0 or not all(type(key) is str for key in keys):
            raise Unshaped
        if any(key[:1] == "$" and key not in _OPEN for key in keys):
            if _is_default(row):
                return keys
            raise Unshaped
        inner: list[tuple[int, Hashable]] = []
        for at, (key, value) in enumerate(row.items()):
            if type(value) in _PLAIN or (key in self._documents and _is_value(value)):
                self.values.append(value)
            elif (shape := self._shape_of(value)) != 0:
                inner.append((at, shape))
        return (keys, *inner) if inner else keys


_PLAIN = frozenset([str, int, float, bool])
_OPEN = frozenset([LINK, VALUE])
"""Operators around a value, or a key."""


def _is_default(row: Mapping[str, Any]) -> bool:
    return len(row) == 1 and row.get(DEFAULT) is True


def _is_value(value: Any) -> bool:
    """Return whether what stands in a document's column is one, and no null or operator."""
    if isinstance(value, Mapping):
        return not any(isinstance(key, str) and key.startswith("$") for key in value)
    return value is not None


def marked(value: Any, documents: Container[str], numbers: Iterator[int]) -> Any:
    """Return rows with a `StandIn` for each value, in the order of `Shaped`."""
    if isinstance(value, dict):
        if _is_default(value):
            return value
        return {
            key: StandIn(next(numbers))
            if key in documents and _is_value(each)
            else marked(each, documents, numbers)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [marked(each, documents, numbers) for each in value]
    return None if value is None else StandIn(next(numbers))


def filled(value: Any, values: Sequence[Any]) -> Any:
    """Return what stands for `marked` rows, or a part of them, given the values."""
    if isinstance(value, StandIn):
        return values[value.at]
    if isinstance(value, dict):
        return {key: filled(each, values) for key, each in value.items()}
    return [filled(each, values) for each in value] if isinstance(value, list) else value
