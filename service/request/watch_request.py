"""
Parse the arguments of `watch`: those of the query, a `find` or an `aggregate`, and its own options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import Arguments, flag_of, items_with_paths
from service.request.read_request import Limits, Parsed, parse_aggregate, parse_unpaged
from service.request.requests import AggregateRequest, FindRequest

OPTIONS = ("since", "tx", "tables")
"""Arguments of `watch` itself."""

QUERY = ("where", "select", "embed", "order", "limit", "offset", "distinct")
GROUPS = ("measures", "group", "having")
"""Arguments that make the query an aggregate."""

MAX_TABLES = 100
"""Maximum length of `tables`."""


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """
    The options of a live query.

    Args:
        since: Position of the rows that the caller already has; None to begin with a snapshot.
        tx: Whether messages name the caller's own transactions that they cover.
        tables: Names of tables that a function reads, beside those that its plan shows.
    """

    since: str | None
    tx: bool
    tables: tuple[str, ...]


def parse_options(kwargs: Mapping[str, Any]) -> tuple[WatchOptions, Mapping[str, Any]]:
    """
    Parse the options of `watch`.

    Returns:
        The options, and the remaining keywords, which are the query's.
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
    tables = items_with_paths(given.value("tables"), "tables", MAX_TABLES)
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
    Parse the query of `watch`.

    Args:
        args: Positional arguments; none are allowed.
        kwargs: Keyword arguments without the options.
        limits: Limits of a call.
        rows: Qualified name of the relation.
        most: Maximum rows of a result; the query asks for one more, to detect a larger result.
    """
    if any(name in kwargs for name in GROUPS):
        if args:  # refused here, because parse_aggregate would take them for measures
            Arguments(args, {}, [], [*QUERY, *OPTIONS])
        return parse_aggregate((), {"measures": {}, **kwargs}, limits)
    parsed = parse_unpaged(args, kwargs, limits, rows, (*QUERY, *GROUPS, *OPTIONS))
    values = list(parsed.values)
    values[parsed.request.limit.slot] = min(values[parsed.request.limit.slot], most + 1)
    return replace(parsed, values=tuple(values))
