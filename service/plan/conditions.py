"""
Values and conditions of a plan: columns resolved, operators known, parameters typed.
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

    Where the statement runs, others of that name may fit better: whoever may create in a schema
    of the `search_path` can put them there.

    Args:
        name: Of the operator.
        schema: The one that it is looked for in.
    """

    name: str
    schema: str = PG_CATALOG


@dataclass(frozen=True, slots=True)
class Bound:
    """
    One parameter.

    Args:
        slot: The index among the call's values.
        type: What PostgreSQL takes it for; `db/codec` encodes it accordingly.
        path: Where in the call it stood, as "where.status.eq"; for refusals.
        cast: Whether the text spells the type; not where the place itself gives it.
        raw: Whether the value is PostgreSQL's text already, as in a `next` token.
    """

    slot: int
    type: Type
    path: str
    cast: bool = True
    raw: bool = False


@dataclass(frozen=True, slots=True)
class PlannedArgument:
    """An argument by name, or (without one) by position; no value is null."""

    name: str
    value: Bound | None
    variadic: bool = False


Equals = tuple[tuple[str, str, Operator], ...]
"""Columns of one side and of the other that are equal, and by which operator."""


@dataclass(frozen=True, slots=True)
class JunctionJoin:
    """
    What stands between related rows: a junction's alias, and the columns that must be equal.

    Args:
        relation: The junction.
        source: Its alias.
        here: Columns of the outer rows, of the junction, and what compares them.
        there: Columns of the junction, of the related rows, and what compares them.
    """

    relation: Relation
    source: str
    here: Equals
    there: Equals


@dataclass(frozen=True, slots=True)
class Link:
    """
    Related rows, as seen from the rows that they are related to.

    Args:
        relation: Whose rows they are.
        source: Their alias.
        outer: The alias of the rows they are related to.
        pairs: Columns of the outer and of the related rows that are equal.
        junction: What stands between, if anything.
        function: Of the outer row, that returns them, if it is one.
        row: As of an `Expression`.
        where: Which of them are meant, if not all.
        embed: The name of the embed that says so.
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
        """Return whether the other one leads to the same rows."""
        return (self.pairs, self.function, self.embed) == (
            other.pairs,
            other.function,
            other.embed,
        )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step into a JSON value, by its key or position; `text` for `->>`."""

    key: Bound
    word: str
    text: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """
    A function of PostgreSQL's, applied to a value.

    Args:
        function: One of a fixed list.
        unit: What stands before the value, if anything; one of a fixed list, too.
        zone: The name of the time zone that stands behind it, if one does.
        bound: The same, as a parameter.
    """

    function: str
    unit: str = ""
    zone: str = ""
    bound: Bound | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Ranked:
    """How well a text, made a tsvector if it is none (`vector`), fits a query of text search."""

    query: Bound
    config: Bound | None
    vector: bool


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a value is from another one, by an operator of PostgreSQL."""

    operator: Operator
    other: Bound


@dataclass(frozen=True, slots=True)
class Expression:
    """
    A value of a row: a column, perhaps a step into it, perhaps cast or given to a function.

    Args:
        column: Of the relation.
        type: Of the expression, all that is done with it included.
        as_json: Whether the column is made jsonb first.
        steps: Into its JSON value.
        applied: What is done with it at the end, one after the other: a cast to a type, or a function.
        nullable: Whether it may be null.
        path: Where in the call it was named.
        source: The alias of its row.
        links: The way from there to the row that has the column, one related row a step.
        function: Of the row, that computes the column, if it is one.
        arguments: What that is given beside the row.
        row: The name under which the source holds the row, if it is not the row itself.
        measure: What it is over all rows that the last link leads to, if it is no column of one.
    """

    column: Column
    type: Type
    as_json: bool = False
    steps: tuple[PlannedStep, ...] = ()
    applied: tuple[Type | Applied | Ranked | Distance, ...] = ()
    nullable: bool = True
    path: str = ""
    source: str = "t"
    links: tuple[Link, ...] = ()
    function: Function | None = None
    arguments: tuple[PlannedArgument, ...] = ()
    row: str = ""
    measure: PlannedMeasure | None = None

    def cast(self, type: Type, plain: Type | None = None) -> Expression:
        """Return the value cast to a type, which may be a domain over a plain one."""
        return replace(self, applied=(*self.applied, type), type=plain or type)

    def apply(self, function: Applied | Ranked | Distance, result: Type) -> Expression:
        """Return what a function or an operator gives for the value."""
        return replace(self, applied=(*self.applied, function), type=result)

    def same(self, other: Expression) -> bool:
        """Return whether the other one always has the same value, wherever it was named."""
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
        expression: What is sorted by.
        descending: Its direction.
        nulls: Where its nulls go.
        position: Its place among the outputs from 1, where the rows are distinct.
    """

    expression: Expression
    descending: bool
    nulls: Nulls
    position: int = 0


@dataclass(frozen=True, slots=True)
class PlannedMeasure:
    """
    A function over many rows.

    Args:
        function: As SQL has it; one of a fixed list.
        operand: What it is of; None for rows.
        type: Of the result.
        name: What it is called in the answer.
        path: Where in the call its function stands.
        distinct: Whether each value counts once.
        separator: What stands between the strings of `string_agg`.
        fraction: Of a percentile.
        within: Whether the operand is what the rows are sorted by, as of a percentile.
        order: Of the rows, as of `array_agg`.
        where: Which rows count.
        cast: What the result is cast to, and where that stands.
        schema: Where the function is looked for, as of an `Operator`.
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
        left: The row's side.
        operator: Of PostgreSQL.
        right: The parameter, or another value of the row.
        quantifier: "any" or "all" where the parameter is an array of candidates.
        candidate: What each of them is cast to, where they come as text.
        nulls: Whether nulls are left out of them.
        not_distinct: Whether nulls are equal, too.
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
    """`left @@ function(query)`; `vector` if the left side is no tsvector yet."""

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
    """Some related row, of which a condition holds."""

    link: Link
    condition: Condition | None


@dataclass(frozen=True, slots=True)
class BoolExpr:
    """All conditions, or (any) one of them."""

    any: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite; where the condition is unknown, so is this."""

    condition: Condition


@dataclass(frozen=True, slots=True)
class Present:
    """A row that a function gave is there, rather than nulls in the place of none."""

    source: str


Condition = Compare | Search | IsTest | Exists | BoolExpr | Not | Present
