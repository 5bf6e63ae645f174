"""
What is checked before a write is sent: the catalog's limits, then the model's rules.

A model without validations and hooks has no say, so no object is built for it. One with
them sees whole rows as objects, and may change them; what it made of a row is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.answer.served import Served
from service.catalog import Relation
from service.errors import InvalidRow, NotAuthorized
from service.models.validation import catalog_faults
from service.plan.write import refuse_names
from service.request.arguments import Values
from service.request.read import Parsed, parse_key
from service.request.types import (
    EVERYTHING,
    Assignment,
    CreateRequest,
    KeyMatch,
    Target,
    UpdateRequest,
)
from service.request.write import assignments

Breathe = Callable[[int], Awaitable[None]]
"""Called after each row, with its number."""


def refuse_faults(
    served: Served, relation: Relation, call: Parsed[CreateRequest] | Parsed[UpdateRequest]
) -> None:
    """
    Check names, NOT NULL, lengths and enums, which the catalog knows.

    Raises:
        InvalidArgument: A column is unknown, or the database alone gives it values.
        InvalidRow: With every failing column of the first failing row.
    """
    request = call.request
    if isinstance(request, CreateRequest):
        refuse_names(relation, request.rows)
        for at, row in enumerate(request.rows):
            path = f"values.{at}" if request.many else None
            _refuse(served, relation, row, call.values, path, creating=True)
    else:
        refuse_names(relation, (request.changes,))
        _refuse(served, relation, request.changes, call.values, None, creating=False)


async def admit_create(
    served: Served, relation: Relation, call: Parsed[CreateRequest], breathe: Breathe
) -> Parsed[CreateRequest]:
    """
    Have the model judge new rows; gives the call with the rows as the model left them.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        NotAuthorized: The model sets a column that is not there for the caller's role.
    """
    model = served.judge(relation)
    values = Values(call.values)
    rows = []
    for at, row in enumerate(call.request.rows):
        path = f"values.{at}" if call.request.many else "values"
        given = given_of(row, call.values)
        admitted = await model.admit_new(given, served.codec, path)
        rows.append(_merged(relation, row, given, admitted, path, values, served))
        await breathe(at)
    return replace(call, request=replace(call.request, rows=tuple(rows)), values=values.freeze())


async def admit_update(
    served: Served,
    relation: Relation,
    call: Parsed[UpdateRequest],
    current: Sequence[Mapping[str, Any]],
    breathe: Breathe,
) -> list[Parsed[UpdateRequest]]:
    """
    Have the model judge the changes of rows.

    Args:
        served: For the model and the codec.
        relation: Whose rows.
        call: The update.
        current: The rows as they are, whole, as dicts of wire values.
        breathe: Lets the reactor turn, now and then.

    Returns:
        The calls to make instead: one, unless the model made something else of each row.

    Raises:
        InvalidRow: With every failing column of the first failing row.
        NotAuthorized: The model sets a column that is not there for the caller's role.
    """
    model, changes = served.judge(relation), call.request.changes
    given = given_of(changes, call.values)
    said: list[dict[str, Any]] = []
    found: list[Parsed[UpdateRequest]] = []
    for at, row in enumerate(current):
        admitted = await model.admit_change(row, given, served.codec, "changes")
        said.append({name: served.codec.wire(value) for name, value in admitted.items()})
        values = Values(call.values)
        merged = _merged(relation, changes, given, admitted, "changes", values, served)
        target = Target(_key(relation, row, values), (), EVERYTHING)
        request = replace(call.request, target=target, changes=merged)
        found.append(replace(call, request=request, values=values.freeze()))
        await breathe(at)
    if not found:
        return [call]
    if all(each == said[0] for each in said):
        request = replace(found[0].request, target=call.request.target)
        return [replace(found[0], request=request)]
    return found


def _key(relation: Relation, row: Mapping[str, Any], values: Values) -> KeyMatch | None:
    key = [row[name] for name in relation.primary_key]
    return parse_key(key, values) if key else None


def given_of(row: Sequence[Assignment], values: Sequence[Any]) -> dict[str, Any]:
    """Give what a row says of its columns, without what it leaves to their defaults."""
    return {each.column: values[each.operand.slot] for each in row if each.operand is not None}


def made_of(
    served: Served, relation: Relation, given: Mapping[str, Any], admitted: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Give what a model made of a row, beside what it left as it was given, as wire values.

    Raises:
        NotAuthorized: A column of it is not there for the caller's role.
    """
    made = {
        name: served.codec.wire(value)
        for name, value in admitted.items()
        if name not in given or value is not given[name]
    }
    if not made.keys() <= relation.columns.keys():
        raise NotAuthorized("the database's role may not write what the model's rules set")
    return made


def _merged(
    relation: Relation,
    row: Sequence[Assignment],
    given: Mapping[str, Any],
    admitted: Mapping[str, Any],
    path: str,
    values: Values,
    served: Served,
) -> tuple[Assignment, ...]:
    """Keep what the model left alone as it came, and take over what it changed."""
    changed = made_of(served, relation, given, admitted)
    kept = tuple(each for each in row if each.column not in changed)
    return kept + assignments(changed, path, values)


def _refuse(
    served: Served,
    relation: Relation,
    row: Sequence[Assignment],
    values: Sequence[Any],
    path: str | None,
    creating: bool,
) -> None:
    given = given_of(row, values)
    left = frozenset(each.column for each in row if each.operand is None)
    faults = catalog_faults(relation, served.catalog, given, creating=creating, defaulted=left)
    if faults:
        raise InvalidRow(relation.name, faults, path)
