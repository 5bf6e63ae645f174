"""
Rows that a statement wrote or a function gave, read by the next statement of the same message.

A statement sees nothing of what it writes itself, and triggers do their work at its end. So what
is related to the rows, or made of them, is read afterwards; and so are the rows themselves where
triggers or cascades may change them once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.catalog import Column, Relation, WriteKind
from service.plan.conditions import Expression, Link, SortKey
from service.plan.plans import Output, PlannedReturning, Reread, SavedColumn
from service.plan.scope import Scope


def reread(
    scope: Scope,
    returning: PlannedReturning,
    kinds: Iterable[WriteKind],
    written: Iterable[Column] = (),
    one: bool = False,
) -> PlannedReturning:
    """
    Plan to read written rows once more, if what comes back of them may have changed meanwhile.

    Args:
        scope: Of the relation.
        returning: What comes back.
        kinds: What may happen to them.
        written: The columns that are given new values.
        one: Whether it is for one row, without which nothing at all may be kept.

    Returns:
        An equal one, if RETURNING is enough.
    """
    relation = scope.relation
    must_write = one and relation.side_effects and not relation.has_rules  # which no WITH takes
    returning = replace(returning, must_write=must_write)
    if not (returning.outputs or returning.embeds or returning.inner):
        return returning
    kinds = set(kinds)
    # A deleted row is not there to be read by its key.
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
    """Return whether values or sort keys are of related rows, or of functions that read some."""
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
    """Return columns whose values, as text, go from one statement to another."""
    # with modifiers: the text of a char(n) has no blanks at its end
    return tuple(SavedColumn(name, relation.columns[name].declared) for name in names)


def key_to_reread(relation: Relation) -> tuple[str, ...]:
    """
    Return the columns by which a row that was written is found; none where it cannot be.

    Without a `known_key`, those of another that PostgreSQL knows: there a null is not found.
    """
    if relation.known_key or not relation.auto_updatable:
        return relation.known_key  # not of a join, say, which shows the same key many times
    keys = [each.columns for each in relation.unique_keys if relation.is_unique(each.columns)]
    for key in (*keys, *relation.view_keys):
        if all(relation.columns[name].selectable for name in key):
            return key
    return ()


def row_name(relation: Relation) -> str:
    """Return a name for the column that holds the row, unlike any other."""
    name = "row"
    while name in relation.columns:
        name += "_"
    return name


def holding(returning: PlannedReturning, row: str) -> PlannedReturning:
    """
    Return a plan whose functions of the row find it in a column.

    Args:
        returning: What comes back of the rows.
        row: The name of the column.

    Returns:
        The same plan, if there are no such functions.
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
    """Return the names of the columns that the outputs, the order and the related rows go by."""
    used = [output.expression for output in returning.outputs]
    used += [key.expression for key in returning.order]
    names = [each.column.name for each in used if not each.links and each.function is None]
    links = [each.links[0] for each in used if each.links]
    links += [embed.link for embed in returning.embeds]
    links += [each.link for each in returning.inner]
    for link in links:
        names += [here for here, *_ in (link.junction.here if link.junction else link.pairs)]
    return names


def _expression(value: Expression, row: str) -> Expression:
    if value.links:
        first, *others = value.links
        return replace(value, links=(_link(first, row), *others))
    return replace(value, row=row) if value.function is not None else value


def _link(link: Link, row: str) -> Link:
    return replace(link, row=row) if link.function is not None else link
