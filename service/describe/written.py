"""
What `describe` says of procedures that no catalog has: the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from service.describe.definitions import Schema, reference
from service.describe.grammar import FLAG, record, words
from service.describe.type_schemas import or_null
from service.describe.verb import TIMEOUT, WRITES
from service.request.batch_request import ANALYZE, ISOLATION, MAX_OPERATIONS, OPERATION_NAME

TYPES: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: {"type": "string", "format": "binary"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Mapping: {"type": "object"},
    NoneType: {"type": "null"},
}
TRUTH: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}

ROW: Schema = {"type": ["object", "null"]}
CHANGE = record(
    {
        "op": {"enum": ["insert", "update", "delete", "truncate", "touch", "reset"]},
        "schema": {"type": "string"},
        "relation": {"type": "string"},
        "key": ROW,
        "row": ROW,
        "old": ROW,
        "position": {"type": "string"},
        "tx": {"type": ["string", "null"]},
        "last": TRUTH,
        "at": {"type": ["string", "null"]},
        "large": TRUTH,
    },
    ["op", "schema", "relation", "key", "row", "old", "position", "tx", "last", "at"],
)
"""What `changes` answers of one."""

OWN: Mapping[str, dict[str, Any]] = {
    "describe": {
        "comment": "What is served: all of it, or some relations and functions",
        "arguments": record(
            {"relations": reference("columns"), "functions": reference("columns"), **TIMEOUT}
        ),
        "result": OBJECT,
        "errors": reference("errors.describe"),
    },
    "health": {
        "comment": "That the service lives, and whether calls can be answered",
        "arguments": record(TIMEOUT),
        "result": record(
            {
                "live": TRUTH,
                "ready": TRUTH,
                "checks": {"type": "object", "additionalProperties": TRUTH},
            },
            ["live", "ready", "checks"],
        ),
        "errors": reference("errors.health"),
    },
    "stats": {
        "comment": "The figures of the calls so far, latencies in seconds, of the pool and the changes",
        "arguments": record(TIMEOUT),
        "result": record(
            {"calls": OBJECT, "pool": OBJECT, "changes": OBJECT}, ["calls", "pool", "changes"]
        ),
        "errors": reference("errors.stats"),
    },
    "why": {
        "comment": "What has to hold for changes of a relation to be heard of, and whether it does",
        "positional": ["relation"],
        "arguments": record({"relation": {"type": "string"}, **TIMEOUT}, ["relation"]),
        "result": record(
            {
                "ok": TRUTH,
                "checks": {
                    "type": "array",
                    "items": record(
                        {
                            "ok": {"type": ["boolean", "null"]},
                            "text": {"type": "string"},
                            "mend": {"type": ["string", "null"]},
                        },
                        ["ok", "text", "mend"],
                    ),
                },
            },
            ["ok", "checks"],
        ),
        "errors": reference("errors.why"),
    },
    "explain": {
        "comment": "PostgreSQL's plan for each statement of a call that reads, as EXPLAIN gives it",
        "positional": [OPERATION_NAME],
        "arguments": record(
            {
                OPERATION_NAME: record(
                    {
                        "call": {"type": "string"},
                        "args": {"type": ["array", "null"]},
                        "kwargs": {"type": ["object", "null"]},
                        ANALYZE: FLAG,
                    },
                    ["call"],
                ),
                **TIMEOUT,
            },
            [OPERATION_NAME],
        ),
        "result": {"type": "array", "items": OBJECT},
        "errors": reference("errors.explain"),
    },
    "changes": {
        "comment": "The changes after a position, oldest first, as far as the caller may see them",
        "positional": ["since"],
        "arguments": record(
            {
                "since": {"type": "string"},
                "relations": reference("columns"),
                "limit": {"type": ["integer", "null"], "minimum": 0},
                "form": words("dicts", "json"),
                **TIMEOUT,
            },
            ["since"],
        ),
        "result": {
            "anyOf": [
                record(
                    {
                        "changes": {"type": "array", "items": CHANGE},
                        "position": {"type": "string"},
                        "more": TRUTH,
                    },
                    ["changes", "position", "more"],
                ),
                reference("text"),
            ]
        },
        "errors": reference("errors.changes"),
    },
    "position": {
        "comment": "Where the changes are now: what is committed after this call comes after it",
        "arguments": record(TIMEOUT),
        "result": {"type": "string"},
        "errors": reference("errors.position"),
    },
    "transaction": {
        "comment": "Operations in one transaction, all or nothing; the results of all of them",
        "positional": ["operations"],
        "arguments": record(
            {
                "operations": {
                    "type": "array",
                    "maxItems": MAX_OPERATIONS,
                    "items": record(
                        {
                            "call": {"type": "string"},
                            "args": {"type": ["array", "null"]},
                            "kwargs": {"type": ["object", "null"]},
                        },
                        ["call"],
                    ),
                },
                "isolation": words(*ISOLATION),
                "read_only": FLAG,
                "dry_run": FLAG,
                "inject": {
                    "anyOf": [
                        record(
                            {"serialization_failure": {"type": "integer", "minimum": 0}},
                            ["serialization_failure"],
                        ),
                        {"type": "null"},
                    ]
                },
                **TIMEOUT,
                **WRITES,
            },
            ["operations"],
        ),
        "result": {"type": "array"},
        "errors": reference("errors.transaction"),
    },
    "transaction.begin": {
        "comment": "A transaction that stays open between calls; the URI by which it is called",
        "arguments": record(
            {
                "isolation": words(*ISOLATION),
                "read_only": FLAG,
                "idle_timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
                **TIMEOUT,
            }
        ),
        "result": record({"tx": {"type": "string"}}, ["tx"]),
        "errors": reference("errors.transaction.begin"),
    },
}
"""The service's own procedures."""


