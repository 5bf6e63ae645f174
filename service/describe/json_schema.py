"""
JSON Schema (2020-12): what schemas are put together from, and the shared parts of a document, its `$defs`.

A schema is written as a Python annotation where that says all, as those of procedures are.

A type of the database has a schema of its values as read, as given, as new and as changed, each a shared
part of the document, named after what it is for and the type. A domain is described as what it is made
of: its checks are PostgreSQL's to judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import quote

from service.catalog import Catalog, Type
from service.plan.operators import computing
from service.request.assignments import MAX_REMOVED
from service.request.names import encode

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


DEFAULT: Schema = {"description": "the column's default", **only("$default", {"const": True})}


def literal(schema: Schema) -> Schema:
    """Return the schema of a value that is taken as it is, whatever it looks like."""
    return only("$value", schema)


def schema_of(catalog: Catalog, type: Type, nullable: bool = False) -> Schema:
    """Return the JSON Schema of a type's values as they are read, not as a reference."""
    schema = _read(catalog, catalog.plain(type))
    return or_null(schema) if nullable else schema


def value(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the values of a type as they are read."""
    return _part(
        defs, "value", type, nullable, lambda plain: schema_of(defs.catalog, plain, nullable)
    )


def given(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a type; the first of several is as it is read."""

    def make(plain: Type) -> Schema:
        schema = _given(defs, plain)
        return or_null(schema) if nullable else schema

    return _part(defs, "given", type, nullable, make)


def new(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a column: a value, or the default's marker."""

    def make(plain: Type) -> Schema:
        known = given(defs, plain, nullable)
        return any_of(known, reference("default"), literal(known))

    return _part(defs, "set", type, nullable, make)  # "new" is for the rows of relations


def changed(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a column that is changed: what computes it, too."""
    plain = defs.catalog.plain(type)
    operators = computing(defs.catalog, plain)
    if not operators:
        return new(defs, plain, nullable)

    def make(plain: Type) -> Schema:
        ways = (only(word, _operand(defs, plain, word)) for word in operators)
        return any_of(new(defs, plain, nullable), *ways)

    return _part(defs, "change", plain, nullable, make)


def _operand(defs: Definitions, type: Type, word: str) -> Schema:
    """Return the schema of what an operator takes that computes a value of a type."""
    catalog, known, is_json = defs.catalog, type.data_type, type.form == "json"
    if word in ("$add", "$multiply"):
        other = known.added if word == "$add" else known.factor
        of = catalog.types_by_name["numeric" if is_json else other]
        return given(defs, of, nullable=False)
    if word == "$remove":
        of = catalog.types_by_name["text"] if is_json else catalog.type(type.element)
        return array(given(defs, of, nullable=True), maxItems=MAX_REMOVED)
    return schema(dict if word == "$merge" else list)


def _part(
    defs: Definitions, kind: str, type: Type, nullable: bool, make: Callable[[Type], Schema]
) -> Schema:
    """Return a reference to the part for a use of a type, made of the type under a domain."""
    plain = defs.catalog.plain(type)
    # Kinds that rows of relations do not have: a table called date would take the type's place.
    name = f"{kind}_or_null" if nullable else kind
    if plain.schema != "pg_catalog":
        name += f".{encode(plain.schema)}"
    return defs.refer(f"{name}.{encode(plain.name)}", lambda: make(plain))


def _read(catalog: Catalog, type: Type) -> Schema:
    match type.kind:
        case "enum":
            return {**schema(str), "enum": list(type.labels)}
        case "array":
            return array(_or_array(schema_of(catalog, catalog.type(type.element), True)))
        case "composite":
            fields = _fields(type).items()
            shown = {name: schema_of(catalog, catalog.type(oid), True) for name, oid in fields}
            return record(shown, closed=False)
        case "pseudo":
            return {}
    return dict(type.data_type.schema)


def _given(defs: Definitions, type: Type) -> Schema:
    def of(oid: int) -> Schema:
        return given(defs, defs.catalog.type(oid), nullable=True)

    match type.kind:
        case "enum":
            return {**schema(str), "enum": list(type.labels)}
        case "array":
            # Dimensions are lists in lists; and PostgreSQL's own text is taken, "{1,2}".
            return any_of(array(any_of(of(type.element), list)), str)
        case "composite":
            # An unreadable field is not named here; whoever knows its name may write it all the same.
            fields = {name: of(oid) for name, oid in _fields(type).items()}
            row = record(fields, closed=not type.unreadable_fields)
            count = sum(1 for name, _ in type.fields if name)
            return any_of(row, {"type": "array", "minItems": count, "maxItems": count}, str)
        case "pseudo":
            return NOT_NULL
    return dict(type.data_type.given)


def _fields(type: Type) -> dict[str, int]:
    """Return the types of the fields of a composite that our role may name."""
    return {name: oid for name, oid in type.fields if name and name not in type.unreadable_fields}


def _or_array(schema: Schema) -> Schema:
    """Return a schema that allows arrays as well: an array type does not fix its dimensions."""
    if "enum" not in schema and isinstance(schema.get("type"), list):
        return {**schema, "type": [*schema["type"], "array"]}
    return any_of(schema, list) if schema else {}
