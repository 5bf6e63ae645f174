"""
The types of the database as JSON Schema (2020-12) of their values: as read, as given, as new.
"""

from __future__ import annotations

from typing import Any

from service.catalog import Catalog, Type
from service.describe.definitions import Definitions, Schema, reference
from service.plan.computing import computing
from service.request.assignments import MAX_REMOVED
from service.request.names import encode

NULL: Schema = {"type": "null"}


def literal(schema: Schema) -> Schema:
    """Return the schema of a value that is taken as it is, whatever it looks like."""
    return only("$value", schema)


def only(name: str, schema: Schema) -> Schema:
    """Return the schema of a dict with one key."""
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


def schema_of(catalog: Catalog, type: Type, nullable: bool = False) -> Schema:
    """Return the JSON Schema of a type's values as they are read, not as a reference."""
    schema = _read(catalog, catalog.plain(type))
    return or_null(schema) if nullable else schema


def value(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to the values of a type as they are read."""
    plain = defs.catalog.plain(type)
    kind = "value_or_null" if nullable else "value"
    return defs.refer(_name(kind, plain), lambda: schema_of(defs.catalog, plain, nullable))


def given(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a type; the first of several is as it is read."""
    plain = defs.catalog.plain(type)
    if nullable:
        return defs.refer(_name("given_or_null", plain), lambda: or_null(_given(defs, plain)))
    return defs.refer(_name("given", plain), lambda: _given(defs, plain))


def new(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a column: a value, or the default's marker."""
    plain = defs.catalog.plain(type)
    kind = "set_or_null" if nullable else "set"  # "new" is for the rows of relations

    def make() -> Schema:
        known = given(defs, plain, nullable)
        return {"anyOf": [known, reference("default"), literal(known)]}

    return defs.refer(_name(kind, plain), make)


def changed(defs: Definitions, type: Type, nullable: bool) -> Schema:
    """Return a reference to what may be sent for a column that is changed: what computes it, too."""
    plain = defs.catalog.plain(type)
    operators = computing(defs.catalog, plain)
    if not operators:
        return new(defs, plain, nullable)
    kind = "change_or_null" if nullable else "change"

    def make() -> Schema:
        ways = (only(word, _operand(defs, plain, word)) for word in operators)
        return {"anyOf": [new(defs, plain, nullable), *ways]}

    return defs.refer(_name(kind, plain), make)


def _operand(defs: Definitions, type: Type, word: str) -> Schema:
    """Return the schema of what an operator takes that computes a value of a type."""
    if word in ("$add", "$multiply"):
        known = type.data_type
        other = (
            "numeric" if type.form == "json" else known.added if word == "$add" else known.factor
        )
        return given(defs, defs.catalog.types_by_name[other], nullable=False)
    if word == "$merge":
        return {"type": "object"}
    items: Schema = {"type": "array"}
    if word == "$remove":
        of = (
            defs.catalog.types_by_name["text"]
            if type.form == "json"
            else _element(defs.catalog, type)
        )
        items |= {"items": given(defs, of, nullable=True), "maxItems": MAX_REMOVED}
    return items


DEFAULT: Schema = {"description": "the column's default", **only("$default", {"const": True})}


def or_null(schema: Schema) -> Schema:
    """Return a schema that allows null as well."""
    if schema in ({}, {"not": NULL}):
        return {}
    if "enum" in schema:
        return {**schema, "type": [*_kinds(schema), "null"], "enum": [*schema["enum"], None]}
    if "type" in schema:
        return {**schema, "type": [*_kinds(schema), "null"]}
    return {"anyOf": [*schema["anyOf"], NULL]} if "anyOf" in schema else {"anyOf": [schema, NULL]}


def _kinds(schema: Schema) -> list[str]:
    kinds = schema["type"]
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _name(kind: str, type: Type) -> str:
    if type.schema == "pg_catalog":
        return f"{kind}.{type.name}"
    return f"{kind}.{encode(type.schema)}.{encode(type.name)}"


def _read(catalog: Catalog, type: Type) -> Schema:
    if type.kind == "enum":
        return {"type": "string", "enum": list(type.labels)}
    if type.kind == "array":
        return {
            "type": "array",
            "items": _or_array(schema_of(catalog, _element(catalog, type), True)),
        }
    if type.kind == "composite":
        fields = {
            name: schema_of(catalog, catalog.type(oid), nullable=True)
            for name, oid in type.fields
            if name and name not in type.unreadable_fields  # a hidden one has no name
        }
        return {"type": "object", "properties": fields}
    return {} if type.kind == "pseudo" else dict(type.data_type.schema)


def _element(catalog: Catalog, type: Type) -> Type:
    return catalog.type(type.element)


def _or_array(schema: Schema) -> Schema:
    """Return a schema that allows arrays as well: an array type does not fix its dimensions."""
    if "enum" not in schema and isinstance(schema.get("type"), list):
        return {**schema, "type": [*schema["type"], "array"]}
    return {"anyOf": [schema, {"type": "array"}]} if schema else {}


def _given(defs: Definitions, type: Type) -> Schema:
    if type.kind == "array":
        element = given(defs, _element(defs.catalog, type), nullable=True)
        items = {"anyOf": [element, {"type": "array"}]}
        return {"anyOf": [{"type": "array", "items": items}, {"type": "string"}]}
    if type.kind == "composite":
        return _given_row(defs, type)
    if type.kind == "enum":
        return {"type": "string", "enum": list(type.labels)}
    return {"not": NULL} if type.kind == "pseudo" else dict(type.data_type.given)


def _given_row(defs: Definitions, type: Type) -> Schema:
    fields = {
        name: given(defs, defs.catalog.type(oid), nullable=True)
        for name, oid in type.fields
        if name and name not in type.unreadable_fields
    }
    row: dict[str, Any] = {"type": "object", "properties": fields}
    if not type.unreadable_fields:
        row["additionalProperties"] = False
    shown = sum(1 for name, _ in type.fields if name)
    values = {"type": "array", "minItems": shown, "maxItems": shown}
    return {"anyOf": [row, values, {"type": "string"}]}
