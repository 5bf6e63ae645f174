"""
Frozen plans: requests whose names have been resolved to catalog objects.

Code that takes a plan never sees a name from a caller. Like a request, a plan holds no value of a call: a
`Bound` is a parameter, with the slot of its value and its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.catalog import CatalogSQL, Column, Function, Relation, Type
from service.plan.conditions import (
    Bound,
    Compare,
    Condition,
    Exists,
    Expression,
    Link,
    Operator,
    PlannedArgument,
    PlannedMeasure,
    SortKey,
)


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """
    A function with its arguments.

    Args:
        function: The function.
        arguments: Its arguments, positional ones first.
        names: Column names of its rows, if these have none of their own.
    """

    function: Function
    arguments: tuple[PlannedArgument, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallPlan:
    """
    A plain call of a function.

    Args:
        name: Name for logs and statistics, as in "fn.add".
        call: The function with its arguments.
        columns: Column names of the result.
        rows: Whether it is called in FROM and returns rows, rather than one value.
        untyped: Whether the columns of its rows are known only to the server, at run time.
        types: Types of the result's columns, if known.
        json: As in `ReadPlan`.
    """

    name: str
    call: FunctionCall
    columns: tuple[str, ...]
    rows: bool
    untyped: bool
    types: tuple[Type, ...] = ()
    json: bool = False


NAME_BYTES = 63
"""Length to which PostgreSQL truncates a name (NAMEDATALEN - 1)."""


def truncated(name: str) -> str:
    """Return a name as PostgreSQL truncates it: to 63 bytes, at the end of a character."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Output:
    """
    A column of the result.

    Args:
        expression: Its value.
        name: Its name.
        text: Whether the value is sent as PostgreSQL's text inside the JSON of an embed, for the codec
            to decode, because its JSON form differs from its form on the wire.
    """

    expression: Expression
    name: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """
    Rows in groups.

    Args:
        groups: GROUP BY.
        measures: Aggregates over the rows of each group.
        outputs: Result columns, as columns of the groups.
        order: Sort keys of the groups, in the same terms.
        source: Alias of the groups.
    """

    groups: tuple[Output, ...]
    measures: tuple[PlannedMeasure, ...]
    outputs: tuple[Output, ...]
    order: tuple[SortKey, ...]
    source: str


