"""
Typed definitions for TypeScript.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from service.describe.stubs import Call, Field, Named, Spelling

HEAD = """// Made by `python -m service types --lang ts`.

export interface Page<Row> {
  rows: Row[];
  next: string | null;
  count?: number;
}

export interface Written<Row> {
  rows: Row[];
  affected: number;
}

export interface Affected {
  affected: number;
}

export interface Where {
  and?: Where[];
  or?: Where[];
  not?: Where;
  [column: string]: unknown;
}

export type Item = string | { column: string; as?: string | null; cast?: string | null };
export type Sorting = string | { by: string; desc?: boolean; nulls?: "first" | "last" | null };
/** One that stands alone is a list of it. */
export type OneOrMany<Each> = Each | Each[];

export interface Timeout {
  timeout?: number;
}

export interface Filtered extends Timeout {
  where?: Where;
}

export interface Embed extends Find {
  relation?: string;
  via?: string;
  direction?: "one" | "many";
  inner?: boolean;
  spread?: boolean;
  measures?: Record<string, Measure>;
  group?: OneOrMany<Item>;
}

export interface Shown extends Timeout {
  select?: OneOrMany<Item>;
  embed?: Record<string, true | Embed>;
}

export interface Find extends Shown, Filtered {
  order?: OneOrMany<Sorting>;
  limit?: number;
  offset?: number;
  distinct?: boolean | OneOrMany<string>;
}

export interface Paged extends Find {
  after?: string | null;
  count?: "exact" | "planned" | "estimated";
}

export interface Streamed extends Find {
  chunk?: number;
}

export interface Exported extends Streamed {
  format?: "csv" | "ndjson";
}

export interface Measure {
  count?: Item;
  sum?: Item;
  avg?: Item;
  min?: Item;
  max?: Item;
  bool_and?: Item;
  bool_or?: Item;
  array_agg?: Item;
  string_agg?: Item;
  distinct?: boolean;
  separator?: string;
  where?: Where;
  cast?: string;
}

export interface Grouped extends Filtered {
  group?: OneOrMany<Item>;
  having?: Where;
  order?: OneOrMany<Sorting>;
  limit?: number;
  offset?: number;
}

export interface Returned extends Shown {
  order?: OneOrMany<Sorting>;
  returning?: boolean;
  max_affected?: number;
}

export interface Upserted extends Returned {
  on_conflict?: OneOrMany<string>;
  update?: OneOrMany<string>;
}

export interface Imported extends Timeout {
  csv?: string;
  columns?: OneOrMany<string>;
  on_conflict?: OneOrMany<string>;
  update?: OneOrMany<string>;
  upload?: string;
  done?: boolean;
}

/** Without `where` only with `all: true`. */
export interface Targeted extends Returned {
  where?: Where;
  all?: boolean;
}

/** What `select` and `embed` make of a row is not followed. */
export type Shape<Row, Options> = Options extends { select: unknown } | { embed: unknown }
  ? Record<string, unknown>
  : Row;

export type Back<Answer, Options, Any = Answer> = Options extends { returning: false }
  ? Affected
  : Options extends { select: unknown } | { embed: unknown } ? Any : Answer;

/** What an answer in parts is: the last argument of `then` gets each of them. */
export interface Parts<Part, End> {
  then<A>(
    done: (end: End) => A,
    failed?: ((why: unknown) => A) | null,
    progress?: (part: Part) => void,
  ): Promise<A>;
}

export interface InParts {
  receive_progress: true;
}

