"""
The verb upsert where the rows that are there are looked at first: with `returning` "old" or "both", and
where a model has a say in what changes in them.

They are locked and read by the key. Then the statement of any upsert changes them, or an update of rows
where the model has rules; the others are created by one that changes no row. A row that this meets all
the same has come meanwhile, and all of it is made again; or the caller may not see it, or not change it.
What an index on expressions, or on a part of the rows, finds is learned from an upsert that is undone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.api import write
from service.api.call import Call, Step
from service.api.row_updates import missing_row, write_rows
from service.api.rules import given_of, validated_rows
from service.api.write import (
    UNBOUNDED,
    answered,
    creating,
    paired,
    refuse_inner,
    relation_of,
)
from service.catalog import Relation
from service.db.statements import Shape, by_keys_txn
from service.db.writes import NoRowWritten, RowUnseen, Written, too_many_rows
from service.errors import Conflict, InvalidArgument, NotChanged, ServiceError
from service.payload import fit
from service.plan.plans import Lock
from service.plan.predicates import both, plan_filter
from service.plan.read_plan import plan_get
from service.plan.scope import Scope
from service.plan.write_plan import no_known_key, plan_conflict
from service.request.arguments import Values
from service.request.assignments import literals
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
from service.request.write_request import parse_upsert
from service.sql.select import select

New = Parsed[CreateRequest]


@dataclass(frozen=True, slots=True)
class Met:
    """
    What is there already of the rows of a call.

    Args:
        key: The columns by which they are found.
        by_index: Whether that is not what an upsert goes by, which is an index.
        keys: Their values, by the numbers of the call's rows.
        old: Those that are locked, in the form of the answer, likewise.
        stays: The numbers of those that are left alone, locked or not.
    """

    key: tuple[str, ...]
    by_index: bool
    keys: Mapping[int, Sequence[Any]]
    old: Mapping[int, Any]
    stays: frozenset[int] = frozenset()


class _Undone(Exception):
    """A savepoint is rolled back by it."""


def upsert(call: Call) -> Step | Awaitable[Any]:
    """
    Prepare `upsert`: the rows, new or changed; None for a single one that is left alone.

    Raises:
        InvalidRow: The model or the catalog refuses it.
    """
    return write.with_new_rows(call, parse_upsert, _upsert)


def _upsert(call: Call, parsed: New) -> Step | Awaitable[Any]:
    conflict, old = _conflict(parsed.request), parsed.request.returning.old
    ruled = conflict.changes and call.snapshot.model(relation_of(call)).has_rules(creating=False)
    # Where rows that are there are left alone, all that are answered are new.
    if conflict.update == () or not (ruled or old):
        return write.write_new_rows(call, parsed)
    return _looked_first(call, parsed)


async def _looked_first(call: Call, parsed: New) -> Any:
    key, by_index = _key(call, parsed)

    async def attempt() -> Any:
        met = await _met(call, parsed, key, by_index)
        return await _write(call, parsed, met)

    database = call.backend.database
    return await database.transact(attempt, timeout=parsed.timeout, kind=relation_of(call).name)


def _key(call: Call, parsed: New) -> tuple[tuple[str, ...], bool]:
    """
    Return the columns by which rows that are there are found, and whether the upsert goes by an index.

    Raises:
        InvalidArgument: There are none, or the answer would not have a row for each that is written.
    """
    relation, request = relation_of(call), parsed.request
    conflict = _conflict(request)
    planned = plan_conflict(Scope(call.snapshot.catalog, relation), conflict, request.rows)
    by_index, key = planned.target is not None, planned.key
    changed = {each.column for each in conflict.changes}
    if by_index:
        _refuse_of_index(call, conflict)
        key, changed = relation.known_key, {each.column.name for each in planned.updates}
        if not key:
            raise no_known_key(relation, "rows that are looked at first", "on_conflict")
    elif planned.nulls:
        _refuse_null_keys(relation, key, parsed)
    if not set(key).isdisjoint(changed):
        raise InvalidArgument(
            "rows that are looked at first are found by their key, and these changes are of it",
            path="update",
            hint='"update" names the columns that change' if by_index else None,
        )
    if request.returning.order:
        raise InvalidArgument("these rows come in the order of the call", path="order")
    refuse_inner(request.returning)
    return key, by_index


def _refuse_of_index(call: Call, conflict: OnConflict) -> None:
    """Refuse what takes the values of a key, which an index has none of."""
    ruled = call.snapshot.model(relation_of(call)).has_rules(creating=False)
    if (conflict.changes and ruled) or conflict.where != EVERYTHING:
        raise InvalidArgument(
            "rows that a model or a condition has a say in are found by the columns of a key, and this"
            " is an index",
            path="on_conflict",
        )


def _refuse_null_keys(relation: Relation, key: tuple[str, ...], parsed: New) -> None:
    """Refuse rows whose key has a null, where one that is there may have the same."""
    columns = [relation.columns[name] for name in key]
    for path, row in zip(parsed.request.paths, parsed.request.rows, strict=True):
        given = given_of(row, parsed.values)
        for each in columns:
            if given[each.name] is None if each.name in given else not each.has_default:
                raise null_in_key(f"{path or 'values'}.{each.name}", each.name)


async def _met(call: Call, parsed: New, key: tuple[str, ...], by_index: bool) -> Met:
    """Lock and read the rows that are there."""
    request, where = parsed.request, _conflict(parsed.request).where
    if by_index:
        keys = await _met_by_index(call, parsed, key)
    else:
        keys = _given_keys(parsed, key)
    old = await _look(call, parsed, key, keys, Lock(), answer=bool(request.returning.old))
    if where == EVERYTHING:
        return Met(key, by_index, keys, old)
    # without a lock: a row that the caller may not change stays as well
    seen = await _look(call, parsed, key, keys)
    holds = await _look(call, parsed, key, keys, where=where)
    return Met(key, by_index, keys, old, frozenset(seen.keys() - holds.keys()))


def _given_keys(parsed: New, key: Sequence[str]) -> dict[int, Sequence[Any]]:
    """Return the keys of the rows that give one, by their numbers."""
    given: dict[int, Sequence[Any]] = {}
    for at, row in enumerate(parsed.request.rows):
        slots = {each.column: each.operand for each in row}
        found = [slots.get(name) for name in key]
        parts = [parsed.values[each.slot] for each in found if each is not None]
        if len(parts) == len(key) and None not in parts:
            given[at] = parts
    return given


async def _met_by_index(call: Call, parsed: New, key: tuple[str, ...]) -> dict[int, Sequence[Any]]:
    """
    Return the keys of the rows that an upsert writes, which is undone: only PostgreSQL knows what an
    index makes of a row.

    Raises:
        NotChanged: The database leaves one out.
    """
    numbers = range(len(parsed.request.rows))
    try:
        async with call.backend.database.transaction():
            written = await _upserted_for(call, parsed, numbers, key)
            raise _Undone
    except _Undone:
        if len(written.rows) < len(numbers):
            raise NotChanged(relation_of(call).name) from None
        return dict(zip(numbers, written.rows, strict=True))


async def _look(
    call: Call,
    parsed: New,
    key: tuple[str, ...],
    given: Mapping[int, Sequence[Any]],
    lock: Lock | None = None,
    where: Filter = EVERYTHING,
    answer: bool = False,
) -> dict[int, Any]:
    """
    Read the rows that are there, by the numbers of the call's rows.

    Args:
        call: Of the upsert.
        parsed: Its rows.
        key: The columns by which they are found.
        given: The values of those, by the numbers of the rows that are looked for.
        lock: How those that are there are kept as they are, if they are.
        where: What holds of those that are found.
        answer: Whether they are read as they are answered, and not by their keys alone.
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
    rows = await call.run(Step(by_keys_txn, args, list, None, "write"))
    return {at: row for at, row in zip(given, rows, strict=True) if row is not None}


