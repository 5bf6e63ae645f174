"""
What a verb is, and what is the same of it for every relation: its arguments, answers and errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from service.catalog import Relation
from service.describe import error_schemas
from service.describe.definitions import Schema, reference
from service.describe.grammar import FLAG, LANGUAGE, record, words
from service.describe.type_schemas import NULL
from service.errors import ServiceError
from service.request.arguments import IDEMPOTENCY_KEY, RECEIPT
from service.request.read_request import COUNTS, FORMATS, FORMS, MAX_CHUNK

Right = Literal["select", "insert", "update", "delete"]


def _has_all(relation: Relation) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Verb:
    """
    A verb: all that is particular to it, in one place.

    Args:
        name: The last part of its URIs.
        handler: Takes a `Call` of it, and returns the one step that answers it, or an awaitable
            of the answer where that takes several. None in the table where the handler keeps a state, as
            of uploads: it is served once that is registered with the dispatcher.
        arguments: JSON Schema of what it takes, by name, whatever the relation.
        result: Of what it answers; a mere reference to that of another verb is one.
        errors: What it may end with.
        positional: What may be given by position, in its order.
        takes: Arguments that are of the relation: its "key" or "keys", new "values", or "trees" of them
            with related rows, an "update", or what is "imported".
        answers: What it answers first: a "row", "rows", those "got" by keys, "null", or rows in a
            "page" or as "written".
        sends: What each progressive result is first.
        progress: Of each progressive result; None if it sends none.
        rights: What the caller's role must be allowed; the first one also says what kind of
            write it is to a view.
        fits: Whether a relation has what it needs besides.
        on_functions: Whether it is there for the rows of functions, too.
        alone: Whether it spans calls or sends parts, so that it can stand in no batch.
    """

    name: str
    handler: Callable[[Any], Any] | None
    arguments: Schema
    result: Schema
    errors: tuple[type[ServiceError], ...]
    positional: tuple[str, ...] = ()
    takes: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    progress: Schema | None = None
    rights: tuple[Right, ...] = ("select",)
    fits: Callable[[Relation], bool] = _has_all
    on_functions: bool = False
    alone: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes rows, and so takes an idempotency key."""
        return self.rights[0] != "select"


OBJECT: Schema = {"type": "object"}
COUNTED: Schema = {"type": "integer", "minimum": 0}
ROWS: Schema = {"type": "array", "items": OBJECT}
NAMES: Schema = {"type": "array", "items": {"type": "string"}}
ANYTHING: Schema = {"type": "array"}
WHERE: Schema = {"anyOf": [reference("where"), NULL]}

TIMEOUT = {"timeout": reference("seconds")}
WRITES = {each: reference(each) for each in (IDEMPOTENCY_KEY, RECEIPT)}
"""What everything that writes takes."""
FORM = {"form": words(*FORMS)}
SHOWN = {"select": reference("select"), "embed": reference("embed")}
PAGED = {"order": reference("order"), "limit": reference("whole"), "offset": reference("whole")}
RETURNING = {**SHOWN, **FORM, "order": reference("order"), "returning": FLAG, **WRITES}
TARGET = {"where": WHERE, "all": FLAG, "max_affected": reference("whole")}
OLD = {"returning": {"enum": [True, False, "old", "both", None]}}
"""What update and delete answer: the rows as they are, nothing, as they were, or both."""
PICK = {"limit": reference("whole"), "skip_locked": FLAG}
CONFLICT = {"on_conflict": reference("some_columns"), "update": reference("columns")}
FIND = {
    **TIMEOUT,
    **FORM,
    **SHOWN,
    **PAGED,
    "distinct": {"anyOf": [{"type": "boolean"}, reference("some_columns")]},
    "where": WHERE,
}
PAGE = {
    "after": reference("token"),
    "before": reference("token"),
    "count": words(*COUNTS),
    "measures": {"anyOf": [reference("measures"), NULL]},
}
STREAM = {
    **FIND,
    **dict.fromkeys(PAGE, NULL),
    "chunk": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHUNK},
}
EXPORT = {
    **{name: schema for name, schema in STREAM.items() if name not in FORM},
    "format": words(*FORMATS),
}
WATCH = {
    **{name: schema for name, schema in FIND.items() if name not in FORM},
    "measures": {"anyOf": [reference("measures"), NULL]},
    "group": reference("select"),
    "having": WHERE,
    "since": {"type": ["string", "null"]},
    "tx": FLAG,
    "tables": {"anyOf": [NAMES, {"type": ["string", "null"]}]},
}
"""A find, or an aggregate in place of its `select`."""
WATCHED = record(
    {
        "type": words("snapshot", "delta", "alive"),
        "position": {"type": "string"},
        "rows": ROWS,
        "enter": ROWS,
        "update": ROWS,
        "leave": ANYTHING,
        "key": NAMES,
        "keys": {
            "anyOf": [
                ANYTHING,
                record({"enter": ANYTHING, "update": ANYTHING}, ["enter", "update"]),
            ]
        },
        "after": record({"enter": ANYTHING, "update": ANYTHING}, ["enter", "update"]),
        "complete": {"const": True},
        "reset": {"const": True},
        "step": {"const": True},
        "checksum": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
        "covers": NAMES,
    },
    ["type", "position"],
)
"""A message to a watcher: docs/live.md."""
EITHER: Schema = {
    "oneOf": [
        {"required": ["key"], "properties": {"where": False, "all": False}},
        {"properties": {"key": False, "expect": False}},
    ]
}
"""Of delete: by key, or by filter."""
_UNPICKED: Schema = {"limit": NULL, "skip_locked": {"enum": [False, None]}}
_ONE_WAY: Schema = {"rows": False, "by": False}
WAYS: Schema = {
    "oneOf": [
        {
            "required": ["key", "changes"],
            "properties": {"where": False, "all": False, **_UNPICKED, **_ONE_WAY},
        },
        {"required": ["changes"], "properties": {"key": False, "expect": False, **_ONE_WAY}},
        {
            "required": ["rows"],
            "properties": dict.fromkeys(
                ["key", "changes", "expect", "where", "all", "limit", "skip_locked"], False
            ),
        },
    ]
}
"""Of update: by key, by filter, or with other changes for each row."""


