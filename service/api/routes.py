"""
Procedure names: resolves one to a route, a verb and the relation or the functions that it applies to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from service.api.call import Route, Snapshot
from service.api.verbs import FUNCTION
from service.catalog import Catalog, Relation
from service.describe.relations import served_name, verbs_of
from service.describe.verb import Verb
from service.errors import NoSuchProcedure, clip, nearest
from service.request.names import FN, FunctionName, Name, decode, encode, parse_name
from service.request.synonyms import synonym_hint


def find_route(
    snapshot: Snapshot,
    name: str,
    verbs: Mapping[str, Verb],
    written: Collection[str],
    prefix: str,
) -> Route:
    """
    Return the route of a name, and keep it in the snapshot.

    Args:
        snapshot: The catalog that the name is resolved against.
        name: The procedure, without the prefix of the service.
        verbs: The verbs by name.
        written: Names of the procedures written by hand, for hints.
        prefix: The prefix of the service, for hints.

    Raises:
        NoSuchProcedure: No relation, function or verb has that name; `hint` names the nearest.
    """
    try:
        return snapshot.keep(name, _resolve(snapshot, parse_name(name, written), verbs))
    except NoSuchProcedure as error:
        if name.startswith(head := f"{prefix}."):
            bare = clip(name.removeprefix(head))
            error.details["hint"] = f'did you mean "{bare}", without the prefix?'
        elif incomplete := _incomplete(snapshot.catalog, name, verbs):
            raise incomplete from None
        elif hint := _hint_at_written(name, verbs, written):
            error.details["hint"] = hint
        raise


def _incomplete(catalog: Catalog, name: str, verbs: Mapping[str, Verb]) -> NoSuchProcedure | None:
    """Return the refusal of a name that ends at a relation, a function or a schema; None for any other."""
    *home, last = map(decode, name.removesuffix(".").split("."))
    schema = home[0] if home else catalog.schemas[0]
    if len(home) > 1:
        return None
    relation = catalog.relations.get((schema, last))
    if relation is not None:
        known = verbs_of(relation, verbs)
        example = f'as in "{clip(served_name(catalog, relation))}.{known[0]}"; ' if known else ""
        return NoSuchProcedure(
            f'"{clip(name)}" is a relation without a verb',
            relation=relation.name,
            hint=f"{example}verbs: {', '.join(known) or 'none'}",
        )
    said = f'no procedure "{clip(name)}"'
    if (schema, last) in catalog.functions:
        function = ".".join(map(encode, [*home, FN, last]))
        return NoSuchProcedure(said, hint=f'did you mean the function "{clip(function)}"?')
    if last == FN and schema in catalog.schemas:
        function = ".".join(map(encode, [*home, FN, "<function>"]))
        return NoSuchProcedure(said, hint=f'functions are "{function}"; describe lists them')
    if not home and last in catalog.schemas:
        relations = f"{clip(encode(last))}.<relation>.<verb>"
        return NoSuchProcedure(said, hint=f'this is a schema: "{relations}"; describe lists them')
    return None


def _resolve(snapshot: Snapshot, name: Name | FunctionName, verbs: Mapping[str, Verb]) -> Route:
    first, *others = snapshot.catalog.schemas
    if (
        isinstance(name, FunctionName)
        and name.schema is not None
        and name.verb is None
        and name.function in verbs
        and (name.schema, FN) in snapshot.catalog.relations
    ):
        # "app.fn.find" is the verb of a relation that is itself called "fn".
        name = Name(name.schema, FN, name.function)
    # The search_path of a session begins with the first schema, so only the others have to be set.
    search_first = name.schema if name.schema in others else ""
    schema = first if name.schema is None else name.schema
    if isinstance(name, FunctionName):
        functions = snapshot.catalog.function(schema, name.function)
        return Route(_verb_of_function(name.verb, verbs), None, functions, search_first)
    relation = snapshot.catalog.relation(schema, name.relation)
    verb = _verb_of_relation(snapshot, relation, name.verb, verbs)
    return Route(verb, relation, (), search_first)


def _verb_of_relation(
    snapshot: Snapshot, relation: Relation, name: str, verbs: Mapping[str, Verb]
) -> Verb:
    verb = verbs.get(name)
    if verb is None or verb.handler is None:
        known = verbs_of(relation, verbs)
        raise NoSuchProcedure(
            f'"{relation.name}" has no verb "{clip(name)}"',
            relation=relation.name,
            hint=snapshot.adapted_hint(relation, synonym_hint("verb", name, verbs) or "")
            or nearest(name, known)
            or f"verbs: {', '.join(known)}",
        )
    if verb.writes and verb.rights[0] not in relation.accepted_writes:
        raise NoSuchProcedure(
            f'"{relation.name}" is a {relation.kind} that takes no {name}',
            relation=relation.name,
            hint="a view takes what PostgreSQL can write through it, or a trigger for it",
        )
    return verb


def _verb_of_function(name: str | None, verbs: Mapping[str, Verb]) -> Verb:
    if name is None:
        return FUNCTION
    verb = verbs.get(name)
    if verb is None or verb.handler is None or not verb.on_functions:
        known = [each for each, verb in verbs.items() if verb.on_functions]
        raise NoSuchProcedure(
            f'a function has no verb "{clip(name)}"',
            hint=synonym_hint("verb", name, known)
            or nearest(name, known)
            or f"verbs: {', '.join(known)}",
        )
    return verb


def _hint_at_written(name: str, verbs: Mapping[str, Verb], written: Collection[str]) -> str | None:
    """Return the procedure written by hand that a misspelled name probably means."""
    head, _, last = name.rpartition(".")
    split = [each.rpartition(".") for each in written]
    lasts = [other_last for other_head, _, other_last in split if other_head == head]
    # If a verb is nearer, the name means that verb, and the refusal has its own hint.
    hint = nearest(last, [*verbs, *lasts])
    return hint if hint and hint == nearest(last, lasts) else None
