"""
Frozen plans of writes, and of what comes back of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.catalog import Column, Relation
from service.plan.conditions import Bound, Condition, Exists, Operator
from service.plan.types import Output, PlannedEmbed, SortKey


@dataclass(frozen=True, slots=True)
class Back:
    """
    What comes back of written rows; without outputs and embeds, nothing.

    Args:
        outputs: Of each row.
        order: Of the rows.
        embeds: Related rows, inside each row.
        inner: What a row must be related to so as to come back; it is written all the same.
    """

    outputs: tuple[Output, ...] = ()
    order: tuple[SortKey, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    inner: tuple[Exists, ...] = ()


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
        key: The columns of the key.
        takeovers: What changes in the row there; nothing leaves it alone.
        equal: What compares them.
        nulls: Whether rows without a value in the key may have the same one.
    """

    key: tuple[str, ...]
    takeovers: tuple[Takeover, ...]
    equal: tuple[Operator, ...]
    nulls: bool = False


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
