"""
SELECT, with keyset paging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.catalog import Relation
from service.plan.pure import is_pure
from service.plan.types import (
    FunctionCall,
    Output,
    PlannedAfter,
    PlannedEmbed,
    ReadPlan,
    SortKey,
    names_of,
    truncated,
)
from service.sql.embed import embedded, embedded_json, laterals
from service.sql.expressions import (
    ROW,
    condition,
    expression,
    limited,
    operator,
    order_by,
    separated,
    where,
)
from service.sql.functions import function_source
from service.sql.json_form import json_text
from service.sql.reread import ordered, save_function_rows, saved_function_rows
from service.sql.statement import Part, Statement, build_statement, render


def select(plan: ReadPlan, json: bool = False) -> Statement:
    """
    Build a read; with `json`, each value as JSON.

    Where the plan pages by keyset, the sort keys of each row follow its outputs as text,
    for the `next` token; `columns` names the outputs alone.
    """
    head = save_function_rows(plan.call, plan.relation) if plan.call and plan.afterwards else ()
    rows = _distinct(plan) if json and plan.distinct is True else _select(plan, json)
    columns, embeds = answer_of(plan.outputs, plan.embeds, json)
    pure = is_pure(plan)
    return build_statement(head, rows, plan.name, columns=columns, embeds=embeds, pure=pure)


def count(plan: ReadPlan, limit: int | None = None) -> Statement:
    """
    Build the query how many rows a read returns.

    Args:
        plan: What to count.
        limit: Stop counting there.
    """
    stop = SQL(f" LIMIT {limit:d}" if limit is not None else "")
    return _about(plan, [SQL("SELECT pg_catalog.count(*) FROM (")], [stop, SQL(") AS counted")])


def exists(plan: ReadPlan) -> Statement:
    """Build the query whether a read returns any row."""
    return _about(plan, [SQL("SELECT EXISTS (")], [SQL(")")])


def estimate(plan: ReadPlan) -> Statement:
    """Build the query how many rows the planner expects; it answers one JSON document."""
    return _about(plan, [SQL("EXPLAIN (FORMAT JSON) ")], [])


def source(
    relation: Relation, call: FunctionCall | None = None, afterwards: bool = False
) -> Iterator[Part]:
    """Build a FROM clause: of a relation, or of the function that returns, or returned, its rows."""
    if afterwards:
        yield from saved_function_rows(relation)
        return
    yield SQL(" FROM ")
    if call is not None:
        yield from function_source(call)
        return
    yield Identifier(relation.schema, relation.name)
    yield SQL(" AS ")
    yield ROW


def items(
    outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = (), json: bool = False
) -> Iterator[Part]:
    """Build a select list with the names of the answer, embeds last; with `json`, as texts."""
    if json:
        values = (json_text(expression(each.expression), each.expression.type) for each in outputs)
        related = ([SQL("CAST("), *each, SQL(" AS text)")] for each in embedded_json(embeds))
        yield from separated([*values, *related])
        return
    yield from separated(map(_output, outputs))
    if embeds:
        yield SQL(", " if outputs else "")
        yield from separated(embedded([embed], text=True) for embed in embeds)


def answer_of(
    outputs: Sequence[Output], embeds: tuple[PlannedEmbed, ...], json: bool
) -> tuple[tuple[str, ...], tuple[PlannedEmbed, ...]]:
    """Return the names of the columns of `items`, and the embeds among them that are to be read."""
    if json:
        return names_of(outputs, embeds), ()
    return columns_of(outputs, embeds), embeds


def columns_of(outputs: Sequence[Output], embeds: Sequence[PlannedEmbed]) -> tuple[str, ...]:
    """Return the names of the columns of `items`."""
    return (*(output.name for output in outputs), *(embed.key for embed in embeds))


def after(page: PlannedAfter, keys: Sequence[SortKey]) -> Iterator[Part]:
    """
    Build the condition that a row comes after the end of a page.

    Where all keys run the same way and none can be null, one row comparison says it, and
    an index over the keys answers it. Else it is spelled key by key.
    """
    ways = {key.descending for key in keys}
    nullable = any(key.expression.nullable for key in keys)
    if len(ways) == 1 and not nullable and len({*page.beyond}) == 1:
        yield SQL("(")
        yield from separated([expression(key.expression) for key in keys])
        yield SQL(")")
        yield operator(page.beyond[0])
        yield SQL("(")
        yield from separated([[bound] for bound in page.operands])
        yield SQL(")")
        return
    yield SQL("(")
    for at, key in enumerate(keys):
        yield SQL(" OR (" if at else "(")
        for before in range(at):
            yield from _tied(keys[before], page, before)
            yield SQL(" AND ")
        yield from _beyond(key, page, at)
        yield SQL(")")
    yield SQL(")")


def _about(plan: ReadPlan, before: Sequence[Part], behind: Sequence[Part]) -> Statement:
    text, bounds, marks = render([*before, *_select(plan), *behind])
    return Statement(text, bounds, plan.name, ("answer",), marks=marks, pure=is_pure(plan))


def _select(plan: ReadPlan, json: bool = False) -> Iterator[Part]:
    yield SQL("SELECT ")
    if plan.distinct:
        yield SQL("DISTINCT ")
    if isinstance(plan.distinct, tuple) and plan.distinct:
        yield SQL("ON (")
        yield from separated(expression(each) for each in plan.distinct)
        yield SQL(") ")
    yield from items(plan.outputs, plan.embeds, json)
    if plan.keyset:
        for at, key in enumerate(plan.order):
            yield SQL(", CAST(" if plan.outputs or plan.embeds or at else "CAST(")
            yield from expression(key.expression)
            yield SQL(" AS text)")
    yield from source(plan.relation, plan.call, plan.afterwards)
    yield from laterals(plan.embeds, json)
    yield from _where(plan)
    by = order_by(plan.order)
    yield from ordered(by) if plan.afterwards and not plan.distinct else by
    yield from limited(plan.limit, plan.offset)
    yield SQL(' FOR UPDATE OF "t"' if plan.lock else "")


def _distinct(plan: ReadPlan) -> Iterator[Part]:
    """Build distinct rows as JSON: values of type json have no equality, and no order."""
    yield SQL("SELECT ")
    names = ([Identifier("j", truncated(output.name))] for output in plan.outputs)
    types = (output.expression.type for output in plan.outputs)
    yield from separated(json_text(name, type) for name, type in zip(names, types, strict=True))
    yield SQL(" FROM (")
    yield from _select(plan)
    yield SQL(") AS j")


def _where(plan: ReadPlan) -> Iterator[Part]:
    if plan.after is None:
        yield from where(plan.where)
        return
    yield SQL(" WHERE ")
    if plan.where is not None:
        yield from condition(plan.where)
        yield SQL(" AND ")
    yield from after(plan.after, plan.order)


def _tied(key: SortKey, page: PlannedAfter, at: int) -> Iterator[Part]:
    yield from expression(key.expression)
    if page.nulls[at]:
        yield SQL(" IS NULL")
    else:
        yield operator(page.equal[at])
        yield page.operands[at]


def _beyond(key: SortKey, page: PlannedAfter, at: int) -> Iterator[Part]:
    if page.nulls[at] and key.nulls == "last":
        yield SQL("false")
    elif page.nulls[at]:
        yield from expression(key.expression)
        yield SQL(" IS NOT NULL")
    else:
        yield SQL("(")
        yield from expression(key.expression)
        yield operator(page.beyond[at])
        yield page.operands[at]
        if key.nulls == "last" and key.expression.nullable:
            yield SQL(" OR ")
            yield from expression(key.expression)
            yield SQL(" IS NULL")
        yield SQL(")")


def _output(output: Output) -> Iterator[Part]:
    yield from expression(output.expression)
    yield SQL(" AS ")
    yield Identifier(output.name)
