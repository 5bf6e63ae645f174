"""
JSON Schemas of what calls have in common: filters, select lists, sort keys, embeds and measures.

`request/` refuses all that these schemas refuse. Names of columns are not checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from service.describe.json_schema import (
    DEFAULT,
    NOT_NULL,
    NULL,
    Schema,
    any_of,
    array,
    explained,
    limited,
    only,
    record,
    reference,
    schema,
    words,
)
from service.request import embeds, filters
from service.request.arguments import (
    IDEMPOTENCY_KEY,
    MAX_INTEGER,
    MAX_KEY,
    MAX_LISTED,
    RECEIPT,
)
from service.request.read_request import MAX_TOKEN
from service.request.row_values import LINK
from service.request.select_list import ARGS, MAX_ARGS, MAX_KEYS, MAX_LENGTH, UNITS

NAME = limited(str, minLength=1, maxLength=MAX_LENGTH)
NAME_OR_NULL: Schema = {**NAME, "type": ["string", "null"]}
WHERE = any_of("where", NULL)
WHOLE = reference("whole")
SELECT = reference("select")
ORDER = reference("order")
MEASURES = any_of("measures", NULL)

TRUNC: Mapping[str, Any] = {"trunc": words(*UNITS), "zone": NAME_OR_NULL}
"""Options of a select item or sort key for `date_trunc`."""

RANK: Mapping[str, Any] = {"rank": str | None, "config": str | None, "near": {}}
"""Options of a sort key: a text search query to rank by, or a value to measure the distance from."""

GIVEN = {ARGS: limited(dict | None, propertyNames=NAME, maxProperties=MAX_ARGS)}
"""Arguments of a computed column's function."""
HAS_ARGS: Schema = {
    "propertyNames": {"enum": [*sorted(filters.OPERATORS), ARGS]},
    "properties": {ARGS: schema(dict)},
    "required": [ARGS],
    "minProperties": 2,
}
"""A condition of operators on a computed column with arguments."""


def _list_of(item: Any, most: int, **limits: int) -> Schema:
    """Return the schema of a list of items, a single item that means a list of one, or null."""
    return any_of(array(item, maxItems=most, **limits), item, NULL)


def _named(description: str, hint: Any, values: Any, most: int) -> Schema:
    """Return the schema of a dict of at most some values by name."""
    return explained(
        description,
        hint,
        propertyNames=NAME,
        additionalProperties=schema(values),
        maxProperties=most,
    )


def _operators() -> Schema:
    several = (only(word, array(str)) for word in ("any", "all"))
    found: dict[str, Any] = {
        **dict.fromkeys(sorted(filters.OPERATORS), NOT_NULL),
        **{"eq": {}, "neq": {}, "isdistinct": {}},
        **{"in": list, "has_any": array(NOT_NULL), "has_all": array(NOT_NULL)},
        **dict.fromkeys(
            sorted(filters.SEARCHES),
            any_of(str, record({"query": str, "config": str}, ["query"])),
        ),
        "between": array(NOT_NULL, minItems=2, maxItems=2),
        **dict.fromkeys(filters.AFFIXES, any_of(str, *several)),
        **dict.fromkeys(sorted(filters.PATHS), str),
        "length": "condition",
        "is": {"type": ["null", "boolean", "string"]},
        "not": "condition",
    }
    # These also take another column of the row as operand.
    beside = {"examples": [{filters.COLUMN: "name"}]}
    found |= {name: limited(found[name], **beside) for name in filters.BESIDE}
    return any_of(
        {**record(found), "minProperties": 1}, {"allOf": [HAS_ARGS, record({**found, **GIVEN})]}
    )


OPTIONS: Mapping[str, Any] = {
    **dict.fromkeys(("relation", "via"), NAME_OR_NULL),
    **dict.fromkeys(("select", "group"), SELECT),
    **dict.fromkeys(("limit", "offset"), WHOLE),
    **dict.fromkeys(("inner", "spread", "distinct", "discrete"), bool | None),
    **dict.fromkeys(("separator", "cast"), str | None),
    "direction": words("one", "many"),
    "where": WHERE,
    "order": ORDER,
    "embed": "embed",
    "measures": MEASURES,
    "fraction": limited(float | None, minimum=0, maximum=1),
}
"""Options of embeds and of measures; `request/` lists which each of them has."""


