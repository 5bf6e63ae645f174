"""
Typed definitions of what is served, for TypeScript and Python, made from `describe`.

For each relation there are the types of a row as it is read, created and updated, and for each
procedure the types of its answer.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator, Mapping
from typing import Any

from service.request.names import decode

Schema = Mapping[str, Any]
KINDS = {"row": "Row", "insert": "Insert", "update": "Update"}
ANSWERS = {
    "get": "{row}",
    "find": "{page}",
    "count": "{number}",
    "exists": "{truth}",
    "create": "{row}",
    "update": "{row}",
    "upsert": "{row}",
    "delete": "{row}",
}
"""What the plain form of a verb answers: with a key or a single row."""


def typescript(document: Mapping[str, Any]) -> str:
    """Give TypeScript declarations for a described service."""
    lines = ["// Made by `python -m service types --lang ts`.", "", PAGE_TS]
    classes = _classes(document)
    for name, relation in document["relations"].items():
        for kind, suffix in KINDS.items():
            schema = relation["json_schema"][kind]
            lines += ["", f"export interface {classes[name]}{suffix} {{"]
            lines += [
                f"  {json.dumps(column)}{mark}: {_ts(each)};"
                for column, each, mark in _columns(schema, "?")
            ]
            lines += ["}"]
    lines += ["", "export interface Procedures {"]
    words = {"page": "Page<{}>", "number": "number", "truth": "boolean"}
    for uri, answer in _answers(document, words, _ts):
        lines += [f"  {json.dumps(uri)}: {answer};"]
    return "\n".join([*lines, "}", ""])


def python(document: Mapping[str, Any]) -> str:
    """Give a Python module of typed dictionaries for a described service."""
    lines = [PYTHON]
    classes = _classes(document)
    for name, relation in document["relations"].items():
        for kind, suffix in KINDS.items():
            schema = relation["json_schema"][kind]
            fields = [
                f"    {json.dumps(column)}: {f'NotRequired[{_py(each)}]' if mark else _py(each)},"
                for column, each, mark in _columns(schema, "?")
            ]
            title = f"{classes[name]}{suffix}"
            lines += ["", f'{title} = TypedDict("{title}", {{', *fields, "})"]
    words = {"page": "Page[{}]", "number": "int", "truth": "bool"}
    calls = list(_answers(document, words, _py))
    lines += ["", "", "class Session(Protocol):", '    """A WAMP session, typed by procedure."""']
    for uri, answer in calls:
        lines += [
            "",
            "    @overload",
            f"    async def call(self, procedure: Literal[{json.dumps(uri)}], /, *args: Any,"
            f" **kwargs: Any) -> {answer}: ...",
        ]
    lines += [
        "",
        "    @overload",
        "    async def call(self, procedure: str, /, *args: Any, **kwargs: Any) -> Any: ...",
        "",
    ]
    return "\n".join(lines)


PAGE_TS = """export interface Page<Row> {
  rows: Row[];
  next: string | null;
  count?: number;
}"""

PYTHON = '''"""Made by `python -m service types --lang py`."""

from __future__ import annotations

from typing import Any, Generic, Literal, NotRequired, Protocol, TypedDict, TypeVar, overload

Row = TypeVar("Row")


class Page(TypedDict, Generic[Row]):
    """A page of rows."""

    rows: list[Row]
    next: str | None
    count: NotRequired[int]
'''


def _columns(schema: Schema, mark: str) -> Iterator[tuple[str, Schema, str]]:
    for column, each in schema["properties"].items():
        yield column, each, "" if column in schema["required"] else mark


def _answers(
    document: Mapping[str, Any], words: Mapping[str, str], spell: Any
) -> Iterator[tuple[str, str]]:
    prefix, classes = document["prefix"], _classes(document)
    for name, relation in document["relations"].items():
        row = f"{classes[name]}Row"
        for verb in relation["verbs"]:
            if verb in ANSWERS:
                answer = ANSWERS[verb].format(
                    row=row,
                    page=words["page"].format(row),
                    number=words["number"],
                    truth=words["truth"],
                )
                yield f"{prefix}.{name}.{verb}", answer
    for name, overloads in document["functions"].items():
        if len(overloads) == 1:
            yield f"{prefix}.{name}", spell(overloads[0]["result"]["json_schema"])


def _classes(document: Mapping[str, Any]) -> dict[str, str]:
    """Make names of classes of the names of relations, each another one."""
    found: dict[str, str] = {}
    for name in document["relations"]:
        words = re.findall(r"[0-9A-Za-z]+", ".".join(map(decode, name.split("."))))
        made = "".join(word[:1].upper() + word[1:] for word in words) or "Relation"
        if made[0].isdigit() or keyword.iskeyword(made):
            made = f"R{made}"
        while made in found.values():
            made += "_"
        found[name] = made
    return found


def _ts(schema: Schema) -> str:
    return _spelled(
        schema,
        {
            "integer": "number",
            "number": "number",
            "string": "string",
            "boolean": "boolean",
            "null": "null",
            "object": "Record<string, unknown>",
            "array": "unknown[]",
            "binary": "Uint8Array",
            "any": "unknown",
        },
        "({})[]",
        json.dumps,
    )


def _py(schema: Schema) -> str:
    return _spelled(
        schema,
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
        lambda value: "None" if value is None else f"Literal[{json.dumps(value)}]",
    )


def _spelled(schema: Schema, names: Mapping[str, str], array: str, literal: Any) -> str:
    """Spell a schema as a union of types."""
    if "enum" in schema:
        return " | ".join(literal(value) for value in schema["enum"])
    if "anyOf" in schema:
        each = [_spelled(one, names, array, literal) for one in schema["anyOf"]]
        return " | ".join(dict.fromkeys(each))
    kinds = schema.get("type", "any")
    found = []
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "array" and "items" in schema:
            found.append(array.format(_spelled(schema["items"], names, array, literal)))
        elif kind == "string" and schema.get("format") == "binary":
            found.append(names["binary"])
        else:
            found.append(names[kind])
    return " | ".join(dict.fromkeys(found))
