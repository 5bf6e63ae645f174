"""
The verb update, and what `write` does not do of it: different changes for each row (`update(rows=[…],
by=[…])`), and `returning` "old" or "both".

Old rows are locked and read in the form of the answer, with embeds, and then updated by their primary key.
This pairs each old row with its new one in every version of PostgreSQL; RETURNING OLD came with 18.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.api.call import Call, Step, as_is
from service.api.rules import (
    changed_of,
    given_of,
    merged,
    refuse_faults,
    refuse_row,
    set_by_model,
)
from service.api.write import (
    MANY,
    UNBOUNDED,
    answered,
    missing_key,
    no_rows_changed,
    of_no_row,
    paired,
    prepare_update,
    refuse_inner,
    refuse_related_rows,
    relation_of,
    write_step,
)
from service.catalog import Catalog, Relation
from service.db.statements import (
    Shape,
    answered_columns,
    by_keys_txn,
    compute_txn,
    rows_and_keys_txn,
    several_rows,
)
from service.db.writes import NoRowWritten, Written, too_many_rows
from service.errors import InvalidArgument, NotChanged, NotFound, ServiceError
from service.plan.plans import Lock
from service.plan.read_plan import plan_get
from service.plan.update_rows import key_of_rows, plan_update_rows, split_row
from service.plan.write_plan import no_known_key, plan_current, refuse_names
from service.request.arguments import Referenced, Values
from service.request.read_request import Parsed, null_in_key
from service.request.requests import (
    GetRequest,
    Item,
    KeyMatch,
    Operand,
    Reference,
    Returning,
    UpdateRequest,
    UpdateRowsRequest,
)
from service.request.row_values import RowsArgument, literals
from service.request.write_request import parse_update, parse_update_rows
from service.sql.modify import lock_rows, modify
from service.sql.select import select
from service.sql.statement import Statement

ParsedRows = Parsed[UpdateRowsRequest]


def update(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `update`: of a row by its key, of a filter, or of rows with different changes.

    Raises:
        InvalidArgument: It has related rows among the changes.
    """
    argument = ("rows", None) if "rows" in call.kwargs else ("changes", 1)
    refuse_related_rows(call, RowsArgument(call.args, call.kwargs, *argument), "an update")
    if "rows" in call.kwargs:
        return _update_rows(call)
    parsed = parse_update(call.args, call.kwargs, call.backend.limits)
    return (
        update_old(call, parsed) if parsed.request.returning.old else prepare_update(call, parsed)
    )


async def _update_rows(call: Call) -> Any:
    parsed = await _parse_rows(call)
    if not parsed.request.rows:
        return no_rows_changed(call, parsed.request.returning)
    change = update_rows_old if parsed.request.returning.old else update_rows
    return await change(call, parsed)


async def _parse_rows(call: Call) -> ParsedRows:
    """Parse and check an `update` with different changes for each row."""
    given = call.kwargs["rows"]
    if isinstance(given, list | tuple | Referenced) and len(given) > MANY:
        parsed: ParsedRows = await call.backend.database.run(
            compute_txn, _prepare, call, retry=True
        )
        return parsed
    return _prepare(call)


async def update_rows(call: Call, parsed: ParsedRows) -> Any:
    """
    Answer an `update` with different changes for each row: the rows, in the order of the call.

    Raises:
        NotFound: With the number of the first row that does not exist; nothing is written.
        InvalidRow: The model or the catalog refuses a row.
    """
    try:
        if not _reads_first(call, parsed):
            written = await write_rows(call, parsed)
        else:
            async with call.transaction():
                written = await write_rows(call, parsed)
    except NoRowWritten:
        raise await missing_row(call, parsed) from None
    return answered(written, parsed.request.returning, many=True)


async def write_rows(call: Call, parsed: ParsedRows) -> Written:
    """
    Write rows. It needs a transaction around it if `_reads_first`.

    Raises:
        NoRowWritten: A row was not written.
        TooManyRows: A key is that of several rows.
    """
    if call.snapshot.model(relation_of(call)).has_rules(creating=False):
        parsed = await _validated(call, parsed)
    elif _reads_first(call, parsed):
        await _locked(call, parsed)
    written: Written = await call.run(_changing(call, parsed))
    return written


def _prepare(call: Call) -> ParsedRows:
    snapshot, relation = call.snapshot, relation_of(call)
    parsed = parse_update_rows(call.args, call.kwargs, call.backend.limits)
    request = parsed.request
    key = key_of_rows(snapshot.catalog, relation, request.by)
    split = [split_row(key, row, f"rows.{at}") for at, row in enumerate(request.rows)]
    refuse_names(relation, (changes for _, changes in split))
    # With UNIQUE NULLS NOT DISTINCT a null in the key could match one row, but `=` never finds that row.
    for at, (of_key, changes) in enumerate(split):
        for each in of_key:
            if each.operand is not None and parsed.values[each.operand.slot] is None:
                raise null_in_key(each.path, each.column)
        refuse_row(snapshot, relation, changes, parsed.values, f"rows.{at}", creating=False)
    if split and not any(changes for _, changes in split):
        raise InvalidArgument("no row names a column that changes", path="rows")
    return parsed


