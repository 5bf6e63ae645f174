"""
Planned embeds as SQL: one lateral subselect each, giving one JSON value.

A JSON document keeps what belongs together in one column whatever its depth, so that a
call stays one statement. Values that JSON cannot hold in their wire form are text in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from service.plan.plans import Output, PlannedEmbed, names_of, truncated
from service.sql.expressions import (
    aliased,
    cast,
    expression,
    json_text,
    json_value,
    limit_offset,
    order_by,
    output_list,
    related_rows,
)
from service.sql.groups import grouped
from service.sql.statement import COMMA


def column_list(
    outputs: Sequence[Output], embeds: Sequence[PlannedEmbed], json: bool = False
) -> Composable:
    """
    Build the select list of an answer, embeds last.

    Args:
        outputs: Of each row.
        embeds: Of each row.
        json: Whether each column is to be the text of its JSON; without names, then.
    """
    if json:
        values = [json_text(expression(each.expression), each.expression.type) for each in outputs]
        return COMMA.join([*values, *(cast(each, "text") for each in _json_of(embeds))])
    found = [output_list(outputs)] if outputs else []
    if embeds:  # as text, so that they are measured before they are read
        found.append(aliased((cast(_value(each), "text"), each.key) for each in embeds))
    return COMMA.join(found)


def embed_joins(embeds: Sequence[PlannedEmbed], json: bool = False) -> Composable:
    """Build the joins that make the embeds; `json` where nobody reads them on the way."""
    # Each aggregates its own rows: joined as they are, those of two embeds would multiply each other.
    return Composed(_join(embed, json) for embed in embeds)


def _join(embed: PlannedEmbed, json: bool) -> Composable:
    inner = [(_output(each, json), each.name) for each in embed.outputs]
    if json:
        inner += zip(_json_of(embed.embeds), names_of((), embed.embeds), strict=True)
    else:
        inner += [(_value(each), each.key) for each in embed.embeds]
    rows = related_rows(embed.link, embed.where, embed_joins(embed.embeds, json))
    if embed.grouped is not None:
        rows = SQL("({groups}) AS {alias}").format(
            groups=grouped(embed.grouped, rows), alias=Identifier(embed.grouped.source)
        )
    # "r".* and not "r", which would mean a column of that name
    return SQL(
        ' LEFT JOIN LATERAL (SELECT pg_catalog.{function}("r".*) AS "v"'
        ' FROM (SELECT {columns} FROM {rows}{order}{one}{page}) AS "r") AS {alias} ON true'
    ).format(
        function=SQL("json_agg" if embed.many else "row_to_json"),
        columns=aliased(inner),
        rows=rows,
        order=order_by(embed.order),
        # A second match, where no constraint forbids one, would double the row around it.
        one=SQL("" if embed.many or embed.limit else " LIMIT 1"),
        page=limit_offset(embed.limit, embed.offset),
        alias=Identifier(_alias(embed)),
    )


def _value(embed: PlannedEmbed) -> Composable:
    """Build the JSON document of an embed: NULL for no row."""
    value = Identifier(_alias(embed), "v")
    # json_agg over no rows gives NULL.
    return SQL("coalesce({value}, '[]')").format(value=value) if embed.many else value


def _json_of(embeds: Sequence[PlannedEmbed]) -> Iterator[Composable]:
    """Build the JSON of embeds, of those that are spread a value for each of their columns."""
    for embed in embeds:
        value = Identifier(_alias(embed), "v")
        if not embed.spread:
            none = "[]" if embed.many else "null"
            yield SQL("coalesce({value}, {none})").format(value=value, none=Literal(none))
            continue
        template = (
            "coalesce((SELECT pg_catalog.json_agg(pg_catalog.json_extract_path(row.value, {key}))"
            " FROM pg_catalog.json_array_elements({value}) AS row), '[]')"
            if embed.many
            else "coalesce(pg_catalog.json_extract_path({value}, {key}), 'null')"
        )
        for name in embed.columns:
            # The JSON has names as PostgreSQL keeps them, cut after 63 bytes.
            yield SQL(template).format(value=value, key=Literal(truncated(name)))


def _output(output: Output, json: bool) -> Composable:
    value = expression(output.expression)
    if json:
        return json_value(value, output.expression.type)
    return cast(value, "text") if output.text else value


def _alias(embed: PlannedEmbed) -> str:
    return f"e{embed.link.source}"
