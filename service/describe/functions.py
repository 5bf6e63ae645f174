"""
What `describe` says of functions, and of procedures that no catalog has.

Those are the service's own, and those written by hand, as far as their declaration says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from service.catalog import Argument, Catalog, Column, Function
from service.describe.definitions import Definitions, Schema, reference
from service.describe.grammar import record
from service.describe.types import NULL, given, or_null, schema_of, value
from service.describe.verbs import FORM, TIMEOUT
from service.plan.functions import answer_of, result_columns
from service.request.functions import ARGS
from service.request.names import FN, encode

TYPES: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "format": "binary"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Mapping: {"type": "object"},
    NoneType: {"type": "null"},
}
TRUTH: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}

OWN: Mapping[str, dict[str, Any]] = {
    "describe": {
        "comment": "What is served: all of it, or some relations and functions",
        "arguments": record(
            {"relations": reference("columns"), "functions": reference("columns"), **TIMEOUT}
        ),
        "result": OBJECT,
        "errors": reference("errors.describe"),
    },
    "health": {
        "comment": "That the service lives, and whether calls can be answered",
        "arguments": record(TIMEOUT),
        "result": record(
            {
                "live": TRUTH,
                "ready": TRUTH,
                "checks": {"type": "object", "additionalProperties": TRUTH},
            },
            ["live", "ready", "checks"],
        ),
        "errors": reference("errors.health"),
    },
    "stats": {
        "comment": "The figures of the calls so far, latencies in seconds, and of the pool",
        "arguments": record(TIMEOUT),
        "result": record({"calls": OBJECT, "pool": OBJECT}, ["calls", "pool"]),
        "errors": reference("errors.stats"),
    },
}
"""The service's own procedures."""


