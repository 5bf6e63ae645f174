"""
Parse the values of a row: of its columns, also computed ones (`{"$add": 1}`, `"meta->a": 2`), and related rows,
which are new rows or links to existing ones by key.

Rows of a nested create are split into a shape and values, so that what depends on the shape alone is made
once for each shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from service.errors import InvalidArgument, UnknownName, clip
from service.request.arguments import BARE, Referenced, ReferencedRow, Values, unwrap
from service.request.read_request import parse_key
from service.request.requests import Assignment, JsonStep, KeyMatch, Operand
from service.request.select_list import parse_reference, unquoted
from service.request.synonyms import computing_hint

Use = Literal["row", "expect", "changes"]
"""What the assignments belong to: a new row, the argument `expect`, or the changes of an update."""

DEFAULT, VALUE, NUMBER, LINK = "$default", "$value", "$number", "$link"
MAX_NAMES = 4096
"""Characters of all names of a row whose assignments are cached; callers choose the names."""
MAX_REMOVED = 100
"""Values of one `$remove`: each becomes a function call nested around the others."""
MAX_STEPS, MAX_PATHS, MAX_ALL_STEPS = 16, 64, 128
"""
Maximum steps of a path, paths of one column, and steps of all paths in a call (shared ones count once).

Each step is a subselect around others, whose planning PostgreSQL repeats: 8 paths of 16 steps took
0.15 s, 64 of them 1.5 s, and 1,000 rows with different paths 25 s.
"""


def _number(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _dict(value: Any) -> bool:
    return isinstance(value, Mapping) and not (NUMBER in value and stands_for(value))


_TAKES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "add": (_number, 'a number, or an interval, as in {"$add": 1}'),
    "multiply": (_number, 'a number, as in {"$multiply": 2}'),
    "append": (_list, 'a list, as in {"$append": ["a"]}'),
    "prepend": (_list, 'a list, as in {"$prepend": ["a"]}'),
    "remove": (_list, 'a list, as in {"$remove": ["a"]}'),
    "merge": (_dict, 'a dict, as in {"$merge": {"a": 1}}'),
}
COMPUTING: Mapping[str, str] = {f"${name}": name for name in _TAKES}
"""Operators that compute a new value from the current one, as callers write them."""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
"""A number in JSON's syntax."""
BY_DEFAULT = object()
"""Stands for a new value that is the column's default."""
MARKS = frozenset([DEFAULT, VALUE, *COMPUTING])
LITERAL = 'a value is taken as it is in {"$value": …}'


def assignments(
    row: Mapping[str, Any], path: str, values: Values, use: Use = "row"
) -> tuple[Assignment, ...]:
    """
    Parse the columns of a row and their values.

    Args:
        row: The row, unparsed.
        path: Its path in the call.
        values: Values of the call; those of the row are appended.
        use: What the row is: only changes may have paths and operators that compute. Referenced
            values are never either, whatever they look like.

    Raises:
        InvalidArgument: One path is inside another; an operator is unknown, or its operand is invalid.
    """
    if type(row) is ReferencedRow:
        return literals(row, path, values)
    # Not for rows of a list: their paths differ, so the cache would seldom hit.
    single = "." not in path and BARE.issuperset(map(type, row.values()))
    if single and sum(map(len, row)) <= MAX_NAMES:
        plain = _bare_assignments(tuple(row), path, len(values), use)
        if plain is not None:
            values.extend(row.values())
            return plain
    found = []
    for name, value in row.items():
        place = f"{path}.{name}"
        column, steps = unquoted(name), tuple[JsonStep, ...]()
        if use == "changes" and "->" in name:
            column, steps = _path(name, place, values)
        if type(value) is Referenced:
            operand = Operand(values.add(value), place)
            found.append(Assignment(column, operand, place, steps=steps, literal=True))
        elif isinstance(value, Mapping) and (operator := _operator(value, place)):
            inner = value[operator]
            found.append(_marked(column, steps, operator, inner, place, values, use))
        else:
            found.append(Assignment(column, Operand(values.add(value), place), place, steps=steps))
    if any(each.steps for each in found) or len({each.column for each in found}) < len(found):
        _refuse_overlaps(found)
    return tuple(found)


