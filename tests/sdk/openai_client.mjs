// The OpenAI client for Node, unmodified: only the base URL is ours.
// Arguments: NODE_MODULES BASE_URL MODEL. Exits 0 when everything held, and says what did not.
import { createRequire } from "node:module";
import path from "node:path";

const [nodeModules, baseURL, model] = process.argv.slice(2);
const require = createRequire(path.join(nodeModules, "..", "here.js"));
const { default: OpenAI, NotFoundError, BadRequestError } = require("openai");

function expect(condition, what) {
  if (!condition) {
    console.error(`node client: ${what}`);
    process.exit(1);
  }
}

const client = new OpenAI({ baseURL, apiKey: "unused", timeout: 120_000 });
const messages = [{ role: "user", content: "Say hello." }];
const settings = { model, messages, max_tokens: 12, temperature: 0, seed: 1 };

const answer = await client.chat.completions.create(settings);
expect(answer.choices[0].message.content, "the chat answer is empty");
expect(answer.usage.completion_tokens > 0, "no usage");

let text = "";
let usage;
let finish;
const stream = await client.chat.completions.create({
  ...settings,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  usage = chunk.usage ?? usage;
  for (const choice of chunk.choices) {
    text += choice.delta.content ?? "";
    finish = choice.finish_reason ?? finish;
  }
}
expect(text === answer.choices[0].message.content, `streamed ${text}, at once otherwise`);
expect(["stop", "length"].includes(finish), `the stream has no finish reason: ${finish}`);
expect(usage?.completion_tokens > 0, "the stream has no usage");

const completion = await client.completions.create({
  model,
  prompt: "The capital of France is",
  max_tokens: 8,
  temperature: 0,
});
expect(completion.choices[0].text.includes("Paris"), `completion: ${completion.choices[0].text}`);

const embeddings = await client.embeddings.create({ model, input: ["a cat", "tax law"] });
expect(embeddings.data.length === 2, "two inputs, another number of embeddings");
expect(embeddings.data[0].embedding.length > 100, "an embedding without dimensions");

const ids = [];
for await (const entry of client.models.list()) ids.push(entry.id);
expect(ids.includes(model), `${model} is not among ${ids}`);
expect((await client.models.retrieve(model)).id === model, "retrieve gave another model");

async function refused(body, kind, what) {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    expect(error instanceof kind, `${what}: ${error}`);
    return error;
  }
  expect(false, `${what} was answered`);
}

const unknown = await refused({ model: "no-such-model", messages }, NotFoundError, "unknown model");
expect(unknown.code === "model_not_found", `code ${unknown.code}`);
const bad = await refused({ model, messages: "not a list" }, BadRequestError, "bad body");
expect(bad.type === "invalid_request_error", `type ${bad.type}`);

console.log("node client: ok");
