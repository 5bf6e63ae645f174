"""
What the database can be asked to do: its functions and procedures, as frozen values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from service.errors import NoSuchProcedure, nearest

Mode = Literal["in", "out", "inout", "variadic", "table"]
Volatility = Literal["immutable", "stable", "volatile"]


@dataclass(frozen=True, slots=True)
class Argument:
    """
    An argument of a function, or a column of what it gives.

    Args:
        name: Empty if it has none.
        type: Its type's oid; of a variadic one that of the array.
        mode: Whether it is given, or comes back, or both.
        has_default: Whether a call may leave it out.
    """

    name: str
    type: int
    mode: Mode = "in"
    has_default: bool = False

    @property
    def given(self) -> bool:
        """Whether a caller gives it."""
        return self.mode in ("in", "inout", "variadic")


@dataclass(frozen=True, eq=False)
class Function:
    """
    A function or procedure that our role may execute.

    Args:
        schema: Of the function.
        name: Of the function; others may have the same one, with other arguments.
        arguments: In order, those that come back and the columns of a TABLE among them.
        result: The oid of the type of its result, or of each of them.
        many: Whether it returns a set.
        single: Whether its author expects one row of the set (ROWS 1).
        volatility: What it promises.
        procedure: Whether it is run by CALL.
        definer: Whether it runs with the rights of its owner.
        comment: From COMMENT ON, less the lines that speak to the service.
    """

    schema: str
    name: str
    arguments: tuple[Argument, ...]
    result: int
    many: bool = False
    single: bool = False
    volatility: Volatility = "volatile"
    procedure: bool = False
    definer: bool = False
    comment: str | None = None

    @cached_property
    def inputs(self) -> tuple[Argument, ...]:
        """What a caller gives."""
        return tuple(each for each in self.arguments if each.given)

    @cached_property
    def outputs(self) -> tuple[tuple[str, int], ...]:
        """Names and type oids of the arguments that come back, named as PostgreSQL would."""
        back = [each for each in self.arguments if each.mode in ("out", "inout", "table")]
        return tuple((each.name or f"column{at}", each.type) for at, each in enumerate(back, 1))

    @property
    def names(self) -> frozenset[str]:
        """The names by which a caller can give arguments."""
        return frozenset(each.name for each in self.inputs if each.name)

    @property
    def unnamed(self) -> int:
        """How many arguments at least have to be given by position."""
        return max((at for at, each in enumerate(self.inputs, 1) if not each.name), default=0)

    @property
    def reads(self) -> bool:
        """Whether it promises to write nothing."""
        return self.volatility != "volatile" and not self.procedure


def unknown(name: str, known: Iterable[str]) -> NoSuchProcedure:
    """Word that there is no function of a name."""
    return NoSuchProcedure(f'no function "{name[:80]}" is served', hint=nearest(name, list(known)))
