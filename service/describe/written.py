"""
What `describe` says of procedures that no catalog has: the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from service.describe.error_schemas import ALL, ANY, CHANGES, ROWS, Kinds
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
from service.errors import TooLarge
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


@dataclass(frozen=True, slots=True)
class OwnProcedure:
    """
    A procedure of the service.

    Args:
        comment: What it answers, in a sentence.
        result: The schema of that.
        errors: What it may end with.
        arguments: What it takes.
        positional: The one argument that it needs, which goes by position, too.
    """

    comment: str
    result: Schema
    errors: Kinds = ANY
    arguments: Mapping[str, Schema] = field(default_factory=lambda: TIMEOUT)
    positional: tuple[str, ...] = ()

    def described(self, name: str) -> dict[str, Any]:
        """Describe it, by its name."""
        return {
            "comment": self.comment,
            **({"positional": list(self.positional)} if self.positional else {}),
            "arguments": record(self.arguments, self.positional),
            "result": self.result,
            "errors": reference(f"errors.{name}"),
        }


OWN: Mapping[str, OwnProcedure] = {
    "describe": OwnProcedure(
        "What is served: all of it, or some relations and functions",
        OBJECT,
        (*ANY, TooLarge),
        arguments={"relations": reference("columns"), "functions": reference("columns"), **TIMEOUT},
    ),
    "health": OwnProcedure(
        "That the service lives, and whether calls can be answered",
        full(live=TRUTH, ready=TRUTH, checks=dict_of(TRUTH)),
    ),
    "stats": OwnProcedure(
        "The figures of the calls so far, latencies in seconds, of the pool and the changes",
        full(calls=OBJECT, pool=OBJECT, changes=OBJECT),
    ),
    "why": OwnProcedure(
        "What has to hold for changes of a relation to be heard of, and whether it does",
        full(ok=TRUTH, checks=array(full(ok=FLAG, text=TEXT, mend=TEXT_OR_NULL))),
        arguments={"relation": TEXT, **TIMEOUT},
        positional=("relation",),
    ),
    "explain": OwnProcedure(
        "PostgreSQL's plan for each statement of a call that reads, as EXPLAIN gives it",
        array(OBJECT),
        ROWS,
        arguments={OPERATION_NAME: record({**_CALL, ANALYZE: FLAG}, ["call"]), **TIMEOUT},
        positional=(OPERATION_NAME,),
    ),
    "changes": OwnProcedure(
        "The changes after a position, oldest first, as far as the caller may see them",
        any_of(full(changes=array(CHANGE), position=TEXT, more=TRUTH), reference("text")),
        CHANGES,
        arguments={
            "since": TEXT,
            "relations": reference("columns"),
            "limit": {"type": ["integer", "null"], "minimum": 0},
            "form": words("dicts", "json"),
            **TIMEOUT,
        },
        positional=("since",),
    ),
    "position": OwnProcedure(
        "Where the changes are now: what is committed after this call comes after it",
        TEXT,
    ),
    "transaction": OwnProcedure(
        "Operations in one transaction, all or nothing; the results of all of them",
        ARRAY,
        ALL,
        arguments={
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
        positional=("operations",),
    ),
    "transaction.begin": OwnProcedure(
        "A transaction that stays open between calls; the URI by which it is called",
        full(tx=TEXT),
        arguments={
            **_TRANSACTION,
            "idle_timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
            **TIMEOUT,
        },
    ),
}
"""The service's own procedures, by name."""

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