# A table is written with few sets of columns, and rows that differ only in their values have equal assignments.
@lru_cache(1024)
def _bare_assignments(
    names: tuple[str, ...], path: str, first: int, use: Use
) -> tuple[Assignment, ...] | None:
    """Return assignments of scalars at consecutive slots; None if a name may be a path or is duplicate."""
    columns = [unquoted(name) for name in names]
    if len({*columns}) < len(columns) or (use == "changes" and any("->" in name for name in names)):
        return None
    places = [f"{path}.{name}" for name in names]
    return tuple(
        Assignment(column, Operand(slot, place), place)
        for slot, (column, place) in enumerate(zip(columns, places, strict=True), first)
    )


def stands_for(value: Any) -> bool:
    """
    Return whether a JSON object stands for another value.

    `{"$number": "1"}` stands for a number; `{"$value": …}` around such an object stands for the object.
    """
    while isinstance(value, dict) and len(value) == 1:
        if NUMBER in value:
            text = value[NUMBER]
            return isinstance(text, str) and _NUMBER.fullmatch(text) is not None
        if VALUE not in value:
            return False
        value = value[VALUE]
    return False


def new_value(value: Any, path: str) -> Any:
    """
    Return the value that a new row's column gets: the value, the operand of `$value`, or `BY_DEFAULT`.

    Raises:
        InvalidArgument: It is an operator that new rows do not take.
    """
    if not isinstance(value, Mapping) or not (operator := _operator(value, path)):
        return value
    if operator == VALUE:
        return _literal(value[VALUE])
    if operator == DEFAULT:
        _refuse_default_of(value[DEFAULT], f"{path}.{DEFAULT}")
        return BY_DEFAULT
    return _computing(operator, f"{path}.{operator}", "row")


def literals(row: Mapping[str, Any], path: str, values: Values) -> tuple[Assignment, ...]:
    """Return assignments of values that are never parsed as operators or paths."""
    return tuple(
        Assignment(name, Operand(values.add(value), place), place, literal=True)
        for name, value in row.items()
        for place in [f"{path}.{name}"]
    )


def _operator(value: Mapping[Any, Any], path: str) -> str | None:
    """Return the operator of a dict; None if the dict is a value."""
    if len(value) == 1:
        (only,) = value
        # Also unknown ones: a misspelled operator would be stored as a document.
        if isinstance(only, str) and only.startswith("$") and only != NUMBER:
            return only
    elif not MARKS.isdisjoint(value):
        mark = next(each for each in value if each in MARKS)
        raise InvalidArgument(f'"{mark}" stands alone in its dict', path=path, hint=LITERAL)
    return None


def _marked(
    column: str,
    steps: tuple[JsonStep, ...],
    operator: str,
    inner: Any,
    path: str,
    values: Values,
    use: Use,
) -> Assignment:
    """Parse an operator and its operand for a column."""
    place = f"{path}.{operator}"
    if operator == VALUE:
        return Assignment(column, Operand(values.add(_literal(inner)), place), path, steps=steps)
    if operator == LINK and use == "row":
        # A link stands for a related row; if the name turns out to be a column, it is refused later.
        return Assignment(column, Operand(values.add({LINK: unwrap(inner)}), path), path, LINK)
    if operator == DEFAULT:
        _refuse_default_of(inner, place)
        if use == "expect":
            raise InvalidArgument("a default cannot be expected", path=path)
        if steps:
            raise InvalidArgument("a column has a default, a path in it has none", path=path)
        return Assignment(column, None, path)
    computing = _computing(operator, place, use)
    fits, takes = _TAKES[computing]
    inner = unwrap(inner)
    if not fits(inner):
        raise InvalidArgument(f'"{operator}" takes {takes}', path=place)
    items: tuple[Operand, ...] = ()
    if computing == "remove":
        if len(inner) > MAX_REMOVED:
            raise InvalidArgument(f"a list of at most {MAX_REMOVED} items", path=place)
        items = tuple(Operand(values.add(each), f"{place}.{at}") for at, each in enumerate(inner))
    return Assignment(column, Operand(values.add(inner), place), path, computing, items, steps)


