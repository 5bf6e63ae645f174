"""
The verb aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.answer.served import Served
from service.answer.text import listed
from service.answer.verbs import Verbs
from service.catalog import Catalog, Relation
from service.db.statements import Shape, groups_txn
from service.plan.aggregate import plan_aggregate
from service.plan.hidden import as_json
from service.request.read import GROUPS, parse_aggregate
from service.request.types import AggregateRequest
from service.sql.aggregate import aggregate
from service.sql.statement import Statement


class Aggregating(Verbs):
    """The verb that measures groups of rows."""

    async def aggregate(
        self, served: Served, relation: Relation, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """
        Answer `aggregate`: the measures of each group.

        Raises:
            InvalidArgument: Among others, a function is none of its column's type.
            TooManyGroups: There are more than `GROUPS`.
        """
        call = parse_aggregate(args, kwargs, self.limits)
        statement = served.statement(_aggregate, relation, call.request)
        shape = Shape(call.request.form, self.max_bytes)
        groups = await self.database.run(
            groups_txn,
            served.codec,
            statement,
            call.values,
            GROUPS,
            shape,
            retry=True,
            timeout=call.timeout,
        )
        if call.request.form == "lists":
            return {"columns": list(statement.columns), "rows": groups}
        return listed(groups) if call.request.form == "json" else groups


def _aggregate(catalog: Catalog, relation: Relation, request: AggregateRequest) -> Statement:
    plan = plan_aggregate(catalog, relation, request)
    return aggregate(plan, as_json(catalog, request.form, plan.grouped.outputs))
