"""
The verb upsert. Existing rows are read first for `returning` "old" or "both", or if their model validates
changes.

They are locked and read by the key. Then the usual upsert statement changes them, or an update
if the model has rules; the other rows are created by an upsert that changes no row. If that meets an existing
row all the same, the row was inserted meanwhile, and the entire upsert is repeated, or the caller may not see
or not change the row. What an index on expressions or a partial index finds is learned from an upsert that is
rolled back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.api import write
from service.api.call import Call, Step
from service.api.row_updates import missing_row, write_rows
from service.api.rules import check_right, given_of, validated_rows
from service.api.write import (
    UNBOUNDED,
    answered,
    create_step,
    paired,
    refuse_inner,
    refuse_related_rows,
    relation_of,
)
from service.catalog import Relation
from service.db.statements import Shape, by_keys_txn
from service.db.writes import NoRowWritten, RowUnseen, Written, too_many_rows
from service.errors import Conflict, InvalidArgument, NotChanged, ServiceError
from service.payload import fit
from service.plan.clauses import both, plan_filter
from service.plan.plans import Lock
from service.plan.read_plan import plan_get
from service.plan.scope import Scope
from service.plan.write_plan import no_known_key, plan_conflict
from service.request.arguments import Values
from service.request.read_request import Parsed, null_in_key
from service.request.requests import (
    EVERYTHING,
    NEVER,
    Assignment,
    CreateRequest,
    Filter,
    GetRequest,
    Item,
    KeyMatch,
    OnConflict,
    Operand,
    Reference,
    UpdateRowsRequest,
)
from service.request.row_values import RowsArgument, literals
from service.request.write_request import parse_upsert
from service.sql.select import select

New = Parsed[CreateRequest]


@dataclass(frozen=True, slots=True)
class ExistingRows:
    """
    The rows of a call that exist already, by the numbers of the call's rows.

    Args:
        key: The columns by which they are read.
        by_index: Whether the conflict target of the upsert is an index, and not that key.
        keys: The values of the key.
        old: The rows that are locked, in the form of the answer.
        stays: The numbers of the rows that the upsert leaves unchanged, locked or not.
    """

    key: tuple[str, ...]
    by_index: bool
    keys: Mapping[int, Sequence[Any]]
    old: Mapping[int, Any]
    stays: frozenset[int] = frozenset()


class _RollBack(Exception):
    """Raised to roll a savepoint back."""


def upsert(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `upsert`: the rows, new or changed; None for a single row that is left unchanged.

    Raises:
        InvalidArgument: It has related rows among the values.
        InvalidRow: The model or the catalog refuses a row.
    """
    hint = '"create" does, and makes new ones; '
    refuse_related_rows(call, RowsArgument(call.args, call.kwargs), "an upsert", hint)
    refuse_related_rows(call, RowsArgument((), call.kwargs, "update"), "an upsert")
    return write.with_new_rows(call, parse_upsert, _upsert)


def _upsert(call: Call, parsed: New) -> Step | Awaitable[Any]:
    relation = relation_of(call)
    conflict, old = _conflict(parsed.request), parsed.request.returning.old
    if conflict.update != () and call.snapshot.model(relation).has_rules(creating=True):
        check_right(relation, "updatable")
    ruled = conflict.changes and call.snapshot.model(relation).has_rules(creating=False)
    # If existing rows are left unchanged, the answer has new rows only.
    if conflict.update == () or not (ruled or old):
        return write.write_new_rows(call, parsed)
    return _read_first(call, parsed)


async def _read_first(call: Call, parsed: New) -> Any:
    key, by_index = _key(call, parsed)

    async def attempt() -> Any:
        existing = await _existing(call, parsed, key, by_index)
        return await _write(call, parsed, existing)

    # `RowUnseen` asks for another attempt: a row was inserted after the existing ones were read.
    database = call.backend.database
    return await database.transact(attempt, timeout=parsed.timeout, kind=relation_of(call).name)


