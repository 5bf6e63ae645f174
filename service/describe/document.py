"""
The whole document: what is served to a role, or a part of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from service.catalog import Catalog
from service.describe.error_schemas import FUNCTION, VIOLATIONS, WRITTEN, Kinds, definitions
from service.describe.grammar import LANGUAGE
from service.describe.json_schema import Definitions, Schema, array, full, record, schema
from service.describe.relations import RelationRows, served_name
from service.describe.routines import described_functions, function_name, may_be_described
from service.describe.verb import COUNTED, NAMES, ROWS, Verb
from service.describe.written import OWN, described_procedure
from service.errors import UnknownName
from service.request.read_request import WHOLE, DescribeRequest

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


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
        len(_ENCODER.encode(each).encode())
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
        "rows": ROWS,
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
        "written": full(rows=ROWS, affected=COUNTED),
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
