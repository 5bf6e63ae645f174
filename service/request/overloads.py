"""
Functions of one name, told apart by the arguments that a call gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.catalog import Catalog
from service.errors import InvalidArgument, UnknownName
from service.functions import Argument, Function
from service.request.closeness import distance


@dataclass(frozen=True, slots=True)
class Given:
    """
    What a call gives a function.

    Args:
        positional: Values by position.
        named: Values by name.
        path: What stands before the names in the call.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    path: str = ""


def chosen(functions: Sequence[Function], given: Given, catalog: Catalog) -> Function:
    """
    Pick the function that arguments mean.

    The one that leaves least to defaults is meant, as in PostgreSQL. Of several that take the
    same names, it is the one whose types go at least as well with every value as those of any
    other.

    Raises:
        InvalidArgument: None takes these arguments, or several do; `candidates` names them.
    """
    fitting = [each for each in functions if _fits(each, given)]
    if not fitting:
        raise _misfit(functions, given, catalog)
    fewest = min(_left_out(each, given) for each in fitting)
    found = [each for each in fitting if _left_out(each, given) == fewest]
    closest = found if len(found) == 1 else _closest(found, given, catalog)
    if len(closest) != 1:
        raise InvalidArgument(
            f'several functions "{found[0].name}" take these arguments',
            candidates=[signature(each, catalog) for each in found],
            hint="arguments are told apart by their names, then by the types of their values",
        )
    return closest[0]


def signature(function: Function, catalog: Catalog) -> str:
    """Spell what a function takes: "add(a integer, [b integer])", brackets for a default."""
    spelled = []
    for at, each in enumerate(function.inputs, 1):
        word = f"{each.name or f'${at}'} {catalog.type(each.type).sql}"
        spelled.append(f"[{word}]" if each.has_default else word)
    return f"{function.name}({', '.join(spelled)})"


def _closest(functions: Sequence[Function], given: Given, catalog: Catalog) -> list[Function]:
    """Give the functions to whose types no value is closer in another one."""
    distances = [
        [
            distance(value, catalog.type(argument.type), catalog)
            for argument, value in _paired(each, given)
        ]
        for each in functions
    ]
    least = [min(column) for column in zip(*distances, strict=True)]
    return [each for each, far in zip(functions, distances, strict=True) if far == least]


def _paired(function: Function, given: Given) -> Iterator[tuple[Argument, Any]]:
    """Give each value with its argument, in the order of the call."""
    yield from zip(function.inputs, given.positional, strict=False)
    by_name = {each.name: each for each in function.inputs}
    for name, value in given.named.items():
        yield by_name[name], value


def _fits(function: Function, given: Given) -> bool:
    unnamed, inputs = function.unnamed, function.inputs
    by_position = len(given.positional)
    if by_position > unnamed or not given.named.keys() <= function.names:
        return False
    # what stands before an unnamed argument must be given, in one way or the other
    first = {each.name for each in inputs[:by_position] if each.name}
    if first & given.named.keys():
        return False
    return all(
        each.has_default or (each.name and each.name in given.named)
        for each in inputs[by_position:]
    )


def _left_out(function: Function, given: Given) -> int:
    return len(function.inputs) - len(given.positional) - len(given.named)


def _misfit(functions: Sequence[Function], given: Given, catalog: Catalog) -> InvalidArgument:
    names = {name for function in functions for name in function.names}
    name = functions[0].name
    for each in given.named:
        if each not in names:
            found = UnknownName(
                "argument", each, sorted(names), f'function "{name}"', f"{given.path}{each}"[:200]
            )
            found.details.setdefault("hint", _takes(functions, catalog))
            return found
    if len(functions) > 1:
        return InvalidArgument(
            f'no function "{name}" takes these arguments',
            candidates=[signature(each, catalog) for each in functions],
        )
    (function,) = functions
    if len(given.positional) > function.unnamed:
        return InvalidArgument(
            f'"{name}" takes {function.unnamed or "no"} arguments by position,'
            f" got {len(given.positional)}",
            hint=_takes(functions, catalog),
        )
    for at, argument in enumerate(function.inputs):
        if at < len(given.positional) and argument.name in given.named and argument.name:
            return InvalidArgument(f'"{argument.name}" is given twice', path=argument.name)
        if at >= len(given.positional) and not argument.has_default:
            if not argument.name:
                break
            if argument.name not in given.named:
                return InvalidArgument(
                    f'the argument "{argument.name}" is missing',
                    path=f"{given.path}{argument.name}",
                    hint=_takes(functions, catalog),
                )
    return InvalidArgument(
        f'"{name}" takes {function.unnamed} arguments by position, got {len(given.positional)}',
        hint=_takes(functions, catalog),
    )


def _takes(functions: Sequence[Function], catalog: Catalog) -> str:
    return f"it is {' or '.join(signature(each, catalog) for each in functions[:5])}"
