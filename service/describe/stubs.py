"""
Generate typed clients for TypeScript and Python from the document of `describe` and from `templates/`.

A template is valid code. Its parts for one relation, "Relation", and for one function that returns rows,
"Function", are repeated for each relation and function; the rest is copied.
"""

from __future__ import annotations

import json
import keyword
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from service.datatypes import PYTHON, TYPESCRIPT
from service.describe.json_schema import NULL, any_of, kinds_of
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT
from service.request.names import decode

Schema = Mapping[str, Any]

TEMPLATES = Path(__file__).with_name("templates")
REPEATED = re.compile(r"^(?:#|//) What follows is repeated", re.M)
"""The comment before the parts of a template that are repeated."""

FORMS = ("#/$defs/lists", "#/$defs/text")
"""Results of calls with `form`, for which the clients have no types."""

RELATED = ("#/$defs/tree.", "#/$defs/link")
"""References to schemas of related rows in a new row."""

CLASSES = {"row": "Row", "tree": "Create"}
"""Suffix of the class of a shared part, after the relation's or function's name."""

BUILTINS = ("bool", "bytes", "dict", "float", "int", "list", "str")


def typescript(document: Mapping[str, Any]) -> str:
    """Return TypeScript's declarations for a described service."""
    return _TypeScript(document).module()


def python(document: Mapping[str, Any]) -> str:
    """Return a Python module for a described service: types, and a class `Service` that calls."""
    return _Python(document).module()


@dataclass(frozen=True, slots=True)
class Field:
    """
    A key of a dict, or an argument.

    Args:
        name: The name.
        type: The type, in the target language.
        required: Whether it is required.
    """

    name: str
    type: str
    required: bool


@dataclass(frozen=True, slots=True)
class TypedCall:
    """
    A procedure, for the typed client.

    Args:
        group: The URI's part before the verb or function: "actions", "fn", "".
        name: The rest of the URI: "get", "total", "total.find".
        positional: Positional arguments.
        named: Keyword arguments; for a verb on a function's rows, those of the function.
        result: Type of the result; for a verb on a function's rows, of a row.
        template: The class of the template that has the call: "RelationCalls", "FunctionCalls"; empty if none.
    """

    group: str
    name: str
    positional: list[Field]
    named: list[Field]
    result: str
    template: str = ""

    @property
    def verb(self) -> str:
        """The last component of its URI."""
        return self.name.rpartition(".")[2]

    @property
    def needs_named(self) -> bool:
        """Whether a keyword argument is required."""
        return any(each.required for each in self.named)


