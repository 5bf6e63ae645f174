"""
Imports and the catalog to plans of a COPY.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.catalog import Catalog, Column, Relation
from service.errors import InvalidArgument
from service.plan.conflict import plan_conflict
from service.plan.expressions import Scope
from service.plan.veiled import is_veiled
from service.plan.writable import writable
from service.plan.writes import Conflict
from service.request.types import Assignment, OnConflict


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """
    Rows on their way into a relation.

    Args:
        relation: Where they go.
        columns: What they are made of, in their order.
        csv: Whether they come as CSV, or as COPY's own text.
        header: Whether the CSV has a header.
        conflict: What becomes of those that are there already; None if that is an error.
        staged: Whether they go through a temporary table, because COPY cannot do it.
    """

    relation: Relation
    columns: tuple[Column, ...]
    csv: bool
    header: bool
    conflict: Conflict | None
    staged: bool


def plan_import(
    catalog: Catalog,
    relation: Relation,
    names: Sequence[tuple[str, str]],
    csv: bool,
    header: bool,
    on_conflict: OnConflict | None,
) -> ImportPlan:
    """
    Plan `import`.

    Args:
        catalog: For keys and types.
        relation: Where the rows go.
        names: Of the columns, each with the path to where it is named.
        csv: Whether the rows come as CSV.
        header: Whether it has a header.
        on_conflict: What becomes of those that are there already.

    Raises:
        InvalidArgument: A column is unknown, named twice or made by the database; or there is
            no such key.
    """
    named: dict[str, Column] = {}
    for name, path in names:
        if name in named:
            raise InvalidArgument(f'"{name}" is named twice', path=path, column=name)
        named[name] = column = writable(relation, name, path)
        if csv and is_veiled(catalog, column.type):
            raise InvalidArgument(
                f'"{name}" has fields that are hidden, so that it cannot be given as text',
                path=path,
                column=name,
                hint="import rows, with dicts for such values",
            )
        if csv and catalog.looks_up(catalog.type(column.type)):
            raise InvalidArgument(
                f'"{name}" holds names that PostgreSQL looks up, so that it cannot be given as text',
                path=path,
                column=name,
                hint="import rows",
            )
    conflict = None
    if on_conflict is not None:
        row = tuple(Assignment(name, None, name) for name in named)
        conflict = plan_conflict(Scope(catalog, relation), on_conflict, [row])
    # COPY has no ON CONFLICT, cannot tell what a policy would say, and knows no view's rules
    staged = conflict is not None or relation.row_security or relation.kind == "view"
    return ImportPlan(relation, tuple(named.values()), csv, header, conflict, staged)
