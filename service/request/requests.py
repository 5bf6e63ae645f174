"""
Frozen requests: what a call asks for, parsed.

A request holds the shape of a call but none of its values: these are in a list of their own, and the
request has an `Operand` for each, with its index. Calls that differ only in their values therefore have
equal requests, and share one plan and one SQL text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Nulls = Literal["first", "last"]
Old = Literal["", "old", "both"]


# A NamedTuple, like Assignment: each value of a call makes one. A frozen dataclass takes up to three
# times as long to construct, and each lookup in a cache by shape would hash and compare it in Python.
class Operand(NamedTuple):
    """A value of the call: its index among the values, and its path in the call, for errors."""

    slot: int
    path: str


@dataclass(frozen=True, slots=True)
class JsonStep:
    """One step into a JSON value: `->`, or `->>` if `text`; by key, or by position if `index`."""

    key: str
    index: bool
    text: bool
    operand: Operand


@dataclass(frozen=True, slots=True)
class Zone:
    """The name of a time zone: `name` in the request's shape, and as an operand."""

    name: str
    operand: Operand


@dataclass(frozen=True, slots=True)
class Reference:
    """
    A column expression as a caller writes it: "driver.name", "doc->a->>b".

    Args:
        name: Name of the column.
        path: Path in the call, for errors.
        owners: Names of the embeds that qualify it, outermost first.
        steps: Steps into its JSON value.
        cast: The type that the result is cast to, if any.
        place: Path of the cast in the call, if it is not part of the column's name.
        trunc: The unit of `date_trunc`, if any.
        zone: The time zone of `date_trunc`.
        length: Whether the length of the value is meant.
        every: Whether it is an unquoted "*", all columns.
        args: Arguments of the function of a computed column, sorted by name.
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
        """Whether it is an expression on a column, and so cannot name related rows."""
        return bool(self.steps or self.cast or self.trunc or self.length or self.args)


@dataclass(frozen=True, slots=True)
class Item:
    """
    An item of a select list.

    Args:
        reference: The column, or "*" for all columns.
        alias: Its name in the result, if not its own.
        left_out: Whether the column is excluded from "*".
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
        descending: Whether the order is descending.
        nulls: Position of nulls; None for PostgreSQL's default.
        rank: A text search query, to sort by the rank of the column in it.
        config: The text search configuration of `rank`.
        near: A value, to sort by the distance of the column from it.
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
        operator: The operator's name on the wire: "eq", "cs", "fts"…
        operand: The value it is compared with; None for `is` and for a comparison with a column.
        column: The column of the same row that it is compared with, if any.
        quantifier: "any" or "all" if the operand is a list of candidates.
        word: The operand of `is`: "null", "not null", "true", "false" or "unknown".
        config: The text search configuration of `fts` and its siblings.
        element: For `cs` on a range: the operand is an element, not a range.
        nulls: Whether the list of candidates contains nulls. They are removed from it, and a separate
            `is null` test beside the comparison covers them.
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


def _hash_once(self: Any) -> int:
    """
    Return the hash of a frozen dataclass, which is computed once.

    Filters, and requests with them, are keys of caches; without this each lookup would hash the entire tree.
    """
    kept: dict[str, Any] = self.__dict__
    if "_hash" not in kept:
        kept["_hash"] = hash(tuple(kept.values()))
    return int(kept["_hash"])


@dataclass(frozen=True)
class Connective:
    """AND of the terms, or OR if `any`; without terms AND is true and OR is false."""

    any: bool
    terms: tuple[Filter, ...]

    __hash__ = _hash_once


@dataclass(frozen=True, slots=True)
class Negation:
    """NOT of the term."""

    term: Filter


@dataclass(frozen=True, slots=True)
class Related:
    """
    EXISTS: a related row for which the term is true.

    Args:
        name: Name of the relationship.
        path: Path in the call, for errors.
        term: The filter of the related rows.
        unknown_key: The first key that is not an operator, and its path: the error to report if the
            name turns out to be a column's, whose dict must be one of operators.
    """

    name: str
    path: str
    term: Filter
    unknown_key: tuple[str, str] | None = None


Filter = Comparison | Connective | Negation | Related


