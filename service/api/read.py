"""
The verbs get, find, count, exists and aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.api.handlers import Handlers
from service.api.json import listed, paged
from service.api.snapshot import Snapshot
from service.catalog import Catalog, Relation
from service.db.statements import Page, Shape, answered_columns, groups_txn, page_txn, value_txn
from service.errors import NotFound
from service.plan.aggregate import plan_aggregate
from service.plan.read import check_keyed, plan_all, plan_count, plan_find, plan_get
from service.plan.uses import refuse_guarded
from service.request.paging import digest_of, write_token
from service.request.read import (
    MAX_GROUPS,
    Parsed,
    parse_aggregate,
    parse_count,
    parse_find,
    parse_get,
)
from service.request.types import AggregateRequest, CountRequest, FindRequest, GetRequest
from service.sql.aggregate import aggregate
from service.sql.select import count, estimate, exists, select
from service.sql.statement import Statement


class Reading(Handlers):
    """The verbs that read a page, or a number."""

    async def get(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `get`: the row.

        Raises:
            NotFound: There is none of that key.
            NoSuchProcedure: The relation has no key.
        """
        check_keyed(relation, "get")
        call = parse_get(args, kwargs, self.limits)
        statement = snapshot.statement(_get, relation, call.request)
        shape = Shape(call.request.form, self.max_bytes)
        page = await self._page(snapshot, statement, call, None, shape)
        if not page.rows:
            raise NotFound(relation.name)
        if call.request.form == "lists":
            return {"columns": list(answered_columns(statement)), "rows": page.rows}
        return page.rows[0]

    async def find(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Answer `find`: a page of rows, the token of the next one, perhaps a count."""
        name = f"{relation.schema}.{relation.name}"
        call = parse_find(args, kwargs, self.limits, name)
        request = call.request
        statement = snapshot.statement(_find, relation, request)
        limit = call.values[request.limit.slot] - 1
        shape = Shape(request.form, self.max_bytes)
        page = await self._page(snapshot, statement, call, limit, shape)
        answer: dict[str, Any] = {"next": _next(call, page, limit, kwargs)}
        if request.count:
            answer["count"] = await self._count(snapshot, relation, call)
        if request.form == "json":
            return paged(page.rows, **answer)
        if request.form == "lists":
            answer = {"columns": list(answered_columns(statement)), **answer}
        return {"rows": page.rows, **answer}

    async def count(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> int:
        """Answer `count`: how many rows match."""
        call = parse_count(args, kwargs, self.limits)
        statement = snapshot.statement(_count, relation, call.request)
        return int(await self._value(snapshot, statement, call))

    async def exists(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> bool:
        """Answer `exists`: whether a row matches."""
        call = parse_count(args, kwargs, self.limits)
        statement = snapshot.statement(_exists, relation, call.request)
        return bool(await self._value(snapshot, statement, call))

    async def _count(
        self, snapshot: Snapshot, relation: Relation, call: Parsed[FindRequest]
    ) -> int:
        """Count what a find would give without its pages."""
        plan = plan_all(snapshot.catalog, relation, call.request)
        mode, found = call.request.count, 0
        if mode != "exact":
            refuse_guarded(snapshot.catalog, plan)
        if mode == "exact":
            return int(await self._value(snapshot, count(plan), call))
        if mode == "estimated":
            most = self.limits.max_rows
            found = int(await self._value(snapshot, count(plan, limit=most + 1), call))
            if found <= most:
                return found
        (document,) = await self._value(snapshot, estimate(plan), call)
        return max(found, int(document["Plan"]["Plan Rows"]))

    async def _page(
        self,
        snapshot: Snapshot,
        statement: Statement,
        call: Parsed[Any],
        limit: int | None,
        shape: Shape,
    ) -> Page:
        page: Page = await self.database.run(
            page_txn,
            snapshot.codec,
            statement,
            call.values,
            limit,
            shape,
            retry=True,
            timeout=call.timeout,
        )
        return page

    async def _value(self, snapshot: Snapshot, statement: Statement, call: Parsed[Any]) -> Any:
        return await self.database.run(
            value_txn, snapshot.codec, statement, call.values, retry=True, timeout=call.timeout
        )


def _next(
    call: Parsed[FindRequest], page: Page, limit: int, kwargs: Mapping[str, Any]
) -> str | None:
    if not page.more:
        return None
    digest = digest_of(*call.query)
    if page.end:
        return write_token(digest, page.end)
    if call.request.after:  # an empty page ends where the page before it did
        return str(kwargs["after"])
    return write_token(digest, call.offset + limit)


def _get(catalog: Catalog, relation: Relation, request: GetRequest) -> Statement:
    return select(plan_get(catalog, relation, request))


def _find(catalog: Catalog, relation: Relation, request: FindRequest) -> Statement:
    return select(plan_find(catalog, relation, request))


def _count(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return count(plan_count(catalog, relation, request))


def _exists(catalog: Catalog, relation: Relation, request: CountRequest) -> Statement:
    return exists(plan_count(catalog, relation, request))


class Aggregating(Handlers):
    """The verb that measures groups of rows."""

    async def aggregate(
        self, snapshot: Snapshot, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `aggregate`: the measures of each group.

        Raises:
            InvalidArgument: Among others, a function is none of its column's type.
            TooManyGroups: There are more than `MAX_GROUPS`.
        """
        call = parse_aggregate(args, kwargs, self.limits)
        statement = snapshot.statement(_aggregate, relation, call.request)
        shape = Shape(call.request.form, self.max_bytes)
        groups = await self.database.run(
            groups_txn,
            snapshot.codec,
            statement,
            call.values,
            MAX_GROUPS,
            shape,
            retry=True,
            timeout=call.timeout,
        )
        if call.request.form == "lists":
            return {"columns": list(statement.columns), "rows": groups}
        return listed(groups) if call.request.form == "json" else groups


def _aggregate(catalog: Catalog, relation: Relation, request: AggregateRequest) -> Statement:
    return aggregate(plan_aggregate(catalog, relation, request))
