"""
Plan the result of a write: rows of RETURNING, or rows read again by a second statement of the same message.

A statement does not see its own writes, and AFTER triggers fire at its end. So related rows and computed
columns are read afterwards; and the rows themselves, too, if triggers or cascades may change them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from service.catalog import Catalog, Column, Relation, WriteKind
from service.plan.clauses import inner_conditions, sort_keys
from service.plan.plans import (
    Expression,
    Link,
    Output,
    PlannedReturning,
    Reread,
    SavedColumn,
    SortKey,
)
from service.plan.read_plan import plan_rows
from service.plan.scope import Scope, as_json
from service.request.requests import Returning


def plan_result(scope: Scope, returning: Returning) -> PlannedReturning:
    """Plan the rows of a result, as RETURNING gives them."""
    if not returning.rows:
        return PlannedReturning(receipt=returning.receipt)
    outputs, embeds = plan_rows(scope, returning.select, returning.embeds)
    # Apart, not in a WHERE: rows without a match are left out of the result, but were written and are counted.
    inner = inner_conditions(scope, returning.embeds)
    json = as_json(scope.catalog, returning.form, outputs, embeds)
    order = sort_keys(scope, returning.order)
    receipt = returning.receipt
    return PlannedReturning(outputs, order, embeds, inner, json=json, receipt=receipt)


def plan_returning(
    scope: Scope,
    request: Returning,
    kinds: Iterable[WriteKind],
    written: Iterable[Column] = (),
    one: bool = False,
) -> PlannedReturning:
    """
    Plan the result of a write; its rows are read again if RETURNING does not suffice.

    Args:
        scope: Scope of the relation.
        request: What the call asks for.
        kinds: What the statement does to rows.
        written: Columns that get new values.
        one: Whether the write is of one row, and must be undone if there is none.
    """
    relation = scope.relation
    must_write = one and relation.side_effects and not relation.has_rules  # rules do not allow WITH
    returning = replace(plan_result(scope, request), must_write=must_write)
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
    return _read_again(scope, returning, key, fallback)


def plan_answer(
    catalog: Catalog, relation: Relation, returning: Returning, key: tuple[str, ...]
) -> PlannedReturning:
    """Plan the result of a nested create: the call's rows, read again by their keys at the end."""
    scope = Scope(catalog, relation, returning.embeds)
    reread = Reread(scope.equals(key), saved_columns(relation, key), "", fallback=False)
    return replace(plan_result(scope, returning), reread=reread)


def follows(outputs: Iterable[Output], order: Iterable[SortKey]) -> bool:
    """Return whether values or sort keys depend on related rows or on functions that may read tables."""
    used = [each.expression for each in outputs] + [key.expression for key in order]
    return any(
        each.links or (each.function is not None and each.function.volatility != "immutable")
        for each in used
    )


def _read_again(
    scope: Scope, returning: PlannedReturning, key: tuple[str, ...], fallback: bool
) -> PlannedReturning:
    relation = scope.relation
    row = ""
    if fallback:
        found = _with_saved_row(returning, _row_name(relation))
        row, returning = (_row_name(relation) if found != returning else ""), found
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
    # Not a key that only the comment of a view claims: several rows may have it, or it may be null.
    if relation.known_key or not relation.auto_updatable:
        return relation.known_key  # other views, such as joins, may show a key in several rows
    keys = [each.columns for each in relation.unique_keys if relation.is_unique(each.columns)]
    for key in (*keys, *relation.view_keys):
        if all(relation.columns[name].selectable for name in key):
            return key
    return ()


def _row_name(relation: Relation) -> str:
    """Return a name for the column with the entire row that no column of the relation has."""
    name = "row"
    while name in relation.columns:
        name += "_"
    return name


def _with_saved_row(returning: PlannedReturning, row: str) -> PlannedReturning:
    """
    Return a result plan in which functions of the row take the row from a column.

    Args:
        returning: The result of the write.
        row: Name of the column with the entire row.

    Returns:
        An equal plan, if there are no such functions.
    """

    def of_link(link: Link) -> Link:
        return link if link.function is None else replace(link, row=row)

    def of_value(value: Expression) -> Expression:
        if value.links:
            return replace(value, links=(of_link(value.links[0]), *value.links[1:]))
        return value if value.function is None else replace(value, row=row)

    outputs = (replace(each, expression=of_value(each.expression)) for each in returning.outputs)
    order = (replace(each, expression=of_value(each.expression)) for each in returning.order)
    embeds = (replace(each, link=of_link(each.link)) for each in returning.embeds)
    inner = (replace(each, link=of_link(each.link)) for each in returning.inner)
    return replace(
        returning,
        outputs=tuple(outputs),
        order=tuple(order),
        embeds=tuple(embeds),
        inner=tuple(inner),
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
