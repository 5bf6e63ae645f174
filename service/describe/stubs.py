"""
What typed clients are made of: names, fields and signatures of a described service.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from service.describe.types import NULL
from service.request.names import decode

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a dict: its name, its type as JSON Schema, and whether it must be there."""

    name: str
    schema: Schema
    required: bool


@dataclass(frozen=True, slots=True)
class Call:
    """
    One way to call a procedure.

    Args:
        uri: Of the procedure.
        positional: What goes by position.
        named: What goes by name.
        result: JSON Schema of the answer, or, with a verb, of a row in it.
        verb: On what a function returns, else empty.
    """

    uri: str
    positional: tuple[Field, ...]
    named: tuple[Field, ...]
    result: Schema
    verb: str = ""


class Named:
    """
    Args:
        document: As `describe` answers it, complete.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._defs: Mapping[str, Schema] = document["$defs"]
        self.prefix: str = document["prefix"]
        of_functions = [
            name.removeprefix("row.")
            for name in self._defs
            if name.startswith("row.") and name.removeprefix("row.") not in document["relations"]
        ]
        self._classes = class_names([*document["relations"], *of_functions])
        self.relations = {name: self._classes[name] for name in document["relations"]}
        self._of_functions = of_functions

    def rows(self, name: str) -> Iterator[tuple[str, list[Field]]]:
        """Return the columns of a relation's rows, by kind: "Row", "Insert" and "Update"."""
        columns = self._document["relations"][name]["columns"]
        row = self._defs[f"row.{name}"]
        yield "Row", [Field(each, columns[each]["json_schema"], True) for each in row["properties"]]
        new = self._defs[f"new.{name}"]["properties"]
        needed = self._defs[f"insert.{name}"].get("required", ())
        yield "Insert", [Field(each, _new(columns[each]), each in needed) for each in new]
        changes = self.resolved(self._defs[f"update.{name}"])["properties"]
        yield "Update", [Field(each, _new(columns[each]), False) for each in changes]

    def function_rows(self) -> Iterator[tuple[str, list[Field]]]:
        """Return the classes of the rows that functions return."""
        for name in self._of_functions:
            columns = self._defs[f"row.{name}"]["properties"]
            yield (
                f"{self._classes[name]}Row",
                [Field(each, schema, True) for each, schema in columns.items()],
            )

    def key(self, name: str) -> list[list[Field]]:
        """Return the keys of a relation: of each its columns, the primary key first."""
        relation = self._document["relations"][name]
        columns = relation["columns"]
        keys = [each["columns"] for each in relation["unique_keys"]]
        return [
            [Field(each, or_not_null(columns[each]["json_schema"]), True) for each in key]
            for key in ([relation["primary_key"], *keys] if relation["primary_key"] else ())
        ]

    def verbs(self, name: str) -> Iterable[str]:
        """Return the verbs of a relation, less those that are written by hand."""
        verbs = self._document["relations"][name]["verbs"]
        return [each for each in verbs if f"{name}.{each}" not in self._document["procedures"]]

    def functions(self) -> Iterator[Call]:
        """Return the ways in which functions are called, and the verbs on what they return."""
        for name, overloads in self._document["functions"].items():
            for function in overloads:
                yield self._call(name, function)
                for verb, of in function["verbs"].items():
                    fields = [_parameter(each) for each in function["parameters"] if each["name"]]
                    rows = self.row_of(of.get("progress", of["result"]))
                    yield Call(f"{self.prefix}.{name}.{verb}", (), tuple(fields), rows, verb)

    def procedures(self) -> Iterator[Call]:
        """Return the procedures of the service, and those written by hand."""
        for name, found in self._document["procedures"].items():
            arguments = found["arguments"]
            fields = {
                each: Field(each, schema, each in arguments.get("required", ()))
                for each, schema in arguments["properties"].items()
            }
            positional = [fields.pop(each) for each in found.get("positional", ())]
            uri = f"{self.prefix}.{name}"
            yield Call(uri, tuple(positional), tuple(fields.values()), found["result"])

    def row_class(self, schema: Schema) -> str | None:
        """Return the class of a row that a schema refers to; None if it refers to none."""
        name = unquote(schema.get("$ref", "")).removeprefix("#/$defs/")
        kind, _, of = name.partition(".")
        if kind != "row":
            return None
        return f"{self._classes[of]}Row"

    def row_of(self, schema: Schema) -> Schema:
        """Return the row in what a verb on a function's rows answers; anything if there is none."""
        first = self.resolved(schema).get("anyOf", [{}])[0]
        rows = first.get("properties", {}).get("rows", first)
        found: Schema = rows.get("items", {}) if rows.get("type") == "array" else {}
        return found

    def resolved(self, schema: Schema) -> Schema:
        """Follow a reference."""
        while "$ref" in schema:
            pointer = unquote(schema["$ref"]).removeprefix("#/$defs/")
            schema = self._defs[pointer.replace("~1", "/").replace("~0", "~")]
        return schema

    def _call(self, name: str, function: Mapping[str, Any]) -> Call:
        unnamed = max(
            (at for at, each in enumerate(function["parameters"], 1) if not each["name"]), default=0
        )
        fields = [_parameter(each) for each in function["parameters"]]
        taken = {each.name for each in fields}
        arguments = function["arguments"]
        known = arguments.get("anyOf", [arguments])[0]["properties"]
        options = [
            Field(each, {"type": "number"}, False)
            for each in ("max_affected", "timeout")
            if known.get(each, NULL) != NULL and each not in taken
        ]
        positional, named = fields[:unnamed], [*fields[unnamed:], *options]
        return Call(
            f"{self.prefix}.{name}", tuple(positional), tuple(named), _usual(function["result"])
        )


