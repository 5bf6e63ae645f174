"""
The verbs: one row for each, which calls, `describe` and the generated types read.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.api import functions, nested, old_rows, read, stream, write
from service.catalog import Relation
from service.describe import error_schemas
from service.describe.grammar import WHERE
from service.describe.json_schema import NULL, record, reference
from service.describe.verb import (
    CONFLICT,
    COUNTED,
    EITHER,
    EXPORT,
    FIND,
    FORM,
    GOT,
    GOT_LISTS,
    MAX_AFFECTED,
    NAMES,
    OLD,
    ONE_OR_MANY,
    PAGE,
    PAGED,
    PICK,
    RETURNING,
    ROWS,
    SHOWN,
    STREAM,
    TARGET,
    TIMEOUT,
    WATCH,
    WATCHED,
    WAYS,
    WRITES,
    Verb,
    forms,
)
from service.errors import InvalidRow, NotChanged, NotFound

EXPECT = {"expect": {"type": ["object", "null"]}}


def _has_arbiter(relation: Relation) -> bool:
    return any(key.arbiter for key in relation.unique_keys) or any(
        not index.fault for index in relation.unique_indexes
    )


_ROWS = (
    Verb(
        "get",
        read.get,
        arguments={
            **record({"key": {}, "keys": {"type": "array"}, **TIMEOUT, **SHOWN, **FORM}),
            **ONE_OR_MANY,
        },
        result={
            "anyOf": [
                *forms(reference("selected"), GOT)["anyOf"],
                GOT_LISTS,
            ]
        },
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
        result={
            "anyOf": [
                reference("page"),
                {**reference("lists"), "required": ["next"]},
                reference("text"),
            ]
        },
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
        result={"type": "boolean"},
        errors=error_schemas.DATABASE,
    ),
    Verb(
        "stream",
        stream.stream,
        arguments=record(STREAM),
        result=record({"rows": COUNTED, "columns": NAMES}, ["rows"]),
        errors=error_schemas.ROWS,
        progress={"type": "array", "items": {"type": ["object", "array"]}},
        on_functions=True,
        sends=("rows",),
    ),
    Verb(
        "export",
        stream.export,
        arguments=record(EXPORT),
        result=record({"rows": COUNTED, "bytes": COUNTED}, ["rows", "bytes"]),
        errors=error_schemas.ROWS,
        progress={"type": "string"},
        on_functions=True,
    ),
    Verb(
        "watch",
        None,  # what keeps its state registers it
        arguments=record(WATCH),
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
        result={"anyOf": [*forms(reference("selected"), ROWS)["anyOf"], reference("affected")]},
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
                "update": {"anyOf": [reference("columns"), {"type": "object"}]},
                "where": WHERE,
            },
            ["values"],
        ),
        result={
            "anyOf": [
                *forms(reference("selected"), GOT, NULL)["anyOf"],
                GOT_LISTS,
                reference("affected"),
            ]
        },
        errors=(*error_schemas.WRITES, NotChanged),
        positional=("values",),
        rights=("insert", "update"),
        fits=_has_arbiter,
        takes={"values": "values", "update": "taken_over"},
        answers=("row", "rows", "null"),
    ),
    Verb(
        "update",
        old_rows.update,
        arguments={
            **record(
                {
                    "key": {},
                    "changes": {},
                    "rows": {"type": "array"},
                    "by": reference("some_columns"),
                    **EXPECT,
                    **TIMEOUT,
                    **TARGET,
                    **PICK,
                    **RETURNING,
                    **OLD,
                },
            ),
            **WAYS,
        },
        result={
            "anyOf": [
                *forms(reference("selected"), ROWS, NULL, reference("written"))["anyOf"],
                reference("affected"),
            ]
        },
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
            **EITHER,
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
        None,  # what keeps its state registers it
        arguments={
            **record(
                {
                    "rows": {"type": ["array", "string", "null"]},
                    "csv": {"type": ["string", "null"]},
                    "columns": reference("some_columns"),
                    "upload": {"type": ["string", "null"]},
                    "done": bool | None,
                    **CONFLICT,
                    **TIMEOUT,
                    **WRITES,
                }
            ),
            "anyOf": [{"required": [each]} for each in ("rows", "csv", "upload", "done")],
        },
        result={
            "anyOf": [
                record({"rows": COUNTED}, ["rows"]),
                record({"upload": {"type": "string"}}, ["upload"]),
            ]
        },
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
"""A plain call of a function; `describe` has its arguments and answer of the function itself."""
