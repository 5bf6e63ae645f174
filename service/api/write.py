"""
The verb delete, and writes of new rows and of rows with the same changes, for create, upsert and update.

A write that may affect too many rows, or whose answer may be too large, runs in a transaction that is
rolled back in that case. Values that violate the catalog's limits or a model's validations are refused
before a statement is sent (`rules.py`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.api.call import Access, Call, Step, as_is
from service.api.rules import (
    accept_new_rows,
    accepts_without_reading,
    check_right,
    hiding_columns,
    refuse_faults,
    validate_changes,
    validate_new_rows,
)
from service.catalog import Catalog, Relation
from service.db.connection import PgConnection
from service.db.error_paths import requested_rows
from service.db.statements import (
    Shape,
    answered_columns,
    compute_txn,
    json_list,
    json_page,
    page_txn,
    rows_and_keys_txn,
    several_rows,
)
from service.db.writes import NoRowWritten, Written, or_missing_txn, write_rows_txn, write_txn
from service.errors import (
    Conflict,
    InvalidArgument,
    NotChanged,
    NotFound,
    ServiceError,
    TooManyRows,
    counted,
)
from service.payload import WithReceipt
from service.plan.joins import is_nested, refuse_related
from service.plan.plans import Lock
from service.plan.write_plan import plan_create, plan_current, plan_delete, plan_update
from service.request.arguments import MARKED_TYPES, Values
from service.request.read_request import Limits, Parsed
from service.request.requests import (
    EVERYTHING,
    Assignment,
    CreateRequest,
    DeleteRequest,
    Form,
    Operand,
    Pick,
    Returning,
    Target,
    UpdateRequest,
    UpdateRowsRequest,
)
from service.request.row_values import RelationshipCandidate, RowsArgument
from service.request.write_request import parse_create, parse_delete
from service.sql.modify import MANY_BYTES, modify
from service.sql.select import select
from service.sql.statement import Statement

Parse = Callable[[Sequence[Any], Mapping[str, Any], Limits], Parsed[CreateRequest]]

Write = Callable[[Call, Parsed[CreateRequest]], Step | Awaitable[Any]]

MANY = 100
"""Rows of one call; more are parsed in a pool thread, not in the reactor thread."""

MAX_VALIDATED = 5000
"""Rows that a model validates in one call. Each becomes an object, in the reactor thread."""
MIN_GUARDED = 16 * MANY_BYTES
"""
Least maximum size of an answer, in bytes, with which a row of no more than `MANY_BYTES` certainly fits,
however its texts are encoded.
"""
UNBOUNDED = 2**63
"""Maximum size in bytes of rows that only a model sees: there is none."""


def create(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `create`: the new row, or the list of new rows.

    Raises:
        InvalidRow: The model or the catalog refuses a row.
    """
    return with_new_rows(call, parse_create, write_new_rows)


def prepare_update(call: Call, parsed: Parsed[UpdateRequest]) -> Step | Awaitable[Any]:
    """
    Prepare `update` of one row or of a filter: the changed row, or the changed rows and their number.

    Raises:
        InvalidRow: The catalog refuses a value.
    """
    relation = relation_of(call)
    if not parsed.request.changes:
        return _unchanged(call, parsed)
    refuse_faults(call.snapshot, relation, parsed)
    ruled = call.snapshot.model(relation).has_rules(creating=False)
    # Most rules need only the changed values: then one UPDATE is enough, without a locked read before it.
    if ruled and not accepts_without_reading(call.snapshot, relation, parsed):
        return _by_model(call, parsed, update_by_model)
    return _changing(call, parsed, _update_statement)


