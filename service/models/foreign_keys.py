"""
Relationships of a generated model: what the foreign keys say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

from service.catalog import Catalog, ForeignKey, Relation
from service.models.ends import Ends
from service.models.relationship import Relationship
from service.models.to_many import HasMany
from service.models.to_one import BelongsTo, HasOne

Declared = tuple[type[Relationship], Ends]


def declared(
    catalog: Catalog, relation: Relation, of: Callable[[Relation], Any], taken: Collection[str]
) -> Iterator[Declared]:
    """
    Say what a model of a relation is related to.

    A row that is referred to is called like the column, less `_id`, or else like its relation;
    rows that refer to this one, like theirs. Where several would be called the same, each is
    called like its constraint. A junction is a relation like others, on the way to what is
    behind it: as twistar's HABTM, its rows would go with each row that is deleted.

    Args:
        catalog: For the foreign keys.
        relation: Of the model.
        of: Gives the model of a relation.
        taken: Names that the class needs; those of columns are taken, too.
    """
    found = [*_referred(catalog, relation), *_referring(catalog, relation)]
    names = Counter(name for name, *_ in found)
    used = {*taken, *relation.columns}
    for name, key, kind, target in found:
        for word in (name, key.name) if names[name] == 1 else (key.name,):
            if word not in used:
                used.add(word)
                yield kind, _ends(word, key, kind, partial(of, target))
                break


Found = tuple[str, ForeignKey, type[Relationship], Relation]


def _referred(catalog: Catalog, relation: Relation) -> Iterator[Found]:
    for key in relation.foreign_keys:
        target = catalog.relations.get(key.target)
        if target is not None and _readable(relation, key.columns):
            column = key.columns[0]
            plain = len(key.columns) == 1 and column.endswith("_id") and len(column) > 3
            yield column[:-3] if plain else target.name, key, BelongsTo, target


def _referring(catalog: Catalog, relation: Relation) -> Iterator[Found]:
    for other, key in catalog.referrers.get((relation.schema, relation.name), ()):
        if key in other.foreign_keys and _readable(relation, key.target_columns):
            yield other.name, key, HasOne if other.refers_once(key) else HasMany, other


def _readable(relation: Relation, names: Collection[str]) -> bool:
    return all(relation.columns[name].selectable for name in names)


def _ends(name: str, key: ForeignKey, kind: type[Relationship], other: Callable[[], Any]) -> Ends:
    here, there = ((), key.columns) if kind is BelongsTo else (key.columns, ())
    return Ends(name, other, here, there, key=key.target_columns)
