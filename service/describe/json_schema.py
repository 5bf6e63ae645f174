"""
Build JSON Schemas (2020-12), and the shared parts of a document, its `$defs`.

Simple schemas are written as Python annotations, like those of procedures.

A type of the database has four schemas, for values that are read, sent, sent for a new row, and sent as a
change. Each is a shared part of the document, named after its use and the type. A domain has the schemas
of its base type: PostgreSQL checks its constraints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import quote

from service.catalog import Catalog, Type
from service.plan.operators import computing
from service.request.names import encode
from service.request.row_values import MAX_REMOVED

Schema = dict[str, Any]
"""A JSON Schema."""

TYPES: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "format": "binary"},
    **{each: {"type": "array"} for each in (list, tuple, Sequence)},
    **{each: {"type": "object"} for each in (dict, Mapping)},
    NoneType: {"type": "null"},
}
"""Schemas of Python's types."""
NULL = TYPES[NoneType]
NOT_NULL: Schema = {"not": NULL}


def schema(hint: Any) -> Schema:
    """
    Return the schema of an annotation such as `list[str] | None`; a schema is returned unchanged.

    An annotation that is not a simple type allows anything. A string is the name of a shared part.
    """
    if isinstance(hint, dict | str):
        return reference(hint) if isinstance(hint, str) else hint
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        found = [schema(part) for part in parts if part is not NoneType]
        if {} in found:
            return {}
        whole = found[0] if len(found) == 1 else any_of(*found)
        return or_null(whole, NoneType in parts)
    known = dict(TYPES.get(origin, {})) if isinstance(origin, type) else {}
    if origin in (list, Sequence) and parts:
        known["items"] = schema(parts[0])
    if origin in (dict, Mapping) and len(parts) == 2:
        known["additionalProperties"] = schema(parts[1])
    return known


def limited(hint: Any, **limits: Any) -> Schema:
    """Return the schema of an annotation with further keywords, such as `minimum`."""
    return {**schema(hint), **limits}


def explained(description: str, hint: Any, **limits: Any) -> Schema:
    """Return the schema of an annotation with a description, and with further keywords."""
    return {"description": description, **limited(hint, **limits)}


def record(
    properties: Mapping[str, Any], required: Iterable[str] = (), closed: bool = True
) -> Schema:
    """Return the schema of a dict with these keys; if it is closed, with no others."""
    return {
        "type": "object",
        "properties": {name: schema(each) for name, each in properties.items()},
        **({"required": list(required)} if required else {}),
        **({"additionalProperties": False} if closed else {}),
    }


def full(**properties: Any) -> Schema:
    """Return the schema of a dict with exactly these keys."""
    return record(properties, properties)


def only(name: str, value: Any) -> Schema:
    """Return the schema of a dict with one key."""
    return record({name: value}, [name])


def array(items: Any, **limits: int) -> Schema:
    """Return the schema of a list of items; `limits` are minItems and maxItems."""
    return {"type": "array", "items": schema(items), **limits}


def any_of(*each: Any) -> Schema:
    """Return the schema that allows what any of several schemas allows."""
    return {"anyOf": list(map(schema, each))}


def words(*each: str) -> Schema:
    """Return the schema of an enumeration of strings, or null."""
    return {"enum": [*each, None]}


def kinds_of(known: Mapping[str, Any]) -> list[str]:
    """Return the types of a schema; ["any"] if it has none."""
    kinds = known.get("type", "any")
    return [kinds] if isinstance(kinds, str) else list(kinds)


def or_null(known: Schema, nullable: bool = True) -> Schema:
    """Return a schema that allows null as well, if it is nullable."""
    if not nullable:
        return known
    if known in ({}, NOT_NULL):
        return {}
    if "type" not in known:
        return any_of(*known.get("anyOf", [known]), NULL)
    enum = {"enum": [*known["enum"], None]} if "enum" in known else {}
    return {**known, "type": [*kinds_of(known), "null"], **enum}


@lru_cache(4096)
def reference(name: str) -> Schema:
    """Return a reference to a shared part; cached, because a document has many equal ones."""
    pointer = name.replace("~", "~0").replace("/", "~1")
    return {"$ref": "#/$defs/" + quote(pointer, safe="~!$&'()*+,;=:@")}


class Definitions:
    """
    The shared parts of a document, each built once something refers to it.

    Args:
        catalog: Source of types.
        schemas: Parts that exist from the beginning.
        relations: Names of the relations in the document.
    """

    def __init__(
        self, catalog: Catalog, schemas: Mapping[str, Schema], relations: Iterable[str] = ()
    ) -> None:
        self.catalog = catalog
        self.relations = frozenset(relations)
        self._schemas: dict[str, Schema] = dict(schemas)
        self._unmade: deque[tuple[str, Callable[[], Schema]]] = deque()

    def refer(self, name: str, make: Callable[[], Schema]) -> Schema:
        """Return a reference to a part; `finish` calls `make` if there is no part of that name yet."""
        if name not in self._schemas:
            self._schemas[name] = {}  # a part may refer to itself
            self._unmade.append((name, make))
        return reference(name)

    def finish(self) -> dict[str, Schema]:
        """Build all parts that are referred to, and return all parts by name."""
        # In a loop rather than recursively in refer(): chains of hundreds of relations that refer to each
        # other would exceed Python's recursion limit.
        while self._unmade:
            name, make = self._unmade.popleft()
            self._schemas[name] = make()
        return self._schemas


