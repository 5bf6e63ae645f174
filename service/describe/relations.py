"""
What `describe` says of a relation: its columns and keys, and what each verb takes and answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from service.catalog import Catalog, Column, Relation
from service.describe.definitions import Definitions, Schema, reference
from service.describe.rows import Rows
from service.describe.types import schema_of
from service.describe.verbs import Right, Verb
from service.plan.relationships import computed_columns, relationships
from service.request.names import RESERVED, encode


def served_name(catalog: Catalog, relation: Relation) -> str:
    """Return a relation's name in URIs: short in the first schema, unless it is reserved."""
    name = encode(relation.name)
    if relation.schema == catalog.schemas[0] and relation.name not in RESERVED:
        return name
    return f"{encode(relation.schema)}.{name}"


def verbs_of(relation: Relation, verbs: Mapping[str, Verb]) -> list[str]:
    """Return the verbs that a relation has and that our role may use."""
    allowed: dict[Right, bool] = {
        "select": relation.selectable,
        "insert": relation.insertable,
        "update": relation.updatable,
        "delete": relation.deletable,
    }
    return [
        name
        for name, verb in verbs.items()
        if all(allowed[right] for right in verb.rights) and verb.fits(relation)
    ]


def described_relation(
    defs: Definitions, relation: Relation, verbs: Mapping[str, Verb], written: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Describe a relation.

    Args:
        defs: Take the schemas of its rows.
        relation: Which one.
        verbs: That there are.
        written: What is said of procedures written by hand, which win over generated ones.
    """
    catalog, name = defs.catalog, served_name(defs.catalog, relation)
    rows = Rows(defs, relation, name)
    return {
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "comment": relation.comment,
        "columns": {each.name: _column(catalog, each) for each in relation.columns.values()},
        "json_schema": {"row": rows.read, "insert": rows.insert, "update": rows.update},
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
        "unique_indexes": [
            {"name": index.name, "columns": list(index.used), "partial": index.partial}
            for index in relation.unique_indexes
            if not index.fault
        ],
        **_related(catalog, relation),
        "row_security": relation.row_security,
        "verbs": {
            verb: written.get(f"{name}.{verb}") or _verb(rows, verb)
            for verb in verbs_of(relation, verbs)
        },
    }


def _related(catalog: Catalog, relation: Relation) -> dict[str, Any]:
    ways = relationships(catalog, relation)
    names = Counter(name for way in ways for name in way.called)
    return {
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
                "names": sorted(name for name in way.called if names[name] == 1),
            }
            for way in ways
        ],
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
        "writable": (column.insertable or column.updatable) and not column.generated_always,
    }
    if plain.kind == "enum":
        described["enum"] = list(plain.labels)
    return described


def _generated(column: Column) -> str | None:
    """Return how the database makes the value itself."""
    if column.generated:
        return "virtual" if column.generated == "v" else "stored"
    return {"a": "identity always", "d": "identity by default"}.get(column.identity)


def _verb(rows: Rows, verb: str) -> dict[str, Any]:
    """Return what a verb takes and answers, and how it fails."""
    takes = _taken(rows, verb)
    arguments = reference(f"arguments.{verb}")
    found: dict[str, Any] = {
        "arguments": {**arguments, "properties": takes} if takes else arguments,
        "result": _answered(rows, verb),
        "errors": reference(f"errors.{verb}"),
    }
    if verb == "stream":
        found["progress"] = {"anyOf": [rows.rows, reference("progress.stream")]}
    if verb == "export":
        found["progress"] = reference("progress.export")
    return found


def _taken(rows: Rows, verb: str) -> dict[str, Any]:
    """Return the arguments that are rows, or name one."""
    key: dict[str, Any] = {}
    if verb in ("get", "update", "delete"):
        key = {"key": rows.key if rows.key is not None else False}
    if verb in ("create", "upsert"):
        return {"values": rows.values}
    if verb == "update":
        return {**key, "changes": rows.update}
    if verb == "import":  # a model may still add to its rows
        return {"rows": {"items": {"anyOf": [rows.new, {"type": "array"}]}}}
    return key


def _answered(rows: Rows, verb: str) -> Schema:
    """Return an answer: first what a call gets that says nothing of its form or its columns."""
    answer = reference(f"result.{verb}")
    if verb == "get":
        return {"anyOf": [rows.read, answer]}
    if verb == "find":
        page = {**reference("page"), "properties": {"rows": rows.rows}}
        return {"anyOf": [page, answer]}
    if verb in ("create", "upsert"):
        return rows.created
    return rows.changed if verb in ("update", "delete") else answer
