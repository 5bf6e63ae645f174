"""
`describe`: the catalog as one JSON document, for people and for generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.catalog import Catalog, Column, Relation, Type
from service.request.names import RESERVED, encode

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
RIGHTS = {
    "create": ("insertable",),
    "upsert": ("insertable", "updatable"),
    "update": ("updatable",),
    "delete": ("deletable",),
}
"""What our role must be allowed for a verb; to read, for the rest."""


def describe(
    catalog: Catalog, prefix: str, version: str, verbs: Iterable[str], procedures: Iterable[str]
) -> dict[str, Any]:
    """
    Describe what is served.

    Args:
        catalog: What the database holds.
        prefix: Of the procedures' URIs.
        version: Of the service.
        verbs: That relations may have.
        procedures: Names of procedures written by hand.

    Returns:
        version, prefix, schemas; relations by the name that stands before the verb;
        procedures by name.
    """
    verbs = tuple(verbs)
    return {
        "version": version,
        "prefix": prefix,
        "schemas": list(catalog.schemas),
        "relations": {
            served_name(catalog, relation): _relation(catalog, relation, verbs)
            for relation in catalog.relations.values()
        },
        "procedures": sorted(procedures),
    }


def served_name(catalog: Catalog, relation: Relation) -> str:
    """Give a relation's name in URIs: short in the first schema, unless it is reserved."""
    name = encode(relation.name)
    if relation.schema == catalog.schemas[0] and relation.name not in RESERVED:
        return name
    return f"{encode(relation.schema)}.{name}"


def verbs_of(relation: Relation, verbs: Iterable[str]) -> list[str]:
    """List the verbs that a relation has and that our role may use."""
    return [
        verb
        for verb in verbs
        if all(getattr(relation, right) for right in RIGHTS.get(verb, ("selectable",)))
        and (verb != "get" or relation.primary_key)
        and (verb != "upsert" or relation.unique_keys)
    ]


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


def _relation(catalog: Catalog, relation: Relation, verbs: tuple[str, ...]) -> dict[str, Any]:
    return {
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "comment": relation.comment,
        "columns": {column.name: _column(catalog, column) for column in relation.columns.values()},
        "primary_key": list(relation.primary_key),
        "unique_keys": [
            {"name": key.name, "columns": list(key.columns)} for key in relation.unique_keys
        ],
        "foreign_keys": [
            {
                "name": key.name,
                "columns": list(key.columns),
                "schema": key.target[0],
                "relation": key.target[1],
                "target_columns": list(key.target_columns),
            }
            for key in relation.foreign_keys
            if key.target in catalog.relations
        ],
        "row_security": relation.row_security,
        "verbs": verbs_of(relation, verbs),
    }


def _column(catalog: Catalog, column: Column) -> dict[str, Any]:
    type = catalog.type(column.type)
    plain = catalog.plain(type)
    schema = schema_of(catalog, type, column.nullable)
    if column.max_length is not None and plain.category == "S":
        schema["maxLength"] = column.max_length
    described: dict[str, Any] = {
        "type": column.declared,
        "nullable": column.nullable,
        "default": column.default,
        "generated": _generated(column),
        "comment": column.comment,
        "json_schema": schema,
        "readable": column.selectable,
        "writable": (column.insertable or column.updatable) and not _always(column),
    }
    if plain.kind == "enum":
        described["enum"] = list(plain.labels)
    return described


def _always(column: Column) -> bool:
    """Tell whether the value is the database's to make, whatever a call says."""
    return bool(column.generated) or column.identity == "a"


def _generated(column: Column) -> str | None:
    """Say how the database makes the value itself."""
    if column.generated:
        return "virtual" if column.generated == "v" else "stored"
    return {"a": "identity always", "d": "identity by default"}.get(column.identity)


def _schema(catalog: Catalog, type: Type) -> dict[str, Any]:
    if type.kind == "enum":
        return {"type": "string", "enum": list(type.labels)}
    if type.kind == "array":
        element = schema_of(catalog, catalog.type(type.element), nullable=True)
        return {"type": "array", "items": _or_array(element)}
    if type.kind == "composite":
        fields = {
            name: schema_of(catalog, catalog.type(oid), nullable=True) for name, oid in type.fields
        }
        return {"type": "object", "properties": fields}
    return _base(type.name)


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
