"""
What the catalog alone says against a row, before the database is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from service.catalog import Catalog, Column, Relation
from service.errors import clip


def catalog_faults(
    relation: Relation,
    catalog: Catalog,
    values: Mapping[str, Any],
    creating: bool,
    defaulted: Collection[str] = (),
) -> dict[str, list[str]]:
    """
    Find the columns whose values cannot stay: NULL, too long, no label of the enum.

    Args:
        relation: Whose row it is.
        catalog: For its types.
        values: Wire values, or Python's, by column.
        creating: Whether it is a new row, so that a column that is not given must have a
            default. Where a trigger may fill it in, only the database can tell.
        defaulted: Columns that are to take their default, and so have no value.

    Returns:
        Reasons by column, worded to follow the column's name.
    """
    found = {}
    fillable = creating and relation.filled
    for name, column in relation.columns.items():
        if name in values:
            reasons = list(_reasons(catalog, column, values[name], fillable))
        elif fillable:
            continue
        elif creating and not column.nullable and not column.has_default:
            reasons = ["is required"]
        elif name in defaulted and not column.nullable and not column.has_default:
            reasons = ["has no default"]
        else:
            continue
        if reasons:
            found[name] = reasons
    return found


def _reasons(catalog: Catalog, column: Column, value: Any, fillable: bool) -> Iterator[str]:
    if value is None:
        if not column.nullable and not fillable:
            yield "may not be null"
        return
    if not isinstance(value, str):
        return
    limit = column.max_length
    # PostgreSQL cuts spaces off the end to make a value fit.
    if limit is not None and value[limit:].strip(" "):
        yield f"is longer than {limit} characters"
    type = catalog.plain(catalog.type(column.type))
    if type.kind == "enum" and value not in type.labels:
        yield f"is none of {clip(', '.join(type.labels), 300)}"
