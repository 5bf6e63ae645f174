"""
Functions of one name, told apart by the arguments that a call gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidArgument, UnknownName
from service.functions import Function

WHOLE = {114: "json", 3802: "jsonb", 25: "text", 17: "bytea", 142: "xml"}
"""The types of which a single unnamed argument takes a whole value, by their fixed oids."""


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


def chosen(functions: Sequence[Function], given: Given) -> Function:
    """
    Pick the function that arguments mean.

    The one that leaves least to defaults is meant, as in PostgreSQL; of several that take
    one unnamed value, the one whose type is that of the value.

    Raises:
        InvalidArgument: None takes these arguments, or several do; `candidates` names them.
    """
    fitting = [each for each in functions if _fits(each, given)]
    if not fitting:
        raise _misfit(functions, given)
    fewest = min(_left_out(each, given) for each in fitting)
    found = [each for each in fitting if _left_out(each, given) == fewest]
    if len(found) > 1 and len(given.positional) == 1 and not given.named:
        found = _of_the_value(found, given.positional[0]) or found
    if len(found) > 1:
        raise InvalidArgument(
            f'several functions "{found[0].name}" take these arguments',
            candidates=[signature(each) for each in found],
            hint="arguments are told apart by their names",
        )
    return found[0]


def signature(function: Function) -> str:
    """Spell what a function takes: "add(a, b)", with what may be left out in brackets."""
    spelled = []
    for at, each in enumerate(function.inputs, 1):
        name = each.name or f"${at}"
        spelled.append(f"[{name}]" if each.has_default else name)
    return f"{function.name}({', '.join(spelled)})"


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


def _of_the_value(functions: Sequence[Function], value: Any) -> list[Function]:
    if isinstance(value, str):
        wanted = ["text", "xml", "json", "jsonb"]
    elif isinstance(value, bytes | bytearray | memoryview):
        wanted = ["bytea"]
    else:
        wanted = ["jsonb", "json"]
    for name in wanted:
        found = [each for each in functions if WHOLE.get(each.inputs[0].type) == name]
        if found:
            return found
    return []


def _misfit(functions: Sequence[Function], given: Given) -> InvalidArgument:
    names = {name for function in functions for name in function.names}
    name = functions[0].name
    for each in given.named:
        if each not in names:
            found = UnknownName(
                "argument", each, sorted(names), f'function "{name}"', f"{given.path}{each}"[:200]
            )
            found.details.setdefault("hint", _takes(functions))
            return found
    if len(functions) > 1:
        return InvalidArgument(
            f'no function "{name}" takes these arguments',
            candidates=[signature(each) for each in functions],
        )
    (function,) = functions
    if len(given.positional) > function.unnamed:
        return InvalidArgument(
            f'"{name}" takes {function.unnamed or "no"} arguments by position,'
            f" got {len(given.positional)}",
            hint=_takes(functions),
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
                    hint=_takes(functions),
                )
    return InvalidArgument(
        f'"{name}" takes {function.unnamed} arguments by position, got {len(given.positional)}',
        hint=_takes(functions),
    )


def _takes(functions: Sequence[Function]) -> str:
    return f"it is {' or '.join(signature(each) for each in functions[:5])}"
