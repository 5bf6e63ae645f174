"""
The verb aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.answer.served import Served
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation, Type
from service.db.interactions import Page, Shape, page_txn
from service.db.sqlstate import refusal
from service.errors import InvalidArgument
from service.plan.aggregate import plan_aggregate
from service.plan.conditions import PlannedMeasure
from service.request.aggregate import parse_aggregate
from service.request.types import AggregateRequest
from service.sql.aggregate import aggregate
from service.sql.statement import Statement

FOR = {"sum": "numeric", "avg": "numeric", "bool_and": "boolean", "bool_or": "boolean"}
"""What a function is for."""


class Aggregating(Verbs):
    """The verb that measures groups of rows."""

    async def aggregate(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `aggregate`: the measures of each group.

        Raises:
            InvalidArgument: Among others, a function is none of its column's type.
        """
        call = parse_aggregate(args, kwargs, self.limits)
        statement = served.statement(_aggregate, relation, call.request)
        shape = Shape(call.request.form, self.max_bytes)
        try:
            page: Page = await self.database.run(
                page_txn,
                served.codec,
                statement,
                call.values,
                None,
                shape,
                retry=True,
                timeout=call.timeout,
            )
        except Exception as error:
            found = refusal(error, served.catalog, relation)
            if not isinstance(found, InvalidArgument) or "path" in found.details:
                raise
            plan = plan_aggregate(served.catalog, relation, call.request)
            _point_out(found, plan.grouped.measures)
            raise found from error
        if call.request.form == "lists":
            return {"columns": list(statement.columns), "rows": page.rows}
        return page.rows


def _point_out(found: InvalidArgument, measures: Sequence[PlannedMeasure]) -> None:
    """Say which measure has a function or a cast that its type lacks."""
    for each in measures:
        if each.operand and any(
            f"{each.function}({type}" in found.message for type in _spellings(each.operand.type)
        ):
            found.details["path"] = f"{each.path}.{each.function}"
            found.details["hint"] = (
                f'a cast may help, as in "column::{FOR.get(each.function, "text")}"'
            )
            return
        if each.cast and found.message.endswith(tuple(f" {it}" for it in _spellings(each.cast))):
            found.details["path"] = f"{each.path}.cast"
            return


def _spellings(type: Type) -> tuple[str, str]:
    """Give the ways in which PostgreSQL may spell a type, with its schema and without."""
    return type.sql, type.sql.rpartition(".")[2]


def _aggregate(catalog: Catalog, relation: Relation, request: AggregateRequest) -> Statement:
    return aggregate(plan_aggregate(catalog, relation, request))
