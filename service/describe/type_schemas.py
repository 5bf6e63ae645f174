"""
The types of the database as JSON Schemas of their values: as read, as given, as new, as changed.

Each is a shared part of the document, named after what it is for and the type. A domain is
described as what it is made of: its checks are PostgreSQL's to judge.
"""

from __future__ import annotations

from collections.abc import Callable

from service.catalog import Catalog, Type
from service.describe.json_schema import (
    NOT_NULL,
    Definitions,
    Schema,
    any_of,
    array,
    only,
    or_null,
    record,
    reference,
    schema,
)
from service.plan.computing import computing
from service.request.assignments import MAX_REMOVED
from service.request.names import encode

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
