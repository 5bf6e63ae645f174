"""
Expressions and conditions of a plan to parts of a statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from psycopg2.sql import SQL, Identifier

from service.catalog import Function
from service.plan.conditions import (
    PG_CATALOG,
    Bound,
    Compare,
    Condition,
    Equals,
    Every,
    Exists,
    Expression,
    Link,
    Not,
    Operator,
    Present,
    Search,
    Test,
)
from service.plan.types import SortKey
from service.sql.statement import Mark, Part, doubled, quoted

NAME = "t"
ROW = Identifier(NAME)
"""The alias of the relation that a statement is about."""


def expression(value: Expression) -> Iterator[Part]:
    """Build a value of the row, or of the one row that links lead to."""
    if value.links:
        yield from _related_value(value)
        return
    inner = list(_stepped(value))
    if value.cast is None:
        yield from inner
        return
    yield Mark(value.path, value.column.name, cast=True)
    yield SQL("CAST(")
    yield from inner
    yield SQL(f" AS {doubled(value.cast.sql)})")


def condition(where: Condition) -> Iterator[Part]:
    """Build a condition, in parentheses where it could be read otherwise."""
    if isinstance(where, Compare):
        yield from _compare(where)
    elif isinstance(where, Test):
        yield from expression(where.left)
        yield SQL(f" IS {where.word}")
    elif isinstance(where, Search):
        yield from _search(where)
    elif isinstance(where, Exists):
        yield SQL("EXISTS (SELECT 1")
        yield from linked(where.link, where.condition)
        yield SQL(")")
    elif isinstance(where, Present):
        yield from present(where.source)
    elif isinstance(where, Not):
        yield SQL("NOT (")
        yield from condition(where.condition)
        yield SQL(")")
    else:
        yield from _every(where)


def where(found: Condition | None) -> Iterator[Part]:
    """Build a WHERE clause, or nothing."""
    if found is not None:
        yield SQL(" WHERE ")
        yield from condition(found)


def linked(link: Link, where: Condition | None, joins: Iterable[Part] = ()) -> Iterator[Part]:
    """Build the FROM and WHERE of related rows, with what is joined to them."""
    yield SQL(" FROM ")
    if link.function is not None:
        yield from _of_row(link.function, link.outer, link.row)
    else:
        yield Identifier(link.relation.schema, link.relation.name)
    yield SQL(" AS ")
    yield Identifier(link.source)
    passage, pairs, other = link.passage, link.pairs, link.source
    if passage is not None:
        yield SQL(" JOIN ")
        yield Identifier(passage.relation.schema, passage.relation.name)
        yield SQL(" AS ")
        yield Identifier(passage.source)
        yield SQL(" ON ")
        yield from _equal(passage.source, link.source, passage.there)
        pairs, other = passage.here, passage.source
    yield from joins
    conditions: list[Iterable[Part]] = []
    if pairs:
        conditions.append(_equal(link.outer, other, pairs))
    elif link.function is not None and not link.function.many:
        conditions.append(present(link.source))
    if where is not None:
        conditions.append(condition(where))
    if conditions:
        yield SQL(" WHERE ")
        yield from separated(conditions, " AND ")


def present(source: str) -> Iterator[Part]:
    """Build the condition that a row is there: a function of one row gives nulls for none."""
    yield SQL("NOT (")
    yield from _row(source, "")
    yield SQL(" IS NULL)")


def _equal(left: str, right: str, pairs: Equals) -> Iterator[Part]:
    yield from separated(
        (
            [Identifier(left, here), operator(equal), Identifier(right, there)]
            for here, there, equal in pairs
        ),
        " AND ",
    )


def operator(found: Operator) -> SQL:
    """Build an operator, in its schema."""
    return SQL(f" OPERATOR({home(found.schema)}.{found.name}) ")


def home(schema: str) -> str:
    """Return a schema as it stands before what is in it."""
    return schema if schema == PG_CATALOG else doubled(quoted(schema))


def not_distinct(left: Iterable[Part], equal: Operator, right: Iterable[Part]) -> Iterator[Part]:
    """
    Build the condition that two values are equal, null being one like others.

    IS NOT DISTINCT FROM takes whatever operator it finds, and there is no way to name one.
    """
    left, right = [*left], [*right]
    yield SQL("coalesce(")
    yield from left
    yield operator(equal)
    yield from right
    yield SQL(", pg_catalog.num_nulls(")
    yield from left
    yield SQL(", ")
    yield from right
    yield SQL(") OPERATOR(pg_catalog.=) 2)")


def order_by(keys: Sequence[SortKey]) -> Iterator[Part]:
    """Build an ORDER BY clause, or nothing."""
    for at, key in enumerate(keys):
        yield SQL(", " if at else " ORDER BY ")
        if key.position:
            yield SQL(str(key.position))
        else:
            yield from expression(key.expression)
        yield SQL(" DESC" if key.descending else "")
        if (key.nulls == "first") != key.descending:
            yield SQL(f" NULLS {key.nulls.upper()}")


def limited(limit: Bound | None, offset: Bound | None) -> Iterator[Part]:
    """Build LIMIT and OFFSET clauses, or nothing."""
    for word, bound in ((" LIMIT ", limit), (" OFFSET ", offset)):
        if bound is not None:
            yield SQL(word)
            yield bound


def separated(items: Iterable[Iterable[Part]], by: str = ", ") -> Iterator[Part]:
    """Return the parts of items with something between them."""
    for at, item in enumerate(items):
        if at:
            yield SQL(by)
        yield from item


def _related_value(value: Expression) -> Iterator[Part]:
    """Build a value of a related row: there is one at most, so it is a subselect."""
    first, *rest = value.links
    yield SQL("(SELECT ")
    yield from expression(replace(value, source=first.source, links=tuple(rest)))
    yield from linked(first, first.where)
    yield SQL(" LIMIT 1)")


def _stepped(value: Expression) -> Iterator[Part]:
    column: list[Part] = [Identifier(value.source, value.column.name)]
    if value.function is not None:
        column = list(_of_row(value.function, value.source, value.row))
    if not value.steps:
        yield from column
        return
    yield SQL("(pg_catalog.to_jsonb(" if value.as_json else "(")
    yield from column
    yield SQL(")" if value.as_json else "")
    for step in value.steps:
        yield operator(Operator("->>" if step.text else "->"))
        yield step.key
    yield SQL(")")


def _of_row(function: Function, source: str, row: str) -> Iterator[Part]:
    """Build a call of a function of a row."""
    yield Identifier(function.schema, function.name)
    yield SQL("(")
    yield from _row(source, row)
    yield SQL(")")


def _row(source: str, row: str) -> Iterator[Part]:
    """Build a reference to a row, or to the column that holds it."""
    if row:
        yield Identifier(source, row)
    else:
        yield Identifier(source)
        yield SQL(".*")


def _compare(test: Compare) -> Iterator[Part]:
    if test.not_distinct:
        yield from not_distinct(expression(test.left), test.operator, [test.right])
        return
    yield from expression(test.left)
    yield operator(test.operator)
    if test.quantifier:
        yield SQL(f"{test.quantifier.upper()} (")
        yield from _candidates(test)
        yield SQL(")")
    else:
        yield test.right


def _candidates(test: Compare) -> Iterator[Part]:
    before, behind = "", ""
    if test.candidate is not None:
        before, behind = (
            f"SELECT CAST(c AS {doubled(test.candidate.sql)}) FROM pg_catalog.unnest(",
            ") AS c",
        )
    elif test.nulls:  # one array, made once, which an index can be asked for
        before, behind = "ARRAY(SELECT c FROM pg_catalog.unnest(", ") AS c"
    if test.nulls:
        behind += " WHERE c IS NOT NULL" + ("" if test.candidate else ")")
    yield SQL(before)
    yield test.right
    yield SQL(behind)


def _search(test: Search) -> Iterator[Part]:
    config: list[Part] = [test.config, SQL(", ")] if test.config else []
    if test.vector:
        yield SQL("pg_catalog.to_tsvector(")
        yield from config
    yield from expression(test.left)
    yield SQL(")" if test.vector else "")
    yield operator(Operator("@@"))
    yield SQL(f"pg_catalog.{test.function}(")
    yield from config
    yield test.query
    yield SQL(")")


def _every(test: Every) -> Iterator[Part]:
    if not test.conditions:
        yield SQL("false" if test.any else "true")
        return
    yield SQL("(")
    yield from separated(
        [condition(each) for each in test.conditions], " OR " if test.any else " AND "
    )
    yield SQL(")")