def _literal(inner: Any) -> Any:
    """Return the operand of `$value` in the form that the codec expects."""
    # Below `$value`, {"$number": …} is a plain object; the codec recognizes that by the same key.
    return {VALUE: inner} if stands_for(inner) else inner


def _refuse_default_of(inner: Any, path: str) -> None:
    if inner is not True:
        raise InvalidArgument('"$default" is true', path=path, hint=LITERAL)


def _computing(operator: str, path: str, use: Use) -> str:
    """Return the name of a computing operator; raise InvalidArgument for any other."""
    if operator == LINK and use == "changes":
        raise InvalidArgument(
            f'"{operator}" is of new rows',
            path=path,
            hint="what a row refers to changes with the columns of its foreign key",
        )
    if operator not in COMPUTING:
        changes = use == "changes"
        known = sorted(MARKS if changes else (DEFAULT, VALUE))
        meant = computing_hint(operator) if changes else None
        refusal = UnknownName("operator", operator, known, path=path, hint=meant)
        nearest = refusal.details.get("hint")
        refusal.details["hint"] = f"{nearest} {LITERAL}" if nearest else LITERAL
        raise refusal
    if use != "changes":
        raise InvalidArgument(
            f'"{operator}" computes out of the row that is there',
            path=path,
            hint=f'it stands in "changes" of update, and in "update" of upsert; {LITERAL}',
        )
    return COMPUTING[operator]


def expression_shape(given: Iterable[Assignment]) -> tuple[Hashable, ...]:
    """Return a key of the assignments to a column: equal keys share one SQL expression."""
    return tuple(
        (each.computing, len(each.items), *(step.key for step in each.steps)) for each in given
    )


def refuse_many_steps(rows: Iterable[Sequence[Assignment]], path: str) -> None:
    """
    Refuse changes whose paths would take PostgreSQL long to plan.

    Raises:
        InvalidArgument: The paths have more than `MAX_ALL_STEPS` steps; shared ones count once.
    """
    steps: dict[Hashable, int] = {}
    for row in rows:
        given: dict[str, list[Assignment]] = {}
        for each in row:
            if each.steps:
                given.setdefault(each.column, []).append(each)
        for column, parts in given.items():
            steps[column, expression_shape(parts)] = sum(len(each.steps) for each in parts)
    if sum(steps.values()) > MAX_ALL_STEPS:
        raise InvalidArgument(
            f"the paths of a call have at most {MAX_ALL_STEPS} steps in all",
            path=path,
            hint="set a value that holds several, or make several calls",
        )


def _path(text: str, path: str, values: Values) -> tuple[str, tuple[JsonStep, ...]]:
    """Parse a path into the JSON of a column, `column->key->0`; in quotes it is a column's name."""
    reference = parse_reference(text, path, values)
    steps = reference.steps
    if reference.owners or reference.cast or any(each.text for each in steps):
        raise InvalidArgument(
            f'not a path to set: "{clip(text, 80)}"',
            path=path,
            hint='written column->key->0; a column with "->" in its name stands in double quotes',
        )
    if len(steps) > MAX_STEPS:
        raise InvalidArgument(f"a path has at most {MAX_STEPS} steps", path=path)
    return reference.name, steps


def _refuse_overlaps(found: Sequence[Assignment]) -> None:
    """Refuse a path inside another one, and more than `MAX_PATHS` of one column."""
    places = [(each.column, tuple(step.key for step in each.steps), each.path) for each in found]
    for (column, outer, _), (other, inner, path) in pairwise(sorted(places, key=itemgetter(0, 1))):
        # Paths that begin with another one are sorted directly after it.
        if column == other and inner[: len(outer)] == outer:
            raise InvalidArgument(
                f'"{clip("->".join((other, *inner)))}" lies in what is set beside it',
                path=path,
                column=clip(column),
            )
    counts = Counter[str]()
    for column, _, path in places:
        counts[column] += 1
        if counts[column] > MAX_PATHS:
            raise InvalidArgument(
                f"at most {MAX_PATHS} paths of one column", path=path, column=clip(column)
            )


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
                    yield RelationshipCandidate(path, unquoted(key), _is_row(row[key]))

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
