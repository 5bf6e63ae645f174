"""
The arguments of `watch`: those of a find or of an aggregate, and how it is to be watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import Arguments, flag_of, placed
from service.request.read_request import Limits, Parsed, parse_aggregate, parse_unpaged
from service.request.requests import AggregateRequest, FindRequest

OPTIONS = ("since", "tx", "tables")
"""What it takes beside the arguments of the query."""

QUERY = ("where", "select", "embed", "order", "limit", "offset", "distinct")
GROUPS = ("measures", "group", "having")
"""Arguments by which it is an aggregate that is watched."""

MAX_TABLES = 100
"""Names of tables that a caller may say a function reads."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """
    How a query is to be watched.

    Args:
        since: The position that the caller has rows of, as it came; None for none.
        tx: Whether the caller's own transactions are to be told.
        tables: What a function reads beside what is seen of it, by name.
    """

    since: str | None
    tx: bool
    tables: tuple[str, ...]


def parse_options(kwargs: Mapping[str, Any]) -> tuple[WatchOptions, Mapping[str, Any]]:
    """
    Parse how a query is to be watched.

    Returns:
        That, and the keywords that are left for the query.
    """
    for name in ("form", "count", "after", "before"):
        if name in kwargs:
            takes = (*QUERY, *GROUPS, *OPTIONS)
            raise UnknownName(
                "argument", name, takes, path=name, hint="find takes it; watch gives rows as dicts"
            )
    own = {name: kwargs[name] for name in OPTIONS if name in kwargs}
    given = Arguments((), own, [], OPTIONS)
    since = given.value("since")
    if since is not None and not isinstance(since, str):
        raise InvalidArgument(
            "a position is a string", path="since", hint="give one back as it came"
        )
    tables = placed(given.value("tables"), "tables", MAX_TABLES)
    for name, place in tables:
        if not isinstance(name, str):
            raise InvalidArgument("a table is named by a string", path=place)
    options = WatchOptions(
        since, flag_of(given.value("tx"), "tx", "tx"), tuple(name for name, _ in tables)
    )
    return options, {name: value for name, value in kwargs.items() if name not in OPTIONS}


def parse_watched(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, rows: str, most: int
) -> Parsed[FindRequest] | Parsed[AggregateRequest]:
    """
    Parse the query that is watched.

    Args:
        args: By position: none are taken.
        kwargs: Less the options.
        limits: What may be asked for.
        rows: Of what the rows are.
        most: Rows that a result may have: one more is asked for, which tells.
    """
    if any(name in kwargs for name in GROUPS):
        if args:  # which aggregate takes for measures
            Arguments(args, {}, [], [*QUERY, *OPTIONS])
        return parse_aggregate((), {"measures": {}, **kwargs}, limits)
    parsed = parse_unpaged(args, kwargs, limits, rows, (*QUERY, *GROUPS, *OPTIONS))
    values = list(parsed.values)
    values[parsed.request.limit.slot] = min(values[parsed.request.limit.slot], most + 1)
    return replace(parsed, values=tuple(values))
