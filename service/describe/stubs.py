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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from service.datatypes import PYTHON, TYPESCRIPT
from service.describe.json_schema import NULL, any_of, kinds_of
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT
from service.request.names import decode

Schema = Mapping[str, Any]

TEMPLATES = Path(__file__).with_name("templates")
REPEATED = re.compile(r"^(?=(?:#|//) What follows is repeated)", re.M)
"""The place before the parts of a template that are repeated."""

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
    positional: Sequence[Field] = ()
    named: Sequence[Field] = ()
    result: str = ""
    template: str = ""

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
        self._functions: Mapping[str, Any] = {
            f"{name}.{at}": function
            for name, overloads in document["functions"].items()
            for at, function in enumerate(overloads)
        }
        self._of_functions = [name for name in self._functions if f"row.{name}" in self._defs]
        self._classes = class_names([*self._relations, *self._of_functions])
        text = (TEMPLATES / self.template).read_text("utf-8")
        self._head, self._repeated = REPEATED.split(text)
        self._patterns: dict[tuple[str, str], list[str]] = defaultdict(list)
        for template, body in re.findall(self.of_class, self._repeated, re.M | re.DOTALL):
            for verb, pattern in re.findall(self.of_verb, body, re.M | re.DOTALL):
                self._patterns[template, verb.removesuffix("_")].append(pattern)

    @abstractmethod
    def arguments(self, call: TypedCall) -> dict[str, str]:
        """Return what replaces names of the template for the arguments of a function."""

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
        found: Iterable[str]
        if "enum" in schema:
            found = map(self.literal, schema["enum"])
        elif "anyOf" in schema:
            found = map(self.type, schema["anyOf"])
        else:
            found = (self._kind(kind, schema) for kind in kinds_of(schema))
        return " | ".join(dict.fromkeys(found))

    def _kind(self, kind: str, schema: Schema) -> str:
        if kind == "array" and "items" in schema:
            return self.array.format(self.type(schema["items"]))
        binary = kind == "string" and schema.get("format") == "binary"
        return self.names["binary" if binary else kind]

    def _field(self, name: str, schema: Schema, required: bool = True) -> Field:
        return Field(name, self.type(schema), required)

    def forward(self, type: str) -> str:
        """Return a type that may name classes defined further below."""
        return type

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            pointer = unquote(schema["$ref"]).removeprefix("#/$defs/")
            schema = self._defs[pointer.replace("~1", "/").replace("~0", "~")]
        return schema

    def records(self) -> Iterator[tuple[str, list[Field], list[str]]]:
        """Yield the classes of rows: name, fields, and the columns into whose JSON keys may be paths."""
        for name, relation in self._relations.items():
            columns, title = relation["columns"], self._classes[name]
            yield f"{title}Row", self._row(name), []
            sent = {at: self.given.format(self.type(_sent(each))) for at, each in columns.items()}
            new, needed = self._record(f"insert.{name}")
            yield f"{title}Insert", [Field(at, sent[at], at in needed) for at in new], []
            if f"tree.{name}" in self._defs:
                yield f"{title}Create", [*self._created(name, columns)], []
            changes, _ = self._record(f"update.{name}")
            patterns = self._defs[f"update.{name}"].get("patternProperties", ())
            paths = [at for at in changes if any(re.match(each, f"{at}->") for each in patterns)]
            yield f"{title}Update", [_changed(columns, sent, at) for at in changes], paths
        for name in self._of_functions:
            yield f"{self._classes[name]}Row", self._row(name), []

    def _record(self, part: str) -> tuple[Mapping[str, Schema], Iterable[str]]:
        """Return the properties of a shared part, and which of them are required."""
        schema = self._defs[part]
        return self._resolved(schema)["properties"], schema.get("required", ())

    def _row(self, name: str) -> list[Field]:
        row, _ = self._record(f"row.{name}")
        return [self._field(at, each) for at, each in row.items()]

    def _created(self, name: str, columns: Mapping[str, Any]) -> Iterator[Field]:
        """Yield the fields of a new row: its columns and related rows."""
        properties, needed = self._record(f"tree.{name}")
        for at, schema in properties.items():
            related = [each for each in schema.get("anyOf", ()) if _is_related(each)]
            known = at in columns
            found = self.type(any_of(_sent(columns[at]) if known else NULL, *related))
            found = self.given.format(found) if known else found
            yield Field(at, self.forward(found) if related else found, at in needed)

    def keys(self) -> Iterator[tuple[str, list[list[Field]]]]:
        """Yield the classes of keys, each with the columns of the keys, the primary key first."""
        for name, relation in self._relations.items():
            columns, primary = relation["columns"], relation["primary_key"]
            # The primary key first: only its values may be given without column names.
            keys = [primary, *(each["columns"] for each in relation["unique_keys"])]
            fields = [
                [self._field(at, _without_null(columns[at]["json_schema"])) for at in key]
                for key in keys
            ]
            yield f"{self._classes[name]}Key", fields if primary else []

    def calls(self) -> Iterator[TypedCall]:
        """Yield all procedures."""
        verbs, procedures = self._document["verbs"], self._document["procedures"]
        for name, relation in self._relations.items():
            for verb, described in relation["verbs"].items():
                if f"{name}.{verb}" not in procedures:
                    takes = verbs[verb]["positional"]
                    yield self._call(name, verb, described, takes, "RelationCalls")
        for name, function in self._functions.items():
            yield from self._function(name, function)
        for name, described in procedures.items():
            group, _, verb = name.rpartition(".")
            yield self._call(group, verb, described, described.get("positional", ()))

    def _call(
        self, group: str, name: str, described: Schema, takes: Iterable[str], template: str = ""
    ) -> TypedCall:
        if (template, name.rpartition(".")[2]) in self._patterns:
            return TypedCall(group, name, template=template)
        own, shared = described["arguments"], self._resolved(described["arguments"])
        required = {*own.get("required", ()), *shared.get("required", ())}
        properties = {**shared["properties"], **own.get("properties", {})}
        # A call with `receipt` returns autobahn's CallResult, for which there are no types.
        fields = {
            each: self._field(each, found, each in required)
            for each, found in properties.items()
            if each != RECEIPT
        }
        positional = [fields.pop(each) for each in takes]
        result = self.type(_usual(described["result"]))
        return TypedCall(group, name, positional, [*fields.values()], result)

    def _function(self, title: str, function: Mapping[str, Any]) -> Iterator[TypedCall]:
        """Yield the call of a function, and those of the verbs on its rows."""
        group, name, _ = title.rsplit(".", 2)
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
            self._field(each, known[each], required=False)
            for each in ("max_affected", "timeout", IDEMPOTENCY_KEY)
            if known.get(each, NULL) != NULL and each not in taken
        ]
        result = self.type(_usual(function["result"]))
        yield TypedCall(group, name, fields[:unnamed], [*fields[unnamed:], *options], result)
        for verb, described in function["verbs"].items():
            call = self._call(group, f"{name}.{verb}", described, (), "FunctionCalls")
            if call.template:
                named = [each for each in fields if each.name]
                call = replace(call, named=named, result=f"{self._classes[title]}Row")
            yield call

    def overloads(self, call: TypedCall) -> list[str]:
        """Return the signatures of a call: those of the template, or one made from its schemas."""
        if not call.template:
            return [self.signature(call)]
        words = {'"URI"': json.dumps(self._uri(call))}
        if call.template == "RelationCalls":
            words["Relation"] = self._classes[call.group]
        else:
            words |= {"FunctionRow": call.result, **self.arguments(call)}
        # In one pass, because a replacement may contain another name of the template.
        sought = re.compile("|".join(map(re.escape, words)))
        patterns = self._patterns[call.template, call.name.rpartition(".")[2]]
        return [sought.sub(lambda found: words[found[0]], each) for each in patterns]

    def _uri(self, call: TypedCall) -> str:
        return ".".join(filter(None, (self._document["prefix"], call.group, call.name)))


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
            columns = "".join(f"  {each};\n" for each in [*map(_property, fields), *inner])
            lines.append(f"export interface {title} {{\n{columns}}}\n")
        lines += [f"export type {title} = {self._key(keys)};\n" for title, keys in self.keys()]
        lines += ["/** A WAMP session, typed by procedure. */", "export interface Session {"]
        for call in self.calls():
            lines += self.overloads(call)
        return "\n".join([*lines, "}", ""])

    def arguments(self, call: TypedCall) -> dict[str, str]:
        if call.needs_named:
            return {"FunctionArgs": f"{{ args: {_object(call.named)} }}"}
        return {
            "FunctionArgs": f"{{ args?: {_object(call.named)} | null }}",
            "args: None, kwargs: K)": "args?: None, kwargs?: K | null)",
        }

    def signature(self, call: TypedCall) -> str:
        args = ", ".join(f"({each.type}){'' if each.required else '?'}" for each in call.positional)
        needs_args = any(each.required for each in call.positional)
        taken = f"[{args}]" if needs_args else f"None | [{args}]" if args else "None"
        kwargs = f"{_object(call.named)}{'' if call.needs_named else ' | null'}"
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
        alone = values if len(values) == 1 else ()
        return " | ".join([*alone, f"[{', '.join(values)}]", *dict.fromkeys(map(_object, keys))])


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
            doc = '    """Calls, by the name of the verb."""'
            lines += ["", "", f"class {title}(Protocol):", doc]
            for name, (_, overloads) in methods.items():
                mark = "    @overload\n" if len(overloads) > 1 else ""
                lines += [f"\n{mark}    async def {name}{signature}" for signature in overloads]
            uris = json.dumps({name: uri for name, (uri, _) in methods.items()})
            attributes.append(f"        self.{attribute} = cast({title}, Calls(session, {uris}))")
        service = self._repeated[self._repeated.index("class Service") :]
        return "\n".join([*lines, "", "", *service.splitlines()[:-1], *attributes, ""])

    def _groups(self) -> Iterator[tuple[str, str, dict[str, tuple[str, list[str]]]]]:
        """Yield the attributes of the service, their classes, and their methods: URI and signatures."""
        groups: dict[str, dict[str, tuple[str, list[str]]]] = defaultdict(dict)
        for call in self.calls():
            methods = groups[call.group or "service"]
            _, overloads = methods.setdefault(call.name, (self._uri(call), []))
            overloads += self.overloads(call)
        attributes, titles = unique_identifiers(groups), class_names(groups)
        # Inside its class a method's name would hide a type of the same name.
        types = {*re.findall(r"\b[A-Z]\w+", self._head), *BUILTINS}
        for group, verbs in groups.items():
            names = unique_identifiers(verbs, types)
            methods = {names[verb]: found for verb, found in verbs.items()}
            yield attributes[group], f"{titles[group]}Calls", methods

    def arguments(self, call: TypedCall) -> dict[str, str]:
        return {"FunctionArgs": f"Mapping[str, Any]{'' if call.needs_named else ' | None = ...'}"}

    def signature(self, call: TypedCall) -> str:
        by_position = [f"_{at}: {_argument(it)}" for at, it in enumerate(call.positional)]
        by_name = [f"{at.name}: {_argument(at)}" for at in call.named if _may_be_argument(at.name)]
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


