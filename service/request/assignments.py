"""
Parse the columns of a row with their new values, also computed ones: `{"$add": 1}`, `"meta->a": 2`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal

from service.errors import InvalidArgument, UnknownName, clip
from service.request.arguments import BARE, Referenced, ReferencedRow, Values, unwrap
from service.request.requests import Assignment, JsonStep, Operand
from service.request.select_list import named, parse_reference
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
        plain = _of_names(tuple(row), path, len(values), use)
        if plain is not None:
            values.extend(row.values())
            return plain
    found = []
    for name, value in row.items():
        here = f"{path}.{name}"
        column, steps = named(name), tuple[JsonStep, ...]()
        if use == "changes" and "->" in name:
            column, steps = _path(name, here, values)
        if type(value) is Referenced:
            operand = Operand(values.add(value), here)
            found.append(Assignment(column, operand, here, steps=steps, literal=True))
        elif isinstance(value, Mapping) and (operator := _operator(value, here)):
            inner = value[operator]
            found.append(_marked(column, steps, operator, inner, here, values, use))
        else:
            found.append(Assignment(column, Operand(values.add(value), here), here, steps=steps))
    if any(each.steps for each in found) or len({each.column for each in found}) < len(found):
        _refuse_overlaps(found)
    return tuple(found)


@lru_cache(1024)
def _of_names(
    names: tuple[str, ...], path: str, first: int, use: Use
) -> tuple[Assignment, ...] | None:
    """Return assignments of scalars at consecutive slots; None if a name may be a path or is duplicate."""
    columns = [named(name) for name in names]
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
        Assignment(name, Operand(values.add(value), here), here, literal=True)
        for name, value in row.items()
        for here in [f"{path}.{name}"]
    )


def _operator(value: Mapping[Any, Any], path: str) -> str | None:
    """Return the operator of a dict; None if the dict is a value."""
    if len(value) == 1:
        (only,) = value
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
    here = f"{path}.{operator}"
    if operator == VALUE:
        return Assignment(column, Operand(values.add(_literal(inner)), here), path, steps=steps)
    if operator == LINK and use == "row":
        # A link stands for a related row; if the name turns out to be a column, it is refused later.
        return Assignment(column, Operand(values.add({LINK: unwrap(inner)}), path), path, LINK)
    if operator == DEFAULT:
        _refuse_default_of(inner, here)
        if use == "expect":
            raise InvalidArgument("a default cannot be expected", path=path)
        if steps:
            raise InvalidArgument("a column has a default, a path in it has none", path=path)
        return Assignment(column, None, path)
    computing = _computing(operator, here, use)
    fits, takes = _TAKES[computing]
    inner = unwrap(inner)
    if not fits(inner):
        raise InvalidArgument(f'"{operator}" takes {takes}', path=here)
    items: tuple[Operand, ...] = ()
    if computing == "remove":
        if len(inner) > MAX_REMOVED:
            raise InvalidArgument(f"a list of at most {MAX_REMOVED} items", path=here)
        items = tuple(Operand(values.add(each), f"{here}.{at}") for at, each in enumerate(inner))
    return Assignment(column, Operand(values.add(inner), here), path, computing, items, steps)


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
