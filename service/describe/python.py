"""
Typed definitions for Python.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.describe.stubs import Call, Field, Named, Spelling, class_names, identifiers

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
Item: TypeAlias = str | Mapping[str, str | None]
Items: TypeAlias = Item | Sequence[Item]
Sorting: TypeAlias = str | Mapping[str, str | bool | None]
Order: TypeAlias = Sorting | Sequence[Sorting]
Names: TypeAlias = str | Sequence[str]
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
    distinct: bool | Names
    after: str | None
    count: Literal["exact", "planned", "estimated"]


class Streamed(Filtered, total=False):
    """Of rows in parts."""

    select: Items
    embed: Embeds
    order: Order
    limit: int
    offset: int
    distinct: bool | Names
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

    on_conflict: Names
    update: Names


class Imported(Options, total=False):
    """Of an import."""

    csv: str
    columns: Names
    on_conflict: Names
    update: Names
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


def _text(text: str) -> str:
    """Return a string as a Python literal; JSON's escapes of lone surrogates are not Python's."""
    return json.dumps(text, ensure_ascii=False)


TYPES = {*re.findall(r"\b[A-Z]\w+", HEAD), "bool", "bytes", "dict", "float", "int", "list", "str"}
"""What no method is called: in its class the name would be the method's in place of the type's."""

PY = Spelling(
    {
        "integer": "int",
        "number": "float",
        "string": "str",
        "boolean": "bool",
        "null": "None",
        "object": "dict[str, Any]",
        "array": "list[Any]",
        "binary": "bytes",
        "any": "Any",
    },
    "list[{}]",
    lambda value: "None" if value is None else f"Literal[{_text(value)}]",
)

OPTIONS = {
    "find": "Paged",
    "aggregate": "Grouped",
    "stream": "Streamed",
    "export": "Exporting",
}
"""What the verbs on the rows of functions take."""

VERBS: Mapping[str, Iterable[tuple[str, str]]] = {
    "get": [
        ("key: {row}Key, /, **options: Unpack[Options]", "{row}Row"),
        (
            "key: {row}Key, /, *, select: Items, embed: Embeds = ..., **options: Unpack[Options]",
            "dict[str, Any]",
        ),
        ("key: {row}Key, /, *, embed: Embeds, **options: Unpack[Options]", "dict[str, Any]"),
    ],
    "find": [
        ("/, **options: Unpack[Paged]", "Page[{row}Row]"),
        (
            "/, *, select: Items, embed: Embeds = ..., **options: Unpack[Paged]",
            "Page[dict[str, Any]]",
        ),
        ("/, *, embed: Embeds, **options: Unpack[Paged]", "Page[dict[str, Any]]"),
    ],
    "count": [("/, **options: Unpack[Filtered]", "int")],
    "exists": [("/, **options: Unpack[Filtered]", "bool")],
    "stream": [("/, **options: Unpack[Streamed]", "Rows")],
    "export": [("/, **options: Unpack[Exporting]", "Exported")],
    "aggregate": [("measures: Measures, /, **options: Unpack[Grouped]", "list[dict[str, Any]]")],
    "create": [
        ("values: {row}Insert, /, **options: Unpack[Returned]", "{row}Row"),
        ("values: list[{row}Insert], /, **options: Unpack[Returned]", "list[{row}Row]"),
    ],
    "upsert": [
        ("values: {row}Insert, /, **options: Unpack[Upserted]", "{row}Row | None"),
        ("values: list[{row}Insert], /, **options: Unpack[Upserted]", "list[{row}Row]"),
    ],
    "update": [
        (
            "key: {row}Key, changes: {row}Update, /, *, expect: Mapping[str, Any] = ...,"
            " **options: Unpack[Returned]",
            "{row}Row",
        ),
        ("/, *, changes: {row}Update, **options: Unpack[Targeted]", "Written[{row}Row]"),
    ],
    "delete": [
        (
            "key: {row}Key, /, *, expect: Mapping[str, Any] = ..., **options: Unpack[Returned]",
            "{row}Row",
        ),
        ("/, **options: Unpack[Targeted]", "Written[{row}Row]"),
    ],
    "import": [
        (
            "rows: Sequence[{row}Insert] | Sequence[Sequence[Any]] = ..., /,"
            " **options: Unpack[Imported]",
            "Rows | Upload",
        )
    ],
}
"""The ways to call a verb: what it takes, and what it answers."""


def python(document: Mapping[str, Any]) -> str:
    """Return a Python module of types for a described service."""
    named = Named(document)
    lines = [HEAD]
    for name, title in named.relations.items():
        for kind, fields in named.rows(name):
            lines += _typed_dict(named, f"{title}{kind}", fields)
        lines += [f"{title}Key: TypeAlias = {_key(named, name)}"]
    for title, fields in named.function_rows():
        lines += _typed_dict(named, title, fields)
    groups = _groups(named)
    for title, methods in groups.values():
        lines += ["", "", f"class {title}(Protocol):", '    """Calls, by the name of the verb."""']
        for name, method in methods.items():
            lines += _method(name, method)
    lines += [SERVICE]
    for group, (title, methods) in groups.items():
        uris = {name: method.uri for name, method in methods.items()}
        lines += [f"        self.{group} = cast({title}, Calls(session, {json.dumps(uris)}))"]
    return "\n".join([*lines, ""])


@dataclass(slots=True)
class _Method:
    """A procedure: its URI, and the ways to call it, each with what it takes and answers."""

    uri: str
    ways: list[tuple[str, str]]


def _groups(named: Named) -> dict[str, tuple[str, dict[str, _Method]]]:
    """Return procedures by what stands before the verb, and by the verb, as Python can say it."""
    ways: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for group, verb, uri, takes, answer in _signatures(named):
        ways.setdefault((group, verb, uri), []).append((takes, answer))
    attributes = identifiers(group for group, _, _ in ways)
    titles = class_names(dict.fromkeys(group for group, _, _ in ways))
    found: dict[str, tuple[str, dict[str, _Method]]] = {}
    for group, attribute in attributes.items():
        own = {verb: (uri, each) for (of, verb, uri), each in ways.items() if of == group}
        spelled = identifiers(own, TYPES)
        methods = {spelled[verb]: _Method(uri, each) for verb, (uri, each) in own.items()}
        found[attribute] = (f"{titles[group]}Calls", methods)
    return found


def _method(name: str, method: _Method) -> list[str]:
    lines: list[str] = []
    for takes, answer in method.ways:
        overload = ["    @overload"] if len(method.ways) > 1 else []
        lines += ["", *overload, f"    async def {name}(self, {takes}) -> {answer}: ..."]
    return lines


def _typed_dict(named: Named, title: str, fields: Iterable[Field]) -> list[str]:
    spelled = [f"    {_text(each.name)}: {_field(named, each)}," for each in fields]
    return ["", f'{title} = TypedDict("{title}", {{', *spelled, "})"]


def _field(named: Named, field: Field) -> str:
    spelled = PY.of(named, field.schema)
    return spelled if field.required else f"NotRequired[{spelled}]"


def _key(named: Named, name: str) -> str:
    keys = named.key(name)
    if not keys:
        return "None"
    alone = f"{PY.of(named, keys[0][0].schema)} | " if len(keys[0]) == 1 else ""
    return f'"{alone}list[Any] | dict[str, Any]"'


def _signatures(named: Named) -> Iterator[tuple[str, str, str, str, str]]:
    """Return the group, the verb, the URI, what is taken and what is answered."""
    for name, title in named.relations.items():
        for verb in named.verbs(name):
            for takes, answer in VERBS.get(verb, ()):
                uri = f"{named.prefix}.{name}.{verb}"
                yield name, verb, uri, *(each.replace("{row}", title) for each in (takes, answer))
    for call in (*named.functions(), *named.procedures()):
        name = call.uri.removeprefix(f"{named.prefix}.").removesuffix(f".{call.verb}")
        group, _, verb = name.rpartition(".")
        verb = f"{verb}.{call.verb}" if call.verb else verb
        yield group or "service", verb, call.uri, _takes(named, call), _answer(named, call)


def _takes(named: Named, call: Call) -> str:
    if call.verb:
        needed = any(each.required for each in call.named)
        args = f"args: Mapping[str, Any]{'' if needed else ' = ...'}"
        measures = "measures: Measures, " if call.verb == "aggregate" else ""
        return f"/, *, {measures}{args}, **options: Unpack[{OPTIONS[call.verb]}]"
    by_position = [
        f"_{at}: {PY.of(named, each.schema)}{'' if each.required else ' = ...'}"
        for at, each in enumerate(call.positional)
    ]
    by_name = [
        f"{each.name}: {PY.of(named, each.schema)}{'' if each.required else ' = ...'}"
        for each in call.named
        if _sayable(each.name)
    ]
    lost = len(by_name) < len(call.named)
    others = identifiers(["options"], [each.name for each in call.named])["options"]
    rest = [*(["*"] if by_name else []), *by_name, *([f"**{others}: Any"] if lost else [])]
    return ", ".join([*by_position, "/", *rest])


def _sayable(name: str) -> bool:
    """Return whether a method can have an argument of this name, beside those by position."""
    return name.isidentifier() and not (
        name == "self" or keyword.iskeyword(name) or re.fullmatch(r"_\d+|__.*", name)
    )


def _answer(named: Named, call: Call) -> str:
    answers = {
        "find": f"Page[{PY.of(named, call.result)}]",
        "aggregate": "list[dict[str, Any]]",
        "stream": "Rows",
        "export": "Exported",
    }
    return answers.get(call.verb) or PY.of(named, call.result)