def delete(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `delete`: the deleted row, or the deleted rows and their number.

    Raises:
        NotAuthorized: The model has a delete hook, and the caller's role may not delete rows.
    """
    parsed = parse_delete(call.args, call.kwargs, call.backend.limits)
    if call.snapshot.model(relation_of(call)).has_delete_hook:
        check_right(relation_of(call), "deletable")
        return _by_model(call, parsed, _delete_by_model)
    return _changing(call, parsed, _delete_statement)


def relation_of(call: Call) -> Relation:
    """Return the relation of a call, which is not one of a function."""
    assert call.relation is not None
    return call.relation


def related(call: Call, given: RowsArgument) -> Iterator[RelationshipCandidate]:
    """Yield the keys of a call's rows that name related rows; most calls have none."""
    relation = relation_of(call)
    known: dict[tuple[str, bool], bool] = {}
    by_itself = {key.columns[0] for key in relation.foreign_keys if len(key.columns) == 1}
    for each in given.beside(relation.columns.keys(), by_itself):
        key = each.name, each.row
        if key not in known:
            known[key] = is_nested(call.snapshot.catalog, relation, *key)
        if known[key]:
            yield each


def refuse_related_rows(call: Call, given: RowsArgument, what: str, hint: str = "") -> None:
    """
    Refuse related rows among the values of a call.

    Args:
        call: The call.
        given: Its rows.
        what: The call in the message, as in "an update".
        hint: The beginning of the hint.

    Raises:
        InvalidArgument: There are related rows.
    """
    for each in related(call, given):
        relation = relation_of(call)
        refuse_related(call.snapshot.catalog, relation, each.name, each.path, what, hint)


def write_step(
    call: Call,
    parsed: Parsed[Any],
    make: Callable[[], Statement],
    max_affected: int | None,
    exactly: int,
    shape: Callable[[Written], Any],
    missing: ServiceError | Callable[[], Awaitable[ServiceError]] | None = None,
    access: Access | None = None,
) -> Step:
    """
    Return the step of a write. Only a write that may be refused once it has run needs a transaction.

    Args:
        call: The call.
        parsed: The parsed call.
        make: Builds the statement; called in the pool thread, since that takes long for many rows.
        max_affected: Number of rows that may be written.
        exactly: Number of rows that must be written; 0 if any number may be.
        shape: Makes the answer.
        missing: The error if a row was not written, as `Step.missing`; the write is rolled back then.
        access: How the step runs in a transaction that the verb has begun; chosen here if None.
    """
    returning: Returning = parsed.request.returning
    relation, level = relation_of(call), call.backend.database.level
    max_bytes = call.backend.max_bytes
    single = _is_one(relation, parsed.request)
    one_row = single and not returning.embeds
    small = not returning.rows or (
        one_row and call.snapshot.max_row_bytes(relation, returning.select) <= max_bytes
    )
    guarded: Statement | None = None
    if access is None:
        # A write of one row at most leaves nothing to roll back, unless it has side effects without writing
        # the row: then the statement itself has to fail (`must_write`), which aborts a transaction around
        # it. That a key claimed by a comment is of several rows is known only after they are written.
        fails_alone = exactly <= single and (
            not (exactly and relation.side_effects) or (level is None and make().must_write)
        )
        all_or_nothing = level is not None and level.all_or_nothing
        alone = fails_alone and (all_or_nothing or (small and max_affected is None))
        access = "write" if alone else "atomic"
        if one_row and fails_alone and level is None and not alone and max_affected is None:
            guarded = make().guarded if max_bytes >= MIN_GUARDED else None
    form = Shape(returning.form, max_bytes) if returning.rows else None
    args = (call.snapshot.codec, make, parsed.values, max_affected, form, exactly, level is None)
    if isinstance(parsed.request, CreateRequest | UpdateRowsRequest) and not single:
        given = partial(requested_rows, call.snapshot.catalog, relation, parsed.request)
        return Step(write_rows_txn, (given, *args), shape, parsed.timeout, access, missing)
    one = call.state.keyed is not None and single and make().pure
    as_row = one and returning.form == "dicts" and not returning.old
    row = as_row and (access == "write" or guarded is not None) and bool(make().types)
    step = Step(write_txn, args, shape, parsed.timeout, access, missing, one_row=one, row=row)
    if guarded is None:
        return step
    # It fails if the row is large: one round trip for most rows of unlimited types, and two for large ones.
    args = (call.snapshot.codec, lambda: guarded, *args[2:])
    return step._replace(args=args, access="write", large=step)


def with_new_rows(call: Call, parse: Parse, then: Write) -> Step | Awaitable[Any]:
    """Parse and check new rows, in a pool thread if they are many, and return what `then` makes of them."""
    if RowsArgument(call.args, call.kwargs).more_than(MANY):
        return _many_rows(call, parse, then)
    parsed = _prepare(call, parse)
    return then(call, parsed) if parsed.request.rows else _no_new_rows(call, parsed.request)


def write_new_rows(call: Call, parsed: Parsed[CreateRequest]) -> Step | Awaitable[Any]:
    """Return the step that writes new rows, after their model has validated them if it has rules."""
    snapshot, relation = call.snapshot, relation_of(call)
    ruled = snapshot.model(relation).has_rules(creating=True)
    if ruled and not accept_new_rows(snapshot, relation, parsed):
        return _create_by_model(call, parsed)
    return create_step(call, parsed)


async def _many_rows(call: Call, parse: Parse, then: Write) -> Any:
    parsed = call.backend.database.run(compute_txn, _prepare, call, parse, retry=True)
    step = then(call, await parsed)
    return step if isinstance(step, Step) else await step


async def _create_by_model(call: Call, parsed: Parsed[CreateRequest]) -> Step:
    """Validate new rows by their model, and return the step that writes them."""
    pause = call.backend.database.yield_to_reactor
    validated = await validate_new_rows(call.snapshot, relation_of(call), parsed, pause)
    return create_step(call, validated)


async def _no_new_rows(call: Call, request: CreateRequest) -> Any:
    """Answer `create` of an empty list."""
    return answered(Written([], 0, columns_of(call, request)), request.returning, many=True)


def columns_of(call: Call, request: CreateRequest) -> tuple[str, ...]:
    """Return the names of the columns and embeds that `create` returns."""
    nothing = replace(request, rows=(), conflict=None)
    return answered_columns(_create_statement(call.snapshot.catalog, relation_of(call), nothing))


def create_step(call: Call, parsed: Parsed[CreateRequest]) -> Step:
    """Return the step that writes new rows."""
    request, relation, snapshot = parsed.request, relation_of(call), call.snapshot
    make: Callable[[], Statement]
    if request.many:  # long, and seldom the same again: built in the pool thread, and not cached
        make = partial(_create_statement, snapshot.catalog, relation, request)
    else:
        statement = snapshot.statement(_create_statement, relation, request)
        make = lambda: statement  # noqa: E731

    one = not request.many and request.conflict is None
    shape = partial(_created, returning=request.returning, many=request.many)
    missing = NotChanged(relation.name)
    return write_step(call, parsed, make, request.max_affected, one, shape, missing)


def _changing(
    call: Call,
    parsed: Parsed[Any],
    make: Callable[[Catalog, Relation, Any], Statement],
    known: int | None = None,
) -> Step:
    """
    Return the step that updates or deletes the rows of a target.

    Args:
        call: The call.
        parsed: The parsed call.
        make: Builds the statement.
        known: Number of rows that a model has validated; None without a model.
    """
    request: UpdateRequest | DeleteRequest = parsed.request
    statement = call.snapshot.statement(make, relation_of(call), request)
    one = request.target.key is not None
    shape = partial(answered, returning=request.returning, many=not one, counted=True)
    if isinstance(request, DeleteRequest):
        shape = partial(_deleted, returning=request.returning, many=not one)
    if known is not None:
        # "last": the same job commits, since each hop to a worker and back costs some 80 µs.
        return write_step(call, parsed, lambda: statement, known, one, shape, access="last")
    missing = partial(missing_key, call, parsed)
    step = write_step(call, parsed, lambda: statement, request.max_affected, one, shape, missing)
    if call.backend.database.level is None or step.access != "write":
        return step
    # In the same job, so that operations behind it may be sent ahead.
    args = (partial(missing_key_txn, call=call, parsed=parsed), step.function, *step.args)
    return step._replace(function=or_missing_txn, args=args, missing=None)


async def _by_model(
    call: Call, parsed: Parsed[Any], write: Callable[[Call, Parsed[Any]], Awaitable[Any]]
) -> Any:
    """
    Write rows by their model. If one was not written, find the reason after the rollback.

    The transaction may end in the job of the last statement, so no query can follow in it.
    """
    try:
        return await write(call, parsed)
    except NoRowWritten:
        raise await missing_key(call, parsed) from None


async def update_by_model(call: Call, parsed: Parsed[UpdateRequest]) -> Any:
    """Update rows whose model has rules: lock and read each row, and validate the entire changed row."""
    database, relation = call.backend.database, relation_of(call)
    async with call.transaction():
        current = await _locked(call, parsed)
        if parsed.request.pick is not None and not current:
            # The statement is sent all the same: PostgreSQL checks rights and types without rows, too.
            return await _write_validated(call, of_no_row(parsed), _update_statement, 0)
        calls = await validate_changes(
            call.snapshot, relation, parsed, current, database.yield_to_reactor
        )
        if len(calls) == 1 and parsed.request.pick is None:
            return await _write_validated(call, calls[0], _update_statement, len(current))
        written = [await call.run(_updating_each(call, each)) for each in calls]
    rows = [row for each in written for row in each.rows]
    affected = sum(each.affected for each in written)
    tx = next((each.tx for each in written if each.tx), None)
    total = Written(rows, affected, written[0].columns, tx)
    return answered(total, parsed.request.returning, many=True, counted=True)


def of_no_row(parsed: Parsed[UpdateRequest]) -> Parsed[UpdateRequest]:
    """Return an update that affects no row, whatever its filter matches: its limit is 0."""
    values = Values(parsed.values)
    pick = Pick(Operand(values.add(0), "limit"), skip_locked=False)
    return replace(parsed, request=replace(parsed.request, pick=pick), values=values.freeze())


def refuse_inner(returning: Returning) -> None:
    """
    Refuse inner embeds, which would leave rows out of an answer that has each row of the call.

    Raises:
        InvalidArgument: An embed is inner.
    """
    if any(each.inner for each in returning.embeds):
        raise InvalidArgument(
            "each of these rows is answered, so no embed can be inner", path="embed"
        )


def _updating_each(call: Call, parsed: Parsed[UpdateRequest]) -> Step:
    """Return the step that updates one of many rows; to write no row is no error."""
    statement = call.snapshot.statement(_update_each_statement, relation_of(call), parsed.request)
    return write_step(call, parsed, lambda: statement, None, 0, as_is, access="write")


async def _delete_by_model(call: Call, parsed: Parsed[DeleteRequest]) -> Any:
    """Delete rows whose model has a delete hook: lock and read each row, and run the hook."""
    async with call.transaction():
        current = await _locked(call, parsed)
        with hiding_columns(call.snapshot, relation_of(call)):
            for row, _ in current:
                await call.snapshot.model(relation_of(call)).validate_delete(row)
        return await _write_validated(call, parsed, _delete_statement, len(current))


async def _write_validated(
    call: Call,
    parsed: Parsed[Any],
    make: Callable[[Catalog, Relation, Any], Statement],
    known: int,
) -> Any:
    """
    Write the rows that a model has validated.

    Args:
        call: The call.
        parsed: The parsed call.
        make: Builds the statement.
        known: Number of rows that were validated.

    Raises:
        NoRowWritten: There is no such row, or the database did not write it.
        Conflict: The target matches more rows by now, which were not validated.
    """
    step = _changing(call, parsed, make, known)
    try:
        return step.shape(await call.run(step))
    except TooManyRows:
        raise Conflict(
            "more rows match by now",
            relation=relation_of(call).name,
            retry=True,
        ) from None


async def _locked(
    call: Call, parsed: Parsed[Any]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """
    Lock the rows of a target, and read all of their columns.

    PostgreSQL also computes the new values that are expressions, for the model to validate. Since the rows
    are locked, the update computes the same values.

    Returns:
        Each row, with its computed new values by column.

    Raises:
        TooManyRows: More rows than `max_affected` or `MAX_VALIDATED`, or several rows of one key.
    """
    request: UpdateRequest | DeleteRequest = parsed.request
    relation = relation_of(call)
    most = MAX_VALIDATED if request.max_affected is None else request.max_affected
    most = min(most, MAX_VALIDATED)
    values, changes, pick = Values(parsed.values), tuple[Assignment, ...](), None
    if isinstance(request, UpdateRequest):
        changes, pick = request.changes, request.pick
    limited = min(most + 1, parsed.values[pick.limit.slot]) if pick and pick.limit else most + 1
    limit = Operand(values.add(limited), "max_affected")
    skip_locked = pick is not None and pick.skip_locked
    asked = request.target, Returning(order=request.returning.order), limit, changes, skip_locked
    statement = call.snapshot.statement(_lock_statement, relation, asked)
    args = (call.snapshot.codec, statement, values.freeze(), None, Shape("dicts", UNBOUNDED))
    rows, new = await call.run(
        Step(rows_and_keys_txn, args, timeout=parsed.timeout, access="write")
    )
    if request.target.key is not None and len(rows) > 1:
        raise several_rows(len(rows))
    if len(rows) > most:
        hint = "the model of this relation validates each row: write so many in several calls"
        raise TooManyRows(
            f"this would write more than {counted(most, 'row')}",
            hint="nothing was written" if most == request.max_affected else hint,
        )
    computed = dict.fromkeys(each.column for each in changes if each.computes)
    return [
        (row, dict(zip(computed, values, strict=True)))
        for row, values in zip(rows, new, strict=True)
    ]


async def _unchanged(call: Call, parsed: Parsed[UpdateRequest]) -> Any:
    """Answer an update without changes: the row of a key as it is, or no rows of a filter."""
    request = parsed.request
    if request.target.key is None:
        return no_rows_changed(call, parsed.request.returning, counted=True)
    columns, rows = await call.run(Step(_found_txn, (call, parsed, request.target)))
    if not rows:
        raise await missing_key(call, parsed)
    return answered(Written(rows, 0, columns), request.returning, many=False)


def no_rows_changed(call: Call, returning: Returning, counted: bool = False) -> Any:
    """Answer a write that has no rows, or no changes."""
    nothing = UpdateRequest(Target(None, (), EVERYTHING), (), returning)
    columns = answered_columns(
        _current_statement(call.snapshot.catalog, relation_of(call), nothing)
    )
    return answered(Written([], 0, columns), returning, many=True, counted=counted)


def missing_key(call: Call, parsed: Parsed[Any]) -> Awaitable[ServiceError]:
    """Return why the row of a key was not written, as `missing_key_txn`."""
    return call.run(Step(missing_key_txn, (call, parsed)))


def missing_key_txn(connection: PgConnection, call: Call, parsed: Parsed[Any]) -> ServiceError:
    """
    Look up why the row of a key was not written, in a pool thread.

    Returns:
        `NotFound`, a `Conflict` if the row is not as expected, or `NotChanged` if the database keeps it.
    """
    relation, target = relation_of(call), parsed.request.target
    _, rows = _found_txn(connection, call, parsed, target)
    if rows:
        return NotChanged(relation.name)
    if not target.expect:
        return NotFound(relation.name)
    if parsed.request.returning.form == "json":  # the error has the row as a dict, not as text
        returning = replace(parsed.request.returning, form="dicts")
        parsed = replace(parsed, request=replace(parsed.request, returning=returning))
    _, rows = _found_txn(connection, call, parsed, replace(target, expect=()))
    if not rows:
        return NotFound(relation.name)
    return Conflict(
        f'the row of "{relation.name}" is not as expected',
        relation=relation.name,
        row=rows[0],
    )


def _found_txn(
    connection: PgConnection, call: Call, parsed: Parsed[Any], target: Target
) -> tuple[tuple[str, ...], list[Any]]:
    """Read the rows of a target; return the columns and the rows."""
    returning = replace(parsed.request.returning, rows=True, order=())
    request = UpdateRequest(target, (), returning)
    statement = _current_statement(call.snapshot.catalog, relation_of(call), request)
    shape = Shape(returning.form, call.backend.max_bytes)
    page = page_txn(connection, call.snapshot.codec, statement, parsed.values, None, shape)
    return answered_columns(statement), page.rows


def _prepare(call: Call, parse: Parse) -> Parsed[CreateRequest]:
    parsed = parse(call.args, call.kwargs, call.backend.limits)
    # Values that a batch has copied from results are marked as data, and become plain values here.
    if not MARKED_TYPES.isdisjoint(map(type, parsed.values)):
        parsed = replace(parsed, values=Values(parsed.values).freeze())
    refuse_faults(call.snapshot, relation_of(call), parsed)
    return parsed


def _is_one(relation: Relation, request: Any) -> bool:
    """Return whether a write affects one row at most, whatever rows there are."""
    if isinstance(request, CreateRequest):
        return not request.many
    key = request.target.key if isinstance(request, UpdateRequest | DeleteRequest) else None
    return key is not None and relation.is_unique(key.columns or relation.primary_key)


def answered(written: Written, returning: Returning, many: bool, counted: bool = False) -> Any:
    """
    Return the answer of a write, in the form that the call asks for.

    Args:
        written: The rows, and their number.
        returning: What the call asks for.
        many: Whether the answer is a list of rows.
        counted: Whether the number of rows goes with the list, because the caller cannot know it.
    """
    answer = _answer(written, returning, many, counted)
    return WithReceipt(answer, written.tx) if returning.receipt else answer


def _created(written: Written, returning: Returning, many: bool) -> Any:
    """Return the answer of `create`; the old row of each new one is null."""
    if returning.old:
        old = _nothing(written, returning)
        rows = paired(old, written.rows, returning.form) if returning.old == "both" else old
        written = replace(written, rows=rows)
    return answered(written, returning, many)


def _deleted(written: Written, returning: Returning, many: bool) -> Any:
    if returning.old == "both":
        rows = paired(written.rows, _nothing(written, returning), returning.form)
        written = replace(written, rows=rows)
    return answered(written, returning, many, counted=True)


def _nothing(written: Written, returning: Returning) -> list[Any]:
    return ["null" if returning.form == "json" else None] * len(written.rows)


def paired(old: Sequence[Any], new: Sequence[Any], form: Form) -> list[Any]:
    """Return old rows, each paired with its new row, in the form of an answer."""
    pairs = zip(old, new, strict=True)
    if form == "json":
        return [f'{{"old":{one},"new":{other}}}' for one, other in pairs]
    return [{"old": one, "new": other} for one, other in pairs]


def _answer(written: Written, returning: Returning, many: bool, counted: bool) -> Any:
    if returning.form == "json":
        return _text(written, returning, many, counted)
    if not returning.rows:
        return {"affected": written.affected}
    if returning.form == "lists":
        answer = {"columns": list(written.columns), "rows": written.rows}
        return {**answer, "affected": written.affected} if many and counted else answer
    if not many:
        return written.rows[0] if written.rows else None
    return {"rows": written.rows, "affected": written.affected} if counted else written.rows


def _text(written: Written, returning: Returning, many: bool, counted: bool) -> str:
    if not returning.rows:
        return json.dumps({"affected": written.affected})
    if not many:
        return str(written.rows[0]) if written.rows else "null"
    return (
        json_page(written.rows, affected=written.affected) if counted else json_list(written.rows)
    )


def _create_statement(catalog: Catalog, relation: Relation, request: CreateRequest) -> Statement:
    return modify(plan_create(catalog, relation, request))


def _current_statement(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return select(plan_current(catalog, relation, request.target, request.returning))


def _update_statement(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return modify(plan_update(catalog, relation, request))


def _lock_statement(
    catalog: Catalog,
    relation: Relation,
    wanted: tuple[Target, Returning, Operand, tuple[Assignment, ...], bool],
) -> Statement:
    """Build the statement that locks and reads the rows that a model validates."""
    target, returning, limit, changes, skip_locked = wanted
    # SELECT FOR UPDATE needs the UPDATE right, which a role that may DELETE can lack.
    lock = Lock(skip_locked=skip_locked) if relation.updatable else None
    return select(plan_current(catalog, relation, target, returning, lock, limit, changes))


def _update_each_statement(
    catalog: Catalog, relation: Relation, request: UpdateRequest
) -> Statement:
    """Build the update of one of many rows, which may affect no row."""
    return modify(plan_update(catalog, relation, request, many=True))


def _delete_statement(catalog: Catalog, relation: Relation, request: DeleteRequest) -> Statement:
    return modify(plan_delete(catalog, relation, request))
