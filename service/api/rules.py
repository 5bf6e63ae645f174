"""
What the catalog and the models say of rows, before they are written.

A model without validations and hooks builds no objects; one with them sees rows as objects and may
change them; what it made of a row is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.api.call import Snapshot
from service.catalog import Relation
from service.errors import InvalidRow, NotAuthorized
from service.models.validation import catalog_faults
from service.plan.write_plan import refuse_names
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
from service.request.write_request import (
    assignments,
)

Pause = Callable[[int], Awaitable[None]]
"""Called after each row, with its number: lets the reactor run now and then."""


def refuse_faults(
    snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest] | Parsed[UpdateRequest]
) -> None:
    """
    Check names, NOT NULL, lengths and enums, which the catalog knows.

    Raises:
        InvalidArgument: A column is unknown, or the database alone sets it.
        InvalidRow: With every failing column of the first failing row.
    """
    request = call.request
    if isinstance(request, CreateRequest):
        # Names first: a misspelled one is told of, not the column that it was meant for.
        refuse_names(relation, request.rows)
        for at, row in enumerate(request.rows):
            path = f"values.{at}" if request.many else None
            _refuse(snapshot, relation, row, call.values, path, creating=True)
    else:
        refuse_names(relation, (request.changes,))
        _refuse(snapshot, relation, request.changes, call.values, None, creating=False)


def _refuse(
    snapshot: Snapshot,
    relation: Relation,
    row: Sequence[Assignment],
    values: Sequence[Any],
    path: str | None,
    creating: bool,
) -> None:
    given = given_of(row, values)
    left = frozenset(each.column for each in row if each.operand is None)
    faults = catalog_faults(relation, snapshot.catalog, given, creating=creating, defaulted=left)
    if faults:
        raise InvalidRow(relation.name, faults, path)


async def validate_new_rows(
    snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest], pause: Pause
) -> Parsed[CreateRequest]:
    """
    Validate new rows by the model; return the call with the rows as the model left them.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        NotAuthorized: The model sets a column that is not there for the caller's role.
    """
    model = snapshot.model(relation)
    values = Values(call.values)
    rows = []
    for at, row in enumerate(call.request.rows):
        path = f"values.{at}" if call.request.many else "values"
        given = given_of(row, call.values)
        validated = await model.validate_insert(given, snapshot.codec, path)
        rows.append(_merged(relation, row, given, validated, path, values, snapshot))
        await pause(at)
    return replace(call, request=replace(call.request, rows=tuple(rows)), values=values.freeze())


async def validate_changes(
    snapshot: Snapshot,
    relation: Relation,
    call: Parsed[UpdateRequest],
    current: Sequence[Mapping[str, Any]],
    pause: Pause,
) -> list[Parsed[UpdateRequest]]:
    """
    Validate the changes of rows by the model.

    Args:
        snapshot: For the model and the codec.
        relation: Whose rows.
        call: The update.
        current: The rows as they are, whole, as dicts of wire values.
        pause: Lets the reactor run.

    Returns:
        The calls to make instead: one, unless the model made something else of each row.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        NotAuthorized: The model sets a column that is not there for the caller's role.
    """
    model, changes = snapshot.model(relation), call.request.changes
    given = given_of(changes, call.values)
    results: list[dict[str, Any]] = []
    found: list[Parsed[UpdateRequest]] = []
    for at, row in enumerate(current):
        validated = await model.validate_update(row, given, snapshot.codec, "changes")
        results.append({name: snapshot.codec.wire(value) for name, value in validated.items()})
        values = Values(call.values)
        merged = _merged(relation, changes, given, validated, "changes", values, snapshot)
        target = Target(_key(relation, row, values), (), EVERYTHING)
        request = replace(call.request, target=target, changes=merged)
        found.append(replace(call, request=request, values=values.freeze()))
        await pause(at)
    if not found:
        return [call]
    if all(each == results[0] for each in results):
        request = replace(found[0].request, target=call.request.target)
        # Made the same of all: one statement for the whole target, instead of one for each row.
        return [replace(found[0], request=request)]
    return found


def given_of(row: Sequence[Assignment], values: Sequence[Any]) -> dict[str, Any]:
    """Return a row's values by column, without those left to the defaults."""
    return {each.column: values[each.operand.slot] for each in row if each.operand is not None}


def made_of(
    snapshot: Snapshot, relation: Relation, given: Mapping[str, Any], validated: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Return, as wire values, the columns of a row that its model has set or changed.

    Raises:
        NotAuthorized: A column of it is not there for the caller's role.
    """
    made = {
        name: snapshot.codec.wire(value)
        for name, value in validated.items()
        # By identity, since 1 == True == 1.0: what the model left alone goes on as it came.
        if name not in given or value is not given[name]
    }
    if not made.keys() <= relation.columns.keys():
        raise NotAuthorized("the database's role may not write what the model's rules set")
    return made


def _merged(
    relation: Relation,
    row: Sequence[Assignment],
    given: Mapping[str, Any],
    validated: Mapping[str, Any],
    path: str,
    values: Values,
    snapshot: Snapshot,
) -> tuple[Assignment, ...]:
    """Keep what the model left alone as it came, and take over what it changed."""
    changed = made_of(snapshot, relation, given, validated)
    kept = tuple(each for each in row if each.column not in changed)
    return kept + assignments(changed, path, values)


def _key(relation: Relation, row: Mapping[str, Any], values: Values) -> KeyMatch | None:
    key = [row[name] for name in relation.primary_key]
    return parse_key(key, values) if key else None
