"""
The whole document: what is served to a role, or a part of it.

Procedures that no catalog has stand here, a row for each of the service's own, and those written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from service.catalog import Catalog
from service.describe.error_schemas import (
    ALL,
    ANY,
    CHANGES,
    FUNCTION,
    ROWS,
    VIOLATIONS,
    WRITTEN,
    Kinds,
    definitions,
)
from service.describe.grammar import LANGUAGE
from service.describe.json_schema import (
    NULL,
    Definitions,
    Schema,
    any_of,
    array,
    full,
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
from service.describe.verb import COUNTED, NAMES, TIMEOUT, WRITES, Verb
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
        catalog: What the database holds.
        prefix: Of the procedures' URIs.
        version: Of the service.
        verbs: That relations may have.
        procedures: Written by hand, by name.
        part: Which relations and functions.
        explains: Whether there is `explain`.

    Returns:
        version, prefix, schemas and the names of all that there is; relations by the name that
        stands before the verb, functions by the name that calls them, procedures by name. The
        JSON Schemas in it refer to its `$defs`.

    Raises:
        UnknownName: Something is wanted that is not there.
    """
    relations = {served_name(catalog, each): each for each in catalog.relations.values()}
    wanted = list(_wanted("relation", part.relations, relations))
    defs = Definitions(catalog, shared(verbs), wanted)
    found = {
        home: [each for each in overloads if may_be_described(catalog, each)]
        for home, overloads in catalog.functions.items()
    }
    functions = {function_name(catalog, home): home for home, each in found.items() if each}
    own = {
        name: each.described(name) for name, each in OWN.items() if explains or name != "explain"
    }
    written = {name: described_procedure(each) for name, each in sorted(procedures.items())}
    return {
        "$schema": DIALECT,
        "version": version,
        "prefix": prefix,
        "schemas": list(catalog.schemas),
        # In a part, too: whose document is too large for one answer asks for its parts by these.
        "names": {"relations": list(relations), "functions": list(functions)},
        # Once for all: 1,000 relations of 13 verbs each would repeat it 13,000 times.
        "verbs": {
            name: {"positional": list(verb.positional), "progressive": verb.progress is not None}
            for name, verb in verbs.items()
        },
        "relations": {
            name: RelationRows(defs, relations[name]).relation(verbs, written) for name in wanted
        },
        "functions": {
            name: described_functions(defs, functions[name], found[functions[name]], verbs)
            for name in _wanted("function", part.functions, functions)
        },
        "procedures": {**own, **written},
        "$defs": defs.finish(),
    }


def size_of(document: Mapping[str, Any]) -> int:
    """Return how many bytes a document is, as JSON."""
    # Part by part, so that the text of all of it is not in memory at once.
    return sum(
        len(wire_json(each).encode())
        for part in document.values()
        for each in (part.items() if isinstance(part, dict) else (part,))
    )


def _wanted(kind: str, names: tuple[str, ...] | None, known: Mapping[str, Any]) -> Iterable[str]:
    if names is None:
        return known
    for at, name in enumerate(names):
        if name not in known:
            raise UnknownName(kind, name, known, path=f"{kind}s.{at}")
    return names


def shared(verbs: Mapping[str, Verb]) -> dict[str, Schema]:
    """Return the shared parts of every document."""
    args = {"args": {"type": ["object", "array", "null"]}}
    lists = {"columns": NAMES, "rows": array(list)}
    page = {
        "rows": array(dict),
        "next": str | None,
        "prev": str | None,
        "count": COUNTED,
        "totals": dict,
    }
    return {
        **LANGUAGE,
        "lists": {
            "description": "form lists: values without the names repeated",
            **record(lists, lists, closed=False),
        },
        "text": {"description": 'with form: "json", the answer as one JSON text', **schema(str)},
        "affected": {"description": "with returning: false", **full(affected=COUNTED)},
        "selected": {"description": "what select and embed make of a row", **schema(dict)},
        "page": record(page, ["rows", "next"], closed=False),
        "written": full(rows=array(dict), affected=COUNTED),
        **{f"arguments.{name}": verb.arguments for name, verb in verbs.items()},
        **{
            f"arguments.fn.{verb.name}": record(
                {**args, **verb.arguments["properties"]}, verb.arguments.get("required", ())
            )
            for verb in verbs.values()
            if verb.on_functions
        },
        **{
            f"result.{verb.name}": verb.result
            for verb in verbs.values()
            if "$ref" not in verb.result
        },
        **{
            f"progress.{name}": verb.progress
            for name, verb in verbs.items()
            if verb.progress is not None
        },
        **definitions(errors_by_procedure(verbs.values())),
    }


def errors_by_procedure(verbs: Iterable[Verb]) -> dict[str, Kinds]:
    """Return the errors of verbs, of verbs on the rows of functions, and of the rest."""
    found: dict[str, Kinds] = {}
    of_functions: dict[str, Kinds] = {}
    for verb in verbs:
        found[verb.name] = verb.errors
        if verb.on_functions:
            of_functions[f"fn.{verb.name}"] = (*verb.errors, *VIOLATIONS)
    own = {name: each.errors for name, each in OWN.items()}
    return {**found, **of_functions, "fn": FUNCTION, **own, "written": WRITTEN}
