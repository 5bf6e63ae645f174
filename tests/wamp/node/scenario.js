// Runs the shared scenario with npm autobahn: node scenario.js URL REALM PREFIX SERIALIZER FILE
// Prints each step with an unexpected result, and a line with the number of steps that ran.

import { readFileSync } from "node:fs";
import { isDeepStrictEqual, inspect } from "node:util";
import autobahn from "autobahn";

const [url, realm, prefix, serializer, file] = process.argv.slice(2);

const SERIALIZERS = {
  json: () => new autobahn.serializer.JSONSerializer(),
  msgpack: () => new autobahn.serializer.MsgpackSerializer(),
  cbor: () => new autobahn.serializer.CBORSerializer(),
};

// autobahn leaves WAMP's binary conversion in JSON to the application.
const toBytes = (base64) =>
  serializer === "json" ? `\0${base64}` : Buffer.from(base64, "base64");

function marked(value) {
  if (Array.isArray(value)) return value.map(marked);
  if (value === null || typeof value !== "object") return value;
  if ("$bytes" in value) return toBytes(value.$bytes);
  if ("$int" in value) return BigInt(value.$int);
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, marked(item)]));
}

// One form for values for which this client has several types.
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("base64") };
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

async function call(session, step, parts) {
  try {
    const args = marked(step.args ?? []);
    const options = step.parts ? { receive_progress: true } : {};
    const called = session.call(`${prefix}.${step.call}`, args, marked(step.kwargs ?? {}), options);
    return await called.then(null, null, (part) => parts.push(part));
  } catch (error) {
    if (!(error instanceof autobahn.Error)) throw error;
    return [error.error, error.args?.[0] ?? null, error.kwargs ?? {}];
  }
}

async function run(session) {
  let ran = 0;
  for (const step of JSON.parse(readFileSync(file, "utf8"))) {
    if (step.needs === "int64" && serializer !== "cbor") continue;
    const wanted = step.error
      ? [step.error, step.message, marked(step.details)]
      : marked(step.result);
    const parts = [];
    const found = await call(session, step, parts);
    const all = [found, parts];
    if (!isDeepStrictEqual(plain(all), plain([wanted, marked(step.parts ?? [])]))) {
      console.log(`${step.call}: expected ${inspect(wanted)}, found ${inspect(all)}`);
    }
    ran += 1;
  }
  console.log(`ran ${ran}`);
}

const connection = new autobahn.Connection({
  realm,
  transports: [{ type: "websocket", url, serializers: [SERIALIZERS[serializer]()] }],
  max_retries: 0,
});
connection.onopen = (session) =>
  run(session)
    .catch((error) => console.log(`broke: ${inspect(error)}`))
    .finally(() => connection.close());
connection.onclose = (reason, details) => {
  if (reason !== "closed") console.log(`closed: ${reason} ${inspect(details)}`);
  process.exit(0);
};
connection.open();