def _object(fields: Iterable[Field]) -> str:
    """Return a type of TypeScript in one line."""
    return " ".join(["{", *(f"{_property(each)};" for each in fields), "}"])


def _property(field: Field) -> str:
    return f"{json.dumps(field.name)}{'' if field.required else '?'}: {field.type}"


def _key_type(field: Field) -> str:
    return field.type if field.required else f"NotRequired[{field.type}]"


def _argument(field: Field) -> str:
    return f"{field.type}{'' if field.required else ' = ...'}"


def class_names(names: Iterable[str]) -> dict[str, str]:
    """Return a unique class name for each name of a relation or function."""

    def title(name: str) -> str:
        words = re.findall(r"[0-9A-Za-z]+", name)
        made = "".join(word[:1].upper() + word[1:] for word in words) or "Relation"
        return f"R{made}" if made[0].isdigit() or keyword.iskeyword(made) else made

    return _unique(names, title)


def unique_identifiers(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a unique identifier for each name, none of which is in `taken`."""

    def identifier(name: str) -> str:
        made = re.sub(r"\W", "_", name)
        if not made.isidentifier() or made.startswith("_"):
            return f"x{made}"
        return f"{made}_" if keyword.iskeyword(made) else made

    return _unique(names, identifier, taken)


def _unique(
    names: Iterable[str], make: Callable[[str], str], taken: Iterable[str] = ()
) -> dict[str, str]:
    """Return what a function makes of each decoded name, with "_" appended where it is taken."""
    found: dict[str, str] = {}
    used = {*taken}
    for name in names:
        made = make(".".join(map(decode, name.split("."))))
        while made in used:
            made += "_"
        used.add(made)
        found[name] = made
    return found


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


def _changed(columns: Mapping[str, Any], sent: Mapping[str, str], key: str) -> Field:
    """Return the field of a column in an update: a value, or an operator that computes one."""
    # A column's name that contains "->" is quoted in updates.
    name = key if key in columns else key[1:-1].replace('""', '"')
    computing = (word.removeprefix("$").title() for word in columns[name].get("computing", ()))
    return Field(key, " | ".join([sent[name], *computing]), required=False)


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
