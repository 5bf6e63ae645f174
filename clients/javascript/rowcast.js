/** Live queries and calls of Rowcast over npm autobahn: docs/clients.md. */

/** Seconds that a call may take, and that an effect lasts after its write. */
const PATIENCE = 30;
const LOST = 'rowcast.client.lost';

const TABLE = Uint32Array.from({length: 256}, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});
const utf8 = new TextEncoder();

export function crc32(text) {
  let crc = ~0;
  for (const byte of utf8.encode(text)) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

/** Return the canonical text of a value, for checksums. */
export function canonical(value) {
  if (value === null || value === undefined) return 'null';
  if (typeof value === 'number' || typeof value === 'bigint') {
    const number = Number(value);
    if (Number.isSafeInteger(number)) return `${number + 0}`;
    const bytes = new DataView(new ArrayBuffer(8));
    bytes.setFloat64(0, number);
    return `"${bytes.getBigUint64(0).toString(16).padStart(16, '0')}"`;
  }
  if (typeof value !== 'object') return JSON.stringify(value);
  if (value instanceof Uint8Array) {
    return JSON.stringify(`\0${btoa(Array.from(value, (byte) => String.fromCharCode(byte)).join(''))}`);
  }
  if (Array.isArray(value)) return `[${value.map(canonical)}]`;
  // Not JSON.stringify: objects put keys that are numbers first.
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)}}`;
}

/** The rows of a query, built from the messages of `watch`. */
export class Copy {
  constructor(query = {}) {
    const {order} = query;
    this.ordered = Boolean(order && (!Array.isArray(order) || order.length));
    this.grouped = ['measures', 'group', 'having'].some((name) => name in query);
    this.entries = new Map();
    this.position = null;
    this.staged = null;
  }

  /** Apply a message; return the change, or null if there is none yet. */
  take(message) {
    const {type} = message;
    const change = type === 'snapshot' ? this.#snapshot(message) : type === 'delta' ? this.#delta(message) : null;
    if (!this.staged) {
      this.position = message.position ?? this.position;
      if ('checksum' in message && message.checksum !== this.checksum()) {
        throw new Error('these are not its rows');
      }
    }
    return change;
  }

  checksum() {
    let at = 0, sum = 0;
    for (const {check} of this.entries.values()) {
      sum = (sum + Math.imul(check, this.ordered ? ++at : 1)) >>> 0;
    }
    return sum;
  }

  #key(row) {
    if (this.grouped) return Object.fromEntries(this.columns.map((name) => [name, row[name]]));
    return this.columns.length === 1 ? row[this.columns[0]] : this.columns.map((name) => row[name]);
  }

  /** Return the name of a row, also without its key. */
  name(row) {
    return this.columns?.every((name) => name in row) ? canonical(this.#key(row)) : Symbol();
  }

  /** Add a row to entries, or replace the row with its key; return its name. */
  #put(entries, row, beside) {
    const own = !beside && !this.columns;  // without a key, equal rows are kept as often as received
    const key = own ? row : beside ? beside.key : this.#key(row);
    const text = canonical(key);
    const check = crc32(own ? `[null,${text}]` : `[${text},${canonical(row)}]`);
    const name = own ? copies(entries, text)[0] : text;
    entries.set(name, {key, row, check});
    return name;
  }

  #snapshot({rows, key, keys, complete}) {
    if (!this.staged) {
      this.staged = new Map();
      this.columns = key;  // undefined if the query has none now
    }
    rows.forEach((row, at) => this.#put(this.staged, row, keys && {key: keys[at]}));
    if (!complete) return null;
    const old = this.entries, change = {enter: [], update: [], leave: [], reset: true};
    this.entries = this.staged;
    this.staged = null;
    for (const [name, {row, check}] of this.entries) {
      if (!old.has(name)) change.enter.push(row);
      else if (old.get(name).check !== check) change.update.push(row);
    }
    for (const [name, {row}] of old) if (!this.entries.has(name)) change.leave.push(row);
    return change;
  }

  #delta({enter, update, leave, keys, after}) {
    const change = {enter: [], update: [], leave: [], reset: false};
    const placed = new Map();
    for (const key of leave) {
      const [, name] = copies(this.entries, canonical(key));
      if (!this.entries.has(name)) continue;  // after `since`, keys may leave that were never here
      change.leave.push(this.entries.get(name).row);
      this.entries.delete(name);
    }
    for (const [kind, rows] of [['update', update], ['enter', enter]]) {
      rows.forEach((row, at) => {
        const own = !keys && !this.columns;
        // A row without a key that is "updated" has only moved.
        const name = own && kind === 'update' ? canonical(row)
          : this.#put(this.entries, row, keys && {key: keys[kind][at]});
        change[kind].push(row);
        const before = after ? after[kind][at] : false;
        if (before !== false) placed.set(before === null ? null : canonical(before), name);
      });
    }
    if (placed.size) this.#place(placed);
    return change;
  }

  /** Move rows behind the rows that precede them now. */
  #place(placed) {
    const moved = new Set(placed.values()), entries = new Map();
    const add = (name) => entries.set(name, this.entries.get(name));
    const follow = (name) => {
      for (let next = placed.get(name); next !== undefined; next = placed.get(next)) add(next);
    };
    follow(null);
    for (const name of this.entries.keys()) {
      if (moved.has(name)) continue;
      add(name);
      follow(name);
    }
    for (const name of moved) if (!entries.has(name)) add(name);
    this.entries = entries;
  }
}

/** Return the values of a row's columns, without those that compute. */
function known(values, row = values) {
  const computed = (value) => value?.constructor === Object && /^\$/.test(Object.keys(value)[0]);
  return Object.fromEntries(Object.entries(values).filter(([name, value]) => name in row && !computed(value)));
}

/** Return the names of one more of some equal rows, and of the last. */
function copies(entries, text) {
  let name = text, last = text;
  for (let copy = 2; entries.has(name); copy++) [last, name] = [name, `${text} ${copy}`];
  return [name, last];
}

/** A live query: `rows` are those after the last step, with the effects of writes. */
export class Live {
  #db;
  #copy;
  #listeners = new Set();
  #effects = new Set();
  #covered = new Set();
  #shown;
  #call;
  #retry;
  #failures = 0;
  #told = deferred();

  constructor(db, name, query) {
    Object.assign(this, {name, query, error: null, closed: false, mismatches: 0, heard: Infinity});
    this.#db = db;
    this.#copy = new Copy(query);
    /** Resolves with the first rows; rejects if the query has ended. */
    this.ready = this.#told.promise;
    this.ready.catch(() => {});
  }

  get rows() {
    return (this.#shown ??= this.#show());
  }

  get position() {
    return this.#copy.position;
  }

  /** Call a function with the rows, now and after each change; return a function that ends that. */
  subscribe(changed, failed = () => {}) {
    const listener = {changed, failed};
    this.#listeners.add(listener);
    if (this.#copy.position) guarded(changed, this.rows, null);
    if (this.error) guarded(failed, this.error);
    return () => this.#listeners.delete(listener);
  }

  close() {
    this.closed = true;
    this.#end();
    this.#told.reject(failure(LOST, this.name));
    this.#db.drop(this);
  }

  /**
   * Call a verb, and show its effect until the rows include the write, or it has failed.
   * The effect modifies a Map of the rows by the JSON of their keys.
   */
  async write(verb, args, kwargs, effect = () => {}) {
    const drop = () => {
      clearTimeout(mine.timer);
      if (this.#effects.delete(mine)) this.#changed(null);
    };
    const mine = {effect, drop};
    this.#effects.add(mine);
    this.#changed(null);
    try {
      const done = await this.#db.call(`${this.name}.${verb}`, args, {...kwargs, receipt: true});
      mine.tx = done.kwargs.tx;
      if (!mine.tx || this.#covered.has(mine.tx)) drop();
      else mine.timer = setTimeout(drop, PATIENCE * 1000);
      return done.args[0];
    } catch (error) {
      drop();
      throw error;
    }
  }

  create(values, kwargs) {
    return this.write('create', [values], kwargs, (rows) => {
      const [like] = rows.values();
      for (const each of [values].flat()) {
        const name = this.#copy.name(each);
        rows.set(name, rows.get(name) ?? known(each, like));
      }
    });
  }

  update(key, changes, kwargs) {
    return this.write('update', [key, changes], kwargs, (rows) => {
      const name = canonical(key), row = rows.get(name);
      if (row) rows.set(name, {...row, ...known(changes, row)});
    });
  }

  delete(key, kwargs) {
    return this.write('delete', [key], kwargs, (rows) => rows.delete(canonical(key)));
  }

  /** Start to watch, if there is a session. */
  start() {
    if (!this.#db.session || this.#call || this.closed || this.error) return;
    const since = this.#copy.position ? {since: this.#copy.position} : {};
    this.heard = Date.now();
    const kwargs = {...this.query, ...since, tx: true};
    const ended = (error) => this.#call === call && this.#failed(error);
    const call = this.#db.send(`${this.name}.watch`, [], kwargs, {receive_progress: true});
    this.#call = call;
    call.then(() => ended(null), ended);
    call.progress((message) => {
      if (this.#call === call) {
        this.heard = Date.now();
        this.#db.take(this, message);
      } else if (message.step) this.#db.flush();
    });
  }

  /** Forget the call: the session is gone. */
  cut() {
    this.#call = null;
    this.heard = Infinity;
    this.#copy.staged = null;
  }

  /** Apply a message of a step that is complete; return a function that notifies the listeners. */
  apply(message) {
    let change;
    try {
      change = this.#copy.take(message);
    } catch (error) {
      this.mismatches++;
      this.#end();
      this.#copy.position = null;
      this.#again();
      return null;
    }
    if (!this.#copy.staged) this.#failures = 0;
    for (const tx of message.covers ?? []) {
      this.#covered.add(tx);
      if (this.#covered.size > 1000) this.#covered.delete(this.#covered.values().next().value);
    }
    const covered = [...this.#effects].filter((each) => this.#covered.has(each.tx));
    return () => {
      covered.forEach((each) => each.drop());
      if (!change) return;
      this.#changed(change);
      this.#told.resolve(this.rows);
    };
  }

  #show() {
    const entries = this.#copy.entries;
    const rows = new Map([...entries].map(([name, {row}]) => [name, row]));
    for (const {effect} of this.#effects) guarded(effect, rows);
    return [...rows.values()];
  }

  #changed(change) {
    this.#shown = null;
    if (!this.#copy.position) return;
    for (const {changed} of [...this.#listeners]) guarded(changed, this.rows, change);
  }

  #failed(error) {
    const {error: uri = LOST, args = [], kwargs = {}} = error ?? {};
    this.cut();
    this.#db.flush();
    // The router's message when no service is joined.
    const absent = /^no callee registered/.test(args[0]);
    const again = /\.(canceled|timeout|unavailable|position_gone|lost|internal|outcome_unknown)$/;
    if (uri.endsWith('position_gone')) this.#copy.position = null;
    if (!absent && !kwargs.retry && !again.test(uri)) {
      this.error = error;
      this.#told.reject(error);
      for (const {failed} of this.#listeners) guarded(failed, error);
      return;
    }
    this.#again(kwargs.retry_after);
  }

  #again(least) {
    clearTimeout(this.#retry);
    this.#retry = later(() => this.start(), this.#failures++, least);
  }

  #end() {
    clearTimeout(this.#retry);
    const call = this.#call;
    this.cut();
    // In any other mode autobahn closes the connection.
    if (call) guarded(() => call.cancel({mode: 'kill'}));
  }
}

/** A connection that is opened again when it is lost, with its live queries and calls. */
export class Rowcast {
  session = null;
  #live = new Set();
  #calls = new Set();
  #step = [];
  #failures = 0;
  #closed = false;
  #connection;
  #waiting;
  #watchdog;

  /**
   * `autobahn` is the module; the options are those of its Connection, and `prefix`, of the
   * service's URIs. `onstate` is called with "open", or with why there is no session. A connection
   * without messages is closed after `silence` seconds.
   */
  constructor(autobahn, {prefix = 'rowcast', onstate = () => {}, silence = 40, ...options}) {
    Object.assign(this, {autobahn, prefix, onstate, options});
    this.#watchdog = setInterval(() => this.#watch(Date.now() - silence * 1000), silence * 125);
    this.#open();
  }

  uri(name) {
    return name.startsWith(`${this.prefix}.`) ? name : `${this.prefix}.${name}`;
  }

  /** Watch a relation, or the rows of a function ("fn.name"), with the arguments of `find`. */
  live(name, query = {}) {
    const live = new Live(this, name, query);
    this.#live.add(live);
    this.#closed ? live.close() : live.start();
    return live;
  }

  /** Call a procedure; fail after `seconds`, and when the connection is lost. */
  call(name, args = [], kwargs = {}, seconds = PATIENCE) {
    const call = deferred();
    call.fail = (error) => call.reject(failure(error, name));
    call.start = () => {
      call.answer = this.send(name, args, kwargs);
      call.answer.then(call.resolve, call.reject);
    };
    const timer = setTimeout(() => {
      if (call.answer) guarded(() => call.answer.cancel({mode: 'kill'}));
      call.fail('rowcast.client.timeout');
    }, seconds * 1000);
    this.#calls.add(call);
    if (this.#closed) call.fail(LOST);
    else if (this.session) call.start();
    return call.promise.finally(() => {
      clearTimeout(timer);
      this.#calls.delete(call);
    });
  }

  /** Call, if there is a session. */
  send(name, args, kwargs, options) {
    const {session} = this;
    try {
      // A call that autobahn cannot send would never end.
      const {protocol} = this.#connection.transport.info;
      check([args, kwargs], /cbor/.test(protocol) ? /fun|sym/ : /fun|sym|big/);
      return session.call(this.uri(name), args, kwargs, options);
    } catch (error) {
      const {reject, promise} = deferred();
      reject(failure(session.isOpen ? 'wamp.error.invalid_argument' : LOST, error));
      return promise;
    }
  }

  close() {
    this.#closed = true;
    clearInterval(this.#watchdog);
    clearTimeout(this.#waiting);
    for (const live of [...this.#live]) live.close();
    for (const call of [...this.#calls]) call.fail(LOST);
    this.#abandon();
  }

  drop(live) {
    this.#live.delete(live);
    this.flush();
  }

  /** Keep a message until its step is complete, so that all live queries change together. */
  take(live, message) {
    // A second message of a live query belongs to the next step.
    const whole = ([other, {type, complete}]) => other === live && (type !== 'snapshot' || complete);
    if (this.#step.some(whole)) this.flush();
    this.#step.push([live, message]);
    if (message.step || (message.type === 'alive' && this.#step.length === 1)) this.flush();
  }

  flush() {
    const step = this.#step;
    this.#step = [];
    const told = step.map(([live, message]) => !live.closed && live.apply(message));
    for (const tell of told) if (tell) tell();
  }

  #open() {
    const options = {...this.options, max_retries: 0, use_deferred: deferred};
    const connection = new this.autobahn.Connection(options);
    this.#connection = connection;
    this.heard = Date.now();
    connection.onopen = (session) => {
      if (connection !== this.#connection) return;
      this.session = session;
      this.heard = Infinity;
      this.#failures = 0;
      guarded(this.onstate, 'open');
      for (const call of [...this.#calls]) if (!call.answer) call.start();
      for (const live of this.#live) live.start();
    };
    connection.onclose = (reason, details) => {
      if (connection === this.#connection) this.#lost(details?.reason ?? reason);
      // The kit reconnects, not autobahn, which gives up after a GOODBYE.
      return true;
    };
    connection.open();
  }

  #lost(reason) {
    this.#abandon();
    for (const call of [...this.#calls]) if (call.answer) call.fail(LOST);
    this.flush();
    for (const live of this.#live) live.cut();
    guarded(this.onstate, reason);
    if (this.#closed) return;
    this.#waiting = later(() => this.#open(), this.#failures++);
  }

  #abandon() {
    const connection = this.#connection;
    this.#connection = this.session = null;
    this.heard = Infinity;
    if (connection?.isConnected) connection.close();
  }

  /** Close a silent connection. */
  #watch(late) {
    if ([this, ...this.#live].some(({heard}) => heard < late)) this.#lost('silent');
  }
}

/** Return a deferred for autobahn: its own has no progress without when.js. */
function deferred() {
  const made = {notify() {}};
  made.promise = new Promise((resolve, reject) => Object.assign(made, {resolve, reject}));
  made.promise.progress = (heard) => (made.notify = heard);
  return made;
}

/** Act after a growing pause, with jitter. */
function later(act, failures, least = 0) {
  return setTimeout(act, Math.max(least, Math.min(5, 0.1 * 2 ** failures)) * (500 + 1000 * Math.random()));
}

/** Return an error like those of calls. */
function failure(error, why) {
  return {error, args: [String(why)], kwargs: {}};
}

/** Throw if a value cannot be sent. */
function check(value, never, ...outer) {
  if (never.test(typeof value)) throw `a ${typeof value} cannot be sent`;
  if (outer.includes(value)) throw 'a circular object cannot be sent';
  if (typeof value === 'object' && !ArrayBuffer.isView(value)) {
    for (const each of Object.values(value ?? {})) check(each, never, value, ...outer);
  }
}

/** Run a function; log its errors. */
function guarded(act, ...args) {
  try {
    act(...args);
  } catch (error) {
    console.error(error);
  }
}
