"""
Composite values with hidden fields.

The codec removes hidden fields from results. Any other use of the value (a cast, a comparison, a sort key)
would reveal them, so all other uses are refused.
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
    # The catalog has a hidden field at its position, with an empty name.
    if any(not name for name, _ in type.fields):
        return True
    return any(has_hidden_field(catalog, part) for part in type.parts)


def without_hidden_fields(catalog: Catalog, value: Expression) -> Expression:
    """Return a value for uses beyond returning it; raise InvalidArgument if it has a hidden field."""
    if has_hidden_field(catalog, value.type.oid):
        raise _hidden(value.column.name, value.path)
    return value


def follow(catalog: Catalog, type: Type, reference: Reference) -> None:
    """Check steps into a value: refuse unknown and hidden fields, as far as the type is known."""
    for step in reference.steps:
        type = catalog.plain(type)
        if type.kind == "array":
            if step.index:  # an element, or a dimension of the array
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
    """Refuse hidden fields in outputs that are not just returned, or that the codec does not decode."""
    for output in outputs:
        without_hidden_fields(catalog, output.expression)
    for embed in embeds:
        refuse_hidden_fields(catalog, embed.outputs, embed.embeds)


def as_json(
    catalog: Catalog, form: Form, outputs: Sequence[Output], embeds: Sequence[PlannedEmbed] = ()
) -> bool:
    """Return whether the form is JSON text; refuse hidden fields then, since no codec removes them."""
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
