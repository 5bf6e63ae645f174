"""
Which of the relationships that there are an embed means.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.catalog import Catalog, Relation
from service.errors import InvalidArgument, UnknownName
from service.plan.relationships import Relationship, label_of, meant, relationships
from service.request.names import encode
from service.request.types import Embed


def related(catalog: Catalog, relation: Relation, embed: Embed) -> Relationship:
    """
    Find the relationship that an embed means.

    Raises:
        InvalidArgument: There is none, or more than one; then `candidates` names them.
    """
    known = relationships(catalog, relation)
    name, via = _named(known, embed)
    fitting = [each for each in known if _fits(each, embed, name, via)]
    if not fitting:
        raise _unknown(relation, known, embed, name)
    found = _preferred(fitting, name) if via is None else meant(fitting, via)
    found = [each for each in found if _is_served_as(catalog, each.target, name)] or found
    if len(found) > 1:
        targets = sorted({each.target.name for each in found})
        raise InvalidArgument(
            f'"{relation.name}" and "{targets[0]}" are related in several ways',
            path=embed.path,
            hint=f'name one, as in "{name[:80]}!{label_of(found[0], fitting)}", or with "via"',
            candidates=sorted(label_of(each, fitting) for each in fitting),
        )
    return found[0]


def is_related(catalog: Catalog, relation: Relation, embed: Embed) -> bool:
    """Tell whether the name of an embed means related rows at all."""
    known = relationships(catalog, relation)
    name, _ = _named(known, embed)
    return any(_is_named(each, name) for each in known)


def _named(known: Sequence[Relationship], embed: Embed) -> tuple[str, str | None]:
    """Give the name of an embed, and what tells its way from others, perhaps in the same text."""
    name, via = embed.relation or embed.name, embed.via
    marks = [at for at, character in enumerate(name) if character == "!" and via is None]
    if marks and not any(_is_named(way, name) for way in known):
        ends = [at for at in marks if any(_is_named(way, name[:at]) for way in known)]
        end = (ends or marks)[0]
        name, via = name[:end], name[end + 1 :]
    if via is not None and len(via) > 1 and via[0] == via[-1] == '"':
        via = via[1:-1].replace('""', '"')
    return name, via


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


def _fits(way: Relationship, embed: Embed, name: str, via: str | None) -> bool:
    if embed.direction not in (None, _direction(way)):
        return False
    if via is None:  # a function goes by its own name, never by that of the target
        return name in way.called if way.function else _is_named(way, name)
    free = way.function is not None and embed.via is not None and embed.relation is None
    return via in way.names and (free or _is_named(way, name))


def _is_named(way: Relationship, name: str) -> bool:
    return name in way.called or _is_called(way.target, name)


def _direction(way: Relationship) -> str:
    return "many" if way.many else "one"


def _is_called(relation: Relation, name: str) -> bool:
    """Tell whether a name is a relation's, perhaps as it stands in URIs and in `describe`."""
    schema, coded = encode(relation.schema), encode(relation.name)
    plain = (relation.name, f"{relation.schema}.{relation.name}")
    return name in (*plain, coded, f"{schema}.{coded}")


def _is_served_as(catalog: Catalog, relation: Relation, name: str) -> bool:
    """Tell whether a name is the one by which a relation's procedures are called."""
    coded = encode(relation.name)
    short = relation.schema == catalog.schemas[0] and name == coded
    return short or name == f"{encode(relation.schema)}.{coded}"


def _unknown(
    relation: Relation, known: Sequence[Relationship], embed: Embed, name: str
) -> InvalidArgument:
    there = [way for way in known if _is_named(way, name)]
    if there:
        facing = [way for way in there if embed.direction in (None, _direction(way))]
        return InvalidArgument(
            f'"{relation.name}" has no such relationship to "{name[:80]}"',
            path=embed.path,
            candidates=sorted(label_of(way, facing or there) for way in facing or there),
        )
    names = sorted({way.target.name for way in known} | {n for way in known for n in way.called})
    hint = f'"{name}" is a column; descending is "-{name}", a value in JSON "{name}->key"'
    return UnknownName(
        "relationship",
        name,
        names,
        f'relation "{relation.name}"',
        embed.path,
        hint if name in relation.columns else None,
    )
