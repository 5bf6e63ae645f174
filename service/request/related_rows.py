"""
Related rows in the values of a new row: new rows, or links to existing ones by key.

Rows are split into a shape and values, so that what depends on the shape alone is made once for each shape.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.errors import InvalidArgument
from service.request.arguments import Referenced, Values
from service.request.assignments import DEFAULT, LINK, VALUE, assignments, stands_for
from service.request.read_request import parse_key
from service.request.requests import Assignment, KeyMatch
from service.request.select_list import named


class NoShape(Exception):
    """The meaning of rows depends on more than their shape, or there are too many of them."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Stands for a scalar value in rows: its index among the values."""

    at: int


class RowsShape:
    """
    Rows as a shape and values.

    Args:
        rows: A row, or a list of rows, with nested rows.
        documents: Columns whose dicts and lists are values, JSON documents, also inside `$value`.
        most: Maximum number of dicts and of other items of lists.

    Attributes:
        shape: The keys of dicts, the lengths of lists, and the positions of nulls.
        values: All other values, in order.
        size: Number of keys of dicts, and of items of lists that are not dicts.

    Raises:
        NoShape: There are more than `most`, or a dict is an operator.
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
            # counted before the recursion, since there may be a million of them
            items = sum(type(each) is not dict for each in value)
            self._count(items, items)
            return (list, *map(self._shape_of, value))
        # Parsers treat other mappings and subclasses like these types, but the shape cannot.
        if isinstance(value, Mapping | list | tuple):
            raise NoShape
        self.values.append(value)
        return 0

    def _count(self, more: int, size: int) -> None:
        self._left -= more
        self.size += size
        if self._left < 0:
            raise NoShape

    def _of_dict(self, row: dict[Any, Any], document: bool) -> Hashable:
        """Return the shape of a dict; `document` if it is an operator in a column of documents."""
        self._count(1, len(row))
        keys = tuple(row)
        if not all(type(key) is str for key in keys):
            raise NoShape
        if any(key[:1] == "$" and key not in _OPEN for key in keys):
            if _is_default(row):
                return keys
            raise NoShape
        if document and stands_for(row):  # its meaning depends on the value
            raise NoShape
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
"""Operators whose operand is a value or a key, not part of the shape."""


def _is_default(row: Mapping[str, Any]) -> bool:
    return len(row) == 1 and row.get(DEFAULT) is True


def _is_operator(value: Any) -> bool:
    """Return whether a value in a column of documents may be an operator."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and key.startswith("$") for key in value
    )


def with_placeholders(shape: Any, numbers: Iterator[int]) -> Any:
    """
    Return rows of a shape, with a `Placeholder` for each value, in the order of `RowsShape.values`.

    They are built from the shape alone, so that no value of a call gets into a cache by shape.
    """
    if shape is None:
        return None
    if shape == 0:
        return Placeholder(next(numbers))
    if shape[:1] == (list,):
        return [with_placeholders(each, numbers) for each in shape[1:]]
    if shape == (DEFAULT,):
        return {DEFAULT: True}
    keys, *inner = shape if shape and type(shape[0]) is tuple else (shape,)
    shapes = dict(inner)
    return {key: with_placeholders(shapes.get(at, 0), numbers) for at, key in enumerate(keys)}


def fill_placeholders(value: Any, values: Sequence[Any]) -> Any:
    """Return rows, or a part of them, with each placeholder replaced by its value."""
    if isinstance(value, Placeholder):
        return values[value.at]
    if isinstance(value, dict):
        return {key: fill_placeholders(each, values) for key, each in value.items()}
    return [fill_placeholders(each, values) for each in value] if isinstance(value, list) else value


MAX_NEW_ROWS = 10_000
"""Rows of one call, nested ones included."""


@dataclass(frozen=True, slots=True)
class RelatedRow:
    """
    A related row in the values of a row.

    Args:
        path: Path in the call, for errors.
        assignments: Values of a new row.
        link: Key of an existing row; None for a new one.
    """

    path: str
    assignments: tuple[Assignment, ...]
    link: KeyMatch | None = None


class RelationshipCandidate(NamedTuple):
    """
    A name in a row that may be a relationship: no column has it, or its value is a row.

    Args:
        path: Path in the call, for errors.
        name: The name.
        row: Whether the value is a row, new or linked.
    """

    path: str
    name: str
    row: bool


class RowsArgument:
    """
    The rows of a call before they are parsed.

    Args:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        name: Name of the argument with the rows.
        position: Its position, if it may be positional.
    """

    def __init__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        name: str = "values",
        position: int | None = 0,
    ) -> None:
        by_position = position is not None and len(args) > position
        self._rows = args[position or 0] if by_position else kwargs.get(name)
        self._name = name

    def more_than(self, most: int) -> bool:
        """Return whether it is a list of more than `most` rows."""
        return isinstance(self._rows, list | tuple | Referenced) and len(self._rows) > most

    def beside(
        self, columns: AbstractSet[str], referring: Iterable[str]
    ) -> Iterator[RelationshipCandidate]:
        """Yield names that may be relationships, given all columns and those that are foreign keys."""
        rows: Any = self._rows
        many, referring = isinstance(rows, list | tuple), [*referring]
        for at, row in enumerate(rows if many else [rows]):
            if not isinstance(row, Mapping):
                continue  # refused when it is parsed
            keys = row.keys() - columns
            keys |= {name for name in referring if isinstance(row.get(name), Mapping)}
            for key in keys:
                if isinstance(key, str):
                    path = f"{self._name}.{at}.{key}" if many else f"{self._name}.{key}"
                    yield RelationshipCandidate(path, named(key), _is_row(row[key]))

    def size(self) -> int:
        """Return the number of dicts, an upper bound of the number of rows."""
        pending, found = [self._rows], 0
        while pending:
            value = pending.pop()
            if isinstance(value, Mapping):
                found += 1
                pending.extend(each for each in value.values() if isinstance(each, list | dict))
            elif isinstance(value, list | tuple):
                pending.extend(each for each in value if isinstance(each, list | dict))
        return found

    def shaped(self, documents: Container[str], most: int) -> RowsShape:
        """Return the rows as a shape and values; see `RowsShape`."""
        return RowsShape(self._rows, documents, most)


def kind_of(given: Assignment, values: Values) -> Literal["", "row", "rows"]:
    """Return "row" if a value can be a related row, "rows" for a list of them, "" otherwise."""
    value = None if given.operand is None else values.value(given.operand.slot)
    if isinstance(value, list | tuple):
        return "rows"
    return "row" if _is_row(value) else ""


def parse_related(given: Assignment, many: bool, values: Values) -> tuple[RelatedRow, ...]:
    """
    Parse the value of a relationship: a list of rows if `many`, else one row; null means no rows.

    Raises:
        InvalidArgument: The value is something else.
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
    """Return whether a value can be a related row, new or linked: a dict that is not an operator."""
    return isinstance(value, Mapping) and not any(
        isinstance(key, str) and key.startswith("$") and key != LINK for key in value
    )
