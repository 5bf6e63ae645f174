"""
Frozen plans: requests whose names have been resolved to catalog objects.

Columns are resolved, operators chosen, and parameters typed, so code that takes a plan never sees a name from
a caller. Like a request, a plan holds no value of a call: a `Bound` is a parameter, with the slot of its value
and its type.

A plan contains all catalog objects that it uses. `parts_of` finds them; behind the plans are the properties of
a statement that follow from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal

from service.catalog import NOWHERE, Catalog, CatalogSQL, Column, Function, Relation, Type
from service.errors import InvalidArgument
from service.request.requests import Nulls

PG_CATALOG = "pg_catalog"


@dataclass(frozen=True, slots=True)
class Operator:
    """
    An operator of the database, as in "=" or "@>".

    It is always written with its schema: anyone who may create objects in a schema of the `search_path`
    could add an operator of the same name that fits the types better.

    Args:
        name: Name of the operator.
        schema: Its schema.
    """

    name: str
    schema: str = PG_CATALOG


@dataclass(frozen=True, slots=True)
class Bound:
    """
    A parameter.

    Args:
        slot: Index of its value among the call's values.
        type: Its type; `db/codec` encodes the value accordingly.
        path: Path in the call, as "where.status.eq", for errors.
        cast: Whether the SQL has a cast to the type; not needed if the context determines the type.
        raw: Whether the value is in PostgreSQL's text format already, as in a token of a page.
    """

    slot: int
    type: Type
    path: str
    cast: bool = True
    raw: bool = False


@dataclass(frozen=True, slots=True)
class PlannedArgument:
    """An argument of a function, positional if the name is empty; `value` None is NULL."""

    name: str
    value: Bound | None
    variadic: bool = False


Equals = tuple[tuple[str, str, Operator], ...]
"""Pairs of columns of the two sides of a join, with the operator that compares them."""


@dataclass(frozen=True, slots=True)
class JunctionJoin:
    """
    The join through a junction table.

    Args:
        relation: The junction.
        source: Its alias.
        outer_pairs: Pairs of columns of the outer rows and of the junction.
        related_pairs: Pairs of columns of the junction and of the related rows.
    """

    relation: Relation
    source: str
    outer_pairs: Equals
    related_pairs: Equals


@dataclass(frozen=True, slots=True)
class Link:
    """
    The join from rows to their related rows.

    Args:
        relation: Relation of the related rows.
        source: Their alias.
        outer: Alias of the rows that they are related to.
        pairs: Pairs of columns of the outer and of the related rows.
        junction: The junction between them, if any.
        function: The function of the outer row that returns them, if any.
        row: As in `Expression`.
        where: Condition of the related rows, if not all are meant.
        embed: Name of the embed that the condition comes from.
    """

    relation: Relation
    source: str
    outer: str
    pairs: Equals
    junction: JunctionJoin | None = None
    function: Function | None = None
    row: str = ""
    where: Condition | None = None
    embed: str = ""

    def same(self, other: Link) -> bool:
        """Return whether another link joins the same rows."""
        return (self.pairs, self.function, self.embed) == (
            other.pairs,
            other.function,
            other.embed,
        )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step into a JSON value, by key or position; `->>` if `text`."""

    key: Bound
    word: str
    text: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """
    A built-in function applied to a value, as in date_trunc('day', value, zone).

    Args:
        function: Name of the function, from a fixed list.
        unit: Literal argument before the value, if any, from a fixed list.
        zone: Name of the time zone, the argument after the value, if any.
        bound: The time zone as a parameter.
    """

    function: str
    unit: str = ""
    zone: str = ""
    bound: Bound | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TextRank:
    """ts_rank of a value in a text search query; `vector` if the value must be made a tsvector first."""

    query: Bound
    config: Bound | None
    vector: bool


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance between a value and a parameter, by a distance operator such as `<->`."""

    operator: Operator
    other: Bound


@dataclass(frozen=True, slots=True)
class Expression:
    """
    A value of a row: a column, optionally with steps into its JSON, casts and functions.

    Args:
        column: The column.
        type: Type of the entire expression.
        as_json: Whether the column is converted to jsonb first.
        steps: Steps into its JSON value.
        applied: Casts and functions, applied to the value in this order.
        nullable: Whether it may be null.
        path: Path in the call, for errors.
        source: Alias of the row that it starts from.
        links: Joins from that row to the row that has the column, each to one related row.
        function: The function that computes the column from the row, if it is a computed column.
        arguments: Arguments of that function after the row.
        row: Name under which the source holds the row, if the alias itself is not the row.
        measure: The aggregate over the rows of the last link, if it is that rather than a column.
    """

    column: Column
    type: Type
    as_json: bool = False
    steps: tuple[PlannedStep, ...] = ()
    applied: tuple[Type | Applied | TextRank | Distance, ...] = ()
    nullable: bool = True
    path: str = ""
    source: str = "t"
    links: tuple[Link, ...] = ()
    function: Function | None = None
    arguments: tuple[PlannedArgument, ...] = ()
    row: str = ""
    measure: PlannedMeasure | None = None

    def cast(self, type: Type, plain: Type | None = None) -> Expression:
        """Return the value cast to a type; `plain` is the base type if that is a domain."""
        return replace(self, applied=(*self.applied, type), type=plain or type)

    def apply(self, function: Applied | TextRank | Distance, result: Type) -> Expression:
        """Return the result of a function or an operator on the value, which has type `result`."""
        return replace(self, applied=(*self.applied, function), type=result)

    def same(self, other: Expression) -> bool:
        """Return whether another expression always has the same value; paths may differ."""
        # The column of a measure is made anew for each use, so measures are compared by their names.
        return (
            (self.column is other.column or self.function is not None or self.measure is not None)
            and (self.measure and self.measure.name) == (other.measure and other.measure.name)
            and self.function is other.function
            and self.arguments == other.arguments
            and self.applied == other.applied
            and len(self.links) == len(other.links)
            and all(map(Link.same, self.links, other.links))
            and [(step.word, step.text, step.key.type) for step in self.steps]
            == [(step.word, step.text, step.key.type) for step in other.steps]
        )


@dataclass(frozen=True, slots=True)
class SortKey:
    """
    A sort key.

    Args:
        expression: The value to sort by.
        descending: Whether the order is descending.
        nulls: Position of nulls.
        position: For DISTINCT: position of the expression among the outputs, from 1.
    """

    expression: Expression
    descending: bool
    nulls: Nulls
    position: int = 0


@dataclass(frozen=True, slots=True)
class PlannedMeasure:
    """
    An aggregate function.

    Args:
        function: Name of the SQL function, from a fixed list.
        operand: Its argument; None for `count(*)`.
        type: Type of the result.
        name: Name in the result.
        path: Path of the function in the call, for errors.
        distinct: Whether it has DISTINCT.
        separator: The separator of `string_agg`.
        fraction: The fraction of a percentile.
        within: Whether it is an ordered-set aggregate: WITHIN GROUP (ORDER BY operand).
        order: ORDER BY of `array_agg` and the like.
        where: FILTER.
        cast: Type that the result is cast to, and the path of the cast in the call.
        schema: Schema of the function; see `Operator`.
    """

    function: str
    operand: Expression | None
    type: Type
    name: str
    path: str
    distinct: bool = False
    separator: Bound | None = None
    fraction: Bound | None = None
    within: bool = False
    order: tuple[SortKey, ...] = ()
    where: Condition | None = None
    cast: tuple[Type, str] | None = None
    schema: str = PG_CATALOG


@dataclass(frozen=True, slots=True)
class Compare:
    """
    `left operator right`.

    Args:
        left: A value of the row.
        operator: PostgreSQL's operator.
        right: A parameter, or another value of the row.
        quantifier: "any" or "all" if the parameter is an array of candidates.
        candidate: Type that each candidate is cast to, if the array is one of text.
        nulls: Whether nulls are removed from the candidates.
        not_distinct: Whether two nulls are equal (IS NOT DISTINCT FROM).
    """

    left: Expression
    operator: Operator
    right: Bound | Expression
    quantifier: Literal["", "any", "all"] = ""
    candidate: Type | None = None
    nulls: bool = False
    not_distinct: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """`left @@ function(query)`; `vector` if `left` must be made a tsvector first."""

    left: Expression
    function: str
    query: Bound
    config: Bound | None
    vector: bool


@dataclass(frozen=True, slots=True)
class IsTest:
    """`left IS word`, as in NULL or NOT NULL."""

    left: Expression
    word: str


@dataclass(frozen=True, slots=True)
class Exists:
    """EXISTS (a related row that matches the condition)."""

    link: Link
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class BoolExpr:
    """AND of the conditions, or OR if `any`."""

    any: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """NOT condition: NULL if the condition is NULL."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class NotNullRow:
    """The row that a function returned is not NULL: a function may return NULL in place of no row."""

    source: str


