"""
The shape of rows apart from their values: what depends on the shape alone is made once for each.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.request.assignments import DEFAULT, LINK, VALUE, stands_for


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
        documents: Keys of which a dict or a list is a value as any other, also inside of `$value`.
        most: How many dicts, and how many other items of lists, there may be.

    Attributes:
        shape: The keys of dicts, the lengths of lists, and where a null is.
        values: All others, in their order.
        size: How many keys dicts have, and lists items that are none.

    Raises:
        Unshaped: There are more of those, or a dict is an operator's.
    """

    def __init__(self, rows: Any, documents: Container[str], most: int) -> None:
        self._documents = documents
        self._left = most
        self.values: list[Any] = []
        self.size = 0
        self.shape = self._shape_of(rows)

    def _shape_of(self, value: Any, document: bool = False) -> Hashable:
        kind = type(value)
        if value is None:
            return None
        if kind is dict:
            return self._of_dict(value, document)
        if kind is list or kind is tuple:
            # before they are walked: there may be a million of them
            items = sum(type(each) is not dict for each in value)
            self._count(items, items)
            return (list, *map(self._shape_of, value))
        # of another class, it is as one of these to whoever reads it
        if isinstance(value, Mapping | list | tuple):
            raise Unshaped
        self.values.append(value)
        return 0

    def _count(self, more: int, size: int) -> None:
        self._left -= more
        self.size += size
        if self._left < 0:
            raise Unshaped

    def _of_dict(self, row: dict[Any, Any], document: bool) -> Hashable:
        """Return the shape of a dict; `document` where it is an operator in the column of one."""
        self._count(1, len(row))
        keys = tuple(row)
        if not all(type(key) is str for key in keys):
            raise Unshaped
        if any(key[:1] == "$" and key not in _OPEN for key in keys):
            if _is_default(row):
                return keys
            raise Unshaped
        if document and stands_for(row):  # which is looked at
            raise Unshaped
        inner: list[tuple[int, Hashable]] = []
        for at, (key, value) in enumerate(row.items()):
            of_document = key in self._documents
            whole = key == VALUE if document else of_document and not _is_operator(value)
            if type(value) in _PLAIN or (whole and value is not None):
                self.values.append(value)
            elif (shape := self._shape_of(value, of_document)) != 0:
                inner.append((at, shape))
        return (keys, *inner) if inner else keys


_PLAIN = frozenset([str, int, float, bool])
_OPEN = frozenset([LINK, VALUE])
"""Operators around a value, or a key."""


def _is_default(row: Mapping[str, Any]) -> bool:
    return len(row) == 1 and row.get(DEFAULT) is True


def _is_operator(value: Any) -> bool:
    """Return whether what stands in a document's column may be an operator, and no value."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and key.startswith("$") for key in value
    )


def marked(shape: Any, numbers: Iterator[int]) -> Any:
    """
    Return rows of a shape, with a `StandIn` for each value, in the order of `Shaped`.

    They are made of the shape alone, so that nothing else can come into what is kept by it.
    """
    if shape is None:
        return None
    if shape == 0:
        return StandIn(next(numbers))
    if shape[:1] == (list,):
        return [marked(each, numbers) for each in shape[1:]]
    if shape == (DEFAULT,):
        return {DEFAULT: True}
    keys, *inner = shape if shape and type(shape[0]) is tuple else (shape,)
    shapes = dict(inner)
    return {key: marked(shapes.get(at, 0), numbers) for at, key in enumerate(keys)}


def filled(value: Any, values: Sequence[Any]) -> Any:
    """Return what stands for `marked` rows, or a part of them, given the values."""
    if isinstance(value, StandIn):
        return values[value.at]
    if isinstance(value, dict):
        return {key: filled(each, values) for key, each in value.items()}
    return [filled(each, values) for each in value] if isinstance(value, list) else value
