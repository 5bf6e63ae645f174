"""
Rows that a write gave back, read as a source: functions of a row find it in a column there.
"""

from __future__ import annotations

from dataclasses import replace

from service.catalog import Relation
from service.plan.conditions import Expression, Link
from service.plan.writes import Back


def row_name(relation: Relation) -> str:
    """Name the column that holds the whole row, unlike any other."""
    name = "row"
    while name in relation.columns:
        name += "_"
    return name


def holding(back: Back, row: str) -> Back:
    """
    Have functions of the row find it in a column.

    Args:
        back: What comes back of the rows.
        row: The name of the column.

    Returns:
        An equal one, if there are no such functions.
    """
    return replace(
        back,
        outputs=tuple(
            replace(each, expression=_expression(each.expression, row)) for each in back.outputs
        ),
        order=tuple(
            replace(each, expression=_expression(each.expression, row)) for each in back.order
        ),
        embeds=tuple(replace(each, link=_link(each.link, row)) for each in back.embeds),
        inner=tuple(replace(each, link=_link(each.link, row)) for each in back.inner),
    )


def _expression(value: Expression, row: str) -> Expression:
    if value.links:
        first, *others = value.links
        return replace(value, links=(_link(first, row), *others))
    return replace(value, row=row) if value.function is not None else value


def _link(link: Link, row: str) -> Link:
    return replace(link, row=row) if link.function is not None else link
