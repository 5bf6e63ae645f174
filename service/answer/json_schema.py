"""
The types of the database as JSON Schema (2020-12) of their values on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.catalog import Catalog, Type

INTEGERS = {"int2": 2**15, "int4": 2**31, "int8": 2**63}
FORMATS = {
    "uuid": "uuid",
    "date": "date",
    "time": "time",
    "timetz": "time",
    "timestamptz": "date-time",
    "interval": "duration",
    "bytea": "binary",
    "inet": "ip-address",
}


def schema_of(catalog: Catalog, type: Type, nullable: bool = False) -> dict[str, Any]:
    """Give the JSON Schema (2020-12) of a type's values on the wire."""
    schema = _schema(catalog, catalog.plain(type))
    if not nullable:
        return schema
    if "enum" in schema:
        return {**schema, "type": ["string", "null"], "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _schema(catalog: Catalog, type: Type) -> dict[str, Any]:
    if type.kind == "enum":
        return {"type": "string", "enum": list(type.labels)}
    if type.kind == "array":
        element = schema_of(catalog, catalog.type(type.element), nullable=True)
        return {"type": "array", "items": _or_array(element)}
    if type.kind == "composite":
        fields = {
            name: schema_of(catalog, catalog.type(oid), nullable=True)
            for name, oid in type.fields
            if name  # a hidden one has none
        }
        return {"type": "object", "properties": fields}
    return {} if type.kind == "pseudo" else _base(type.name)


def _or_array(schema: dict[str, Any]) -> dict[str, Any]:
    """Allow arrays as well: an array type does not tell how many dimensions a value has."""
    if "enum" not in schema and isinstance(schema.get("type"), list):
        return {**schema, "type": [*schema["type"], "array"]}
    return {"anyOf": [schema, {"type": "array"}]} if schema else {}


def _base(name: str) -> dict[str, Any]:
    if name in INTEGERS:
        most = INTEGERS[name]
        return {"type": "integer", "minimum": -most, "maximum": most - 1}
    if name in {"json", "jsonb"}:
        return {}
    simple: Mapping[str, dict[str, Any]] = {
        "bool": {"type": "boolean"},
        "oid": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        "float4": _number(),
        "float8": _number(),
        "numeric": {"type": "string", "pattern": r"^-?([0-9]+(\.[0-9]+)?|Infinity)$|^NaN$"},
        "hstore": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    }
    if name in simple:
        return dict(simple[name])
    return {"type": "string", "format": FORMATS[name]} if name in FORMATS else {"type": "string"}


def _number() -> dict[str, Any]:
    return {
        "anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
    }
