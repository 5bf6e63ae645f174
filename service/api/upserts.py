"""
The verb upsert where the rows that are there are looked at first: with `returning` "old" or "both", and
where a model has a say in what changes in them.

They are locked and read by the key, changed as an update of rows changes them, and the others are
created, whatever the version of PostgreSQL. A row that comes meanwhile has all of it made again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.api import write
from service.api.call import Call, Step
from service.api.row_updates import missing_row, write_rows
from service.api.rules import given_of, validated_rows
from service.api.write import UNBOUNDED, answered, creating, paired, relation_of
from service.catalog import Catalog, Relation
from service.db.statements import Shape, by_keys_txn
from service.db.writes import NoRowWritten, RowUnseen, Written, too_many_rows
from service.errors import InvalidArgument
from service.payload import fit
from service.plan.plans import Lock
from service.plan.predicates import both, plan_filter
from service.plan.read_plan import plan_get
from service.plan.scope import Scope
from service.plan.write_plan import plan_conflict
from service.request.arguments import Values
from service.request.assignments import literals
from service.request.read_request import Parsed
from service.request.requests import (
    EVERYTHING,
    Assignment,
    Connective,
    CreateRequest,
    GetRequest,
    Item,
    KeyMatch,
    OnConflict,
    Operand,
    Reference,
    UpdateRowsRequest,
)
from service.request.write_request import parse_upsert
from service.sql.select import select
from service.sql.statement import Statement

New = Parsed[CreateRequest]
NEVER = Connective(any=True, terms=())
"""A filter that holds of no row."""


@dataclass(frozen=True, slots=True)
class Met:
    """
    What is there already of the rows of a call.

    Args:
        key: The columns by which they are found.
        old: For each row of the call the one that is there, in the form of the answer, or None.
        stays: The numbers of those that are left alone.
    """

    key: tuple[str, ...]
    old: Sequence[Any]
    stays: frozenset[int] = frozenset()


def upsert(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `upsert`: the rows, new or changed; None for a single one that is left alone.

    Raises:
        InvalidRow: The model or the catalog refuses it.
    """
    update, relation = call.kwargs.get("update"), relation_of(call)
    changes = not isinstance(update, list | tuple | str | None)
    ruled = changes and call.snapshot.model(relation).has_rules(creating=False)
    if ruled or call.kwargs.get("returning") in ("old", "both"):
        return _looked_first(call)
    return write.upsert(call)


async def _looked_first(call: Call) -> Any:
    parsed = await write.parse_new_rows(call, parse_upsert)
    if not parsed.request.rows:
        return await write.no_new_rows(call, parsed.request)
    key = _key(call, parsed)

    async def attempt() -> Any:
        met = await _met(call, parsed, key)
        return await _write(call, parsed, met)

    database = call.backend.database
    return await database.transact(attempt, timeout=parsed.timeout, kind=relation_of(call).name)


def _key(call: Call, parsed: New) -> tuple[str, ...]:
    """
    Return the columns by which rows that are there are found.

    Raises:
        InvalidArgument: There are none, or the answer would not have a row for each that is written.
    """
    relation, request = relation_of(call), parsed.request
    conflict = _conflict(request)
    planned = plan_conflict(Scope(call.snapshot.catalog, relation), conflict, request.rows)
    if planned.target is not None:
        raise InvalidArgument(
            "rows that are looked at first are found by the columns of a key, and this is an index",
            path="on_conflict",
        )
    if planned.nulls and any(
        None
        in given_of([each for each in row if each.column in planned.key], parsed.values).values()
        for row in request.rows
    ):
        raise InvalidArgument("a key that is null is not looked for", path="on_conflict")
    if not set(planned.key).isdisjoint(each.column for each in conflict.changes):
        raise InvalidArgument(
            "rows that are looked at first are found by their key, and these changes are of it",
            path="update",
        )
    if request.returning.order:
        raise InvalidArgument("these rows come in the order of the call", path="order")
    if any(each.inner for each in request.returning.embeds):
        raise InvalidArgument("these rows are all answered: no embed is inner", path="embed")
    return planned.key


async def _met(call: Call, parsed: New, key: tuple[str, ...]) -> Met:
    """Lock and read the rows that are there."""
    request, conflict, relation = parsed.request, _conflict(parsed.request), relation_of(call)
    given: dict[int, list[Any]] = {}
    for at, row in enumerate(request.rows):
        slots = {each.column: each.operand for each in row}
        found = [slots.get(name) for name in key]
        parts = [parsed.values[each.slot] for each in found if each is not None]
        if len(parts) == len(key) and None not in parts:
            given[at] = parts
    if not given:
        return Met(key, [None] * len(request.rows))
    values = Values(parsed.values)
    lists = (list(parts) for parts in zip(*given.values(), strict=True))
    match = KeyMatch(key, tuple(Operand(values.add(each), "values") for each in lists))
    returning, old = request.returning, [None] * len(request.rows)
    asked = GetRequest(match, returning.select, returning.embeds, returning.form, many=True)
    if not returning.old:
        asked = GetRequest(match, tuple(Item(Reference(name, "values")) for name in key), many=True)
    locking = select(replace(plan_get(call.snapshot.catalog, relation, asked), lock=Lock()))
    shape = Shape(asked.form, call.backend.max_bytes if returning.old else UNBOUNDED)
    rows = await _read(call, locking, values, len(given), shape)
    for at, row in zip(given, rows, strict=True):
        old[at] = row
    stays = {at for at, row in enumerate(old) if row is not None and conflict.update == ()}
    if conflict.where != EVERYTHING:
        statement = _meeting(call.snapshot.catalog, relation, match, conflict)
        holds = await _read(call, statement, values, len(given), Shape("lists", UNBOUNDED))
        pairs = zip(given, holds, strict=True)
        stays |= {at for at, row in pairs if row is None and old[at] is not None}
    return Met(key, old, frozenset(stays))


