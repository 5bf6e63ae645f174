"""
Keyword arguments of `aggregate` to a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import InvalidArgument
from service.request.arguments import Arguments
from service.request.filters import FilterParser
from service.request.lists import parse_order, parse_select
from service.request.measures import parse_measures
from service.request.parse import Limits, Parsed, parse_form
from service.request.terms import Operand
from service.request.types import AggregateRequest
from service.request.values import Values

GROUPS = 5_000
"""The most groups of one answer; more rows are not handed through the reactor in one piece."""


def parse_aggregate(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits
) -> Parsed[AggregateRequest]:
    """Read the arguments of `aggregate`."""
    given = Arguments(
        args,
        kwargs,
        ["measures"],
        ["group", "where", "having", "order", "limit", "offset", "form"],
    )
    values = Values()
    measures = parse_measures(given.required("measures"), values, limits.max_depth)
    group = parse_select(given.value("group"), values, "group") or ()
    if not measures and not group:
        raise InvalidArgument(
            "there is nothing to aggregate", path="measures", hint='as in {"n": {"count": "*"}}'
        )
    limit, offset = given.whole("limit"), given.whole("offset")
    most = GROUPS + 1 if limit is None else min(limit, GROUPS + 1)
    request = AggregateRequest(
        measures=measures,
        group=group,
        where=FilterParser(values, limits.max_depth).parse(given.value("where")),
        having=FilterParser(values, limits.max_depth).parse(given.value("having"), "having"),
        order=parse_order(given.value("order"), values),
        limit=Operand(values.add(most), "limit"),
        offset=Operand(values.add(offset), "offset") if offset else None,
        form=parse_form(given),
    )
    return Parsed(request, values.freeze(), given.timeout())
