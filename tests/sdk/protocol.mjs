// What every Node client under test shares: a case in, what the client saw out, both lines of JSON.
// A client's file hands over functions: `stream` yields text, all the others return it.
// Argument: NODE_MODULES, whose clients `load` finds.
import { createRequire } from "node:module";
import path from "node:path";
import { createInterface } from "node:readline";

const [nodeModules] = process.argv.slice(2);
export const load = createRequire(path.join(nodeModules, "..", "here.js"));

export const QUESTION = "Why is the sky blue?";
export const TOOL = "get_weather";
export const TOOL_QUESTION = "What is the weather in Paris?";
export const PARAMETERS = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
export const FUNCTION = {
  type: "function",
  function: { name: TOOL, description: "The weather of a city.", parameters: PARAMETERS },
};
export const SCHEMA_QUESTION = "Name a city as JSON.";
export const RESPONSE_FORMAT = {
  type: "json_schema",
  json_schema: { name: "place", strict: true, schema: PARAMETERS },
};

export const BEGINNING = "The capital of France is";
export const WORDS = ["a cat", "a kitten", "tax law"];

const product = (one, other) => one.reduce((sum, value, at) => sum + value * other[at], 0);
const cosine = (one, other) => product(one, other) / Math.sqrt(product(one, one) * product(other, other));

// What there is to say of the embeddings of `WORDS`.
export function vectors(found) {
  const [near, far] = found.slice(1).map((other) => cosine(found[0], other).toFixed(2));
  return `${found.length} of ${found[0].length}: cat and kitten ${near}, cat and tax ${far}`;
}

// What there is to say of a file of sound, 16 bit and mono.
export function sound(data) {
  const bytes = Buffer.from(data);
  const seconds = (bytes.length - 44) / 2 / bytes.readUInt32LE(24);
  return `${bytes.subarray(0, 4)}, ${seconds.toFixed(1)} s of speech`;
}

export const messages = (question = QUESTION) => [{ role: "user", content: question }];

const write = process.stdout.write.bind(process.stdout);
const say = (what) => write(`${JSON.stringify(what)}\n`);

async function drain(pieces, isLeaving, seen) {
  for await (const piece of pieces) {
    if (piece && !seen.text) say({ first: true });
    seen.text += piece ?? "";
    if (seen.text && isLeaving) return;
  }
}

// Answers one case a line until there are no more.
export async function serve(calls) {
  // What a client prints is no answer of ours.
  console.log = console.info = console.warn = console.error;
  process.stdout.write = process.stderr.write.bind(process.stderr);
  say({ ready: true });
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    const call = calls[asked.call === "leave" ? "stream" : asked.call];
    if (!call) {
      say({ done: true, absent: true });
      continue;
    }
    const seen = { text: "" };
    let error = null;
    const began = performance.now();
    try {
      if (["stream", "leave"].includes(asked.call)) {
        await drain(call(asked), asked.call === "leave", seen);
      } else {
        seen.text = await call(asked);
      }
    } catch (raised) {
      error = { class: raised?.constructor?.name ?? typeof raised, message: String(raised?.message ?? raised) };
      if (raised?.cause?.code) error.class += ` (${raised.cause.code})`;
    }
    const seconds = (performance.now() - began) / 1000;
    say({ done: true, text: seen.text ?? "", error, seconds });
  }
  process.exit(0);
}
