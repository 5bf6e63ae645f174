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
from service.request.types import Embed, FindRequest

CHUNK, MOST = 500, 5000
"""Rows of one progressive result: what is usual, and what may be asked for."""

Format = Literal["csv", "ndjson"]
FORMATS: tuple[Format, ...] = ("csv", "ndjson")

_PAGING = ("after", "count")


def take_chunk(kwargs: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """
    Read how many rows go into one part.

    Returns:
        The number, and the keywords that are left for the find.
    """
    own = Arguments((), _taken(kwargs, "chunk"), [], ["chunk"])
    chunk = own.whole("chunk")
    if chunk is not None and not 1 <= chunk <= MOST:
        raise InvalidArgument(f'"chunk" is a number of rows from 1 to {MOST}', path="chunk")
    return chunk or CHUNK, _left(kwargs, "chunk")


def take_format(kwargs: Mapping[str, Any]) -> tuple[Format, Mapping[str, Any]]:
    """
    Read what an export is written as; it has no form of rows.

    Returns:
        The format, and the keywords that are left for the stream.
    """
    if "form" in kwargs:
        raise UnknownName("argument", "form", ["format"], path="form")
    own = Arguments((), _taken(kwargs, "format"), [], ["format"])
    return cast("Format", own.word("format", FORMATS, "csv")), _left(kwargs, "format")


def check_format(format: Format | None, embeds: Sequence[Embed]) -> None:
    """
    Have nothing that its format, if it has any, cannot hold be exported.

    Raises:
        InvalidArgument: An embed is spread, and CSV has the columns that COPY gives it.
    """
    for embed in embeds:
        if embed.spread and format == "csv":
            raise InvalidArgument(
                "the columns of CSV are those of the relation: nothing can be spread",
                path=f"{embed.path}.spread",
                hint="select columns of to-one embeds in a view, or export ndjson",
            )


def parse_unpaged(
    args: Sequence[Any], kwargs: Mapping[str, Any], limits: Limits, rows: str
) -> Parsed[FindRequest]:
    """
    Read the arguments of a find, less its paging; its limit is what is asked for, or none.

    Args:
        args: By position.
        kwargs: Less what belongs to the stream itself.
        limits: Of calls; that of rows does not hold.
        rows: Of what the rows are.
    """
    for name in _PAGING:
        if name in kwargs:
            raise InvalidArgument(
                f'"{name}" is for pages, and this has none', path=name, hint="find takes it"
            )
    call = parse_find(args, kwargs, replace(limits, max_rows=MAX_INTEGER - 1), rows)
    if call.request.form == "json":
        raise InvalidArgument(
            "the parts of a stream are no JSON texts", path="form", hint="export gives ndjson"
        )
    values = list(call.values)
    # a find asks for one row more, to tell whether it is there
    values[call.request.limit.slot] -= 1
    return replace(call, values=tuple(values))


def _taken(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _left(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}
