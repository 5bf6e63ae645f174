"""
`describe`: the catalog as one JSON document, for people and for generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.answer.describing_functions import described_functions
from service.answer.json_schema import schema_of
from service.catalog import Catalog, Column, Relation
from service.plan.computed import computed_columns
from service.plan.relationships import relationships
from service.request.names import RESERVED, encode

RIGHTS = {
    "create": ("insertable",),
    "upsert": ("insertable", "updatable"),
    "import": ("insertable",),
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
        functions by the name that calls them; procedures by name.
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
        "functions": described_functions(catalog),
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
        and (verb != "upsert" or any(key.arbiter for key in relation.unique_keys))
    ]


def _relation(catalog: Catalog, relation: Relation, verbs: tuple[str, ...]) -> dict[str, Any]:
    columns = {column.name: _column(catalog, column) for column in relation.columns.values()}
    return {
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "comment": relation.comment,
        "columns": columns,
        "json_schema": row_schemas(columns),
        "computed": {
            name: {
                "type": computed.column.declared,
                "comment": computed.column.comment,
                "json_schema": schema_of(catalog, catalog.type(computed.column.type), True),
            }
            for name, computed in computed_columns(catalog, relation).items()
        },
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
        "relationships": [
            {
                "relation": served_name(catalog, way.target),
                "via": way.label,
                "many": way.many,
                "names": sorted(way.called),
            }
            for way in relationships(catalog, relation)
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


def row_schemas(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Give the JSON Schemas of a row as it is read, created and updated."""
    readable = {name: each for name, each in columns.items() if each["readable"]}
    writable = {name: each for name, each in columns.items() if each["writable"]}
    needed = [
        name
        for name, each in writable.items()
        if not (each["nullable"] or each["default"] or each["generated"])
    ]
    return {
        "row": _object(readable, list(readable)),
        "insert": _object(writable, needed),
        "update": _object(writable, []),
    }


def _object(columns: Mapping[str, Mapping[str, Any]], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: each["json_schema"] for name, each in columns.items()},
        "required": required,
        "additionalProperties": False,
    }


def _always(column: Column) -> bool:
    """Tell whether the value is the database's to make, whatever a call says."""
    return bool(column.generated) or column.identity == "a"


def _generated(column: Column) -> str | None:
    """Say how the database makes the value itself."""
    if column.generated:
        return "virtual" if column.generated == "v" else "stored"
    return {"a": "identity always", "d": "identity by default"}.get(column.identity)
