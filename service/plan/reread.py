"""
Plan to read written rows again, by a second statement of the same message.

A statement does not see its own writes, and AFTER triggers fire at its end. So related rows and computed
columns are read afterwards; and the rows themselves, too, if triggers or cascades may change them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.catalog import Column, Relation, WriteKind
from service.plan.plans import (
    Expression,
    Link,
    Output,
    PlannedReturning,
    Reread,
    SavedColumn,
    SortKey,
)
from service.plan.scope import Scope


def reread(
    scope: Scope,
    returning: PlannedReturning,
    kinds: Iterable[WriteKind],
    written: Iterable[Column] = (),
    one: bool = False,
) -> PlannedReturning:
    """
    Plan to read written rows again, if RETURNING does not suffice for the result.

    Args:
        scope: Scope of the relation.
        returning: The result of the write.
        kinds: What the statement does to rows.
        written: Columns that get new values.
        one: Whether the write is of one row, and must be undone if there is none.

    Returns:
        `returning`, with `reread` set if a second statement is needed.
    """
    relation = scope.relation
    must_write = one and relation.side_effects and not relation.has_rules  # rules do not allow WITH
    returning = replace(returning, must_write=must_write)
    if not (returning.outputs or returning.embeds or returning.inner):
        return returning
    kinds = set(kinds)
    # A deleted row cannot be read again.
    key = () if "delete" in kinds else key_to_reread(relation)
    names = {column.name for column in written}
    cascades = (
        relation.cascading_columns if relation.side_effects else relation.cascading_columns & names
    )
    moved = bool(key) and (
        bool(relation.changed_by_triggers & kinds) or ("update" in kinds and bool(cascades))
    )
    apart = returning.order or returning.embeds or returning.inner or follows(returning.outputs, ())
    if not moved and not apart:
        return returning
    fallback = moved or not key or not relation.known_key or relation.kind != "table"
    return _reread(scope, returning, key, fallback)


def follows(outputs: Iterable[Output], order: Iterable[SortKey]) -> bool:
    """Return whether values or sort keys depend on related rows or on functions that may read tables."""
    used = [each.expression for each in outputs] + [key.expression for key in order]
    return any(
        each.links or (each.function is not None and each.function.volatility != "immutable")
        for each in used
    )


def _reread(
    scope: Scope, returning: PlannedReturning, key: tuple[str, ...], fallback: bool
) -> PlannedReturning:
    relation = scope.relation
    row = ""
    if fallback:
        found = holding(returning, row_name(relation))
        row, returning = (row_name(relation) if found != returning else ""), found
    names = dict.fromkeys((*key, *(_needed(returning) if fallback else ())))
    return replace(
        returning, reread=Reread(scope.equals(key), saved_columns(relation, names), row, fallback)
    )


def saved_columns(relation: Relation, names: Iterable[str]) -> tuple[SavedColumn, ...]:
    """Return columns whose values are passed as text from one statement to another."""
    # With type modifiers, because the text of a char(n) does not have its trailing blanks.
    return tuple(SavedColumn(name, relation.columns[name].declared) for name in names)


def key_to_reread(relation: Relation) -> tuple[str, ...]:
    """
    Return the columns by which a written row is found again; empty if it cannot be found.

    Without a `known_key` these are the columns of a unique key, by which rows with nulls are not found.
    """
    if relation.known_key or not relation.auto_updatable:
        return relation.known_key  # other views, such as joins, may show a key in several rows
    keys = [each.columns for each in relation.unique_keys if relation.is_unique(each.columns)]
    for key in (*keys, *relation.view_keys):
        if all(relation.columns[name].selectable for name in key):
            return key
    return ()


def row_name(relation: Relation) -> str:
    """Return a name for the column with the entire row that no column of the relation has."""
    name = "row"
    while name in relation.columns:
        name += "_"
    return name


def holding(returning: PlannedReturning, row: str) -> PlannedReturning:
    """
    Return a result plan in which functions of the row take the row from a column.

    Args:
        returning: The result of the write.
        row: Name of the column with the entire row.

    Returns:
        An equal plan, if there are no such functions.
    """
    return replace(
        returning,
        outputs=tuple(
            replace(each, expression=_expression(each.expression, row))
            for each in returning.outputs
        ),
        order=tuple(
            replace(each, expression=_expression(each.expression, row)) for each in returning.order
        ),
        embeds=tuple(replace(each, link=_link(each.link, row)) for each in returning.embeds),
        inner=tuple(replace(each, link=_link(each.link, row)) for each in returning.inner),
    )


def _needed(returning: PlannedReturning) -> list[str]:
    """Return the names of the columns that outputs, order and links to related rows use."""
    used = [output.expression for output in returning.outputs]
    used += [key.expression for key in returning.order]
    names = [each.column.name for each in used if not each.links and each.function is None]
    links = [each.links[0] for each in used if each.links]
    links += [embed.link for embed in returning.embeds]
    links += [each.link for each in returning.inner]
    for link in links:
        names += [name for name, *_ in (link.junction.outer_pairs if link.junction else link.pairs)]
    return names


def _expression(value: Expression, row: str) -> Expression:
    if value.links:
        first, *others = value.links
        return replace(value, links=(_link(first, row), *others))
    return replace(value, row=row) if value.function is not None else value


def _link(link: Link, row: str) -> Link:
    return replace(link, row=row) if link.function is not None else link