async def _write(call: Call, parsed: New, met: Met) -> Any:
    """
    Change the rows that are there, and create the others.

    Raises:
        TooManyRows: More than `max_affected`.
        RowUnseen: A row has come meanwhile.
    """
    request, returning, backend = parsed.request, parsed.request.returning, call.backend
    answers = [at for at in range(len(request.rows)) if at not in met.stays]
    if request.max_affected is not None and len(answers) > request.max_affected:
        raise too_many_rows(len(answers), request.max_affected)
    wanted = replace(returning, rows=returning.rows and returning.old != "old", old="")
    parsed = replace(parsed, request=replace(request, returning=wanted, max_affected=None))
    written = await _change(call, parsed, met, [at for at in answers if at in met.old])
    absent = [at for at in answers if at not in met.old]
    written.append((absent, await _create(call, parsed, met, absent)))
    nothing = "null" if returning.form == "json" else None
    rows = old = [met.old.get(at, nothing) for at in answers]
    if wanted.rows:
        pairs = (zip(numbers, each.rows, strict=True) for numbers, each in written)
        new = {at: row for each in pairs for at, row in each}
        rows = [new[at] for at in answers]
    if returning.old == "both":
        rows = paired(old, rows, returning.form)
    columns = write.columns_of(call, replace(request, returning=replace(returning, old="")))
    fit([rows, columns], backend.max_bytes)
    affected = sum(each.affected for _, each in written)
    tx = next((each.tx for _, each in written if each.tx), None)
    return answered(Written(rows, affected, columns, tx), returning, request.many)


