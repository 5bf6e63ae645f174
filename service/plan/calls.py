"""
Frozen plans of functions: with what they are called, and what comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.catalog import Type
from service.functions import Function
from service.plan.conditions import Bound


@dataclass(frozen=True, slots=True)
class PlannedArgument:
    """An argument by name, or (without one) by position; no value is null."""

    name: str
    value: Bound | None
    variadic: bool = False


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """
    A function with what it is given.

    Args:
        function: Which one.
        arguments: Those by position first.
        names: What the columns of its rows are called, where they have no names of their own.
    """

    function: Function
    arguments: tuple[PlannedArgument, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPlan:
    """
    A plain call of a function.

    Args:
        name: What it is for, as in "fn.add".
        call: The function.
        columns: The names of what it answers.
        rows: Whether it is a source of rows, rather than one value.
        untyped: Whether only the server knows what its rows are made of.
        types: Of what it answers, where that is known.
    """

    name: str
    call: FunctionCall
    columns: tuple[str, ...]
    rows: bool
    untyped: bool
    types: tuple[Type, ...] = ()
