// Subscribes with npm autobahn: node subscriber.js URL REALM SERIALIZER GRAINS
// GRAINS is JSON, a list of [URI, match]. Prints "subscribed", then [URI, event] for each event.

import autobahn from "autobahn";

const [url, realm, serializer, grains] = process.argv.slice(2);

const SERIALIZERS = {
  json: () => new autobahn.serializer.JSONSerializer(),
  msgpack: () => new autobahn.serializer.MsgpackSerializer(),
  cbor: () => new autobahn.serializer.CBORSerializer(),
};

// Binary values as base64, which JSON has after a NUL; integers as numbers, which CBOR decodes as BigInt.
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "string" && value.startsWith("\0")) return value.slice(1);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

const print = (value) => console.log(JSON.stringify(value));

const connection = new autobahn.Connection({
  url,
  realm,
  serializers: [SERIALIZERS[serializer]()],
  max_retries: 0,
});

connection.onopen = async (session) => {
  for (const [uri, match] of JSON.parse(grains)) {
    await session.subscribe(uri, ([event]) => print([uri, plain(event)]), { match });
  }
  print("subscribed");
};

connection.onclose = (reason) => {
  console.error(reason);
  process.exitCode = 1;
};

connection.open();
