"""
The writing verbs: create, update, delete.

Every write starts from the relation's model, which knows the rules of its rows; then it
is one statement. A write whose answer could turn out too large, or too many, runs in a
transaction that is rolled back in that case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.answer.admission import admit_create, admit_update, refuse_faults
from service.answer.served import Served
from service.catalog import Catalog, Relation
from service.db.interactions import Page, Shape, Written, apart_txn, over, page_txn, write_txn
from service.db.scope import Database
from service.errors import Conflict, NotFound, ServiceError
from service.plan.write import plan_create, plan_current, plan_delete, plan_update
from service.request.parse import Limits, Parsed
from service.request.types import (
    CreateRequest,
    DeleteRequest,
    Returning,
    Target,
    UpdateRequest,
)
from service.request.writes import parse_create, parse_delete, parse_update
from service.sql.modify import modify
from service.sql.select import select
from service.sql.statement import Statement

Targeted = UpdateRequest | DeleteRequest
MANY = 100
"""Rows of one create from which on they are read in a pool thread, not in the reactor's."""
UNBOUNDED = 2**63
"""Bytes: rows that only a model sees may weigh what they weigh."""


class Writing:
    """
    Args:
        database: Where the rows are.
        limits: What a call may ask for.
        max_bytes: What an answer may weigh.
    """

    def __init__(self, database: Database, limits: Limits, max_bytes: int) -> None:
        self._database = database
        self._limits = limits
        self._max_bytes = max_bytes

    async def create(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `create`: the new row, or the list of them.

        Raises:
            InvalidRow: The model or the catalog says no.
            TooManyRows: More than `max_affected`.
        """
        call = await self._prepared(served, relation, args, kwargs)
        request = call.request
        if request.max_affected is not None and len(request.rows) > request.max_affected:
            raise over(len(request.rows), request.max_affected)
        if not request.rows:
            return [] if request.returning.rows else {"affected": 0}
        if served.model(relation).ruled:
            call = await admit_create(served, relation, call)
        make = partial(_create, served.catalog, relation, call.request)
        written = await self._write(served, make, call, request.max_affected)
        return _answer(written, request.returning, request.many)

    async def _prepared(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Parsed[CreateRequest]:
        """Read and check the rows of a create, many of them in a pool thread."""
        values = args[0] if args else kwargs.get("values")
        if isinstance(values, list | tuple) and len(values) > MANY:
            prepared: Parsed[CreateRequest] = await self._database.run(
                apart_txn, _prepare, served, relation, args, kwargs
            )
            return prepared
        return _prepare(served, relation, args, kwargs)

    async def update(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `update`: the changed row, or the rows and how many they are.

        Raises:
            NotFound: There is no row of that key.
            Conflict: It is not as expected.
            InvalidRow: The model or the catalog says no.
            TooManyRows: More than `max_affected`.
        """
        call = parse_update(args, kwargs, self._limits)
        if not call.request.changes:
            return await self._unchanged(served, relation, call)
        if served.model(relation).ruled:
            return await self._ruled(served, relation, call)
        refuse_faults(served, relation, call)
        return await self._targeted(served, relation, call, _update)

    async def delete(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `delete`: the deleted row, or the rows and how many they were.

        Raises:
            NotFound: There is no row of that key.
            Conflict: It is not as expected.
            TooManyRows: More than `max_affected`.
        """
        call = parse_delete(args, kwargs, self._limits)
        return await self._targeted(served, relation, call, _delete)

    async def _targeted(
        self,
        served: Served,
        relation: Relation,
        call: Parsed[Any],
        make: Callable[[Catalog, Relation, Any], Statement],
    ) -> Any:
        """Write the rows of a target."""
        request: Targeted = call.request
        statement = served.statement(make, relation, request)
        written = await self._write(served, lambda: statement, call, request.max_affected)
        if request.target.key is not None and not written.affected:
            raise await self._missing(served, relation, call)
        return _answer(written, request.returning, request.target.key is None, counted=True)

    async def _ruled(self, served: Served, relation: Relation, call: Parsed[UpdateRequest]) -> Any:
        """Update rows whose model has rules: each is read, changed and judged as a whole."""
        refuse_faults(served, relation, call)
        request = call.request
        async with self._database.transaction():
            current = await self._locked(served, relation, call)
            if request.max_affected is not None and len(current) > request.max_affected:
                raise over(len(current), request.max_affected)
            calls = await admit_update(served, relation, call, current)
            if len(calls) == 1:
                return await self._targeted(served, relation, calls[0], _update)
            written = [await self._update_one(served, relation, each) for each in calls]
        rows = [row for each in written for row in each.rows]
        whole = Written(rows, len(calls), written[0].columns)
        return _answer(whole, request.returning, many=True, counted=True)

    async def _locked(
        self, served: Served, relation: Relation, call: Parsed[UpdateRequest]
    ) -> list[Mapping[str, Any]]:
        """Read the rows of a target whole, and keep them as they are."""
        returning = Returning(order=call.request.returning.order)
        plan = plan_current(served.catalog, relation, call.request.target, returning, lock=True)
        page: Page = await self._database.run(
            page_txn, served.codec, select(plan), call.values, None, Shape("dicts", UNBOUNDED)
        )
        return page.rows

    async def _update_one(
        self, served: Served, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Written:
        statement = served.statement(_update, relation, call.request)
        return await self._write(served, lambda: statement, call, None)

    async def _unchanged(
        self, served: Served, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Any:
        """Answer an update without changes: by key the row as it is, else no row."""
        request = call.request
        if request.target.key is None:
            columns = _current(served.catalog, relation, request).columns
            return _answer(Written([], 0, columns), request.returning, many=True, counted=True)
        columns, rows = await self._current(served, relation, call, request.target)
        if not rows:
            raise await self._missing(served, relation, call)
        return _answer(Written(rows, 0, columns), request.returning, many=False)

    async def _missing(self, served: Served, relation: Relation, call: Parsed[Any]) -> ServiceError:
        """Say why a key met no row: there is none, or it is not as expected."""
        target = call.request.target
        if not target.expect:
            return NotFound(relation.name)
        _, rows = await self._current(served, relation, call, replace(target, expect=()))
        if not rows:
            return NotFound(relation.name)
        return Conflict(
            f'the row of "{relation.name}" is not as expected',
            relation=relation.name,
            row=rows[0],
        )

    async def _current(
        self, served: Served, relation: Relation, call: Parsed[Any], target: Target
    ) -> tuple[tuple[str, ...], list[Any]]:
        """Read the row of a target as it is; gives the columns and the rows."""
        returning = replace(call.request.returning, rows=True, order=())
        request = UpdateRequest(target, (), returning)
        statement = _current(served.catalog, relation, request)
        shape = Shape(returning.form, self._max_bytes)
        page: Page = await self._database.run(
            page_txn, served.codec, statement, call.values, None, shape, retry=True
        )
        return statement.columns, page.rows

    async def _write(
        self,
        served: Served,
        make: Callable[[], Statement],
        call: Parsed[Any],
        max_affected: int | None,
    ) -> Written:
        returning: Returning = call.request.returning
        unbounded = returning.rows or max_affected is not None
        run = self._database.atomic if unbounded else self._database.run
        written: Written = await run(
            write_txn,
            served.codec,
            make,
            call.values,
            max_affected,
            Shape(returning.form, self._max_bytes),
            timeout=call.timeout,
        )
        return written


def _answer(written: Written, returning: Returning, many: bool, counted: bool = False) -> Any:
    """Give a write's answer its form; `counted` where the caller cannot know the number."""
    if not returning.rows:
        return {"affected": written.affected}
    if returning.form == "lists":
        answer = {"columns": list(written.columns), "rows": written.rows}
        return {**answer, "affected": written.affected} if many and counted else answer
    if not many:
        return written.rows[0] if written.rows else None
    return {"rows": written.rows, "affected": written.affected} if counted else written.rows


def _prepare(
    served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Parsed[CreateRequest]:
    call = parse_create(args, kwargs)
    refuse_faults(served, relation, call)
    return call


def _create(catalog: Catalog, relation: Relation, request: CreateRequest) -> Statement:
    return modify(plan_create(catalog, relation, request))


def _current(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return select(plan_current(catalog, relation, request.target, request.returning))


def _update(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return modify(plan_update(catalog, relation, request))


def _delete(catalog: Catalog, relation: Relation, request: DeleteRequest) -> Statement:
    return modify(plan_delete(catalog, relation, request))