async def _change(
    call: Call, parsed: New, met: Met, there: Sequence[int]
) -> list[tuple[Sequence[int], Written]]:
    """
    Change the rows that are there; as an update of rows does, where the model has rules.

    Returns:
        What was written, with the numbers of the rows.

    Raises:
        NotChanged: The database leaves one as it is.
    """
    relation, conflict = relation_of(call), _conflict(parsed.request)
    ruled = call.snapshot.model(relation).has_rules(creating=False)
    groups: dict[frozenset[str] | None, list[int]] = {}
    changes: dict[int, tuple[Assignment, ...]] = {}
    for at in there:
        given = {each.column: each for each in parsed.request.rows[at]}
        changes[at] = _changes(relation, conflict, given, met.key) if ruled else ()
        # one statement sets a column to its default in all of its rows
        defaults = frozenset(each.column for each in changes[at] if each.operand is None)
        groups.setdefault(defaults if changes[at] else None, []).append(at)
    written: list[tuple[Sequence[int], Written]] = []
    for group, numbers in groups.items():
        if met.by_index:
            found = await _upserted_by_index(call, parsed, numbers, met)
        elif group is None:
            found = await _upserted(call, parsed, numbers, EVERYTHING)
        else:
            found = await _updated(call, parsed, met, {at: changes[at] for at in numbers})
        if found.affected < len(numbers):
            raise NotChanged(relation.name)
        written.append((numbers, found))
    return written


async def _updated(
    call: Call, parsed: New, met: Met, changes: Mapping[int, tuple[Assignment, ...]]
) -> Written:
    """Change rows as an update of rows does."""
    request, values, rows = parsed.request, Values(parsed.values), []
    paths = tuple(request.paths[at] or "values" for at in changes)
    for path, (at, changed) in zip(paths, changes.items(), strict=True):
        given = {each.column: each for each in request.rows[at]}
        key = given_of([given[name] for name in met.key], parsed.values)
        rows.append((*literals(key, path, values), *changed))
    update = UpdateRowsRequest(tuple(rows), met.key, request.returning, given_paths=paths)
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


async def _create(call: Call, parsed: New, met: Met, absent: Sequence[int]) -> Written:
    """
    Create the rows that are not there; PostgreSQL is asked of those that are left alone as well.

    Raises:
        RowUnseen: One of them is there, by now.
        ServiceError: The caller may not change one, or not see it; or the database leaves one out.
    """
    request, snapshot, relation = parsed.request, call.snapshot, relation_of(call)
    numbers = sorted({*absent, *met.stays})
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
    written = await _upserted(call, parsed, numbers, NEVER)
    if written.affected != len(absent):
        raise await _refusal(call, parsed, met, absent)
    return written


