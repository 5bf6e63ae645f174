"""
What `describe` says of procedures that no catalog has: the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from service.describe.json_schema import (
    ARRAY,
    FLAG,
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    TEXT,
    TEXT_OR_NULL,
    TRUTH,
    Schema,
    any_of,
    array,
    dict_of,
    full,
    or_null,
    record,
    reference,
    words,
)
from service.describe.verb import COUNTED, TIMEOUT, WRITES
from service.request.batch_request import ANALYZE, ISOLATION, MAX_OPERATIONS, OPERATION_NAME

_ROW: Schema = {"type": ["object", "null"]}
_CHANGE = {
    "op": {"enum": ["insert", "update", "delete", "truncate", "touch", "reset"]},
    "schema": TEXT,
    "relation": TEXT,
    **dict.fromkeys(("key", "row", "old"), _ROW),
    "position": TEXT,
    "tx": TEXT_OR_NULL,
    "last": TRUTH,
    "at": TEXT_OR_NULL,
    "large": TRUTH,
}
CHANGE = record(_CHANGE, [name for name in _CHANGE if name != "large"])
"""What `changes` answers of one."""
_CALL = {"call": TEXT, "args": {"type": ["array", "null"]}, "kwargs": _ROW}
_TRANSACTION = {"isolation": words(*ISOLATION), "read_only": FLAG}


def _own(
    name: str,
    comment: str,
    result: Schema,
    arguments: Mapping[str, Schema] = TIMEOUT,
    positional: str = "",
) -> tuple[str, dict[str, Any]]:
    """Describe a procedure of the service; what goes by position is what it needs."""
    by_position = [positional] if positional else []
    return name, {
        "comment": comment,
        **({"positional": by_position} if positional else {}),
        "arguments": record(arguments, by_position),
        "result": result,
        "errors": reference(f"errors.{name}"),
    }


OWN: Mapping[str, dict[str, Any]] = dict(
    [
        _own(
            "describe",
            "What is served: all of it, or some relations and functions",
            OBJECT,
            {"relations": reference("columns"), "functions": reference("columns"), **TIMEOUT},
        ),
        _own(
            "health",
            "That the service lives, and whether calls can be answered",
            full(live=TRUTH, ready=TRUTH, checks=dict_of(TRUTH)),
        ),
        _own(
            "stats",
            "The figures of the calls so far, latencies in seconds, of the pool and the changes",
            full(calls=OBJECT, pool=OBJECT, changes=OBJECT),
        ),
        _own(
            "why",
            "What has to hold for changes of a relation to be heard of, and whether it does",
            full(ok=TRUTH, checks=array(full(ok=FLAG, text=TEXT, mend=TEXT_OR_NULL))),
            {"relation": TEXT, **TIMEOUT},
            "relation",
        ),
        _own(
            "explain",
            "PostgreSQL's plan for each statement of a call that reads, as EXPLAIN gives it",
            array(OBJECT),
            {OPERATION_NAME: record({**_CALL, ANALYZE: FLAG}, ["call"]), **TIMEOUT},
            OPERATION_NAME,
        ),
        _own(
            "changes",
            "The changes after a position, oldest first, as far as the caller may see them",
            any_of(full(changes=array(CHANGE), position=TEXT, more=TRUTH), reference("text")),
            {
                "since": TEXT,
                "relations": reference("columns"),
                "limit": {"type": ["integer", "null"], "minimum": 0},
                "form": words("dicts", "json"),
                **TIMEOUT,
            },
            "since",
        ),
        _own(
            "position",
            "Where the changes are now: what is committed after this call comes after it",
            TEXT,
        ),
        _own(
            "transaction",
            "Operations in one transaction, all or nothing; the results of all of them",
            ARRAY,
            {
                "operations": {
                    "type": "array",
                    "maxItems": MAX_OPERATIONS,
                    "items": record(_CALL, ["call"]),
                },
                **_TRANSACTION,
                "dry_run": FLAG,
                "inject": any_of(full(serialization_failure=COUNTED), NULL),
                **TIMEOUT,
                **WRITES,
            },
            "operations",
        ),
        _own(
            "transaction.begin",
            "A transaction that stays open between calls; the URI by which it is called",
            full(tx=TEXT),
            {
                **_TRANSACTION,
                "idle_timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
                **TIMEOUT,
            },
        ),
    ]
)
"""The service's own procedures."""

TYPES: Mapping[Any, Schema] = {
    bool: TRUTH,
    int: INTEGER,
    float: NUMBER,
    str: TEXT,
    bytes: {"type": "string", "format": "binary"},
    list: ARRAY,
    tuple: ARRAY,
    dict: OBJECT,
    Mapping: OBJECT,
    NoneType: NULL,
}


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
        whole = found[0] if len(found) == 1 else any_of(*found)
        return or_null(whole) if NoneType in parts else whole
    if getattr(origin, "__module__", "") == "collections.abc":
        origin = {"Mapping": dict, "Sequence": list}.get(origin.__name__, origin)
    schema = dict(TYPES.get(origin, {})) if isinstance(origin, type) else {}
    if origin is list and parts:
        schema["items"] = _schema(parts[0])
    if origin is dict and len(parts) == 2:
        schema["additionalProperties"] = _schema(parts[1])
    return schema