def _key(call: Call, parsed: New) -> tuple[tuple[str, ...], bool]:
    """
    Return the columns by which existing rows are read, and whether the conflict target is an index.

    Raises:
        InvalidArgument: There are no such columns, or old and new rows cannot be paired by them.
    """
    relation, request = relation_of(call), parsed.request
    conflict = _conflict(request)
    planned = plan_conflict(Scope(call.snapshot.catalog, relation), conflict, request.rows)
    by_index, key = planned.target is not None, planned.key
    changed = {each.column for each in conflict.changes}
    if by_index:
        # The upsert itself goes by the index; the rows it finds are then read by a key.
        _refuse_of_index(call, conflict)
        key, changed = relation.known_key, {each.column.name for each in planned.updates}
        if not key:
            raise no_known_key(relation, "existing rows that are read first", "on_conflict")
    elif planned.nulls:
        _refuse_null_keys(relation, key, parsed)
    if not set(key).isdisjoint(changed):
        raise InvalidArgument(
            "existing rows are read by their key here, so these changes cannot include it",
            path="update",
            hint='"update" names the columns that change' if by_index else None,
        )
    if request.returning.order:
        raise InvalidArgument("these rows come in the order of the call", path="order")
    refuse_inner(request.returning)
    return key, by_index


def _refuse_of_index(call: Call, conflict: OnConflict) -> None:
    """Refuse model rules and conditions, which need the values of a key, with an index as the target."""
    ruled = call.snapshot.model(relation_of(call)).has_rules(creating=False)
    if (conflict.changes and ruled) or conflict.where != EVERYTHING:
        raise InvalidArgument(
            "existing rows that a model validates, or that have to meet a condition, are found by the"
            " columns of a key, and this is an index",
            path="on_conflict",
        )


def _refuse_null_keys(relation: Relation, key: tuple[str, ...], parsed: New) -> None:
    """Refuse rows with a null in the key, if NULLS NOT DISTINCT lets an existing row have the same key."""
    columns = [relation.columns[name] for name in key]
    for path, row in zip(parsed.request.paths, parsed.request.rows, strict=True):
        given = given_of(row, parsed.values)
        for each in columns:
            if given[each.name] is None if each.name in given else not each.has_default:
                raise null_in_key(f"{path or 'values'}.{each.name}", each.name)


async def _existing(call: Call, parsed: New, key: tuple[str, ...], by_index: bool) -> ExistingRows:
    """Lock and read the existing rows."""
    request, where = parsed.request, _conflict(parsed.request).where
    if by_index:
        keys = await _keys_by_index(call, parsed, key)
    else:
        keys = _given_keys(parsed, key)
    old = await _read(call, parsed, key, keys, Lock(), answer=bool(request.returning.old))
    if where == EVERYTHING:
        return ExistingRows(key, by_index, keys, old)
    # Without a lock, which a policy refuses for rows that the caller may not change: they stay as well.
    seen = await _read(call, parsed, key, keys)
    holds = await _read(call, parsed, key, keys, where=where)
    return ExistingRows(key, by_index, keys, old, frozenset(seen.keys() - holds.keys()))


def _given_keys(parsed: New, key: Sequence[str]) -> dict[int, Sequence[Any]]:
    """Return the keys of the rows that give a complete one, by the numbers of the rows."""
    given: dict[int, Sequence[Any]] = {}
    for at, row in enumerate(parsed.request.rows):
        slots = {each.column: each.operand for each in row}
        found = [slots.get(name) for name in key]
        parts = [parsed.values[each.slot] for each in found if each is not None]
        if len(parts) == len(key) and None not in parts:
            given[at] = parts
    return given


