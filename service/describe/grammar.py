"""
What all calls share: filters, select lists, sort keys, embeds and measures, as JSON Schema.

What a schema refuses here, `request/` refuses; the names of columns are for the catalog.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from service.describe.definitions import Schema, reference
from service.describe.type_schemas import DEFAULT, NULL
from service.request import filters, measures
from service.request.arguments import (
    IDEMPOTENCY_KEY,
    MAX_INTEGER,
    MAX_KEY,
    MAX_LISTED,
    RECEIPT,
)
from service.request.assignments import LINK
from service.request.embeds import MAX_EMBEDS
from service.request.paging import MAX_TOKEN
from service.request.select_list import ARGS, MAX_ARGS, MAX_KEYS, MAX_LENGTH, UNITS

NOT_NULL: Schema = {"not": NULL}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": ["boolean", "null"]}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH}
NAME_OR_NULL: Schema = {**NAME, "type": ["string", "null"]}


def record(
    properties: Mapping[str, Schema], required: Iterable[str] = (), description: str = ""
) -> Schema:
    """Return the schema of a dict that has these keys and no others."""
    found: Schema = {"description": description} if description else {}
    found |= {"type": "object", "properties": dict(properties)}
    if required:
        found["required"] = list(required)
    return {**found, "additionalProperties": False}


def words(*each: str) -> Schema:
    """Return the schema of one of some strings, or null."""
    return {"enum": [*each, None]}


def list_of(item: Schema, most: int, least: int = 0) -> Schema:
    """Return the schema of a list of items, of one item that stands for a list of it, or null."""
    items: Schema = {"type": "array", "items": item, "maxItems": most}
    if least:
        items["minItems"] = least
    return {"anyOf": [items, item, NULL]}


def _operators() -> Schema:
    array: Schema = {"type": "array"}
    text = {"anyOf": [TEXT, record({"query": TEXT, "config": TEXT}, ["query"])]}
    found: dict[str, Schema] = {name: NOT_NULL for name in sorted(filters.OPERATORS)}
    found |= {name: {} for name in ("eq", "neq", "isdistinct")}
    keys: Schema = {"type": "array", "items": NOT_NULL}
    found |= {"in": array, "has_any": keys, "has_all": keys}
    found |= {name: text for name in sorted(filters.SEARCHES)}
    found["between"] = {"type": "array", "items": NOT_NULL, "minItems": 2, "maxItems": 2}
    found |= {name: _texts() for name in filters.AFFIXES}
    found |= {name: TEXT for name in sorted(filters.PATHS)}
    found["length"] = reference("condition")
    found["is"] = {"type": ["null", "boolean", "string"]}
    found["not"] = reference("condition")
    for name in filters.BESIDE:
        found[name] = {**found[name], "examples": [{filters.COLUMN: "name"}]}
    return {
        "anyOf": [
            {**record(found), "minProperties": 1},
            {"allOf": [HAS_ARGS, record({**found, **GIVEN})]},
        ]
    }


def _texts() -> Schema:
    """Return the schema of a text, or of several of which any or all are meant."""
    several = {"type": "array", "items": TEXT}
    return {"anyOf": [TEXT, *(record({word: several}, [word]) for word in ("any", "all"))]}


def _measure() -> Schema:
    found: dict[str, Schema] = dict.fromkeys(measures.FUNCTIONS, reference("item"))
    found |= {
        "distinct": FLAG,
        "separator": {"type": ["string", "null"]},
        "where": {"anyOf": [reference("where"), NULL]},
        "cast": {"type": ["string", "null"]},
        "fraction": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "discrete": FLAG,
        "order": reference("order"),
    }
    return {**record(found), "oneOf": [{"required": [name]} for name in measures.FUNCTIONS]}


def _embed() -> Schema:
    options = {
        "relation": NAME_OR_NULL,
        "via": NAME_OR_NULL,
        "direction": words("one", "many"),
        "select": reference("select"),
        "where": {"anyOf": [reference("where"), NULL]},
        "order": reference("order"),
        "limit": reference("whole"),
        "offset": reference("whole"),
        "embed": reference("embed"),
        "inner": FLAG,
        "spread": FLAG,
        "measures": {"anyOf": [reference("measures"), NULL]},
        "group": reference("select"),
    }
    return {
        "description": "related rows by name: true, or options",
        "type": ["object", "null"],
        "propertyNames": NAME,
        "additionalProperties": {"anyOf": [{"const": True}, record(options)]},
        "maxProperties": MAX_EMBEDS,
    }


TRUNC: Mapping[str, Schema] = {"trunc": words(*UNITS), "zone": NAME_OR_NULL}
"""What a time is cut to, and where."""

RANK: Mapping[str, Schema] = {
    "rank": {"type": ["string", "null"]},
    "config": {"type": ["string", "null"]},
    "near": {},
}
"""What a sort key is measured by: a query of text search, or another value."""

GIVEN: Mapping[str, Schema] = {
    ARGS: {"type": ["object", "null"], "propertyNames": NAME, "maxProperties": MAX_ARGS}
}
"""What the function of a computed column is given."""
HAS_ARGS: Schema = {
    "propertyNames": {"enum": [*sorted(filters.OPERATORS), ARGS]},
    "properties": {ARGS: {"type": "object"}},
    "required": [ARGS],
    "minProperties": 2,
}
"""Of a condition: operators on what a function gives for arguments."""

LANGUAGE: Mapping[str, Schema] = {
    "default": DEFAULT,
    "in_json": {"description": "what is set at a path in JSON: any value, or what computes it"},
    "link": {
        "description": "in place of a related row: the key of one that is there",
        **record({LINK: NOT_NULL}, [LINK]),
    },
    "whole": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_INTEGER},
    "seconds": {"type": ["number", "null"], "exclusiveMinimum": 0, "exclusiveMaximum": 1e9},
    IDEMPOTENCY_KEY: {
        "description": "a second call with it, and the same arguments, is answered as the first",
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": MAX_KEY,
    },
    RECEIPT: {
        "description": "the result has a keyword tx, too: the transaction's id, or null if"
        " nothing was written",
        "type": ["boolean", "null"],
    },
    "token": {"type": ["string", "null"], "maxLength": MAX_TOKEN},
    "where": {
        "description": "a filter: all its terms hold; the keys are columns, perhaps with a path and"
        " a cast, and, or, not",
        "type": "object",
        "properties": {
            "and": {"type": "array", "items": reference("where")},
            "or": {"type": "array", "items": reference("where")},
            "not": reference("where"),
        },
        "propertyNames": NAME,
        "additionalProperties": reference("condition"),
        "maxProperties": filters.MAX_TERMS,
    },
    "condition": {
        "description": "a value: equal; a list: one of; a dict of operators: all hold;"
        " a filter of related rows: one matches all of it",
        "anyOf": [
            {"type": ["null", "boolean", "number", "string", "array"]},
            reference("operators"),
            reference("related"),
        ],
    },
    "related": {
        "allOf": [reference("where"), {"not": HAS_ARGS}],
        "anyOf": [  # what is no dict of operators
            {"maxProperties": 0},
            {"not": {"propertyNames": {"enum": sorted(filters.OPERATORS)}}},
            {"properties": {"not": reference("related")}, "required": ["not"]},
        ],
    },
    "operators": _operators(),
    "item": {
        "description": '[alias:]column[->key][->>key][::type], "*", or "-column" beside it',
        "anyOf": [
            NAME,
            record(
                {"column": NAME, "as": NAME_OR_NULL, "cast": NAME_OR_NULL, **TRUNC, **GIVEN},
                ["column"],
            ),
        ],
    },
    "key": {
        "description": "column[->key][->>key][::type], or with - before it for descending",
        "anyOf": [
            NAME,
            record(
                {
                    "by": NAME,
                    "desc": FLAG,
                    "nulls": words("first", "last"),
                    **TRUNC,
                    **RANK,
                    **GIVEN,
                },
                ["by"],
            ),
        ],
    },
    "select": list_of(reference("item"), MAX_LISTED),
    "order": list_of(reference("key"), MAX_KEYS),
    "columns": list_of(NAME, MAX_LISTED),
    "some_columns": list_of(NAME, MAX_LISTED, least=1),
    "measure": _measure(),
    "measures": {
        "description": "functions over rows, by name",
        "type": "object",
        "propertyNames": NAME,
        "additionalProperties": reference("measure"),
        "maxProperties": measures.MAX_MEASURES,
    },
    "embed": _embed(),
}
"""Parts of arguments, by name."""
