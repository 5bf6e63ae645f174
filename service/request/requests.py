"""
Frozen requests, and the terms that they are made of: what a call asks for.

A request holds the shape of a call and no value of it: a value stands in the call's list
of values, and the request has an `Operand` that says where. So two calls that differ in
their values alone are equal requests, and share one plan and one SQL text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Nulls = Literal["first", "last"]
Old = Literal["", "old", "both"]


# A tuple, as an assignment is: a call has one for each value, and a frozen dataclass takes up to thrice
# the time to make, and is hashed and compared in Python for each look at what is kept of its shape.
class Operand(NamedTuple):
    """A value of the call: its index among the values, and where in the call it stood."""

    slot: int
    path: str


@dataclass(frozen=True, slots=True)
class JsonStep:
    """One step into a JSON value: `->` or (text) `->>`, by key or (index) by position."""

    key: str
    index: bool
    text: bool
    operand: Operand


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone, by its name."""

    name: str
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
        cast: The type that it is cast to at the end, if it is.
        place: Where in the call that type is named, if not beside the column.
        trunc: The unit that a time is cut to.
        zone: The time zone in which that is done.
        length: Whether its length is meant.
        every: Whether it is "*", which in quotes is a name.
        args: What is given to the function that computes it, by name, in the order of the names.
    """

    name: str
    path: str
    owners: tuple[str, ...] = ()
    steps: tuple[JsonStep, ...] = ()
    cast: str | None = None
    place: str | None = None
    trunc: str | None = None
    zone: Zone | None = None
    length: bool = False
    every: bool = False
    args: tuple[tuple[str, Operand], ...] = ()

    @property
    def is_value(self) -> bool:
        """Whether it is more than a name, so that it cannot be that of related rows."""
        return bool(self.steps or self.cast or self.trunc or self.length or self.args)


@dataclass(frozen=True, slots=True)
class Item:
    """
    An item of a select list; a reference to every column stands for all.

    Args:
        reference: The column.
        alias: What it is called in the answer, if not as it is.
        left_out: Whether it is to be none of all columns.
    """

    reference: Reference
    alias: str | None = None
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """
    A sort key.

    Args:
        reference: The column.
        descending: Its direction.
        nulls: Where its nulls go.
        rank: A query of text search, if its rank is sorted by.
        config: The configuration of that.
        near: A value, if the distance from it is sorted by.
    """

    reference: Reference
    descending: bool = False
    nulls: Nulls | None = None
    rank: Operand | None = None
    config: Operand | None = None
    near: Operand | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    One condition on one column.

    Args:
        reference: The column.
        operator: As the caller names it: "eq", "cs", "fts"…
        operand: What it is compared with; None for `is`, and where that is a column.
        column: The other column of the row that it is compared with, if it is.
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
    column: Reference | None = None
    quantifier: Literal["", "any", "all"] = ""
    word: str = ""
    config: Operand | None = None
    element: bool = False
    nulls: bool = False


@dataclass(frozen=True)
class Connective:
    """All of the terms, or (any) one of them; without terms all is true and any is false."""

    any: bool
    terms: tuple[Filter, ...]

    # Filters are kept by their shape, and each look at what is made of one would hash all of it anew.
    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.any, self.terms))


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
        unknown_key: Where a dict of conditions would be meant if the name is a column's: the first
            key of it that is no operator, and where that stands.
    """

    name: str
    path: str
    term: Filter
    unknown_key: tuple[str, str] | None = None


Filter = Comparison | Connective | Negation | Related


@dataclass(frozen=True, slots=True)
class Measure:
    """
    A function over many rows.

    Args:
        name: Of the measure.
        path: Where in the call.
        function: As SQL has it: "count", "sum"…
        item: What it is of; None for rows.
        distinct: Whether each value counts once.
        separator: What stands between the strings of `string_agg`.
        fraction: Of a percentile.
        discrete: Whether that is one of the values.
        order: In which lists and strings are made.
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
    fraction: Operand | None = None
    discrete: bool = False
    order: tuple[Key, ...] = ()


EVERYTHING = Connective(any=False, terms=())
"""The filter that holds for every row."""
NEVER = Connective(any=True, terms=())
"""A filter that holds for no row."""


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
    Where the page before ended; or, backwards, where the page behind began.

    Args:
        operands: The values of its last, or first, row's sort keys, as PostgreSQL's text; backwards,
            none stand for the end of all rows.
        nulls: Which of them are null.
        backwards: Whether rows before there are meant.
    """

    operands: tuple[Operand, ...]
    nulls: tuple[bool, ...]
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class GetRequest:
    """
    A row by key; or rows by keys (`many`), where each operand is a list of one value for each key, and
    there are no operands if there are no keys.
    """

    key: KeyMatch
    select: tuple[Item, ...] | None
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"
    many: bool = False


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
        after: The end of the page before, or the beginning of the one behind.
        count: How to count all matching rows, if at all.
        embeds: Related rows.
        form: Of the rows in the answer.
        measures: Over all matching rows.
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
    measures: tuple[Measure, ...] = ()


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


