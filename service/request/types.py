"""
Frozen requests: what a call asks for, before anybody looked at the catalog.

A request holds the shape of a call and no value of it: a value stands in the call's list
of values, and the request has an `Operand` that says where. So two calls that differ in
their values alone are equal requests, and share one plan and one SQL text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.request.terms import Filter, Item, Key, Measure, Operand, Reference

CountMode = Literal["exact", "planned", "estimated"]
Form = Literal["dicts", "lists", "json"]


@dataclass(frozen=True, slots=True)
class Embed:
    """
    Related rows, inside each row.

    Args:
        name: Of the embed: of a relation, foreign key or column, unless `relation` is given.
        path: Where in the call.
        relation: The related relation, perhaps with its schema.
        via: What relates them, where there is more than one way.
        direction: Which way a relation refers to itself.
        select, where, order, limit, offset: Of the related rows, as in a find.
        embeds: Inside the related rows.
        inner: Whether rows without related ones are left out.
        spread: Whether the columns join those of the row.
        measures, group: Of the related rows, as in an aggregate; then that is what is embedded.
    """

    name: str
    path: str
    relation: str | None
    via: str | None
    direction: Literal["one", "many"] | None
    select: tuple[Item, ...] | None
    where: Filter
    order: tuple[Key, ...]
    limit: Operand | None
    offset: Operand | None
    embeds: tuple[Embed, ...]
    inner: bool
    spread: bool
    measures: tuple[Measure, ...] = ()
    group: tuple[Item, ...] = ()


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
    embeds: tuple[Embed, ...] = ()
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
        embeds: Related rows.
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
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many rows there are, or whether there is one."""

    where: Filter


@dataclass(frozen=True, slots=True)
class AggregateRequest:
    """
    Functions over groups of rows.

    Args:
        measures: The functions.
        group: What the rows of a group have in common; without it all are one group.
        where: Which rows.
        having: Which groups, by their measures.
        order, limit, offset: Of the groups.
        form: Of the groups in the answer.
    """

    measures: tuple[Measure, ...]
    group: tuple[Item, ...]
    where: Filter
    having: Filter
    order: tuple[Key, ...]
    limit: Operand
    offset: Operand | None
    form: Form = "dicts"


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
        embeds: Related rows.
        form: Of the rows in the answer.
    """

    rows: bool = True
    select: tuple[Item, ...] | None = None
    order: tuple[Key, ...] = ()
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"


@dataclass(frozen=True, slots=True)
class OnConflict:
    """
    What becomes of a new row whose key is there already.

    Args:
        key: Columns of a unique key, or its name; None for the primary key.
        update: The columns that the row there takes over; None for all that are given.
    """

    key: str | tuple[str, ...] | None
    update: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """
    New rows.

    Args:
        rows: Each a tuple of assignments.
        many: Whether the caller gave a list.
        returning: What comes back.
        max_affected: How many there may be.
        conflict: What becomes of those that are there already; None if that is an error.
    """

    rows: tuple[tuple[Assignment, ...], ...]
    many: bool
    returning: Returning
    max_affected: int | None = None
    conflict: OnConflict | None = None


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
