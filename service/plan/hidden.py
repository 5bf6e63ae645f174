"""
Composite values with fields that are hidden.

The codec leaves such a field out of what is answered. Whatever else is done with the whole value
(a cast, a comparison, a place in an order) would show it, so there is nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.catalog import Catalog, Type
from service.errors import InvalidArgument, UnknownName
from service.plan.cached_lookups import cached_per_catalog
from service.plan.conditions import Expression
from service.plan.plans import Output, PlannedEmbed
from service.request.requests import Form, Reference


@cached_per_catalog
def has_hidden_field(catalog: Catalog, oid: int) -> bool:
    """Return whether values of a type have a hidden field, at any depth."""
    type = catalog.type(oid)
    # A hidden field keeps its place, without its name.
    if any(not name for name, _ in type.fields):
        return True
    return any(has_hidden_field(catalog, part) for part in type.parts)


def without_hidden_fields(catalog: Catalog, value: Expression) -> Expression:
    """Return a value that is to be more than answered, if it has no hidden field."""
    if has_hidden_field(catalog, value.type.oid):
        raise _hidden(value.column.name, value.path)
    return value


def follow(catalog: Catalog, type: Type, reference: Reference) -> None:
    """Refuse steps into a value, as far as its type is known, to no field or a hidden one."""
    for step in reference.steps:
        type = catalog.plain(type)
        if type.kind == "array":
            if step.index:  # to an element, or to another list of them
                continue
            type = catalog.plain(catalog.type(type.element))
        if type.kind != "composite":
            return
        fields = {name: oid for name, oid in type.fields if name}
        if step.index or step.key not in fields:
            known = [name for name in fields if name not in type.unreadable_fields]
            raise UnknownName("field", step.key, known, f"type {type.name}", reference.path)
        type = catalog.type(fields[step.key])
    if has_hidden_field(catalog, type.oid):
        raise _hidden(reference.name, reference.path)


def refuse_hidden_fields(
    catalog: Catalog, outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = ()
) -> None:
    """Refuse outputs that are more than answered, or not read by the codec."""
    for output in outputs:
        without_hidden_fields(catalog, output.expression)
    for embed in embeds:
        refuse_hidden_fields(catalog, embed.outputs, embed.embeds)


def as_json(
    catalog: Catalog, form: Form, outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = ()
) -> bool:
    """Return whether outputs are to be JSON, which the codec does not read; hidden fields are none."""
    if form == "json":
        refuse_hidden_fields(catalog, outputs, embeds)
    return form == "json"


def _hidden(column: str, path: str) -> InvalidArgument:
    return InvalidArgument(
        f'"{column}" has fields that are hidden, so that it can be selected, and no more',
        path=path or None,
        column=column,
        hint=f'a field of it goes anywhere, as in "{column}->field"',
    )
