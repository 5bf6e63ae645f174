"""
Frozen plans of writes, and of what comes back of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.catalog import Column, Relation, Spelled
from service.plan.conditions import Bound, Condition, Exists, Operator
from service.plan.types import Output, PlannedEmbed, SortKey


@dataclass(frozen=True, slots=True)
class Carried:
    """A column whose values go from one statement to the next, and its type as a cast spells it."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Reread:
    """
    How rows are read once more, by the statement after the one that wrote them.

    Args:
        equal: What compares the columns of the key that they are found by; nothing where they
            are taken as they were written.
        carried: What the second statement has of each from the first one, the key first.
        row: The name of the whole row among that, if it is needed.
        loose: Whether a row that is not found is taken as it was written.
    """

    equal: tuple[Operator, ...]
    carried: tuple[Carried, ...]
    row: str
    loose: bool


@dataclass(frozen=True, slots=True)
class Back:
    """
    What comes back of written rows; without outputs and embeds, nothing.

    Args:
        outputs: Of each row.
        order: Of the rows.
        embeds: Related rows, inside each row.
        inner: What a row must be related to so as to come back; it is written all the same.
        reread: How all of that is read after the write; None where RETURNING gives it.
        certain: Whether it is an error that no row was written.
    """

    outputs: tuple[Output, ...] = ()
    order: tuple[SortKey, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    inner: tuple[Exists, ...] = ()
    reread: Reread | None = None
    certain: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """A column and its new value; None for the column's default."""

    column: Column
    value: Bound | None


@dataclass(frozen=True, slots=True)
class Takeover:
    """
    A column that a row takes over from a new one with its key.

    Args:
        column: Of both.
        kept: Keys of new rows that do not give the column, so that the row keeps its own.
    """

    column: Column
    kept: tuple[tuple[Bound, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """
    What becomes of a new row whose key is there already.

    Args:
        key: The columns of the key, or those that an index goes by.
        takeovers: What changes in the row there; nothing leaves it alone.
        equal: What compares them.
        nulls: Whether rows without a value in the key may have the same one.
        target: What ON CONFLICT goes by, where that is not the columns alone.
    """

    key: tuple[str, ...]
    takeovers: tuple[Takeover, ...]
    equal: tuple[Operator, ...]
    nulls: bool
    target: Spelled | None = None


@dataclass(frozen=True, slots=True)
class InsertPlan:
    """
    New rows.

    Args:
        name: What it is for.
        relation: Where they go.
        columns: The columns that any of them gives.
        rows: For each row, a parameter or None (default) for each of the columns.
        back: What comes back of each.
        conflict: What becomes of those that are there already; None if that is an error.
    """

    name: str
    relation: Relation
    columns: tuple[Column, ...]
    rows: tuple[tuple[Bound | None, ...], ...]
    back: Back
    conflict: Conflict | None = None


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """Changes to the rows that a condition picks."""

    name: str
    relation: Relation
    settings: tuple[Setting, ...]
    where: Condition | None
    back: Back


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """The deletion of the rows that a condition picks."""

    name: str
    relation: Relation
    where: Condition | None
    back: Back