@dataclass(frozen=True, slots=True)
class Measure:
    """
    An aggregate function.

    Args:
        name: Name of the measure in the result.
        path: Path in the call, for errors.
        function: Name of the SQL function: "count", "sum"…
        item: Its argument; None for `count(*)`.
        distinct: Whether it has DISTINCT.
        separator: The separator of `string_agg`.
        fraction: The fraction of a percentile.
        discrete: Whether the percentile is `percentile_disc`, not `percentile_cont`.
        order: ORDER BY of `array_agg`, `string_agg` and the like.
        where: FILTER of the aggregate.
        cast: The type that its result is cast to, if any.
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
"""The filter that is true for every row."""
NEVER = Connective(any=True, terms=())
"""A filter that is false for every row."""


CountMode = Literal["exact", "planned", "estimated"]
Form = Literal["dicts", "lists", "json"]


@dataclass(frozen=True, slots=True)
class Embed:
    """
    Related rows, embedded in each row; by default all of them, as a filter or sort key means them by the name alone.

    Args:
        name: Key in the result; also the name of the relation, foreign key or column, if `relation` is None.
        path: Path in the call, for errors.
        relation: Name of the related relation, optionally schema-qualified.
        via: The foreign key, column or junction table to use if there are several relationships.
        direction: Direction of a relationship between a relation and itself.
        select, where, order, limit, offset: Of the related rows, as in `find`.
        embeds: Embeds of the related rows.
        inner: Whether rows without related rows are left out.
        spread: Whether the related columns become columns of the row itself.
        measures, group: Of the related rows, as in `aggregate`, whose result is embedded in their place.
    """

    name: str
    path: str
    relation: str | None = None
    via: str | None = None
    direction: Literal["one", "many"] | None = None
    select: tuple[Item, ...] | None = None
    where: Filter = EVERYTHING
    order: tuple[Key, ...] = ()
    limit: Operand | None = None
    offset: Operand | None = None
    embeds: tuple[Embed, ...] = ()
    inner: bool = False
    spread: bool = False
    measures: tuple[Measure, ...] = ()
    group: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class KeyMatch:
    """A unique key and its values; without columns, the primary key."""

    columns: tuple[str, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class After:
    """
    The bound of a page in keyset pagination: the end of the page before, or the start of the page after.

    Args:
        operands: The sort keys of the bounding row, in PostgreSQL's text format. Empty, with
            `backwards`, for the last page.
        nulls: Which of them are null.
        backwards: Whether the page consists of rows before the bound.
    """

    operands: tuple[Operand, ...]
    nulls: tuple[bool, ...]
    backwards: bool = False


@dataclass(frozen=True, slots=True)
class GetRequest:
    """
    A row by key; or, if `many`, rows by keys: each operand is the list of one column's values, one for each
    key. An empty list of keys has no operands.
    """

    key: KeyMatch
    select: tuple[Item, ...] | None
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"
    many: bool = False


@dataclass(frozen=True)
class FindRequest:
    """
    Rows by filter.

    Args:
        where: The filter.
        select: The select list; None for all columns.
        order: Sort keys; the plan appends the primary key.
        distinct: True for DISTINCT, or the columns of DISTINCT ON.
        limit: Page size plus one.
        offset: Rows to skip.
        after: Bound of the page, with keyset pagination.
        count: How to count all matching rows, if at all.
        embeds: Related rows.
        form: Form of the rows in the result.
        measures: Aggregates over all matching rows.
    """

    where: Filter
    select: tuple[Item, ...] | None
    order: tuple[Key, ...]
    distinct: bool | tuple[Reference, ...]
    limit: Operand
    offset: Operand | None = None
    after: After | None = None
    count: CountMode | None = None
    embeds: tuple[Embed, ...] = ()
    form: Form = "dicts"
    measures: tuple[Measure, ...] = ()

    __hash__ = _hash_once


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Number of rows that match a filter, or whether there are any."""

    where: Filter


@dataclass(frozen=True, slots=True)
class AggregateRequest:
    """
    Aggregate functions over groups of rows.

    Args:
        measures: The aggregates.
        group: GROUP BY; empty for one group of all rows.
        where: Filter of the rows.
        having: Filter of the groups, by their measures.
        order, limit, offset: Of the groups.
        form: Form of the groups in the result.
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
        column: Name of the column.
        operand: The value, or the operand of `computing`; None for the column's default.
        path: Path in the call, for errors.
        computing: How the value is computed from the current one, if it is: "add", "merge"…; "$link" if
            the name is a relationship's.
        items: Items to remove from a list, each an operand.
        steps: Steps into the column's JSON value, if only a part of it is set.
        literal: Whether the name must be a column's, and cannot mean related rows.
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
        """Whether the new value depends on the current one."""
        return bool(self.computing or self.steps)


@dataclass(frozen=True, slots=True)
class Returning:
    """
    The result of a write.

    Args:
        rows: Whether it contains rows.
        select: Select list of the rows; None for all columns.
        order: Sort keys of the rows.
        embeds: Related rows.
        form: Form of the rows.
        receipt: Whether it includes the transaction id.
        old: "old" for the rows as they were before, "both" for both states.
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
    ON CONFLICT of an upsert.

    Args:
        key: Columns of a unique key, or its name; None for the primary key.
        update: Columns of the existing row to overwrite; None for all that the new row gives.
        where: Filter that the existing row must match to be updated.
        changes: Changes to the existing row, in place of `update`.
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
        rows: The assignments of each row.
        many: Whether the caller gave a list.
        returning: The result.
        max_affected: Maximum number of rows; more are refused.
        conflict: ON CONFLICT; None if a duplicate key is an error.
        embeds_nested: Whether nested rows are embedded in the result, because the call has no `embed`.
        given_paths: Path of each row in the call, if the request has only some of the call's rows.
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
        """Path of each row in the call; None for a single row."""
        if self.given_paths:
            return self.given_paths
        return tuple(f"values.{at}" if self.many else None for at in range(len(self.rows)))


@dataclass(frozen=True, slots=True)
class Target:
    """The rows that a write changes: one by key, with the values it must still have, or all by filter."""

    key: KeyMatch | None
    expect: tuple[Assignment, ...]
    where: Filter


@dataclass(frozen=True, slots=True)
class Pick:
    """
    Which of the matching rows are written, in the order of the result.

    Args:
        limit: Maximum number of rows.
        skip_locked: Whether rows locked by another transaction are skipped (SKIP LOCKED).
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
    Changes to several rows, different for each.

    Args:
        rows: The assignments of each row, those of its key included.
        by: Columns of the key; None for the primary key.
        returning: The result.
        max_affected: Maximum number of rows; more are refused.
        given_paths: Path of each row in the call, if it is not in the argument `rows`.
    """

    rows: tuple[tuple[Assignment, ...], ...]
    by: tuple[str, ...] | None
    returning: Returning
    max_affected: int | None = None
    given_paths: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each row in the call."""
        return self.given_paths or tuple(f"rows.{at}" for at in range(len(self.rows)))


@dataclass(frozen=True, slots=True)
class DeleteRequest:
    """Rows to delete."""

    target: Target
    returning: Returning
    max_affected: int | None = None
