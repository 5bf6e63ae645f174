"""Made by `python -m service types --lang py`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import (
    Any,
    Generic,
    Literal,
    Never,
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
New = TypeVar("New")

Where: TypeAlias = Mapping[str, Any]
Item: TypeAlias = str | Mapping[str, str | None]
Items: TypeAlias = Item | Sequence[Item]
Sorting: TypeAlias = str | Mapping[str, str | bool | None]
Order: TypeAlias = Sorting | Sequence[Sorting]
Names: TypeAlias = str | Sequence[str]
Measures: TypeAlias = Mapping[str, Mapping[str, Any]]
Embeds: TypeAlias = Mapping[str, Literal[True] | Mapping[str, Any]]
Link = TypedDict("Link", {"$link": Any})
"""In place of a related row: the key of one that is there."""

Default = TypedDict("Default", {"$default": Literal[True]})
Value = TypedDict("Value", {"$value": Any})
Given: TypeAlias = Row | Default | Value
"""What a write gives a column: a value, its default, or a value that looks like something else."""

Add = TypedDict("Add", {"$add": float | str})
Multiply = TypedDict("Multiply", {"$multiply": float | str})
Append = TypedDict("Append", {"$append": Sequence[Any]})
Prepend = TypedDict("Prepend", {"$prepend": Sequence[Any]})
Remove = TypedDict("Remove", {"$remove": Sequence[Any]})
Merge = TypedDict("Merge", {"$merge": Mapping[str, Any]})


class Page(TypedDict, Generic[Row]):
    """A page of rows; `next` is for `after`, `prev` for `before`."""

    rows: list[Row]
    next: str | None
    prev: NotRequired[str | None]
    count: NotRequired[int]
    totals: NotRequired[dict[str, Any]]


class Written(TypedDict, Generic[Row]):
    """Rows that were written."""

    rows: list[Row]
    affected: int


class Both(TypedDict, Generic[Row, New]):
    """A row as it was, None where it is new, and what it is now, None once it is deleted."""

    old: Row
    new: New


class Snapshot(TypedDict, Generic[Row]):
    """All rows of a query that is watched, in parts; the last one is `complete`."""

    type: Literal["snapshot"]
    position: str
    rows: list[Row]
    key: NotRequired[list[str]]
    keys: NotRequired[list[Any]]
    complete: NotRequired[Literal[True]]
    reset: NotRequired[Literal[True]]
    checksum: NotRequired[int]
    step: NotRequired[Literal[True]]
    covers: NotRequired[list[str]]


class OfRows(TypedDict):
    """Something of each row that enters, and of each that is updated."""

    enter: list[Any]
    update: list[Any]


class Delta(TypedDict, Generic[Row]):
    """What is different in the rows of a query that is watched."""

    type: Literal["delta"]
    position: str
    enter: list[Row]
    update: list[Row]
    leave: list[Any]
    keys: NotRequired[OfRows]
    after: NotRequired[OfRows]
    checksum: NotRequired[int]
    step: NotRequired[Literal[True]]
    covers: NotRequired[list[str]]


class Alive(TypedDict):
    """That nothing is different in the rows of a query; before there are any, without more."""

    type: Literal["alive"]
    position: NotRequired[str]
    checksum: NotRequired[int]
    step: NotRequired[Literal[True]]
    covers: NotRequired[list[str]]


News: TypeAlias = Snapshot[Row] | Delta[Row] | Alive


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
    """
    Of every call; `timeout` is in seconds, `options` are autobahn's CallOptions.

    With a receipt a call is answered with autobahn's CallResult: make it by the session itself.
    """

    timeout: float | None
    options: Any


class Filtered(Options, total=False):
    """Of calls about many rows."""

    where: Where | None


class Sorted(Filtered, total=False):
    """Of calls that answer many rows."""

    order: Order | None
    limit: int | None
    offset: int | None


class Paged(Sorted, total=False):
    """Of a page of rows with all their columns."""

    distinct: bool | Names | None
    after: str | None
    before: str | None
    measures: Measures | None
    count: Literal["exact", "planned", "estimated"] | None


class Streamed(Sorted, total=False):
    """Of rows in parts."""

    select: Items | None
    embed: Embeds | None
    distinct: bool | Names | None
    chunk: int | None


class Watching(Sorted, total=False):
    """Of rows that are watched, or of groups and their measures in place of them."""

    select: Items | None
    embed: Embeds | None
    distinct: bool | Names | None
    measures: Measures | None
    group: Items | None
    having: Where | None
    since: str | None
    tx: bool | None
    tables: Names | None


class Exporting(Streamed, total=False):
    """Of text in parts."""

    format: Literal["csv", "ndjson"] | None


class Grouped(Sorted, total=False):
    """Of groups of rows."""

    group: Items | None
    having: Where | None


class Returned(Options, total=False):
    """Of a write that answers rows with all their columns."""

    order: Order | None
    max_affected: int | None
    idempotency_key: str | None
    receipt: Literal[False] | None


class Targeted(Returned, total=False):
    """Of a write without a key; without `where` only with `all=True`."""

    where: Where | None
    all: bool | None


class Taken(Targeted, total=False):
    """The next rows, in their order, that nobody else is taking."""

    limit: int | None
    skip_locked: bool | None


class Upserted(Returned, Generic[New], total=False):
    """Of rows that may be there already, and what changes in those."""

    on_conflict: Names | None
    update: Names | New | None
    where: Where | None


class Imported(Options, total=False):
    """Of an import."""

    csv: str | None
    columns: Names | None
    on_conflict: Names | None
    update: Names | None
    upload: str | None
    done: bool | None
    idempotency_key: str | None
    receipt: Literal[False] | None


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


# What follows is written out for each relation, for each function that returns rows, and for all
# that is served.


class RelationRow(TypedDict):
    """A row."""


class RelationInsert(TypedDict):
    """A new row."""


class RelationCreate(TypedDict):
    """A new row with related ones."""


class RelationUpdate(TypedDict):
    """Changes of a row."""


RelationKey: TypeAlias = Any


class RelationCalls(Protocol):
    """Calls, by the name of the verb."""

    @overload
    async def get(
        self,
        key: RelationKey,
        /,
        *,
        select: None = ...,
        embed: None = ...,
        **options: Unpack[Options],
    ) -> RelationRow: ...

    @overload
    async def get(
        self,
        key: RelationKey,
        /,
        *,
        select: Items,
        embed: Embeds | None = ...,
        **options: Unpack[Options],
    ) -> dict[str, Any]: ...

    @overload
    async def get(
        self,
        key: RelationKey,
        /,
        *,
        select: None = ...,
        embed: Embeds,
        **options: Unpack[Options],
    ) -> dict[str, Any]: ...

    @overload
    async def get(
        self,
        /,
        *,
        keys: Sequence[RelationKey],
        select: None = ...,
        embed: None = ...,
        **options: Unpack[Options],
    ) -> list[RelationRow | None]: ...

    @overload
    async def get(
        self,
        /,
        *,
        keys: Sequence[RelationKey],
        select: Items | None = ...,
        embed: Embeds | None = ...,
        **options: Unpack[Options],
    ) -> list[dict[str, Any] | None]: ...

    @overload
    async def find(
        self, /, *, select: None = ..., embed: None = ..., **options: Unpack[Paged]
    ) -> Page[RelationRow]: ...

    @overload
    async def find(
        self, /, *, select: Items, embed: Embeds | None = ..., **options: Unpack[Paged]
    ) -> Page[dict[str, Any]]: ...

    @overload
    async def find(
        self, /, *, select: None = ..., embed: Embeds, **options: Unpack[Paged]
    ) -> Page[dict[str, Any]]: ...

    async def count(self, /, **options: Unpack[Filtered]) -> int: ...

    async def exists(self, /, **options: Unpack[Filtered]) -> bool: ...

    async def stream(self, /, **options: Unpack[Streamed]) -> Rows: ...

    async def export(self, /, **options: Unpack[Exporting]) -> Exported: ...

    async def watch(self, /, **options: Unpack[Watching]) -> Never: ...

    async def aggregate(
        self, measures: Measures, /, **options: Unpack[Grouped]
    ) -> list[dict[str, Any]]: ...

    @overload
    async def create(
        self, values: RelationInsert | RelationCreate, /, **options: Unpack[Returned]
    ) -> RelationRow: ...

    @overload
    async def create(
        self,
        values: Sequence[RelationInsert | RelationCreate],
        /,
        **options: Unpack[Returned],
    ) -> list[RelationRow]: ...

    @overload
    async def upsert(
        self,
        values: RelationInsert,
        /,
        *,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Upserted[RelationUpdate]],
    ) -> RelationRow | None: ...

    @overload
    async def upsert(
        self,
        values: RelationInsert,
        /,
        *,
        returning: Literal["both"],
        **options: Unpack[Upserted[RelationUpdate]],
    ) -> Both[RelationRow | None, RelationRow] | None: ...

    @overload
    async def upsert(
        self,
        values: list[RelationInsert],
        /,
        *,
        returning: Literal[True] | None = ...,
        **options: Unpack[Upserted[RelationUpdate]],
    ) -> list[RelationRow]: ...

    @overload
    async def upsert(
        self,
        values: list[RelationInsert],
        /,
        *,
        returning: Literal["old"],
        **options: Unpack[Upserted[RelationUpdate]],
    ) -> list[RelationRow | None]: ...

    @overload
    async def upsert(
        self,
        values: list[RelationInsert],
        /,
        *,
        returning: Literal["both"],
        **options: Unpack[Upserted[RelationUpdate]],
    ) -> list[Both[RelationRow | None, RelationRow]]: ...

    @overload
    async def update(
        self,
        key: RelationKey,
        changes: RelationUpdate,
        /,
        *,
        expect: Mapping[str, Any] | None = ...,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Returned],
    ) -> RelationRow: ...

    @overload
    async def update(
        self,
        key: RelationKey,
        changes: RelationUpdate,
        /,
        *,
        expect: Mapping[str, Any] | None = ...,
        returning: Literal["both"],
        **options: Unpack[Returned],
    ) -> Both[RelationRow, RelationRow]: ...

    @overload
    async def update(
        self,
        /,
        *,
        changes: RelationUpdate,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Taken],
    ) -> Written[RelationRow]: ...

    @overload
    async def update(
        self,
        /,
        *,
        changes: RelationUpdate,
        returning: Literal["both"],
        **options: Unpack[Taken],
    ) -> Written[Both[RelationRow, RelationRow]]: ...

    @overload
    async def update(
        self,
        /,
        *,
        rows: Sequence[RelationUpdate],
        by: Names | None = ...,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Returned],
    ) -> list[RelationRow]: ...

    @overload
    async def update(
        self,
        /,
        *,
        rows: Sequence[RelationUpdate],
        by: Names | None = ...,
        returning: Literal["both"],
        **options: Unpack[Returned],
    ) -> list[Both[RelationRow, RelationRow]]: ...

    @overload
    async def delete(
        self,
        key: RelationKey,
        /,
        *,
        expect: Mapping[str, Any] | None = ...,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Returned],
    ) -> RelationRow: ...

    @overload
    async def delete(
        self,
        key: RelationKey,
        /,
        *,
        expect: Mapping[str, Any] | None = ...,
        returning: Literal["both"],
        **options: Unpack[Returned],
    ) -> Both[RelationRow, None]: ...

    @overload
    async def delete(
        self,
        /,
        *,
        returning: Literal[True, "old"] | None = ...,
        **options: Unpack[Targeted],
    ) -> Written[RelationRow]: ...

    @overload
    async def delete(
        self,
        /,
        *,
        returning: Literal["both"],
        **options: Unpack[Targeted],
    ) -> Written[Both[RelationRow, None]]: ...

    async def import_(
        self,
        rows: Sequence[RelationInsert] | Sequence[Sequence[Any]] | None = ...,
        /,
        **options: Unpack[Imported],
    ) -> Rows | Upload: ...


class FunctionRow(TypedDict):
    """A row that a function returns."""


FunctionArgs: TypeAlias = Mapping[str, Any]


class FunctionCalls(Protocol):
    """Calls of the verbs on the rows that a function returns."""

    async def find(
        self, /, *, args: FunctionArgs, **options: Unpack[Paged]
    ) -> Page[FunctionRow]: ...

    async def aggregate(
        self, /, *, measures: Measures, args: FunctionArgs, **options: Unpack[Grouped]
    ) -> list[dict[str, Any]]: ...

    async def stream(self, /, *, args: FunctionArgs, **options: Unpack[Streamed]) -> Rows: ...

    async def export(self, /, *, args: FunctionArgs, **options: Unpack[Exporting]) -> Exported: ...

    async def watch(self, /, *, args: FunctionArgs, **options: Unpack[Watching]) -> Never: ...


class Service:
    """All that is served, called by a session."""

    def __init__(self, session: Caller) -> None:
        self.relation = cast(RelationCalls, Calls(session, {}))
