"""
What `describe` says of functions: what each is given, and what it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.answer.json_schema import schema_of
from service.catalog import Catalog, Column
from service.functions import Argument, Function
from service.plan.call import answer_of, result_columns
from service.request.names import FN, encode

VERBS = ["find", "aggregate", "stream", "export"]
NULL = {"type": "null"}


def described_functions(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    """Describe all functions, by the name that calls them; overloads stand side by side."""
    return {
        _served_name(catalog, home): [_function(catalog, each) for each in overloads]
        for home, overloads in catalog.functions.items()
    }


def _served_name(catalog: Catalog, home: tuple[str, str]) -> str:
    schema, name = home
    before = "" if schema == catalog.schemas[0] else f"{encode(schema)}."
    return f"{before}{FN}.{encode(name)}"


def _function(catalog: Catalog, function: Function) -> dict[str, Any]:
    columns = result_columns(catalog, function)
    return {
        "schema": function.schema,
        "name": function.name,
        "kind": "procedure" if function.procedure else "function",
        "comment": function.comment,
        "volatility": function.volatility,
        "arguments": [_argument(catalog, each) for each in function.inputs],
        "json_schema": _given(catalog, function),
        "result": {
            "type": catalog.type(function.result).sql,
            "many": function.many,
            "json_schema": _result(catalog, function, columns),
        },
        "verbs": VERBS if columns is not None and not function.procedure else [],
    }


def _argument(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    return {
        "name": argument.name or None,
        "type": catalog.type(argument.type).sql,
        "variadic": argument.mode == "variadic",
        "required": not argument.has_default,
        "json_schema": _argument_schema(catalog, argument),
    }


def _given(catalog: Catalog, function: Function) -> dict[str, Any]:
    """Give the JSON Schema of what is given by name."""
    named = [each for each in function.inputs if each.name]
    return {
        "type": "object",
        "properties": {each.name: _argument_schema(catalog, each) for each in named},
        "required": [each.name for each in named if not each.has_default],
        "additionalProperties": False,
    }


def _argument_schema(catalog: Catalog, argument: Argument) -> dict[str, Any]:
    type = catalog.plain(catalog.type(argument.type))
    if type.name == "numeric":  # exact as a string, and taken as a number too
        return {"type": ["string", "number", "null"]}
    return schema_of(catalog, type, nullable=argument.mode != "variadic")


def _result(
    catalog: Catalog, function: Function, columns: Mapping[str, Column] | None
) -> dict[str, Any]:
    """Give the JSON Schema of what a call answers."""
    answer = answer_of(catalog, function)
    if answer == "nothing":
        return NULL
    if columns is None:
        result = schema_of(catalog, catalog.type(function.result), nullable=True)
        return {"type": "array", "items": result} if answer == "values" else result
    row = {
        "type": "object",
        "properties": {
            name: schema_of(catalog, catalog.type(column.type), nullable=True)
            for name, column in columns.items()
        },
        "required": list(columns),
        "additionalProperties": False,
    }
    if answer == "rows":
        return {"type": "array", "items": row}
    return {"anyOf": [row, NULL]} if answer == "composite" else row
