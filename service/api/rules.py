"""
Checks rows before they are written: against the catalog, and by the validations and hooks of their model.

A model without validations and hooks builds no objects. Otherwise each row becomes an object, which a hook
may change, and the changed row is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from service.api.call import Snapshot
from service.catalog import Catalog, Column, Relation
from service.db.writes import refuse_unrelated
from service.errors import InvalidRow, NotAuthorized, clip
from service.plan.nested_rows import LinkedKey, LinkedRow, NewRows, TreeStep
from service.plan.write_plan import no_known_key, refuse_names
from service.request.arguments import Values
from service.request.read_request import Parsed, parse_key
from service.request.requests import (
    EVERYTHING,
    Assignment,
    CreateRequest,
    KeyMatch,
    Target,
    UpdateRequest,
)
from service.request.row_values import literals

FEW = 20
"""Rows that a model validates without a pause: each takes some 20 µs of the reactor thread."""

Right = Literal["insertable", "updatable", "deletable"]
"""The attribute of a relation, and of its columns, that says whether the caller's role may do so."""

Pause = Callable[[int], Awaitable[None]]
"""Called with the number of each row that was validated; yields to the reactor at intervals."""


def refuse_faults(
    snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest] | Parsed[UpdateRequest]
) -> None:
    """
    Check names, NOT NULL, lengths and enums against the catalog.

    Raises:
        InvalidArgument: A column is unknown, or only the database sets it.
        InvalidRow: With every failing column of the first failing row.
    """
    request, values = call.request, call.values
    # Names first, so that a misspelled column is reported, not the NOT NULL column that it was meant for.
    if isinstance(request, CreateRequest):
        refuse_names(relation, request.rows)
        if request.many:
            refuse_new_rows(snapshot, relation, request.rows, request.paths, values)
        else:
            refuse_row(snapshot, relation, request.rows[0], values, None, True, alone=True)
        if request.conflict is not None and request.conflict.changes:
            changes = request.conflict.changes
            refuse_names(relation, (changes,))
            refuse_row(snapshot, relation, changes, values, "update", creating=False)
    else:
        refuse_names(relation, (request.changes,))
        refuse_row(snapshot, relation, request.changes, values, None, False, alone=True)


def refuse_new_rows(
    snapshot: Snapshot,
    relation: Relation,
    rows: Sequence[Sequence[Assignment]],
    paths: Sequence[str | None],
    values: Sequence[Any],
) -> None:
    """Check new rows as `refuse_faults` does, except for names; `paths` are their places in the call."""
    for path, row in zip(paths, rows, strict=True):
        refuse_row(snapshot, relation, row, values, path, creating=True)


def refuse_row(
    snapshot: Snapshot,
    relation: Relation,
    row: Sequence[Assignment],
    values: Sequence[Any],
    path: str | None,
    creating: bool,
    alone: bool = False,
) -> None:
    """
    Check NOT NULL, lengths and enums of one row.

    Args:
        snapshot: Has the types and the model.
        relation: The relation of the row.
        row: The row, or its changes.
        values: The values of the call, by slot.
        path: The place of the row in the call, if the call has several.
        creating: Whether the row is new.
        alone: Whether it is the only row of the call, which is then parsed in the reactor thread. If it
            fails, the refusal also has the reasons of the model's validations, as far as they are known.

    Raises:
        InvalidRow: With every failing column.
        NotAuthorized: The row fails, and the caller's role may not write it.
    """
    given = given_of(row, values)
    left = frozenset(each.column for each in row if each.operand is None)
    faults = catalog_faults(relation, snapshot.catalog, given, creating=creating, defaulted=left)
    if not faults:
        return
    model = snapshot.model(relation)
    if alone and model.has_rules(creating):
        check_right(relation, "insertable" if creating else "updatable", given)
        found = model.reasons_at_once(given, snapshot.codec, creating)
        for name, reasons in _shown(snapshot, relation, found).items():
            faults[name] = [*faults.get(name, ()), *reasons]
    raise InvalidRow(relation.name, faults, path)


