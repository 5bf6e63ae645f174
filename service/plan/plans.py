"""
Frozen plans: requests whose names have become catalog objects.

Past this room no name is a string from a caller. A plan still holds no value of a call:
a `Bound` says which value goes where, and what type it takes.
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
        json: As of a `ReadPlan`.
    """

    name: str
    call: FunctionCall
    columns: tuple[str, ...]
    rows: bool
    untyped: bool
    types: tuple[Type, ...] = ()
    json: bool = False


NAME_BYTES = 63
"""What PostgreSQL keeps of a name (NAMEDATALEN)."""


def truncated(name: str) -> str:
    """Return a name as PostgreSQL truncates it: to 63 bytes, at the end of a character."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Output:
    """
    A column of the answer.

    Args:
        expression: Its value.
        name: What it is called.
        text: Whether it travels as PostgreSQL's text, for the codec to read: inside the
            JSON of an embed, where the value has no wire form of its own.
    """

    expression: Expression
    name: str
    text: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """
    Rows in groups.

    Args:
        groups: What the rows of a group have in common.
        measures: Over the rows of each.
        outputs: What is answered of each group, in terms of the groups as a source.
        order: Of the groups, in the same terms.
        source: The alias of the groups.
    """

    groups: tuple[Output, ...]
    measures: tuple[PlannedMeasure, ...]
    outputs: tuple[Output, ...]
    order: tuple[SortKey, ...]
    source: str


@dataclass(frozen=True, slots=True)
class PlannedEmbed:
    """
    Related rows inside each row of an answer.

    Args:
        name: What it is called in the answer.
        key: What it is called in the result of the statement, unlike anything beside it.
        link: Which rows.
        many: Whether it is a list of rows, or one row or null.
        outputs, embeds, where, order, limit, offset: Of the related rows.
        spread: Whether the columns join those of the outer row.
        grouped: The groups of the related rows, where these are what is embedded; outputs and
            order are theirs then.
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
        """What each related row is made of."""
        return names_of(self.outputs, self.embeds)


def names_of(outputs: Sequence[Output], embeds: Sequence[PlannedEmbed]) -> tuple[str, ...]:
    """Return the names of the columns of rows with embeds, of spread ones those of their columns."""
    names = [output.name for output in outputs]
    for embed in embeds:
        names += embed.columns if embed.spread else (embed.name,)
    return tuple(names)


@dataclass(frozen=True, slots=True)
class PlannedAfter:
    """
    The end of the page before, for each sort key.

    Args:
        operands: Its value.
        nulls: Whether that is null.
        equal, beyond: What compares it.
    """

    operands: tuple[Bound, ...]
    nulls: tuple[bool, ...]
    equal: tuple[Operator, ...]
    beyond: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class Lock:
    """
    A lock on rows that are read.

    Args:
        key: Whether others may not even refer to them, as if their keys changed or they went.
        skip_locked: Whether rows that others have locked are left out.
    """

    key: bool = True
    skip_locked: bool = False


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """
    Rows to read.

    Args:
        name: What it is for, as in "actions.find".
        relation: Whose rows.
        outputs: What of each row.
        where: Which rows; None for all.
        by_keys: What compares columns with the lists of values of given keys, if the rows are got by
            those: the statement then returns the number of its key, from 1, after the outputs.
        embeds: Related rows, inside each row.
        order: By what.
        distinct: True for distinct rows, or what to be distinct on.
        limit, offset: Parameters.
        after: The end of the page before, in the order of the statement.
        backwards: Whether the order is turned round, so that the rows come from the last to the first.
        keyset: Whether a page ends at its sort keys, which the statement then
            returns after the outputs, as text; otherwise at an offset.
        lock: How the rows are locked for the rest of the transaction, if they are.
        call: The function that returns the rows, where that is not the relation itself.
        afterwards: Whether the rows of the call are read by a statement after it, since what they
            are related to may be its work.
        json: Whether the outputs and embeds are to be JSON.
        keys: What the statement returns after all that, which tells the rows apart.
        computed: What columns are to be changed to, after all that.
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
        saved: What the second statement has of each from the first one, the key first.
        row: The name of the whole row among that, if it is needed.
        fallback: Whether a row that is not found is taken as it was written.
    """

    equal: tuple[Operator, ...]
    saved: tuple[SavedColumn, ...]
    row: str
    fallback: bool