def described_procedure(function: Callable[..., Any]) -> dict[str, Any]:
    """
    Describe a procedure written by hand: its first parameter is the call, the rest are arguments.

    What an annotation does not say as a simple type is anything.
    """
    _, *parameters = inspect.signature(function).parameters.values()
    hints = hints_of(function)
    named = [
        each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    arguments = record(
        {**TIMEOUT, **{each.name: _schema(hints.get(each.name, Any)) for each in named}},
        [each.name for each in named if each.default is each.empty],
    )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        del arguments["additionalProperties"]
    return {
        "comment": inspect.getdoc(function),
        "positional": [each.name for each in named if each.kind is not each.KEYWORD_ONLY],
        "arguments": arguments,
        "result": _schema(hints.get("return", Any)),
        "errors": reference("errors.written"),
    }


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a procedure, as far as they can be resolved."""
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # a name that is there for type checkers alone
        return {}


def _schema(hint: Any) -> Schema:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        found = [_schema(part) for part in parts if part is not NoneType]
        if {} in found:
            return {}
        whole = found[0] if len(found) == 1 else {"anyOf": found}
        return or_null(whole) if NoneType in parts else whole
    if getattr(origin, "__module__", "") == "collections.abc":
        origin = {"Mapping": dict, "Sequence": list}.get(origin.__name__, origin)
    schema = dict(TYPES.get(origin, {})) if isinstance(origin, type) else {}
    if origin is list and parts:
        schema["items"] = _schema(parts[0])
    if origin is dict and len(parts) == 2:
        schema["additionalProperties"] = _schema(parts[1])
    return schema


VERBS = ("find", "aggregate", "stream", "export")
OPTIONS: dict[str, Schema] = {**TIMEOUT, **FORM, "max_affected": reference("whole")}


def function_name(catalog: Catalog, home: tuple[str, str]) -> str:
    """Return a function's name in URIs."""
    schema, name = home
    before = "" if schema == catalog.schemas[0] else f"{encode(schema)}."
    return f"{before}{FN}.{encode(name)}"


def may_be_described(catalog: Catalog, function: Function) -> bool:
    """Return whether our role may know of the rows that a function takes and returns."""
    return function.definer or all(
        _is_known(catalog, oid) for oid in (function.result, *(a.type for a in function.arguments))
    )


def _is_known(catalog: Catalog, oid: int) -> bool:
    """Return whether our role may use anything of a type, if it is made of a relation's row."""
    type = catalog.type(oid)
    while type.element or type.base:
        type = catalog.type(type.element or type.base)
    names = [name for name, _ in type.fields if name]
    return not names or any(name not in type.withheld for name in names)


def described_functions(
    defs: Definitions, home: tuple[str, str], overloads: Sequence[Function]
) -> list[dict[str, Any]]:
    """Describe the functions of one name."""
    name = function_name(defs.catalog, home)
    names = frozenset(each for function in overloads for each in function.names)
    return [
        _Described(defs, function, f"{name}.{at}", names).whole()
        for at, function in enumerate(overloads)
    ]


class _Described:
    """One function; its name among the parts is its own, though others are called alike."""

    def __init__(
        self, defs: Definitions, function: Function, name: str, names: frozenset[str]
    ) -> None:
        self._defs = defs
        self._function = function
        self._name = name
        self._names = names
        self._columns = result_columns(defs.catalog, function)
        self._answer = answer_of(defs.catalog, function)

    def whole(self) -> dict[str, Any]:
        function, catalog = self._function, self._defs.catalog
        return {
            "schema": function.schema,
            "name": function.name,
            "kind": "procedure" if function.procedure else "function",
            "comment": function.comment,
            "volatility": function.volatility,
            "parameters": [_parameter(catalog, each) for each in function.inputs],
            "returns": {"type": catalog.type(function.result).sql, "many": function.many},
            "arguments": self._arguments(),
            "result": self._result(),
            "errors": reference("errors.fn"),
            "verbs": self._verbs(),
        }

    def _verbs(self) -> dict[str, Any]:
        if self._columns is None or self._function.procedure:
            return {}
        found: dict[str, Any] = {}
        for verb in VERBS:
            shared = reference(f"arguments.fn.{verb}")
            needed = any(not each.has_default for each in self._function.inputs)
            needs: Schema = {"required": [ARGS]} if needed else {}
            found[verb] = {
                "arguments": {**shared, "properties": {ARGS: self._apart(needed)}, **needs},
                "result": reference(f"result.{verb}"),
                "errors": reference(f"errors.fn.{verb}"),
            }
        rows = {"type": "array", "items": self._row}
        page = {**reference("page"), "properties": {"rows": rows}}
        found["find"]["result"] = {"anyOf": [page, reference("result.find")]}
        found["stream"]["progress"] = {"anyOf": [rows, reference("progress.stream")]}
        found["export"]["progress"] = reference("progress.export")
        return found

    def _arguments(self) -> Schema:
        """Return what a call takes by name; what has no name is in a list, as `args`."""
        function = self._function
        known = self._options()
        options = {name: each for name, each in known.items() if name not in self._names}
        rest = function.inputs[function.unnamed :]
        required = [each.name for each in rest if not each.has_default]
        plain = {**options, **self._named()}
        if ARGS not in self._names:
            plain[ARGS] = self._listed() if function.unnamed else NULL
            if any(not each.has_default for each in function.inputs[: function.unnamed]):
                required.append(ARGS)
        apart = record({**known, ARGS: self._by_name}, [ARGS])
        if function.unnamed:
            return record(plain, required)
        return {"anyOf": [record(plain, required), apart]}

    def _options(self) -> dict[str, Schema]:
        """Return the options of a call; without an answer there is nothing to count."""
        nothing = self._function.procedure or self._answer == "nothing"
        return {**OPTIONS, "max_affected": NULL} if nothing else OPTIONS

    def _apart(self, needed: bool) -> Schema:
        """Return what a verb takes as `args`."""
        nothing = [] if needed else [NULL]
        return {"anyOf": [self._by_name, self._listed(), *nothing]}

    @property
    def _by_name(self) -> Schema:
        """Return a reference to the dict of all that is given by name."""
        inputs = self._function.inputs
        needed = [each.name for each in inputs if each.name and not each.has_default]
        return self._defs.refer(f"args.{self._name}", lambda: record(self._named(), needed))

    def _named(self) -> dict[str, Schema]:
        """Return what is given by name."""
        return {each.name: self._given(each) for each in self._function.inputs if each.name}

    def _given(self, argument: Argument) -> Schema:
        return given(self._defs, self._defs.catalog.type(argument.type), nullable=True)

    def _listed(self) -> Schema:
        """Return the list of what is given by position."""
        first = self._function.inputs[: self._function.unnamed]
        items = [self._given(each) for each in first]
        needed = [at for at, each in enumerate(first, 1) if not (each.name or each.has_default)]
        least = {"minItems": needed[-1]} if needed else {}
        found: Schema = {"type": "array", **least, "maxItems": len(items)}
        return {**found, "prefixItems": items} if items else found

    def _result(self) -> Schema:
        """Return what a call answers."""
        catalog, function, answer = self._defs.catalog, self._function, self._answer
        if answer == "nothing":
            return {"anyOf": [NULL, reference("text")]}
        if self._columns is None:
            result = value(self._defs, catalog.type(function.result), nullable=True)
            result = {"type": "array", "items": result} if answer == "values" else result
            return {"anyOf": [result, reference("text")]}
        usual: Mapping[str, list[Schema]] = {
            "rows": [{"type": "array", "items": self._row}],
            "composite": [self._row, NULL],
        }
        return {"anyOf": [*usual.get(answer, [self._row]), reference("lists"), reference("text")]}

    @property
    def _row(self) -> Schema:
        """Return a reference to a row of its result."""
        return self._defs.refer(f"row.{self._name}", self._made_row)

    def _made_row(self) -> Schema:
        catalog, function = self._defs.catalog, self._function
        columns: Mapping[str, Column] = self._columns or {}
        withheld: Set[str] = set()
        if not (function.outputs or function.definer):
            withheld = catalog.plain(catalog.type(function.result)).withheld
        made = record(
            {
                name: value(self._defs, catalog.type(column.type), nullable=True)
                for name, column in columns.items()
                if name not in withheld
            },
            [name for name in columns if name not in withheld],
        )
        if withheld:  # which may be there all the same, nameless here
            del made["additionalProperties"]
        return made


def _parameter(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    type = catalog.type(argument.type)
    schema = schema_of(catalog, type, nullable=argument.mode != "variadic")
    if catalog.plain(type).form == "decimal":  # exact as a string, and taken as a number too
        schema = {"type": ["string", "number", "null"]}
    return {
        "name": argument.name or None,
        "type": type.sql,
        "variadic": argument.mode == "variadic",
        "required": not argument.has_default,
        "json_schema": schema,
    }
