"""
The verbs create and upsert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from service.answer.admission import admit_create, refuse_faults
from service.answer.served import Served
from service.answer.writing import Writing, answered
from service.catalog import Catalog, Relation
from service.db.statements import Missed, Written, answered_columns, apart_txn
from service.errors import NotChanged
from service.plan.hidden import as_json
from service.plan.write import plan_create
from service.request.read import Limits, Parsed
from service.request.types import CreateRequest
from service.request.write import parse_create, parse_upsert
from service.sql.statement import Statement
from service.sql.write import modify

Parse = Callable[[Sequence[Any], Mapping[str, Any], Limits], Parsed[CreateRequest]]

MANY = 100
"""Rows of one call from which on they are read in a pool thread, not in the reactor's."""


class Creating(Writing):
    """New rows, judged by the model and written in one statement."""

    async def create(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `create`: the new row, or the list of them.

        Raises:
            InvalidRow: The model or the catalog says no.
            NotChanged: The database did not take the one row.
            TooManyRows: More than `max_affected`.
        """
        return await self._written(served, relation, args, kwargs, parse_create)

    async def upsert(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `upsert`: the rows, new or changed; None for a single one that is left alone.

        Raises:
            InvalidRow: The model or the catalog says no.
            TooManyRows: More than `max_affected`.
        """
        return await self._written(served, relation, args, kwargs, parse_upsert)

    async def _written(
        self,
        served: Served,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parse: Parse,
    ) -> Any:
        call = await self._prepared(served, relation, args, kwargs, parse)
        request = call.request
        if not request.rows:
            bare = replace(request, conflict=None)  # of no rows, none is there already
            columns = answered_columns(_create(served.catalog, relation, bare))
            return answered(Written([], 0, columns), request.returning, many=True)
        if served.judge(relation).ruled:
            call = await admit_create(served, relation, call, self.database.breathe)
        make: Callable[[], Statement]
        if request.many:  # spelled in the pool thread, and seldom the same again
            make = partial(_create, served.catalog, relation, call.request)
        else:
            statement = served.statement(_create, relation, call.request)
            make = lambda: statement  # noqa: E731
        one = not request.many and request.conflict is None
        try:
            written = await self.write(served, relation, make, call, request.max_affected, one)
        except Missed:
            raise NotChanged(relation.name) from None
        return answered(written, request.returning, request.many)

    async def _prepared(
        self,
        served: Served,
        relation: Relation,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parse: Parse,
    ) -> Parsed[CreateRequest]:
        """Read and check new rows, many of them in a pool thread."""
        values = args[0] if args else kwargs.get("values")
        if isinstance(values, list | tuple) and len(values) > MANY:
            prepared: Parsed[CreateRequest] = await self.database.run(
                apart_txn,
                _prepare,
                served,
                relation,
                args,
                kwargs,
                self.limits,
                parse,
                retry=True,
            )
            return prepared
        return _prepare(served, relation, args, kwargs, self.limits, parse)


def _prepare(
    served: Served,
    relation: Relation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    limits: Limits,
    parse: Parse,
) -> Parsed[CreateRequest]:
    call = parse(args, kwargs, limits)
    refuse_faults(served, relation, call)
    return call


def _create(catalog: Catalog, relation: Relation, request: CreateRequest) -> Statement:
    plan = plan_create(catalog, relation, request)
    return modify(
        plan, as_json(catalog, request.returning.form, plan.back.outputs, plan.back.embeds)
    )
