"""
Frozen requests: what a call asks for, before anybody looked at the catalog.

A request holds the shape of a call and no value of it: a value stands in the call's list
of values, and the request has an `Operand` that says where. So two calls that differ in
their values alone are equal requests, and share one plan and one SQL text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Nulls = Literal["first", "last"]
CountMode = Literal["exact", "planned", "estimated"]
Form = Literal["dicts", "lists"]


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
    """

    reference: Reference
    operator: str
    operand: Operand | None = None
    quantifier: Literal["", "any", "all"] = ""
    word: str = ""
    config: Operand | None = None
    element: bool = False


@dataclass(frozen=True, slots=True)
class Junction:
    """All of the terms, or (any) one of them; without terms all is true and any is false."""

    any: bool
    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """Not the term."""

    term: Filter


Filter = Comparison | Junction | Negation

EVERYTHING = Junction(any=False, terms=())
"""The filter that holds for every row."""


@dataclass(frozen=True, slots=True)
class KeyMatch:
    """A row named by a key: its columns and their values; no columns: the primary key's."""

    columns: tuple[str, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class After:
    """
    Where the page before ended.

    Args:
        operands: The values of its last row's sort keys, as PostgreSQL's text.
        nulls: Which of them are null.
    """

    operands: tuple[Operand, ...]
    nulls: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class GetRequest:
    """A row by key."""

    key: KeyMatch
    select: tuple[Item, ...] | None
    form: Form = "dicts"


@dataclass(frozen=True, slots=True)
class FindRequest:
    """
    Rows by filter.

    Args:
        where: Which rows.
        select: What of them; None for all columns.
        order: By what; the plan adds the primary key.
        distinct: True for distinct rows, or the columns to be distinct on.
        limit: An operand, one more than the page holds.
        offset: An operand.
        after: The end of the page before.
        count: How to count all matching rows, if at all.
        form: Of the rows in the answer.
    """

    where: Filter
    select: tuple[Item, ...] | None
    order: tuple[Key, ...]
    distinct: bool | tuple[Reference, ...]
    limit: Operand
    offset: Operand | None
    after: After | None
    count: CountMode | None
    form: Form = "dicts"


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many rows there are, or whether there is one."""

    where: Filter


@dataclass(frozen=True, slots=True)
class Assignment:
    """A column and its new value; no operand means the column's default."""

    column: str
    operand: Operand | None
    path: str


@dataclass(frozen=True, slots=True)
class Returning:
    """
    What a write answers.

    Args:
        rows: Whether it reads anything back.
        select: What of the rows; None for all columns.
        order: Of the rows.
        form: Of the rows in the answer.
    """

    rows: bool = True
    select: tuple[Item, ...] | None = None
    order: tuple[Key, ...] = ()
    form: Form = "dicts"


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """New rows, each a tuple of assignments; `many` if the caller gave a list."""

    rows: tuple[tuple[Assignment, ...], ...]
    many: bool
    returning: Returning
    max_affected: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The rows that a write is for: one by key with what must still hold, or all by filter."""

    key: KeyMatch | None
    expect: tuple[Assignment, ...]
    where: Filter


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """Changes to rows."""

    target: Target
    changes: tuple[Assignment, ...]
    returning: Returning
    max_affected: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Rows to delete."""

    target: Target
    returning: Returning
    max_affected: int | None = None
