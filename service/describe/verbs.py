"""
The arguments and answers of the verbs, as far as they are the same for every relation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.describe import errors
from service.describe.definitions import Schema, reference
from service.describe.grammar import FLAG, LANGUAGE, record, words
from service.describe.types import NULL
from service.request.read import COUNTS, FORMATS, FORMS, MAX_CHUNK

WHERE: Schema = {"anyOf": [reference("where"), NULL]}
OBJECT: Schema = {"type": "object"}
COUNTED: Schema = {"type": "integer", "minimum": 0}
ROWS: Schema = {"type": "array", "items": OBJECT}

TIMEOUT = {"timeout": reference("seconds")}
FORM = {"form": words(*FORMS)}
SHOWN = {"select": reference("select"), "embed": reference("embed")}
PAGED = {"order": reference("order"), "limit": reference("whole"), "offset": reference("whole")}
DISTINCT = {"distinct": {"anyOf": [{"type": "boolean"}, reference("some_columns")]}}
RETURNING = {**SHOWN, **FORM, "order": reference("order"), "returning": FLAG}
TARGET = {"where": WHERE, "all": FLAG, "max_affected": reference("whole")}
CONFLICT = {
    "on_conflict": reference("some_columns"),
    "update": reference("columns"),
}
ARGS = {"args": {"type": ["object", "array", "null"]}}

FIND = {**TIMEOUT, **FORM, **SHOWN, **PAGED, **DISTINCT, "where": WHERE}
PAGE = {"after": reference("token"), "count": words(*COUNTS)}
STREAM = {
    **FIND,
    **dict.fromkeys(PAGE, NULL),
    "chunk": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHUNK},
}
EXPORT = {**STREAM, "format": words(*FORMATS)}
del EXPORT["form"]
AGGREGATE = {
    **TIMEOUT,
    **FORM,
    **PAGED,
    "measures": reference("measures"),
    "group": reference("select"),
    "where": WHERE,
    "having": WHERE,
}
EITHER: Schema = {
    "oneOf": [
        {"required": ["key"], "properties": {"where": False, "all": False}},
        {"properties": {"key": False, "expect": False}},
    ]
}
"""Of update and delete: by key, or by filter."""

POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "get": ("key",),
    "aggregate": ("measures",),
    "create": ("values",),
    "upsert": ("values",),
    "update": ("key", "changes"),
    "delete": ("key",),
    "import": ("rows",),
}
"""What may be given by position, in its order."""

ARGUMENTS: Mapping[str, Schema] = {
    "get": record({"key": {}, **TIMEOUT, **SHOWN, **FORM}, ["key"]),
    "find": record({**FIND, **PAGE}),
    "count": record({**TIMEOUT, "where": WHERE}),
    "exists": record({**TIMEOUT, "where": WHERE}),
    "stream": record(STREAM),
    "export": record(EXPORT),
    "aggregate": record(AGGREGATE, ["measures"]),
    "create": record(
        {"values": {}, **TIMEOUT, **RETURNING, "max_affected": reference("whole")}, ["values"]
    ),
    "upsert": record(
        {"values": {}, **TIMEOUT, **RETURNING, **CONFLICT, "max_affected": reference("whole")},
        ["values"],
    ),
    "update": {
        **record(
            {"key": {}, "changes": {}, "expect": {"type": ["object", "null"]}, **TIMEOUT,
             **TARGET, **RETURNING},
            ["changes"],
        ),
        **EITHER,
    },
    "delete": {
        **record(
            {"key": {}, "expect": {"type": ["object", "null"]}, **TIMEOUT, **TARGET, **RETURNING}
        ),
        **EITHER,
    },
    "import": {
        **record(
            {
                "rows": {"type": ["array", "string", "null"]},
                "csv": {"type": ["string", "null"]},
                "columns": reference("some_columns"),
                "upload": {"type": ["string", "null"]},
                "done": FLAG,
                **CONFLICT,
                **TIMEOUT,
            }
        ),
        "anyOf": [{"required": [each]} for each in ("rows", "csv", "upload", "done")],
    },
    "fn.find": record({**ARGS, **FIND, **PAGE}),
    "fn.aggregate": record({**ARGS, **AGGREGATE}, ["measures"]),
    "fn.stream": record({**ARGS, **STREAM}),
    "fn.export": record({**ARGS, **EXPORT}),
}  # fmt: skip

LISTS: Schema = {
    "description": "form lists: values without the names repeated",
    "type": "object",
    "properties": {
        "columns": {"type": "array", "items": {"type": "string"}},
        "rows": {"type": "array", "items": {"type": "array"}},
    },
    "required": ["columns", "rows"],
}
AFFECTED: Schema = {
    "description": "with returning: false",
    **record({"affected": COUNTED}, ["affected"]),
}
TEXT: Schema = {"description": 'with form: "json", the answer as one JSON text', "type": "string"}
SELECTED: Schema = {"description": "what select and embed make of a row", "type": "object"}


def _page(rows: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {
            "rows": rows,
            "next": {"type": ["string", "null"]},
            "count": COUNTED,
        },
        "required": ["rows", "next"],
    }


def _written(rows: Schema) -> Schema:
    return record({"rows": rows, "affected": COUNTED}, ["rows", "affected"])


ANSWERS: Mapping[str, Schema] = {
    "get": {"anyOf": [reference("selected"), reference("lists"), reference("text")]},
    "find": {
        "anyOf": [
            reference("page"), {**reference("lists"), "required": ["next"]}, reference("text")
        ]
    },
    "count": COUNTED,
    "exists": {"type": "boolean"},
    "stream": {
        "type": "object",
        "properties": {"rows": COUNTED, "columns": {"type": "array", "items": {"type": "string"}}},
        "required": ["rows"],
        "additionalProperties": False,
    },
    "export": record({"rows": COUNTED, "bytes": COUNTED}, ["rows", "bytes"]),
    "aggregate": {"anyOf": [ROWS, reference("lists"), reference("text")]},
    "create": {
        "anyOf": [
            reference("selected"), ROWS, reference("lists"), reference("text"),
            reference("affected"),
        ]
    },
    "update": {
        "anyOf": [
            reference("selected"), NULL, reference("written"), reference("lists"),
            reference("text"), reference("affected"),
        ]
    },
    "import": {
        "anyOf": [
            record({"rows": COUNTED}, ["rows"]),
            record({"upload": {"type": "string"}}, ["upload"]),
        ]
    },
}  # fmt: skip
"""What any call of a verb answers; `upsert` is as `create`, `delete` as `update`."""

PROGRESS: Mapping[str, Schema] = {
    "stream": {"type": "array", "items": {"type": ["object", "array"]}},
    "export": {"type": "string"},
}
"""What each progressive result is."""


VERBS = tuple(each for each in ARGUMENTS if not each.startswith("fn."))
"""Of relations."""


def described_verbs() -> dict[str, Any]:
    """Return what is the same for a verb of every relation."""
    return {
        verb: {"positional": list(POSITIONAL.get(verb, ())), "progressive": verb in PROGRESS}
        for verb in VERBS
    }


def shared() -> dict[str, Schema]:
    """Return the shared parts of every document."""
    return {
        **LANGUAGE,
        "lists": LISTS,
        "text": TEXT,
        "affected": AFFECTED,
        "selected": SELECTED,
        "page": _page(ROWS),
        "written": _written(ROWS),
        **{f"arguments.{verb}": schema for verb, schema in ARGUMENTS.items()},
        **{f"result.{verb}": schema for verb, schema in ANSWERS.items()},
        **{f"progress.{verb}": schema for verb, schema in PROGRESS.items()},
        **errors.definitions(),
    }