def catalog_faults(
    relation: Relation,
    catalog: Catalog,
    values: Mapping[str, Any],
    creating: bool,
    defaulted: Collection[str] = (),
) -> dict[str, list[str]]:
    """
    Find the columns whose values PostgreSQL would refuse: NULL, too long, or no label of the enum.

    Args:
        relation: The relation of the row.
        catalog: Has the types of its columns.
        values: Wire values, or Python values, by column.
        creating: Whether the row is new, so that a column without a value needs a default. If a BEFORE
            trigger may set columns, that is left to the database.
        defaulted: Columns that are set to their default.

    Returns:
        Reasons by column, worded to follow the column's name.
    """
    found = {}
    fillable = creating and "insert" in relation.before_triggers
    for name, column in relation.columns.items():
        if name in values:
            value = values[name]
            # First the cheap test, since this runs for each value of each new row.
            if value is not None and not isinstance(value, str):
                continue
            reasons = list(_faults(catalog, column, value, fillable))
        elif column.nullable or column.has_default or fillable:
            continue
        elif creating:
            reasons = ["is required"]
        elif name in defaulted:
            reasons = ["has no default"]
        else:
            continue
        if reasons:
            found[name] = reasons
    return found


def _faults(catalog: Catalog, column: Column, value: Any, fillable: bool) -> Iterator[str]:
    if value is None:
        if not column.nullable and not fillable:
            yield "may not be null"
        return
    limit = column.max_length
    # PostgreSQL truncates trailing spaces to make a value fit.
    if limit is not None and value[limit:].strip(" "):
        yield f"is longer than {limit} characters"
    type = catalog.plain(catalog.type(column.type))
    if type.kind == "enum" and value not in type.labels:
        yield f"is none of {clip(', '.join(type.labels), 300)}"


async def validate_new_rows(
    snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest], pause: Pause
) -> Parsed[CreateRequest]:
    """Validate new rows by the model; return the call with the rows as the model left them."""
    paths = [path or "values" for path in call.request.paths]
    rows, values = await validated_rows(
        snapshot, relation, call.request.rows, paths, call.values, pause
    )
    return replace(call, request=replace(call.request, rows=rows), values=values)


async def validated_rows(
    snapshot: Snapshot,
    relation: Relation,
    rows: Sequence[Sequence[Assignment]],
    paths: Sequence[str],
    values: Sequence[Any],
    pause: Pause,
) -> tuple[tuple[tuple[Assignment, ...], ...], tuple[Any, ...]]:
    """
    Validate new rows, with their paths in the call, by the model.

    Returns:
        The rows as the model left them, and the values of the call, extended by those that it has set.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        NotAuthorized: The model sets a column that the caller's role may not use.
    """
    known = Values(values)
    found = []
    for at, (path, row) in enumerate(zip(paths, rows, strict=True)):
        made = await set_by_model(snapshot, relation, given_of(row, values), path)
        found.append(merged(row, made, path, known))
        await pause(at)
    return tuple(found), known.freeze()


async def validated_steps(
    snapshot: Snapshot, steps: Sequence[TreeStep], values: Sequence[Any], pause: Pause
) -> tuple[tuple[TreeStep, ...], tuple[Any, ...]]:
    """
    Validate the rows of the steps of nested rows by their models, in order.

    Returns:
        The steps as the models left them, and the values, extended by those that the models have set.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        InvalidArgument: A row would not be related to the row that it is nested in.
        NotAuthorized: A model sets a column that the caller's role may not use.
    """
    found: list[TreeStep] = []
    linked: dict[tuple[Relation, str], dict[str, Any]] = {}
    for step in steps:
        if step.needs_model:
            assert not isinstance(step, LinkedKey)
            refuse_unrelated(step, values)
        if isinstance(step, NewRows) and step.needs_model:
            rows, values = await validated_rows(
                snapshot, step.relation, step.rows, step.paths, values, pause
            )
            step = replace(step, rows=rows)
        elif isinstance(step, LinkedRow) and step.row is not None:
            row = {
                n: values[slot]
                for n, slot in zip(step.row.columns, step.row.filled[0], strict=True)
            }
            # A row may be linked by two foreign keys; the second change applies to the result of the first.
            key = step.relation, str([row[name] for name in step.relation.primary_key])
            step, values, changed = await _validated_link(
                snapshot, step, row | linked.get(key, {}), values
            )
            linked[key] = linked.get(key, {}) | changed
        found.append(step)
    return tuple(found), tuple(values)


