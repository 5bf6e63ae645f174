"""
How relations are related: by foreign keys either way, through junctions, by functions of a row.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
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
        names: What `via` may call it, the usual names first, each with its rank: where several
            ways have a name, it is that of the lowest.
        called: What an embed may be called for it, beside the target.
        function: Of the row, that gives the related ones, if it is one.
        label: What tells it from all other ways to the target, one of the names.
    """

    target: Relation
    many: bool
    pairs: Pairs
    junction: Junction | None
    names: Mapping[str, int]
    called: frozenset[str]
    function: Function | None = None
    label: str = ""


def relationships(catalog: Catalog, relation: Relation) -> tuple[Relationship, ...]:
    """Find every way from a relation to others."""
    # what only is like a relation has none, and is another one in each call
    return () if relation.schema == NOWHERE else _relationships(catalog, relation)


@remembered
def _relationships(catalog: Catalog, relation: Relation) -> tuple[Relationship, ...]:
    found: dict[Hashable, Relationship] = {}
    for way in (
        *_to_one(catalog, relation),
        *_from_many(catalog, relation),
        *_through_junctions(catalog, relation),
        *_computed(catalog, relation),
    ):
        same = _rows(way)
        found[same] = _merged(found[same], way) if same in found else way
    ways: dict[str, list[Relationship]] = {}
    for way in found.values():
        ways.setdefault(_full(way.target), []).append(way)
    return tuple(
        replace(way, label=label_of(way, ways[_full(way.target)])) for way in found.values()
    )


def meant(ways: Sequence[Relationship], via: str) -> list[Relationship]:
    """Give those of some ways that a name means: a closer meaning hides a farther one."""
    named = [way for way in ways if via in way.names]
    closest = min((way.names[via] for way in named), default=0)
    return [way for way in named if way.names[via] == closest]


def label_of(way: Relationship, ways: Sequence[Relationship]) -> str:
    """Give the first name of a way that means none of some others, in quotes where it has to be."""
    names = [*way.names]
    label = next((name for name in names if meant(ways, name) == [way]), names[-1])
    if any(mark in label for mark in (":", ".", "->", '"')):
        label = '"' + label.replace('"', '""') + '"'
    return label


def _rows(way: Relationship) -> Hashable:
    """Give what ways have in common that lead to the same rows."""
    junction, function = way.junction, way.function
    if junction is not None:
        passage = (_full(junction.relation), frozenset(junction.here), frozenset(junction.there))
        return _full(way.target), passage
    return _full(way.target), frozenset(way.pairs), function.name if function else ""


def _merged(way: Relationship, other: Relationship) -> Relationship:
    return replace(
        way,
        many=way.many and other.many,
        names={**other.names, **way.names},
        called=way.called | other.called,
    )


def _to_one(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for key in (*relation.foreign_keys, *relation.links):
        target = catalog.relations.get(key.target)
        if target is not None:
            pairs = tuple(zip(key.columns, key.target_columns, strict=True))
            called = {key.name} if key.called else set()
            if key.called and len(key.columns) == 1:
                called |= {*key.columns}
            own = (key.name, *_columns(key.columns), _spelled(pairs))
            names = _ranked((0, own), (1, _columns(key.target_columns)))
            yield Relationship(target, False, pairs, None, names, frozenset(called))


def _from_many(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    for other, key in catalog.referrers.get((relation.schema, relation.name), ()):
        pairs = tuple(zip(key.target_columns, key.columns, strict=True))
        columns = (*_columns(key.columns), *_columns(key.target_columns))
        names = _ranked((0, (key.name,)), (1, columns), (0, (_spelled(pairs),)))
        many = not other.refers_once(key)
        yield Relationship(other, many, pairs, None, names, frozenset())


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
            names = _names_through(middle, here, there, junction)
            yield Relationship(target, True, (), junction, names, frozenset())


def _names_through(
    middle: Relation, here: ForeignKey, there: ForeignKey, junction: Junction
) -> Mapping[str, int]:
    """Name a way through a junction: by it, by the key that leads on, by the path of both keys."""
    last, first = (there.name, *_columns(there.columns)), (here.name, *_columns(here.columns))
    keys = f"{here.name}!{there.name}"
    columns = f"{','.join(here.columns)}!{','.join(there.columns)}"
    full = f"{_spelled(junction.here)}!{_spelled(junction.there)}"
    rank = 2 if middle.kind == "table" else 4  # keys of a view are those of its table
    return _ranked(
        (2, (middle.name,)),
        (rank, last),
        (rank + 1, first),
        (rank, (keys, columns)),
        (2, (f"{middle.name}!{each}" for each in (there.name, keys, columns))),
        (2, (_full(middle), f"{_full(middle)}!{full}")),
    )


def _ranked(*names: tuple[int, Iterable[str]]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for rank, each in names:
        for name in each:
            found.setdefault(name, rank)
    return found


def _columns(columns: Sequence[str]) -> tuple[str, ...]:
    return (*columns, ",".join(columns))


def _spelled(pairs: Pairs) -> str:
    return ",".join(f"{here}={there}" for here, there in pairs)


def _full(relation: Relation) -> str:
    return f"{relation.schema}.{relation.name}"


def _same(here: ForeignKey, there: ForeignKey) -> bool:
    """Tell whether both are one constraint: it leads to a table, and to each view of it."""
    return (here.name, here.columns) == (there.name, there.columns)


def _joins(middle: Relation, here: ForeignKey, there: ForeignKey) -> bool:
    """Tell a junction: a unique key of it holds both foreign keys."""
    both = {*here.columns, *there.columns}
    keys = [*(unique.columns for unique in middle.unique_keys), *middle.shown_keys]
    return any(both <= set(key) for key in keys)


def _computed(catalog: Catalog, relation: Relation) -> Iterator[Relationship]:
    found = {
        each.name: (each, target) for each, target in computed_relationships(catalog, relation)
    }
    for name, (function, target) in found.items():
        many = function.many and not function.single
        names = _ranked((0, (name, f"{function.schema}.{name}")))
        yield Relationship(target, many, (), None, names, frozenset({name}), function)
