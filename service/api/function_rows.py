"""
The verbs on what functions return: find and aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.api.handlers import Handlers
from service.api.json import listed, paged
from service.api.snapshot import Snapshot
from service.catalog import Catalog, Function
from service.db.statements import (
    Page,
    Shape,
    answered_columns,
    counted_txn,
    fitting_txn,
    groups_txn,
    page_txn,
    read_only_txn,
    value_txn,
)
from service.plan.functions import plan_called, plan_called_all, plan_called_groups
from service.plan.hidden import refuse_hidden_fields
from service.plan.uses import refuse_guarded
from service.request.functions import CalledRequest, parse_called
from service.request.paging import digest_of, write_token
from service.request.read import MAX_GROUPS, Parsed, parse_aggregate, parse_find
from service.request.types import AggregateRequest, FindRequest
from service.sql.aggregate import aggregate
from service.sql.select import count, estimate, select
from service.sql.statement import Statement

Find = Parsed[CalledRequest[FindRequest]]


class Called(Handlers):
    """The verbs on what functions return."""

    async def find(
        self,
        snapshot: Snapshot,
        functions: Sequence[Function],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answer `find`: a page of a function's rows, by offset, since they have no key."""
        call = parse_called(functions, args, kwargs, snapshot.catalog, self._find_of)
        request = call.request.of
        page, columns, total = await self._found(snapshot, call)
        limit = call.values[request.limit.slot] - 1
        token = write_token(digest_of(*call.query), call.offset + limit) if page.more else None
        answer: dict[str, Any] = {"next": token} | ({} if total is None else {"count": total})
        if request.form == "json":
            return paged(page.rows, **answer)
        if request.form == "lists":
            answer = {"columns": list(columns), **answer}
        return {"rows": page.rows, **answer}

    async def aggregate(
        self,
        snapshot: Snapshot,
        functions: Sequence[Function],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Answer `aggregate`: the measures of each group of a function's rows."""
        call = parse_called(functions, args, kwargs, snapshot.catalog, self._aggregate_of)
        request = call.request
        statement = snapshot.statement(_groups, request.call.function, request)
        shape = Shape(request.of.form, self.max_bytes)
        groups = await self._run(
            call, groups_txn, snapshot.codec, statement, call.values, MAX_GROUPS, shape
        )
        if request.of.form == "lists":
            return {"columns": list(statement.columns), "rows": groups}
        return listed(groups) if request.of.form == "json" else groups

    def _find_of(self, kwargs: Mapping[str, Any], rows: str) -> Parsed[FindRequest]:
        return parse_find([], kwargs, self.limits, rows)

    def _aggregate_of(self, kwargs: Mapping[str, Any], _: str) -> Parsed[AggregateRequest]:
        return parse_aggregate([], kwargs, self.limits)

    async def _found(
        self, snapshot: Snapshot, call: Find
    ) -> tuple[Page, tuple[str, ...], int | None]:
        """Return a page, the names of its columns, and the number of all rows if asked for."""
        request = call.request
        function, mode = request.call.function, request.of.count
        limit = call.values[request.of.limit.slot] - 1
        shape = Shape(request.of.form, self.max_bytes)
        if mode in ("exact", "estimated") and not function.reads:
            statement = snapshot.statement(_whole, function, request)
            page, total = await self._run(
                call, counted_txn, snapshot.codec, statement, call.values, call.offset, limit, shape
            )
            return page, answered_columns(statement), total
        statement = snapshot.statement(find, function, request)
        page = await self._run(call, page_txn, snapshot.codec, statement, call.values, limit, shape)
        total = await self._count(snapshot, call) if mode else None
        return page, answered_columns(statement), total

    async def _count(self, snapshot: Snapshot, call: Find) -> int:
        plan = plan_called_all(snapshot.catalog, call.request)
        mode, found = call.request.of.count, 0
        if mode != "exact":
            refuse_guarded(snapshot.catalog, plan)
        if mode != "planned":
            most = self.limits.max_rows
            spelled = count(plan, limit=most + 1 if mode == "estimated" else None)
            found = int(await self._run(call, value_txn, snapshot.codec, spelled, call.values))
            if mode == "exact" or found <= most:
                return found
        spelled = estimate(plan)
        (document,) = await self._run(call, value_txn, snapshot.codec, spelled, call.values)
        return max(found, int(document["Plan"]["Plan Rows"]))

    async def _run(self, call: Parsed[Any], function: Any, *args: Any) -> Any:
        reads = call.request.call.function.reads
        around = (read_only_txn,) if reads else (fitting_txn, self.max_bytes)
        return await self.database.again(
            lambda: self.database.atomic(
                *around, function, *args, read_only=reads, retry=reads, timeout=call.timeout
            )
        )


def find(catalog: Catalog, _: Function, request: CalledRequest[FindRequest]) -> Statement:
    """Build the statement of a find on a function's rows."""
    return _marked(select(plan_called(catalog, request)), request)


def as_csv(catalog: Catalog, _: Function, request: CalledRequest[FindRequest]) -> Statement:
    """Build the statement of a find whose rows PostgreSQL writes by itself, past the codec."""
    plan = plan_called(catalog, request)
    refuse_hidden_fields(catalog, plan.outputs, plan.embeds)
    return _marked(select(plan), request)


def _whole(catalog: Catalog, _: Function, request: CalledRequest[FindRequest]) -> Statement:
    plan = replace(plan_called(catalog, request), limit=None, offset=None)
    return _marked(select(plan), request)


def _groups(catalog: Catalog, _: Function, request: CalledRequest[AggregateRequest]) -> Statement:
    return _marked(aggregate(plan_called_groups(catalog, request)), request)


def _marked(statement: Statement, request: CalledRequest[Any]) -> Statement:
    return replace(statement, writes=not request.call.function.reads)
