// Runs each line of the input, a command of JSON, with the kit, and prints each result on a line.
import {createInterface} from 'node:readline';
import {pathToFileURL} from 'node:url';
import autobahn from 'autobahn';

const [file, url, realm, prefix, serializer, silence] = process.argv.slice(2);
const {Rowcast} = await import(pathToFileURL(file));
const named = {json: 'JSONSerializer', cbor: 'CBORSerializer', msgpack: 'MsgpackSerializer'};
const print = (line) => console.log(JSON.stringify(line));
const made = () => new Rowcast(autobahn, {
  url, realm, prefix, silence: Number(silence),
  serializers: [new autobahn.serializer[named[serializer]]()],
  onstate: (state) => print({state}),
});
const kits = [made()], [db] = kits;
const lives = {};
const circular = {};
circular.id = circular;
const odd = {big: 1n, circular, 'a function': () => 1, 'a symbol': Symbol('id'), bytes: new Uint8Array(2)};
// Functions and handlers, which JSON cannot represent.
const value = (name, each) => odd[each?.odd] ?? each;

async function act({id, kit = 0, live, query, write, args, call, kwargs, seconds, close, ready, why}) {
  if (live) {
    lives[id] = (kits[kit] ??= made()).live(live, query);
    lives[id].subscribe(
      (rows, change) => print({id, rows, change, mismatches: lives[id].mismatches}),
      (error) => print({id, error: error.error}),
    );
    return;
  }
  if (close) return void (close === 'all' ? kits.forEach((each) => each.close()) : lives[close].close());
  try {
    if (ready) return void (await lives[id].ready);
    print({id, answer: await (write ? lives[write[0]][write[1]](...args) : db.call(call, args, kwargs, seconds))});
  } catch (error) {
    print({id, error: error.error, ...(why && {why: error.args[0]})});
  }
}

for await (const line of createInterface({input: process.stdin})) act(JSON.parse(line, value));
