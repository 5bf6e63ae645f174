"""
How relations are related: by foreign keys either way, through junctions, by functions of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from service.catalog import NOWHERE, Catalog, ForeignKey, Relation
from service.functions import Function
from service.plan.computed import computed_relationships
from service.plan.remembered import remembered

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