class Assignment(NamedTuple):
    """
    A column and its new value.

    Args:
        column: Its name.
        operand: The value, or what it is computed with; None for the column's default.
        path: Where in the call.
        computing: How the value is computed out of the one that is there, if it is: "add", "merge"…;
            "$link" where the name is to be a relationship's.
        items: Of a list that is removed, each by itself.
        steps: Into the column's JSON, if a value in it is set.
        literal: Whether it is a column and a value for certain, and no related rows.
    """

    column: str
    operand: Operand | None
    path: str
    computing: str = ""
    items: tuple[Operand, ...] = ()
    steps: tuple[JsonStep, ...] = ()
    literal: bool = False

    @property
    def computes(self) -> bool:
        """Whether the new value depends on the one that is there."""
        return bool(self.computing or self.steps)


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
        receipt: Whether the transaction's id is answered, too.
        old: Whether the rows are answered as they were: alone, or beside what they are now.
    """

    rows: bool = True
    select: tuple[Item, ...] | None = None
    order: tuple[Key, ...] = ()
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"
    receipt: bool = False
    old: Old = ""


@dataclass(frozen=True, slots=True)
class OnConflict:
    """
    What becomes of a new row whose key is there already.

    Args:
        key: Columns of a unique key, or its name; None for the primary key.
        update: The columns that the row there takes over; None for all that are given.
        where: What must hold of the row there, so that it does.
        changes: Of the row there, if it takes over none.
    """

    key: str | tuple[str, ...] | None
    update: tuple[str, ...] | None
    where: Filter = EVERYTHING
    changes: tuple[Assignment, ...] = ()


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
        embeds_nested: Whether what is nested is embedded, since the call does not say what is.
        given_paths: Where each row stands in the call, if these are some of its rows.
    """

    rows: tuple[tuple[Assignment, ...], ...]
    many: bool
    returning: Returning
    max_affected: int | None = None
    conflict: OnConflict | None = None
    embeds_nested: bool = False
    given_paths: tuple[str | None, ...] = ()

    @property
    def paths(self) -> tuple[str | None, ...]:
        """Where each row stands in the call; None for the one that is no row of a list."""
        if self.given_paths:
            return self.given_paths
        return tuple(f"values.{at}" if self.many else None for at in range(len(self.rows)))


@dataclass(frozen=True, slots=True)
class Target:
    """The rows that a write is for: one by key with what must still hold, or all by filter."""

    key: KeyMatch | None
    expect: tuple[Assignment, ...]
    where: Filter


@dataclass(frozen=True, slots=True)
class Pick:
    """
    Which of the rows of a filter are taken, in the order of the answer.

    Args:
        limit: How many at most.
        skip_locked: Whether rows that another transaction has locked are left out.
    """

    limit: Operand | None
    skip_locked: bool


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """Changes to rows."""

    target: Target
    changes: tuple[Assignment, ...]
    returning: Returning
    max_affected: int | None = None
    pick: Pick | None = None


@dataclass(frozen=True, slots=True)
class UpdateRowsRequest:
    """
    Changes to rows, other ones for each.

    Args:
        rows: Each with the columns of its key among its assignments.
        by: The columns of the key; None for the primary key.
        returning: What comes back.
        max_affected: How many there may be.
        given_paths: Where each stands in the call, if not in its `rows`.
    """

    rows: tuple[tuple[Assignment, ...], ...]
    by: tuple[str, ...] | None
    returning: Returning
    max_affected: int | None = None
    given_paths: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each row stands in the call."""
        return self.given_paths or tuple(f"rows.{at}" for at in range(len(self.rows)))


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Rows to delete."""

    target: Target
    returning: Returning
    max_affected: int | None = None
