"""
What stands for a polymorphic type: PostgreSQL takes it from the arguments, so they need one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.catalog import Catalog
from service.functions import Function
from service.request.overloads import Given

DIMENSIONS = 6
"""Of an array, at most (PostgreSQL's MAXDIM)."""
INTEGERS = ("int4", "int8", "numeric")


def generic_of(
    function: Function, given: Given, catalog: Catalog
) -> tuple[str, frozenset[str | int]]:
    """
    Find the one type of all that is given for polymorphic arguments.

    Args:
        function: The one that is called.
        given: What it is given.
        catalog: For the types of arguments.

    Returns:
        The name of the type, empty if nothing is polymorphic; and the names and positions
        of what is given as a list.
    """
    generic = [catalog.type(each.type).kind == "pseudo" for each in function.inputs]
    if not any(generic):
        return "", frozenset()
    values: dict[str | int, Any] = {}
    for at, argument in enumerate(function.inputs):
        if generic[at]:
            if at < len(given.positional):
                values[at] = given.positional[at]
            elif argument.name in given.named:
                values[argument.name] = given.named[argument.name]
    leaves = [leaf for value in values.values() for leaf in _leaves(value)]
    lists = frozenset(key for key, value in values.items() if isinstance(value, list | tuple))
    return _common([_type_of(leaf) for leaf in leaves]), lists


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value if depth < DIMENSIONS else ():
            yield from _leaves(each, depth + 1)
    elif value is not None:
        yield value


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        fits = (at for at, most in enumerate((2**31, 2**63)) if -most <= value < most)
        return INTEGERS[next(fits, 2)]
    if isinstance(value, float):
        return "float8"
    if isinstance(value, Mapping):
        return "jsonb"
    return "bytea" if isinstance(value, bytes) else "text"


def _common(types: list[str]) -> str:
    found = set(types)
    if len(found) == 1:
        return types[0]
    if found and found <= set(INTEGERS):
        return max(found, key=INTEGERS.index)
    if found and found <= {*INTEGERS, "float8"}:
        return "numeric" if "numeric" in found else "float8"
    return "text"