ONE_OR_MANY: Schema = {
    "oneOf": [
        {"required": ["key"], "properties": {"keys": False}},
        {"required": ["keys"], "properties": {"key": False}},
    ]
}
"""Of get: by one key, or by several."""
GOT: Schema = {"type": "array", "items": {"type": ["object", "null"]}}
GOT_LISTS: Schema = record(
    {"columns": NAMES, "rows": {"type": "array", "items": {"type": ["array", "null"]}}},
    ["columns", "rows"],
)
"""Of get by several keys: null where there is no row."""


def forms(*usual: Schema) -> Schema:
    """Return the schema of an answer in its usual forms, or as lists, or as JSON text."""
    return {"anyOf": [*usual, reference("lists"), reference("text")]}


def described_verbs(verbs: Mapping[str, Verb]) -> dict[str, Any]:
    """Return what is the same for a verb of every relation."""
    return {
        name: {"positional": list(verb.positional), "progressive": verb.progress is not None}
        for name, verb in verbs.items()
    }


def shared(verbs: Mapping[str, Verb]) -> dict[str, Schema]:
    """Return the shared parts of every document."""
    own = {verb.name: verb for verb in verbs.values() if "$ref" not in verb.result}
    of_functions = [verb for verb in verbs.values() if verb.on_functions]
    args = {"args": {"type": ["object", "array", "null"]}}
    return {
        **LANGUAGE,
        "lists": {
            "description": "form lists: values without the names repeated",
            "type": "object",
            "properties": {"columns": NAMES, "rows": {"type": "array", "items": {"type": "array"}}},
            "required": ["columns", "rows"],
        },
        "text": {
            "description": 'with form: "json", the answer as one JSON text',
            "type": "string",
        },
        "affected": {
            "description": "with returning: false",
            **record({"affected": COUNTED}, ["affected"]),
        },
        "selected": {"description": "what select and embed make of a row", "type": "object"},
        "page": {
            "type": "object",
            "properties": {
                "rows": ROWS,
                "next": {"type": ["string", "null"]},
                "prev": {"type": ["string", "null"]},
                "count": COUNTED,
                "totals": OBJECT,
            },
            "required": ["rows", "next"],
        },
        "written": record({"rows": ROWS, "affected": COUNTED}, ["rows", "affected"]),
        **{f"arguments.{name}": verb.arguments for name, verb in verbs.items()},
        **{
            f"arguments.fn.{verb.name}": record(
                {**args, **verb.arguments["properties"]}, verb.arguments.get("required", ())
            )
            for verb in of_functions
        },
        **{f"result.{name}": verb.result for name, verb in own.items()},
        **{
            f"progress.{name}": verb.progress
            for name, verb in verbs.items()
            if verb.progress is not None
        },
        **error_schemas.definitions(errors_by_procedure(verbs.values())),
    }


def errors_by_procedure(verbs: Iterable[Verb]) -> dict[str, tuple[type[ServiceError], ...]]:
    """Return the errors of verbs, of verbs on the rows of functions, and of the rest."""
    found = {verb.name: verb.errors for verb in verbs}
    found |= {
        f"fn.{verb.name}": (*verb.errors, *error_schemas.VIOLATIONS)
        for verb in verbs
        if verb.on_functions
    }
    return {**found, **error_schemas.OTHERS}
