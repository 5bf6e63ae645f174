"""
Planned embeds to parts of a statement: one lateral subselect each, giving one JSON value.

A JSON document keeps what belongs together in one column whatever its depth, so that a
call stays one statement. Values that JSON cannot hold in their wire form are text in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from psycopg2.sql import SQL, Identifier

from service.plan.types import Output, PlannedEmbed, names_of, truncated
from service.sql.expressions import expression, limited, linked, order_by, separated
from service.sql.groups import group_by, grouped_items
from service.sql.json_form import json_value, literal
from service.sql.statement import Part

VALUE, ROWS = "v", "r"


def embedded(embeds: Sequence[PlannedEmbed], text: bool = False) -> Iterator[Part]:
    """
    Build the items of a select list that hold the embeds.

    Args:
        embeds: Planned ones.
        text: Whether they come as text, so that they are measured before they are read.
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


def embedded_json(embeds: Sequence[PlannedEmbed]) -> Iterator[Iterator[Part]]:
    """Build the JSON of embeds, of those that are spread a value for each of their columns."""
    for embed in embeds:
        if not embed.spread:
            yield _value(embed)
        else:
            yield from (_spread(embed, name) for name in embed.columns)


def _value(embed: PlannedEmbed) -> Iterator[Part]:
    yield SQL("coalesce(")
    yield Identifier(_alias(embed), VALUE)
    yield SQL(", '[]')" if embed.many else ", 'null')")


def _spread(embed: PlannedEmbed, name: str) -> Iterator[Part]:
    key = literal(truncated(name))
    if embed.many:
        yield SQL("coalesce((SELECT pg_catalog.json_agg(pg_catalog.json_extract_path(")
        yield SQL("row.value, ")
        yield key
        yield SQL(")) FROM pg_catalog.json_array_elements(")
        yield Identifier(_alias(embed), VALUE)
        yield SQL(") AS row), '[]')")
    else:
        yield SQL("coalesce(pg_catalog.json_extract_path(")
        yield Identifier(_alias(embed), VALUE)
        yield SQL(", ")
        yield key
        yield SQL("), 'null')")


def _named(embed: PlannedEmbed, json: Iterable[Iterator[Part]]) -> Iterator[list[Part]]:
    names = names_of((), embed.embeds)
    for name, value in zip(names, json, strict=True):
        yield [*value, SQL(" AS "), Identifier(name)]


def laterals(embeds: Sequence[PlannedEmbed], json: bool = False) -> Iterator[Part]:
    """Build the joins that make the embeds; `json` where nobody reads them on the way."""
    for embed in embeds:
        yield SQL(" LEFT JOIN LATERAL (SELECT ")
        yield SQL("pg_catalog.json_agg(" if embed.many else "pg_catalog.row_to_json(")
        yield Identifier(ROWS)
        yield SQL(".*) AS ")  # without the star a column of that name would be meant
        yield Identifier(VALUE)
        yield SQL(" FROM (SELECT ")
        outputs = (_output(output, json) for output in embed.outputs)
        inner = embedded_json(embed.embeds)
        yield from separated([*outputs, *(_named(embed, inner) if json else _each(embed.embeds))])
        yield from _grouped(embed) if embed.grouped else _linked(embed, json)
        yield from _page(embed)
        yield SQL(") AS ")
        yield Identifier(ROWS)
        yield SQL(") AS ")
        yield Identifier(_alias(embed))
        yield SQL(" ON true")


def _linked(embed: PlannedEmbed, json: bool = False) -> Iterator[Part]:
    yield from linked(embed.link, embed.where, laterals(embed.embeds, json))


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
    yield from limited(embed.limit, embed.offset)


def _each(embeds: Sequence[PlannedEmbed]) -> Iterator[Iterator[Part]]:
    for embed in embeds:
        yield embedded([embed])


def _output(output: Output, json: bool) -> Iterator[Part]:
    if json:
        yield from json_value(expression(output.expression), output.expression.type)
    elif output.text:
        yield SQL("CAST(")
        yield from expression(output.expression)
        yield SQL(" AS text)")
    else:
        yield from expression(output.expression)
    yield SQL(" AS ")
    yield Identifier(output.name)


def _alias(embed: PlannedEmbed) -> str:
    return f"e{embed.link.source}"
