// Writes rows and reads them back with npm autobahn: node values.js URL REALM SERIALIZER FILE
// FILE contains calls, [{call, args, kwargs}…]; prints the result of each as a line of JSON.
// {"$bytes": base64} stands for binary, {"$int": digits} for an integer beyond 2^53.

import { readFileSync } from "node:fs";
import { inspect } from "node:util";
import autobahn from "autobahn";

const [url, realm, serializer, file] = process.argv.slice(2);

const SERIALIZERS = {
  json: () => new autobahn.serializer.JSONSerializer(),
  msgpack: () => new autobahn.serializer.MsgpackSerializer(),
  cbor: () => new autobahn.serializer.CBORSerializer(),
};

const mapped = (value, change) =>
  Array.isArray(value)
    ? value.map(change)
    : Object.fromEntries(Object.entries(value).map(([key, item]) => [key, change(item)]));

// autobahn leaves WAMP's binary conversion in JSON to the application.
function toWire(value) {
  if (value === null || typeof value !== "object") return value;
  if ("$int" in value) return BigInt(value.$int);
  if (!("$bytes" in value)) return mapped(value, toWire);
  return serializer === "json" ? `\0${value.$bytes}` : Buffer.from(value.$bytes, "base64");
}

function fromWire(value) {
  if (typeof value === "bigint") return { $int: String(value) };
  if (typeof value === "string" && value.startsWith("\0")) return { $bytes: value.slice(1) };
  if (value instanceof Uint8Array) return { $bytes: Buffer.from(value).toString("base64") };
  if (value === null || typeof value !== "object") return value;
  return mapped(value, fromWire);
}

async function run(session) {
  for (const { call, args = [], kwargs = {} } of JSON.parse(readFileSync(file, "utf8"))) {
    const answer = await session
      .call(call, toWire(args), toWire(kwargs))
      .catch((error) => ({ error: error.error, message: error.args?.[0], ...error.kwargs }));
    console.log(JSON.stringify(fromWire(answer)));
  }
}

const connection = new autobahn.Connection({
  realm,
  transports: [{ type: "websocket", url, serializers: [SERIALIZERS[serializer]()] }],
  max_retries: 0,
});
connection.onopen = (session) =>
  run(session)
    .then(() => connection.close())
    .catch((error) => {
      console.error(inspect(error));
      process.exit(1);
    });
connection.onclose = (reason) => process.exit(reason === "closed" ? 0 : 1);
connection.open();
