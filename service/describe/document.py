"""
Build the document of `describe`: all that is served to a role, or a part of it.

The service's own procedures are described in a table here, and hand-written ones by their signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from service.catalog import Catalog
from service.describe.grammar import LANGUAGE
from service.describe.json_schema import (
    NULL,
    Definitions,
    Schema,
    any_of,
    array,
    explained,
    full,
    limited,
    record,
    reference,
    schema,
    words,
)
from service.describe.relations import (
    RelationRows,
    described_functions,
    function_name,
    may_be_described,
    served_name,
)
from service.describe.verb import (
    ALL_ERRORS,
    CHANGE_LOG_ERRORS,
    COMMON_ERRORS,
    COUNTED,
    FUNCTION_ERRORS,
    NAMES,
    ROW_ERRORS,
    TIMEOUT,
    UPDATE_ERRORS,
    VIOLATIONS,
    WRITES,
    ErrorClasses,
    Verb,
    error_definitions,
)
from service.errors import TooLarge, UnknownName
from service.payload import wire_json
from service.request.batch_request import ANALYZE, ISOLATION, MAX_OPERATIONS, OPERATION_NAME
from service.request.read_request import WHOLE, DescribeRequest

_CHANGE: Mapping[str, Any] = {
    "op": {"enum": ["insert", "update", "delete", "truncate", "touch", "reset"]},
    "schema": str,
    "relation": str,
    **dict.fromkeys(("key", "row", "old"), dict | None),
    "position": str,
    "tx": str | None,
    "last": bool,
    "at": str | None,
}
CHANGE = record({**_CHANGE, "large": bool}, _CHANGE)
"""A change in the result of `changes`."""
_CALL = {"call": str, "args": list | None, "kwargs": dict | None}
_TRANSACTION = {"isolation": words(*ISOLATION), "read_only": bool | None}


@dataclass(frozen=True, slots=True)
class OwnProcedure:
    """
    One of the service's own procedures.

    Args:
        comment: Its description, a sentence.
        result: Schema of its result.
        errors: Errors that it may raise.
        takes: Schemas of its required arguments, which may be positional.
        options: Schemas of its optional arguments; `timeout` is added if it is not one of them.
    """

    comment: str
    result: Any
    errors: ErrorClasses = COMMON_ERRORS
    takes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def described(self, name: str) -> dict[str, Any]:
        """Describe the procedure of a name."""
        return {
            "comment": self.comment,
            **({"positional": list(self.takes)} if self.takes else {}),
            "arguments": record({**self.takes, **self.options, **TIMEOUT}, self.takes),
            "result": schema(self.result),
            "errors": reference(f"errors.{name}"),
        }


OWN: Mapping[str, OwnProcedure] = {
    "describe": OwnProcedure(
        "All that is served, or certain relations and functions",
        dict,
        (*COMMON_ERRORS, TooLarge),
        options={"relations": "columns", "functions": "columns"},
    ),
    "health": OwnProcedure(
        "Whether the service is alive and ready to answer calls",
        full(live=bool, ready=bool, checks=dict[str, bool]),
    ),
    "stats": OwnProcedure(
        "Statistics of calls (latencies in seconds), of the pool and of the change feed",
        full(calls=dict, pool=dict, changes=dict),
    ),
    "why": OwnProcedure(
        "Each condition for changes of a relation to be published, and whether it is met",
        full(ok=bool, checks=array(full(ok=bool | None, text=str, mend=str | None))),
        takes={"relation": str},
    ),
    "explain": OwnProcedure(
        "PostgreSQL's plan of each statement of a call that reads, in EXPLAIN's JSON format",
        array(dict),
        ROW_ERRORS,
        takes={OPERATION_NAME: record({**_CALL, ANALYZE: bool | None}, ["call"])},
    ),
    "changes": OwnProcedure(
        "The changes after a position, oldest first, that the caller may see",
        any_of(full(changes=array(CHANGE), position=str, more=bool), "text"),
        CHANGE_LOG_ERRORS,
        takes={"since": str},
        options={
            "relations": "columns",
            "limit": limited(int | None, minimum=0),
            "form": words("dicts", "json"),
        },
    ),
    "position": OwnProcedure(
        "The current position of the change log: later commits come after it", str
    ),
    "transaction": OwnProcedure(
        "Run operations in one transaction, all or nothing; returns their results",
        list,
        UPDATE_ERRORS,
        takes={"operations": limited(list, maxItems=MAX_OPERATIONS, items=record(_CALL, ["call"]))},
        options={
            **_TRANSACTION,
            "dry_run": bool | None,
            "inject": any_of(full(serialization_failure=COUNTED), NULL),
            **TIMEOUT,
            **WRITES,
        },
    ),
    "transaction.begin": OwnProcedure(
        "Begin an interactive transaction; returns the URI prefix of its procedures",
        full(tx=str),
        options={**_TRANSACTION, "idle_timeout": limited(float | None, exclusiveMinimum=0)},
    ),
}
"""The service's own procedures, by name."""


