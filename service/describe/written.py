"""
What `describe` says of procedures that no catalog has: the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from service.describe.error_schemas import ALL, ANY, CHANGES, ROWS, Kinds
from service.describe.json_schema import NULL, any_of, array, full, record, reference, schema, words
from service.describe.verb import COUNTED, TIMEOUT, WRITES
from service.errors import TooLarge
from service.request.batch_request import ANALYZE, ISOLATION, MAX_OPERATIONS, OPERATION_NAME

_CHANGE: Mapping[str, Any] = {
    "op": {"enum": ["insert", "update", "delete", "truncate", "touch", "reset"]},
    "schema": str,
    "relation": str,
    **dict.fromkeys(("key", "row", "old"), dict | None),
    "position": str,
    "tx": str | None,
    "last": bool,
    "at": str | None,
    "large": bool,
}
CHANGE = record(_CHANGE, [name for name in _CHANGE if name != "large"])
"""What `changes` answers of one."""
_CALL = {"call": str, "args": list | None, "kwargs": dict | None}
_TRANSACTION = {"isolation": words(*ISOLATION), "read_only": bool | None}


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
    result: Any
    errors: Kinds = ANY
    arguments: Mapping[str, Any] = field(default_factory=lambda: TIMEOUT)
    positional: tuple[str, ...] = ()

    def described(self, name: str) -> dict[str, Any]:
        """Describe it, by its name."""
        return {
            "comment": self.comment,
            **({"positional": list(self.positional)} if self.positional else {}),
            "arguments": record(self.arguments, self.positional),
            "result": schema(self.result),
            "errors": reference(f"errors.{name}"),
        }


OWN: Mapping[str, OwnProcedure] = {
    "describe": OwnProcedure(
        "What is served: all of it, or some relations and functions",
        dict,
        (*ANY, TooLarge),
        arguments={"relations": reference("columns"), "functions": reference("columns"), **TIMEOUT},
    ),
    "health": OwnProcedure(
        "That the service lives, and whether calls can be answered",
        full(live=bool, ready=bool, checks=dict[str, bool]),
    ),
    "stats": OwnProcedure(
        "The figures of the calls so far, latencies in seconds, of the pool and the changes",
        full(calls=dict, pool=dict, changes=dict),
    ),
    "why": OwnProcedure(
        "What has to hold for changes of a relation to be heard of, and whether it does",
        full(ok=bool, checks=array(full(ok=bool | None, text=str, mend=str | None))),
        arguments={"relation": str, **TIMEOUT},
        positional=("relation",),
    ),
    "explain": OwnProcedure(
        "PostgreSQL's plan for each statement of a call that reads, as EXPLAIN gives it",
        array(dict),
        ROWS,
        arguments={OPERATION_NAME: record({**_CALL, ANALYZE: bool | None}, ["call"]), **TIMEOUT},
        positional=(OPERATION_NAME,),
    ),
    "changes": OwnProcedure(
        "The changes after a position, oldest first, as far as the caller may see them",
        any_of(full(changes=array(CHANGE), position=str, more=bool), reference("text")),
        CHANGES,
        arguments={
            "since": str,
            "relations": reference("columns"),
            "limit": {"type": ["integer", "null"], "minimum": 0},
            "form": words("dicts", "json"),
            **TIMEOUT,
        },
        positional=("since",),
    ),
    "position": OwnProcedure(
        "Where the changes are now: what is committed after this call comes after it",
        str,
    ),
    "transaction": OwnProcedure(
        "Operations in one transaction, all or nothing; the results of all of them",
        list,
        ALL,
        arguments={
            "operations": {
                "type": "array",
                "maxItems": MAX_OPERATIONS,
                "items": record(_CALL, ["call"]),
            },
            **_TRANSACTION,
            "dry_run": bool | None,
            "inject": any_of(full(serialization_failure=COUNTED), NULL),
            **TIMEOUT,
            **WRITES,
        },
        positional=("operations",),
    ),
    "transaction.begin": OwnProcedure(
        "A transaction that stays open between calls; the URI by which it is called",
        full(tx=str),
        arguments={
            **_TRANSACTION,
            "idle_timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
            **TIMEOUT,
        },
    ),
}
"""The service's own procedures, by name."""


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
    schemas = {name: takes.hints.get(name, Any) for name in takes.names}
    # A parameter of the procedure's own that is called timeout is what its annotation says.
    arguments = record({**TIMEOUT, **schemas}, takes.required, closed=not takes.others)
    return {
        "comment": inspect.getdoc(function),
        "positional": takes.positional,
        "arguments": arguments,
        "result": schema(takes.hints.get("return", Any)),
        "errors": reference("errors.written"),
    }