export type None = [] | null;
export type Loose = Record<string, unknown>;
"""


TS = Spelling(
    {
        "integer": "number",
        "number": "number",
        "string": "string",
        "boolean": "boolean",
        "null": "null",
        "object": "Record<string, unknown>",
        "array": "unknown[]",
        "binary": "Uint8Array",
        "any": "unknown",
    },
    "({})[]",
    json.dumps,
)

VERBS: Mapping[str, Iterable[str]] = {
    "get": [
        "<K extends Shown>(procedure: URI, args: [key: RowKey], kwargs?: K): "
        "Promise<Shape<RowRow, K>>"
    ],
    "find": [
        "<K extends Paged>(procedure: URI, args?: None, kwargs?: K): "
        "Promise<Page<Shape<RowRow, K>>>"
    ],
    "count": ["(procedure: URI, args?: None, kwargs?: Filtered): Promise<number>"],
    "exists": ["(procedure: URI, args?: None, kwargs?: Filtered): Promise<boolean>"],
    "stream": [
        "<K extends Streamed>(procedure: URI, args: None, kwargs: K, options: InParts): "
        "Parts<Shape<RowRow, K>[], { rows: number }>"
    ],
    "export": [
        "(procedure: URI, args: None, kwargs: Exported, options: InParts): "
        "Parts<string, { rows: number; bytes: number }>"
    ],
    "aggregate": [
        "(procedure: URI, args: [measures: Record<string, Measure>], kwargs?: Grouped): "
        "Promise<Loose[]>"
    ],
    "create": [
        "<K extends Returned>(procedure: URI, args: [values: RowInsert], kwargs?: K): "
        "Promise<Back<RowRow, K, Loose>>",
        "<K extends Returned>(procedure: URI, args: [values: RowInsert[]], kwargs?: K): "
        "Promise<Back<RowRow[], K, Loose[]>>",
    ],
    "upsert": [
        "<K extends Upserted>(procedure: URI, args: [values: RowInsert], kwargs?: K): "
        "Promise<Back<RowRow | null, K, Loose | null>>",
        "<K extends Upserted>(procedure: URI, args: [values: RowInsert[]], kwargs?: K): "
        "Promise<Back<RowRow[], K, Loose[]>>",
    ],
    "update": [
        "<K extends Returned & { expect?: Partial<RowRow> }>(procedure: URI, "
        "args: [key: RowKey, changes: RowUpdate], kwargs?: K): Promise<Back<RowRow, K, Loose>>",
        "<K extends Targeted & { changes: RowUpdate }>(procedure: URI, args: None, kwargs: K): "
        "Promise<Back<Written<RowRow>, K, Written<Loose>>>",
    ],
    "delete": [
        "<K extends Returned & { expect?: Partial<RowRow> }>(procedure: URI, "
        "args: [key: RowKey], kwargs?: K): Promise<Back<RowRow, K, Loose>>",
        "<K extends Targeted>(procedure: URI, args: None, kwargs: K): "
        "Promise<Back<Written<RowRow>, K, Written<Loose>>>",
    ],
    "import": [
        "(procedure: URI, args?: None | [rows: RowInsert[] | unknown[][]], kwargs?: Imported): "
        "Promise<{ rows: number } | { upload: string }>"
    ],
}
"""The ways to call a verb; URI stands for its own, RowRow and the like for those of its class."""


def typescript(document: Mapping[str, Any]) -> str:
    """Return TypeScript's declarations for a described service."""
    named = Named(document)
    lines = [HEAD]
    for name, title in named.relations.items():
        for kind, fields in named.rows(name):
            lines += _interface(named, f"{title}{kind}", fields)
        lines += [f"export type {title}Key = {_key(named, name)};", ""]
    for title, fields in named.function_rows():
        lines += _interface(named, title, fields)
    lines += ["/** A WAMP session, typed by procedure. */", "export interface Session {"]
    lines += [f"  call{signature};" for signature in _signatures(named)]
    return "\n".join([*lines, "}", ""])


def _interface(named: Named, title: str, fields: Iterable[Field]) -> list[str]:
    return [f"export interface {title} {_object(named, fields, ';', chr(10))}", ""]


def _object(named: Named, fields: Iterable[Field], end: str = ";", between: str = " ") -> str:
    """Return the type of a dict, by its keys."""
    inner = "  " if between != " " else ""
    spelled = [
        f"{inner}{json.dumps(each.name)}{'' if each.required else '?'}:"
        f" {TS.of(named, each.schema)}{end}"
        for each in fields
    ]
    return between.join(["{", *spelled, "}"])


def _key(named: Named, name: str) -> str:
    keys = named.key(name)
    if not keys:
        return "never"
    values = [f"({TS.of(named, each.schema)})" for each in keys[0]]
    forms = [*(values if len(values) == 1 else ()), f"[{', '.join(values)}]"]
    return " | ".join([*forms, *dict.fromkeys(_object(named, key) for key in keys)])


def _signatures(named: Named) -> Iterator[str]:
    for name, title in named.relations.items():
        uri = json.dumps(f"{named.prefix}.{name}.")[:-1]
        for verb in named.verbs(name):
            for signature in VERBS.get(verb, ()):
                spelled = re.sub(r"\bRow(Row|Key|Insert|Update)\b", rf"{title}\1", signature)
                yield spelled.replace("URI", f'{uri}{verb}"', 1)
    for call in (*named.functions(), *named.procedures()):
        yield _signature(named, call)


def _signature(named: Named, call: Call) -> str:
    uri = json.dumps(call.uri)
    if call.verb:
        return _verb_of_function(named, call, uri)
    args = ", ".join(
        f"({TS.of(named, each.schema)}){'' if each.required else '?'}" for each in call.positional
    )
    needs_args = any(each.required for each in call.positional)
    needs_kwargs = any(each.required for each in call.named)
    taken = f"[{args}]" if needs_args else f"None | [{args}]" if args else "None"
    kwargs = f"{_object(named, call.named)}{'' if needs_kwargs else ' | null'}"
    return (
        f"(procedure: {uri}, args{'' if needs_args or needs_kwargs else '?'}: {taken},"
        f" kwargs{'' if needs_kwargs else '?'}: {kwargs}): Promise<{TS.of(named, call.result)}>"
    )


def _verb_of_function(named: Named, call: Call, uri: str) -> str:
    mark = "" if any(each.required for each in call.named) else "?"
    given = f"{{ args{mark}: {_object(named, call.named)} }}"
    row = TS.of(named, call.result)
    ways = {
        "aggregate": (
            f"(procedure: {uri}, args: None, kwargs: Grouped & {given}"
            " & { measures: Record<string, Measure> }): Promise<Loose[]>"
        ),
        "stream": (
            f"<K extends Streamed & {given}>(procedure: {uri}, args: None, kwargs: K,"
            f" options: InParts): Parts<Shape<{row}, K>[], {{ rows: number }}>"
        ),
        "export": (
            f"(procedure: {uri}, args: None, kwargs: Exported & {given}, options: InParts):"
            " Parts<string, { rows: number; bytes: number }>"
        ),
        "find": (
            f"<K extends Paged & {given}>(procedure: {uri}, args{mark}: None, kwargs{mark}: K):"
            f" Promise<Page<Shape<{row}, K>>>"
        ),
    }
    return ways[call.verb]
