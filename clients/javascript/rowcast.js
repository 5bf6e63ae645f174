/**
 * Live copies of what Rowcast serves, for browsers and Node: npm autobahn makes the connection.
 *
 *     const db = new Rowcast(autobahn, {url: 'ws://127.0.0.1:8080/ws', realm: 'realm1'});
 *     const open = db.live('actions', {where: {status: false}, order: ['id']});
 *     open.subscribe((rows) => draw(rows));
 */

/** Seconds between two tries: at first, and at most. */
const PAUSES = [0.1, 5];
/** Seconds of silence after which a connection is given up: the service speaks each 15. */
const SILENCE = 40;
/** Seconds that a call may take, and that an effect outlasts its write without being covered. */
const PATIENCE = 30;

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

/** Return the text of a value of which checksums are made. */
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
  // By hand, since objects put keys that are numbers first.
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`)}}`;
}

/** A copy is not what the service has. */
export class Mismatch extends Error {}

/** The rows of a query, as the messages of `watch` make them. */
export class Copy {
  constructor(query = {}) {
    const {order} = query;
    this.ordered = Boolean(order && (!Array.isArray(order) || order.length));
    this.grouped = ['measures', 'group', 'having'].some((name) => name in query);
    this.entries = new Map();
    this.position = null;
    this.staged = null;
  }

  /** Take a message; return what it has changed, null while it is not whole. */
  take(message) {
    const change =
      message.type === 'snapshot' ? this.#snapshot(message)
      : message.type === 'delta' ? this.#delta(message)
      : null;
    if (!this.staged) {
      this.position = message.position ?? this.position;
      if ('checksum' in message && message.checksum !== this.checksum()) {
        throw new Mismatch(`not the rows of ${message.position}`);
      }
    }
    return change;
  }

