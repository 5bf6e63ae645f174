"""
Keyword arguments of stream and export to requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from service.errors import InvalidArgument, UnknownName
from service.request.arguments import MAX_INTEGER, Arguments
from service.request.parse import Limits, Parsed, parse_find
from service.request.types import FindRequest

CHUNK, MOST = 500, 5000
"""Rows of one progressive result: what is usual, and what may be asked for."""

Format = Literal["csv", "ndjson"]
FORMATS: tuple[Format, ...] = ("csv", "ndjson")

_PAGING = ("after", "count")


def parse_stream(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, relation: str
) -> tuple[Parsed[FindRequest], int]:
    """
    Read the arguments of `stream`: those of find, less its paging.

    Returns:
        The find, whose limit is what was asked for or as good as none, and the rows of a chunk.
    """
    own = Arguments((), _taken(kwargs, "chunk"), [], ["chunk"])
    chunk = own.whole("chunk")
    if chunk is not None and not 1 <= chunk <= MOST:
        raise InvalidArgument(f'"chunk" is a number of rows from 1 to {MOST}', path="chunk")
    return _unpaged(args, _left(kwargs, "chunk"), limits, relation), chunk or CHUNK


def parse_export(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, relation: str
) -> tuple[Parsed[FindRequest], int, Format]:
    """Read the arguments of `export`: those of stream and a format, but no form of rows."""
    if "form" in kwargs:
        raise UnknownName("argument", "form", ["format"], path="form")
    own = Arguments((), _taken(kwargs, "format"), [], ["format"])
    format = cast("Format", own.word("format", FORMATS, "csv"))
    call, rows = parse_stream(args, _left(kwargs, "format"), limits, relation)
    for embed in call.request.embeds:
        if embed.spread and format == "csv":
            raise InvalidArgument(
                "the columns of CSV are those of the relation: nothing can be spread",
                path=f"{embed.path}.spread",
                hint="select columns of to-one embeds in a view, or export ndjson",
            )
    return call, rows, format


def _unpaged(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, relation: str
) -> Parsed[FindRequest]:
    for name in _PAGING:
        if kwargs.get(name) is not None:
            raise InvalidArgument(
                f'"{name}" is for pages, and this has none', path=name, hint="find takes it"
            )
    given = {name: value for name, value in kwargs.items() if name not in _PAGING}
    call = parse_find(args, given, replace(limits, max_rows=MAX_INTEGER - 1), relation)
    values = list(call.values)
    values[call.request.limit.slot] -= (
        1  # a find asks for one row more, to tell whether it is there
    )
    return replace(call, values=tuple(values))


def _taken(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _left(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}
