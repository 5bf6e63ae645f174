"""
JSON Schema (2020-12): what schemas are put together from, and the shared parts of a document, its `$defs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from service.catalog import Catalog

Schema = dict[str, Any]
"""A JSON Schema."""

ARRAY: Schema = {"type": "array"}
FLAG: Schema = {"type": ["boolean", "null"]}
INTEGER: Schema = {"type": "integer"}
NULL: Schema = {"type": "null"}
NOT_NULL: Schema = {"not": NULL}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
TRUTH: Schema = {"type": "boolean"}


def record(
    properties: Mapping[str, Schema], required: Iterable[str] = (), description: str = ""
) -> Schema:
    """Return the schema of a dict that has these keys and no others."""
    found: Schema = {"description": description} if description else {}
    found |= {"type": "object", "properties": dict(properties)}
    if required:
        found["required"] = list(required)
    return {**found, "additionalProperties": False}


def full(**properties: Schema) -> Schema:
    """Return the schema of a dict that has all of these keys and no others."""
    return record(properties, properties)


def only(name: str, schema: Schema) -> Schema:
    """Return the schema of a dict with one key."""
    return record({name: schema}, [name])


def array(items: Schema, **limits: int) -> Schema:
    """Return the schema of a list of items; `limits` are minItems and maxItems."""
    return {"type": "array", "items": items, **limits}


def dict_of(values: Schema, **limits: Any) -> Schema:
    """Return the schema of a dict with values of one kind under any name."""
    return {"type": "object", "additionalProperties": values, **limits}


def any_of(*schemas: Mapping[str, Any]) -> Schema:
    """Return the schema of what one of several schemas takes."""
    return {"anyOf": list(schemas)}


def words(*each: str) -> Schema:
    """Return the schema of one of some strings, or null."""
    return {"enum": [*each, None]}


def kinds_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the types of a schema; of one without, "any"."""
    kinds = schema.get("type", "any")
    return [kinds] if isinstance(kinds, str) else list(kinds)


def or_null(schema: Schema) -> Schema:
    """Return a schema that allows null as well."""
    if schema in ({}, NOT_NULL):
        return {}
    if "enum" in schema:
        return {**schema, "type": [*kinds_of(schema), "null"], "enum": [*schema["enum"], None]}
    if "type" in schema:
        return {**schema, "type": [*kinds_of(schema), "null"]}
    return any_of(*schema.get("anyOf", [schema]), NULL)


@lru_cache(4096)
def reference(name: str) -> Schema:
    """Return a reference to a part by its name; one object for all who do, since many will."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": "#/$defs/" + quote(pointer, safe="~!$&'()*+,;=:@")}


class Definitions:
    """
    The shared parts of a document: each is made when something first refers to it.

    Args:
        catalog: For types.
        schemas: Those that are there from the beginning.
        relations: The names of those that are described.
    """

    def __init__(
        self, catalog: Catalog, schemas: Mapping[str, Schema], relations: Iterable[str] = ()
    ) -> None:
        self.catalog = catalog
        self.relations = frozenset(relations)
        self.schemas: dict[str, Schema] = dict(schemas)

    def refer(self, name: str, make: Callable[[], Schema]) -> Schema:
        """Return a reference to a part, which is made if there is none of that name."""
        if name not in self.schemas:
            self.schemas[name] = {}  # it may refer to itself
            self.schemas[name] = make()
        return reference(name)
