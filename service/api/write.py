"""
The verbs create, upsert, update and delete.

A write whose answer could turn out too large, or too many, runs in a transaction that is
rolled back in that case. What the catalog's limits and the model's validations refuse is refused
before anything is sent. A model without validations and hooks builds no objects; one with them
sees rows as objects and may change them; what it made of a row is written.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.api.handlers import Handlers
from service.api.json import listed, paged
from service.api.snapshot import Snapshot
from service.catalog import Catalog, Relation
from service.db.statements import (
    NoRowWritten,
    Page,
    Shape,
    Written,
    answered_columns,
    compute_txn,
    page_txn,
    write_txn,
)
from service.errors import (
    Conflict,
    InvalidRow,
    NotAuthorized,
    NotChanged,
    NotFound,
    ServiceError,
    TooManyRows,
)
from service.models.validation import catalog_faults
from service.plan.write import plan_create, plan_current, plan_delete, plan_update, refuse_names
from service.request.arguments import Values
from service.request.read import Limits, Parsed, parse_key
from service.request.types import (
    EVERYTHING,
    Assignment,
    CreateRequest,
    DeleteRequest,
    KeyMatch,
    Operand,
    Returning,
    Target,
    UpdateRequest,
)
from service.request.write import (
    assignments,
    parse_create,
    parse_delete,
    parse_update,
    parse_upsert,
)
from service.sql.select import select
from service.sql.statement import Statement
from service.sql.write import modify

Breathe = Callable[[int], Awaitable[None]]
"""Called after each row, with its number."""


Parse = Callable[[Sequence[Any], Mapping[str, Any], Limits], Parsed[CreateRequest]]

MANY = 100
"""Rows of one call from which on they are read in a pool thread, not in the reactor's."""


MAX_JUDGED = 5000
"""Rows that a model judges in one call: each becomes an object in the reactor's thread."""
UNBOUNDED = 2**63
"""Bytes: rows that only a model sees may weigh what they weigh."""


class Writing(Handlers):
    """What the verbs that write share."""

    async def write(
        self,
        snapshot: Snapshot,
        relation: Relation,
        make: Callable[[], Statement],
        call: Parsed[Any],
        max_affected: int | None,
        one: bool = False,
        run: Callable[..., Awaitable[Any]] | None = None,
    ) -> Written:
        """
        Run a write; one that cannot be refused afterwards needs no transaction around it.

        Args:
            snapshot: For the codec.
            relation: What it writes.
            make: Builds the statement.
            call: The call.
            max_affected: How many rows may be written.
            one: Whether it is for one row, which has to be written.
            run: Runs it in the caller's transaction, or savepoint, which no refusal outlives.

        Raises:
            NoRowWritten: The one row was not written; nothing is kept.
            OutcomeUnknown: The connection was lost while it was being committed.
            TooManyRows: More than `max_affected`; nothing is kept.
            TooLarge: What it reads back weighs too much; nothing is kept.
        """
        returning: Returning = call.request.returning
        small = not returning.rows or (
            _is_one(call.request)
            and not returning.embeds
            and snapshot.most(relation, returning.select) <= self.max_bytes
        )
        if run is None:
            # what fails by itself keeps nothing, but it takes an open transaction with it
            sure = not (one and relation.side_effects) or (
                self.database.level is None and make().certain
            )
            alone = small and max_affected is None and sure
            run = self.database.run if alone else self.database.atomic
        shape = Shape(returning.form, self.max_bytes) if returning.rows else None
        written: Written = await self.database.again(
            partial(
                run,
                write_txn,
                snapshot.codec,
                make,
                call.values,
                max_affected,
                shape,
                one,
                self.database.level is None,
                timeout=call.timeout,
            )
        )
        return written


