// Made by `python -m service types --lang ts`.

export interface Page<Row> {
  rows: Row[];
  next: string | null;
  prev?: string | null;
  count?: number;
  totals?: Record<string, unknown>;
}

export interface Written<Row> {
  rows: Row[];
  affected: number;
}

export interface Affected {
  affected: number;
}

/** A column's default, and a value that looks like something else. */
export interface Default {
  $default: true;
}
export interface Value<Of> {
  $value: Of;
}
/** What a write gives a column. */
export type Given<Of> = Of | Default | Value<Of>;

/** What computes a new value out of the one that is there. */
export interface Add {
  $add: number | string;
}
export interface Multiply {
  $multiply: number | string;
}
export interface Append {
  $append: unknown[];
}
export interface Prepend {
  $prepend: unknown[];
}
export interface Remove {
  $remove: unknown[];
}
export interface Merge {
  $merge: Record<string, unknown>;
}

export interface Where {
  and?: Where[];
  or?: Where[];
  not?: Where;
  [column: string]: unknown;
}

export type Unit =
  | "microseconds" | "milliseconds" | "second" | "minute" | "hour" | "day" | "week" | "month"
  | "quarter" | "year" | "decade" | "century" | "millennium";
/** Of a time: what it is cut to, and in which time zone. */
export interface Cut {
  trunc?: Unit | null;
  zone?: string | null;
}
export type Item =
  string | ({ column: string; as?: string | null; cast?: string | null } & Cut);
export type Sorting =
  | string
  | ({
      by: string;
      desc?: boolean | null;
      nulls?: "first" | "last" | null;
      rank?: string | null;
      config?: string | null;
      near?: unknown;
    } & Cut);
/** One that stands alone is a list of it. */
export type OneOrMany<Each> = Each | Each[];

/** In place of a related row: the key of one that is there. */
export interface Link {
  $link: unknown;
}

/** In seconds. */
export interface Timeout {
  timeout?: number | null;
}

export interface Filtered extends Timeout {
  where?: Where | null;
}

export interface Embeds {
  [relation: string]: true | Embed;
}

export interface Shown extends Timeout {
  select?: OneOrMany<Item> | null;
  embed?: Embeds | null;
}

export interface Sorted {
  order?: OneOrMany<Sorting> | null;
  limit?: number | null;
  offset?: number | null;
}

export interface Embed extends Sorted {
  relation?: string | null;
  via?: string | null;
  direction?: "one" | "many" | null;
  select?: OneOrMany<Item> | null;
  where?: Where | null;
  embed?: Embeds | null;
  inner?: boolean | null;
  spread?: boolean | null;
  measures?: Measures | null;
  group?: OneOrMany<Item> | null;
}

export interface Find extends Shown, Filtered, Sorted {
  distinct?: boolean | OneOrMany<string> | null;
}

export interface Paged extends Find {
  after?: string | null;
  before?: string | null;
  measures?: Measures | null;
  count?: "exact" | "planned" | "estimated" | null;
}

export interface Streamed extends Find {
  chunk?: number | null;
}

export interface Exported extends Streamed {
  format?: "csv" | "ndjson" | null;
}

export interface Watched extends Find {
  since?: string | null;
  tx?: boolean | null;
  tables?: OneOrMany<string> | null;
}

export interface WatchedRows extends Watched {
  measures?: null;
  group?: null;
  having?: null;
}

/** Groups and their measures, in place of rows. */
export type WatchedGroups = Watched & { having?: Where | null } & (
    | { measures: Measures; group?: OneOrMany<Item> | null }
    | { measures?: Measures | null; group: OneOrMany<Item> }
    | { measures?: Measures | null; having: Where }
  );

/** What every message to a watcher may say. */
export interface Message {
  position: string;
  step?: true;
  covers?: string[];
}

/** All rows, in parts; the last one is `complete`. */
export interface Snapshot<Row> extends Message {
  type: "snapshot";
  rows: Row[];
  key?: string[];
  keys?: unknown[];
  complete?: true;
  reset?: true;
  checksum?: number;
}

/** What is different in the rows. */
export interface Delta<Row> extends Message {
  type: "delta";
  enter: Row[];
  update: Row[];
  leave: unknown[];
  keys?: { enter: unknown[]; update: unknown[] };
  after?: { enter: unknown[]; update: unknown[] };
  checksum?: number;
}

/** That nothing is; before there are any rows, without more. */
export interface Alive extends Partial<Message> {
  type: "alive";
  checksum?: number;
}