class _Client(ABC):
    """The names, fields and calls of a document, and the syntax of types in a language."""

    template: ClassVar[str]
    names: ClassVar[Mapping[str, str]]
    """Type names in the language, by JSON Schema type, "binary" and "any"."""
    array: ClassVar[str]
    given: ClassVar[str]
    """Format of the type of a value that a write gives a column."""
    of_class: ClassVar[str]
    of_verb: ClassVar[str]
    """Expressions that find the template's classes of calls, and in their text the signatures, by verb."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._defs: Mapping[str, Schema] = document["$defs"]
        self._relations: Mapping[str, Any] = document["relations"]
        functions = document["functions"].items()
        names = (f"{name}.{at}" for name, each in functions for at in range(len(each)))
        self._of_functions = [name for name in names if f"row.{name}" in self._defs]
        self._classes = class_names([*self._relations, *self._of_functions])
        text = (TEMPLATES / self.template).read_text("utf-8")
        (at,) = REPEATED.finditer(text)
        self._head, self._repeated = text[: at.start()], text[at.start() :]
        self._patterns: dict[tuple[str, str], list[str]] = defaultdict(list)
        for template, body in re.findall(self.of_class, self._repeated, re.M | re.DOTALL):
            for verb, pattern in re.findall(self.of_verb, body, re.M | re.DOTALL):
                self._patterns[template, verb.removesuffix("_")].append(pattern)

    @abstractmethod
    def words(self, call: TypedCall) -> dict[str, str]:
        """Return the replacements for names in the template."""

    @abstractmethod
    def signature(self, call: TypedCall) -> str:
        """Return the signature of a call that the template does not have."""

    @abstractmethod
    def literal(self, value: Any) -> str:
        """Return the literal type of a value."""

    def type(self, schema: Schema) -> str:
        """Return a schema as a union of types; a reference to a row is the name of its class."""
        kind, _, of = unquote(schema.get("$ref", "")).removeprefix("#/$defs/").partition(".")
        if kind == "link":
            return "Link"
        if kind in CLASSES:
            return f"{self._classes[of]}{CLASSES[kind]}"
        schema = self._resolved(schema)
        if "enum" in schema:
            found = [self.literal(value) for value in schema["enum"]]
        elif "anyOf" in schema:
            found = [self.type(each) for each in schema["anyOf"]]
        else:
            found = [self._kind(kind, schema) for kind in kinds_of(schema)]
        return " | ".join(dict.fromkeys(found))

    def forward(self, type: str) -> str:
        """Return a type that may name classes defined further below."""
        return type

    def _field(self, name: str, schema: Schema, required: bool = True) -> Field:
        return Field(name, self.type(schema), required)

    def _sent(self, column: Mapping[str, Any]) -> str:
        """Return the type of what a write may give a column."""
        return self.given.format(self.type(_sent(column)))

    def _kind(self, kind: str, schema: Schema) -> str:
        if kind == "array" and "items" in schema:
            return self.array.format(self.type(schema["items"]))
        binary = kind == "string" and schema.get("format") == "binary"
        return self.names["binary" if binary else kind]

    def records(self) -> Iterator[tuple[str, list[Field], list[str]]]:
        """Yield the classes of rows: name, fields, and the columns into whose JSON keys may be paths."""
        for name, relation in self._relations.items():
            columns, title = relation["columns"], self._classes[name]
            row, new = (self._properties(f"{kind}.{name}") for kind in ("row", "new"))
            needed = self._defs[f"insert.{name}"].get("required", ())
            read = [self._field(each, columns[each]["json_schema"]) for each in row]
            yield f"{title}Row", read, []
            fields = [Field(at, self._sent(columns[at]), at in needed) for at in new]
            yield f"{title}Insert", fields, []
            if f"tree.{name}" in self._defs:
                yield f"{title}Create", [*self._created(name, columns)], []
            update = self._resolved(self._defs[f"update.{name}"])
            changes, patterns = update["properties"], update.get("patternProperties", ())
            paths = [at for at in changes if any(re.match(each, f"{at}->") for each in patterns)]
            yield f"{title}Update", [self._changed(columns, at) for at in changes], paths
        for name in self._of_functions:
            row = self._properties(f"row.{name}")
            yield f"{self._classes[name]}Row", [self._field(at, row[at]) for at in row], []

    def _properties(self, part: str) -> Mapping[str, Schema]:
        found: Mapping[str, Schema] = self._defs[part]["properties"]
        return found

    def _created(self, name: str, columns: Mapping[str, Any]) -> Iterator[Field]:
        """Yield the fields of a new row: its columns and related rows."""
        needed = self._defs[f"tree.{name}"].get("required", ())
        for at, schema in self._properties(f"tree.{name}").items():
            related = [each for each in schema.get("anyOf", ()) if _is_related(each)]
            known = at in columns
            found = self.type(any_of(_sent(columns[at]) if known else NULL, *related))
            found = self.given.format(found) if known else found
            yield Field(at, self.forward(found) if related else found, at in needed)

    def _changed(self, columns: Mapping[str, Any], name: str) -> Field:
        """Return the field of a column in an update: a value, or an operator that computes one."""
        # A column's name that contains "->" is quoted in updates.
        column = columns.get(name) or columns[name[1:-1].replace('""', '"')]
        computing = (word.removeprefix("$").title() for word in column.get("computing", ()))
        return Field(name, " | ".join([self._sent(column), *computing]), False)

    def keys(self) -> Iterator[tuple[str, list[list[Field]]]]:
        """Yield the classes of keys, each with the columns of the keys, the primary key first."""
        for name, relation in self._relations.items():
            columns, primary = relation["columns"], relation["primary_key"]
            # The primary key first: only its values may be given without column names.
            keys = [primary, *(each["columns"] for each in relation["unique_keys"])]
            yield (
                f"{self._classes[name]}Key",
                [
                    [self._field(at, _without_null(columns[at]["json_schema"])) for at in key]
                    for key in (keys if primary else ())
                ],
            )

    def calls(self) -> Iterator[TypedCall]:
        """Yield all procedures."""
        procedures = self._document["procedures"]
        for name, relation in self._relations.items():
            for verb, described in relation["verbs"].items():
                if f"{name}.{verb}" not in procedures:
                    by_position = self._document["verbs"][verb]["positional"]
                    yield self._call(name, verb, described, by_position, "RelationCalls")
        for name, overloads in self._document["functions"].items():
            for function in overloads:
                yield from self._function(name, function)
        for name, described in procedures.items():
            group, _, verb = name.rpartition(".")
            yield self._call(group, verb, described, described.get("positional", ()))

    def _call(
        self,
        group: str,
        name: str,
        described: Mapping[str, Any],
        by_position: Iterable[str],
        template: str = "",
    ) -> TypedCall:
        if (template, name) in self._patterns:
            return TypedCall(group, name, [], [], "", template)
        own, shared = described["arguments"], self._resolved(described["arguments"])
        required = {*own.get("required", ()), *shared.get("required", ())}
        properties = {**shared["properties"], **own.get("properties", {})}
        # A call with `receipt` returns autobahn's CallResult, for which there are no types.
        fields = {
            each: self._field(each, found, each in required)
            for each, found in properties.items()
            if each != RECEIPT
        }
        positional = [fields.pop(each) for each in by_position]
        result = self.type(_usual(described["result"]))
        return TypedCall(group, name, positional, [*fields.values()], result)

    def _function(self, name: str, function: Mapping[str, Any]) -> Iterator[TypedCall]:
        group, _, name = name.rpartition(".")
        fields = [
            self._field(each["name"] or "", each["json_schema"], each["required"])
            for each in function["parameters"]
        ]
        # Parameters without a name are positional, and so are all before the last of them.
        unnamed = max((at for at, each in enumerate(fields, 1) if not each.name), default=0)
        arguments = function["arguments"]
        known = arguments.get("anyOf", [arguments])[0]["properties"]
        taken = {each.name for each in fields}
        options = [
            self._field(each, known[each], False)
            for each in ("max_affected", "timeout", IDEMPOTENCY_KEY)
            if known.get(each, NULL) != NULL and each not in taken
        ]
        result = self.type(_usual(function["result"]))
        yield TypedCall(group, name, fields[:unnamed], [*fields[unnamed:], *options], result)
        for verb, described in function["verbs"].items():
            if ("FunctionCalls", verb) in self._patterns:
                page = function["verbs"]["find"]["result"]["anyOf"][0]
                row = self.type(self._resolved(page["properties"]["rows"])["items"])
                named = [each for each in fields if each.name]
                yield TypedCall(group, f"{name}.{verb}", [], named, row, "FunctionCalls")
            else:
                yield self._call(group, f"{name}.{verb}", described, ())

    def overloads(self, call: TypedCall) -> list[str]:
        """Return the signatures of a call: those of the template, or one made from its schemas."""
        if not call.template:
            return [self.signature(call)]
        patterns, words = self._patterns[call.template, call.verb], self.words(call)
        # In one pass, because a replacement may contain another name of the template.
        sought = re.compile("|".join(map(re.escape, words)))
        return [sought.sub(lambda found: words[found[0]], each) for each in patterns]

    def _uri(self, call: TypedCall) -> str:
        return ".".join(filter(None, (self._document["prefix"], call.group, call.name)))

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            pointer = unquote(schema["$ref"]).removeprefix("#/$defs/")
            schema = self._defs[pointer.replace("~1", "/").replace("~0", "~")]
        return schema


class _TypeScript(_Client):
    template = "typed_client.ts"
    names = TYPESCRIPT
    array = "({})[]"
    given = "Given<{}>"
    # The signatures become overloads of one method. Interfaces that inherit from generic ones would be
    # easier to read, but tsc compares each with all others: 14 s of CPU rather than 5 s for 300 relations.
    of_class = r"^export interface (\w+Calls) \{\n(.*?)^\}"
    of_verb = r"^  (\w+): \{\n(.*?)\n  \};$"

    def literal(self, value: Any) -> str:
        return json.dumps(value)

    def module(self) -> str:
        lines = [self._head]
        for title, fields, paths in self.records():
            inner = (f"[path: `{_template(name)}->${{string}}`]: unknown" for name in paths)
            columns = "".join(f"  {each};\n" for each in [*self._fields(fields), *inner])
            lines.append(f"export interface {title} {{\n{columns}}}\n")
        lines += [f"export type {title} = {self._key(keys)};\n" for title, keys in self.keys()]
        lines += ["/** A WAMP session, typed by procedure. */", "export interface Session {"]
        for call in self.calls():
            lines += self.overloads(call)
        return "\n".join([*lines, "}", ""])

    def words(self, call: TypedCall) -> dict[str, str]:
        words = {'"URI"': json.dumps(self._uri(call))}
        if call.template == "RelationCalls":
            return {**words, "Relation": self._classes[call.group]}
        words |= {"FunctionRow": call.result}
        if call.needs_named:
            return {**words, "FunctionArgs": f"{{ args: {self._object(call.named)} }}"}
        return {
            **words,
            "FunctionArgs": f"{{ args?: {self._object(call.named)} | null }}",
            "args: None, kwargs: K)": "args?: None, kwargs?: K | null)",
        }

    def signature(self, call: TypedCall) -> str:
        args = ", ".join(f"({each.type}){'' if each.required else '?'}" for each in call.positional)
        needs_args = any(each.required for each in call.positional)
        taken = f"[{args}]" if needs_args else f"None | [{args}]" if args else "None"
        kwargs = f"{self._object(call.named)}{'' if call.needs_named else ' | null'}"
        return (
            f"  call(procedure: {json.dumps(self._uri(call))},"
            f" args{'' if needs_args or call.needs_named else '?'}: {taken},"
            f" kwargs{'' if call.needs_named else '?'}: {kwargs}):"
            f" Promise<{call.result}>;"
        )

    def _key(self, keys: list[list[Field]]) -> str:
        if not keys:
            return "never"
        values = [f"({each.type})" for each in keys[0]]
        forms = [*(values if len(values) == 1 else ()), f"[{', '.join(values)}]"]
        return " | ".join([*forms, *dict.fromkeys(map(self._object, keys))])

    def _object(self, fields: Iterable[Field]) -> str:
        return " ".join(["{", *(f"{each};" for each in self._fields(fields)), "}"])

    def _fields(self, fields: Iterable[Field]) -> Iterator[str]:
        for each in fields:
            mark = "" if each.required else "?"
            yield f"{json.dumps(each.name)}{mark}: {each.type}"


class _Python(_Client):
    template = "typed_client.py"
    names = PYTHON
    array = "list[{}]"
    given = "Given[{}]"
    of_class = r"^class (\w+Calls)\(Protocol\):\n(.*?)\n\n\n"
    of_verb = r"^    async def (\w+)(\(.*?: \.\.\.)$"

    def literal(self, value: Any) -> str:
        return "None" if value is None else f"Literal[{_text(value)}]"

    def forward(self, type: str) -> str:
        return json.dumps(type)

    def module(self) -> str:
        lines = [self._head]
        for title, fields, _ in self.records():  # a TypedDict cannot have keys that are paths
            columns = [f"    {_text(at.name)}: {_key_type(at)}," for at in fields]
            lines += [f'{title} = TypedDict("{title}", {{', *columns, "})", ""]
        lines += [f"{title}: TypeAlias = {self._key(keys)}" for title, keys in self.keys()]
        attributes = []
        # A class for each relation, not one overloaded `call` as in TypeScript: mypy compares each
        # pair of overloads, which took it more than a minute for a hundred tables.
        for attribute, title, methods in self._groups():
            lines += [
                "",
                "",
                f"class {title}(Protocol):",
                '    """Calls, by the name of the verb."""',
            ]
            for name, (_, overloads) in methods.items():
                mark = "    @overload\n" if len(overloads) > 1 else ""
                lines += [f"\n{mark}    async def {name}{signature}" for signature in overloads]
            uris = json.dumps({name: uri for name, (uri, _) in methods.items()})
            attributes.append(f"        self.{attribute} = cast({title}, Calls(session, {uris}))")
        service = self._repeated[self._repeated.index("class Service") :]
        return "\n".join([*lines, "", "", *service.splitlines()[:-1], *attributes, ""])

    def _groups(self) -> Iterator[tuple[str, str, dict[str, tuple[str, list[str]]]]]:
        """Yield the attributes of the service, their classes, and their methods: URI and signatures."""
        groups: dict[str, dict[str, tuple[str, list[str]]]] = {}
        for call in self.calls():
            methods = groups.setdefault(call.group or "service", {})
            _, overloads = methods.setdefault(call.name, (self._uri(call), []))
            overloads += self.overloads(call)
        attributes, titles = unique_identifiers(groups), class_names(groups)
        # Inside its class a method's name would hide a type of the same name.
        types = {*re.findall(r"\b[A-Z]\w+", self._head), *BUILTINS}
        for group, verbs in groups.items():
            names = unique_identifiers(verbs, types)
            methods = {names[verb]: found for verb, found in verbs.items()}
            yield attributes[group], f"{titles[group]}Calls", methods

    def words(self, call: TypedCall) -> dict[str, str]:
        if call.template == "RelationCalls":
            return {"Relation": self._classes[call.group]}
        args = "Mapping[str, Any]" if call.needs_named else "Mapping[str, Any] | None = ..."
        return {"FunctionRow": call.result, "FunctionArgs": args}

    def signature(self, call: TypedCall) -> str:
        by_position = [f"_{at}: {_argument(it)}" for at, it in enumerate(call.positional)]
        by_name = [
            f"{each.name}: {_argument(each)}" for each in call.named if _may_be_argument(each.name)
        ]
        lost = len(by_name) < len(call.named)
        others = unique_identifiers(["options"], [each.name for each in call.named])["options"]
        rest = [*(["*"] if by_name else []), *by_name, *([f"**{others}: Any"] if lost else [])]
        takes = ", ".join(["self", *by_position, "/", *rest])
        return f"({takes}) -> {call.result}: ..."

    def _key(self, keys: list[list[Field]]) -> str:
        if not keys:
            return "None"
        alone = f"{keys[0][0].type} | " if len(keys[0]) == 1 else ""
        return f'"{alone}list[Any] | dict[str, Any]"'


def _key_type(field: Field) -> str:
    return field.type if field.required else f"NotRequired[{field.type}]"


def _argument(field: Field) -> str:
    return f"{field.type}{'' if field.required else ' = ...'}"


def class_names(names: Iterable[str]) -> dict[str, str]:
    """Return a unique class name for each name of a relation or function."""
    found: dict[str, str] = {}
    for name in names:
        words = re.findall(r"[0-9A-Za-z]+", ".".join(map(decode, name.split("."))))
        made = "".join(word[:1].upper() + word[1:] for word in words) or "Relation"
        if made[0].isdigit() or keyword.iskeyword(made):
            made = f"R{made}"
        found[name] = _unused(made, found.values())
    return found


def unique_identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a unique identifier for each name, none of which is in `taken`."""
    found: dict[str, str] = {}
    for name in names:
        made = re.sub(r"\W", "_", ".".join(map(decode, name.split("."))))
        if not made.isidentifier() or made.startswith("_"):
            made = f"x{made}"
        elif keyword.iskeyword(made):
            made += "_"
        found[name] = _unused(made, {*taken, *found.values()})
    return found