_FORMS = ("#/$defs/lists", "#/$defs/text")
"""Of answers, other than the default one."""


def class_names(names: Iterable[str]) -> dict[str, str]:
    """Make names of classes of the names of relations, each another one."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        words = re.findall(r"[0-9A-Za-z]+", ".".join(map(decode, name.split("."))))
        made = "".join(word[:1].upper() + word[1:] for word in words) or "Relation"
        if made[0].isdigit() or keyword.iskeyword(made):
            made = f"R{made}"
        while made in used:
            made += "_"
        used.add(made)
        found[name] = made
    return found


def identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Make identifiers of names, each another one, and none of those that are taken."""
    found: dict[str, str] = {}
    used = set(taken)
    for name in dict.fromkeys(names):
        made = re.sub(r"\W", "_", ".".join(map(decode, name.split("."))))
        if not made.isidentifier() or keyword.iskeyword(made) or made.startswith("_"):
            made = f"{made}_" if made.isidentifier() and not made.startswith("_") else f"x{made}"
        while made in used:
            made += "_"
        used.add(made)
        found[name] = made
    return found


def or_not_null(schema: Schema) -> Schema:
    """Return a schema without null."""
    if isinstance(schema.get("type"), list):
        return {**schema, "type": [each for each in schema["type"] if each != "null"]}
    return schema


def _new(column: Mapping[str, Any]) -> Schema:
    """Return what is sent for a column: as it is read, and for a numeric a number as well."""
    schema: Schema = column["json_schema"]
    if column["type"].startswith("numeric"):
        kinds = schema["type"]
        listed = [kinds] if isinstance(kinds, str) else kinds
        return {"type": [*listed, "number"]}
    return schema


def _parameter(parameter: Mapping[str, Any]) -> Field:
    return Field(parameter["name"] or "", parameter["json_schema"], parameter["required"])


def _usual(result: Schema) -> Schema:
    """Remove the forms of lists and of text."""
    if "anyOf" not in result:
        return result
    kept = [each for each in result["anyOf"] if each.get("$ref") not in _FORMS]
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


@dataclass(frozen=True)
class Spelling:
    """
    How a language spells types.

    Args:
        names: Of JSON's kinds of values, of "binary" and of "any".
        array: A list of what stands for {}.
        literal: Spells a value as the type that holds it alone.
    """

    names: Mapping[str, str]
    array: str
    literal: Callable[[Any], str]

    def of(self, named: Named, schema: Schema) -> str:
        """Return a schema as a union of types; a row that it refers to by its class."""
        row = named.row_class(schema)
        if row is not None:
            return row
        schema = named.resolved(schema)
        if "enum" in schema:
            return _union(self.literal(value) for value in schema["enum"])
        if "anyOf" in schema:
            return _union(self.of(named, one) for one in schema["anyOf"])
        kinds = schema.get("type", "any")
        return _union(
            self._kind(named, kind, schema)
            for kind in ([kinds] if isinstance(kinds, str) else kinds)
        )

    def _kind(self, named: Named, kind: str, schema: Schema) -> str:
        if kind == "array" and "items" in schema:
            return self.array.format(self.of(named, schema["items"]))
        if kind == "string" and schema.get("format") == "binary":
            return self.names["binary"]
        return self.names[kind]


def _union(types: Any) -> str:
    return " | ".join(dict.fromkeys(types))
