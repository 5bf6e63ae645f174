"""
The verbs update and delete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.answer.admission import admit_update, refuse_faults
from service.answer.served import Served
from service.answer.writing import Writing, answered
from service.catalog import Catalog, Relation
from service.db.statements import Missed, Page, Shape, Written, answered_columns, page_txn
from service.errors import Conflict, NotChanged, NotFound, ServiceError, TooManyRows
from service.plan.hidden import as_json
from service.plan.types import DeletePlan, UpdatePlan
from service.plan.write import plan_current, plan_delete, plan_update
from service.request.arguments import Values
from service.request.read import Parsed
from service.request.types import DeleteRequest, Operand, Returning, Target, UpdateRequest
from service.request.write import parse_delete, parse_update
from service.sql.select import select
from service.sql.statement import Statement
from service.sql.write import modify

MAX_JUDGED = 5000
"""Rows that a model judges in one call: each becomes an object in the reactor's thread."""
UNBOUNDED = 2**63
"""Bytes: rows that only a model sees may weigh what they weigh."""


class Changing(Writing):
    """Rows that are there already, one by key or all that a filter picks."""

    async def update(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `update`: the changed row, or the rows and how many they are.

        Raises:
            NotFound: There is no row of that key.
            NotChanged: There is, and the database did not change it.
            Conflict: It is not as expected.
            InvalidRow: The model or the catalog says no.
            TooManyRows: More than `max_affected`.
        """
        call = parse_update(args, kwargs, self.limits)
        if not call.request.changes:
            return await self._unchanged(served, relation, call)
        if served.judge(relation).ruled:
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
            NotChanged: There is, and the database did not delete it.
            Conflict: It is not as expected.
            InvalidRow: The model keeps it.
            TooManyRows: More than `max_affected`.
        """
        call = parse_delete(args, kwargs, self.limits)
        if served.judge(relation).guarded:
            return await self._guarded(served, relation, call)
        return await self._targeted(served, relation, call, _delete)

    async def _targeted(
        self,
        served: Served,
        relation: Relation,
        call: Parsed[Any],
        make: Callable[[Catalog, Relation, Any], Statement],
        known: int | None = None,
    ) -> Any:
        """
        Write the rows of a target.

        Args:
            served: For statements.
            relation: Whose rows.
            call: An update or a delete.
            make: Spells it.
            known: How many rows the model was asked about, if it was.

        Raises:
            Conflict: A row that nobody was asked about has come meanwhile.
        """
        request: UpdateRequest | DeleteRequest = call.request
        statement = served.statement(make, relation, request)
        most = request.max_affected if known is None else known
        one = request.target.key is not None
        try:
            written = await self.write(served, relation, lambda: statement, call, most, one)
        except Missed:
            raise await self._missing(served, relation, call) from None
        except TooManyRows:
            if known is None:
                raise
            raise Conflict(
                "other rows match by now; the same call may succeed",
                relation=relation.name,
                retry=True,
            ) from None
        return answered(written, request.returning, not one, counted=True)

    async def _ruled(self, served: Served, relation: Relation, call: Parsed[UpdateRequest]) -> Any:
        """Update rows whose model has rules: each is read, changed and judged as a whole."""
        refuse_faults(served, relation, call)
        request = call.request
        async with self.database.transaction():
            current = await self._locked(served, relation, call)
            calls = await admit_update(served, relation, call, current, self.database.breathe)
            if len(calls) == 1:
                return await self._targeted(served, relation, calls[0], _update, len(current))
            written = [await self._update_one(served, relation, each) for each in calls]
        rows = [row for each in written for row in each.rows]
        affected = sum(each.affected for each in written)
        whole = Written(rows, affected, written[0].columns)
        return answered(whole, request.returning, many=True, counted=True)

    async def _guarded(
        self, served: Served, relation: Relation, call: Parsed[DeleteRequest]
    ) -> Any:
        """Delete rows that their model may keep: each is read, and asked about."""
        async with self.database.transaction():
            current = await self._locked(served, relation, call)
            for row in current:
                await served.judge(relation).admit_delete(row)
            return await self._targeted(served, relation, call, _delete, len(current))

    async def _locked(
        self, served: Served, relation: Relation, call: Parsed[Any]
    ) -> list[Mapping[str, Any]]:
        """
        Read the rows of a target whole, and keep them as they are.

        Raises:
            TooManyRows: More than `max_affected`, or than can be judged in one call.
        """
        request: UpdateRequest | DeleteRequest = call.request
        returning = Returning(order=request.returning.order)
        most = MAX_JUDGED if request.max_affected is None else request.max_affected
        most = min(most, MAX_JUDGED)
        values = Values(call.values)
        limit = Operand(values.add(most + 1), "max_affected")
        # to lock a row takes the right to update it, which one who deletes may lack
        lock = relation.updatable
        plan = plan_current(served.catalog, relation, request.target, returning, lock, limit)
        page: Page = await self.database.run(
            page_txn,
            served.codec,
            select(plan),
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
        self, served: Served, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Written:
        statement = served.statement(_update_each, relation, call.request)
        return await self.write(served, relation, lambda: statement, call, None)

    async def _unchanged(
        self, served: Served, relation: Relation, call: Parsed[UpdateRequest]
    ) -> Any:
        """Answer an update without changes: by key the row as it is, else no row."""
        request = call.request
        if request.target.key is None:
            columns = answered_columns(_current(served.catalog, relation, request))
            return answered(Written([], 0, columns), request.returning, many=True, counted=True)
        columns, rows = await self._current(served, relation, call, request.target)
        if not rows:
            raise await self._missing(served, relation, call)
        return answered(Written(rows, 0, columns), request.returning, many=False)

    async def _missing(self, served: Served, relation: Relation, call: Parsed[Any]) -> ServiceError:
        """Say why no row of a key was written: there is none, it is not as expected, or it stays."""
        target = call.request.target
        _, rows = await self._current(served, relation, call, target)
        if rows:
            return NotChanged(relation.name)
        if not target.expect:
            return NotFound(relation.name)
        if call.request.returning.form == "json":  # an error holds the row itself
            returning = replace(call.request.returning, form="dicts")
            call = replace(call, request=replace(call.request, returning=returning))
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
        shape = Shape(returning.form, self.max_bytes)
        page: Page = await self.database.run(
            page_txn, served.codec, statement, call.values, None, shape, retry=True
        )
        return answered_columns(statement), page.rows


def _current(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    plan = plan_current(catalog, relation, request.target, request.returning)
    return select(plan, as_json(catalog, request.returning.form, plan.outputs, plan.embeds))


def _update(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    return _spelled(catalog, plan_update(catalog, relation, request), request)


def _update_each(catalog: Catalog, relation: Relation, request: UpdateRequest) -> Statement:
    """Spell the update of one of many rows, which may be left out."""
    return modify(plan_update(catalog, relation, request, many=True))


def _delete(catalog: Catalog, relation: Relation, request: DeleteRequest) -> Statement:
    return _spelled(catalog, plan_delete(catalog, relation, request), request)


def _spelled(
    catalog: Catalog, plan: UpdatePlan | DeletePlan, request: UpdateRequest | DeleteRequest
) -> Statement:
    form, back = request.returning.form, plan.back
    return modify(plan, as_json(catalog, form, back.outputs, back.embeds))