@dataclass(frozen=True, slots=True)
class PlannedReturning:
    """
    What comes back of written rows; without outputs and embeds, nothing.

    Args:
        outputs: Of each row.
        order: Of the rows.
        embeds: Related rows, inside each row.
        inner: What a row must be related to so as to come back; it is written all the same.
        reread: How all of that is read after the write; None where RETURNING does it.
        must_write: Whether it is an error that no row was written.
        json: As of a `ReadPlan`.
        receipt: Whether the transaction's id comes with each.
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
    """One step of a path that is set: its key or position as text, and whether it is a position."""

    key: Bound
    index: bool


@dataclass(frozen=True, slots=True)
class GivenValue:
    """A value of the row of the call that a row of the relation is changed by: its column there."""

    name: str


@dataclass(frozen=True, slots=True)
class Part:
    """
    What happens to a column, or to one place in its JSON.

    Args:
        computing: How the value is computed, as of an `Assignment`; empty where it is given.
        operands: The value, or what it is computed with; of an array that values are removed from,
            each of them.
        operator: Of PostgreSQL, where one computes it.
        steps: To the place.
        path: Where in the call.
    """

    computing: str
    operands: tuple[Bound | GivenValue, ...]
    operator: Operator | None
    steps: tuple[PathStep, ...]
    path: str


@dataclass(frozen=True, slots=True)
class Computed:
    """
    A column's new value, computed out of the one that is there.

    Args:
        column: Which one.
        type: Its type, or the one under its domain.
        document: Whether it is computed as jsonb.
        parts: What happens to it: one for all of it, or several for places that do not overlap.
    """

    column: Column
    type: Type
    document: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class SomeWay:
    """
    A column's new value, where rows are changed in other ways.

    Args:
        column: Which one.
        ways: The values.
        selector: The number of the way, from 1; of other rows the column is left alone.
    """

    column: Column
    ways: tuple[GivenValue | Computed, ...]
    selector: GivenValue


@dataclass(frozen=True, slots=True)
class Setting:
    """A column and its new value; None for the column's default."""

    column: Column
    value: Bound | Computed | GivenValue | SomeWay | None

    @property
    def computes(self) -> bool:
        """Whether the new value of a row may depend on the one that is there."""
        ways = self.value.ways if isinstance(self.value, SomeWay) else (self.value,)
        return any(isinstance(each, Computed) for each in ways)


@dataclass(frozen=True, slots=True)
class ConflictUpdate:
    """
    A column that a row takes over from a new one with its key.

    Args:
        column: Of both.
        kept: Keys of new rows that do not give the column, so that the row keeps its own.
    """

    column: Column
    kept: tuple[tuple[Bound, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedConflict:
    """
    What becomes of a new row whose key is there already.

    Args:
        key: The columns of the key, or those that an index goes by.
        updates: What changes in the row there; nothing leaves it alone.
        equal: What compares them.
        nulls: Whether rows without a value in the key may have the same one.
        target: What ON CONFLICT goes by, where that is not the columns alone.
        where: What must hold of the row there, so that it changes.
        guard: Columns, with what compares them, by which the row there is looked for among those
            that the caller sees, before `where` is asked of it, or its new values are computed; None
            if that is done with all.
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
        name: What it is for.
        relation: Where they go.
        columns: The columns that any of them gives.
        rows: For each row, a parameter or None (default) for each of the columns.
        returning: What comes back of each.
        conflict: What becomes of those that are there already; None if that is an error.
        numbered: Whether what comes back of each has its number before it, from 0: PostgreSQL does not
            promise the rows of RETURNING in the order of VALUES.
    """

    name: str
    relation: Relation
    columns: tuple[Column, ...]
    rows: tuple[tuple[Bound | None, ...], ...]
    returning: PlannedReturning
    conflict: PlannedConflict | None = None
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class Picked:
    """Rows that are locked before they are changed: the statement returns their keys."""

    read: ReadPlan


@dataclass(frozen=True, slots=True)
class CallRows:
    """
    Rows of a call: their keys, and what those of the relation that have them are changed by.

    Args:
        columns: What each is made of, with its type; the key first.
        rows: A parameter, a number or None (null) for each of the columns.
    """

    columns: tuple[tuple[GivenValue, Type], ...]
    rows: tuple[tuple[Bound | int | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """
    What says which rows are changed, joined to them by a key.

    Args:
        source: Has the keys.
        key: The columns of the key.
        equal: What compares them.
    """

    source: Picked | CallRows
    key: tuple[str, ...]
    equal: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """
    Changes to rows.

    Args:
        name: What it is for.
        relation: Whose rows.
        settings: The changes.
        where: Which rows; None for all, or for those that are joined.
        returning: What comes back of each.
        joined: What says which rows otherwise.
    """

    name: str
    relation: Relation
    settings: tuple[Setting, ...]
    where: Condition | None
    returning: PlannedReturning
    joined: Joined | None = None


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """The deletion of the rows that a condition picks."""

    name: str
    relation: Relation
    where: Condition | None
    returning: PlannedReturning
