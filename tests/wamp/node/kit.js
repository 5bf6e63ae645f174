// Does what each line of the input says with the kit, and prints what comes of it, a line each.
import {createInterface} from 'node:readline';
import {pathToFileURL} from 'node:url';
import autobahn from 'autobahn';

const [file, url, realm, prefix, serializer] = process.argv.slice(2);
const {Rowcast} = await import(pathToFileURL(file));
const named = {json: 'JSONSerializer', cbor: 'CBORSerializer', msgpack: 'MsgpackSerializer'};
const print = (line) => console.log(JSON.stringify(line));
const made = () => new Rowcast(autobahn, {
  url, realm, prefix,
  serializers: [new autobahn.serializer[named[serializer]]()],
  onstate: (state) => print({state}),
});
const kits = [made()], [db] = kits;
const lives = {};

async function act({id, kit = 0, live, query, write, args, call, kwargs, seconds, close}) {
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
    print({id, answer: await (write ? lives[write[0]][write[1]](...args) : db.call(call, args, kwargs, seconds))});
  } catch (error) {
    print({id, error: error.error});
  }
}

for await (const line of createInterface({input: process.stdin})) act(JSON.parse(line));
