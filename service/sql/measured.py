"""
Rows sorted by a measure of their related rows, joined with the groups of the related rows.

Elsewhere a measure is a subselect for each row. To sort by a measure, all rows must be measured before
the first one is known, and then one pass over the related rows takes three fifths of the time
(`bench/sorting.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from psycopg2.sql import SQL, Composable, Composed, Identifier

from service.catalog import Column
from service.plan.conditions import (
    BoolExpr,
    Compare,
    Condition,
    Equals,
    Exists,
    Expression,
    IsTest,
    Link,
    Not,
    Search,
)
from service.plan.plans import ReadPlan
from service.plan.predicates import both
from service.plan.uses import is_repeatable, parts_of
from service.sql.expressions import (
    NAME,
    aliased,
    cast,
    measure_value,
    operator,
    related_rows,
)
from service.sql.statement import AND, EMPTY

VALUE = "v"
"""Name of the measure's column in its join."""


def join_measures(plan: ReadPlan) -> tuple[ReadPlan, Composable]:
    """
    Return a plan whose measures are columns of joins, if its first sort key is one; and the joins.

    The plan stays as it is if rows are sorted by something else first, are distinct, or come from a
    function: then only few rows may have to be measured.
    """
    first = plan.order[0].expression if plan.order else None
    if plan.call or plan.distinct or first is None or not _is_joined(first):
        return plan, EMPTY
    joins = _Joins(plan)
    order = tuple(replace(key, expression=joins.value(key.expression)) for key in plan.order)
    where = plan.where and joins.condition(plan.where)
    return replace(plan, order=order, where=where), Composed(joins.built)


def _is_joined(value: Expression) -> bool:
    """Return whether a value is a measure of rows that are related to the row itself by columns."""
    if value.measure is None or len(value.links) != 1:
        return False
    (link,) = value.links
    return link.function is None and link.outer == NAME


class _Joins:
    """
    Builder of the joins of a plan.

    Args:
        plan: The plan of the rows.

    Attributes:
        built: The joins built so far.
    """

    def __init__(self, plan: ReadPlan) -> None:
        self.built: list[Composable] = []
        self._plan = plan
        self._known: list[tuple[Expression, Expression]] = []

    def value(self, value: Expression) -> Expression:
        """Return a value with its measure, if it is one, replaced by the column of a join."""
        if not _is_joined(value):
            return value
        bare = replace(value, steps=(), applied=())
        column = next((column for known, column in self._known if known.same(bare)), None)
        if column is None:
            column = self._add_join(bare)
            self._known.append((bare, column))
        return replace(
            column,
            steps=value.steps,
            as_json=value.as_json,
            applied=value.applied,
            type=value.type,
            path=value.path,
        )

    def condition(self, where: Condition) -> Condition:
        """Return a condition with its measures replaced by columns of joins."""
        if isinstance(where, BoolExpr):
            return replace(where, conditions=tuple(map(self.condition, where.conditions)))
        if isinstance(where, Not):
            return Not(self.condition(where.condition))
        if isinstance(where, Compare):
            right = where.right
            right = self.value(right) if isinstance(right, Expression) else right
            return replace(where, left=self.value(where.left), right=right)
        if isinstance(where, IsTest | Search):
            return replace(where, left=self.value(where.left))
        return where

    def _add_join(self, value: Expression) -> Expression:
        (link,), measure = value.links, value.measure
        assert measure is not None
        rows, source, pairs = _split_link(link)
        alias = f"m{len(self.built) + 1}"
        keys = [Identifier(source, name) for _, name, _ in pairs]
        names = [f"k{at}" for at in range(len(pairs))]
        numbers = ", ".join(f"{at}" for at in range(1, len(pairs) + 1))
        counted = measure.function == "count"
        none = cast(SQL("0"), measure.type.sql)
        found = Identifier(f"{alias}g" if counted else alias, VALUE)
        self.built.append(
            SQL(
                " LEFT JOIN (SELECT {columns} FROM {rows} GROUP BY {numbers}) AS {alias} ON {equal}"
            ).format(
                columns=aliased([*zip(keys, names, strict=True), (measure_value(measure), VALUE)]),
                rows=related_rows(rows, both(link.where, self._of_rows(source, pairs))),
                numbers=SQL(numbers),
                alias=Identifier(*found.strings[:1]),
                equal=_equal(found.strings[0], pairs),
            )
        )
        if counted:  # the count of no rows is 0, for which the outer join gives NULL
            self.built.append(
                SQL(
                    " CROSS JOIN LATERAL (SELECT coalesce({found}, {none}) AS {value}) AS {alias}"
                ).format(found=found, none=none, value=Identifier(VALUE), alias=Identifier(alias))
            )
        column = Column(VALUE, measure.type.oid, measure.type.sql)
        return Expression(column, measure.type, path=value.path, source=alias)

    def _of_rows(self, source: str, pairs: Equals) -> Condition | None:
        """Return the condition that a related row belongs to one of the rows that are read, if useful."""
        relation = self._plan.relation
        where = both(*_repeatable_terms(self._plan.where))
        if where is None and relation.kind == "table" and relation.estimable:
            return None
        # The filter of the rows, seen from the related rows: without it, all related rows would be grouped
        # even if the filter leaves ten rows.
        reversed_pairs = tuple((right, left, equal) for left, right, equal in pairs)
        return Exists(Link(relation, NAME, source, reversed_pairs), where)


def _split_link(link: Link) -> tuple[Link, str, Equals]:
    """Return a link without the condition that relates it to one row, the alias, and that condition."""
    if link.junction is None:
        return replace(link, pairs=()), link.source, link.pairs
    junction = replace(link.junction, outer_pairs=())
    return replace(link, junction=junction), junction.source, link.junction.outer_pairs


def _equal(alias: str, pairs: Equals) -> Composable:
    return AND.join(
        SQL("{left} {equal} {right}").format(
            left=Identifier(NAME, name), equal=operator(equal), right=Identifier(alias, f"k{at}")
        )
        for at, (name, _, equal) in enumerate(pairs)
    )


def _repeatable_terms(where: Condition | None) -> Iterator[Condition]:
    """Yield the terms of a conjunction that may be evaluated a second time, in another subselect."""
    if isinstance(where, BoolExpr) and not where.any:
        for each in where.conditions:
            yield from _repeatable_terms(each)
    elif (
        where is not None
        and is_repeatable(where)
        and not any(map(_is_joined, parts_of(where, Expression)))
    ):
        yield where
