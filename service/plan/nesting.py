"""
The relationships by which rows nest in new ones: those of the foreign keys of tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.catalog import Catalog, Column, ForeignKey, Relation
from service.datatypes import DOCUMENTS
from service.plan.joins import Join, is_related
from service.request.embeds import default_embed
from service.request.names import encode
from service.request.related_rows import RelatedRow


@dataclass(frozen=True)
class NestedRows:
    """
    What some rows have under one name.

    Args:
        way: The relationship.
        key: What it goes by; None through a junction.
        refers: Whether the key is that of the rows, or of those that are nested.
        rows: What is nested, each with the number of its row.
    """

    way: Join
    key: ForeignKey | None
    refers: bool
    rows: list[tuple[int, RelatedRow]] = field(default_factory=list)


def is_nested(catalog: Catalog, relation: Relation, name: str, row: bool) -> bool:
    """Return whether a key of a new row's values names related rows, and no column; `row` if a row is there."""
    column = relation.columns.get(name)
    if column is None:
        return is_related(catalog, relation, default_embed(name, name))
    # The column of a foreign key is a name for what it refers to, too: no dict is a value of it.
    if not row:
        return False
    type = catalog.plain(catalog.type(column.type))
    keys = (key for key in relation.foreign_keys if key.columns == (name,))
    return type.form not in DOCUMENTS and type.kind != "composite" and any(keys)


def document_names(catalog: Catalog) -> frozenset[str]:
    """Return names of columns that hold dicts or lists, and are no relationship's anywhere."""
    relations = catalog.relations.values()
    keys = [key for each in relations for key in (*each.foreign_keys, *each.view_foreign_keys)]
    taken = {name for key in keys for name in (key.name, *key.columns, *key.target_columns)}
    taken |= {name for _, name in catalog.functions}
    taken |= {name for each in relations for name in (each.name, encode(each.name))}
    columns = {name: column for each in relations for name, column in each.columns.items()}
    return frozenset(
        name
        for name, column in columns.items()
        if name.isidentifier() and name not in taken and _holds_some(catalog, column)
    )


def _holds_some(catalog: Catalog, column: Column) -> bool:
    type = catalog.plain(catalog.type(column.type))
    return type.form in DOCUMENTS or type.kind in ("array", "composite")


def takes_nested(relation: Relation, way: Join) -> bool:
    """Return whether rows can be nested by a relationship: by foreign keys of tables."""
    return nested_by(relation, way) is not None


def nested_by(relation: Relation, way: Join) -> NestedRows | None:
    """Return what rows may have by a relationship, as yet nothing; None where none can be nested."""
    junction, target = way.junction, way.target
    if junction is not None:
        middle = junction.relation
        here = _foreign_key(middle, relation, _turned(junction.here))
        there = _foreign_key(middle, target, junction.there)
        return None if here is None or there is None else NestedRows(way, None, False)
    if way.function is not None:
        return None
    key = _foreign_key(relation, target, way.pairs)
    if key is not None:
        return NestedRows(way, key, True)
    key = _foreign_key(target, relation, _turned(way.pairs))
    return None if key is None else NestedRows(way, key, False)


def _foreign_key(
    relation: Relation, target: Relation, pairs: Sequence[tuple[str, str]]
) -> ForeignKey | None:
    """Return the foreign key of a table over some pairs of columns."""
    wanted = frozenset(pairs)
    home = target.schema, target.name
    return next(
        (
            key
            for key in relation.foreign_keys
            if key.target == home
            and frozenset(zip(key.columns, key.target_columns, strict=True)) == wanted
        ),
        None,
    )


def _turned(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(there, here) for here, there in pairs]
