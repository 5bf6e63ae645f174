"""
Planned embeds to parts of a statement: one lateral subselect each, giving one JSON value.

A JSON document keeps what belongs together in one column whatever its depth, so that a
call stays one statement. Values that JSON cannot hold in their wire form are text in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.plan.types import Output, PlannedEmbed
from service.sql.expressions import expression, linked, order_by, separated
from service.sql.groups import group_by, grouped_items
from service.sql.statement import Part

VALUE, ROWS = "v", "r"


def embedded(embeds: Sequence[PlannedEmbed], text: bool = False) -> Iterator[Part]:
    """
    Give the items of a select list that hold the embeds.

    Args:
        embeds: Planned ones.
        text: Whether they come as texts, so that they are weighed before they are read.
    """
    for embed in embeds:
        value = Identifier(_alias(embed), VALUE)
        yield SQL("CAST(" if text else "")
        yield SQL("coalesce(" if embed.many else "")
        yield value
        yield SQL(", '[]')" if embed.many else "")
        yield SQL(" AS text)" if text else "")
        yield SQL(" AS ")
        yield Identifier(embed.key)


def laterals(embeds: Sequence[PlannedEmbed]) -> Iterator[Part]:
    """Give the joins that make the embeds."""
    for embed in embeds:
        yield SQL(" LEFT JOIN LATERAL (SELECT ")
        yield SQL("pg_catalog.json_agg(" if embed.many else "pg_catalog.row_to_json(")
        yield Identifier(ROWS)
        yield SQL(".*) AS ")  # without the star a column of that name would be meant
        yield Identifier(VALUE)
        yield SQL(" FROM (SELECT ")
        yield from separated([*map(_output, embed.outputs), *_each(embed.embeds)])
        yield from _grouped(embed) if embed.grouped else _linked(embed)
        yield from _page(embed)
        yield SQL(") AS ")
        yield Identifier(ROWS)
        yield SQL(") AS ")
        yield Identifier(_alias(embed))
        yield SQL(" ON true")


def _linked(embed: PlannedEmbed) -> Iterator[Part]:
    yield from linked(embed.link, embed.where, laterals(embed.embeds))


def _grouped(embed: PlannedEmbed) -> Iterator[Part]:
    if embed.grouped is None:
        raise TypeError("rows without groups")
    yield SQL(" FROM (SELECT ")
    yield from grouped_items(embed.grouped)
    yield from _linked(embed)
    yield from group_by(embed.grouped)
    yield SQL(") AS ")
    yield Identifier(embed.grouped.source)


def _page(embed: PlannedEmbed) -> Iterator[Part]:
    yield from order_by(embed.order)
    yield SQL("" if embed.many or embed.limit else " LIMIT 1")
    for word, bound in ((" LIMIT ", embed.limit), (" OFFSET ", embed.offset)):
        if bound is not None:
            yield SQL(word)
            yield bound


def _each(embeds: Sequence[PlannedEmbed]) -> Iterator[Iterator[Part]]:
    for embed in embeds:
        yield embedded([embed])


def _output(output: Output) -> Iterator[Part]:
    if output.text:
        yield SQL("CAST(")
        yield from expression(output.expression)
        yield SQL(" AS text)")
    else:
        yield from expression(output.expression)
    yield SQL(" AS ")
    yield Identifier(output.name)


def _alias(embed: PlannedEmbed) -> str:
    return f"e{embed.link.source}"
