"""
Expressions and conditions of a plan: columns are resolved, operators chosen, parameters typed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from service.catalog import Column, Function, Relation, Type
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
