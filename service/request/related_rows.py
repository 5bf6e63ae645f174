"""
Related rows among the values of a new row: new ones, or keys of rows that are there.

Their shape stands apart from their values: what depends on the shape alone is made once for each.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.errors import InvalidArgument
from service.request.arguments import Brought, Values
from service.request.assignments import DEFAULT, LINK, VALUE, assignments, stands_for
from service.request.read_request import parse_key
from service.request.requests import Assignment, KeyMatch
from service.request.select_list import named


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
    The rows of a call before they are parsed: what looking them over tells.

    Args:
        args: Of the call.
        kwargs: Of the call.
        name: Of the argument.
        position: Where it stands among those without names, if it may.
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
                    path = f"{self._name}.{at}.{key}" if many else f"{self._name}.{key}"
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
