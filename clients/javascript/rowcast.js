/**
 * Live copies of what Rowcast serves, for browsers and Node: npm autobahn makes the connection.
 *
 *     const db = new Rowcast(autobahn, {url: 'ws://127.0.0.1:8080/ws', realm: 'realm1'});
 *     const open = db.live('actions', {where: {status: false}, order: ['id']});
 *     open.subscribe((rows) => draw(rows));
 */

/** Seconds that a call may take, and that an effect outlasts its write without being covered. */
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

/** A query that is watched: `rows` are those of the newest step, with what is being written. */
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
    /** Resolves with the first rows; rejects if there can be none. */
    this.ready = this.#told.promise;
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
   * Write with an effect that shows at once, until the rows have what was written or the write has
   * failed: it changes a Map of the rows by the JSON of their keys.
   */
  async write(verb, args, kwargs, effect) {
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

  /** Note that the session is gone. */
  cut() {
    this.#call = null;
    this.heard = Infinity;
    this.#copy.staged = null;  // its rest will not come
  }

  /** Take a message of the step that is whole now; return what tells the listeners. */
  apply(message) {
    let change;
    try {
      change = this.#copy.take(message);
    } catch (error) {
      // The rows are not to be trusted.
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
    // So says the router without a service.
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
    // In any other mode autobahn ends the whole connection.
    if (call) guarded(() => call.cancel({mode: 'kill'}));
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
  #connection;
  #waiting;
  #watchdog;

  /**
   * `autobahn` is the module; the options are those of its Connection, and `prefix`, of the
   * service's URIs. `onstate` is called with "open", or with why there is no session. A connection
   * is given up after `silence`, in seconds.
   */
  constructor(autobahn, {prefix = 'rowcast', onstate = () => {}, silence = 40, ...options}) {
    Object.assign(this, {autobahn, prefix, onstate, options});
    this.#watchdog = setInterval(() => this.#watch(Date.now() - silence * 1000), silence * 125);
    this.#open();
  }

  uri(name) {
    return name.startsWith(`${this.prefix}.`) ? name : `${this.prefix}.${name}`;
  }

  /** Watch a relation, or the rows of a function as in "fn.name", by the arguments of `find`. */
  live(name, query = {}) {
    const live = new Live(this, name, query);
    this.#live.add(live);
    this.#closed ? live.close() : live.start();
    return live;
  }

  /** Call a procedure; it ends within `seconds`, and with the connection. */
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
      // What autobahn cannot send, it tells nobody.
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
      // autobahn gives up for good when a router says goodbye.
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

  /** Give up a silent connection. */
  #watch(late) {
    if ([this, ...this.#live].some(({heard}) => heard < late)) this.#lost('silent');
  }
}

/** Return what autobahn answers a call by: its own takes no progress without when.js. */
function deferred() {
  const made = {notify() {}};
  made.promise = new Promise((resolve, reject) => Object.assign(made, {resolve, reject}));
  made.promise.progress = (heard) => (made.notify = heard);
  return made;
}

/** Act after a pause, longer with each failure, and not all at once. */
function later(act, failures, least = 0) {
  return setTimeout(act, Math.max(least, Math.min(5, 0.1 * 2 ** failures)) * (500 + 1000 * Math.random()));
}

/** Return an error as those of calls. */
function failure(error, why) {
  return {error, args: [String(why)], kwargs: {}};
}

/** Throw at what cannot be sent; a circle ends the stack. */
function check(value, never) {
  if (never.test(typeof value)) throw `a ${typeof value} cannot be sent`;
  if (typeof value === 'object' && !ArrayBuffer.isView(value)) {
    for (const each of Object.values(value ?? {})) check(each, never);
  }
}

/** Run what is not ours, whose errors must not stop us. */
function guarded(act, ...args) {
  try {
    act(...args);
  } catch (error) {
    console.error(error);
  }
}
