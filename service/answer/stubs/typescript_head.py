"""
What TypeScript's declarations begin with, whatever is served.
"""

from __future__ import annotations

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
  group?: Item[];
}

export interface Shown extends Timeout {
  select?: Item[];
  embed?: Record<string, true | Embed>;
}

export interface Find extends Shown, Filtered {
  order?: Sorting[];
  limit?: number;
  offset?: number;
  distinct?: boolean | string[];
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
  group?: Item[];
  having?: Where;
  order?: Sorting[];
  limit?: number;
  offset?: number;
}

export interface Returned extends Shown {
  order?: Sorting[];
  returning?: boolean;
  max_affected?: number;
}

export interface Upserted extends Returned {
  on_conflict?: string | string[];
  update?: string[];
}

export interface Imported extends Timeout {
  csv?: string;
  columns?: string[];
  on_conflict?: string | string[];
  update?: string[];
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