Condition = Compare | Search | IsTest | Exists | BoolExpr | Not | NotNullRow


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
class AggregatePlan:
    """
    Aggregate functions over groups of rows.

    Args:
        name: Name for logs and statistics, as in "actions.aggregate".
        relation: The relation.
        where: Condition of the rows; None for all.
        grouped: The groups.
        having: Condition of the groups; None for all.
        limit, offset: Of the groups.
        call: The function that returns the rows, where that is not the relation itself.
        afterwards, json: As of a `ReadPlan`.
    """

    name: str
    relation: Relation
    where: Condition | None
    grouped: Groups
    having: Condition | None
    limit: Bound | None
    offset: Bound | None
    call: FunctionCall | None = None
    afterwards: bool = False
    json: bool = False


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


CatalogObject = Relation | Function | Type
"""A catalog object on which the effects of a statement depend."""


def parts_of(plan: Any, kinds: Any) -> Iterator[Any]:
    """Yield the parts of a plan that are instances of `kinds`, without descending into these."""
    if isinstance(plan, kinds):
        yield plan
    elif isinstance(plan, tuple):
        for each in plan:
            yield from parts_of(each, kinds)
    elif is_dataclass(plan) and not isinstance(plan, Column):  # its relation covers it
        for name in _names(plan.__class__):
            yield from parts_of(getattr(plan, name), kinds)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def is_pure(plan: Any, written: Relation | None = None) -> bool:
    """
    Return whether a plan certainly has no effect on the state of the session that runs it.

    Args:
        plan: A frozen plan, which contains all catalog objects that it uses.
        written: The relation that it writes to, if any.
    """

    def pure(used: CatalogObject) -> bool:
        if isinstance(used, Relation):
            if used is written:
                return used.pure_writes
            # Relations without a schema, such as groups, read only what else the plan contains.
            return used.pure_reads or used.schema == NOWHERE
        # No function is pure: settings, temporary tables and locks are left behind only by functions.
        return isinstance(used, Type) and used.pure

    return all(map(pure, parts_of(plan, CatalogObject)))