def _unused(name: str, used: Container[str]) -> str:
    while name in used:
        name += "_"
    return name


def _may_be_argument(name: str) -> bool:
    """Return whether a method can have a keyword argument of this name."""
    return name.isidentifier() and not (
        name == "self" or keyword.iskeyword(name) or re.fullmatch(r"_\d+|__.*", name)
    )


def _text(text: str) -> str:
    """Return a string as a Python literal; JSON's escapes of lone surrogates are not Python's."""
    return json.dumps(text, ensure_ascii=False)


def _template(text: str) -> str:
    """Return a string as a part of a template literal of TypeScript."""
    return re.sub(r"`|\$(?={)", r"\\\g<0>", json.dumps(text)[1:-1])


def _without_null(schema: Schema) -> Schema:
    if "type" not in schema:
        return schema
    return {**schema, "type": [each for each in kinds_of(schema) if each != "null"]}


def _sent(column: Mapping[str, Any]) -> Schema:
    """Return the schema of a value sent for a column: as it is read; for numeric a number as well."""
    schema: Schema = column["json_schema"]
    if column["type"].startswith("numeric"):
        return {"type": [*kinds_of(schema), "number"]}
    return schema


def _is_related(schema: Schema) -> bool:
    """Return whether a part of a new row's schema is for related rows."""
    items = schema.get("items", {}).get("anyOf", [schema])
    return any(each.get("$ref", "").startswith(RELATED) for each in items)


def _usual(result: Schema) -> Schema:
    """Return the schema of a result without the forms that a call has to request."""
    if "anyOf" not in result:
        return result
    kept = [each for each in result["anyOf"] if each.get("$ref") not in FORMS]
    return kept[0] if len(kept) == 1 else any_of(*kept)
