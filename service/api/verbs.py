"""
The table of verbs: one row for each; dispatch, `describe` and the generated types read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.api import functions, nested, read, stream, write
from service.catalog import Relation
from service.describe import error_schemas
from service.describe.grammar import MEASURES, ORDER, SELECT, WHERE, WHOLE
from service.describe.json_schema import (
    NULL,
    Schema,
    any_of,
    array,
    full,
    record,
    reference,
    schema,
    words,
)
from service.describe.verb import COUNTED, FORM, NAMES, ROWS, TIMEOUT, WRITES, Verb, forms
from service.errors import InvalidRow, NotChanged, NotFound
from service.request.read_request import COUNTS, FORMATS, MAX_CHUNK

SHOWN = {"select": SELECT, "embed": reference("embed")}
PAGED = {"order": ORDER, "limit": WHOLE, "offset": WHOLE}
RETURNING = {**SHOWN, **FORM, "order": ORDER, "returning": bool | None, **WRITES}
MAX_AFFECTED = {"max_affected": WHOLE}
TARGET = {"where": WHERE, "all": bool | None, **MAX_AFFECTED}
EXPECT = {"expect": dict | None}
OLD = {"returning": {"enum": [True, False, "old", "both", None]}}
"""What update and delete return: the new rows, no rows, the old rows, or both."""
PICK = {"limit": WHOLE, "skip_locked": bool | None}
UNPICKED: Schema = {"limit": NULL, "skip_locked": {"enum": [False, None]}}
CONFLICT = {"on_conflict": reference("some_columns"), "update": reference("columns")}
FOUND = {
    **SHOWN,
    **PAGED,
    "distinct": any_of(bool, reference("some_columns")),
    "where": WHERE,
}
FIND = {**TIMEOUT, **FORM, **FOUND}
PAGE = {
    "after": reference("token"),
    "before": reference("token"),
    "count": words(*COUNTS),
    "measures": MEASURES,
}
PARTS = {
    **dict.fromkeys(PAGE, NULL),
    "chunk": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHUNK},
}
OF_ROWS = full(enter=list, update=list)
WATCHED = record(
    {
        "type": words("snapshot", "delta", "alive"),
        "position": str,
        "rows": ROWS,
        "enter": ROWS,
        "update": ROWS,
        "leave": list,
        "key": NAMES,
        "keys": any_of(list, OF_ROWS),
        "after": OF_ROWS,
        **{key: {"const": True} for key in ("complete", "reset", "step")},
        "checksum": {**COUNTED, "maximum": 2**32 - 1},
        "covers": NAMES,
    },
    ["type"],
)
"""A message to a watcher; docs/live.md describes its fields."""
GOT: Schema = array(dict | None)
GOT_LISTS: Schema = full(columns=NAMES, rows=array(list | None))
"""The rows of several keys, with null in place of each row that does not exist."""


def _alternative(*required: str, **others: Any) -> Schema:
    """
    Return one combination of arguments.

    Args:
        required: Names of the arguments that it needs.
        others: Schemas of further arguments by name; False for one that may not be given.
    """
    return {**({"required": [*required]} if required else {}), "properties": others}


def _has_arbiter(relation: Relation) -> bool:
    return any(key.arbiter for key in relation.unique_keys) or any(
        not index.fault for index in relation.unique_indexes
    )


_ROWS = (
    Verb(
        "get",
        read.get,
        arguments={
            **record({"key": {}, "keys": list, **TIMEOUT, **SHOWN, **FORM}),
            "oneOf": [_alternative("key", keys=False), _alternative("keys", key=False)],
        },
        result=forms(reference("selected"), GOT, more=[GOT_LISTS]),
        errors=(*error_schemas.ROWS, NotFound),
        positional=("key",),
        fits=lambda relation: bool(relation.primary_key),
        takes={"key": "key", "keys": "keys"},
        answers=("row", "got"),
    ),
    Verb(
        "find",
        read.find,
        arguments=record({**FIND, **PAGE}),
        result=any_of(
            reference("page"), {**reference("lists"), "required": ["next"]}, reference("text")
        ),
        errors=error_schemas.ROWS,
        on_functions=True,
        answers=("page",),
    ),
    Verb(
        "count",
        read.count,
        arguments=record({**TIMEOUT, "where": WHERE}),
        result=COUNTED,
        errors=error_schemas.DATABASE,
    ),
    Verb(
        "exists",
        read.exists,
        arguments=record({**TIMEOUT, "where": WHERE}),
        result=schema(bool),
        errors=error_schemas.DATABASE,
    ),
    Verb(
        "stream",
        stream.stream,
        arguments=record({**FIND, **PARTS}),
        result=record({"rows": COUNTED, "columns": NAMES}, ["rows"]),
        errors=error_schemas.ROWS,
        progress=array({"type": ["object", "array"]}),
        on_functions=True,
        sends=("rows",),
    ),
    Verb(
        "export",
        stream.export,
        arguments=record({**TIMEOUT, **FOUND, **PARTS, "format": words(*FORMATS)}),
        result=full(rows=COUNTED, bytes=COUNTED),
        errors=error_schemas.ROWS,
        progress=schema(str),
        on_functions=True,
    ),
    Verb(
        "watch",
        None,  # the live queries of `changes/watch.py` register their handler
        # the arguments of find; those of aggregate in place of `select`
        arguments=record(
            {
                **TIMEOUT,
                **FOUND,
                "measures": MEASURES,
                "group": SELECT,
                "having": WHERE,
                "since": str | None,
                "tx": bool | None,
                "tables": any_of(NAMES, str | None),
            }
        ),
        result=NULL,
        errors=error_schemas.ROWS,
        progress=WATCHED,
        on_functions=True,
    ),
    Verb(
        "aggregate",
        read.aggregate,
        arguments=record(
            {
                **TIMEOUT,
                **FORM,
                **PAGED,
                "measures": reference("measures"),
                "group": reference("select"),
                "where": WHERE,
                "having": WHERE,
            },
            ["measures"],
        ),
        result=forms(ROWS),
        errors=error_schemas.ROWS,
        positional=("measures",),
        on_functions=True,
    ),
    Verb(
        "create",
        nested.create,
        arguments=record({"values": {}, **TIMEOUT, **RETURNING, **MAX_AFFECTED}, ["values"]),
        result=forms(reference("selected"), ROWS, more=[reference("affected")]),
        errors=(*error_schemas.WRITES, NotChanged, NotFound),
        positional=("values",),
        rights=("insert",),
        takes={"values": "trees"},
        answers=("row", "rows", "null"),
    ),
    Verb(
        "upsert",
        nested.upsert,
        arguments=record(
            {
                "values": {},
                **TIMEOUT,
                **RETURNING,
                **CONFLICT,
                **MAX_AFFECTED,
                **OLD,
                "update": any_of(reference("columns"), dict),
                "where": WHERE,
            },
            ["values"],
        ),
        # Null stands for a row that the upsert leaves unchanged.
        result=forms(reference("selected"), GOT, NULL, more=[GOT_LISTS, reference("affected")]),
        errors=(*error_schemas.WRITES, NotChanged),
        positional=("values",),
        rights=("insert", "update"),
        fits=_has_arbiter,
        takes={"values": "values", "update": "taken_over"},
        answers=("row", "rows", "null"),
    ),
    Verb(
        "update",
        nested.update,
        arguments={
            **record(
                {
                    "key": {},
                    "changes": {},
                    "rows": list,
                    "by": reference("some_columns"),
                    **EXPECT,
                    **TIMEOUT,
                    **TARGET,
                    **PICK,
                    **RETURNING,
                    **OLD,
                },
            ),
            "oneOf": [  # by key, by filter, or different changes for each row
                _alternative(
                    "key", "changes", where=False, all=False, **UNPICKED, rows=False, by=False
                ),
                _alternative("changes", key=False, expect=False, rows=False, by=False),
                _alternative(
                    "rows",
                    **dict.fromkeys(("key", "changes", "expect"), False),
                    **dict.fromkeys(("where", "all", "limit", "skip_locked"), False),
                ),
            ],
        },
        # Null is the answer by key if an inner embed leaves the row out.
        result=forms(
            reference("selected"), ROWS, NULL, reference("written"), more=[reference("affected")]
        ),
        errors=error_schemas.ALL,
        positional=("key", "changes"),
        rights=("update",),
        takes={"key": "key", "changes": "update", "rows": "updates"},
        answers=("row", "rows", "written"),
    ),
    Verb(
        "delete",
        write.delete,
        arguments={
            **record({"key": {}, **EXPECT, **TIMEOUT, **TARGET, **RETURNING, **OLD}),
            "oneOf": [
                _alternative("key", where=False, all=False),
                _alternative(key=False, expect=False),
            ],
        },
        result=reference("result.update"),
        errors=error_schemas.ALL,
        positional=("key",),
        rights=("delete",),
        takes={"key": "key"},
        answers=("row", "written"),
    ),
    Verb(
        "import",
        None,  # the dispatcher registers the handler of its uploads
        arguments={
            **record(
                {
                    "rows": {"type": ["array", "string", "null"]},
                    "csv": str | None,
                    "columns": reference("some_columns"),
                    "upload": str | None,
                    "done": bool | None,
                    **CONFLICT,
                    **TIMEOUT,
                    **WRITES,
                }
            ),
            "anyOf": [{"required": [each]} for each in ("rows", "csv", "upload", "done")],
        },
        result=any_of(full(rows=COUNTED), full(upload=str)),
        errors=(*error_schemas.DATABASE, *error_schemas.VIOLATIONS, InvalidRow),
        positional=("rows",),
        rights=("insert",),
        takes={"rows": "imported"},
    ),
)

VERBS: Mapping[str, Verb] = {each.name: each for each in _ROWS}
"""By name, in the order in which `describe` lists them."""

FUNCTION = Verb(
    "fn",
    functions.call_function,
    arguments={},
    result={},
    errors=error_schemas.FUNCTION,
    on_functions=True,
)
"""A plain call of a function; `describe` derives its arguments and result from the function."""
