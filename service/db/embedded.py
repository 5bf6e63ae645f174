"""
Embedded rows, as JSON brought them, to their final form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.db.json_text import bare_row, read_json
from service.db.values import Codec
from service.plan.types import PlannedEmbed, kept


def read_texts(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed]) -> None:
    """Read the embeds of rows, which came as texts, in place."""
    for embed in embeds:
        for row in rows:
            text = row[embed.key]
            if text is not None:
                row[embed.key] = read_json(text)


def finish(rows: Iterable[dict[str, Any]], embeds: Sequence[PlannedEmbed], codec: Codec) -> None:
    """
    Finish the embeds of rows in place: read what travelled as text, spread what is spread.

    Args:
        rows: Each with a value for every embed: a row, a list of rows, or None.
        embeds: Of these rows.
        codec: Reads the texts.
    """
    for embed in embeds:
        found = [row[embed.key] for row in rows]
        inner = [row for each in found for row in each] if embed.many else found
        for row in inner:
            if row is not None and (bare := bare_row(row)) is not row:
                row.clear()
                row.update(bare)
        _finish_rows([row for row in inner if row is not None], embed, codec)
    for embed in embeds:
        if embed.spread:
            for row in rows:
                row.update(_spread(row.pop(embed.key), embed))
    _call({embed.key: embed.name for embed in embeds if not embed.spread}, rows)


def _finish_rows(rows: list[dict[str, Any]], embed: PlannedEmbed, codec: Codec) -> None:
    _call({kept(output.name): output.name for output in embed.outputs}, rows)
    for output in embed.outputs:
        if output.text:
            name, type = output.name, output.expression.type
            for row in rows:
                row[name] = codec.read(type, row[name])
    finish(rows, embed.embeds, codec)


def _call(names: Mapping[str, str], rows: Iterable[dict[str, Any]]) -> None:
    """Call by their names what PostgreSQL cut short, in the same order."""
    if all(key == name for key, name in names.items()):
        return
    for row in rows:
        named = {names.get(key, key): value for key, value in row.items()}
        row.clear()
        row.update(named)


def _spread(value: Any, embed: PlannedEmbed) -> dict[str, Any]:
    """Give the columns of related rows: single values, or lists of them."""
    if embed.many:
        return {name: [row[name] for row in value] for name in embed.columns}
    return {name: None if value is None else value[name] for name in embed.columns}
