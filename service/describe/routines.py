"""
What `describe` says of a function: its parameters, its answer, and the verbs on its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from service.catalog import Argument, Catalog, Function
from service.describe.grammar import WHOLE
from service.describe.json_schema import (
    NULL,
    Definitions,
    Schema,
    any_of,
    array,
    record,
    reference,
)
from service.describe.type_schemas import given, schema_of, value
from service.describe.verb import FORM, TIMEOUT, WRITES, DescribedRows, Verb, forms
from service.plan.call_plan import answer_kind, result_columns
from service.request.call_request import ARGS
from service.request.names import FN, encode

OPTIONS: dict[str, Schema] = {**TIMEOUT, **FORM, **WRITES, "max_affected": WHOLE}


def function_name(catalog: Catalog, home: tuple[str, str]) -> str:
    """Return a function's name in URIs."""
    schema, name = home
    before = "" if schema == catalog.schemas[0] else f"{encode(schema)}."
    return f"{before}{FN}.{encode(name)}"


def may_be_described(catalog: Catalog, function: Function) -> bool:
    """Return whether our role may know of the rows that a function takes and returns."""
    # Everybody may execute a function unless told otherwise, and would learn from it the columns of a
    # table that is not theirs to read. What runs with its owner's rights shows its rows anyway.
    return function.definer or all(
        _is_known(catalog, oid) for oid in (function.result, *(a.type for a in function.arguments))
    )


def _is_known(catalog: Catalog, oid: int) -> bool:
    """Return whether our role may use anything of a type, if it is made of a relation's row."""
    type = catalog.type(oid)
    while type.element or type.base:
        type = catalog.type(type.element or type.base)
    names = [name for name, _ in type.fields if name]
    return not names or any(name not in type.unreadable_fields for name in names)


def described_functions(
    defs: Definitions,
    home: tuple[str, str],
    overloads: Sequence[Function],
    verbs: Mapping[str, Verb],
) -> list[dict[str, Any]]:
    """Describe the functions of one name."""
    name = function_name(defs.catalog, home)
    # Which of them is meant shows by the arguments, so what one of them has as a parameter is no
    # option of the others by that name.
    names = frozenset(each for function in overloads for each in function.names)
    return [
        _FunctionRows(defs, function, f"{name}.{at}", names).function(verbs)
        for at, function in enumerate(overloads)
    ]


class _FunctionRows(DescribedRows):
    """
    One function, and the rows that it returns.

    Args:
        defs: Take the schemas.
        function: Which one.
        name: In URIs, with its place among those of its name.
        names: Of the parameters of all functions of its name.
    """

    prefix = "fn."

    def __init__(
        self, defs: Definitions, function: Function, name: str, names: frozenset[str]
    ) -> None:
        super().__init__(defs, name)
        self._function = function
        self._names = names
        self._columns = result_columns(defs.catalog, function)
        self._by_name = {each.name: self._given(each) for each in function.inputs if each.name}
        first = function.inputs[: function.unnamed]
        needed = [at for at, each in enumerate(first, 1) if not (each.name or each.has_default)]
        items = [self._given(each) for each in first]
        self._listed: Schema = {
            "type": "array",
            **({"minItems": needed[-1]} if needed else {}),
            "maxItems": len(items),
            **({"prefixItems": items} if items else {}),
        }
        required = [each.name for each in function.inputs if each.name and not each.has_default]
        self.makers["args"] = lambda: record(self._by_name, required)

    def function(self, verbs: Mapping[str, Verb]) -> dict[str, Any]:
        """Describe the function, and the verbs on its rows."""
        function, catalog = self._function, self.defs.catalog
        has_verbs = self._columns is not None and not function.procedure
        needed = [ARGS] if any(not each.has_default for each in function.inputs) else []
        args = any_of(self.part("args"), self._listed, *([] if needed else [NULL]))
        return {
            "schema": function.schema,
            "name": function.name,
            "kind": "procedure" if function.procedure else "function",
            "comment": function.comment,
            "volatility": function.volatility,
            "parameters": [described_parameter(catalog, each) for each in function.inputs],
            "returns": {"type": catalog.type(function.result).sql, "many": function.many},
            "arguments": self._arguments(),
            "result": self._result(),
            "errors": reference("errors.fn"),
            "verbs": {
                name: self.described(verb, {ARGS: args}, needed)
                for name, verb in verbs.items()
                if has_verbs and verb.on_functions
            },
        }

    def _given(self, argument: Argument) -> Schema:
        return given(self.defs, self.defs.catalog.type(argument.type), nullable=True)

    def _arguments(self) -> Schema:
        """Return what a call takes by name; what has no name is in a list, as `args`."""
        function = self._function
        nothing = function.procedure or answer_kind(self.defs.catalog, function) == "nothing"
        # Without an answer there is nothing to count.
        options = {**OPTIONS, "max_affected": NULL} if nothing else OPTIONS
        others = {name: each for name, each in options.items() if name not in self._names}
        plain = {**others, **self._by_name}
        needed = [each for each in function.inputs if not each.has_default]
        listed = [each for each in function.inputs[: function.unnamed] if not each.has_default]
        by_name = [each.name for each in needed[len(listed) :]]
        if ARGS not in self._names:
            plain[ARGS] = self._listed if function.unnamed else NULL
            by_name += [ARGS] if listed else []
        if function.unnamed:
            return record(plain, by_name)
        # With the arguments apart, options are such even where a parameter has the name of one.
        apart = record({**options, ARGS: self.part("args")}, [ARGS])
        return any_of(record(plain, by_name), apart)

    def _result(self) -> Schema:
        """Return what a call answers."""
        catalog, function = self.defs.catalog, self._function
        answer = answer_kind(catalog, function)
        if answer == "nothing":
            return any_of(NULL, reference("text"))
        if self._columns is None:
            result = value(self.defs, catalog.type(function.result), nullable=True)
            return any_of(array(result) if answer == "values" else result, reference("text"))
        usual = {"rows": ("rows",), "composite": ("row", "null")}.get(answer, ("row",))
        return forms(*map(self.part, usual))

    def row(self) -> Schema:
        """Build the schema of a row of its result."""
        catalog, function = self.defs.catalog, self._function
        withheld: Set[str] = set()
        if not (function.outputs or function.definer):
            withheld = catalog.plain(catalog.type(function.result)).unreadable_fields
        columns = {
            name: value(self.defs, catalog.type(column.type), nullable=True)
            for name, column in (self._columns or {}).items()
            if name not in withheld
        }
        # What is withheld may be there all the same, nameless here.
        return record(columns, columns, closed=not withheld)


def described_parameter(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    """Describe what a function takes."""
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