export type News<Row> = Snapshot<Row> | Delta<Row> | Alive;

export interface Measure {
  count?: Item;
  sum?: Item;
  avg?: Item;
  min?: Item;
  max?: Item;
  bool_and?: Item;
  bool_or?: Item;
  stddev?: Item;
  variance?: Item;
  percentile?: Item;
  mode?: Item;
  array_agg?: Item;
  string_agg?: Item;
  distinct?: boolean | null;
  separator?: string | null;
  fraction?: number | null;
  discrete?: boolean | null;
  order?: OneOrMany<Sorting> | null;
  where?: Where | null;
  cast?: string | null;
}

export type Measures = Record<string, Measure>;

export interface Grouped extends Filtered, Sorted {
  group?: OneOrMany<Item> | null;
  having?: Where | null;
}

export interface Writing extends Shown {
  order?: OneOrMany<Sorting> | null;
  max_affected?: number | null;
  idempotency_key?: string | null;
  receipt?: boolean | null;
}

export interface Returned extends Writing {
  returning?: boolean | null;
}

/** With what changes in rows that are there already. */
export interface Upserted<Update> extends Changing {
  on_conflict?: OneOrMany<string> | null;
  update?: OneOrMany<string> | Update | null;
  where?: Where | null;
}

export interface Imported extends Timeout {
  csv?: string | null;
  columns?: OneOrMany<string> | null;
  on_conflict?: OneOrMany<string> | null;
  update?: OneOrMany<string> | null;
  upload?: string | null;
  done?: boolean | null;
  idempotency_key?: string | null;
  receipt?: boolean | null;
}

/** Of rows that are there: they are answered as they are now, not at all, as they were, or both. */
export interface Changing extends Writing {
  returning?: boolean | "old" | "both" | null;
}

export interface Expected<Row> extends Changing {
  expect?: Partial<Row> | null;
}

/** Without `where` only with `all: true`. */
export interface Targeted extends Changing {
  where?: Where | null;
  all?: boolean | null;
}

/** The next rows, in their order, that nobody else is taking. */
export interface Taken {
  limit?: number | null;
  skip_locked?: boolean | null;
}

export type Loose = Record<string, unknown>;

/** What is chosen of a row by `select` and `embed`; null if nothing is. */
export type Chosen<Options> =
  | (Options extends { select: infer Given } ? Given : null)
  | (Options extends { embed: infer Given } ? Given : null);

/** What `select` and `embed` make of a row is not followed. */
export type Shape<Row, Options, Any = Loose> =
  [Chosen<Options>] extends [null | undefined] ? Row : Any;

/** With `receipt: true`: autobahn's Result, with the transaction's id beside the answer. */
export interface Receipt<Answer> {
  args: [Answer];
  kwargs: { tx: string | null };
}

export type Told<Answer, Options> = Options extends { receipt: true } ? Receipt<Answer> : Answer;

export type Back<Answer, Options, Any> =
  Told<Options extends { returning: false } ? Affected : Shape<Answer, Options, Any>, Options>;

/** A row as it was, and what it is now. */
export interface Both<Old, New> {
  old: Old;
  new: New;
}

/** One row in the answer of a write; `New` is what it is afterwards. */
export type Answered<Row, Options, New = Row> =
  Options extends { returning: "both" } ? Both<Row, New> : Row;

/** One row in the answer of an upsert, which may be new. */
export type Put<Row, Options> =
  Options extends { returning: "both" } ? Both<Row | null, Row>
  : Options extends { returning: "old" } ? Row | null : Row;

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

// What follows is written out for each relation, for each function that returns rows, and for all
// that is served.

export interface RelationRow {}
export interface RelationInsert {}
export interface RelationCreate {}
export interface RelationUpdate {}
export type RelationKey = never;