  /** Forget the beginning of a snapshot whose rest will not come. */
  cut() {
    this.staged = null;
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

  /** Put a row among entries, in place of that with its key; return what it is there by. */
  #put(entries, row, beside) {
    const own = !beside && !this.columns;  // without a key a row is its own, as often as it comes
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
      this.columns = key;  // another one by now, or gone
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
      if (!this.entries.has(name)) continue;  // after `since` it may not be held
      change.leave.push(this.entries.get(name).row);
      this.entries.delete(name);
    }
    for (const [kind, rows] of [['update', update], ['enter', enter]]) {
      rows.forEach((row, at) => {
        const own = !keys && !this.columns;
        // One that is its own key and is updated has only moved.
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

  /** Put rows right behind those that stand before them now. */
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

/** Return the names of a copy of a row that is not there yet, and of the last one that is. */
function copies(entries, text) {
  let name = text, last = text;
  for (let copy = 2; entries.has(name); copy++) [last, name] = [name, `${text} ${copy}`];
  return [name, last];
}

/** A query that is watched: `rows` are its rows as of the newest step, with what is being written. */
export class Live {
  #db;
  #copy;
  #listeners = new Set();
  #effects = [];
  #covered = new Set();
  #shown = null;
  #call = null;
  #retry = null;
  #failures = 0;
  #told = {};

  constructor(db, name, query) {
    Object.assign(this, {name, query, error: null, closed: false, mismatches: 0, heard: Infinity});
    this.#db = db;
    this.#copy = new Copy(query);
    /** Resolves with the first rows; rejects if there can be none. */
    this.ready = new Promise((done, failed) => (this.#told = {done, failed}));
    this.ready.catch(() => {});
  }

  get rows() {
    return (this.#shown ??= this.#show());
  }

  get position() {
    return this.#copy.position;
  }

  /** Call with the rows now, if they are there, and after each change; return what ends that. */
  subscribe(changed, failed = () => {}) {
    const listener = {changed, failed};
    this.#listeners.add(listener);
    if (this.#copy.position) guarded(() => changed(this.rows, null));
    if (this.error) guarded(() => failed(this.error));
    return () => this.#listeners.delete(listener);
  }

  close() {
    this.closed = true;
    this.#end();
    this.#db.drop(this);
  }

  /**
   * Write with an effect that shows at once, until the rows have what was written or the write has
   * failed: it changes a Map of the rows by the JSON of their keys.
   */
  async write(verb, args, kwargs, effect) {
    const mine = {effect};
    this.#effects.push(mine);
    this.#changed(null);
    const drop = () => {
      clearTimeout(mine.timer);
      if (!this.#effects.includes(mine)) return;
      this.#effects = this.#effects.filter((each) => each !== mine);
      this.#changed(null);
    };
    mine.drop = drop;
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
    return this.write('create', [values], kwargs, (rows) => rows.set(Symbol('new'), values));
  }

  update(key, changes, kwargs) {
    const name = canonical(key);
    const effect = (rows) => rows.has(name) && rows.set(name, {...rows.get(name), ...changes});
    return this.write('update', [key, changes], kwargs, effect);
  }

  delete(key, kwargs) {
    return this.write('delete', [key], kwargs, (rows) => rows.delete(canonical(key)));
  }

  /** Watch, if there is a session. */
  start() {
    const session = this.#db.session;
    if (!session || this.#call || this.closed || this.error) return;
    clearTimeout(this.#retry);
    const since = this.#copy.position ? {since: this.#copy.position} : {};
    const uri = this.#db.uri(`${this.name}.watch`), call = {};
    this.#call = call;
    this.heard = Date.now();
    const current = (act) => (value) => this.#call === call && act(value);
    try {
      const kwargs = {...this.query, ...since, tx: true};
      call.answer = session.call(uri, [], kwargs, {receive_progress: true});
      call.answer.then(current(() => this.#failed(null)), current((error) => this.#failed(error)));
      call.answer.progress((message) => {
        if (this.#call === call) {
          this.heard = Date.now();
          this.#db.take(this, message);
        } else if (message.step) this.#db.flush();
      });
    } catch (error) {
      this.#failed({error: 'rowcast.client.lost', args: [String(error)]});
    }
  }

  /** Note that the session is gone. */
  cut() {
    this.#call = null;
    this.heard = Infinity;
    this.#copy.cut();
  }

  /** Take a message of the step that is whole now; return what tells the listeners. */
  apply(message) {
    let change;
    try {
      change = this.#copy.take(message);
    } catch (error) {
      // Whatever it is, the rows are not to be trusted: ask for all of them.
      this.mismatches++;
      this.#end();
      this.#copy.position = null;
      this.#again();
      return () => {};
    }
    if (!this.#copy.staged) this.#failures = 0;
    for (const tx of message.covers ?? []) {
      this.#covered.add(tx);
      if (this.#covered.size > 1000) this.#covered.delete(this.#covered.values().next().value);
    }
    const covered = this.#effects.filter((each) => this.#covered.has(each.tx));
    return () => {
      covered.forEach((each) => each.drop());
      if (!change) return;
      this.#changed(change);
      this.#told.done(this.rows);
    };
  }

  #show() {
    const entries = this.#copy.entries;
    const rows = new Map([...entries].map(([name, {row}]) => [name, row]));
    for (const {effect} of this.#effects) guarded(() => effect(rows));
    return [...rows.values()];
  }

  #changed(change) {
    this.#shown = null;
    if (!this.#copy.position) return;
    for (const {changed} of [...this.#listeners]) guarded(() => changed(this.rows, change));
  }

  #failed(error) {
    const {error: uri = 'rowcast.client.lost', args = [], kwargs = {}} = error ?? {};
    this.cut();
    this.#db.flush();
    // Without a service it is the router that knows no such procedure.
    const absent = /^no callee registered/.test(args[0]);
    const again = /\.(canceled|timeout|unavailable|position_gone|lost|internal|outcome_unknown)$/;
    if (uri.endsWith('position_gone')) this.#copy.position = null;
    if (!absent && !kwargs.retry && !again.test(uri)) {
      this.error = error;
      this.#told.failed(error);
      for (const {failed} of this.#listeners) guarded(() => failed(error));
      return;
    }
    this.#again(kwargs.retry_after);
  }

  /** Start after a pause, longer each time. */
  #again(least = 0) {
    const [first, most] = PAUSES;
    const seconds = Math.max(least, Math.min(most, first * 2 ** this.#failures++));
    clearTimeout(this.#retry);
    // Not all at once, when a service has gone that had many.
    this.#retry = setTimeout(() => this.start(), seconds * 1000 * (0.5 + Math.random()));
  }

  #end() {
    clearTimeout(this.#retry);
    const call = this.#call;
    this.cut();
    // In any other mode autobahn ends the whole connection.
    if (call?.answer) guarded(() => call.answer.cancel({mode: 'kill'}));
  }
}

/** A connection that comes back, and the live queries on it. */
export class Rowcast {
  session = null;
  #live = new Set();
  #calls = new Set();
  #step = [];
  #failures = 0;
  #closed = false;
  #connection = null;
  #waiting = null;
  #watchdog = null;

  /**
   * `autobahn` is the module; the options are those of its Connection, and `prefix`, of the
   * service's URIs. `onstate` is called with "open", or with why there is no session.
   */
  constructor(autobahn, {prefix = 'rowcast', onstate = () => {}, ...options}) {
    Object.assign(this, {autobahn, prefix, onstate, options});
    this.#watchdog = setInterval(() => this.#watch(), 5000);
    this.#open();
  }

  uri(name) {
    return name.startsWith(`${this.prefix}.`) ? name : `${this.prefix}.${name}`;
  }

  /** Watch a relation, or the rows of a function as in "fn.name", by the arguments of `find`. */
  live(name, query = {}) {
    const live = new Live(this, name, query);
    this.#live.add(live);
    live.start();
    return live;
  }

  /** Call a procedure; it ends within `seconds`, and when the connection is lost. */
  call(name, args = [], kwargs = {}, seconds = PATIENCE) {
    return new Promise((done, failed) => {
      const call = {answer: null};
      const end = (settle) => (value) => {
        clearTimeout(timer);
        this.#calls.delete(call);
        settle(value);
      };
      call.fail = end((why) => failed({error: `rowcast.client.${why}`, args: [uri], kwargs: {}}));
      call.start = () => {
        try {
          call.answer = this.session.call(uri, args, kwargs);
          call.answer.then(end(done), end(failed));
        } catch {
          call.fail('lost');
        }
      };
      const uri = this.uri(name);
      const timer = setTimeout(() => {
        if (call.answer) guarded(() => call.answer.cancel({mode: 'kill'}));
        call.fail('timeout');
      }, seconds * 1000);
      this.#calls.add(call);
      if (this.session) call.start();
    });
  }

  close() {
    this.#closed = true;
    clearInterval(this.#watchdog);
    clearTimeout(this.#waiting);
    for (const live of [...this.#live]) live.close();
    for (const call of [...this.#calls]) call.fail('lost');
    this.#abandon();
  }

  drop(live) {
    this.#live.delete(live);
    this.flush();
  }

  /** Keep a message until the step that it is of is whole, for all live queries change together. */
  take(live, message) {
    // One for which there is another message already is in the next step.
    const whole = ([other, {type, complete}]) => other === live && (type !== 'snapshot' || complete);
    if (this.#step.some(whole)) this.flush();
    this.#step.push([live, message]);
    if (message.step || (message.type === 'alive' && this.#step.length === 1)) this.flush();
  }

  flush() {
    const step = this.#step;
    this.#step = [];
    const tell = step.map(([live, message]) => live.closed || live.apply(message));
    for (const each of tell) if (each !== true) each();
  }

  #open() {
    const options = {...this.options, max_retries: 0, use_deferred: deferred};
    const connection = new this.autobahn.Connection(options);
    this.#connection = connection;
    connection.onopen = (session) => {
      if (connection !== this.#connection) return;
      this.session = session;
      this.#failures = 0;
      guarded(() => this.onstate('open'));
      for (const call of [...this.#calls]) if (!call.answer) call.start();
      for (const live of this.#live) live.start();
    };
    connection.onclose = (reason, details) => {
      if (connection === this.#connection) this.#lost(details?.reason ?? reason);
      // autobahn gives up for good when a router says goodbye.
      return true;
    };
    connection.open();
  }

  #lost(reason) {
    this.#abandon();
    for (const call of [...this.#calls]) if (call.answer) call.fail('lost');
    this.flush();
    for (const live of this.#live) live.cut();
    guarded(() => this.onstate(reason));
    if (this.#closed) return;
    const [first, most] = PAUSES, pause = Math.min(most, first * 2 ** this.#failures++);
    this.#waiting = setTimeout(() => this.#open(), pause * 1000 * (0.5 + Math.random()));
  }

  #abandon() {
    const connection = this.#connection;
    this.#connection = this.session = null;
    try {
      connection?.close();
    } catch {
      // It was closed.
    }
  }

  /** Give up a connection that is silent. */
  #watch() {
    const late = Date.now() - SILENCE * 1000;
    if (this.session && [...this.#live].some(({heard}) => heard < late)) this.#lost('silent');
  }
}

/** Return what autobahn answers a call by: its own takes no progress where when.js is not there. */
function deferred() {
  const made = {notify: () => {}};
  made.promise = new Promise((resolve, reject) => Object.assign(made, {resolve, reject}));
  made.promise.progress = (heard) => (made.notify = heard);
  return made;
}

/** Run what is not ours, whose errors must not stop us. */
function guarded(act) {
  try {
    act();
  } catch (error) {
    console.error(error);
  }
}