async def _read(
    call: Call, statement: Statement, values: Values, keys: int, shape: Shape
) -> Sequence[Any]:
    args = (call.snapshot.codec, statement, values.freeze(), keys, shape, True)
    found: Sequence[Any] = await call.run(Step(by_keys_txn, args, list, None, "write"))
    return found


def _meeting(
    catalog: Catalog, relation: Relation, match: KeyMatch, conflict: OnConflict
) -> Statement:
    """Build the query of the rows that meet the condition of an upsert."""
    items = tuple(Item(Reference(name, "values")) for name in match.columns)
    plan = plan_get(catalog, relation, GetRequest(match, items, many=True))
    holds = plan_filter(Scope(catalog, relation), conflict.where)
    return select(replace(plan, where=both(plan.where, holds)))


async def _write(call: Call, parsed: New, met: Met) -> Any:
    """
    Change the rows that are there, and create the others.

    Raises:
        TooManyRows: More than `max_affected`.
        RowUnseen: A row has come meanwhile.
    """
    request, returning, backend = parsed.request, parsed.request.returning, call.backend
    numbers = range(len(request.rows))
    there = [at for at in numbers if met.old[at] is not None and at not in met.stays]
    absent = [at for at in numbers if met.old[at] is None]
    if request.max_affected is not None and len(there) + len(absent) > request.max_affected:
        raise too_many_rows(len(there) + len(absent), request.max_affected)
    wanted = replace(returning, rows=returning.rows and returning.old != "old", old="")
    parsed = replace(parsed, request=replace(request, returning=wanted, max_affected=None))
    changed = await _change(call, parsed, met, there)
    created = await _create(call, parsed, absent)
    new: dict[int, Any] = {}
    if wanted.rows:
        new = dict(zip(there, changed.rows, strict=True))
        new |= zip(absent, created.rows, strict=True)
    answers = [at for at in numbers if at not in met.stays]
    nothing = "null" if returning.form == "json" else None
    old = [nothing if met.old[at] is None else met.old[at] for at in answers]
    rows = [new.get(at) for at in answers] if wanted.rows else old
    if returning.old == "both":
        rows = paired(old, rows, returning.form)
    columns = write.columns_of(call, replace(request, returning=replace(returning, old="")))
    fit([rows, columns], backend.max_bytes)
    affected = changed.affected + created.affected
    together = Written(rows, affected, columns, changed.tx or created.tx)
    return answered(together, returning, request.many)


async def _change(call: Call, parsed: New, met: Met, there: Sequence[int]) -> Written:
    """Change the rows that are there, as an update of rows does."""
    request, relation = parsed.request, relation_of(call)
    values = Values(parsed.values)
    rows = []
    for at in there:
        given = {each.column: each for each in request.rows[at]}
        key = given_of([given[name] for name in met.key], parsed.values)
        changes = _changes(relation, _conflict(request), given, met.key)
        rows.append((*literals(key, request.paths[at] or "values", values), *changes))
    if not any(len(row) > len(met.key) for row in rows):
        # There is nothing to change: the rows are what they were.
        return Written([met.old[at] for at in there], len(there), ())
    update = UpdateRowsRequest(tuple(rows), met.key, request.returning)
    of_rows = Parsed(update, values.freeze(), parsed.timeout)
    try:
        return await write_rows(call, of_rows)
    except NoRowWritten:
        error = await missing_row(call, of_rows)
        error.details.pop("path", None)  # of rows that are not those of the call
        raise error from None


def _changes(
    relation: Relation,
    conflict: OnConflict,
    given: Mapping[str, Assignment],
    key: Sequence[str],
) -> tuple[Assignment, ...]:
    """Return what changes in a row that is there."""
    if conflict.changes:
        return conflict.changes
    if conflict.update is None:
        names = [name for name in given if not relation.columns[name].generated_always]
    else:
        names = list(conflict.update)
    return tuple(
        given.get(name) or Assignment(name, None, f"update.{name}")
        for name in names
        if name not in key
    )


async def _create(call: Call, parsed: New, absent: Sequence[int]) -> Written:
    """
    Create the rows that are not there.

    Raises:
        RowUnseen: One of them is, by now.
    """
    request, snapshot, relation = parsed.request, call.snapshot, relation_of(call)
    # What is met all the same is left alone, or refused by the policies that hide it.
    conflict = replace(_conflict(request), update=None, changes=(), where=NEVER)
    rows = tuple(request.rows[at] for at in absent)
    made = replace(parsed, request=replace(request, rows=rows, many=True, conflict=conflict))
    if not rows:
        return Written([], 0, ())
    if snapshot.model(relation).has_rules(creating=True):
        pause, paths = call.backend.database.yield_to_reactor, request.paths
        where = [paths[at] or "values" for at in absent]
        rows, values = await validated_rows(snapshot, relation, rows, where, made.values, pause)
        made = replace(made, request=replace(made.request, rows=rows), values=values)
    written: Written = await call.run(creating(call, made))
    if written.affected < len(rows):
        raise RowUnseen("a row with one of these keys has come meanwhile", retry=True)
    return written


def _conflict(request: CreateRequest) -> OnConflict:
    if request.conflict is None:
        raise TypeError("an upsert says what becomes of rows that are there")
    return request.conflict
