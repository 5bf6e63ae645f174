"""
What `describe` says of procedures that no catalog has: the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from service.describe.definitions import Schema, reference
from service.describe.grammar import FLAG, record, words
from service.describe.types import or_null
from service.describe.verbs import TIMEOUT
from service.request.transaction import ISOLATION, MAX_OPERATIONS

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
        "comment": "The figures of the calls so far, latencies in seconds, and of the pool",
        "arguments": record(TIMEOUT),
        "result": record({"calls": OBJECT, "pool": OBJECT}, ["calls", "pool"]),
        "errors": reference("errors.stats"),
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


def described_procedure(function: Callable[..., Any]) -> dict[str, Any]:
    """
    Describe a procedure written by hand: its first parameter is the call, the rest are arguments.

    What an annotation does not say as a simple type is anything.
    """
    _, *parameters = inspect.signature(function).parameters.values()
    hints = hints_of(function)
    named = [
        each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    arguments = record(
        {**TIMEOUT, **{each.name: _schema(hints.get(each.name, Any)) for each in named}},
        [each.name for each in named if each.default is each.empty],
    )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        del arguments["additionalProperties"]
    return {
        "comment": inspect.getdoc(function),
        "positional": [each.name for each in named if each.kind is not each.KEYWORD_ONLY],
        "arguments": arguments,
        "result": _schema(hints.get("return", Any)),
        "errors": reference("errors.written"),
    }


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a procedure, as far as they can be resolved."""
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # a name that is there for type checkers alone
        return {}


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
