"""
Where a page begins: behind the sort keys of the last row of the page before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL

from service.plan.types import PlannedAfter, SortKey
from service.sql.expressions import expression, operator, separated
from service.sql.statement import Part


def after(page: PlannedAfter, keys: Sequence[SortKey]) -> Iterator[Part]:
    """
    Give the condition that a row comes after the end of a page.

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
