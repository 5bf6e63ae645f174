"""
What the Python module of types begins with, whatever is served.
"""

from __future__ import annotations

HEAD = '''"""Made by `python -m service types --lang py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import (
    Any,
    Generic,
    Literal,
    NotRequired,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

Row = TypeVar("Row")

Where: TypeAlias = Mapping[str, Any]
Items: TypeAlias = Sequence[str | Mapping[str, str | None]]
Order: TypeAlias = Sequence[str | Mapping[str, str | bool | None]]
Measures: TypeAlias = Mapping[str, Mapping[str, Any]]
Embeds: TypeAlias = Mapping[str, Literal[True] | Mapping[str, Any]]


class Page(TypedDict, Generic[Row]):
    """A page of rows."""

    rows: list[Row]
    next: str | None
    count: NotRequired[int]


class Written(TypedDict, Generic[Row]):
    """Rows that were written."""

    rows: list[Row]
    affected: int


class Rows(TypedDict):
    """How many rows came in parts, or went in."""

    rows: int


class Exported(TypedDict):
    """How much came in parts."""

    rows: int
    bytes: int


class Upload(TypedDict):
    """An import that goes on."""

    upload: str


class Options(TypedDict, total=False):
    """Of every call; `options` are autobahn's CallOptions."""

    timeout: float
    options: Any


class Filtered(Options, total=False):
    """Of calls about many rows."""

    where: Where


class Paged(Filtered, total=False):
    """Of a page of whole rows."""

    order: Order
    limit: int
    offset: int
    distinct: bool | Sequence[str]
    after: str | None
    count: Literal["exact", "planned", "estimated"]


class Streamed(Filtered, total=False):
    """Of rows in parts."""

    select: Items
    embed: Embeds
    order: Order
    limit: int
    offset: int
    distinct: bool | Sequence[str]
    chunk: int


class Exporting(Streamed, total=False):
    """Of text in parts."""

    format: Literal["csv", "ndjson"]


class Grouped(Filtered, total=False):
    """Of groups of rows."""

    group: Items
    having: Where
    order: Order
    limit: int
    offset: int


class Returned(Options, total=False):
    """Of a write that answers whole rows."""

    order: Order
    max_affected: int


class Targeted(Returned, total=False):
    """Of a write without a key; without `where` only with `all=True`."""

    where: Where
    all: bool


class Upserted(Returned, total=False):
    """Of rows that may be there already."""

    on_conflict: str | Sequence[str]
    update: Sequence[str]


class Imported(Options, total=False):
    """Of an import."""

    csv: str
    columns: Sequence[str]
    on_conflict: str | Sequence[str]
    update: Sequence[str]
    upload: str
    done: bool
'''
