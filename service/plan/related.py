"""
Which of the relationships that there are an embed means.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.catalog import Catalog, Relation
from service.errors import InvalidArgument, UnknownName
from service.plan.relationships import Relationship, relationships
from service.request.names import encode
from service.request.types import Embed


def related(catalog: Catalog, relation: Relation, embed: Embed) -> Relationship:
    """
    Find the relationship that an embed means.

    Raises:
        InvalidArgument: There is none, or more than one; then `candidates` names them.
    """
    known = relationships(catalog, relation)
    fitting = [each for each in known if _fits(each, embed)]
    found: Sequence[Relationship] = [each for each in fitting if each.junction is None]
    if embed.via is None:
        found = _preferred(fitting, embed.relation or embed.name)
    elif not found:  # a column of either side goes before the same one of a junction
        found = fitting
    if not found:
        raise _unknown(catalog, relation, known, embed)
    if len(found) > 1:
        raise InvalidArgument(
            f'"{relation.name}" and "{found[0].target.name}" are related in several ways',
            path=embed.path,
            hint='name one in "via", and for a relation related to itself the "direction"',
            candidates=sorted({each.label for each in fitting}),
        )
    return found[0]


def _preferred(found: Sequence[Relationship], name: str) -> Sequence[Relationship]:
    """Leave out what a name would mean only if it meant nothing closer."""
    # a name of its own beats the name of the target
    found = [each for each in found if name in each.called] or found
    if any(each.junction and each.junction.relation.kind == "table" for each in found):
        # and a junction beats the views of one
        found = [
            each
            for each in found
            if each.junction is None or each.junction.relation.kind == "table"
        ]
    return found


def _fits(way: Relationship, embed: Embed) -> bool:
    if way.function is not None:
        return _computes(way, embed)
    if not _is_named(way, embed.relation or embed.name):
        return False
    if embed.via is not None and embed.via != way.label and embed.via not in way.names:
        return False
    return embed.direction in (None, _direction(way))


def _is_named(way: Relationship, name: str) -> bool:
    return name in way.called or _is_called(way.target, name)


def _computes(way: Relationship, embed: Embed) -> bool:
    """Tell whether an embed means a function: by its own name, never by that of the target."""
    if embed.direction not in (None, _direction(way)):
        return False
    if embed.via is None:
        return way.label == (embed.relation or embed.name)
    named = embed.relation in (None, way.label) or _is_called(way.target, embed.relation or "")
    return embed.via == way.label and named


def _direction(way: Relationship) -> str:
    return "many" if way.many else "one"


def _is_called(relation: Relation, name: str) -> bool:
    """Tell whether a name is a relation's, perhaps as it stands in URIs and in `describe`."""
    schema, coded = encode(relation.schema), encode(relation.name)
    plain = (relation.name, f"{relation.schema}.{relation.name}")
    return name in (*plain, coded, f"{schema}.{coded}")


def _unknown(
    catalog: Catalog, relation: Relation, known: Sequence[Relationship], embed: Embed
) -> InvalidArgument:
    names = sorted({way.target.name for way in known} | {n for way in known for n in way.called})
    name, path = embed.relation or embed.name, embed.path
    there = [way for way in known if _is_named(way, name)]
    if there and (embed.via is not None or embed.direction is not None):
        return InvalidArgument(
            f'"{relation.name}" has no such relationship to "{name[:80]}"',
            path=path,
            candidates=sorted({way.label for way in there}),
        )
    return UnknownName("relationship", name, names, f'relation "{relation.name}"', path)