DEFAULT: Schema = {"description": "the column's default", **only("$default", {"const": True})}


def literal(schema: Schema) -> Schema:
    """Return the schema of `$value`, whose operand is never parsed as an operator."""
    return only("$value", schema)


def value(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the schema of a type's values as they are read."""
    return _part(defs, "value", type, nullable, lambda of: schema_of(defs.catalog, of, nullable))


def given(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the schema of values sent for a type; of alternatives the first is as read."""
    return _part(defs, "given", type, nullable, lambda of: or_null(_given(defs, of), nullable))


def new(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the schema of what a new row may give a column: a value or `$default`."""

    def make(plain: Type) -> Schema:
        known = given(defs, plain, nullable)
        return any_of(known, "default", literal(known))

    return _part(defs, "set", type, nullable, make)  # "new" is for the rows of relations


def changed(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the schema of a column's change: as for a new row, or a computing operator."""
    operators = computing(defs.catalog, defs.catalog.plain(type))
    if not operators:
        return new(defs, type, nullable)

    def make(plain: Type) -> Schema:
        ways = (only(word, _operand(defs, plain, word)) for word in operators)
        return any_of(new(defs, plain, nullable), *ways)

    return _part(defs, "change", type, nullable, make)


def _operand(defs: Definitions, type: Type, word: str) -> Schema:
    """Return the schema of a computing operator's operand."""
    named, known, is_json = defs.catalog.types_by_name, type.data_type, type.form == "json"
    match word:
        case "$add" | "$multiply":
            other = known.added if word == "$add" else known.factor
            return given(defs, named["numeric" if is_json else other], nullable=False)
        case "$remove":
            of = named["text"] if is_json else defs.catalog.type(type.element)
            return array(given(defs, of, nullable=True), maxItems=MAX_REMOVED)
    return schema(dict if word == "$merge" else list)


def _part(
    defs: Definitions, kind: str, type: Type, nullable: bool, make: Callable[[Type], Schema]
) -> Schema:
    """Return a reference to the shared part for one use of a type, or of a domain's base type."""
    plain = defs.catalog.plain(type)
    # `kind` must not be one that parts of relations have, or a table named date would clash with the type.
    home = () if plain.schema == "pg_catalog" else (plain.schema,)
    name = ".".join([f"{kind}_or_null" if nullable else kind, *map(encode, (*home, plain.name))])
    return defs.refer(name, lambda: make(plain))


def schema_of(catalog: Catalog, type: Type, nullable: bool = False) -> Schema:
    """Return the schema of a type's values as they are read, inline."""
    plain = catalog.plain(type)

    def of(oid: int) -> Schema:
        return schema_of(catalog, catalog.type(oid), nullable=True)

    match plain.kind:
        case "array":
            known = array(_or_array(of(plain.element)))
        case "composite":
            known = record({name: of(oid) for name, oid in _fields(plain).items()}, closed=False)
        case "pseudo":
            known = {}
        case _:
            known = _of_base(plain, plain.data_type.schema)
    return or_null(known, nullable)


def _given(defs: Definitions, type: Type) -> Schema:
    def of(oid: int) -> Schema:
        return given(defs, defs.catalog.type(oid), nullable=True)

    match type.kind:
        case "array":
            # Further dimensions are nested lists; PostgreSQL's text format is allowed, too: "{1,2}".
            return any_of(array(any_of(of(type.element), list)), str)
        case "composite":
            # An unreadable field is not listed, but may be written.
            fields = {name: of(oid) for name, oid in _fields(type).items()}
            count = sum(1 for name, _ in type.fields if name)
            listed = limited(list, minItems=count, maxItems=count)
            return any_of(record(fields, closed=not type.unreadable_fields), listed, str)
        case "pseudo":
            return NOT_NULL
    return _of_base(type, type.data_type.given)


def _of_base(type: Type, known: Mapping[str, Any]) -> Schema:
    """Return the schema of a base type's values, or of an enum's."""
    return limited(str, enum=list(type.labels)) if type.kind == "enum" else dict(known)


def _fields(type: Type) -> dict[str, int]:
    """Return the types of a composite's fields that the role may read."""
    return {name: oid for name, oid in type.fields if name and name not in type.unreadable_fields}


def _or_array(schema: Schema) -> Schema:
    """Return a schema that allows arrays as well: an array type does not fix the number of dimensions."""
    if "enum" not in schema and isinstance(schema.get("type"), list):
        return {**schema, "type": [*schema["type"], "array"]}
    return any_of(schema, list) if schema else {}
