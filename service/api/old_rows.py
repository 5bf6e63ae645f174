"""
The verb update with `returning` "old" or "both": the rows as they were, alone or beside what they are.

They are locked and read as they are answered, embeds and all, and then changed by their primary key: so
the two are of one row each, whatever the version of PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from service.api.call import Call, Step
from service.api.row_updates import match_of, missing_row, parse_rows, update_rows, write_rows
from service.api.rules import refuse_faults
from service.api.write import (
    answered,
    missing_key,
    no_rows_changed,
    of_no_row,
    paired,
    prepare_update,
    refuse_inner,
    relation_of,
)
from service.catalog import Catalog, Relation
from service.db.statements import Shape, answered_columns, by_keys_txn, keyed_txn, several_rows
from service.db.writes import NoRowWritten, Written, too_many_rows
from service.errors import InvalidArgument, NotFound
from service.plan.plans import Lock
from service.plan.read_plan import plan_get
from service.plan.write_plan import no_known_key, plan_current
from service.request.arguments import Values
from service.request.assignments import literals
from service.request.read_request import Parsed
from service.request.requests import (
    GetRequest,
    Returning,
    UpdateRequest,
    UpdateRowsRequest,
)
from service.request.write_request import parse_update
from service.sql.select import select
from service.sql.statement import Statement


def update(call: Call) -> Step | Awaitable[Any]:
    """Prepare `update`: of a row by its key, of those of a filter, or of rows each in its own way."""
    if "rows" in call.kwargs:
        return _update_rows(call)
    parsed = parse_update(call.args, call.kwargs, call.backend.limits)
    return (
        update_old(call, parsed) if parsed.request.returning.old else prepare_update(call, parsed)
    )


async def _update_rows(call: Call) -> Any:
    parsed = await parse_rows(call)
    if not parsed.request.rows:
        return no_rows_changed(call, parsed.request.returning)
    change = update_rows_old if parsed.request.returning.old else update_rows
    return await change(call, parsed)


async def update_old(call: Call, parsed: Parsed[UpdateRequest]) -> Any:
    """
    Answer `update` of the row of a key, or of those of a filter, with them as they were.

    Raises:
        TooManyRows: More than `max_affected`.
    """
    request, relation = parsed.request, relation_of(call)
    one = request.target.key is not None
    # by a key that a comment claims, rows are counted
    key = relation.known_key or (relation.primary_key if one else ())
    if not key:
        raise no_known_key(relation, "rows as they were", "returning")
    if not set(key).isdisjoint(each.column for each in request.changes):
        raise _changes_key()
    refuse_inner(request.returning)
    refuse_faults(call.snapshot, relation, parsed)
    try:
        async with call.together():
            old, keys, columns = await _locked(call, parsed, key)
            if one and not old:
                raise NoRowWritten
            if one and len(old) > 1:
                raise several_rows(len(old))
            if request.max_affected is not None and len(old) > request.max_affected:
                raise too_many_rows(len(old), request.max_affected)
            written = Written(old, 0, columns)
            if request.changes and not old:
                await _change_none(call, parsed)
            elif request.changes:
                values = Values(parsed.values)
                rows = tuple(
                    (*literals(dict(zip(key, each, strict=True)), "key", values), *request.changes)
                    for each in keys
                )
                changes = UpdateRowsRequest(rows, key, _returning(request.returning))
                of_rows = Parsed(changes, values.freeze(), parsed.timeout)
                written = _paired(old, await write_rows(call, of_rows), request.returning)
            else:
                written = _paired(old, written, request.returning)
    except NoRowWritten:
        raise await missing_key(call, parsed) from None
    return answered(replace(written, columns=columns), request.returning, not one, counted=True)


async def update_rows_old(call: Call, parsed: Parsed[UpdateRowsRequest]) -> Any:
    """Answer `update` of rows that are changed each in its own way, with them as they were."""
    request, snapshot, relation = parsed.request, call.snapshot, relation_of(call)
    if request.returning.order:
        raise InvalidArgument("these rows come in the order of the call", path="order")
    refuse_inner(request.returning)
    match, values = match_of(call, parsed)
    returning = request.returning
    asked = GetRequest(match, returning.select, returning.embeds, returning.form, many=True)
    plan = replace(plan_get(snapshot.catalog, relation, asked), lock=Lock())
    statement, shape = select(plan), Shape(returning.form, call.backend.max_bytes)
    args = (snapshot.codec, statement, values, len(request.rows), shape)
    try:
        async with call.together():
            old = await call.run(Step(by_keys_txn, (*args, True), list, parsed.timeout, "write"))
            if None in old:
                raise NotFound(relation.name, old.index(None))
            changes = replace(request, returning=_returning(returning))
            written = await write_rows(call, replace(parsed, request=changes))
    except NoRowWritten:
        raise await missing_row(call, parsed) from None
    return answered(_paired(old, written, returning), returning, many=True)


async def _change_none(call: Call, parsed: Parsed[UpdateRequest]) -> None:
    """Run changes of no row, which PostgreSQL refuses as those of one: by rights, say."""
    request = replace(parsed.request, returning=Returning(rows=False))
    step = prepare_update(call, of_no_row(replace(parsed, request=request)))
    await (call.run(step) if isinstance(step, Step) else step)


def _changes_key() -> InvalidArgument:
    return InvalidArgument(
        "rows as they were are found by their primary key, and these changes are of it",
        path="returning",
        hint="true answers the rows as they are now",
    )


async def _locked(
    call: Call, parsed: Parsed[UpdateRequest], key: tuple[str, ...]
) -> tuple[list[Any], list[Sequence[Any]], tuple[str, ...]]:
    """Lock the rows of a target; return them as they are answered, their keys, and their columns."""
    request = parsed.request
    statement = call.snapshot.statement(_lock, relation_of(call), (request, key))
    shape = Shape(request.returning.form, call.backend.max_bytes)
    args = (call.snapshot.codec, statement, parsed.values, None, shape)
    old, keys = await call.run(Step(keyed_txn, args, tuple, parsed.timeout, "write"))
    return old, keys, answered_columns(statement)


def _returning(returning: Returning) -> Returning:
    """Return what the update answers, of which the rows are put beside the old ones."""
    return replace(returning, rows=returning.old == "both", order=(), old="")


def _paired(old: Sequence[Any], written: Written, returning: Returning) -> Written:
    both = returning.old == "both"
    return replace(written, rows=paired(old, written.rows, returning.form) if both else list(old))


def _lock(
    catalog: Catalog, relation: Relation, wanted: tuple[UpdateRequest, tuple[str, ...]]
) -> Statement:
    """Build the query of the rows of an update, which are locked, and of their keys."""
    request, key = wanted
    pick = request.pick
    lock = Lock(skip_locked=pick is not None and pick.skip_locked)
    limit = pick.limit if pick else None
    return select(
        plan_current(catalog, relation, request.target, request.returning, lock, limit, key=key)
    )