class Parameters:
    """
    What a procedure written by hand takes: its parameters less the first one, which is the call.

    Args:
        function: The procedure.

    Attributes:
        signature: Of all of it.
        call: The name of the first parameter.
        names: Of those that are arguments of their own, in their order.
        positional: Those of them that go by position, too.
        required: Those of them without a default.
        rest, others: The names of `*args` and `**kwargs`; None where there is no such parameter.
        hints: Annotations by name, as far as they can be resolved.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.signature = inspect.signature(function)
        first, *parameters = self.signature.parameters.values()
        self.call = first.name
        by_kind = {each.kind: each.name for each in parameters}
        self.rest = by_kind.get(inspect.Parameter.VAR_POSITIONAL)
        self.others = by_kind.get(inspect.Parameter.VAR_KEYWORD)
        named = [each for each in parameters if each.name not in (self.rest, self.others)]
        self.names = [each.name for each in named]
        self.positional = [each.name for each in named if each.kind is not each.KEYWORD_ONLY]
        self.required = [each.name for each in named if each.default is each.empty]
        self.hints: Mapping[str, Any] = {}
        # a name that is there for type checkers alone cannot be resolved
        with suppress(NameError, TypeError):
            self.hints = get_type_hints(function)


def described_procedure(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a procedure written by hand; an annotation that is no simple type is anything."""
    takes = Parameters(function)
    schemas = {name: _schema(takes.hints.get(name, Any)) for name in takes.names}
    arguments = record({**TIMEOUT, **schemas}, takes.required)
    if takes.others:
        del arguments["additionalProperties"]
    return {
        "comment": inspect.getdoc(function),
        "positional": takes.positional,
        "arguments": arguments,
        "result": _schema(takes.hints.get("return", Any)),
        "errors": reference("errors.written"),
    }


def _schema(hint: Any) -> Schema:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        found = [_schema(part) for part in parts if part is not NoneType]
        if {} in found:
            return {}
        whole = found[0] if len(found) == 1 else {"anyOf": found}
        return or_null(whole) if NoneType in parts else whole
    if getattr(origin, "__module__", "") == "collections.abc":
        origin = {"Mapping": dict, "Sequence": list}.get(origin.__name__, origin)
    schema = dict(TYPES.get(origin, {})) if isinstance(origin, type) else {}
    if origin is list and parts:
        schema["items"] = _schema(parts[0])
    if origin is dict and len(parts) == 2:
        schema["additionalProperties"] = _schema(parts[1])
    return schema
