"""
The table of verbs: one row for each; dispatch, `describe` and the generated types read it. `find_route` finds
the verb, and the relation or the functions, of a procedure's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from service.api import nested, read, row_updates, upserts, write
from service.api.call import Route, Snapshot
from service.catalog import Catalog, Relation
from service.describe.grammar import MEASURES, ORDER, SELECT, WHERE, WHOLE
from service.describe.json_schema import (
    NULL,
    Schema,
    any_of,
    array,
    full,
    record,
    reference,
    schema,
    words,
)
from service.describe.relations import served_name, verbs_of
from service.describe.verb import (
    COUNTED,
    DATABASE_ERRORS,
    FORM,
    FUNCTION_ERRORS,
    NAMES,
    ROW_ERRORS,
    ROWS,
    TIMEOUT,
    UPDATE_ERRORS,
    VIOLATIONS,
    WRITE_ERRORS,
    WRITES,
    Verb,
    forms,
)
from service.errors import InvalidRow, NoSuchProcedure, NotChanged, NotFound, clip, nearest
from service.request.names import FN, FunctionName, Name, decode, encode, parse_name
from service.request.read_request import COUNTS, FORMATS, MAX_CHUNK
from service.request.synonyms import synonym_hint

SHOWN = {"select": SELECT, "embed": reference("embed")}
PAGED = {"order": ORDER, "limit": WHOLE, "offset": WHOLE}
RETURNING = {**SHOWN, **FORM, "order": ORDER, "returning": bool | None, **WRITES}
MAX_AFFECTED = {"max_affected": WHOLE}
TARGET = {"where": WHERE, "all": bool | None, **MAX_AFFECTED}
EXPECT = {"expect": dict | None}
OLD = {"returning": {"enum": [True, False, "old", "both", None]}}
"""What update and delete return: the new rows, no rows, the old rows, or both."""
PICK = {"limit": WHOLE, "skip_locked": bool | None}
UNPICKED: Schema = {"limit": NULL, "skip_locked": {"enum": [False, None]}}
CONFLICT = {"on_conflict": reference("some_columns"), "update": reference("columns")}
FOUND = {
    **SHOWN,
    **PAGED,
    "distinct": any_of(bool, reference("some_columns")),
    "where": WHERE,
}
FIND = {**TIMEOUT, **FORM, **FOUND}
PAGE = {
    "after": reference("token"),
    "before": reference("token"),
    "count": words(*COUNTS),
    "measures": MEASURES,
}
PARTS = {
    **dict.fromkeys(PAGE, NULL),
    "chunk": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_CHUNK},
}
OF_ROWS = full(enter=list, update=list)
WATCHED = record(
    {
        "type": words("snapshot", "delta", "alive"),
        "position": str,
        "rows": ROWS,
        "enter": ROWS,
        "update": ROWS,
        "leave": list,
        "key": NAMES,
        "keys": any_of(list, OF_ROWS),
        "after": OF_ROWS,
        **{key: {"const": True} for key in ("complete", "reset", "step")},
        "checksum": {**COUNTED, "maximum": 2**32 - 1},
        "covers": NAMES,
    },
    ["type"],
)
"""A message to a watcher; docs/live.md describes its fields."""
GOT: Schema = array(dict | None)
GOT_LISTS: Schema = full(columns=NAMES, rows=array(list | None))
"""The rows of several keys, with null in place of each row that does not exist."""


def _alternative(*required: str, **others: Any) -> Schema:
    """
    Return one combination of arguments.

    Args:
        required: Names of the arguments that it needs.
        others: Schemas of further arguments by name; False for one that may not be given.
    """
    return {**({"required": [*required]} if required else {}), "properties": others}


def _has_arbiter(relation: Relation) -> bool:
    return any(key.arbiter for key in relation.unique_keys) or any(
        not index.fault for index in relation.unique_indexes
    )


_ROWS = (
    Verb(
        "get",
        read.get,
        arguments={
            **record({"key": {}, "keys": list, **TIMEOUT, **SHOWN, **FORM}),
            "oneOf": [_alternative("key", keys=False), _alternative("keys", key=False)],
        },
        result=forms(reference("selected"), GOT, more=[GOT_LISTS]),
        errors=(*ROW_ERRORS, NotFound),
        positional=("key",),
        fits=lambda relation: bool(relation.primary_key),
        takes={"key": "key", "keys": "keys"},
        answers=("row", "got"),
    ),
    Verb(
        "find",
        read.find,
        arguments=record({**FIND, **PAGE}),
        result=any_of(
            reference("page"), {**reference("lists"), "required": ["next"]}, reference("text")
        ),
        errors=ROW_ERRORS,
        on_functions=True,
        answers=("page",),
    ),
    Verb(
        "count",
        read.count,
        arguments=record({**TIMEOUT, "where": WHERE}),
        result=COUNTED,
        errors=DATABASE_ERRORS,
    ),
    Verb(
        "exists",
        read.exists,
        arguments=record({**TIMEOUT, "where": WHERE}),
        result=schema(bool),
        errors=DATABASE_ERRORS,
    ),
    Verb(
        "stream",
        read.stream,
        arguments=record({**FIND, **PARTS}),
        result=record({"rows": COUNTED, "columns": NAMES}, ["rows"]),
        errors=ROW_ERRORS,
        progress=array({"type": ["object", "array"]}),
        on_functions=True,
        sends=("rows",),
    ),
    Verb(
        "export",
        read.export,
        arguments=record({**TIMEOUT, **FOUND, **PARTS, "format": words(*FORMATS)}),
        result=full(rows=COUNTED, bytes=COUNTED),
        errors=ROW_ERRORS,
        progress=schema(str),
        on_functions=True,
    ),
    Verb(
        "watch",
        None,  # the live queries of `changes/watch.py` register their handler
        # the arguments of find; those of aggregate in place of `select`
        arguments=record(
            {
                **TIMEOUT,
                **FOUND,
                "measures": MEASURES,
                "group": SELECT,
                "having": WHERE,
                "since": str | None,
                "tx": bool | None,
                "tables": any_of(NAMES, str | None),
            }
        ),
        result=NULL,
        errors=ROW_ERRORS,
        progress=WATCHED,
        on_functions=True,
    ),
    Verb(
        "aggregate",
        read.aggregate,
        arguments=record(
            {
                **TIMEOUT,
                **FORM,
                **PAGED,
                "measures": reference("measures"),
                "group": reference("select"),
                "where": WHERE,
                "having": WHERE,
            },
            ["measures"],
        ),
        result=forms(ROWS),
        errors=ROW_ERRORS,
        positional=("measures",),
        on_functions=True,
    ),
    Verb(
        "create",
        nested.create,
        arguments=record({"values": {}, **TIMEOUT, **RETURNING, **MAX_AFFECTED}, ["values"]),
        result=forms(reference("selected"), ROWS, more=[reference("affected")]),
        errors=(*WRITE_ERRORS, NotChanged, NotFound),
        positional=("values",),
        rights=("insert",),
        takes={"values": "trees"},
        answers=("row", "rows", "null"),
    ),
    Verb(
        "upsert",
        upserts.upsert,
        arguments=record(
            {
                "values": {},
                **TIMEOUT,
                **RETURNING,
                **CONFLICT,
                **MAX_AFFECTED,
                **OLD,
                "update": any_of(reference("columns"), dict),
                "where": WHERE,
            },
            ["values"],
        ),
        # Null stands for a row that the upsert leaves unchanged.
        result=forms(reference("selected"), GOT, NULL, more=[GOT_LISTS, reference("affected")]),
        errors=(*WRITE_ERRORS, NotChanged),
        positional=("values",),
        rights=("insert", "update"),
        fits=_has_arbiter,
        takes={"values": "values", "update": "taken_over"},
        answers=("row", "rows", "null"),
    ),
    Verb(
        "update",
        row_updates.update,
        arguments={
            **record(
                {
                    "key": {},
                    "changes": {},
                    "rows": list,
                    "by": reference("some_columns"),
                    **EXPECT,
                    **TIMEOUT,
                    **TARGET,
                    **PICK,
                    **RETURNING,
                    **OLD,
                },
            ),
            "oneOf": [  # by key, by filter, or different changes for each row
                _alternative(
                    "key", "changes", where=False, all=False, **UNPICKED, rows=False, by=False
                ),
                _alternative("changes", key=False, expect=False, rows=False, by=False),
                _alternative(
                    "rows",
                    **dict.fromkeys(("key", "changes", "expect"), False),
                    **dict.fromkeys(("where", "all", "limit", "skip_locked"), False),
                ),
            ],
        },
        # Null is the answer by key if an inner embed leaves the row out.
        result=forms(
            reference("selected"), ROWS, NULL, reference("written"), more=[reference("affected")]
        ),
        errors=UPDATE_ERRORS,
        positional=("key", "changes"),
        rights=("update",),
        takes={"key": "key", "changes": "update", "rows": "updates"},
        answers=("row", "rows", "written"),
    ),
    Verb(
        "delete",
        write.delete,
        arguments={
            **record({"key": {}, **EXPECT, **TIMEOUT, **TARGET, **RETURNING, **OLD}),
            "oneOf": [
                _alternative("key", where=False, all=False),
                _alternative(key=False, expect=False),
            ],
        },
        result=reference("result.update"),
        errors=UPDATE_ERRORS,
        positional=("key",),
        rights=("delete",),
        takes={"key": "key"},
        answers=("row", "written"),
    ),
    Verb(
        "import",
        None,  # the dispatcher registers the handler of its uploads
        arguments={
            **record(
                {
                    "rows": {"type": ["array", "string", "null"]},
                    "csv": str | None,
                    "columns": reference("some_columns"),
                    "upload": str | None,
                    "done": bool | None,
                    **CONFLICT,
                    **TIMEOUT,
                    **WRITES,
                }
            ),
            "anyOf": [{"required": [each]} for each in ("rows", "csv", "upload", "done")],
        },
        result=any_of(full(rows=COUNTED), full(upload=str)),
        errors=(*DATABASE_ERRORS, *VIOLATIONS, InvalidRow),
        positional=("rows",),
        rights=("insert",),
        takes={"rows": "imported"},
    ),
)

VERBS: Mapping[str, Verb] = {each.name: each for each in _ROWS}
"""By name, in the order in which `describe` lists them."""

FUNCTION = Verb(
    "fn",
    read.call_function,
    arguments={},
    result={},
    errors=FUNCTION_ERRORS,
    on_functions=True,
)
"""A plain call of a function; `describe` derives its arguments and result from the function."""


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
        bare = name.removeprefix(f"{prefix}.")
        if incomplete := _incomplete(snapshot.catalog, bare, verbs):
            raise incomplete from None
        if hint := _hint(snapshot, name, bare, verbs, written):
            error.details["hint"] = hint
        raise


def _hint(
    snapshot: Snapshot, name: str, bare: str, verbs: Mapping[str, Verb], written: Collection[str]
) -> str | None:
    """Return a hint at a procedure written by hand, or for a name with the prefix at what is meant without."""
    if bare == name:
        return _hint_at_written(name, verbs, written)
    try:
        if bare not in written:
            _resolve(snapshot, parse_name(bare, written), verbs)
    except NoSuchProcedure as refusal:
        return refusal.details.get("hint")
    return f'did you mean "{clip(bare)}", without the prefix?'


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
    text = f'no procedure "{clip(name)}"'
    if (schema, last) in catalog.functions:
        function = ".".join(map(encode, [*home, FN, last]))
        return NoSuchProcedure(text, hint=f'did you mean the function "{clip(function)}"?')
    if last == FN and schema in catalog.schemas:
        function = ".".join(map(encode, [*home, FN, "<function>"]))
        return NoSuchProcedure(text, hint=f'functions are "{function}"; describe lists them')
    if not home and last in catalog.schemas:
        relations = f"{clip(encode(last))}.<relation>.<verb>"
        return NoSuchProcedure(text, hint=f'this is a schema: "{relations}"; describe lists them')
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


UNWRITABLE = {
    "view": "a view takes what PostgreSQL can write through it, or a trigger for it",
    "materialized view": "write to the tables of its query; REFRESH MATERIALIZED VIEW runs it again",
}


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
            hint=UNWRITABLE.get(relation.kind),
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