export interface RelationCalls {
  get: {
    call<K extends Shown>(procedure: "URI", args: [key: RelationKey], kwargs?: K | null):
      Promise<Shape<RelationRow, K>>;
    call<K extends Shown & { keys: RelationKey[] }>(procedure: "URI", args: None, kwargs: K):
      Promise<(Shape<RelationRow, K> | null)[]>;
  };
  find: {
    call<K extends Paged>(procedure: "URI", args?: None, kwargs?: K | null):
      Promise<Page<Shape<RelationRow, K>>>;
  };
  count: {
    call(procedure: "URI", args?: None, kwargs?: Filtered | null): Promise<number>;
  };
  exists: {
    call(procedure: "URI", args?: None, kwargs?: Filtered | null): Promise<boolean>;
  };
  stream: {
    call<K extends Streamed>(procedure: "URI", args: None, kwargs: K | null, options: InParts):
      Parts<Shape<RelationRow, K>[], { rows: number }>;
  };
  export: {
    call(procedure: "URI", args: None, kwargs: Exported | null, options: InParts):
      Parts<string, { rows: number; bytes: number }>;
  };
  watch: {
    call<K extends WatchedGroups>(
      procedure: "URI", args: None, kwargs: K, options: InParts):
      Parts<News<Loose>, never>;
    call<K extends WatchedRows>(procedure: "URI", args: None, kwargs: K | null, options: InParts):
      Parts<News<Shape<RelationRow, K>>, never>;
  };
  aggregate: {
    call(procedure: "URI", args: [measures: Measures], kwargs?: Grouped | null): Promise<Loose[]>;
  };
  create: {
    call<K extends Returned>(procedure: "URI", args: [values: RelationCreate], kwargs?: K | null):
      Promise<Back<RelationRow, K, Loose>>;
    call<K extends Returned>(procedure: "URI", args: [values: RelationCreate[]], kwargs?: K | null):
      Promise<Back<RelationRow[], K, Loose[]>>;
  };
  upsert: {
    call<K extends Upserted<RelationUpdate>>(
      procedure: "URI", args: [values: RelationInsert], kwargs?: K | null):
      Promise<Back<Put<RelationRow, K> | null, K, Put<Loose, K> | null>>;
    call<K extends Upserted<RelationUpdate>>(
      procedure: "URI", args: [values: RelationInsert[]], kwargs?: K | null):
      Promise<Back<Put<RelationRow, K>[], K, Put<Loose, K>[]>>;
  };
  update: {
    call<K extends Expected<RelationRow>>(
      procedure: "URI", args: [key: RelationKey, changes: RelationUpdate], kwargs?: K | null):
      Promise<Back<Answered<RelationRow, K>, K, Answered<Loose, K>>>;
    call<K extends Changing & { rows: RelationUpdate[]; by?: OneOrMany<string> | null }>(
      procedure: "URI", args: None, kwargs: K):
      Promise<Back<Answered<RelationRow, K>[], K, Answered<Loose, K>[]>>;
    call<K extends Targeted & Taken & { changes: RelationUpdate }>(
      procedure: "URI", args: None, kwargs: K):
      Promise<Back<Written<Answered<RelationRow, K>>, K, Written<Answered<Loose, K>>>>;
  };
  delete: {
    call<K extends Expected<RelationRow>>(
      procedure: "URI", args: [key: RelationKey], kwargs?: K | null):
      Promise<Back<Answered<RelationRow, K, null>, K, Answered<Loose, K, null>>>;
    call<K extends Targeted>(procedure: "URI", args: None, kwargs: K):
      Promise<Back<Written<Answered<RelationRow, K, null>>, K, Written<Answered<Loose, K, null>>>>;
  };
  import: {
    call<K extends Imported>(
      procedure: "URI",
      args?: None | [rows: RelationInsert[] | unknown[][] | null],
      kwargs?: K | null,
    ): Promise<Told<{ rows: number } | { upload: string }, K>>;
  };
}

export interface FunctionRow {}
/** With `args`, its arguments. */
export interface FunctionArgs {}

export interface FunctionCalls {
  find: {
    call<K extends Paged & FunctionArgs>(procedure: "URI", args: None, kwargs: K):
      Promise<Page<Shape<FunctionRow, K>>>;
  };
  aggregate: {
    call(procedure: "URI", args: None, kwargs: Grouped & FunctionArgs & { measures: Measures }):
      Promise<Loose[]>;
  };
  stream: {
    call<K extends Streamed & FunctionArgs>(
      procedure: "URI", args: None, kwargs: K, options: InParts):
      Parts<Shape<FunctionRow, K>[], { rows: number }>;
  };
  export: {
    call(procedure: "URI", args: None, kwargs: Exported & FunctionArgs, options: InParts):
      Parts<string, { rows: number; bytes: number }>;
  };
  watch: {
    call<K extends WatchedGroups & FunctionArgs>(
      procedure: "URI", args: None, kwargs: K, options: InParts):
      Parts<News<Loose>, never>;
    call<K extends WatchedRows & FunctionArgs>(
      procedure: "URI", args: None, kwargs: K, options: InParts):
      Parts<News<Shape<FunctionRow, K>>, never>;
  };
}

/** A WAMP session, typed by procedure. */
export interface Session {
}