async def _keys_by_index(call: Call, parsed: New, key: tuple[str, ...]) -> dict[int, Sequence[Any]]:
    """
    Return the keys of the rows that an upsert writes, which is then rolled back.

    Only PostgreSQL can compute the value of an index for a row.

    Raises:
        NotChanged: The database leaves a row out.
    """
    numbers = range(len(parsed.request.rows))
    try:
        async with call.backend.database.transaction():
            written = await _upserted_for(call, parsed, numbers, key)
            raise _RollBack
    except _RollBack:
        if len(written.rows) < len(numbers):
            raise NotChanged(relation_of(call).name) from None
        return dict(zip(numbers, written.rows, strict=True))


async def _read(
    call: Call,
    parsed: New,
    key: tuple[str, ...],
    given: Mapping[int, Sequence[Any]],
    lock: Lock | None = None,
    where: Filter = EVERYTHING,
    answer: bool = False,
) -> dict[int, Any]:
    """
    Read existing rows, by the numbers of the call's rows.

    Args:
        call: The upsert.
        parsed: Its rows.
        key: The columns by which the rows are read.
        given: The values of the key, by the numbers of the rows to read.
        lock: How to lock the rows; None for no lock.
        where: A further condition on the rows.
        answer: Whether to read the rows in the form of the answer, not their keys alone.
    """
    relation, catalog, returning = (
        relation_of(call),
        call.snapshot.catalog,
        parsed.request.returning,
    )
    if not given:
        return {}
    values = Values(parsed.values)
    lists = (list(parts) for parts in zip(*given.values(), strict=True))
    match = KeyMatch(key, tuple(Operand(values.add(each), "values") for each in lists))
    asked = GetRequest(match, tuple(Item(Reference(name, "values")) for name in key), many=True)
    if answer:
        asked = GetRequest(match, returning.select, returning.embeds, returning.form, many=True)
    plan = plan_get(catalog, relation, asked)
    holds = both(plan.where, plan_filter(Scope(catalog, relation), where))
    statement = select(replace(plan, where=holds, lock=lock))
    shape = Shape(asked.form, call.backend.max_bytes if answer else UNBOUNDED)
    args = (call.snapshot.codec, statement, values.freeze(), len(given), shape, True)
    rows = await call.run(Step(by_keys_txn, args, access="write"))
    return {at: row for at, row in zip(given, rows, strict=True) if row is not None}


async def _write(call: Call, parsed: New, existing: ExistingRows) -> Any:
    """
    Change the existing rows, and create the others.

    Raises:
        TooManyRows: More rows than `max_affected`.
        RowUnseen: A row was inserted meanwhile.
    """
    request, returning, backend = parsed.request, parsed.request.returning, call.backend
    answers = [at for at in range(len(request.rows)) if at not in existing.stays]
    if request.max_affected is not None and len(answers) > request.max_affected:
        raise too_many_rows(len(answers), request.max_affected)
    wanted = replace(returning, rows=returning.rows and returning.old != "old", old="")
    parsed = replace(parsed, request=replace(request, returning=wanted, max_affected=None))
    written = await _change(call, parsed, existing, [at for at in answers if at in existing.old])
    absent = [at for at in answers if at not in existing.old]
    written.append((absent, await _create(call, parsed, existing, absent)))
    nothing = "null" if returning.form == "json" else None
    rows = old = [existing.old.get(at, nothing) for at in answers]
    if wanted.rows:
        pairs = (zip(numbers, each.rows, strict=True) for numbers, each in written)
        new = {at: row for each in pairs for at, row in each}
        rows = [new[at] for at in answers]
    if returning.old == "both":
        rows = paired(old, rows, returning.form)
    columns = write.columns_of(call, replace(request, returning=replace(returning, old="")))
    # Each statement was checked by itself; together the rows may be too large, before anything is committed.
    fit([rows, columns], backend.max_bytes)
    affected = sum(each.affected for _, each in written)
    tx = next((each.tx for _, each in written if each.tx), None)
    return answered(Written(rows, affected, columns, tx), returning, request.many)