class Creating(Writing):
    """New rows, judged by the model and written in one statement."""

    async def create(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `create`: the new row, or the list of them.

        Raises:
            InvalidRow: The model or the catalog refuses it.
            NotChanged: The database did not take the one row.
            TooManyRows: More than `max_affected`.
        """
        return await self._written(snapshot, relation, args, kwargs, parse_create)

    async def upsert(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `upsert`: the rows, new or changed; None for a single one that is left alone.

        Raises:
            InvalidRow: The model or the catalog refuses it.
            TooManyRows: More than `max_affected`.
        """
        return await self._written(snapshot, relation, args, kwargs, parse_upsert)

    async def _written(
        self,
        snapshot: Snapshot,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parse: Parse,
    ) -> Any:
        call = await self._prepared(snapshot, relation, args, kwargs, parse)
        request = call.request
        if not request.rows:
            bare = replace(request, conflict=None)  # of no rows, none is there already
            columns = answered_columns(_create(snapshot.catalog, relation, bare))
            return answered(Written([], 0, columns), request.returning, many=True)
        if snapshot.model(relation).has_rules(creating=True):
            call = await admit_create(snapshot, relation, call, self.database.yield_to_reactor)
        make: Callable[[], Statement]
        if request.many:  # spelled in the pool thread, and seldom the same again
            make = partial(_create, snapshot.catalog, relation, call.request)
        else:
            statement = snapshot.statement(_create, relation, call.request)
            make = lambda: statement  # noqa: E731
        one = not request.many and request.conflict is None
        try:
            written = await self.write(snapshot, relation, make, call, request.max_affected, one)
        except NoRowWritten:
            raise NotChanged(relation.name) from None
        return answered(written, request.returning, request.many)

    async def _prepared(
        self,
        snapshot: Snapshot,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parse: Parse,
    ) -> Parsed[CreateRequest]:
        """Read and check new rows, many of them in a pool thread."""
        values = args[0] if args else kwargs.get("values")
        if isinstance(values, list | tuple) and len(values) > MANY:
            prepared: Parsed[CreateRequest] = await self.database.run(
                compute_txn,
                _prepare,
                snapshot,
                relation,
                args,
                kwargs,
                self.limits,
                parse,
                retry=True,
            )
            return prepared
        return _prepare(snapshot, relation, args, kwargs, self.limits, parse)


class Changing(Writing):
    """Rows that are there already, one by key or all that a filter picks."""

    async def update(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `update`: the changed row, or the rows and how many they are.

        Raises:
            NotFound: There is no row of that key.
            NotChanged: There is, and the database did not change it.
            Conflict: It is not as expected.
            InvalidRow: The model or the catalog refuses it.
            TooManyRows: More than `max_affected`.
        """
        call = parse_update(args, kwargs, self.limits)
        if not call.request.changes:
            return await self._unchanged(snapshot, relation, call)
        refuse_faults(snapshot, relation, call)
        try:
            if snapshot.model(relation).has_rules(creating=False):
                return await self._ruled(snapshot, relation, call)
            return await self._targeted(snapshot, relation, call, _update)
        except NoRowWritten:
            raise await self._missing(snapshot, relation, call) from None

    async def delete(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `delete`: the deleted row, or the rows and how many they were.

        Raises:
            NotFound: There is no row of that key.
            NotChanged: There is, and the database did not delete it.
            Conflict: It is not as expected.
            InvalidRow: The model keeps it.
            TooManyRows: More than `max_affected`.
        """
        call = parse_delete(args, kwargs, self.limits)
        try:
            if snapshot.model(relation).has_delete_hook:
                return await self._guarded(snapshot, relation, call)
            return await self._targeted(snapshot, relation, call, _delete)
        except NoRowWritten:
            raise await self._missing(snapshot, relation, call) from None

    async def _targeted(
        self,
        snapshot: Snapshot,
        relation: Relation,
        call: Parsed[Any],
        make: Callable[[Catalog, Relation, Any], Statement],
        known: int | None = None,
    ) -> Any:
        """
        Write the rows of a target.

        Args:
            snapshot: For statements.
            relation: Whose rows.
            call: An update or a delete.
            make: Builds the statement.
            known: How many rows the model was asked about, if it was.

        Raises:
            NoRowWritten: There is no such row, or the database did not write it.
            Conflict: A row that was not validated has come meanwhile.
        """
        request: UpdateRequest | DeleteRequest = call.request
        statement = snapshot.statement(make, relation, request)
        most = request.max_affected if known is None else known
        one = request.target.key is not None
        try:
            run = None if known is None else partial(self.database.run, last=True)
            written = await self.write(snapshot, relation, lambda: statement, call, most, one, run)
        except TooManyRows:
            if known is None:
                raise
            raise Conflict(
                "other rows match by now; the same call may succeed",
                relation=relation.name,
                retry=True,
            ) from None
        return answered(written, request.returning, not one, counted=True)

    async def _ruled(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Any:
        """Update rows whose model has rules: each is read, changed and validated as a whole."""
        request = call.request
        async with self.database.transaction():
            current = await self._locked(snapshot, relation, call)
            calls = await admit_update(
                snapshot, relation, call, current, self.database.yield_to_reactor
            )
            if len(calls) == 1:
                return await self._targeted(snapshot, relation, calls[0], _update, len(current))
            written = [await self._update_one(snapshot, relation, each) for each in calls]
        rows = [row for each in written for row in each.rows]
        affected = sum(each.affected for each in written)
        whole = Written(rows, affected, written[0].columns)
        return answered(whole, request.returning, many=True, counted=True)

    async def _guarded(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[DeleteRequest]
    ) -> Any:
        """Delete rows that their model may keep: each is read, and validated."""
        async with self.database.transaction():
            current = await self._locked(snapshot, relation, call)
            for row in current:
                await snapshot.model(relation).validate_delete(row)
            return await self._targeted(snapshot, relation, call, _delete, len(current))

    async def _locked(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[Any]
    ) -> list[Mapping[str, Any]]:
        """
        Read the rows of a target whole, and keep them as they are.

        Raises:
            TooManyRows: More than `max_affected`, or than can be judged in one call.
        """
        request: UpdateRequest | DeleteRequest = call.request
        most = MAX_JUDGED if request.max_affected is None else request.max_affected
        most = min(most, MAX_JUDGED)
        values = Values(call.values)
        limit = Operand(values.add(most + 1), "max_affected")
        wanted = request.target, Returning(order=request.returning.order), limit
        page: Page = await self.database.run(
            page_txn,
            snapshot.codec,
            snapshot.statement(_lock, relation, wanted),
            values.freeze(),
            most,
            Shape("dicts", UNBOUNDED),
            timeout=call.timeout,
        )
        if page.more:
            hint = "the model of this relation judges each row, so many rows want several calls"
            asked = most == request.max_affected
            raise TooManyRows(
                f"this would write more than {most} rows",
                hint="nothing was written" if asked else hint,
            )
        return page.rows

    async def _update_one(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Written:
        statement = snapshot.statement(_update_each, relation, call.request)
        return await self.write(
            snapshot, relation, lambda: statement, call, None, run=self.database.run
        )

    async def _unchanged(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Any:
        """Answer an update without changes: by key the row as it is, else no row."""
        request = call.request
        if request.target.key is None:
            columns = answered_columns(_current(snapshot.catalog, relation, request))
            return answered(Written([], 0, columns), request.returning, many=True, counted=True)
        columns, rows = await self._current(snapshot, relation, call, request.target)
        if not rows:
            raise await self._missing(snapshot, relation, call)
        return answered(Written(rows, 0, columns), request.returning, many=False)

    async def _missing(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[Any]
    ) -> ServiceError:
        """Return why no row of a key was written: none is there, or as expected, or it stays."""
        target = call.request.target
        _, rows = await self._current(snapshot, relation, call, target)
        if rows:
            return NotChanged(relation.name)
        if not target.expect:
            return NotFound(relation.name)
        if call.request.returning.form == "json":  # an error holds the row itself
            returning = replace(call.request.returning, form="dicts")
            call = replace(call, request=replace(call.request, returning=returning))
        _, rows = await self._current(snapshot, relation, call, replace(target, expect=()))
        if not rows:
            return NotFound(relation.name)
        return Conflict(
            f'the row of "{relation.name}" is not as expected',
            relation=relation.name,
            row=rows[0],
        )

    async def _current(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[Any], target: Target
    ) -> tuple[tuple[str, ...], list[Any]]:
        """Read the row of a target as it is; return the columns and the rows."""
        returning = replace(call.request.returning, rows=True, order=())
        request = UpdateRequest(target, (), returning)
        statement = _current(snapshot.catalog, relation, request)
        shape = Shape(returning.form, self.max_bytes)
        page: Page = await self.database.run(
            page_txn, snapshot.codec, statement, call.values, None, shape, retry=True
        )
        return answered_columns(statement), page.rows


def _prepare(
    snapshot: Snapshot,
    relation: Relation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    parse: Parse,
) -> Parsed[CreateRequest]:
    call = parse(args, kwargs, limits)
    refuse_faults(snapshot, relation, call)
    return call


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


async def admit_create(
    snapshot: Snapshot, relation: Relation, call: Parsed[CreateRequest], breathe: Breathe
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
        admitted = await model.validate_insert(given, snapshot.codec, path)
        rows.append(_merged(relation, row, given, admitted, path, values, snapshot))
        await breathe(at)
    return replace(call, request=replace(call.request, rows=tuple(rows)), values=values.freeze())


async def admit_update(
    snapshot: Snapshot,
    relation: Relation,
    call: Parsed[UpdateRequest],
    current: Sequence[Mapping[str, Any]],
    breathe: Breathe,
) -> list[Parsed[UpdateRequest]]:
    """
    Validate the changes of rows by the model.

    Args:
        snapshot: For the model and the codec.
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
    model, changes = snapshot.model(relation), call.request.changes
    given = given_of(changes, call.values)
    said: list[dict[str, Any]] = []
    found: list[Parsed[UpdateRequest]] = []
    for at, row in enumerate(current):
        admitted = await model.validate_update(row, given, snapshot.codec, "changes")
        said.append({name: snapshot.codec.wire(value) for name, value in admitted.items()})
        values = Values(call.values)
        merged = _merged(relation, changes, given, admitted, "changes", values, snapshot)
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


def _is_one(request: CreateRequest | UpdateRequest | DeleteRequest) -> bool:
    """Return whether a write is for one row at most."""
    if isinstance(request, CreateRequest):
        return not request.many
    return request.target.key is not None


def answered(written: Written, returning: Returning, many: bool, counted: bool = False) -> Any:
    """Return a write's answer in its form; `counted` where the caller cannot know the number."""
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
    return paged(written.rows, affected=written.affected) if counted else listed(written.rows)


def _key(relation: Relation, row: Mapping[str, Any], values: Values) -> KeyMatch | None:
    key = [row[name] for name in relation.primary_key]
    return parse_key(key, values) if key else None


def given_of(row: Sequence[Assignment], values: Sequence[Any]) -> dict[str, Any]:
    """Return a row's values by column, without those left to the defaults."""
    return {each.column: values[each.operand.slot] for each in row if each.operand is not None}


def made_of(
    snapshot: Snapshot, relation: Relation, given: Mapping[str, Any], admitted: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Return, as wire values, the columns of a row that its model has set or changed.

    Raises:
        NotAuthorized: A column of it is not there for the caller's role.
    """
    made = {
        name: snapshot.codec.wire(value)
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
    snapshot: Snapshot,
) -> tuple[Assignment, ...]:
    """Keep what the model left alone as it came, and take over what it changed."""
    changed = made_of(snapshot, relation, given, admitted)
    kept = tuple(each for each in row if each.column not in changed)
    return kept + assignments(changed, path, values)


def _create(catalog: Catalog, relation: Relation, request: CreateRequest) -> Statement:
    return modify(plan_create(catalog, relation, request))


def _current(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return select(plan_current(catalog, relation, request.target, request.returning))


def _lock(
    catalog: Catalog, relation: Relation, wanted: tuple[Target, Returning, Operand]
) -> Statement:
    """Build the statement for the rows that a model validates."""
    target, returning, limit = wanted
    # To lock a row takes the right to update it, which one who deletes may lack.
    lock = relation.updatable
    return select(plan_current(catalog, relation, target, returning, lock, limit))


def _update(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return modify(plan_update(catalog, relation, request))


def _update_each(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    """Build the update of one of many rows, which may be left out."""
    return modify(plan_update(catalog, relation, request, many=True))


def _delete(catalog: Catalog, relation: Relation, request: DeleteRequest) -> Statement:
    return modify(plan_delete(catalog, relation, request))