def _options(names: Iterable[str]) -> dict[str, Any]:
    return {name: OPTIONS[name] for name in names}


EMBED = record(_options(embeds.EMBED_OPTIONS))
MEASURE: Schema = {
    **record(
        {**dict.fromkeys(embeds.MEASURE_FUNCTIONS, "item"), **_options(embeds.MEASURE_OPTIONS)}
    ),
    "oneOf": [{"required": [name]} for name in embeds.MEASURE_FUNCTIONS],
}

ITEM = {"column": NAME, "as": NAME_OR_NULL, "cast": NAME_OR_NULL, **TRUNC, **GIVEN}
"""Options of a select item."""

KEY = {"by": NAME, "desc": bool | None, "nulls": words("first", "last"), **TRUNC, **RANK, **GIVEN}
"""Options of a sort key."""

LANGUAGE: Mapping[str, Schema] = {
    "default": DEFAULT,
    "in_json": explained("the value to set at a path in JSON, or an operator that computes it", {}),
    "link": explained(
        "the key of an existing row, in place of a related row", only(LINK, NOT_NULL)
    ),
    "whole": limited(int | None, minimum=0, maximum=MAX_INTEGER),
    "seconds": limited(float | None, exclusiveMinimum=0, exclusiveMaximum=1e9),
    IDEMPOTENCY_KEY: explained(
        "a second call with the same key and arguments returns the result of the first",
        str | None,
        minLength=1,
        maxLength=MAX_KEY,
    ),
    RECEIPT: explained(
        "the result also has the keyword tx: the transaction id, or null if nothing was written",
        bool | None,
    ),
    "token": limited(str | None, maxLength=MAX_TOKEN),
    "where": _named(
        "a filter, true if all its terms are; keys are columns, optionally with a path"
        " and a cast, or and, or, not",
        {
            "type": "object",
            "properties": {**dict.fromkeys(("and", "or"), array("where")), "not": schema("where")},
        },
        "condition",
        filters.MAX_TERMS,
    ),
    "condition": explained(
        "a value: equal to it; a list: equal to one of them; a dict of operators: all are"
        " true; a filter of related rows: one of these matches it",
        any_of({"type": ["null", "boolean", "number", "string", "array"]}, "operators", "related"),
    ),
    # A dict of operators alone is a condition; only {"not": …} may also filter related rows. The meaning of
    # any other key depends on the catalog, which refuses a misspelled operator as such.
    "related": {
        "allOf": [reference("where"), {"not": HAS_ARGS}],
        "anyOf": [  # all but dicts of operators alone
            {"maxProperties": 0},
            {"not": {"propertyNames": {"enum": sorted(filters.OPERATORS)}}},
            {"properties": {"not": reference("related")}, "required": ["not"]},
        ],
    },
    "operators": _operators(),
    "item": explained(
        '[alias:]column[->key][->>key][::type], "*", or "-column" to exclude one from it',
        any_of(NAME, record(ITEM, ["column"])),
    ),
    "key": explained(
        "column[->key][->>key][::type], or with - before it for descending",
        any_of(NAME, record(KEY, ["by"])),
    ),
    "select": _list_of("item", MAX_LISTED),
    "order": _list_of("key", MAX_KEYS),
    "columns": _list_of(NAME, MAX_LISTED),
    "some_columns": _list_of(NAME, MAX_LISTED, minItems=1),
    "measure": MEASURE,
    "measures": _named("aggregate functions, by name", dict, "measure", embeds.MAX_MEASURES),
    "embed": _named(
        "related rows by name: true, or options",
        dict | None,
        any_of({"const": True}, EMBED),
        embeds.MAX_EMBEDS,
    ),
}
"""Shared parts of arguments, by name."""
