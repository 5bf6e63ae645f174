"""
What the Python module of types begins with, whatever is served.
"""

from __future__ import annotations

HEAD = '''"""Made by `python -m service types --lang py`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
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
    cast,
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

SERVICE = '''

class Caller(Protocol):
    """What autobahn's session has."""

    def call(self, procedure: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Call a procedure."""


class Calls:
    """Procedures, by the names of methods."""

    def __init__(self, session: Caller, uris: Mapping[str, str]) -> None:
        self._session = session
        self._uris = uris

    def __getattr__(self, name: str) -> Any:
        if name not in self._uris:
            raise AttributeError(name)
        return partial(self._session.call, self._uris[name])


class Service:
    """All that is served, called by a session."""

    def __init__(self, session: Caller) -> None:'''
