"""
The terms of requests: references to columns, and conditions on them.

They hold the shape of a call and no value of it: a value stands in the call's list of
values, and an `Operand` says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Nulls = Literal["first", "last"]


@dataclass(frozen=True, slots=True)
class Operand:
    """A value of the call: its index among the values, and where in the call it stood."""

    slot: int
    path: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step into a JSON value: `->` or (text) `->>`, by key or (index) by position."""

    key: str
    index: bool
    text: bool
    operand: Operand


@dataclass(frozen=True, slots=True)
class Reference:
    """
    A column as a caller names it: "driver.name", "doc->a->>b".

    Args:
        name: Of the column.
        path: Where in the call.
        owners: The embeds before it, outermost first.
        steps: Into its JSON value.
    """

    name: str
    path: str
    owners: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a select list; a reference to "*" stands for all columns."""

    reference: Reference
    alias: str | None = None
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A sort key."""

    reference: Reference
    descending: bool = False
    nulls: Nulls | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    One condition on one column.

    Args:
        reference: The column.
        operator: As the caller names it: "eq", "cs", "fts"…
        operand: What it is compared with; None for `is`.
        quantifier: "any" or "all" where the operand is a list of candidates.
        word: The operand of `is`: "null", "not null", "true", "false" or "unknown".
        config: The text search configuration of `fts` and its kin.
        element: For a range: the operand is an element, not a range.
        nulls: Whether a list of candidates holds nulls, which are left out of it: a test beside
            the comparison stands for them.
    """

    reference: Reference
    operator: str
    operand: Operand | None = None
    quantifier: Literal["", "any", "all"] = ""
    word: str = ""
    config: Operand | None = None
    element: bool = False
    nulls: bool = False


@dataclass(frozen=True, slots=True)
class Junction:
    """All of the terms, or (any) one of them; without terms all is true and any is false."""

    any: bool
    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """Not the term."""

    term: Filter


@dataclass(frozen=True, slots=True)
class Related:
    """
    Some related row, of which the term holds.

    Args:
        name: Of the embed.
        path: Where in the call.
        term: In terms of the related rows.
        stranger: Where a dict of conditions would be meant if the name is a column's: the first
            key of it that is no operator, and where that stands.
    """

    name: str
    path: str
    term: Filter
    stranger: tuple[str, str] | None = None


Filter = Comparison | Junction | Negation | Related


@dataclass(frozen=True, slots=True)
class Measure:
    """
    A function over many rows.

    Args:
        name: Of the measure.
        path: Where in the call.
        function: As SQL has it: "count", "sum"…
        item: What it is of; None for whole rows.
        distinct: Whether each value counts once.
        separator: What stands between the texts of `string_agg`.
        where: Which rows count.
        cast: What its result is cast to.
    """

    name: str
    path: str
    function: str
    item: Item | None
    distinct: bool
    separator: Operand | None
    where: Filter
    cast: str | None


EVERYTHING = Junction(any=False, terms=())
"""The filter that holds for every row."""
