"""
Embeds of a call to planned ones: which related rows, and what of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, count

from service.catalog import Catalog, Type
from service.plan.aggregate_plan import plan_grouped
from service.plan.outputs import outputs_of, refuse_repeated, with_row_key
from service.plan.plans import Groups, Output, PlannedEmbed, names_of, truncated
from service.plan.predicates import plan_related, sort_keys
from service.plan.scope import Scope
from service.request.requests import Embed, Item


def plan_columns(
    scope: Scope, select: tuple[Item, ...] | None, embeds: Sequence[Embed], path: str
) -> tuple[tuple[Output, ...], tuple[PlannedEmbed, ...]]:
    """Plan a select list and the embeds beside it, which replace columns that nobody asked for."""
    planned = [each for each in (_plan(scope, embed) for embed in embeds) if each.columns]
    outputs = outputs_of(scope, select)
    if select is None:
        taken = {embed.name for embed in planned if not embed.spread}
        outputs = tuple(output for output in outputs if output.name not in taken)
    hint = 'rename one: "other_name:column" in select, or another name in embed'
    seen = refuse_repeated(names_of(outputs, planned), path, hint)
    return outputs, tuple(_keyed(planned, seen))


def _keyed(embeds: Sequence[PlannedEmbed], taken: set[str]) -> Iterator[PlannedEmbed]:
    """Return embeds with keys of their own where they are spread: their names are free for columns."""
    for embed in embeds:
        if not embed.spread:
            yield embed
            continue
        keys = chain([embed.key], (f"e{number}" for number in count()))
        key = next(each for each in keys if each not in taken)
        taken.add(key)
        yield replace(embed, key=key)


def _plan(scope: Scope, embed: Embed) -> PlannedEmbed:
    link, inner, many = scope.link(embed)
    grouped = _grouped(inner, embed)
    embeds: tuple[PlannedEmbed, ...] = ()
    if grouped is not None:
        outputs, order = grouped.outputs, grouped.order
    else:
        outputs, embeds = plan_columns(inner, embed.select, embed.embeds, embed.path)
        order, _ = with_row_key(inner, sort_keys(inner, embed.order)) if many else ((), False)
    outputs = tuple(
        # All of an embed is JSON: what to_json writes otherwise than the wire has it goes as text.
        replace(output, text=not _is_json(scope.catalog, output.expression.type))
        for output in outputs
    )
    return PlannedEmbed(
        name=embed.name,
        # PostgreSQL keeps 63 bytes of a name; in the answer it is whole.
        key=truncated(embed.name),
        link=link,
        # measures over all rows that join the outer row are values: there is one of each
        many=many and not (embed.spread and embed.measures and not embed.group),
        outputs=outputs,
        embeds=embeds,
        where=plan_related(inner, embed),
        order=order,
        limit=inner.number(embed.limit),
        offset=inner.number(embed.offset),
        spread=embed.spread,
        grouped=grouped,
    )


def _grouped(inner: Scope, embed: Embed) -> Groups | None:
    if not embed.measures and not embed.group:
        return None
    path, source = f"{embed.path}.measures", f"g{inner.source}"
    grouped, _ = plan_grouped(inner, embed.group, embed.measures, embed.order, path, source)
    return grouped


def _is_json(catalog: Catalog, type: Type) -> bool:
    """Return whether the JSON of a type is its wire form."""
    type = catalog.plain(type)
    if type.kind == "array":
        return _is_json(catalog, catalog.type(type.element))
    return type.data_type.native_json or type.kind in {"enum", "range", "multirange"}
