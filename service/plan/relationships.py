"""
How relations are related: by foreign keys, either way, and through junctions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from service.catalog import NOWHERE, Catalog, ForeignKey, Relation
from service.errors import InvalidArgument, UnknownName
from service.functions import Function
from service.plan.computed import computed_relationships
from service.plan.remembered import remembered
from service.request.names import encode
from service.request.types import Embed

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Junction:
    """
    A relation between two others.

    Args:
        relation: With a foreign key to each.
        here: Columns of this side, and of the junction.
        there: Columns of the junction, and of the other side.
    """

    relation: Relation
    here: Pairs
    there: Pairs


@dataclass(frozen=True, slots=True)
class Relationship:
    """
    One way from a relation to another.

    Args:
        target: The other relation.
        many: Whether a row can have several related ones.
        pairs: Columns here and there that must be equal; empty through a junction.
        junction: What stands between, if anything.
        label: What tells this way from others, for `via`.
        names: What else it may be called by `via`.
        called: What an embed may be called for it, beside the target.
        function: Of the row, that gives the related ones, if it is one.
    """

    target: Relation
    many: bool
    pairs: Pairs
    junction: Junction | None
    label: str
    names: frozenset[str]
    called: frozenset[str]
    function: Function | None = None


def relationships(catalog: Catalog, relation: Relation) -> tuple[Relationship, ...]:
    """Find every way from a relation to others."""
    # what only is like a relation has none, and is another one in each call
    return () if relation.schema == NOWHERE else _relationships(catalog, relation)


@remembered
def _relationships(catalog: Catalog, relation: Relation) -> tuple[Relationship, ...]:
    return _told_apart(
        [
            *_to_one(catalog, relation),
            *_from_many(catalog, relation),
            *_through_junctions(catalog, relation),
            *_computed(catalog, relation),
        ]
    )


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


def _told_apart(ways: Sequence[Relationship]) -> tuple[Relationship, ...]:
    """Give ways to one target that have the same label others, as far as they have any."""
    alike: dict[tuple[Relation, bool, str], list[Relationship]] = {}
    for way in ways:
        alike.setdefault((way.target, way.many, way.label), []).append(way)
    return tuple(_labelled(way, alike[way.target, way.many, way.label]) for way in ways)


def _labelled(way: Relationship, alike: Sequence[Relationship]) -> Relationship:
    others = {name for each in alike if each is not way for name in each.names}
    own = sorted(way.names - others)
    if len(alike) == 1 or not own:
        return way
    return replace(way, label=own[0], names=way.names | {way.label})


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


def _to_one(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for key in (*relation.foreign_keys, *relation.links):
        target = catalog.relations.get(key.target)
        if target is not None:
            pairs = tuple(zip(key.columns, key.target_columns, strict=True))
            called = {key.name} if key.called else set()
            if key.called and len(key.columns) == 1:
                called |= {*key.columns}
            yield Relationship(
                target,
                False,
                pairs,
                None,
                key.name,
                frozenset({*key.columns, *key.target_columns}),
                frozenset(called),
            )


def _from_many(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for other, key in catalog.referrers.get((relation.schema, relation.name), ()):
        pairs = tuple(zip(key.target_columns, key.columns, strict=True))
        names = frozenset({*key.columns, *key.target_columns})
        many = not other.refers_once(key)
        yield Relationship(other, many, pairs, None, key.name, names, frozenset())


def _through_junctions(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for middle, here in catalog.referrers.get((relation.schema, relation.name), ()):
        for there in (*middle.foreign_keys, *middle.links):
            target = catalog.relations.get(there.target)
            if target is None or _same(here, there) or not _joins(middle, here, there):
                continue
            junction = Junction(
                middle,
                tuple(zip(here.target_columns, here.columns, strict=True)),
                tuple(zip(there.columns, there.target_columns, strict=True)),
            )
            names = frozenset({f"{middle.schema}.{middle.name}", there.name, *there.columns})
            yield Relationship(target, True, (), junction, middle.name, names, frozenset())


def _same(here: ForeignKey, there: ForeignKey) -> bool:
    """Tell whether both are one constraint: it leads to a table, and to each view of it."""
    return (here.name, here.columns) == (there.name, there.columns)


def _joins(middle: Relation, here: ForeignKey, there: ForeignKey) -> bool:
    """Tell a junction: a unique key of it holds both foreign keys."""
    both = {*here.columns, *there.columns}
    keys = [*(unique.columns for unique in middle.unique_keys), *middle.shown_keys]
    return any(both <= set(key) for key in keys)


def _computed(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for function, target in computed_relationships(catalog, relation):
        name = function.name
        many = function.many and not function.single
        yield Relationship(target, many, (), None, name, frozenset(), frozenset({name}), function)