async def _change(
    call: Call, parsed: New, existing: ExistingRows, to_change: Sequence[int]
) -> list[tuple[Sequence[int], Written]]:
    """
    Change the existing rows, by an update if the model has rules.

    Returns:
        What each statement wrote, with the numbers of its rows.

    Raises:
        NotChanged: The database leaves a row unchanged.
    """
    relation, conflict = relation_of(call), _conflict(parsed.request)
    ruled = call.snapshot.model(relation).has_rules(creating=False)
    groups: dict[frozenset[str] | None, list[int]] = {}
    changes: dict[int, tuple[Assignment, ...]] = {}
    for at in to_change:
        given = {each.column: each for each in parsed.request.rows[at]}
        changes[at] = _changes(relation, conflict, given, existing.key) if ruled else ()
        # A statement sets a column to its default in all of its rows or in none.
        defaults = frozenset(each.column for each in changes[at] if each.operand is None)
        groups.setdefault(defaults if changes[at] else None, []).append(at)
    written: list[tuple[Sequence[int], Written]] = []
    for group, numbers in groups.items():
        # By the usual upsert statement if possible: an UPDATE would need other rights, and would fire no
        # trigger for a row that has only its key.
        if existing.by_index:
            found = await _upserted_by_index(call, parsed, numbers, existing)
        elif group is None:
            found = await _upserted(call, parsed, numbers, EVERYTHING)
        else:
            found = await _updated(call, parsed, existing, {at: changes[at] for at in numbers})
        if found.affected < len(numbers):
            raise NotChanged(relation.name)
        written.append((numbers, found))
    return written


async def _updated(
    call: Call, parsed: New, existing: ExistingRows, changes: Mapping[int, tuple[Assignment, ...]]
) -> Written:
    """Change rows by an `update` with different changes for each row, which the model validates."""
    request, values, rows = parsed.request, Values(parsed.values), []
    paths = tuple(request.paths[at] or "values" for at in changes)
    for path, (at, changed) in zip(paths, changes.items(), strict=True):
        given = {each.column: each for each in request.rows[at]}
        key = given_of([given[name] for name in existing.key], parsed.values)
        rows.append((*literals(key, path, values), *changed))
    update = UpdateRowsRequest(tuple(rows), existing.key, request.returning, given_paths=paths)
    of_rows = Parsed(update, values.freeze(), parsed.timeout)
    try:
        return await write_rows(call, of_rows)
    except NoRowWritten:
        raise await missing_row(call, of_rows) from None


def _changes(
    relation: Relation,
    conflict: OnConflict,
    given: Mapping[str, Assignment],
    key: Sequence[str],
) -> tuple[Assignment, ...]:
    """Return the changes of an existing row."""
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


async def _create(
    call: Call, parsed: New, existing: ExistingRows, absent: Sequence[int]
) -> Written:
    """
    Create the rows that do not exist.

    The statement has the rows that stay as well, so that PostgreSQL checks the caller's rights on them.

    Raises:
        RowUnseen: One of them exists by now.
        ServiceError: The caller may not change or not see one, or the database leaves one out.
    """
    request, snapshot, relation = parsed.request, call.snapshot, relation_of(call)
    numbers = sorted({*absent, *existing.stays})
    if not numbers:
        return Written([], 0, ())
    if snapshot.model(relation).has_rules(creating=True):
        pause, paths, rows = call.backend.database.yield_to_reactor, request.paths, [*request.rows]
        where = [paths[at] or "values" for at in numbers]
        new = [rows[at] for at in numbers]
        made, values = await validated_rows(snapshot, relation, new, where, parsed.values, pause)
        for at, row in zip(numbers, made, strict=True):
            rows[at] = row
        parsed = replace(parsed, request=replace(request, rows=tuple(rows)), values=values)
    # With a condition that is never true an existing row is left unchanged, and only its absence is counted.
    written = await _upserted(call, parsed, numbers, NEVER)
    if written.affected != len(absent):
        raise await _refusal(call, parsed, existing, absent)
    return written