async def _validated_link(
    snapshot: Snapshot, step: LinkedRow, row: Mapping[str, Any], values: Sequence[Any]
) -> tuple[LinkedRow, tuple[Any, ...], dict[str, Any]]:
    """Validate by its model how a link changes a row; return the changes by column as well."""
    given, known = given_of(step.changes, values), Values(values)
    made = await set_by_model(snapshot, step.relation, given, step.path, row)
    changes = merged(step.changes, made, step.path, known)
    return replace(step, changes=changes), known.freeze(), given | made


def accept_new_rows(snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest]) -> bool:
    """
    Return whether the model accepts new rows unchanged, without a Deferred to wait for.

    Raises:
        NotAuthorized: The caller's role may not create such rows.
    """
    # Rules that need only the given values then cost a create neither a coroutine nor a transaction.
    model = snapshot.model(relation)
    if len(call.request.rows) > FEW:
        return False
    rows = [given_of(row, call.values) for row in call.request.rows]
    for row in rows:
        check_right(relation, "insertable", row)
    return all(model.accepts_new(row, snapshot.codec) for row in rows)


def accepts_without_reading(
    snapshot: Snapshot, relation: Relation, call: Parsed[UpdateRequest]
) -> bool:
    """
    Return whether the model accepts changes of one row without reading the row.

    Raises:
        NotAuthorized: The caller's role may not change these columns.
    """
    request, given = call.request, given_of(call.request.changes, call.values)
    check_right(relation, "updatable", (each.column for each in request.changes))
    # Only the database knows values that it computes, and defaults.
    if request.target.key is None or len(given) < len(request.changes):
        return False
    return snapshot.model(relation).accepts_unseen(given, snapshot.codec)


async def validate_changes(
    snapshot: Snapshot,
    relation: Relation,
    call: Parsed[UpdateRequest],
    current: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    pause: Pause,
) -> list[Parsed[UpdateRequest]]:
    """
    Validate the changes of rows by the model.

    Args:
        snapshot: Has the model and the codec.
        relation: The relation of the rows.
        call: The update.
        current: Each row, complete, with its computed new values; both are dicts of wire values.
        pause: Yields to the reactor.

    Returns:
        The updates to run instead: one for the target if the model made the same changes of all its rows;
        one for each row if not, or if `limit` or `skip_locked` picks rows of the target.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        InvalidArgument: Each row needs its own update, and PostgreSQL knows no key of the rows.
        NotAuthorized: The model sets a column that the caller's role may not use.
    """
    changes = call.request.changes
    plain = changed_of(changes, call.values)
    results: list[dict[str, Any]] = []
    found: list[Parsed[UpdateRequest]] = []
    for at, (row, computed) in enumerate(current):
        made = await set_by_model(snapshot, relation, {**plain, **computed}, "changes", row)
        results.append(made)
        values = Values(call.values)
        changes_made = merged(changes, made, "changes", values)
        target = Target(_key(relation, row, values), (), EVERYTHING)
        request = replace(call.request, target=target, changes=changes_made, pick=None)
        found.append(replace(call, request=request, values=values.freeze()))
        await pause(at)
    if not found:
        return [call]
    if call.request.pick is None and all(each == results[0] for each in results):
        request = replace(found[0].request, target=call.request.target)
        # The same changes for all rows: one statement for the target instead of one for each row.
        return [replace(found[0], request=request)]
    if not relation.known_key:
        raise no_known_key(relation, "rows that a model changes one by one", "changes")
    return found


