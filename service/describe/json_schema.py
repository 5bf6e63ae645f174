"""
JSON Schema (2020-12): what schemas are put together from, and the shared parts of a document, its `$defs`.

A schema is written as a Python annotation where that says all, as those of procedures are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import quote

from service.catalog import Catalog

Schema = dict[str, Any]
"""A JSON Schema."""

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
"""The schemas of Python's types."""
NULL = TYPES[NoneType]
NOT_NULL: Schema = {"not": NULL}


def schema(hint: Any) -> Schema:
    """
    Return the schema of an annotation, as of `list[str] | None`; a schema stays as it is.

    What is no simple type is anything.
    """
    if isinstance(hint, dict):
        return hint
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        found = [schema(part) for part in parts if part is not NoneType]
        if {} in found:
            return {}
        whole = found[0] if len(found) == 1 else any_of(*found)
        return or_null(whole) if NoneType in parts else whole
    if getattr(origin, "__module__", "") == "collections.abc":
        origin = {"Mapping": dict, "Sequence": list}.get(origin.__name__, origin)
    known = dict(TYPES.get(origin, {})) if isinstance(origin, type) else {}
    if origin is list and parts:
        known["items"] = schema(parts[0])
    if origin is dict and len(parts) == 2:
        known["additionalProperties"] = schema(parts[1])
    return known


def record(
    properties: Mapping[str, Any], required: Iterable[str] = (), closed: bool = True
) -> Schema:
    """Return the schema of a dict that has these keys, and no others if it is closed."""
    found: Schema = {
        "type": "object",
        "properties": {name: schema(each) for name, each in properties.items()},
    }
    if required:
        found["required"] = list(required)
    return {**found, "additionalProperties": False} if closed else found


def full(**properties: Any) -> Schema:
    """Return the schema of a dict that has all of these keys and no others."""
    return record(properties, properties)


def only(name: str, value: Any) -> Schema:
    """Return the schema of a dict with one key."""
    return record({name: value}, [name])


def array(items: Any, **limits: int) -> Schema:
    """Return the schema of a list of items; `limits` are minItems and maxItems."""
    return {"type": "array", "items": schema(items), **limits}


def any_of(*each: Any) -> Schema:
    """Return the schema of what one of several schemas takes."""
    return {"anyOf": list(map(schema, each))}


def words(*each: str) -> Schema:
    """Return the schema of one of some strings, or null."""
    return {"enum": [*each, None]}


def kinds_of(known: Mapping[str, Any]) -> list[str]:
    """Return the types of a schema; of one without, "any"."""
    kinds = known.get("type", "any")
    return [kinds] if isinstance(kinds, str) else list(kinds)


def or_null(known: Schema) -> Schema:
    """Return a schema that allows null as well."""
    if known in ({}, NOT_NULL):
        return {}
    if "enum" in known:
        return {**known, "type": [*kinds_of(known), "null"], "enum": [*known["enum"], None]}
    if "type" in known:
        return {**known, "type": [*kinds_of(known), "null"]}
    return any_of(*known.get("anyOf", [known]), NULL)


@lru_cache(4096)
def reference(name: str) -> Schema:
    """Return a reference to a part by its name; one object for all who do, since many will."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": "#/$defs/" + quote(pointer, safe="~!$&'()*+,;=:@")}


class Definitions:
    """
    The shared parts of a document: each is made once something has referred to it.

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
        self._schemas: dict[str, Schema] = dict(schemas)
        self._unmade: deque[tuple[str, Callable[[], Schema]]] = deque()

    def refer(self, name: str, make: Callable[[], Schema]) -> Schema:
        """Return a reference to a part, which is made, if there is none of that name, by `finish`."""
        if name not in self._schemas:
            self._schemas[name] = {}  # it may refer to itself
            self._unmade.append((name, make))
        return reference(name)

    def finish(self) -> dict[str, Schema]:
        """Make the parts that are referred to, and return all by name."""
        # Not where they are referred to: relations refer to others in chains, through hundreds of
        # which one part within the other would be deeper than Python's stack.
        while self._unmade:
            name, make = self._unmade.popleft()
            self._schemas[name] = make()
        return self._schemas