@dataclass(frozen=True, slots=True)
class PlannedEmbed:
    """
    Related rows embedded in each row of a result.

    Args:
        name: Name in the result of the call.
        key: Name in the result of the statement, unique in it.
        link: The relationship.
        many: Whether it is a list of rows, rather than one row or null.
        outputs, embeds, where, order, limit, offset: Of the related rows.
        spread: Whether its columns become columns of the outer row.
        grouped: Groups of the related rows, if these are embedded in their place; `outputs` and
            `order` are then those of the groups.
    """

    name: str
    key: str
    link: Link
    many: bool
    outputs: tuple[Output, ...]
    embeds: tuple[PlannedEmbed, ...]
    where: Condition | None
    order: tuple[SortKey, ...]
    limit: Bound | None
    offset: Bound | None
    spread: bool
    grouped: Groups | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of a related row."""
        return names_of(self.outputs, self.embeds)


def names_of(outputs: Sequence[Output], embeds: Sequence[PlannedEmbed]) -> tuple[str, ...]:
    """Return the column names of rows with embeds; a spread embed contributes its columns' names."""
    names = [output.name for output in outputs]
    for embed in embeds:
        names += embed.columns if embed.spread else (embed.name,)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class PlannedAfter:
    """
    The bound of a page: one item for each sort key.

    Args:
        operands: Value of the sort key in the bounding row.
        nulls: Whether the value is null.
        equal, beyond: Operators that compare a row's sort key with it.
    """

    operands: tuple[Bound, ...]
    nulls: tuple[bool, ...]
    equal: tuple[Operator, ...]
    beyond: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class Lock:
    """
    A row lock of a read.

    Args:
        key: Whether the lock is FOR UPDATE, which foreign keys conflict with, not FOR NO KEY UPDATE.
        skip_locked: Whether rows locked by other transactions are skipped.
    """

    key: bool = True
    skip_locked: bool = False


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """
    Rows to read.

    The statement returns, in this order: outputs and embeds, the number of the key (`by_keys`), the sort
    keys (`keyset`), `keys`, `computed`.

    Args:
        name: Name for logs and statistics, as in "actions.find".
        relation: The relation.
        outputs: Select list.
        where: Condition; None for all rows.
        by_keys: Comparisons of columns with the lists of given keys' values, if rows are read by keys.
            The statement then returns the number of the row's key, from 1.
        embeds: Related rows.
        order: Sort keys.
        distinct: True for DISTINCT, or the expressions of DISTINCT ON.
        limit, offset: Parameters.
        after: Bound of the page, in the order of the statement.
        backwards: Whether the order is reversed, so that rows arrive from the last to the first.
        keyset: Whether pages are bounded by sort keys, which the statement returns as text, rather
            than by an offset.
        lock: Row lock, if any.
        call: The function that returns the rows, if it is not the relation itself.
        afterwards: Whether the function runs in a statement before the one that reads its rows, because
            the rows related to them may be written by the function.
        json: Whether outputs and embeds are returned as JSON text.
        keys: Expressions that identify a row.
        computed: New values of columns that an update computes.
    """

    name: str
    relation: Relation
    outputs: tuple[Output, ...]
    where: Condition | None
    order: tuple[SortKey, ...] = ()
    distinct: bool | tuple[Expression, ...] = False
    by_keys: tuple[Compare, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    limit: Bound | None = None
    offset: Bound | None = None
    after: PlannedAfter | None = None
    backwards: bool = False
    keyset: bool = False
    lock: Lock | None = None
    call: FunctionCall | None = None
    afterwards: bool = False
    json: bool = False
    keys: tuple[Expression, ...] = ()
    computed: tuple[Computed, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedColumn:
    """A column passed from one statement to the next, with its type in the syntax of a cast."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Reread:
    """
    How written rows are read again, by a second statement.

    Args:
        equal: Operators that compare the columns of the key; empty if the rows are used as RETURNING
            gave them.
        saved: Columns that the second statement gets from the first one, the key first.
        row: Name of the entire row among them, if it is needed.
        fallback: Whether a row that is not found is used as it was written.
    """

    equal: tuple[Operator, ...]
    saved: tuple[SavedColumn, ...]
    row: str
    fallback: bool


@dataclass(frozen=True, slots=True)
class PlannedReturning:
    """
    The result of a write; without outputs and embeds, no rows.

    Args:
        outputs: Select list.
        order: Sort keys of the rows.
        embeds: Related rows.
        inner: Conditions of inner embeds: rows that do not match are written but not returned.
        reread: How the rows are read after the write; None if RETURNING suffices.
        must_write: Whether it is an error if no row was written.
        json: As in `ReadPlan`.
        receipt: Whether each row comes with the transaction id.
    """

    outputs: tuple[Output, ...] = ()
    order: tuple[SortKey, ...] = ()
    embeds: tuple[PlannedEmbed, ...] = ()
    inner: tuple[Exists, ...] = ()
    reread: Reread | None = None
    must_write: bool = False
    json: bool = False
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step of a JSON path to set: its key or position as text, and whether it is a position."""

    key: Bound
    index: bool


@dataclass(frozen=True, slots=True)
class ValuesColumn:
    """A value from the row of the call that updates a row, by the name of its column in `CallRows`."""

    name: str


@dataclass(frozen=True, slots=True)
class Part:
    """
    A change of a column, or of one place in its JSON.

    Args:
        computing: How the value is computed, as in `Assignment`; empty if it is given.
        operands: The value, or the operands; of an array's `remove`, each value to remove.
        operator: PostgreSQL's operator that computes it, if one does.
        steps: Path to the place.
        path: Path in the call, for errors.
    """

    computing: str
    operands: tuple[Bound | ValuesColumn, ...]
    operator: Operator | None
    steps: tuple[PathStep, ...]
    path: str


@dataclass(frozen=True, slots=True)
class Computed:
    """
    A column's new value, computed from the current one.

    Args:
        column: The column.
        type: Its type, or the base type of its domain.
        document: Whether it is computed as jsonb.
        parts: The changes: one of the value itself, or several of places that do not overlap.
    """

    column: Column
    type: Type
    document: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class CaseValue:
    """
    A column's new value, if it is computed differently from row to row: a CASE.

    Args:
        column: The column.
        ways: The alternatives.
        selector: Number of the row's alternative, from 1; in other rows the column is unchanged.
    """

    column: Column
    ways: tuple[ValuesColumn | Computed, ...]
    selector: ValuesColumn


@dataclass(frozen=True, slots=True)
class Setting:
    """A column and its new value; None for the column's default."""

    column: Column
    value: Bound | Computed | ValuesColumn | CaseValue | None

    @property
    def computes(self) -> bool:
        """Whether the new value may depend on the current one."""
        ways = self.value.ways if isinstance(self.value, CaseValue) else (self.value,)
        return any(isinstance(each, Computed) for each in ways)


@dataclass(frozen=True, slots=True)
class ConflictUpdate:
    """
    A column that an upsert overwrites with the new row's value.

    Args:
        column: The column.
        kept: Keys of new rows that do not give the column, whose existing rows keep their value.
    """

    column: Column
    kept: tuple[tuple[Bound, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedConflict:
    """
    ON CONFLICT of an upsert.

    Args:
        key: Columns of the key, or columns that its index uses.
        updates: Changes of the existing row; empty for DO NOTHING.
        equal: Operators that compare the key's columns.
        nulls: Whether a null in the key equals a null (NULLS NOT DISTINCT).
        target: The conflict target, if it is more than the columns.
        where: Condition that the existing row must match to be updated.
        guard: Columns and operators by which the existing row is looked up among the rows that the caller
            may see, before `where` is evaluated on it or new values are computed from it; None if the
            caller may see all rows.
    """

    key: tuple[str, ...]
    updates: tuple[ConflictUpdate | Setting, ...]
    equal: tuple[Operator, ...]
    nulls: bool
    target: CatalogSQL | None = None
    where: Condition | None = None
    guard: tuple[tuple[str, Operator], ...] | None = None


@dataclass(frozen=True, slots=True)
class InsertPlan:
    """
    New rows.

    Args:
        name: Name for logs and statistics.
        relation: The relation.
        columns: All columns that any of the rows gives.
        rows: For each row, a parameter or None (DEFAULT) for each of the columns.
        returning: The result.
        conflict: ON CONFLICT; None if a duplicate key is an error.
        numbered: Whether each returned row begins with its number, from 0: PostgreSQL does not promise
            that RETURNING keeps the order of VALUES.
    """

    name: str
    relation: Relation
    columns: tuple[Column, ...]
    rows: tuple[tuple[Bound | None, ...], ...]
    returning: PlannedReturning
    conflict: PlannedConflict | None = None
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class LockedRows:
    """Rows to write, locked and limited by a subquery that returns their keys."""

    read: ReadPlan


@dataclass(frozen=True, slots=True)
class CallRows:
    """
    The rows of an update with `rows`, as VALUES: keys and new values.

    Args:
        columns: Columns of the VALUES list with their types, the key first.
        rows: For each row, a parameter, a number or None (null) for each of the columns.
    """

    columns: tuple[tuple[ValuesColumn, Type], ...]
    rows: tuple[tuple[Bound | int | None, ...], ...]


@dataclass(frozen=True, slots=True)
class UpdateJoin:
    """
    The join that determines the rows to change.

    Args:
        source: Source of the keys.
        key: Columns of the key.
        equal: Operators that compare them.
    """

    source: LockedRows | CallRows
    key: tuple[str, ...]
    equal: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """
    Changes to rows.

    Args:
        name: Name for logs and statistics.
        relation: The relation.
        settings: The changes.
        where: Condition; None for all rows, or for all joined ones.
        returning: The result.
        joined: The join that determines the rows, if any.
    """

    name: str
    relation: Relation
    settings: tuple[Setting, ...]
    where: Condition | None
    returning: PlannedReturning
    joined: UpdateJoin | None = None


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """Deletion of the rows that match a condition."""

    name: str
    relation: Relation
    where: Condition | None
    returning: PlannedReturning