def _changing(call: Call, parsed: ParsedRows) -> Step:
    request = parsed.request
    make = partial(_update_rows_statement, call.snapshot.catalog, relation_of(call), request)
    return write_step(call, parsed, make, request.max_affected, len(request.rows), as_is)


def _reads_first(call: Call, parsed: ParsedRows) -> bool:
    """
    Return whether rows are locked and read before they are written.

    They are if a model validates them, or if only a comment declares their key, which may be of several rows.
    """
    relation = relation_of(call)
    key = key_of_rows(call.snapshot.catalog, relation, parsed.request.by)
    ruled = call.snapshot.model(relation).has_rules(creating=False)
    return ruled or not relation.is_unique(key)


async def _locked(
    call: Call, parsed: ParsedRows
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """
    Lock the rows, one for each key; return each with its computed new values by column.

    With the rows locked, an update that writes more of them shows that another row has one of the keys.
    """
    plan = plan_update_rows(call.snapshot.catalog, relation_of(call), parsed.request)
    args = (call.snapshot.codec, lock_rows(plan), parsed.values, None, Shape("dicts", UNBOUNDED))
    rows, behind = await call.run(
        Step(rows_and_keys_txn, args, timeout=parsed.timeout, access="write")
    )
    if len({number for number, *_ in behind}) < len(behind):
        raise several_rows(len(rows), len(parsed.request.rows))
    if len(rows) < len(parsed.request.rows):
        raise NoRowWritten
    computed = [each.column.name for each in plan.settings if each.computes]
    return [
        (row, dict(zip(computed, values, strict=True)))
        for row, (_, *values) in zip(rows, behind, strict=True)
    ]


async def _validated(call: Call, parsed: ParsedRows) -> ParsedRows:
    """
    Lock the rows, and validate each by the model; return the call with the rows as the model left them.

    The rows are written by a key that PostgreSQL enforces, if they have one.
    """
    snapshot, relation, request = call.snapshot, relation_of(call), parsed.request
    key = key_of_rows(snapshot.catalog, relation, request.by)
    # A key that only a comment declares may be of several rows, or null, so the write uses a known one.
    keyed = relation.known_key or key
    values, found, paths = Values(parsed.values), [], request.paths
    for at, (row, computed) in enumerate(await _locked(call, parsed)):
        _, changes = split_row(key, request.rows[at], paths[at])
        # PostgreSQL computes a column for all rows if it does for one.
        computes = {each.column for each in changes if each.computes}
        given = changed_of(changes, parsed.values)
        given |= {name: value for name, value in computed.items() if name in computes}
        made = await set_by_model(snapshot, relation, given, paths[at], row)
        all_changes = merged(changes, made, paths[at], values)
        if not {each.column for each in all_changes}.isdisjoint(keyed):
            raise InvalidArgument(
                "a key by which rows are found cannot change with them",
                path=paths[at],
                hint="change it by an update of one row",
            )
        of_key = literals({name: row[name] for name in keyed}, paths[at], values)
        found.append((*of_key, *all_changes))
        await call.backend.database.yield_to_reactor(at)
    request = replace(request, rows=tuple(found), by=keyed)
    return replace(parsed, request=request, values=values.freeze())


def match_of(call: Call, parsed: ParsedRows) -> tuple[KeyMatch, tuple[Any, ...]]:
    """Return the match of all keys of a call, one list of values for each column, and the call's values."""
    key = key_of_rows(call.snapshot.catalog, relation_of(call), parsed.request.by)
    values = Values(parsed.values)
    rows = [given_of(row, parsed.values) for row in parsed.request.rows]
    lists = ([row[name] for row in rows] for name in key)
    match = KeyMatch(key, tuple(Operand(values.add(each), "rows") for each in lists))
    return match, values.freeze()


async def missing_row(call: Call, parsed: ParsedRows) -> ServiceError:
    """Return why fewer rows were written than the call has: one is missing, occurs twice, or is kept."""
    snapshot, relation, request = call.snapshot, relation_of(call), parsed.request
    key = key_of_rows(snapshot.catalog, relation, request.by)
    match, values = match_of(call, parsed)
    items = tuple(Item(Reference(name, "rows")) for name in key)
    statement = select(plan_get(snapshot.catalog, relation, GetRequest(match, items, many=True)))
    shape = Shape("lists", UNBOUNDED)
    args = (snapshot.codec, statement, values, len(request.rows), shape)
    found = await call.run(Step(by_keys_txn, args))
    seen: dict[str, int] = {}
    paths = request.paths
    for at, row in enumerate(found):
        if row is None:
            return NotFound(relation.name, at)
        if repr(row) in seen:
            return InvalidArgument(
                f"{paths[seen[repr(row)]]} has the same key, and a call writes a row once",
                path=paths[at],
                hint="give each key once",
            )
        seen[repr(row)] = at
    return NotChanged(relation.name)


def _update_rows_statement(
    catalog: Catalog, relation: Relation, request: UpdateRowsRequest
) -> Statement:
    return modify(plan_update_rows(catalog, relation, request))


async def update_old(call: Call, parsed: Parsed[UpdateRequest]) -> Any:
    """
    Answer an `update` of a key or of a filter with the old rows.

    Raises:
        TooManyRows: More rows than `max_affected`.
    """
    request, relation = parsed.request, relation_of(call)
    one = request.target.key is not None
    # If only a comment declares the key, the rows found by it are counted below.
    key = relation.known_key or (relation.primary_key if one else ())
    if not key:
        raise no_known_key(relation, "old rows", "returning")
    if not set(key).isdisjoint(each.column for each in request.changes):
        raise _changes_key()
    refuse_inner(request.returning)
    refuse_faults(call.snapshot, relation, parsed)
    try:
        async with call.transaction():
            old, keys, columns = await _locked_old(call, parsed, key)
            if one and not old:
                raise NoRowWritten
            if one and len(old) > 1:
                raise several_rows(len(old))
            if request.max_affected is not None and len(old) > request.max_affected:
                raise too_many_rows(len(old), request.max_affected)
            written = Written(old, 0, columns)
            if request.changes and not old:
                # Otherwise whether a role may change a column would depend on the rows that exist.
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


async def update_rows_old(call: Call, parsed: ParsedRows) -> Any:
    """Answer an `update` with different changes for each row with the old rows."""
    request, snapshot, relation = parsed.request, call.snapshot, relation_of(call)
    if request.returning.order:
        raise InvalidArgument("these rows come in the order of the call", path="order")
    # A row that an inner embed leaves out would be taken for one that does not exist.
    refuse_inner(request.returning)
    match, values = match_of(call, parsed)
    returning = request.returning
    asked = GetRequest(match, returning.select, returning.embeds, returning.form, many=True)
    plan = replace(plan_get(snapshot.catalog, relation, asked), lock=Lock())
    statement, shape = select(plan), Shape(returning.form, call.backend.max_bytes)
    args = (snapshot.codec, statement, values, len(request.rows), shape)
    try:
        async with call.transaction():
            locked = Step(by_keys_txn, (*args, True), timeout=parsed.timeout, access="write")
            old = await call.run(locked)
            if None in old:
                raise NotFound(relation.name, old.index(None))
            changes = replace(request, returning=_returning(returning))
            written = await write_rows(call, replace(parsed, request=changes))
    except NoRowWritten:
        raise await missing_row(call, parsed) from None
    return answered(_paired(old, written, returning), returning, many=True)


async def _change_none(call: Call, parsed: Parsed[UpdateRequest]) -> None:
    """Run the update for no row, so that PostgreSQL refuses it as it would for a row: missing rights, say."""
    request = replace(parsed.request, returning=Returning(rows=False))
    step = prepare_update(call, of_no_row(replace(parsed, request=request)))
    await (call.run(step) if isinstance(step, Step) else step)


def _changes_key() -> InvalidArgument:
    return InvalidArgument(
        "old rows are read by their key, so these changes cannot include it",
        path="returning",
        hint="returning: true answers the new rows",
    )


async def _locked_old(
    call: Call, parsed: Parsed[UpdateRequest], key: tuple[str, ...]
) -> tuple[list[Any], list[Sequence[Any]], tuple[str, ...]]:
    """Lock the rows of a target; return them in the form of the answer, their keys, and their columns."""
    request = parsed.request
    statement = call.snapshot.statement(_lock_old_statement, relation_of(call), (request, key))
    shape = Shape(request.returning.form, call.backend.max_bytes)
    args = (call.snapshot.codec, statement, parsed.values, None, shape)
    old, keys = await call.run(
        Step(rows_and_keys_txn, args, timeout=parsed.timeout, access="write")
    )
    return old, keys, answered_columns(statement)


def _returning(returning: Returning) -> Returning:
    """Return what the update itself returns: the new rows, if the answer has them beside the old ones."""
    return replace(returning, rows=returning.old == "both", order=(), old="")


def _paired(old: Sequence[Any], written: Written, returning: Returning) -> Written:
    both = returning.old == "both"
    return replace(written, rows=paired(old, written.rows, returning.form) if both else list(old))


def _lock_old_statement(
    catalog: Catalog, relation: Relation, wanted: tuple[UpdateRequest, tuple[str, ...]]
) -> Statement:
    """Build the query that locks the rows of an update, and returns them and their keys."""
    request, key = wanted
    pick = request.pick
    lock = Lock(skip_locked=pick is not None and pick.skip_locked)
    limit = pick.limit if pick else None
    return select(
        plan_current(catalog, relation, request.target, request.returning, lock, limit, key=key)
    )