class Parameters:
    """
    The parameters of a hand-written procedure, except the first one, which is the call.

    Args:
        function: The procedure.

    Attributes:
        signature: The signature, with all parameters.
        call: Name of the first parameter.
        names: Names of the parameters other than `*args` and `**kwargs`, in order.
        positional: Those of them that may be positional.
        required: Those of them without a default.
        rest, others: Names of `*args` and `**kwargs`; None if there is no such parameter.
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
        # Names imported under TYPE_CHECKING cannot be resolved; a string may be no expression at all.
        with suppress(Exception):
            self.hints = get_type_hints(function)


def described_procedure(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a hand-written procedure; an annotation that is not a simple type allows anything."""
    takes = Parameters(function)
    schemas = {name: takes.hints.get(name, Any) for name in takes.names}
    # The procedure's own parameter named timeout replaces the general one.
    arguments = record({**TIMEOUT, **schemas}, takes.required, closed=not takes.others)
    return {
        "comment": inspect.getdoc(function),
        "positional": takes.positional,
        "arguments": arguments,
        "result": schema(takes.hints.get("return", Any)),
        "errors": reference("errors.written"),
    }


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def describe(
    catalog: Catalog,
    prefix: str,
    version: str,
    verbs: Mapping[str, Verb],
    procedures: Mapping[str, Callable[..., Any]],
    part: DescribeRequest = WHOLE,
    explains: bool = True,
) -> dict[str, Any]:
    """
    Describe what is served.

    Args:
        catalog: The catalog of the role.
        prefix: Prefix of the procedures' URIs.
        version: Version of the service.
        verbs: All verbs, by name.
        procedures: Hand-written procedures, by name.
        part: The relations and functions to describe.
        explains: Whether `explain` is served.

    Returns:
        Version, prefix, schemas and the names of everything served; relations, functions and
        procedures by their names in URIs. The JSON Schemas refer to its `$defs`.

    Raises:
        UnknownName: `part` names something that is not served.
    """
    relations = {served_name(catalog, each): each for each in catalog.relations.values()}
    functions = {
        function_name(catalog, home): found
        for home, overloads in catalog.functions.items()
        if (found := [each for each in overloads if may_be_described(catalog, each)])
    }
    wanted = _wanted("relation", part.relations, relations)
    defs = Definitions(catalog, shared(verbs), wanted)
    written = {name: described_procedure(each) for name, each in sorted(procedures.items())}
    return {
        "$schema": DIALECT,
        "version": version,
        "prefix": prefix,
        "schemas": list(catalog.schemas),
        # In every part, because a client whose document is too large requests its parts by these names.
        "names": {"relations": list(relations), "functions": list(functions)},
        # Once for all relations: 1,000 relations with 13 verbs each would repeat it 13,000 times.
        "verbs": {
            name: {"positional": list(verb.positional), "progressive": verb.progress is not None}
            for name, verb in verbs.items()
        },
        "relations": {
            name: RelationRows(defs, relations[name]).relation(verbs, written) for name in wanted
        },
        "functions": {
            name: described_functions(defs, name, functions[name], verbs)
            for name in _wanted("function", part.functions, functions)
        },
        "procedures": {
            **{
                name: each.described(name)
                for name, each in OWN.items()
                if explains or name != "explain"
            },
            **written,
        },
        "$defs": defs.finish(),
    }


def size_of(document: Mapping[str, Any]) -> int:
    """Return the size of a document as JSON, in bytes."""
    # Part by part, so that the entire text is not in memory at once.
    return sum(
        len(wire_json(each).encode())
        for part in document.values()
        for each in (part.items() if isinstance(part, dict) else (part,))
    )


def _wanted(kind: str, names: tuple[str, ...] | None, known: Mapping[str, Any]) -> Iterable[str]:
    for at, name in enumerate(names or ()):
        if name not in known:
            raise UnknownName(kind, name, known, path=f"{kind}s.{at}")
    return known if names is None else names


_PAGE = {"rows": array(dict), **dict.fromkeys(("next", "prev"), str | None)}
_LISTS = {"columns": NAMES, "rows": array(list)}
RESULTS: Mapping[str, Schema] = {
    "lists": explained(
        "form lists: values without the names repeated", record(_LISTS, _LISTS, closed=False)
    ),
    "text": explained('with form: "json", the answer as one JSON text', str),
    "affected": explained("with returning: false", full(affected=COUNTED)),
    "selected": explained("what select and embed make of a row", dict),
    "page": record({**_PAGE, "count": COUNTED, "totals": dict}, ["rows", "next"], closed=False),
    "written": full(rows=array(dict), affected=COUNTED),
}
"""Shared parts of results, by name."""


def shared(verbs: Mapping[str, Verb]) -> dict[str, Schema]:
    """Return the shared parts that every document has."""
    args = {"args": {"type": ["object", "array", "null"]}}
    return {
        **LANGUAGE,
        **RESULTS,
        **{f"arguments.{name}": verb.arguments for name, verb in verbs.items()},
        **{
            f"arguments.fn.{name}": record(
                {**args, **verb.arguments["properties"]}, verb.arguments.get("required", ())
            )
            for name, verb in verbs.items()
            if verb.on_functions
        },
        **{
            f"result.{name}": verb.result
            for name, verb in verbs.items()
            if "$ref" not in verb.result
        },
        **{
            f"progress.{name}": verb.progress
            for name, verb in verbs.items()
            if verb.progress is not None
        },
        **error_definitions(errors_by_procedure(verbs.values())),
    }


def errors_by_procedure(verbs: Collection[Verb]) -> dict[str, ErrorClasses]:
    """Return the errors of verbs, of verbs on functions' rows, and of all other procedures, by name."""
    return {
        **{verb.name: verb.errors for verb in verbs},
        **{f"fn.{verb.name}": (*verb.errors, *VIOLATIONS) for verb in verbs if verb.on_functions},
        "fn": FUNCTION_ERRORS,
        **{name: each.errors for name, each in OWN.items()},
        "written": ALL_ERRORS,
    }