@contextmanager
def hiding_columns(snapshot: Snapshot, relation: Relation) -> Iterator[None]:
    """Leave out of a model's refusal, in the body, the names of columns that the role may not use."""
    try:
        yield
    except InvalidRow as refusal:
        if refusal.details["relation"] != relation.name:  # of a row that a hook has saved
            raise
        fields = _shown(snapshot, relation, refusal.details["fields"])
        raise InvalidRow(relation.name, fields, refusal.details.get("path")) from None


def _shown(
    snapshot: Snapshot, relation: Relation, fields: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Return the reasons by column, with "*" for each column that the caller's role may not use."""
    every = snapshot.model(relation).meta.relation.columns
    found: dict[str, list[str]] = {}
    for name, reasons in fields.items():
        hidden = name in every and name not in relation.columns
        found.setdefault("*" if hidden else name, []).extend(reasons)
    return found


def check_right(relation: Relation, right: Right, columns: Iterable[str] = ()) -> None:
    """
    Refuse a write that the caller's role may not make, before a rule refuses it for another reason.

    A rule may read a row that the role cannot write, and its message may tell of that row.

    Args:
        relation: The relation, as the role may use it.
        right: The right that the relation, and each of the columns, must have.
        columns: The columns that the call gives.

    Raises:
        NotAuthorized: The role lacks it; as PostgreSQL refuses the write.
    """
    if not all(getattr(each, right) for each in (relation, *map(relation.columns.get, columns))):
        refused = "the database's role may not do this"
        raise NotAuthorized(refused, relation=relation.name, sqlstate="42501")


def given_of(row: Sequence[Assignment], values: Sequence[Any]) -> dict[str, Any]:
    """Return the values of a row by column, without defaults and computed values."""
    return {
        each.column: values[each.operand.slot]
        for each in row
        if each.operand is not None and not each.computes
    }


def changed_of(changes: Sequence[Assignment], values: Sequence[Any]) -> dict[str, Any]:
    """Return the values of changes by column; None for defaults, which rules see as in a new row."""
    defaults = {each.column: None for each in changes if each.operand is None}
    return defaults | given_of(changes, values)


async def set_by_model(
    snapshot: Snapshot,
    relation: Relation,
    given: Mapping[str, Any],
    path: str,
    current: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Validate a new row, or changes of a current one, by the model.

    Args:
        snapshot: Has the model and the codec.
        relation: The relation of the row.
        given: Wire values by column: those of the new row, or those that change.
        path: The place of the row in the call.
        current: The wire values of the row before the changes, by column; None if the row is new.

    Returns:
        The columns that the model has set or changed, as wire values.

    Raises:
        InvalidRow: With every failing column.
        NotAuthorized: The caller's role may not write a column that is given or that the model has set, or
            not read one that a rule has read.
    """
    check_right(relation, "insertable" if current is None else "updatable", given)
    model, codec = snapshot.model(relation), snapshot.codec
    with hiding_columns(snapshot, relation):
        validated = await model.validate(given, codec, path, current)
    made = {
        name: codec.wire(value)
        for name, value in validated.items()
        # By identity, since 1 == True == 1.0: a value that the model left alone keeps its wire form.
        if name not in given or value is not given[name]
    }
    if not made.keys() <= relation.columns.keys():
        raise NotAuthorized("the database role may not write a column that the model sets")
    return made


def merged(
    row: Sequence[Assignment], made: Mapping[str, Any], path: str, values: Values
) -> tuple[Assignment, ...]:
    """Return the assignments of a row, with those of the model in place of the ones that it changed."""
    kept = tuple(each for each in row if each.column not in made)
    return kept + literals(made, path, values)


def _key(relation: Relation, row: Mapping[str, Any], values: Values) -> KeyMatch | None:
    key = {name: row[name] for name in relation.known_key}
    return parse_key(key, values) if key else None