async def _refusal(call: Call, parsed: New, met: Met, absent: Sequence[int]) -> ServiceError:
    """
    Return why fewer rows were created than were not there.

    Raises:
        NotAuthorized: The caller may not change one of them, as PostgreSQL says of any upsert.
        InvalidArgument: Two have the same key; or a default or a trigger makes a part of one.
    """
    relation, where = relation_of(call), _conflict(parsed.request).where
    hidden = Conflict("a row with one of these keys is not shown", relation=relation.name)
    late = RowUnseen("a row with one of these keys has come meanwhile", retry=True)
    if met.by_index:  # else there was nothing to say against the upsert that is undone
        return late
    keys = {at: met.keys[at] for at in absent if at in met.keys}
    seen = await _look(call, parsed, met.key, keys)  # before a change has a view show a row
    try:
        written = await _upserted(call, parsed, absent, where)
    except RowUnseen:  # by a statement that began after it came
        return hidden
    if len(seen) == len(absent):
        return late
    if written.affected < len(absent) and where == EVERYTHING:
        return NotChanged(relation.name)
    for at in absent:
        left = set(met.key) - given_of(parsed.request.rows[at], parsed.values).keys()
        if left and at not in seen:
            made = min(left)
            return InvalidArgument(
                "a row that is there is found by the values of its key, and here one is a default",
                path=parsed.request.paths[at] or "values",
                column=made,
                hint=None if relation.columns[made].generated_always else f'give "{made}"',
            )
    if written.affected < len(absent):
        return NotChanged(relation.name)
    if "insert" in relation.before_triggers:
        return InvalidArgument(
            "a row that is there is found by the values of its key, and a trigger makes others of them",
            path="values",
            hint="give them as the trigger does",
        )
    return hidden


async def _upserted(call: Call, parsed: New, numbers: Sequence[int], where: Filter) -> Written:
    """Upsert some of the rows by one statement, under a condition."""
    request = parsed.request
    rows, paths = zip(*((request.rows[at], request.paths[at]) for at in numbers), strict=True)
    conflict = replace(_conflict(request), where=where)
    some = replace(request, rows=rows, many=True, conflict=conflict, given_paths=paths)
    written: Written = await call.run(creating(call, replace(parsed, request=some)))
    return written


async def _upserted_for(
    call: Call, parsed: New, numbers: Sequence[int], key: Sequence[str]
) -> Written:
    """Upsert some of the rows for their keys."""
    items = tuple(Item(Reference(name, "values")) for name in key)
    returning = replace(
        parsed.request.returning, rows=True, select=items, embeds=(), form="lists", old=""
    )
    asked = replace(parsed.request, returning=returning, max_affected=None)
    return await _upserted(call, replace(parsed, request=asked), numbers, EVERYTHING)


async def _upserted_by_index(call: Call, parsed: New, numbers: Sequence[int], met: Met) -> Written:
    """
    Change rows that an index has found.

    Raises:
        RowUnseen: It finds others by now.
    """
    keys = {at: met.keys[at] for at in numbers}
    written = await _upserted_for(call, parsed, numbers, met.key)
    if written.rows != [*keys.values()]:
        raise RowUnseen("a row with one of these keys has come meanwhile", retry=True)
    if not parsed.request.returning.rows:
        return replace(written, rows=[])
    new = await _look(call, parsed, met.key, keys, answer=True)
    if len(new) < len(numbers):
        raise NotChanged(relation_of(call).name)
    return replace(written, rows=[new[at] for at in numbers])


def _conflict(request: CreateRequest) -> OnConflict:
    if request.conflict is None:
        raise TypeError("an upsert says what becomes of rows that are there")
    return request.conflict