def is_repeatable(plan: Any) -> bool:
    """Return whether a part of a plan may be evaluated several times: it uses no volatile function."""

    def repeatable(used: CatalogObject) -> bool:
        return not isinstance(used, Function) or used.volatility != "volatile"

    return all(map(repeatable, parts_of(plan, CatalogObject)))


def is_settled(plan: ReadPlan | InsertPlan | UpdatePlan | DeletePlan) -> bool:
    """
    Return whether PostgreSQL's best plan of a statement does not depend on the values of its parameters.

    That is so if all parameters are values of a key, which finds at most one row, or new values.
    """
    if isinstance(plan, InsertPlan):
        one = len(plan.rows) == 1 and plan.conflict is None
        return one and not any(map(_has_unit, plan.columns)) and _is_single(plan.returning)
    if isinstance(plan, ReadPlan):
        one = plan.call is None
        inside: Any = (plan.outputs, plan.order, plan.distinct, plan.embeds)
    else:
        settings = plan.settings if isinstance(plan, UpdatePlan) else ()
        one = _is_single(plan.returning) and not any(_has_unit(each.column) for each in settings)
        inside = plan.returning
    return one and _is_of_key(plan.relation, plan.where) and not _has_value(inside)


def _is_single(returning: PlannedReturning) -> bool:
    """Return whether a write is one statement, whose RETURNING is the result."""
    return returning.reread is None and not returning.must_write


def _has_unit(column: Column) -> bool:
    """Return whether a column has a default unit for numbers, as "interval hour" has."""
    # A parameter's type has no such modifier: the same number would mean seconds.
    return column.declared.startswith("interval ")


def _is_of_key(relation: Relation, where: Condition | None) -> bool:
    """Return whether a condition matches at most one row: it compares all columns of a key with values."""
    # Rows of tables that inherit from it may have the same key.
    if relation.kind != "table" or relation.has_children:
        return False
    parts = where.conditions if isinstance(where, BoolExpr) and not where.any else (where,)
    columns = set()
    for each in parts:
        if not isinstance(each, Compare) or not isinstance(each.right, Bound) or each.left.links:
            return False
        left, whole = each.left, not (each.quantifier or each.not_distinct)
        itself = not (left.steps or left.applied or left.function)
        if each.operator.name == "=" and whole and itself:
            columns.add(left.column.name)
    return any(columns.issuperset(key.columns) for key in relation.unique_keys)


def _has_value(plan: Any) -> bool:
    """Return whether a part of a plan contains a parameter."""
    return any(isinstance(each, Bound) for each in parts_of(plan, Bound | CatalogObject))


def refuse_estimate(catalog: Catalog, plan: ReadPlan) -> None:
    """
    Refuse an estimate from the planner for relations with row-level security policies.

    Estimates are based on statistics of all rows, also of those that policies hide from the caller. A
    function may read any relation.

    Raises:
        InvalidArgument: Policies may hide rows of the statistics.
    """

    def is_open(used: CatalogObject) -> bool:
        if isinstance(used, Relation):
            return used.estimable
        return isinstance(used, Type) or not catalog.policies

    rows = (plan.call or plan.relation, plan.distinct, plan.outputs, plan.where)
    if not all(map(is_open, parts_of(rows, CatalogObject))):
        raise InvalidArgument(
            "what the planner expects would tell of rows that policies hide",
            path="count",
            hint='"exact" counts what may be seen',
        )