async def _refusal(
    call: Call, parsed: New, existing: ExistingRows, absent: Sequence[int]
) -> ServiceError:
    """
    Return why fewer rows were created than did not exist.

    Raises:
        NotAuthorized: The caller may not change one of them, by PostgreSQL's check of an upsert.
        InvalidArgument: Two rows have the same key, or a default or a trigger sets a part of a key.
    """
    relation, where = relation_of(call), _conflict(parsed.request).where
    hidden = Conflict(
        "a row with one of these keys exists, and is not visible to this caller",
        relation=relation.name,
    )
    late = RowUnseen("a row with one of these keys was inserted meanwhile", retry=True)
    if existing.by_index:  # any other reason would have refused the upsert that was rolled back
        return late
    keys = {at: existing.keys[at] for at in absent if at in existing.keys}
    # Read before the upsert, which may make a view show the row.
    seen = await _read(call, parsed, existing.key, keys)
    try:
        written = await _upserted(call, parsed, absent, where)
    except RowUnseen:
        # This statement began after the row was inserted, so the caller may not see the row.
        return hidden
    if len(seen) == len(absent):
        return late
    if written.affected < len(absent) and where == EVERYTHING:
        return NotChanged(relation.name)
    for at in absent:
        left = set(existing.key) - given_of(parsed.request.rows[at], parsed.values).keys()
        if left and at not in seen:
            made = min(left)
            return InvalidArgument(
                "an existing row is found by the values of its key, and here one is a default",
                path=parsed.request.paths[at] or "values",
                column=made,
                hint=None if relation.columns[made].generated_always else f'give "{made}"',
            )
    if written.affected < len(absent):
        return NotChanged(relation.name)
    if "insert" in relation.before_triggers:
        return InvalidArgument(
            "an existing row is found by the values of its key, and a trigger changes them",
            path="values",
            hint="give the values that the trigger makes",
        )
    return hidden


async def _upserted(call: Call, parsed: New, numbers: Sequence[int], where: Filter) -> Written:
    """Upsert some of the rows by one statement, with a condition on the existing ones."""
    request = parsed.request
    rows, paths = zip(*((request.rows[at], request.paths[at]) for at in numbers), strict=True)
    conflict = replace(_conflict(request), where=where)
    some = replace(request, rows=rows, many=True, conflict=conflict, given_paths=paths)
    written: Written = await call.run(create_step(call, replace(parsed, request=some)))
    return written


async def _upserted_for(
    call: Call, parsed: New, numbers: Sequence[int], key: Sequence[str]
) -> Written:
    """Upsert some of the rows, and return their keys."""
    items = tuple(Item(Reference(name, "values")) for name in key)
    returning = replace(
        parsed.request.returning, rows=True, select=items, embeds=(), form="lists", old=""
    )
    asked = replace(parsed.request, returning=returning, max_affected=None)
    return await _upserted(call, replace(parsed, request=asked), numbers, EVERYTHING)


async def _upserted_by_index(
    call: Call, parsed: New, numbers: Sequence[int], existing: ExistingRows
) -> Written:
    """
    Change existing rows by an upsert whose conflict target is an index.

    Raises:
        RowUnseen: The index finds other rows by now.
    """
    keys = {at: existing.keys[at] for at in numbers}
    written = await _upserted_for(call, parsed, numbers, existing.key)
    if written.rows != [*keys.values()]:
        raise RowUnseen("a row with one of these keys was inserted meanwhile", retry=True)
    if not parsed.request.returning.rows:
        return replace(written, rows=[])
    new = await _read(call, parsed, existing.key, keys, answer=True)
    if len(new) < len(numbers):
        raise NotChanged(relation_of(call).name)
    return replace(written, rows=[new[at] for at in numbers])


def _conflict(request: CreateRequest) -> OnConflict:
    if request.conflict is None:
        raise TypeError("an upsert says what becomes of rows that are there")
    return request.conflict
